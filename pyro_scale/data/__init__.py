"""Data: file readers, checked count matrices in memory or on disk, minibatches, simulation."""

from pyro_scale.data.counts import CountMatrix, batch_names
from pyro_scale.data.dataloader import dense_cells, loader, sparse_cells
from pyro_scale.data.readers import read
from pyro_scale.data.simulation import simulate

__all__ = [
    "CountMatrix",
    "batch_names",
    "dense_cells",
    "loader",
    "read",
    "simulate",
    "sparse_cells",
]
