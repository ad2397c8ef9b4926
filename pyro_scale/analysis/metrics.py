"""Scores of a clustering against known labels, which no model or method is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from pyro_scale._validation import check_labels

__all__ = ["ClusterReport", "cluster_report", "cluster_scores", "match_clusters"]


logger = logging.getLogger(__name__)


class ClusterReport(NamedTuple):
    """Result of :func:`cluster_report`: confusion matrix, scores and matching.

    Attributes
    ----------
    confusion
        Numbers of cells by label (rows) and matched cluster (columns).
    scores
        ARI, NMI, homogeneity, and the F1 score after matching, averaged over labels with weights
        proportional to their number of cells (``f1``) or with equal weights (``f1_macro``).
    matching
        Label that each cluster is matched to; a cluster without a label keeps its own name.

    Examples
    --------
    >>> report = cluster_report(["a", "a", "b", "b"], [1, 1, 0, 1])
    >>> report.matching, report.confusion.shape
    ({'0': 'b', '1': 'a'}, (2, 2))
    """

    confusion: pd.DataFrame
    scores: dict[str, float]
    matching: dict[str, str]

    def __str__(self) -> str:
        """Format the scores in one line, followed by the confusion matrix."""
        line = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        return f"{line}\n\n{self.confusion.to_string()}"


def _pair(labels: Sequence[object], clusters: Sequence[object]) -> tuple[list[str], list[str]]:
    """Return labels and clusters as strings, without the cells that lack one of them."""
    known, found = check_labels("labels", labels), check_labels("clusters", clusters)
    if len(known) != len(found):
        raise ValueError(
            f"{len(known)} labels and {len(found)} clusters: expected one each per cell."
        )
    if len(known) == 0:
        raise ValueError("there are no cells to score.")
    both = known.notna().to_numpy() & found.notna().to_numpy()
    if not both.any():
        raise ValueError("no cell has a label and a cluster; there is nothing to score.")
    if not both.all():
        logger.info("%d cells without a label or a cluster are left out.", (~both).sum())
    return [str(x) for x in known[both]], [str(x) for x in found[both]]


def cluster_scores(labels: Sequence[object], clusters: Sequence[object]) -> dict[str, float]:
    """Score the agreement of clusters with labels.

    The scores are the adjusted Rand index (``"ari"``), normalized mutual information (``"nmi"``)
    and ``"homogeneity"``.

    Parameters
    ----------
    labels, clusters
        Labels and clusters of the cells: one entry per cell, in the same order. Cells without a
        label (None or NaN) are left out.

    Raises
    ------
    ValueError
        If their lengths differ.

    Examples
    --------
    >>> cluster_scores(["a", "a", "b"], [1, 1, 0])["ari"]
    1.0
    """
    from sklearn import metrics  # imported here because it is slow

    labels, clusters = _pair(labels, clusters)
    return {
        "ari": float(metrics.adjusted_rand_score(labels, clusters)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, clusters)),
        "homogeneity": float(metrics.homogeneity_score(labels, clusters)),
    }


def match_clusters(labels: Sequence[object], clusters: Sequence[object]) -> dict[str, str]:
    """Match clusters to labels one to one so that most cells agree (Hungarian algorithm).

    If there are more clusters than labels, each cluster without a label keeps its own name, or is
    called ``"cluster <name>"`` if a label has that name.

    Parameters
    ----------
    labels, clusters
        Labels and clusters of the cells: one entry per cell, in the same order. Cells without a
        label (None or NaN) are left out.

    References
    ----------
    Kuhn 1955, doi:10.1002/nav.3800020109.

    Examples
    --------
    >>> match_clusters(["a", "a", "b", "b"], [1, 1, 0, 2])
    {'0': 'b', '1': 'a', '2': '2'}
    """
    labels, clusters = _pair(labels, clusters)
    table = pd.crosstab(np.asarray(labels, object), np.asarray(clusters, object))
    rows, columns = linear_sum_assignment(table.to_numpy(), maximize=True)
    label_of = dict(zip(table.columns[columns], table.index[rows], strict=True))
    taken = set(table.index)
    return {
        name: label_of.get(name, f"cluster {name}" if name in taken else name)
        for name in table.columns
    }


def cluster_report(labels: Sequence[object], clusters: Sequence[object]) -> ClusterReport:
    """Compute ARI, NMI and homogeneity, and the F1 scores and confusion matrix after matching.

    Clusters are matched to labels by :func:`match_clusters`, and the columns of the confusion
    matrix have the names of the matched labels. The number of clusters may differ from the number
    of labels.

    Parameters
    ----------
    labels, clusters
        Labels and clusters of the cells: one entry per cell, in the same order. Cells without a
        label (None or NaN) are left out.

    Returns
    -------
    ClusterReport
        The confusion matrix, the scores and the matching. Of the F1 scores, ``f1`` weights the
        labels by their numbers of cells and ``f1_macro`` weights them equally.

    Examples
    --------
    >>> print(cluster_report(["a", "a", "b", "b"], [1, 1, 0, 1]))
    ari 0.000, nmi 0.344, homogeneity 0.311, f1 0.733, f1_macro 0.733
    <BLANKLINE>
       a  b
    a  2  0
    b  1  1
    """
    from sklearn.metrics import f1_score

    labels, clusters = _pair(labels, clusters)
    matching = match_clusters(labels, clusters)
    matched = [matching[cluster] for cluster in clusters]
    confusion = pd.crosstab(np.asarray(labels, object), np.asarray(matched, object))
    order = [name for name in confusion.index if name in confusion.columns]
    order += [name for name in confusion.columns if name not in set(confusion.index)]
    confusion = confusion[order].rename_axis(index=None, columns=None)
    known = sorted(set(labels))
    scores = cluster_scores(labels, clusters)
    for name, average in (("f1", "weighted"), ("f1_macro", "macro")):
        scores[name] = float(
            f1_score(labels, matched, labels=known, average=average, zero_division=0)
        )
    return ClusterReport(confusion, scores, matching)
