"""Figures of the data, the model and the objectives (``ps.pl``), one function per figure.

Functions that draw on one Axes take ``ax`` and return it; the others return a new Figure. No
function changes pyplot's state or rcParams. ``save`` writes ``.pdf``, ``.svg`` or ``.png``.
"""

from pyro_scale.plotting._style import CATEGORIES, PALETTE, style
from pyro_scale.plotting.clusters import confusion_matrix, feature_specificity, metrics, occupancy
from pyro_scale.plotting.embedding import embedding, responsibility_entropy
from pyro_scale.plotting.heatmaps import cell_correlation, imputation, peak_heatmap
from pyro_scale.plotting.objectives import comparison, ladder, objective_matrix
from pyro_scale.plotting.summary import summary
from pyro_scale.plotting.training import history, n_components

__all__ = [
    "CATEGORIES",
    "PALETTE",
    "cell_correlation",
    "comparison",
    "confusion_matrix",
    "embedding",
    "feature_specificity",
    "history",
    "imputation",
    "ladder",
    "metrics",
    "n_components",
    "objective_matrix",
    "occupancy",
    "peak_heatmap",
    "responsibility_entropy",
    "style",
    "summary",
]
