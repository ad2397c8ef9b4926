"""Cells that stay on disk: rows of a CSR matrix in an h5ad or zarr file, read when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.data.paths import readable

__all__ = ["OnDisk", "as_csr"]

_CHUNK = 4096  # cells read at a time in a pass over all of them


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
        A matrix that is read by slices of its rows (:class:`anndata.abc.CSRDataset`).
    rows
        Which of its rows, in which order.
    binary
        Set what is not zero to one as it is read.
    """

    def __init__(self, source: Any, rows: NDArray[np.intp], *, binary: bool) -> None:
        self.source, self.rows, self.binary = source, rows, binary
        self.shape = (len(rows), int(source.shape[1]))

    def __getitem__(self, cells: Any) -> OnDisk:
        """A choice among the rows; nothing is read."""
        return OnDisk(self.source, self.rows[cells], binary=self.binary)

    def read(self) -> sparse.csr_matrix:
        """The rows, in memory: one read for each run of neighbours.

        Raises
        ------
        DataError
            If the file is damaged there.
        """
        order = np.argsort(self.rows, kind="stable")
        in_order = self.rows[order]
        if not len(in_order):
            return self._slice(slice(0, 0))
        runs = np.split(in_order, np.flatnonzero(np.diff(in_order) != 1) + 1)
        parts = [self._slice(slice(run[0], run[-1] + 1)) for run in runs]
        x: sparse.csr_matrix = sparse.vstack(parts, format="csr")
        if self.binary:
            x.data[:] = 1
        if (order[1:] > order[:-1]).all():
            return x
        as_asked: sparse.csr_matrix = x[np.argsort(order, kind="stable")]
        return as_asked

    def _slice(self, rows: slice) -> sparse.csr_matrix:
        with readable("the matrix on disk", "rows of counts"):
            x = self.source[rows]
            x.check_format(full_check=True)  # scipy trusts the indices that it is given
            return as_csr(x)

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """All rows, some thousand at a time, each with its place."""
        for start in range(0, len(self.rows), _CHUNK):
            place = slice(start, min(start + _CHUNK, len(self.rows)))
            yield place, self[place].read()
