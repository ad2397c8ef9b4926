"""The figures of one axes: what is drawn, where it is written, what is refused."""

import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers.figures import K, N, legend, points
from matplotlib.colors import to_hex, to_rgba
from scipy import sparse
from scipy.stats import entropy

import pyro_scale as ps
from pyro_scale.plotting import CATEGORIES

pytestmark = pytest.mark.usefixtures("matplotlib_is_left_alone")


def test_embedding_has_every_cell_in_its_categorys_colour(result):
    axes = ps.pl.embedding(result, "cell_type")
    drawn = points(axes)
    codes = result.obs["cell_type"].cat.codes
    assert len(drawn) == N
    for xy, code in zip(result.obsm["X_umap"], codes, strict=True):
        assert drawn[tuple(xy)] == CATEGORIES[code].lower()
    assert legend(axes) == [text.get_text() for text in axes.texts] == ["glia", "neuron", "other"]
    assert axes.get_xlabel() == "UMAP 1"


def test_labels_lie_at_the_median_unless_they_would_overlap(result):
    axes = ps.pl.embedding(result, "scale_cluster")
    for text in axes.texts:
        at = (result.obs["scale_cluster"] == text.get_text()).to_numpy()
        np.testing.assert_allclose(text.get_position(), np.median(result.obsm["X_umap"][at], 0))
    result.obsm["X_umap"][:] = np.where(np.arange(N) % 2, 1, -1)[:, None]  # all medians are 0
    axes = ps.pl.embedding(result, "cell_type")
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_cells_without_a_category_are_grey_and_below(result):
    result.obs["cell_type"] = result.obs["cell_type"].cat.remove_categories("neuron")
    axes = ps.pl.embedding(result, "cell_type")
    at = result.obs["cell_type"].isna().to_numpy()
    drawn = points(axes)
    assert {drawn[tuple(xy)] for xy in result.obsm["X_umap"][at]} == {"#d0d0d0"}
    assert {tuple(xy) for xy in axes.collections[0].get_offsets()[: at.sum()]} == {
        tuple(xy) for xy in result.obsm["X_umap"][at]
    }
    assert legend(axes) == ["glia", "other", "missing"]
    assert [text.get_text() for text in axes.texts] == ["glia", "other"]
    result.obs["nothing"] = pd.Categorical([None] * N, categories=["a"])
    assert legend(ps.pl.embedding(result, "nothing")) == ["missing"]


def test_numbers_run_from_low_to_high_and_nan_is_grey(result):
    depth = result.obs["depth"].astype(float)
    depth.iloc[:5] = [np.nan, np.inf, *[np.nan] * 3]
    result.obs["depth"] = depth
    axes = ps.pl.embedding(result, "depth")
    grey, known = axes.collections
    assert len(grey.get_offsets()) == 5
    assert to_hex(grey.get_facecolors()[0]) == "#d0d0d0"
    np.testing.assert_array_equal(known.get_array(), np.sort(depth[5:]))
    assert known.get_clim() == (depth[5:].min(), depth[5:].max())
    assert len(axes.figure.axes) == 2  # a colour bar
    result.obs["depth"] = np.nan
    assert len(ps.pl.embedding(result, "depth").figure.axes) == 1
    result.obs["depth"] = pd.array([1, None] * (N // 2), dtype="Int64")
    assert len(ps.pl.embedding(result, "depth").collections[0].get_offsets()) == N // 2


@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.csr_array, lambda x: x.toarray()])
def test_a_peak_shows_its_accessibility(result, kind):
    result.X = kind(result.X)
    axes = ps.pl.embedding(result, "peak4")
    drawn = points(axes)
    is_open = np.asarray(result[:, "peak4"].to_df()["peak4"]) > 0
    shades = [drawn[tuple(xy)] for xy in result.obsm["X_umap"]]
    assert [shade == CATEGORIES[0].lower() for shade in shades] == list(is_open)
    assert legend(axes) == ["closed", "open"]
    counts = result.copy()
    counts.X = counts.X * 3
    counts_drawn = ps.pl.embedding(counts, "peak4").collections[0].get_array()
    np.testing.assert_array_equal(counts_drawn, np.sort(3.0 * is_open))


@pytest.mark.parametrize(("n", "labels", "entries"), [(30, 30, 30), (31, 0, 31), (61, 0, 0)])
def test_many_categories_repeat_colours_and_are_labelled(result, n, labels, entries):
    cells = AnnData(obsm={"X_tsne": np.random.default_rng(0).normal(size=(2 * n, 2))})
    cells.obs["many"] = [f"a long name of type {code % n}" for code in range(2 * n)]
    axes = ps.pl.embedding(cells, "many")
    names = sorted(set(cells.obs["many"]))
    shades = points(axes)
    first, again = (cells.obs["many"] == names[code] for code in (0, 12))
    assert (
        shades[tuple(cells.obsm["X_tsne"][first][0])]
        == (shades[tuple(cells.obsm["X_tsne"][again][0])])
    )
    # Too long to be written on so small a plot: numbers, which the legend resolves.
    assert [text.get_text() for text in axes.texts] == [str(k + 1) for k in range(labels)]
    if entries:
        numbers = [f"{k + 1}  " if labels else "" for k in range(n)]
        assert legend(axes) == [a + b for a, b in zip(numbers, names, strict=True)]
    else:
        assert axes.get_legend() is None
        assert axes.get_title(loc="left") == f"many ({n} categories)"


def test_embedding_finds_its_coordinates(result):
    result.obsm["X_tsne"] = -result.obsm["X_umap"]
    assert ps.pl.embedding(result).get_xlabel() == "UMAP 1"
    for name in ("tsne", "X_tsne"):
        axes = ps.pl.embedding(result, basis=name)
        assert axes.get_ylabel() == "t-SNE 2"
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), result.obsm["X_tsne"])
    axes = ps.pl.embedding(result, basis="scale")
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), result.obsm["X_scale"][:, :2])


def test_many_points_are_a_bitmap_in_vector_files(result):
    few = ps.pl.embedding(result).collections[0]
    cells = AnnData(obsm={"X_umap": np.random.default_rng(0).normal(size=(2001, 2))})
    assert not few.get_rasterized()
    assert ps.pl.embedding(cells).collections[0].get_rasterized()


def test_entropy_is_in_units_of_log_k_with_the_uncertain_on_top(result):
    axes = ps.pl.responsibility_entropy(result)
    expected = entropy(result.obsm["scale_responsibilities"], axis=1) / np.log(K)
    dots = axes.collections[0]
    np.testing.assert_allclose(dots.get_array(), np.sort(expected), atol=1e-12)
    np.testing.assert_array_equal(dots.get_offsets(), result.obsm["X_umap"][np.argsort(expected)])
    assert dots.get_clim() == (0, 1)
    uniform = result.copy()
    uniform.obsm["scale_responsibilities"] = np.full((N, 4), 0.25)
    ones = ps.pl.responsibility_entropy(uniform).collections[0].get_array()
    np.testing.assert_allclose(ones, 1)
    uniform.obsm["scale_responsibilities"] = np.ones((N, 1))
    assert not ps.pl.responsibility_entropy(uniform).collections[0].get_array().any()


def test_occupancy_shows_shares_means_and_weights(result):
    weights = [0.5, 0.3, 0.2]
    axes = ps.pl.occupancy(result, weights=weights)
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [1 / 2, 1 / 3, 1 / 6])
    prior, mean = axes.lines
    np.testing.assert_array_equal(prior.get_ydata(), weights)
    np.testing.assert_allclose(mean.get_ydata(), result.obsm["scale_responsibilities"].mean(0))
    assert len(ps.pl.occupancy(result).lines) == 1
    result.obsm["scale_responsibilities"] = np.full((N, 40), 1 / 40)  # and 37 without cells
    axes = ps.pl.occupancy(result)
    assert [bar.get_height() for bar in axes.patches[3:]] == [0] * 37
    assert to_rgba(axes.patches[12].get_facecolor()) == to_rgba(CATEGORIES[0])


def test_history_draws_the_bounds_and_where_the_mixture_starts():
    frame = pd.DataFrame(
        {"phase": ["warm-up"] * 3 + ["mixture"] * 3, "elbo_train": [-90.0, -9, -8, -7, -6, -5]}
    )
    axes = ps.pl.history(frame)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), frame["elbo_train"])
    assert list(axes.lines[1].get_xdata()) == [3, 3]
    held_out = frame.assign(elbo_validation=frame["elbo_train"] - 1)
    assert legend(ps.pl.history(held_out)) == [
        "ELBO, training cells",
        "ELBO, held-out cells",
        "mixture starts",
    ]
    with_prior = frame.assign(objective=frame["elbo_train"] - 3)
    np.testing.assert_array_equal(
        ps.pl.history(with_prior).lines[1].get_ydata(), with_prior["objective"]
    )
    assert legend(ps.pl.history(frame[3:])) == ["ELBO, training cells"]  # no warm-up
    assert ps.pl.history(frame[:1]).lines[0].get_marker() == "o"
    with pytest.raises(ValueError, match=r"empty: call model.train\(\)"):
        ps.pl.history(pd.DataFrame())
    with pytest.raises(ValueError, match="no column phase; it has elbo_train"):
        ps.pl.history(frame[["elbo_train"]])
    with pytest.raises(TypeError, match="history is a SCALE"):
        ps.pl.history(object.__new__(ps.SCALE))


def test_metrics_draws_mean_and_spread_over_repeats():
    frame = pd.DataFrame(
        {"method": [*"bbbbaaaa"], "at": [0, 0, 1, 1] * 2, "ari": [0.1, 0.3, 0.5, 0.5] * 2}
    )
    axes = ps.pl.metrics(frame, x="at")
    assert legend(axes) == ["b", "a"]  # in the order of the frame
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0.2], [1, 0.5]])
    band = axes.collections[0].get_paths()[0].vertices
    sd = np.std([0.1, 0.3], ddof=1)
    assert band[band[:, 0] == 0, 1].max() == pytest.approx(0.2 + sd)
    assert band[band[:, 0] == 0, 1].min() == pytest.approx(0.2 - sd)
    assert axes.get_ylabel() == "ARI, mean ± s.d."
    once = ps.pl.metrics(frame[::2].assign(at=["low", "high"] * 2), x="at")
    assert not once.collections
    assert [text.get_text() for text in once.get_xticklabels()] == ["high", "low"]
    with pytest.raises(ValueError, match="no column 'nmi'; it has method, at, ari"):
        ps.pl.metrics(frame, x="at", y="nmi")
    with pytest.raises(ValueError, match=r"y='method' holds (object|str)"):
        ps.pl.metrics(frame, x="at", y="method")


ERRORS = {
    "no embedding": (
        lambda a: ps.pl.embedding(AnnData(a.X)),
        ValueError,
        "neither X_umap nor X_tsne.*ps.analysis.embed",
    ),
    "basis": (lambda a: ps.pl.embedding(a, basis="pca"), ValueError, "basis='pca' is not in.*X_sc"),
    "color": (
        lambda a: ps.pl.embedding(a, "x"),
        ValueError,
        "color='x' is neither a column .*scale_cluster, cell_type, depth.* 40 peaks",
    ),
    "ax": (lambda a: ps.pl.embedding(a, ax=1), TypeError, "ax is a int; expected matplotlib Axes"),
    "adata": (lambda a: ps.pl.embedding(a.X), TypeError, "adata is a csr_matrix.*to_anndata"),
    "no cells": (lambda a: ps.pl.occupancy(a[:0]), ValueError, "no cells to draw"),
    "key": (lambda a: ps.pl.occupancy(a, key="q"), ValueError, "key='q' is not in adata.obsm; it"),
    "not probabilities": (
        lambda a: ps.pl.responsibility_entropy(a, key="X_scale"),
        ValueError,
        "not probabilities",
    ),
    "cluster": (lambda a: ps.pl.occupancy(a, cluster="c"), ValueError, "cluster='c' is not a col"),
    "not a component": (
        lambda a: ps.pl.occupancy(a, cluster="cell_type"),
        ValueError,
        "has 'glia'; expected a component, '0' to '2'",
    ),
    "weights": (
        lambda a: ps.pl.occupancy(a, weights=[1]),
        ValueError,
        r"shape \(1,\); expected \(3,\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_given_and_what_there_is(result, name):
    act, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        act(result)


def test_run_draws_four_panels_and_computes_what_is_missing(result, monkeypatch):
    frame = pd.DataFrame({"phase": "mixture", "elbo_train": [-2.0, -1.0]})
    axes = ps.pl.summary(result, history=frame, weights=[0.5, 0.3, 0.2]).axes
    assert points(axes[0]).keys() == {tuple(xy) for xy in result.obsm["X_umap"]}
    assert len(axes[2].patches) == K
    np.testing.assert_array_equal(axes[3].lines[0].get_ydata(), [-2, -1])
    del result.obsm["X_umap"]
    monkeypatch.setattr("pyro_scale.analysis.embedding.find_spec", lambda name: None)
    module = sys.modules["pyro_scale.plotting.summary"]  # the function has the same name
    monkeypatch.setattr(module, "_MOST_CELLS", 50)
    axes = ps.pl.summary(result, history=frame).axes
    assert axes[0].get_xlabel() == "t-SNE 1"
    assert axes[0].get_title(loc="left") == "Mixture clusters of 60 cells, 50 shown"
    assert sum(len(dots.get_offsets()) for dots in axes[0].collections) == 50
    assert "X_tsne" not in result.obsm
    axes = ps.pl.summary(result, history=frame, cluster="cell_type").axes
    assert axes[0].get_title(loc="left").startswith("cell_type of 60")
    assert legend(axes[0]) == ["glia", "neuron", "other"]
    assert len(axes[2].patches) == K


def test_the_choice_of_k_is_drawn_with_its_limit():
    columns = {"valley": [0.0, 0.1, 0.4, 1.0], "silhouette": [np.nan, 0.2, 0.4, 0.3]}
    columns["stability"] = [1.0, 0.99, 0.97, 0.6]
    table = pd.DataFrame(columns, index=pd.RangeIndex(1, 5, name="n_components"))
    axes = ps.pl.n_components(table, chosen=3)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), table["valley"])
    assert legend(axes) == ["valley", "silhouette", "stability", "K = 3"]
    unknown = table.assign(stability=np.nan)
    assert legend(ps.pl.n_components(unknown)) == ["valley", "silhouette"]
    with pytest.raises(ValueError, match="if training chooses the number of components"):
        ps.pl.n_components(pd.DataFrame())
    with pytest.raises(ValueError, match="no column stability"):
        ps.pl.n_components(table[["valley", "silhouette"]])
    with pytest.raises(TypeError, match=r"expected model\.n_components_table"):
        ps.pl.n_components(None)
