"""Minibatches of cells from a CSR matrix, each by one slice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_scale.data.validate import Counts
from pyro_scale.programs import Cells

__all__ = ["dense_cells", "loader"]


def dense_cells(counts: Counts, *, dtype: torch.dtype = torch.float32) -> Cells:
    """Every cell as one minibatch."""
    x_np = torch.from_numpy(counts.x.toarray()).to(dtype)
    return Cells(x_np, torch.from_numpy(counts.depth.copy()).to(dtype))


class _Minibatches(Dataset[Cells]):
    """Indexed by an array of positions: one CSR slice makes a minibatch, no loop over rows."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def __getitem__(self, cells: NDArray[np.intp]) -> Cells:
        return dense_cells(self.counts[cells])

    def __len__(self) -> int:
        return self.counts.n_cells


class _Batches(Sampler[NDArray[np.intp]]):
    """Positions in batches that differ in size by at most one, so that no tail is lost."""

    def __init__(self, n_cells: int, batch_size: int, generator: np.random.Generator | None):
        self.n_cells, self.generator = n_cells, generator
        self.n_batches = -(-n_cells // batch_size)

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        order = np.arange(self.n_cells)
        if self.generator is not None:
            self.generator.shuffle(order)
        # Sorted within the batch: slicing walks the matrix forwards.
        return iter([np.sort(batch) for batch in np.array_split(order, self.n_batches)])

    def __len__(self) -> int:
        return self.n_batches


def loader(counts: Counts, batch_size: int, *, seed: int | None = None) -> DataLoader[Cells]:
    """Minibatches of about ``batch_size`` cells: shuffled each epoch if a seed is given.

    Fewer cells than ``batch_size`` make one batch; no cell is dropped.

    Raises
    ------
    ValueError
        If ``batch_size`` is below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least one.")
    generator = None if seed is None else np.random.default_rng(seed)
    return DataLoader(
        _Minibatches(counts),
        sampler=_Batches(counts.n_cells, batch_size, generator),
        batch_size=None,
        generator=torch.Generator(),  # otherwise each pass draws from the caller's
    )
