"""Minibatches of cells, which are rows of a CSR matrix in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_scale.data.counts import CountMatrix
from pyro_scale.ops.sparse import from_scipy
from pyro_scale.programs import CellBatch

__all__ = ["dense_cells", "loader", "sparse_cells"]

_BLOCK = 32  # consecutive cells that stay together in a shuffle of cells on disk


def sparse_cells(counts: CountMatrix) -> CellBatch:
    """Return all cells as one minibatch with sparse counts.

    Parameters
    ----------
    counts
        Counts of the cells.

    Returns
    -------
    CellBatch
        Minibatch whose ``x_np`` is a CSR tensor of shape ``(n, p)``.

    Examples
    --------
    >>> cells = ps.data.sparse_cells(ps.data.CountMatrix.from_anndata(adata))
    >>> cells.x_np.layout, cells.x_np.shape, cells.depth_n.shape
    (torch.sparse_csr, torch.Size([40, 60]), torch.Size([40]))
    """
    batch = None if counts.batch is None else torch.from_numpy(counts.batch.copy())
    depth_n = torch.from_numpy(counts.depth.copy())
    return CellBatch(from_scipy(counts.read()), depth_n, batch_n=batch)


def dense_cells(counts: CountMatrix, *, dtype: torch.dtype = torch.float32) -> CellBatch:
    """Return all cells as one minibatch whose ``x_np`` is a dense tensor of shape ``(n, p)``.

    Parameters
    ----------
    counts
        Counts of the cells.
    dtype
        Data type of the floating-point tensors.

    Examples
    --------
    >>> ps.data.dense_cells(ps.data.CountMatrix.from_anndata(adata), dtype=torch.float64).x_np.shape
    torch.Size([40, 60])
    """
    return sparse_cells(counts).dense().to(dtype)


def _take(counts: CountMatrix, cells: NDArray[np.intp]) -> CountMatrix:
    """Read the cells at some positions into memory."""
    chosen = counts[cells]
    return replace(chosen, x=chosen.read())


class _Cells(Dataset[Any]):
    """Dataset of cells that returns a whole minibatch for an array of positions.

    A minibatch is one slice of the CSR matrix, which is faster than a loop over its rows.
    """

    def __init__(self, counts: CountMatrix) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return self.counts.n_cells

    def __getitem__(self, cells: NDArray[np.intp]) -> CountMatrix:
        return _take(self.counts, cells)


_COLLATE: Any = sparse_cells  # its input is a CountMatrix of a minibatch, not a list of samples


class _Batches(Sampler[NDArray[np.intp]]):
    """Sampler of minibatches whose sizes differ by at most one, so that all cells are used.

    Each minibatch is an array of positions of cells.
    """

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
        if self.seed is not None:  # the order of an epoch is independent of earlier epochs
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        self.epoch += 1
        # Sorted, so that the selection of rows reads the matrix in order.
        return iter(
            [
                np.sort(batch)[self.first :: self.step]
                for batch in np.array_split(order, self.n_batches)
            ]
        )

    def __len__(self) -> int:
        return self.n_batches


def loader(
    counts: CountMatrix,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    part: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> DataLoader[CellBatch]:
    """Return a DataLoader of minibatches of at most ``batch_size`` cells.

    Each pass over the loader is one epoch, and the first pass has the number ``epoch``. With a seed
    the cells are shuffled anew in each epoch. No cell is dropped; for cells in memory the sizes of
    minibatches differ by at most one. Cells on disk are shuffled by scDataset: the order of blocks
    of 32 consecutive cells is shuffled, then 32 minibatches are read together and their cells are
    shuffled among these minibatches.

    Parameters
    ----------
    counts
        Counts of the cells.
    batch_size
        Largest number of cells in a minibatch.
    seed
        Seed of the random number generator that shuffles the cells; None keeps their order.
    epoch
        Number of the first epoch, on which the order of the cells depends; above zero if training
        resumes.
    part
        Index i and number k of the processes that share each minibatch: this loader yields the i-th
        of k parts. Cells on disk are not shared: each process that calls this reads all of them.
    pin_memory
        Copy minibatches into pinned memory, for asynchronous transfer to a GPU.

    Raises
    ------
    ValueError
        If ``batch_size`` is below one, or a part of a minibatch would be empty.

    Examples
    --------
    >>> minibatches = ps.data.loader(ps.data.CountMatrix.from_anndata(adata), batch_size=16, seed=0)
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
    if counts.is_backed:
        from scdataset import BlockShuffling, Streaming, scDataset

        blocks = Streaming() if seed is None else BlockShuffling(_BLOCK)
        minibatches = scDataset(
            _Cells(counts),
            blocks,
            batch_size,
            fetch_factor=1 if seed is None else _BLOCK,
            seed=(seed or 0) + 1000 * epoch,  # scDataset adds 1000 times the number of its passes
            rank=0,  # otherwise it asks torch.distributed, also long after training
            world_size=1,
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
        generator=torch.Generator(),  # otherwise each pass draws from torch's global generator
        pin_memory=pin_memory,
    )
