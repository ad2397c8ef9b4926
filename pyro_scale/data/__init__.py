"""AnnData in and out: checks, filters, sparse minibatches, the simulator."""

from pyro_scale.data.filters import filter_cells, filter_peaks
from pyro_scale.data.minibatch import dense_cells, loader, sparse_cells
from pyro_scale.data.simulate import simulate
from pyro_scale.data.validate import Counts, as_counts, batch_names

__all__ = [
    "Counts",
    "as_counts",
    "batch_names",
    "dense_cells",
    "filter_cells",
    "filter_peaks",
    "loader",
    "simulate",
    "sparse_cells",
]
