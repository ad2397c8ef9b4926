"""How much a peak belongs to one cluster, by the Jensen-Shannon divergence from it alone."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import xlogy

from pyro_scale.checks import check_array, check_labels, check_whole

__all__ = ["peak_specificity", "specific_peaks"]


def _xlogx(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(xlogy(x, x), dtype=np.float64)


def peak_specificity(
    x: ArrayLike | sparse.spmatrix | sparse.sparray,
    clusters: Sequence[object],
    peak_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""One minus the root of the Jensen-Shannon divergence from "open in this cluster alone".

    .. math:: s_{pk} = 1 - \sqrt{\mathrm{JSD}(f_p, q_k)}, \quad
              f_{pn} \propto \log_2(1 + x_{np}), \quad q_{kn} \propto [c_n = k]

    over the cells *n*, in nats. One: the peak is equally open in all cells of the cluster and
    closed elsewhere. A peak that is closed everywhere has score zero for every cluster (SCALE
    gives NaN, and then the first cluster).

    Parameters
    ----------
    x
        Accessibility, observed or imputed, shape ``(n_cells, n_peaks)``, dense or sparse, not
        negative. (SCALE takes it transposed.)
    clusters
        One entry per cell.
    peak_names
        One per peak; None: their positions.

    Returns
    -------
    DataFrame
        Peaks x clusters; the clusters sorted, or in the order of their categories.

    Raises
    ------
    ValueError
        If there is not one cluster per cell or one name per peak, or a value is negative or NaN.

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
    half = numbers.dtype == np.float16  # which scipy does not know
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
        raise ValueError("x has values that are negative or NaN: expected accessibility.")
    value = np.log2(1 + csc.data.astype(np.float64))
    peak = np.repeat(np.arange(n_peaks), np.diff(csc.indptr))
    total_p = np.bincount(peak, value, minlength=n_peaks)
    share = value / total_p[peak]
    size_k = np.bincount(codes, minlength=len(names)).astype(np.float64)
    at = peak * len(names) + codes[csc.indices]  # peak and cluster of every entry

    def sums(of: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(at, of, minlength=n_peaks * len(names))
        return total.astype(np.float64, copy=False).reshape(n_peaks, -1)

    # JSD = H(m) - H(f)/2 - H(q)/2 with m = (f + q)/2, its sums split by where f and q are zero.
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
    """Number of each cell's cluster, and the clusters' names."""
    values = check_labels("clusters", clusters)
    if values.isna().any():
        raise ValueError(f"{int(values.isna().sum())} cells have no cluster; every cell needs one.")
    kept = values.cat if isinstance(values.dtype, pd.CategoricalDtype) else None
    categories = kept.categories if kept is not None else sorted(values.astype(str).unique())
    names = [str(name) for name in categories]
    return pd.Index(names).get_indexer(pd.Index(values.astype(str))), names


def specific_peaks(scores: pd.DataFrame, n_top: int | None = 100) -> pd.DataFrame:
    """The peaks that are most specific to each cluster, from :func:`peak_specificity`.

    A peak goes to the cluster where its score is largest; within a cluster the largest come
    first. A peak that is closed everywhere goes nowhere.

    Parameters
    ----------
    scores
        Peaks x clusters.
    n_top
        At most so many per cluster; None: all.

    Returns
    -------
    DataFrame
        Columns ``peak``, ``cluster``, ``score``, ``rank``, clusters in the order of the columns.

    Examples
    --------
    >>> x = [[1, 1], [1, 1], [0, 1], [0, 1]]
    >>> specific_peaks(peak_specificity(x, ["a", "a", "b", "b"], ["p", "q"])).round(2)
      peak cluster  score  rank
    0    p       a   1.00     0
    1    q       a   0.54     1
    """
    if n_top is not None:
        check_whole("n_top", n_top)
    if not isinstance(scores, pd.DataFrame) or any(
        kind.kind not in "biuf" for kind in scores.dtypes
    ):
        raise TypeError(
            f"scores={reprlib.repr(scores)} must be a DataFrame of peaks x clusters, as "
            "peak_specificity gives."
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
