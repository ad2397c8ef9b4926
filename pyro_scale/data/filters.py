"""Filters of cells and peaks; each returns a copy and says what it kept."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale.data.validate import _choose, _chunks, _to_csr
from pyro_scale.errors import DataError

__all__ = ["filter_cells", "filter_peaks"]

logger = logging.getLogger(__name__)


def _open(adata: AnnData, layer: str | None, axis: Literal[0, 1]) -> NDArray[np.intp]:
    x = _to_csr(_choose(adata, layer))
    parts = [part.getnnz(axis) for _, part in _chunks(x)]
    return np.concatenate(parts) if axis else np.sum(parts, axis=0)


def _kept(view: AnnData) -> AnnData:
    """What is left, in memory."""
    return view.to_memory() if view.isbacked else view.copy()


def filter_cells(adata: AnnData, *, min_peaks: int = 1, layer: str | None = None) -> AnnData:
    """Keep cells with at least ``min_peaks`` open peaks, on a copy.

    Raises
    ------
    DataError
        If no cell is left.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> filter_cells(adata, min_peaks=1).n_obs
    50
    """
    keep = _open(adata, layer, axis=1) >= min_peaks
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_obs} cells has {min_peaks} open peaks; lower min_peaks."
        )
    logger.info("kept %d of %d cells (min_peaks=%s)", keep.sum(), adata.n_obs, min_peaks)
    return _kept(adata[keep])


def filter_peaks(adata: AnnData, *, min_cells: float = 3, layer: str | None = None) -> AnnData:
    """Keep peaks open in at least ``min_cells`` cells, on a copy.

    Parameters
    ----------
    adata
        Cells x peaks.
    min_cells
        A number of cells, or below one a fraction of them (as SCALE's ``--min_cells``).
    layer
        Look at this layer instead of ``X``.

    Raises
    ------
    DataError
        If no peak is left.
    """
    least = min_cells * adata.n_obs if min_cells < 1 else min_cells
    keep = _open(adata, layer, axis=0) >= least
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_vars} peaks is open in {least:g} of {adata.n_obs} cells; "
            "lower min_cells."
        )
    logger.info("kept %d of %d peaks (min_cells=%s)", keep.sum(), adata.n_vars, min_cells)
    return _kept(adata[:, keep])
