"""Confusion matrix and feature specificity: values, matching, readable text."""

import numpy as np
import pandas as pd
import pytest
from helpers.figures import N
from scipy.optimize import linear_sum_assignment
from scipy.stats import f_oneway

import pyro_scale as ps

pytestmark = pytest.mark.usefixtures("matplotlib_is_left_alone")


def ticks(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_confusion_matrix_counts_and_matches():
    labels = ["a"] * 6 + ["b"] * 4 + ["c"] * 2
    clusters = [1, 1, 1, 1, 1, 0, 0, 0, 0, 3, 7, 7]
    count = pd.crosstab(np.array(labels), np.array(clusters))
    axes = ps.pl.confusion_matrix(labels, clusters, normalize=None, match=False)
    np.testing.assert_array_equal(axes.images[0].get_array(), count)
    assert ticks(axes) == ["0", "1", "3", "7"]
    axes = ps.pl.confusion_matrix(labels, clusters)
    matched = count[[1, 0, 7, 3]]  # 3 is left over
    assert ticks(axes) == ["1", "0", "7", "3"]
    expected = 100 * matched.div(matched.sum(axis=1), axis=0)
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [text.get_text() for text in axes.texts] == ["83", "17", "75", "25", "100"]
    axes = ps.pl.confusion_matrix(labels, clusters, normalize="clusters")
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * matched / matched.sum())
    few = ps.pl.confusion_matrix(labels, np.array(labels) == "b", normalize=None)
    assert ticks(few) == ["False", "True"]
    one = ps.pl.confusion_matrix(labels, ["0"] * 12)
    assert one.images[0].get_array().shape == (3, 1)


def test_the_matching_is_the_best_one_to_one():
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 6, 500), rng.integers(0, 9, 500)
    axes = ps.pl.confusion_matrix(labels, clusters, normalize=None)
    count = pd.crosstab(labels, clusters).to_numpy()
    rows, columns = linear_sum_assignment(-count)
    assert axes.images[0].get_array().diagonal().sum() == count[rows, columns].sum()


def test_confusion_text_is_readable_on_every_cell_and_absent_where_there_are_many():
    labels = np.repeat(np.arange(10), 100)
    clusters = np.where(np.arange(1000) % 100 < 10 * labels + 5, 0, 1)
    axes = ps.pl.confusion_matrix(labels, clusters, match=False)
    image = axes.images[0]

    def luminance(rgb):
        rgb = np.asarray(rgb)
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    for text in axes.texts:
        column, row = text.get_position()
        cell = luminance(image.cmap(image.norm(image.get_array()[row, column]))[:3])
        ink = 0.0 if text.get_color() == "black" else 1.0
        light, dark = max(cell, ink) + 0.05, min(cell, ink) + 0.05
        assert light / dark >= 4.5  # WCAG AA
    assert {text.get_color() for text in axes.texts} == {"black", "white"}
    many = np.arange(26)
    assert not ps.pl.confusion_matrix(many, many).texts
    assert len(ps.pl.confusion_matrix(many[:25], many[:25]).texts) == 25


def test_confusion_leaves_out_cells_without_a_label():
    labels = pd.Categorical(["a", None, "b", "b"], categories=["b", "a", "unused"])
    axes = ps.pl.confusion_matrix(labels, ["0", "1", "1", np.nan], normalize=None)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 0], [0, 1]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]
    assert axes.get_title(loc="left").startswith("2 cells without")
    with pytest.raises(ValueError, match="3 labels and 1 clusters"):
        ps.pl.confusion_matrix([1, 2, 3], [1])
    with pytest.raises(ValueError, match="normalize='all'"):
        ps.pl.confusion_matrix([1], [1], normalize="all")
    with pytest.raises(ValueError, match="none of 1 cells"):
        ps.pl.confusion_matrix([None], [1])


def test_specificity_draws_p_values_of_any_number_of_dimensions(result):
    result.obs["part"] = result.obs["cell_type"].cat.remove_categories("other")
    for use_rep in ("X_scale", "X_umap"):
        z = result.obsm[use_rep]
        axes = ps.pl.feature_specificity(result, groupby="part", use_rep=use_rep)
        shown = axes.images[0].get_array()
        at = result.obs["part"].notna().to_numpy()
        is_glia = (result.obs["part"] == "glia").to_numpy()
        p = f_oneway(z[at & is_glia], z[at & ~is_glia]).pvalue
        np.testing.assert_allclose(shown, np.stack([-np.log10(p)] * 2, 1), rtol=1e-9)
        assert len(axes.get_yticklabels()) == z.shape[1]
        assert "capped" not in axes.figure.axes[1].get_ylabel()


def test_specificity_is_capped_at_the_float_limit_and_says_so(result):
    result.obsm["X_scale"][:, 2] = (result.obs["scale_cluster"] == "1") + 1e-12 * np.arange(N)
    axes = ps.pl.feature_specificity(result)
    assert axes.images[0].get_array().max() == -np.log10(np.finfo(float).tiny)
    assert axes.figure.axes[1].get_ylabel().endswith("capped at 308")
