"""Defects of the published SCALE's interface, shown on it: C11, C13, C17, C20, C21, C25, C27.

And what happens here instead. C4 (deprecated, and works) and C26 (dead links) need no test.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.io import mmwrite

import pyro_scale as ps


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def file(counts, tmp_path):
    counts.obs["batch"] = "a"
    counts.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


class Enough(Exception):  # noqa: N818
    """What was asked has been seen."""


@pytest.fixture
def called(published, monkeypatch, file):
    """What SCALE's own function makes of its arguments, up to the training."""
    seen = {}

    class Recorded:
        def __init__(self, dims, **_):
            seen["dims"] = dims

        def init_gmm_params(self, _):
            pass

        def fit(self, _, **settings):
            seen.update(settings)
            raise Enough

    monkeypatch.setattr(published, "SCALE", Recorded)

    def call(**options):
        with pytest.raises(Enough):
            published.SCALE_function([str(file)], min_peaks=0, n_feature=-1, **options)
        return seen

    return call


@pytest.mark.usefixtures("quiet")
def test_c21_sizes_and_weight_decay_have_no_effect(called, counts):
    seen = called(encode_dim=[8], decode_dim=[4], latent=3, weight_decay=0.9)
    assert seen["dims"][1:] == [10, [1024, 128], []]
    assert "weight_decay" not in seen
    ours = ps.SCALE(counts, 2, 3, hidden=(8,), decoder_hidden=(4,))
    assert ours.vae.encoder.loc.weight.shape == (3, 8)
    assert ours.vae.likelihood.peaks.weight.shape == (120, 4)


def test_c11_a_square_matrix_is_never_turned(published, tmp_path, caplog):
    """Peaks x cells, as 10x writes it, and a square one the other way round, which is not seen."""
    x = np.arange(9).reshape(3, 3)
    mmwrite(tmp_path / "matrix.mtx", sparse.csr_matrix(x))
    (tmp_path / "barcodes.tsv").write_text("a\nb\nc\n")
    (tmp_path / "peaks.tsv").write_text("chr1_1_2\nchr1_3_4\nchr1_5_6\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = published.dataset.read_mtx(str(tmp_path))
    np.testing.assert_array_equal(theirs.X.toarray(), x.T)
    caplog.set_level("INFO", logger="pyro_scale")
    np.testing.assert_array_equal(ps.read(tmp_path).X.toarray(), x.T)
    assert caplog.messages  # that it could not be told
    np.testing.assert_array_equal(ps.read(tmp_path, peaks="columns").X.toarray(), x)


def test_c13_every_cell_is_looked_up_in_a_way_that_pandas_gives_up(published, counts):
    counts.obs["batch"] = np.repeat("a", 80)
    counts.obs["batch"] = counts.obs["batch"].astype("category")
    with pytest.raises((FutureWarning, KeyError)):  # warnings are errors in these tests
        published.dataset.SingleCellDataset(counts)[0]


def test_c17_its_plots_compare_text_by_identity(published):
    source = (Path(published.__file__).parent / "plot.py").read_text()
    with pytest.warns(SyntaxWarning, match="is not"):
        compile(source, "plot.py", "exec", dont_inherit=True)


@pytest.mark.usefixtures("quiet")
def test_c20_its_progress_counts_twice(published, monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    bars = []

    class Bar(published.model.tqdm):
        """Counts its items as they are iterated, and `update` adds to that."""

        def __init__(self, *args, **options):
            super().__init__(*args, **options, file=io.StringIO(), mininterval=1e9)
            bars.append(self)  # (iterating calls `update` too, whenever the interval is over)
            self.updated = 0

        def update(self, n=1):
            self.updated += n
            return super().update(n)

    monkeypatch.setattr(published.model, "tqdm", Bar)
    data = torch.utils.data.DataLoader(torch.ones(320, 20), batch_size=32)
    published.SCALE([20, 2, [4], []], n_centroids=1).fit(data, max_iter=10)
    steps = next(bar for bar in bars if bar.desc == "Iterations")
    assert steps.n == steps.total == 10  # by iterating alone
    assert steps.updated == 10


def test_c25_it_exports_names_that_are_not_its_own(published):
    assert hasattr(published, "nn")
    assert not hasattr(ps, "nn")
    assert set(ps.__all__) <= {*dir(ps), "pl"}


@pytest.mark.usefixtures("quiet")
def test_c27_a_name_may_mean_a_file_elsewhere(published, counts, tmp_path, monkeypatch):
    counts.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(published.dataset, "DATA_PATH", f"{tmp_path}{os.sep}")
    assert published.dataset.load_file("cells").shape == counts.shape
    with pytest.raises(FileNotFoundError, match="cells does not exist"):
        ps.read("cells")
