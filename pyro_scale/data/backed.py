"""Cells on disk: a CSR matrix in an h5ad or zarr file, whose rows are read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from typing import Any

import h5py
import numpy as np
from anndata import AnnData
from anndata.abc import CSRDataset
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale._validation import named_layers
from pyro_scale.data.readers.paths import readable
from pyro_scale.exceptions import DataError

__all__ = [
    "BackedMatrix",
    "as_csr",
    "find_on_disk",
    "is_on_disk",
    "load",
    "view",
]

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
    """Selected rows (cells) and columns of a CSR matrix on disk, which are read on demand.

    Parameters
    ----------
    source
        CSR matrix on disk (:class:`anndata.abc.CSRDataset`).

    Attributes
    ----------
    rows
        Positions of the selected rows in ``source``, in order; all rows at first.
    columns
        Positions of the selected columns in ``source``, in order, or None for all.
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
        self.columns: NDArray[np.intp] | None = None
        self.n_columns = int(source.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of selected rows and columns."""
        return len(self.rows), self.n_columns if self.columns is None else len(self.columns)

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
            If the file is damaged in these rows, or has been closed.
        """
        if isinstance(self.entries[0], h5py.Dataset) and not self.entries[0]:
            raise DataError(
                "the file of the cells on disk has been closed: open it again, with "
                'anndata.read_h5ad(path, backed="r"), and give these cells to the method.'
            )
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
            x = sparse.csr_matrix((values, columns, indptr), (len(self.rows), self.n_columns))
            x.check_format(full_check=True)  # scipy does not check indices by itself
        if self.columns is not None:
            x = x[:, self.columns]
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


def is_on_disk(adata: AnnData) -> bool:
    """Return whether ``X`` or a layer of an AnnData, or of what it is a view of, is on disk."""
    parent = _parent(adata)
    return parent.isbacked or any(
        isinstance(x, CSRDataset) for x in (parent.X, *named_layers(parent).values())
    )


def find_on_disk(adata: AnnData, layer: str | None) -> BackedMatrix | None:
    """Return ``X`` or the layer as a matrix on disk, or None if it is no CSR matrix on disk.

    A view stays on disk, as selected rows and columns; anndata would read it.
    """
    parent = _parent(adata)
    source = parent.X if layer is None else parent.layers.get(layer)
    if not isinstance(source, CSRDataset) or source.dtype.kind not in "biuf":
        return None
    x = BackedMatrix(source)
    if adata.is_view:
        cells, x.columns = _selected(adata)
        x = x[cells]
    return x


def view(adata: AnnData, cells: Any, peaks: Any) -> AnnData:
    """Return a view of the cells and peaks at some positions, also of a view of cells on disk.

    anndata refuses a view of a view of an AnnData whose file is open; this is one view of the file.
    """
    if not (adata.is_view and adata.isbacked):
        return adata[cells, peaks]
    all_cells, all_peaks = _selected(adata)
    return _parent(adata)[all_cells[cells], all_peaks[peaks]]


def load(adata: AnnData) -> AnnData:
    """Return a copy in memory; unlike ``adata.to_memory()``, leave the file open."""
    if not is_on_disk(adata):
        return adata.copy()
    parts = {
        key: {name: _loaded(value) for name, value in getattr(adata, key).items()}
        for key in ("obsm", "varm", "obsp", "varp")
    }
    raw = adata.raw
    return AnnData(
        _loaded(adata.X),
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        layers={name: _loaded(x) for name, x in named_layers(adata).items()},
        raw=None
        if raw is None
        else {"X": _loaded(raw.X), "var": raw.var.copy(), "varm": dict(raw.varm)},
        uns=deepcopy(dict(adata.uns)),
        **parts,
    )


def _parent(adata: AnnData) -> AnnData:
    """Return the AnnData itself, or that of which it is a view."""
    return adata._adata_ref if adata.is_view else adata


def _selected(adata: AnnData) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of the cells and peaks that a view selects; they have no public name."""
    parent = _parent(adata)
    return np.arange(parent.n_obs)[adata._oidx], np.arange(parent.n_vars)[adata._vidx]


def _loaded(x: Any) -> Any:
    """Return an array, matrix or data frame in memory, copied."""
    if isinstance(x, h5py.Dataset):
        return x[...]
    if hasattr(x, "to_memory"):
        return x.to_memory()
    return x.copy() if hasattr(x, "copy") else deepcopy(x)  # the copy of a view is no view
