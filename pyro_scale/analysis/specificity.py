"""Specificity of peaks (Jensen-Shannon score) and latent dimensions (F test) to clusters."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import fdtrc, xlogy

from pyro_scale._validation import check_array, check_int, check_labels

__all__ = [
    "latent_specificity",
    "peak_specificity",
    "specific_peaks",
]


def _xlogx(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(xlogy(x, x), dtype=np.float64)


def peak_specificity(
    x: ArrayLike | sparse.spmatrix | sparse.sparray,
    clusters: Sequence[object],
    peak_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Score how specific each peak is to each cluster by the Jensen-Shannon divergence (JSD).

    .. math:: s_{pk} = 1 - \sqrt{\mathrm{JSD}(f_p, q_k)}, \quad
              f_{pn} \propto \log_2(1 + x_{np}), \quad q_{kn} \propto [c_n = k]

    where :math:`f_p`, the accessibility of peak *p*, and :math:`q_k`, the indicator of cluster *k*,
    are normalized to distributions over the cells *n*. The divergence is in nats. The score is one
    if the peak is equally open in all cells of the cluster and closed in all others. A peak
    that is closed in all cells has score zero for every cluster (the published SCALE computes NaN
    and then assigns the peak to the first cluster).

    Parameters
    ----------
    x
        Observed or imputed accessibility, shape ``(n_cells, n_peaks)``, dense or sparse; values
        must not be negative. (The published SCALE takes the transpose.)
    clusters
        Cluster of each cell.
    peak_names
        Name of each peak. If None, peaks are numbered from 0.

    Returns
    -------
    DataFrame
        Scores, peaks x clusters; the clusters are sorted, or in the order of their categories.

    Raises
    ------
    ValueError
        If the number of clusters is not the number of cells, the number of names is not the
        number of peaks, or a value of ``x`` is negative or NaN.

    References
    ----------
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7, "Calculating cluster specificity score";
    Cabili et al. 2011, doi:10.1101/gad.17446611.

    Examples
    --------
    >>> peak_specificity([[1, 1], [1, 1], [0, 1], [0, 1]], ["a", "a", "b", "b"]).round(2)
          a     b
    0  1.00  0.17
    1  0.54  0.54
    """
    numbers: Any = x if sparse.issparse(x) else check_array("x", x)
    if numbers.ndim != 2 or numbers.dtype.kind not in "biuf":
        raise ValueError(
            f"x has shape {numbers.shape} and dtype {numbers.dtype}; expected cells x peaks of "
            "real numbers."
        )
    half = numbers.dtype == np.float16  # not supported by scipy.sparse
    csc: Any = sparse.csc_matrix(numbers.astype(np.float32) if half else numbers)
    n_cells, n_peaks = csc.shape
    codes, names = _codes(clusters)
    if len(codes) != n_cells:
        raise ValueError(
            f"{len(codes)} clusters for {n_cells} cells: expected one each (x is cells x peaks)."
        )
    if peak_names is not None:
        peak_names = check_labels("peak_names", peak_names).tolist()
    if peak_names is not None and len(peak_names) != n_peaks:
        raise ValueError(f"{len(peak_names)} peak names for {n_peaks} peaks: expected one each.")
    if not (csc.data >= 0).all():
        raise ValueError("x has values that are negative or NaN; expected accessibility (>= 0).")
    value = np.log2(1 + csc.data.astype(np.float64))
    peak = np.repeat(np.arange(n_peaks), np.diff(csc.indptr))
    total_p = np.bincount(peak, value, minlength=n_peaks)
    share = value / total_p[peak]
    size_k = np.bincount(codes, minlength=len(names)).astype(np.float64)
    at = peak * len(names) + codes[csc.indices]  # (peak, cluster) of every stored entry, flattened

    def sums(of: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(at, of, minlength=n_peaks * len(names))
        return total.astype(np.float64, copy=False).reshape(n_peaks, -1)

    # JSD = H(m) - H(f)/2 - H(q)/2 with m = (f + q)/2. The sum over cells in H(m) is split into
    # the cells where both f and q, only f, and only q are non-zero.
    q_k = 1 / np.maximum(size_k, 1)
    half_p = _xlogx(share / 2)
    inside_pk = sums(_xlogx((share + q_k[codes[csc.indices]]) / 2))
    only_f_pk = np.bincount(peak, half_p, minlength=n_peaks)[:, None] - sums(half_p)
    only_q_pk = (size_k - sums(np.ones_like(share))) * _xlogx(q_k / 2)
    entropy_m_pk = -(inside_pk + only_f_pk + only_q_pk)
    entropy_f_p = -np.bincount(peak, _xlogx(share), minlength=n_peaks)
    divergence_pk = entropy_m_pk - entropy_f_p[:, None] / 2 - np.log(np.maximum(size_k, 1)) / 2
    score_pk = 1 - np.sqrt(np.clip(divergence_pk, 0, None))
    score_pk[total_p == 0] = 0
    score_pk[:, size_k == 0] = 0
    return pd.DataFrame(
        score_pk, index=pd.Index(peak_names) if peak_names is not None else None, columns=names
    )


def _codes(clusters: Sequence[object]) -> tuple[NDArray[np.intp], list[str]]:
    """Return the code of each cell's cluster and the names of the clusters."""
    values = check_labels("clusters", clusters)
    if values.isna().any():
        raise ValueError(f"{int(values.isna().sum())} cells have no cluster; every cell needs one.")
    kept = values.cat if isinstance(values.dtype, pd.CategoricalDtype) else None
    categories = kept.categories if kept is not None else sorted(values.astype(str).unique())
    names = [str(name) for name in categories]
    return pd.Index(names).get_indexer(pd.Index(values.astype(str))), names


def specific_peaks(scores: pd.DataFrame, n_top: int | None = 100) -> pd.DataFrame:
    """Select the peaks that are most specific to each cluster by :func:`peak_specificity`.

    Each peak belongs to the cluster where its score is largest; within a cluster, peaks are sorted
    by decreasing score. A peak that is closed in all cells (score zero) is left out.

    Parameters
    ----------
    scores
        Specificity scores, peaks x clusters.
    n_top
        Maximum number of peaks per cluster. If None, all peaks are returned.

    Returns
    -------
    DataFrame
        One row per peak; columns ``peak``, ``cluster``, ``score`` and ``rank`` (from 0). Clusters
        are in the order of the columns of ``scores``.

    Examples
    --------
    >>> x = [[1, 1], [1, 1], [0, 1], [0, 1]]
    >>> specific_peaks(peak_specificity(x, ["a", "a", "b", "b"], ["p", "q"])).round(2)
      peak cluster  score  rank
    0    p       a   1.00     0
    1    q       a   0.54     1
    """
    if n_top is not None:
        check_int("n_top", n_top)
    if not isinstance(scores, pd.DataFrame) or any(
        kind.kind not in "biuf" for kind in scores.dtypes
    ):
        raise TypeError(
            f"scores={reprlib.repr(scores)} must be a numeric DataFrame of peaks x clusters, as "
            "returned by peak_specificity."
        )
    best = pd.DataFrame(
        {
            "peak": scores.index,
            "cluster": pd.Categorical(scores.idxmax(axis=1), categories=scores.columns),
            "score": scores.max(axis=1).to_numpy(),
        }
    )
    best = best[best["score"] > 0].sort_values(
        ["cluster", "score"], ascending=[True, False], kind="stable"
    )
    best["rank"] = best.groupby("cluster", observed=True).cumcount()
    return (best if n_top is None else best[best["rank"] < n_top]).reset_index(drop=True)


def latent_specificity(
    latent_nd: ArrayLike, clusters: Sequence[object] | pd.Series
) -> pd.DataFrame:
    r"""Test each latent dimension for a difference between each cluster and all other cells.

    The p values are those of one-way F tests:

    .. math:: F_{dk} = \frac{n_k (\bar z_{dk} - \bar z_d)^2 + n_{-k} (\bar z_{d,-k} - \bar z_d)^2}
              {W_{dk} / (n - 2)} \sim F_{1,\,n-2}

    where W is the sum of squares of the cluster and of all other cells (-k) around their means.

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``.
    clusters
        Cluster of each cell; cells without a cluster (NaN) are left out.

    Returns
    -------
    DataFrame
        p values, one row per dimension (numbered from 0) and one column per cluster that has cells,
        shape ``(d, k)``. The p value is one where
        the test is undefined: for a constant dimension, if no cells are outside of the cluster, or
        if there are fewer than three cells.

    Raises
    ------
    ValueError
        If the number of clusters is not the number of cells, or a latent value is not finite.

    References
    ----------
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7, plot these p values as "feature
    specificity". The test is that of :func:`scipy.stats.f_oneway`.

    Examples
    --------
    >>> latent_specificity([[0.0], [1.0], [4.0], [5.0]], ["a", "a", "b", "b"]).round(3)
          a     b
    0  0.03  0.03
    """
    z_nd = check_array("latent_nd", latent_nd, np.float64)
    if z_nd.ndim != 2:
        raise ValueError(f"latent_nd has shape {z_nd.shape}; expected cells x dimensions.")
    groups = check_labels("clusters", clusters)
    if len(groups) != len(z_nd):
        raise ValueError(f"{len(groups)} clusters for {len(z_nd)} cells: expected one each.")
    if not np.isfinite(z_nd).all():
        raise ValueError(f"latent_nd has {int((~np.isfinite(z_nd)).sum())} NaN or infinities.")
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        groups = groups.astype("category")
    known = groups.notna().to_numpy()
    codes, z_nd = groups.cat.codes.to_numpy()[known], z_nd[known]
    used, codes = np.unique(codes, return_inverse=True)
    names = [str(groups.cat.categories[code]) for code in used]
    n, dims = len(z_nd), z_nd.shape[1]
    size_k = np.bincount(codes, minlength=len(names))
    p_dk = np.ones((dims, len(names)))
    if n > 2 and len(names) > 1:
        constant_d = np.ptp(z_nd, axis=0) == 0
        z_nd = z_nd - z_nd.mean(0)
        member_nk = np.eye(len(names))[codes]
        sum_dk = z_nd.T @ member_nk
        mean_dk, rest_dk = sum_dk / size_k, -sum_dk / (n - size_k)  # z has mean zero
        between_dk = size_k * mean_dk**2 + (n - size_k) * rest_dk**2
        # W: sums of squares within the clusters, and those of the means of clusters j != k around
        # the mean of all cells outside of k.
        inside_dk = ((z_nd - mean_dk.T[codes]) ** 2).T @ member_nk
        off_dkj = size_k * (mean_dk[:, None, :] - rest_dk[:, :, None]) ** 2
        off_dkj[:, np.arange(len(names)), np.arange(len(names))] = 0
        within_dk = inside_dk.sum(1, keepdims=True) + off_dkj.sum(2)
        with np.errstate(divide="ignore", invalid="ignore"):
            p_dk = fdtrc(1, n - 2, between_dk / (within_dk / (n - 2)))
        p_dk[constant_d] = 1
    return pd.DataFrame(p_dk, columns=names)
