"""What is read off a trained model: clusters and their scores, peaks that belong to them."""

from pyro_scale.analysis.clustering import kmeans_clusters, leiden_clusters
from pyro_scale.analysis.clusters import (
    ClusterReport,
    cluster_report,
    cluster_scores,
    match_clusters,
)
from pyro_scale.analysis.diagnostics import (
    calibration,
    importance_log_evidence,
    pareto_k,
    posterior_predictive_pvalues,
)
from pyro_scale.analysis.embedding import embed
from pyro_scale.analysis.latent_specificity import latent_specificity
from pyro_scale.analysis.specificity import peak_specificity, specific_peaks

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
