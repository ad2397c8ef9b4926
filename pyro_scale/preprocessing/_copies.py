"""Read the matrix of an AnnData, and write the result to a copy or in place."""

from __future__ import annotations

from anndata import AnnData
from scipy import sparse

from pyro_scale._validation import check_bool
from pyro_scale.data.backed import BackedMatrix, is_on_disk, load, view
from pyro_scale.data.counts import select_matrix, to_csr

__all__ = ["in_memory", "matrix", "replaced", "subset"]


def matrix(adata: AnnData, layer: str | None) -> sparse.csr_matrix | BackedMatrix:
    """Return ``X`` or the layer as float32 CSR, copied in memory or left on disk."""
    return to_csr(select_matrix(adata, layer))


def in_memory(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Return a copy of ``X`` or the layer in memory, as float32 CSR."""
    x = matrix(adata, layer)
    return x.read() if isinstance(x, BackedMatrix) else x


def subset(adata: AnnData, cells: object, peaks: object, *, inplace: bool) -> AnnData:
    """Return a copy of the selected cells and peaks, or a view if ``adata`` is on disk.

    A view of cells on disk leaves the matrix there. If ``inplace``, ``adata`` itself is reduced to
    the selection and returned.
    """
    check_bool("inplace", inplace)
    selected = view(adata, cells, peaks)
    if is_on_disk(adata):
        if inplace:
            raise ValueError(
                "an AnnData on disk cannot be changed in place; leave out inplace=True."
            )
        return selected
    if inplace:
        adata._inplace_subset_obs(cells)  # used by scanpy too; there is no public method
        adata._inplace_subset_var(peaks)
        return adata
    return selected.copy()


def replaced(adata: AnnData, layer: str | None, x: sparse.csr_matrix, *, inplace: bool) -> AnnData:
    """Return a copy of the AnnData, or ``adata`` itself if ``inplace``, with ``x`` in it.

    ``x`` replaces ``X`` if ``layer`` is None, otherwise the layer.
    """
    check_bool("inplace", inplace)
    if inplace and is_on_disk(adata):
        raise ValueError("an AnnData on disk cannot be changed in place; leave out inplace=True.")
    result = adata if inplace else load(adata)
    if layer is None:
        result.X = x
    else:
        result.layers[layer] = x
    return result
