"""Peaks that belong to a cluster, and reports of clusters: SCALE's own where that is valid."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import confusion_matrix, f1_score

from pyro_scale.analysis import (
    cluster_report,
    cluster_scores,
    match_clusters,
    peak_specificity,
    specific_peaks,
)


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return rng.poisson(0.5, (60, 40)).astype(float) + (rng.random((60, 40)) < 0.02)


@pytest.fixture
def clusters():
    return np.random.default_rng(1).integers(0, 4, 60)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.coo_array])
def test_specificity_equals_scales(published, x, clusters, kind):
    x = x[:, x.sum(0) > 0]
    theirs = published.specifity.mat_specificity_score(pd.DataFrame(x.T), clusters)
    ours = peak_specificity(kind(x), clusters)
    np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), atol=1e-12)
    assert list(ours.columns) == ["0", "1", "2", "3"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # theirs divides by zero
def test_a_silent_peak_is_specific_to_no_cluster(published, x, clusters):
    """SCALE scores it NaN (C18)."""
    x[:, 3] = 0
    theirs = published.specifity.mat_specificity_score(pd.DataFrame(x.T), clusters)
    assert theirs.iloc[3].isna().all()
    ours = peak_specificity(x, clusters)
    assert (ours.iloc[3] == 0).all()
    assert np.isfinite(ours.to_numpy()).all()
    assert 3 not in set(specific_peaks(ours, None)["peak"])


def test_an_empty_category_has_no_peaks(x, clusters):
    names = pd.Categorical([str(c) for c in clusters], categories=["3", "9", "0", "1", "2"])
    scores = peak_specificity(x, names, [f"p{i}" for i in range(40)])
    assert list(scores.columns) == ["3", "9", "0", "1", "2"]
    assert (scores["9"] == 0).all()
    np.testing.assert_allclose(scores["1"], peak_specificity(x, clusters)["1"].to_numpy())
    assert scores.index[2] == "p2"


def test_top_peaks_are_the_largest_of_the_cluster_they_are_most_specific_to(x, clusters):
    scores = peak_specificity(x, clusters)
    table = specific_peaks(scores, 5)
    best, top = scores.idxmax(axis=1), scores.max(axis=1)
    for cluster in scores:
        expected = top[best == cluster].sort_values(ascending=False, kind="stable").index[:5]
        part = table[table["cluster"] == cluster]
        assert list(part["peak"]) == list(expected)
        assert list(part["rank"]) == list(range(len(part)))
    assert len(specific_peaks(scores, None)) == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, c: (x, c[:-1]), "59 clusters for 60 cells"),
        (lambda x, c: (-x, c), "negative or NaN"),
        (lambda x, c: (np.full_like(x, np.nan), c), "negative or NaN"),
        (lambda x, c: (x, [None, *c[1:]]), "1 cells have no cluster"),
        (lambda x, c: (x, c, ["a"]), "1 peak names for 40 peaks"),
    ],
)
def test_specificity_refuses_what_does_not_fit(x, clusters, change, words):
    with pytest.raises(ValueError, match=words):
        peak_specificity(*change(x, clusters))


@pytest.mark.parametrize("n_clusters", [2, 4, 7])
def test_the_matching_has_the_most_cells_in_common(n_clusters):
    """By trying every assignment; numbers of clusters and labels need not be equal."""
    import itertools

    rng = np.random.default_rng(n_clusters)
    labels = rng.integers(0, 4, 50)
    right, other = rng.random(50) < 0.6, rng.integers(0, n_clusters, 50)
    clusters = np.where(right, (labels + 1) % n_clusters, other)
    names = [f"type {label}" for label in labels]
    matching = match_clusters(names, clusters)
    common = sum(matching[str(c)] == name for c, name in zip(clusters, names, strict=True))
    slots = max(4, n_clusters)
    best = max(
        sum(order[c] == label for c, label in zip(clusters, labels, strict=True))
        for order in itertools.permutations(range(slots), n_clusters)
    )
    assert common == best
    assert len(set(matching.values())) == len(matching) == len(set(clusters))


def test_a_cluster_without_a_label_keeps_its_name_and_takes_no_other():
    assert match_clusters(["0", "0", "1"], ["1", "1", "0"]) == {"0": "1", "1": "0"}
    assert match_clusters(["0", "0", "0"], ["0", "0", "1"]) == {"0": "0", "1": "1"}
    assert match_clusters(["1", "1", "1"], ["0", "0", "1"]) == {"0": "1", "1": "cluster 1"}


def test_the_report_equals_scikit_learns_scores_after_matching(clusters):
    labels = np.array(["a", "b", "c"])[np.random.default_rng(2).integers(0, 3, 60)]
    report = cluster_report(labels, clusters)
    matched = [report.matching[str(c)] for c in clusters]
    known = ["a", "b", "c"]
    for name, average in (("f1", "weighted"), ("f1_macro", "macro")):
        expected = f1_score(labels, matched, labels=known, average=average, zero_division=0)
        assert report.scores[name] == pytest.approx(expected)
    assert set(report.scores) == {"ari", "nmi", "homogeneity", "f1", "f1_macro"}
    columns = list(report.confusion.columns)
    expected = confusion_matrix(labels, matched, labels=columns)[[columns.index(k) for k in known]]
    np.testing.assert_array_equal(report.confusion.to_numpy(), expected)
    assert columns[:3] == known
    assert f"ari {report.scores['ari']:.3f}" in str(report)


def test_the_matching_equals_scales_where_that_runs(published, monkeypatch):
    """Its own needs a module that scikit-learn has dropped (C3): scipy's solver in its place."""
    import sys
    import types

    from scipy.optimize import linear_sum_assignment

    module = types.ModuleType("sklearn.utils.linear_assignment_")
    module.linear_assignment = lambda cost: np.stack(linear_sum_assignment(cost), 1)
    monkeypatch.setitem(sys.modules, "sklearn.utils.linear_assignment_", module)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, 80)
    clusters = np.where(rng.random(80) < 0.7, (labels + 2) % 5, rng.integers(0, 5, 80))
    theirs = published.utils.reassign_cluster_with_ref(clusters, labels)
    matching = match_clusters(labels, clusters)
    assert [matching[str(c)] for c in clusters] == [str(label) for label in theirs]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_cells_without_a_label_are_no_label_of_their_own(missing, caplog):
    caplog.set_level("INFO")
    labels, clusters = ["a", missing, "b", "a"], ["0", "1", "1", "0"]
    report = cluster_report(labels, clusters)
    assert report.confusion.to_numpy().tolist() == [[2, 0], [0, 1]]
    assert list(report.confusion.index) == ["a", "b"]
    assert report.scores["ari"] == cluster_scores(["a", "b", "a"], ["0", "1", "0"])["ari"] == 1
    assert "1 cells without a label or a cluster are left out" in caplog.text
    assert match_clusters(pd.Categorical(labels), clusters) == {"0": "a", "1": "b"}
    with pytest.raises(ValueError, match="no cell has a label and a cluster"):
        cluster_scores([missing], ["0"])
