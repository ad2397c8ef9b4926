"""Which cells and peaks stay; each filter says what it kept."""

from __future__ import annotations

import logging
import reprlib
from numbers import Real
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.checks import check_flag
from pyro_scale.data.change import in_memory, matrix, subset
from pyro_scale.data.validate import _chunks
from pyro_scale.errors import DataError

__all__ = ["filter_cells", "filter_peaks", "select_variable_peaks"]

logger = logging.getLogger(__name__)


def _open(adata: AnnData, layer: str | None, axis: Literal[0, 1]) -> NDArray[np.intp]:
    """How many entries of each column (0) or row (1) are not zero."""
    parts = [part.getnnz(axis) for _, part in _chunks(matrix(adata, layer))]
    return np.concatenate(parts) if axis else np.sum(parts, axis=0)


def _number(bound: float, of: int) -> float:
    """A bound below one is a fraction."""
    return bound * of if 0 < bound < 1 else bound


def _check_bounds(name: str, low: float, high: float | None, what: str) -> None:
    for bound in (low,) if high is None else (low, high):
        if not isinstance(bound, Real) or isinstance(bound, bool) or not bound >= 0:
            raise ValueError(
                f"{name}={reprlib.repr(bound)}: expected a number of {what}, or below one a "
                "fraction of them."
            )


def filter_cells(
    adata: AnnData,
    *,
    min_peaks: float = 1,
    max_peaks: float | None = None,
    layer: str | None = None,
    inplace: bool = False,
) -> AnnData:
    """Keep cells with at least ``min_peaks`` (and at most ``max_peaks``) open peaks.

    Parameters
    ----------
    adata
        Cells x peaks.
    min_peaks, max_peaks
        A number of peaks, or below one a fraction of them.
    layer
        Look at this layer instead of ``X``.
    inplace
        Change ``adata`` itself.

    Returns
    -------
    AnnData
        The cells that are kept; a copy unless ``inplace``.

    Raises
    ------
    DataError
        If no cell is left.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> ps.pp.filter_cells(adata, min_peaks=1).n_obs
    50
    """
    _check_bounds("min_peaks", min_peaks, max_peaks, "peaks")
    n_open = _open(adata, layer, axis=1)
    keep = n_open >= _number(min_peaks, adata.n_vars)
    if max_peaks is not None:
        keep &= n_open <= _number(max_peaks, adata.n_vars)
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_obs} cells has {min_peaks:g} open peaks"
            f"{'' if max_peaks is None else f' and at most {max_peaks:g}'} (they have "
            f"{n_open.min()} to {n_open.max()}); change min_peaks or max_peaks."
        )
    logger.info("kept %d of %d cells (min_peaks=%s)", keep.sum(), adata.n_obs, min_peaks)
    return subset(adata, keep, slice(None), inplace=inplace)


def filter_peaks(
    adata: AnnData,
    *,
    min_cells: float = 3,
    max_cells: float | None = None,
    layer: str | None = None,
    inplace: bool = False,
) -> AnnData:
    """Keep peaks open in at least ``min_cells`` (and at most ``max_cells``) cells.

    Parameters
    ----------
    adata
        Cells x peaks.
    min_cells, max_cells
        A number of cells, or below one a fraction of them (as SCALE's ``--min_cells``, and the
        ``--low`` and ``--high`` of its first version).
    layer
        Look at this layer instead of ``X``.
    inplace
        Change ``adata`` itself.

    Returns
    -------
    AnnData
        The peaks that are kept; a copy unless ``inplace``.

    Raises
    ------
    DataError
        If no peak is left.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> ps.pp.filter_peaks(adata, min_cells=0.02).shape
    (50, 127)
    """
    _check_bounds("min_cells", min_cells, max_cells, "cells")
    n_open = _open(adata, layer, axis=0)
    least = _number(min_cells, adata.n_obs)
    keep = n_open >= least
    if max_cells is not None:
        keep &= n_open <= _number(max_cells, adata.n_obs)
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_vars} peaks is open in {least:g} of {adata.n_obs} cells"
            f"{'' if max_cells is None else f' and at most {max_cells:g}'}; change min_cells or "
            "max_cells."
        )
    logger.info("kept %d of %d peaks (min_cells=%s)", keep.sum(), adata.n_vars, min_cells)
    return subset(adata, slice(None), keep, inplace=inplace)


def select_variable_peaks(
    adata: AnnData, n_peaks: int, *, layer: str | None = None, inplace: bool = False
) -> AnnData:
    r"""Keep the ``n_peaks`` peaks that one accessibility for all cells explains worst.

    The score is the binomial deviance from the model in which peak *p* takes the same share
    :math:`\pi_p` of every cell's depth :math:`s_n`, with :math:`x_{np}` the counts:

    .. math:: D_p = 2 \sum_n x_{np} \log\frac{x_{np}}{s_n \pi_p} +
              (s_n - x_{np}) \log\frac{s_n - x_{np}}{s_n (1 - \pi_p)}

    Exactly ``n_peaks`` are kept, in their order, with their score in ``var["deviance"]``.

    Parameters
    ----------
    adata
        Cells x peaks, counts or 0/1.
    n_peaks
        How many; as many as there are, or more: all.
    layer
        Look at this layer instead of ``X``.
    inplace
        Change ``adata`` itself.

    References
    ----------
    Townes et al. 2019, *Feature selection and dimension reduction for single-cell RNA-Seq based
    on a multinomial model*, Genome Biology 20:295, doi:10.1186/s13059-019-1861-6.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> kept = ps.pp.select_variable_peaks(adata, 20)
    >>> kept.shape, "deviance" in kept.var
    ((50, 20), True)
    """
    if isinstance(n_peaks, bool) or not isinstance(n_peaks, (int, np.integer)) or n_peaks < 1:
        raise ValueError(f"n_peaks={reprlib.repr(n_peaks)} must be a whole number of at least one.")
    check_flag("inplace", inplace)
    deviance_p = _deviance(in_memory(adata, layer))
    best = np.argsort(-deviance_p, kind="stable")[:n_peaks]
    keep = np.sort(best)
    logger.info("kept the %d of %d peaks with the largest deviance", len(keep), adata.n_vars)
    result = subset(adata, slice(None), keep, inplace=inplace)
    result.var["deviance"] = deviance_p[keep]
    return result


def _deviance(x: sparse.csr_matrix) -> NDArray[np.float64]:
    """Binomial deviance of every peak, over the entries that are not zero and a sum for the rest.

    A zero's term is s_n log(1 / (1 - pi_p)); an entry's differs from it by what is added here.
    """
    depth_n = np.asarray(x.sum(1), dtype=np.float64).ravel()
    total_p = np.asarray(x.sum(0), dtype=np.float64).ravel()
    pi_p = total_p / max(depth_n.sum(), 1)
    log_rest_p = np.log1p(-np.minimum(pi_p, 1 - 1e-12))
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    count, depth, pi, log_rest = (
        x.data.astype(np.float64),
        depth_n[row],
        pi_p[x.indices],
        log_rest_p[x.indices],
    )
    rest = depth - count
    log_rest_ratio = np.log(np.maximum(rest, 1) / depth)
    term = count * np.log(count / (depth * pi)) + rest * (log_rest_ratio - log_rest)
    term += depth * log_rest  # the zero's term, which the sum below counts for every cell
    extra_p = np.bincount(x.indices, term, minlength=x.shape[1])
    deviance_p: NDArray[np.float64] = 2 * (extra_p - depth_n.sum() * log_rest_p)
    return deviance_p
