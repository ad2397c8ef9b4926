"""Backed counts: a CSR matrix in an h5ad or zarr file, whose rows are read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.data.readers.paths import readable

__all__ = ["BackedMatrix", "as_csr"]

_CHUNK = 1024  # cells per chunk in a pass over all cells
_GAP = 2**13  # most unwanted entries between two rows that one read may cover
_SPAN = 2**22  # approximate limit of the entries of one read


def as_csr(x: Any) -> sparse.csr_matrix:
    """Return a float32 CSR copy with sorted indices and without explicit zeros."""
    with np.errstate(over="ignore"):  # overflow becomes infinite, which CountMatrix refuses
        csr = sparse.csr_matrix(x, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


class BackedMatrix:
    """Selected rows (cells) of a CSR matrix on disk, which are read on demand.

    Parameters
    ----------
    source
        CSR matrix on disk (:class:`anndata.abc.CSRDataset`).

    Attributes
    ----------
    rows
        Positions of the selected rows in ``source``, in order; all rows at first.
    binary
        Whether non-zero entries are set to one when they are read; False at first.

    Raises
    ------
    DataError
        If the row pointers are inconsistent with the entries.
    """

    def __init__(self, source: Any) -> None:
        self.binary = False
        self.entries, self.indptr = _open_csr(source)
        self.rows = np.arange(source.shape[0])
        self.n_columns = int(source.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of selected rows and of columns."""
        return len(self.rows), self.n_columns

    def __getitem__(self, cells: Any) -> BackedMatrix:
        """Select rows, without reading them."""
        selected = copy(self)
        selected.rows = self.rows[cells]
        return selected

    def read(self) -> sparse.csr_matrix:
        """Read the selected rows into memory; rows that are near in the file share one read.

        Raises
        ------
        DataError
            If the file is damaged in these rows.
        """
        order = np.argsort(self.rows, kind="stable")
        in_order = self.rows[order]
        sizes = self.indptr[in_order + 1] - self.indptr[in_order]
        indptr = np.append(0, np.cumsum(sizes))
        # Allocated once: thousands of small arrays would fragment the memory.
        values = np.empty(indptr[-1], dtype=np.float32)
        columns = np.empty(indptr[-1], dtype=self.entries[1].dtype)
        with readable("the matrix on disk", "rows of counts"), np.errstate(over="ignore"):
            for span in self._spans(in_order):
                rows, to = in_order[span], slice(indptr[span.start], indptr[span.stop])
                start, stop = self.indptr[rows[0]], self.indptr[rows[-1] + 1]
                wanted: Any = slice(None)
                if stop - start > to.stop - to.start:
                    ahead = self.indptr[rows] - start - (indptr[span] - to.start)
                    wanted = np.repeat(ahead, sizes[span]) + np.arange(to.stop - to.start)
                values[to] = self.entries[0][start:stop][wanted]
                columns[to] = self.entries[1][start:stop][wanted]
            x = sparse.csr_matrix((values, columns, indptr), self.shape)
            x.check_format(full_check=True)  # scipy does not check indices by itself
        x.sum_duplicates()
        x.eliminate_zeros()
        if self.binary:
            x.data[:] = 1
        if (order[1:] > order[:-1]).all():
            return x
        requested: sparse.csr_matrix = x[np.argsort(order, kind="stable")]
        return requested

    def _spans(self, in_order: NDArray[np.intp]) -> list[slice]:
        """Group sorted rows into slices, each of which is read from the file at once.

        A new slice begins where more than ``_GAP`` unwanted entries lie between two rows, or where
        a slice would exceed about ``_SPAN`` entries.
        """
        start, stop = self.indptr[in_order], self.indptr[in_order + 1]
        begins = (start[1:] - stop[:-1] > _GAP) | (np.diff(start // _SPAN) > 0)
        ends = np.concatenate([[0], 1 + np.flatnonzero(begins), [len(in_order)]])
        return [slice(*ends[i : i + 2]) for i in range(len(ends) - 1) if len(in_order)]

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield the rows in chunks of 1024, each as ``(slice of positions, CSR matrix)``."""
        for start in range(0, len(self.rows), _CHUNK):
            place = slice(start, min(start + _CHUNK, len(self.rows)))
            yield place, self[place].read()


def _open_csr(source: Any) -> tuple[tuple[Any, Any], NDArray[np.int64]]:
    """Return the arrays ``(data, indices)``, which stay on disk, and the checked row pointers.

    The arrays are sliced directly: a slice of anndata's CSRDataset looks up anndata's version each
    time, which takes longer than the read.
    """
    with readable("the matrix on disk", "a sparse matrix"):
        values, columns, indptr = (source.group[part] for part in ("data", "indices", "indptr"))
        indptr = np.asarray(indptr[:])
        if indptr.dtype.kind not in "iu" or indptr.shape != (source.shape[0] + 1,):
            raise ValueError(f"indptr is {indptr.shape} {indptr.dtype} for {source.shape[0]} rows")
        indptr = indptr.astype(np.int64)
        if not values.shape == columns.shape == (indptr[-1],):
            raise ValueError(
                f"data is {values.shape}, indices {columns.shape}; indptr ends at {indptr[-1]}"
            )
        if indptr[0] or (np.diff(indptr) < 0).any():
            raise ValueError("indptr does not start at 0, or decreases")
        if columns.dtype.kind not in "iu":
            raise ValueError(f"indices are {columns.dtype}, not whole numbers")
        return (values, columns), indptr
