"""One function per figure (``ps.pl``). pyplot, its figures and rcParams are left alone.

A figure of one axes takes ``ax`` and returns it; a larger one is returned as a Figure. ``save``
writes ``.pdf``, ``.svg`` or ``.png``.
"""

from pyro_scale.plotting.bounds import comparison, ladder
from pyro_scale.plotting.correlation import cell_correlation
from pyro_scale.plotting.heatmaps import peak_heatmap
from pyro_scale.plotting.imputed import imputation
from pyro_scale.plotting.matrix import matrix
from pyro_scale.plotting.overview import run
from pyro_scale.plotting.responsibilities import occupancy
from pyro_scale.plotting.scatter import embedding, responsibility_entropy
from pyro_scale.plotting.scores import metrics
from pyro_scale.plotting.style import CATEGORIES, PALETTE, style
from pyro_scale.plotting.tables import confusion_matrix, feature_specificity
from pyro_scale.plotting.training import history

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
    "matrix",
    "metrics",
    "occupancy",
    "peak_heatmap",
    "responsibility_entropy",
    "run",
    "style",
]
