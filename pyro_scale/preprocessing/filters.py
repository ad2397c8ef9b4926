"""Filters of cells and peaks; each one logs how many it keeps."""

from __future__ import annotations

import logging
import math
import reprlib
from numbers import Real
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale._validation import check_bool, check_int
from pyro_scale.data.backed import BackedMatrix, is_on_disk
from pyro_scale.data.counts import iter_chunks
from pyro_scale.exceptions import DataError
from pyro_scale.preprocessing._copies import matrix, subset

__all__ = ["filter_cells", "filter_peaks", "select_variable_peaks"]

logger = logging.getLogger(__name__)


def _count_open(adata: AnnData, layer: str | None, axis: Literal[0, 1]) -> NDArray[np.intp]:
    """Count the non-zero entries of each peak (axis 0) or of each cell (axis 1)."""
    parts = [part.getnnz(axis) for _, part in iter_chunks(matrix(adata, layer))]
    return np.concatenate(parts) if axis else np.sum(parts, axis=0)


def _as_number(bound: float, total: int) -> float:
    """Return the bound as a number; a bound below one is a fraction of ``total``."""
    return bound * total if 0 < bound < 1 else bound


def _bounds(low: float, high: float | None, total: int) -> tuple[float, float, str]:
    """Return both bounds as numbers, and in words for a message."""
    least = _as_number(low, total)
    if high is None:
        return least, math.inf, f"at least {least:g}"
    most = _as_number(high, total)
    return least, most, f"at least {least:g} and at most {most:g}"


def _check_bounds(name: str, low: float | None, high: float | None, what: str) -> None:
    for bound in (low, high):
        if bound is None:
            continue
        if not isinstance(bound, Real) or isinstance(bound, bool) or not bound >= 0:
            raise ValueError(
                f"{name}={reprlib.repr(bound)}: expected a number of {what}, or a fraction of "
                "them below 1."
            )


def _default_min_cells(n_open: NDArray[np.intp], n_cells: int) -> float:
    """Return 1 % of the cells, or the largest bound that keeps 90 % of the open entries, if less.

    ``n_open`` is the number of cells in which each peak is open, shape ``(p,)``.
    """
    largest_first = np.sort(n_open)[::-1]
    kept = np.cumsum(largest_first)
    last = int(np.searchsorted(kept, 0.9 * kept[-1])) if len(kept) else 0
    nine_tenths = float(largest_first[min(last, len(kept) - 1)])
    return max(1.0, min(float(np.ceil(n_cells / 100)), nine_tenths))


def _report(what: str, keep: NDArray[np.bool_], n_open: NDArray[np.intp], bound: str) -> None:
    """Log how many cells or peaks are kept; warn if more than half are dropped."""
    n_kept, share = int(keep.sum()), n_open[keep].sum() / max(n_open.sum(), 1)
    level = logging.WARNING if n_kept < len(keep) / 2 else logging.INFO
    logger.log(
        level,
        "kept %d of %d %s, with %.1f %% of the open entries (%s)",
        n_kept,
        len(keep),
        what,
        100 * share,
        bound,
    )


def filter_cells(
    adata: AnnData,
    *,
    min_peaks: float | None = None,
    max_peaks: float | None = None,
    layer: str | None = None,
    inplace: bool = False,
) -> AnnData:
    """Keep the cells with at least ``min_peaks`` and at most ``max_peaks`` open peaks.

    Parameters
    ----------
    adata
        Cells x peaks.
    min_peaks, max_peaks
        Bounds on a cell's number of open peaks; a bound below one is a fraction of all peaks. If
        ``min_peaks`` is None, it is a tenth of the median cell's number, and at least one: cells
        with a handful of open peaks say little, and become clusters of their own. There is no upper
        bound if ``max_peaks`` is None.
    layer
        Layer to read; None reads ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The cells that are kept, as a copy (a view if they are on disk); ``adata`` itself if
        ``inplace``.

    Raises
    ------
    DataError
        If no cell is within the bounds.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> ps.pp.filter_cells(adata, min_peaks=1).n_obs
    50
    """
    _check_bounds("min_peaks", min_peaks, max_peaks, "peaks")
    n_open = _count_open(adata, layer, axis=1)
    if min_peaks is None:
        min_peaks = max(1.0, float(np.ceil(np.median(n_open) / 10)))
    least, most, bounds = _bounds(min_peaks, max_peaks, adata.n_vars)
    keep = (n_open >= least) & (n_open <= most)
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_obs} cells has {bounds} open peaks (they have "
            f"{n_open.min()} to {n_open.max()}); change min_peaks or max_peaks."
        )
    _report("cells", keep, n_open, f"min_peaks={min_peaks:g}")
    return subset(adata, keep, slice(None), inplace=inplace)


def filter_peaks(
    adata: AnnData,
    *,
    min_cells: float | None = None,
    max_cells: float | None = None,
    layer: str | None = None,
    inplace: bool = False,
) -> AnnData:
    """Keep the peaks that are open in at least ``min_cells`` and at most ``max_cells`` cells.

    Parameters
    ----------
    adata
        Cells x peaks.
    min_cells, max_cells
        Bounds on the number of cells in which a peak is open; a bound below one is a fraction of
        all cells. If ``min_cells`` is None, it is a hundredth of the cells, or the largest number
        that still keeps nine tenths of the open entries, if that is less: in sparse data most peaks
        are open in fewer cells. There is no upper bound if ``max_cells`` is None. (They are called
        ``--min_cells`` in SCALE, and ``--low`` and ``--high`` in its first version.)
    layer
        Layer to read; None reads ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The cells with the peaks that are kept, as a copy (a view if they are on disk); ``adata``
        itself if ``inplace``.

    Raises
    ------
    DataError
        If no peak is within the bounds.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> ps.pp.filter_peaks(adata, min_cells=0.02).shape
    (50, 127)
    """
    _check_bounds("min_cells", min_cells, max_cells, "cells")
    n_open = _count_open(adata, layer, axis=0)
    if min_cells is None:
        min_cells = _default_min_cells(n_open, adata.n_obs)
    least, most, bounds = _bounds(min_cells, max_cells, adata.n_obs)
    keep = (n_open >= least) & (n_open <= most)
    if not keep.any():
        raise DataError(
            f"none of the {adata.n_vars} peaks is open in {bounds} of {adata.n_obs} cells; change "
            "min_cells or max_cells."
        )
    _report("peaks", keep, n_open, f"min_cells={min_cells:g}")
    return subset(adata, slice(None), keep, inplace=inplace)


def select_variable_peaks(
    adata: AnnData, n_peaks: int, *, layer: str | None = None, inplace: bool = False
) -> AnnData:
    r"""Keep the ``n_peaks`` most variable peaks, those with the largest binomial deviance.

    The null model is that peak *p* has the same expected fraction :math:`\pi_p` of every cell's
    depth :math:`s_n`. With the counts :math:`x_{np}` the deviance from it is

    .. math:: D_p = 2 \sum_n x_{np} \log\frac{x_{np}}{s_n \pi_p} +
              (s_n - x_{np}) \log\frac{s_n - x_{np}}{s_n (1 - \pi_p)}

    The kept peaks stay in their original order, and :math:`D_p` is written to
    ``var["deviance"]``, unless the cells are on disk.

    Parameters
    ----------
    adata
        Cells x peaks, counts or 0/1.
    n_peaks
        Number of peaks to keep; all peaks are kept if there are no more than this.
    layer
        Layer to read; None reads ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The cells with the peaks that are kept, as a copy (a view if they are on disk); ``adata``
        itself if ``inplace``.

    References
    ----------
    Townes et al. 2019, *Feature selection and dimension reduction for single-cell RNA-Seq based
    on a multinomial model*, Genome Biology 20:295, doi:10.1186/s13059-019-1861-6.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> kept = ps.pp.select_variable_peaks(adata, 20)
    >>> kept.shape, "deviance" in kept.var
    ((50, 20), True)
    """
    check_int("n_peaks", n_peaks)
    check_bool("inplace", inplace)
    deviance_p = _deviance(matrix(adata, layer))
    best = np.argsort(-deviance_p, kind="stable")[:n_peaks]
    keep = np.sort(best)
    logger.info("kept the %d of %d peaks with the largest deviance", len(keep), adata.n_vars)
    result = subset(adata, slice(None), keep, inplace=inplace)
    if not is_on_disk(adata):  # a view of cells on disk has the columns of the file
        result.var["deviance"] = deviance_p[keep]
    return result


def _deviance(x: sparse.csr_matrix | BackedMatrix) -> NDArray[np.float64]:
    """Return the binomial deviance of each peak, computed from the non-zero entries only.

    An entry of zero contributes s_n log(1 / (1 - pi_p)) to the sum over cells. This contribution is
    summed as if all entries were zero, and a correction is added for each non-zero entry. The
    matrix is read twice, in blocks if it is on disk.
    """
    total_p, correction_p = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _, part in iter_chunks(x):
        total_p += np.asarray(part.sum(0), dtype=np.float64).ravel()
    pi_p = total_p / max(total_p.sum(), 1)
    log_rest_p = np.log1p(-np.minimum(pi_p, 1 - 1e-12))
    for _, part in iter_chunks(x):
        depth_n = np.asarray(part.sum(1), dtype=np.float64).ravel()
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        count, depth, pi, log_rest = (
            part.data.astype(np.float64),
            depth_n[row],
            pi_p[part.indices],
            log_rest_p[part.indices],
        )
        rest = depth - count
        log_rest_ratio = np.log(np.maximum(rest, 1) / depth)
        term = count * np.log(count / (depth * pi)) + rest * (log_rest_ratio - log_rest)
        term += depth * log_rest  # removes the term of a zero, which the sum below has
        correction_p += np.bincount(part.indices, term, minlength=x.shape[1])
    deviance_p: NDArray[np.float64] = 2 * (correction_p - total_p.sum() * log_rest_p)
    return deviance_p
