"""What is read off a trained model: clusters and their scores."""

from pyro_scale.analysis.clusters import cluster_scores

__all__ = ["cluster_scores"]
