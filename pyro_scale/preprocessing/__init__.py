"""Preprocessing of cells x peaks (``ps.pp``).

Each step returns a copy unless ``inplace=True``. The filters log how many cells or peaks they keep.
"""

from pyro_scale.preprocessing.filters import filter_cells, filter_peaks, select_variable_peaks
from pyro_scale.preprocessing.match_peaks import match_peaks
from pyro_scale.preprocessing.transforms import binarize, log_transform, tf_idf

__all__ = [
    "binarize",
    "filter_cells",
    "filter_peaks",
    "log_transform",
    "match_peaks",
    "select_variable_peaks",
    "tf_idf",
]
