"""Preprocessing, ``ps.pp``: on a copy unless ``inplace=True``, and each step says what it did."""

from pyro_scale.data.filters import filter_cells, filter_peaks, select_variable_peaks
from pyro_scale.data.projection import match_peaks
from pyro_scale.data.transforms import binarize, log_transform, tf_idf

__all__ = [
    "binarize",
    "filter_cells",
    "filter_peaks",
    "log_transform",
    "match_peaks",
    "select_variable_peaks",
    "tf_idf",
]
