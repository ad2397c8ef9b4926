"""Where figures are drawn and written, and which cells are chosen where there are too many."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import pyro_scale as ps
from pyro_scale.plotting._anndata import stratified

pytestmark = pytest.mark.usefixtures("matplotlib_is_left_alone")


ONE_AXES = {
    "embedding": lambda adata, **kw: ps.pl.embedding(adata, "cell_type", **kw),
    "entropy": lambda adata, **kw: ps.pl.responsibility_entropy(adata, **kw),
    "occupancy": lambda adata, **kw: ps.pl.occupancy(adata, **kw),
    "confusion": lambda adata, **kw: ps.pl.confusion_matrix(
        adata.obs["cell_type"], adata.obs["scale_cluster"], **kw
    ),
    "specificity": lambda adata, **kw: ps.pl.feature_specificity(adata, **kw),
    "history": lambda adata, **kw: ps.pl.history(
        pd.DataFrame({"phase": "mixture", "elbo_train": [-2.0, -1.0]}), **kw
    ),
    "metrics": lambda adata, **kw: ps.pl.metrics(
        pd.DataFrame({"x": [1, 2], "ari": [0.5, 1], "method": "a"}), x="x", **kw
    ),
}
WHOLE = {
    "heat map": lambda adata, **kw: ps.pl.peak_heatmap(adata, ["peak1", "peak2"], **kw),
    "correlation": lambda adata, **kw: ps.pl.cell_correlation(adata, **kw),
    "imputation": lambda adata, **kw: ps.pl.imputation(adata, n_peaks=3, **kw),
    "run": lambda adata, **kw: ps.pl.summary(
        adata, history=pd.DataFrame({"phase": "mixture", "elbo_train": [-2.0, -1.0]}), **kw
    ),
    "ladder": lambda adata, **kw: ps.pl.ladder(
        pd.DataFrame(np.ones((2, 4)), columns=[f"gap_{k}" for k in GAPS]), **kw
    ),
}
GAPS = ("posterior", "optimal", "averaged", "scale")


@pytest.mark.parametrize("name", ONE_AXES)
def test_axes_are_the_callers_if_given(result, name):
    figure, axes = plt.subplots(1, 2)
    before = result.copy()
    assert ONE_AXES[name](result, ax=axes[1]) is axes[1]
    assert axes[1].has_data()
    assert not axes[0].has_data()
    plt.close(figure)
    sub = Figure().subfigures(1, 2)[0]
    assert ONE_AXES[name](result, ax=sub.subplots()).figure is sub
    assert ONE_AXES[name](result).figure not in (figure, sub)
    pd.testing.assert_frame_equal(result.obs, before.obs)
    assert set(result.obsm) == set(before.obsm)
    assert not result.uns


@pytest.mark.parametrize("name", ONE_AXES | WHOLE)
def test_vector_files_hold_text_as_text(result, name, tmp_path):
    (ONE_AXES | WHOLE)[name](result, save=tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    assert b"/FontFile2" in content  # TrueType
    assert len(list(tmp_path.iterdir())) == 1  # nothing else is left


def test_the_suffix_is_the_format(result, tmp_path):
    for suffix, start in ((".pdf", b"%PDF"), (".svg", b"<?xml"), (".png", b"\x89PNG")):
        path = tmp_path / f"figure{suffix}"
        ps.pl.embedding(result, "cell_type", save=path)
        assert path.read_bytes().startswith(start)
    assert ">neuron</text>" in (tmp_path / "figure.svg").read_text()


def test_a_figure_is_written_whole_or_not_at_all(result, tmp_path, monkeypatch):
    path = tmp_path / "figure.PNG"
    ps.pl.embedding(result, save=str(path))
    written = path.read_bytes()

    def fails(self, fname, **kwargs):
        fname.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        ps.pl.embedding(result, save=path)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [written]
    with pytest.raises(ValueError, match=re.escape("expected a name that ends in .pdf, .svg")):
        ps.pl.embedding(result, save=tmp_path / "figure.jpg")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; make it"):
        ps.pl.embedding(result, save=tmp_path / "nowhere" / "figure.pdf")


def test_axes_of_the_caller_are_saved_with_their_whole_figure(result, tmp_path):
    figure = Figure()
    ax, other = figure.subplots(1, 2)
    other.text(0, 0, "beside")
    ps.pl.embedding(result, "cell_type", ax=ax, save=tmp_path / "both.svg")
    assert "beside" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize("n_cells", [4, 7, 100, 1000, 1012, 5000])
def test_subsamples_keep_every_group_and_its_share(n_cells):
    codes = np.random.default_rng(0).permutation(np.repeat([0, 2, 3, 9], [1, 1000, 1, 10]))
    rows = stratified(codes, n_cells, seed=0)
    assert len(rows) == len(set(rows)) == min(n_cells, 1012)
    assert (np.diff(codes[rows]) >= 0).all()
    assert set(codes[rows]) == {0, 2, 3, 9}
    of_largest = (codes[rows] == 2).sum()
    assert abs(of_largest - len(rows) * 1000 / 1012) <= 4
    with pytest.raises(ValueError, match="n_cells=3 is less than the 4 groups"):
        stratified(codes, 3, seed=0)
