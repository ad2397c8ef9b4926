"""Preprocessing of cells x peaks (``ps.pp``).

Each step returns a copy unless ``inplace=True``. The filters log how many cells or peaks they keep.
"""

from pyro_scale.preprocessing.filters import filter_cells, filter_peaks, select_variable_peaks
from pyro_scale.preprocessing.match_peaks import match_peaks
from pyro_scale.preprocessing.transforms import (
    binarize,
    format_peak_names,
    log_transform,
    reads_to_fragments,
    tf_idf,
)

__all__ = [
    "binarize",
    "filter_cells",
    "filter_peaks",
    "format_peak_names",
    "log_transform",
    "match_peaks",
    "reads_to_fragments",
    "select_variable_peaks",
    "tf_idf",
]
