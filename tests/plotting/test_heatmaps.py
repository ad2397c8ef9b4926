"""The heat maps: values, order of cells and peaks, bars, and what is never made dense."""

from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers.figures import K, N
from matplotlib.colors import to_hex
from scipy import sparse

import pyro_scale as ps
from pyro_scale.plotting import CATEGORIES
from pyro_scale.plotting._anndata import stratified

PEAKS = ["peak7", "peak0", "peak3"]


pytestmark = pytest.mark.usefixtures("matplotlib_is_left_alone")


def images(figure):
    """All images: heat maps have values, bars have colours."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def maps(figure):
    """The heat maps."""
    return [shown for shown in images(figure) if shown.ndim == 2]


def bar_colours(figure, cells):
    return [
        [to_hex(c) for c in shown.reshape(-1, 4)]
        for shown in images(figure)
        if shown.shape in ((1, cells, 4), (cells, 1, 4))
    ]


def ticks(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_peak_heat_map_has_these_peaks_of_the_cells_in_order(result):
    shuffled = result[np.random.default_rng(0).permutation(N)].copy()
    figure = ps.pl.peak_heatmap(shuffled, PEAKS, standardize=False)
    order = np.argsort(shuffled.obs["scale_cluster"].cat.codes, kind="stable")
    x = shuffled[:, PEAKS].to_df().to_numpy()[order]
    np.testing.assert_array_equal(maps(figure)[0], x.T)
    clusters = np.repeat(np.arange(K), [30, 20, 10])
    assert bar_colours(figure, N) == [[CATEGORIES[code].lower() for code in clusters]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == PEAKS
    assert ticks(figure.axes[2]) == ["0", "1", "2"]  # after the heat map and its colour bar
    middles = figure.axes[2].get_xticks()
    np.testing.assert_allclose(middles, [14.5, 39.5, 54.5])


def test_peaks_are_standardized_over_the_shown_cells_and_a_constant_is_zero(result):
    x = result.X.toarray()
    x[:, 3] = 1
    result.X = sparse.csr_matrix(x)
    shown = maps(ps.pl.peak_heatmap(result, PEAKS))[0]
    x = result[:, PEAKS[:2]].to_df().to_numpy()
    np.testing.assert_allclose(shown[:2], ((x - x.mean(0)) / x.std(0)).T, rtol=1e-5)
    assert not shown[2].any()


def test_a_second_bar_orders_the_cells_inside_a_group(result):
    rng = np.random.default_rng(1)
    result.obs["batch"] = pd.Categorical(rng.choice(["b", "a", None], N))
    figure = ps.pl.peak_heatmap(result, PEAKS, label="batch", standardize=False)
    keys = [result.obs[key].cat.codes.replace(-1, 9) for key in ("batch", "scale_cluster")]
    order = np.lexsort(keys)
    np.testing.assert_array_equal(maps(figure)[0], result[:, PEAKS].to_df().to_numpy()[order].T)
    shades = {0: CATEGORIES[0].lower(), 1: CATEGORIES[1].lower(), 9: "#d0d0d0"}
    assert bar_colours(figure, N)[1] == [shades[code] for code in keys[0].iloc[order]]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["scale_cluster", "0", "1", "2", "batch", "a", "b", "missing"]


def test_peaks_by_cluster_have_a_bar_in_their_clusters_colour(result):
    peaks = {"2": ["peak2", "peak5"], "neuron": ["peak1"], "mine": ["peak2"]}
    figure = ps.pl.peak_heatmap(result, peaks, label="cell_type", standardize=False)
    names = ["peak2", "peak5", "peak1", "peak2"]
    np.testing.assert_array_equal(maps(figure)[0], result[:, names].to_df().to_numpy().T)
    strip = next(shown for shown in images(figure) if shown.shape == (4, 1, 4))
    shades = [CATEGORIES[2].lower()] * 2 + [CATEGORIES[1].lower(), "#999999"]
    assert [to_hex(c) for c in strip[:, 0]] == shades


def test_a_layer_is_read_and_a_subsample_drawn_by_the_seed(result):
    options = {"layer": "scale_imputed", "standardize": False, "n_cells": 12}
    drawn = [maps(ps.pl.peak_heatmap(result, PEAKS, seed=seed, **options))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    rows = stratified(result.obs["scale_cluster"].cat.codes.to_numpy(), 12, 0)
    layer = pd.DataFrame(result.layers["scale_imputed"], columns=result.var_names)[PEAKS]
    np.testing.assert_allclose(drawn[0], layer.to_numpy()[rows].T, rtol=1e-6)


def test_only_the_chosen_peaks_and_cells_are_made_dense(result, monkeypatch):
    made = []
    for kind in (sparse.csr_matrix, sparse.csc_matrix):
        toarray = kind.toarray

        def watched(self, *args, toarray=toarray, **kwargs):
            made.append(self.shape)
            return toarray(self, *args, **kwargs)

        monkeypatch.setattr(kind, "toarray", watched)
    ps.pl.peak_heatmap(result, PEAKS, n_cells=20)
    ps.pl.imputation(result, n_peaks=4, n_cells=20)
    ps.pl.embedding(result, "peak1")
    ps.pl.cell_correlation(result, use_rep="X", n_cells=20)
    assert sorted(made) == [(20, 3), (20, 4), (20, 20), (60, 1)]


@pytest.mark.parametrize("is_sparse", [True, False])
def test_cells_on_disk_are_drawn_the_same(result, is_sparse, tmp_path):
    if not is_sparse:
        result.X = result.X.toarray()
    result.write_h5ad(tmp_path / "cells.h5ad")
    is_backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    shuffled = {"groupby": "cell_type", "n_cells": 30, "seed": 3}
    result.obs["cell_type"] = result.obs["cell_type"].cat.reorder_categories(
        ["other", "glia", "neuron"]
    )
    is_backed.obs["cell_type"] = result.obs["cell_type"]
    for draw in (
        lambda adata: ps.pl.peak_heatmap(adata, PEAKS, **shuffled),
        lambda adata: ps.pl.imputation(adata, **shuffled),
        lambda adata: ps.pl.cell_correlation(adata, use_rep="X", **shuffled),
    ):
        for shown, expected in zip(images(draw(is_backed)), images(draw(result)), strict=True):
            np.testing.assert_allclose(shown, expected, atol=1e-9)
    shown, expected = (ps.pl.embedding(adata, "peak4") for adata in (is_backed, result))
    np.testing.assert_array_equal(
        shown.collections[0].get_facecolors(), expected.collections[0].get_facecolors()
    )
    is_backed.file.close()


def test_imputation_shows_the_same_cells_and_peaks_twice(result):
    observed, imputed = maps(ps.pl.imputation(result, PEAKS, n_cells=1000))
    np.testing.assert_array_equal(observed, result[:, PEAKS].to_df().to_numpy().T)
    layer = pd.DataFrame(result.layers["scale_imputed"], columns=result.var_names)[PEAKS]
    np.testing.assert_allclose(imputed, layer.to_numpy().T, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_imputation_chooses_peaks_that_differ_most_between_groups(result, kind, monkeypatch):
    monkeypatch.setattr("pyro_scale.plotting._anndata._CHUNK", 7)
    layer = result.layers["scale_imputed"]
    layer[:, 11] += 3 * (result.obs["scale_cluster"] == "1")
    layer[:, 29] -= 0.9 * (result.obs["scale_cluster"] == "1") - 0.9
    layer[:, 5] += 2 * (result.obs["scale_cluster"] == "0")
    means = pd.DataFrame(layer).groupby(result.obs["scale_cluster"].to_numpy()).mean()
    top = set(means.var(ddof=0).nlargest(5).index)
    result.layers["scale_imputed"] = kind(layer)
    imputed = maps(ps.pl.imputation(result, n_peaks=5, n_cells=1000))[1]
    chosen = [int(np.abs(layer - row[:, None]).sum(0).argmin()) for row in imputed]
    assert set(chosen) == top
    assert (np.diff(means.to_numpy().argmax(0)[chosen]) >= 0).all()  # by their groups
    result.obs["scale_cluster"] = pd.Categorical(["0"] * N)  # one group: variance of the cells
    imputed = maps(ps.pl.imputation(result, n_peaks=1))[1]
    np.testing.assert_allclose(imputed[0], layer[:, layer.var(0).argmax()], rtol=1e-6)


@pytest.mark.parametrize("use_rep", ["X_scale", "X", "dense X"])
def test_correlation_of_cells_in_groups(result, use_rep):
    if use_rep == "dense X":
        result.X = result.X.toarray()
    x = result.X if use_rep == "dense X" else result.X.toarray()
    x = result.obsm["X_scale"] if use_rep == "X_scale" else x
    result = result[np.random.default_rng(0).permutation(N)].copy()
    x = np.asarray(x)[[int(name[4:]) for name in result.obs_names]]
    figure = ps.pl.cell_correlation(result, use_rep=use_rep.removeprefix("dense "))
    shown = maps(figure)[0]
    codes = np.repeat(np.arange(K), [30, 20, 10])
    expected = np.corrcoef(x)
    # The order inside a group is not known here: sums over groups and sorted values are.
    by_code = np.argsort(result.obs["scale_cluster"].cat.codes, kind="stable")
    expected = expected[np.ix_(by_code, by_code)]
    for a in range(K):
        for b in range(K):
            block, other = (r[np.ix_(codes == a, codes == b)] for r in (shown, expected))
            np.testing.assert_allclose(np.sort(block, None), np.sort(other, None), atol=1e-6)
    np.testing.assert_allclose(np.diag(shown), 1, atol=1e-6)
    np.testing.assert_array_equal(shown, shown.T)
    assert len(bar_colours(figure, N)) == 2


def test_alike_cells_of_a_group_lie_together_and_a_constant_cell_is_grey(result):
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 7))
    which = rng.integers(0, 2, N)
    result.obsm["X_scale"] = kinds[which] + 1e-3 * rng.normal(size=(N, 7))
    result.obs["scale_cluster"] = pd.Categorical(["0"] * N)  # one cluster
    shown = maps(ps.pl.cell_correlation(result))[0]
    alike = shown[0] > 0.9
    assert np.abs(np.diff(alike.astype(int))).sum() == 1
    result.obsm["X_scale"][3] = 2.5
    shown = ps.pl.cell_correlation(result).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown)).sum() == 2 * N - 1
    result.obsm["X_scale"] = result.obsm["X_scale"][:, :1]
    with pytest.raises(ValueError, match="use_rep='X_scale' has one dimension"):
        ps.pl.cell_correlation(result)


def test_many_groups_with_long_names_are_numbered(result):
    rng = np.random.default_rng(0)
    names = np.array([f"quite a long name {k:02}" for k in range(20)])
    result.obs["many"] = pd.Categorical(names[rng.permutation(np.arange(N) % 20)])
    figure = ps.pl.cell_correlation(result, groupby="many")
    assert ticks(figure.axes[2]) == [str(k + 1) for k in range(20)]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["many", *(f"{k + 1}  {name}" for k, name in enumerate(names))]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[2].get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


ERRORS = {
    "one name": (
        lambda a: ps.pl.peak_heatmap(a, "peak1"),
        TypeError,
        "peaks='peak1': expec",
    ),
    "no peaks": (lambda a: ps.pl.peak_heatmap(a, {"0": []}), ValueError, "peaks is empty; give"),
    "positions": (lambda a: ps.pl.peak_heatmap(a, [1, 2]), TypeError, "list of peak names"),
    "unknown": (
        lambda a: ps.pl.peak_heatmap(a, ["peak1", "chr1"]),
        ValueError,
        "1 of 2 peaks are not in .*first is 'chr1'.* 40 names like 'peak0'",
    ),
    "groupby": (
        lambda a: ps.pl.peak_heatmap(a, PEAKS, groupby="leiden"),
        ValueError,
        "groupby='leiden' is not a column of adata.obs; it has scale_cluster, cell_type, depth",
    ),
    "label": (lambda a: ps.pl.peak_heatmap(a, PEAKS, label="b"), ValueError, "label='b' is not a"),
    "layer": (
        lambda a: ps.pl.imputation(a, layer="x"),
        ValueError,
        "layer='x' is not in adata.layers; it has scale_imputed.*get_normalized_accessibility",
    ),
    "no X": (
        lambda a: ps.pl.peak_heatmap(anndata.AnnData(obs=a.obs, var=a.var), PEAKS),
        ValueError,
        "X is empty",
    ),
    "n_peaks": (lambda a: ps.pl.imputation(a, n_peaks=0), ValueError, "n_peaks=0"),
    "n_cells": (lambda a: ps.pl.imputation(a, n_cells=2), ValueError, "n_cells=2 is less than the"),
    "use_rep": (
        lambda a: ps.pl.cell_correlation(a, use_rep="X_pca"),
        ValueError,
        "use_rep='X_pca' is not in adata.obsm; it has scale_resp",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_given_and_what_there_is(result, name):
    act, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        act(result)


def test_groups_must_be_categories(result):
    result.obs["score"] = 0.5
    with pytest.raises(ValueError, match="groupby='score' holds float64 numbers"):
        ps.pl.cell_correlation(result, groupby="score")
    cells = ps.simulate(n_cells=101, n_peaks=50, n_clusters=2, density=0.2, seed=0)
    cells.obs["name"] = cells.obs_names
    with pytest.raises(ValueError, match="groupby='name' has 101 categories; at most 100"):
        ps.pl.cell_correlation(cells, groupby="name", use_rep="X")
