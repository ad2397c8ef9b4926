"""AnnData in and out: checks, filters, sparse minibatches, the simulator."""

from pyro_scale.data.minibatch import dense_cells, loader, sparse_cells
from pyro_scale.data.read import read
from pyro_scale.data.simulate import simulate
from pyro_scale.data.validate import Counts, as_counts, batch_names

__all__ = [
    "Counts",
    "as_counts",
    "batch_names",
    "dense_cells",
    "loader",
    "read",
    "simulate",
    "sparse_cells",
]
