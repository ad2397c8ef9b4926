"""From an AnnData to checked counts: one place that looks before anything is computed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.errors import DataError

__all__ = ["Counts", "as_counts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """Checked accessibility, sparse, with its names.

    Attributes
    ----------
    x
        CSR matrix, cells x peaks, float32: 0/1 if binary, else non-negative whole numbers.
    depth
        Total of each row of ``x``, shape ``(n_cells,)``, float32.
    obs_names, var_names
        Names of the cells and of the peaks.
    """

    x: sparse.csr_matrix
    depth: NDArray[np.float32]
    obs_names: pd.Index
    var_names: pd.Index

    @property
    def n_cells(self) -> int:
        """N."""
        return int(self.x.shape[0])

    @property
    def n_peaks(self) -> int:
        """P."""
        return int(self.x.shape[1])

    def __getitem__(self, cells: NDArray[np.intp]) -> Counts:
        """The counts of some cells, by position."""
        return Counts(self.x[cells], self.depth[cells], self.obs_names[cells], self.var_names)


def as_counts(adata: AnnData, *, layer: str | None = None, binary: bool = True) -> Counts:
    """Check an AnnData and return its accessibility; the AnnData is left as it is.

    Parameters
    ----------
    adata
        Cells x peaks; ``X`` (or the layer) sparse or dense, counts or binary.
    layer
        Read ``adata.layers[layer]`` instead of ``adata.X``.
    binary
        Set every positive count to one, on a copy (the Bernoulli likelihood); it is logged.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    DataError
        If the layer is missing, there are no cells or peaks, names repeat, or counts are
        NaN, infinite, negative or not whole numbers, or a cell has no open peak.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"expected an anndata.AnnData of cells x peaks, got {type(adata).__name__}; "
            "read a file with anndata.read_h5ad(path) first."
        )
    x = _to_csr(_choose(adata, layer))
    _check_names(adata)
    _check_values(x, adata.obs_names, "X" if layer is None else f"layers[{layer!r}]")
    if binary and x.data.size and x.data.max() > 1:
        share = float(np.mean(x.data > 1))
        logger.info("%.1f %% of the open peaks have counts above one; set to one.", 100 * share)
        x.data = np.ones_like(x.data)
    depth = np.asarray(x.sum(1), dtype=np.float32).ravel()
    empty = np.flatnonzero(depth == 0)
    if empty.size:
        raise DataError(
            f"{empty.size} of {adata.n_obs} cells have no open peak (the first is "
            f"{adata.obs_names[empty[0]]!r}); remove them with "
            "pyro_scale.data.filter_cells(adata, min_peaks=1)."
        )
    silent = int((np.diff(x.tocsc().indptr) == 0).sum())
    if silent:
        logger.info("%d of %d peaks are open in no cell; they are kept.", silent, adata.n_vars)
    return Counts(x, depth, adata.obs_names, adata.var_names)


def _choose(adata: AnnData, layer: str | None) -> Any:
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(
            f"the AnnData has {adata.n_obs} cells and {adata.n_vars} peaks; at least one of "
            "each is needed."
        )
    if layer is None:
        if adata.X is None:
            raise DataError(
                "adata.X is empty; name the layer that holds the accessibility with layer=. "
                f"The layers are: {', '.join(adata.layers) or 'none'}."
            )
        return adata.X
    if layer not in adata.layers:
        raise DataError(
            f"layer={layer!r} is not in adata.layers; the layers are: "
            f"{', '.join(adata.layers) or 'none'} (leave layer out to use adata.X)."
        )
    return adata.layers[layer]


def _to_csr(x: Any) -> sparse.csr_matrix:
    """A float32 CSR copy without explicit zeros; a dense matrix is converted and logged."""
    if hasattr(x, "to_memory"):  # a backed matrix
        x = x.to_memory()
    if not sparse.issparse(x):
        logger.info("the matrix is dense; it is converted to a sparse copy.")
    matrix: Any = x if sparse.issparse(x) else np.asarray(x)
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"the matrix has dtype {matrix.dtype}; expected real numbers.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        csr = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def _check_names(adata: AnnData) -> None:
    for what, names, mend in (
        ("cell", adata.obs_names, "obs_names_make_unique"),
        ("peak", adata.var_names, "var_names_make_unique"),
    ):
        if not names.is_unique:
            repeated = names[names.duplicated()]
            raise DataError(
                f"{len(repeated)} {what} names are repeated (the first is {repeated[0]!r}); "
                f"call adata.{mend}() first."
            )


def _check_values(x: sparse.csr_matrix, obs_names: pd.Index, where: str) -> None:
    for wrong, what in (
        (~np.isfinite(x.data), "NaN or infinite"),
        (x.data < 0, "negative"),
        (x.data != np.rint(x.data), "not whole numbers"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            cell = int(np.searchsorted(x.indptr, first, side="right") - 1)
            raise DataError(
                f"{int(wrong.sum())} values of {where} are {what} (the first is {x.data[first]} in "
                f"cell {obs_names[cell]!r}); expected counts or 0/1. Give the raw matrix, not a "
                "normalised one."
            )
