"""How preprocessing reads cells and changes them: on a copy, or the caller's own if asked."""

from __future__ import annotations

from anndata import AnnData
from scipy import sparse

from pyro_scale.checks import check_flag
from pyro_scale.data.on_disk import OnDisk
from pyro_scale.data.validate import _choose, _to_csr

__all__ = ["in_memory", "matrix", "replaced", "subset"]


def matrix(adata: AnnData, layer: str | None) -> sparse.csr_matrix | OnDisk:
    """X or the layer as float32 CSR, a copy or on disk."""
    return _to_csr(_choose(adata, layer))


def in_memory(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """X or the layer as float32 CSR, a copy."""
    x = matrix(adata, layer)
    return x.read() if isinstance(x, OnDisk) else x


def subset(adata: AnnData, cells: object, peaks: object, *, inplace: bool) -> AnnData:
    """What is left: in memory, a copy or the caller's own."""
    check_flag("inplace", inplace)
    view = adata[cells, peaks]
    if view.isbacked:
        if inplace:
            raise ValueError(
                "an AnnData on disk cannot be changed in place; leave out inplace=True."
            )
        return view.to_memory()
    if inplace:
        adata._inplace_subset_obs(cells)  # as scanpy does; there is no public name for it
        adata._inplace_subset_var(peaks)
        return adata
    return view.copy()


def replaced(adata: AnnData, layer: str | None, x: sparse.csr_matrix, *, inplace: bool) -> AnnData:
    """Put a matrix in the place of X or of the layer."""
    check_flag("inplace", inplace)
    if adata.isbacked:
        raise ValueError("the AnnData is on disk; read it into memory with adata.to_memory().")
    result = adata if inplace else adata.copy()
    if layer is None:
        result.X = x
    else:
        result.layers[layer] = x
    return result
