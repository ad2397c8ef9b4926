"""Minibatches of cells from a CSR matrix, each by one slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_scale.data.on_disk import OnDisk
from pyro_scale.data.validate import Counts
from pyro_scale.programs import Cells
from pyro_scale.programs.sparse import from_scipy

__all__ = ["dense_cells", "loader", "sparse_cells"]

_BLOCK = 32


def sparse_cells(counts: Counts) -> Cells:
    """Every cell as one minibatch.

    Parameters
    ----------
    counts
        Checked cells.

    Returns
    -------
    Cells
        ``x_np`` a CSR tensor of shape ``(n, p)``.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> cells = ps.data.sparse_cells(ps.data.as_counts(adata))
    >>> cells.x_np.layout, cells.x_np.shape, cells.depth_n.shape
    (torch.sparse_csr, torch.Size([40, 60]), torch.Size([40]))
    """
    batch = None if counts.batch is None else torch.from_numpy(counts.batch.copy())
    depth_n = torch.from_numpy(counts.depth.copy())
    return Cells(from_scipy(counts.read()), depth_n, batch_n=batch)


def dense_cells(counts: Counts, *, dtype: torch.dtype = torch.float32) -> Cells:
    """Every cell as one minibatch, accessibility held as cells x peaks numbers.

    Parameters
    ----------
    counts
        Checked cells.
    dtype
        Of the numbers.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> ps.data.dense_cells(ps.data.as_counts(adata), dtype=torch.float64).x_np.shape
    torch.Size([40, 60])
    """
    return sparse_cells(counts).dense().to(dtype)


def _take(counts: Counts, cells: NDArray[np.intp]) -> Counts:
    """Some of the cells, read into memory, without their names (which training does not ask)."""
    batch = None if counts.batch is None else counts.batch[cells]
    x = counts.x[cells]
    x = x.read() if isinstance(x, OnDisk) else x
    return Counts(x, counts.depth[cells], counts.obs_names[:0], counts.var_names, batch)


class _Cells(Dataset[Any]):
    """Indexed by an array of positions: one CSR slice takes a minibatch, no loop over rows."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return self.counts.n_cells

    def __getitem__(self, cells: NDArray[np.intp]) -> Counts:
        return _take(self.counts, cells)


_COLLATE: Any = sparse_cells  # given the counts of a minibatch, not torch's list of samples


class _Batches(Sampler[NDArray[np.intp]]):
    """Positions in batches that differ in size by at most one, so that no tail is lost."""

    def __init__(
        self,
        n_cells: int,
        batch_size: int,
        seed: int | None,
        epoch: int,
        part: tuple[int, int],
    ) -> None:
        self.n_cells, self.seed, self.epoch = n_cells, seed, epoch
        self.first, self.step = part
        self.n_batches = -(-n_cells // batch_size)

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        order = np.arange(self.n_cells)
        if self.seed is not None:  # an epoch's order does not hang on those before it
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        self.epoch += 1
        # Sorted within the batch: slicing walks the matrix forwards.
        return iter(
            [
                np.sort(batch)[self.first :: self.step]
                for batch in np.array_split(order, self.n_batches)
            ]
        )

    def __len__(self) -> int:
        return self.n_batches


def loader(
    counts: Counts,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    part: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> DataLoader[Cells]:
    """Minibatches of about ``batch_size`` cells: shuffled each epoch if a seed is given.

    Fewer cells than ``batch_size`` make one batch; no cell is dropped. Cells on disk are shuffled
    by blocks of 32 neighbours, and 32 batches, read together, are shuffled once more (scDataset).
    The first pass is in the order of ``epoch``, the next in that of the epoch after it.

    Parameters
    ----------
    counts
        Checked cells.
    batch_size
        Cells per minibatch.
    seed
        Of the order; None: the cells' own.
    epoch
        The pass that comes first.
    part
        ``(i, k)`` gives the i-th of k parts of every minibatch (not of cells on disk).
    pin_memory
        Put minibatches where a GPU can fetch them while the CPU goes on.

    Raises
    ------
    ValueError
        If ``batch_size`` is below one, or some part would be empty.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> minibatches = ps.data.loader(ps.data.as_counts(adata), batch_size=16, seed=0)
    >>> [cells.n_cells for cells in minibatches]
    [14, 13, 13]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least one.")
    smallest = counts.n_cells // -(-counts.n_cells // batch_size) if counts.n_cells else part[1]
    if smallest < part[1]:
        raise ValueError(
            f"minibatches of {smallest} cells cannot be shared by {part[1]} processes; raise "
            "batch_size or use fewer devices."
        )
    if counts.on_disk:
        from scdataset import BlockShuffling, Streaming, scDataset

        blocks = Streaming() if seed is None else BlockShuffling(_BLOCK)
        minibatches = scDataset(
            _Cells(counts),
            blocks,
            batch_size,
            fetch_factor=1 if seed is None else _BLOCK,
            seed=(seed or 0) + 1000 * epoch,  # as it counts its passes on itself
            batch_callback=_take,
        )
        return DataLoader(
            minibatches,
            batch_size=None,
            collate_fn=_COLLATE,
            generator=torch.Generator(),
            pin_memory=pin_memory,
        )
    return DataLoader(
        _Cells(counts),
        sampler=_Batches(counts.n_cells, batch_size, seed, epoch, part),
        batch_size=None,
        collate_fn=_COLLATE,
        generator=torch.Generator(),  # otherwise each pass draws from the caller's
        pin_memory=pin_memory,
    )
