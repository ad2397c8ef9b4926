"""Scores of a clustering against known labels. Labels are for scoring alone."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score

__all__ = ["cluster_scores"]


def cluster_scores(labels: Sequence[object], clusters: Sequence[object]) -> dict[str, float]:
    """Agreement of clusters with labels: ARI, NMI and homogeneity.

    Parameters
    ----------
    labels, clusters
        One entry per cell, in the same order.

    Raises
    ------
    ValueError
        If their lengths differ.

    Examples
    --------
    >>> cluster_scores(["a", "a", "b"], [1, 1, 0])["ari"]
    1.0
    """
    if len(labels) != len(clusters):
        raise ValueError(f"{len(labels)} labels and {len(clusters)} clusters: expected one each.")
    labels, clusters = [str(x) for x in labels], [str(x) for x in clusters]
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "homogeneity": float(homogeneity_score(labels, clusters)),
    }
