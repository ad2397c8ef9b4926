"""Cells that stay on disk: rows of a CSR matrix in an h5ad or zarr file, read when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.data.paths import readable

__all__ = ["OnDisk", "as_csr"]

_CHUNK = 1024  # cells read at a time in a pass over all of them
_GAP = 2**13  # entries between two rows that are read and dropped, rather than read twice
_SPAN = 2**22  # entries that are read at once, about


def as_csr(x: Any) -> sparse.csr_matrix:
    """A float32 CSR copy, its indices sorted and without explicit zeros."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        csr = sparse.csr_matrix(x, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


class OnDisk:
    """Some rows of a matrix on disk, with the part of scipy's interface that is needed here.

    Parameters
    ----------
    source
        A matrix of CSR on disk (:class:`anndata.abc.CSRDataset`).

    Attributes
    ----------
    rows
        Which of its rows, in which order; at first all.
    binary
        Set what is not zero to one as it is read; at first not.

    Raises
    ------
    DataError
        If where rows begin and end makes no sense.
    """

    def __init__(self, source: Any) -> None:
        self.binary = False
        self.entries, self.indptr = _opened(source)
        self.rows = np.arange(source.shape[0])
        self.n_columns = int(source.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows that were chosen, and columns."""
        return len(self.rows), self.n_columns

    def __getitem__(self, cells: Any) -> OnDisk:
        """A choice among the rows; nothing is read."""
        chosen = copy(self)
        chosen.rows = self.rows[cells]
        return chosen

    def read(self) -> sparse.csr_matrix:
        """The rows, in memory: one read for neighbours, and for rows with little between them.

        Raises
        ------
        DataError
            If the file is damaged there.
        """
        order = np.argsort(self.rows, kind="stable")
        in_order = self.rows[order]
        sizes = self.indptr[in_order + 1] - self.indptr[in_order]
        indptr = np.append(0, np.cumsum(sizes))
        # Room for all at once: thousands of small arrays would leave holes in the memory.
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
            x.check_format(full_check=True)  # scipy trusts the indices that it is given
        x.sum_duplicates()
        x.eliminate_zeros()
        if self.binary:
            x.data[:] = 1
        if (order[1:] > order[:-1]).all():
            return x
        as_asked: sparse.csr_matrix = x[np.argsort(order, kind="stable")]
        return as_asked

    def _spans(self, in_order: NDArray[np.intp]) -> list[slice]:
        """Places of rows that are read at once: a gap costs less than a read, up to a size."""
        start, stop = self.indptr[in_order], self.indptr[in_order + 1]
        begins = (start[1:] - stop[:-1] > _GAP) | (np.diff(start // _SPAN) > 0)
        ends = np.concatenate([[0], 1 + np.flatnonzero(begins), [len(in_order)]])
        return [slice(*ends[i : i + 2]) for i in range(len(ends) - 1) if len(in_order)]

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """All rows, some thousand at a time, each with its place."""
        for start in range(0, len(self.rows), _CHUNK):
            place = slice(start, min(start + _CHUNK, len(self.rows)))
            yield place, self[place].read()


def _opened(source: Any) -> tuple[tuple[Any, Any], NDArray[np.int64]]:
    """Values and columns of the entries, left on disk, and where each row begins and ends.

    anndata's own slices look up its version every time, which takes longer than to read.
    """
    with readable("the matrix on disk", "a sparse matrix"):
        values, columns, indptr = (source.group[part] for part in ("data", "indices", "indptr"))
        indptr = np.asarray(indptr[:])
        if indptr.dtype.kind not in "iu" or indptr.shape != (source.shape[0] + 1,):
            raise ValueError(f"{indptr.shape} {indptr.dtype} places for {source.shape[0]} rows")
        indptr = indptr.astype(np.int64)
        if not values.shape == columns.shape == (indptr[-1],):
            raise ValueError(f"{values.shape} values, {columns.shape} columns, {indptr[-1]} asked")
        if indptr[0] or (np.diff(indptr) < 0).any():
            raise ValueError("rows that do not follow one another")
        if columns.dtype.kind not in "iu":
            raise ValueError(f"columns of {columns.dtype}")
        return (values, columns), indptr
