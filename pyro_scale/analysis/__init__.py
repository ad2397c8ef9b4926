"""Clusters, cluster scores, peak specificity, embeddings and diagnostics of the posterior."""

from pyro_scale.analysis.clustering import kmeans_clusters, leiden_clusters
from pyro_scale.analysis.diagnostics import (
    calibration,
    importance_log_evidence,
    pareto_k,
    posterior_predictive_pvalues,
)
from pyro_scale.analysis.embedding import embed
from pyro_scale.analysis.metrics import (
    ClusterReport,
    cluster_report,
    cluster_scores,
    match_clusters,
)
from pyro_scale.analysis.specificity import latent_specificity, peak_specificity, specific_peaks

__all__ = [
    "ClusterReport",
    "calibration",
    "cluster_report",
    "cluster_scores",
    "embed",
    "importance_log_evidence",
    "kmeans_clusters",
    "latent_specificity",
    "leiden_clusters",
    "match_clusters",
    "pareto_k",
    "peak_specificity",
    "posterior_predictive_pvalues",
    "specific_peaks",
]
