"""Diagnostics of the variational posterior q(z|x), computed from arrays of draws.

In the shapes, s is the number of draws, n of cells and k of components, and ``...`` is the shape of
the predicted quantity.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from pyro_scale._validation import check_array, check_bool, check_int

__all__ = [
    "K_HAT_LIMIT",
    "calibration",
    "importance_log_evidence",
    "pareto_k",
    "posterior_predictive_pvalues",
]

K_HAT_LIMIT = 0.7
"""Value of k-hat above which importance sampling is unreliable at any practical number of draws."""

_MIN_DRAWS = 25  # the Pareto fit needs five draws, and the tail is a fifth of all draws
_EQUAL_WITHIN = 1e-9  # nats; smaller differences between log weights are rounding errors


def _smoothed(log_weight_sn: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Pareto-smoothed log weights, shape ``(s, n)``, and k-hat, shape ``(n,)``.

    The log weights are not normalized.
    """
    log_w_sn = check_array("log_weight_sn", log_weight_sn, np.float64)
    if log_w_sn.ndim != 2:
        raise ValueError(
            f"log weights of shape {log_w_sn.shape}: expected (draws, cells); for one cell give "
            "log_weight[:, None]."
        )
    if len(log_w_sn) < _MIN_DRAWS:
        raise ValueError(
            f"{len(log_w_sn)} draws per cell: the Pareto fit needs at least {_MIN_DRAWS}."
        )
    wrong = np.isnan(log_w_sn) | (log_w_sn == np.inf)
    if wrong.any() or (log_w_sn == -np.inf).all(0).any():
        raise ValueError(
            f"{int(wrong.sum())} of {wrong.size} log weights are NaN or infinite (or all weights "
            "of a cell are -inf): p(x, z) or q(z|x) is not finite there."
        )
    from arviz_stats.base import array_stats  # imported here because it is slow

    smooth_sn, k_n = log_w_sn.copy(), np.full(log_w_sn.shape[1], -np.inf)
    for n, log_w_s in enumerate(log_w_sn.T):
        if np.ptp(log_w_s) < _EQUAL_WITHIN:
            continue  # equal weights have no tail
        try:
            with np.errstate(all="ignore"):  # small weights underflow
                # psislw takes minus the log weights, the convention of leave-one-out.
                normalized_s, k = array_stats.psislw(-log_w_s)
        except ValueError as error:
            if "same" not in str(error):
                raise
            continue  # the largest weights are equal (a bound is reached): there is no tail to fit
        if np.isnan(k) or np.isnan(normalized_s).any():
            k_n[n] = np.inf  # the tail underflows: no Pareto distribution can be fitted
            continue
        k_n[n] = k
        # Smoothing changes the tail alone, so the median weight gives the normalizing constant.
        middle = np.argsort(log_w_s)[len(log_w_s) // 2]
        if np.isfinite(k) and np.isfinite(log_w_s[middle]):
            smooth_sn[:, n] = normalized_s + (log_w_s[middle] - normalized_s[middle])
    return smooth_sn, k_n


def pareto_k(log_weight_sn: ArrayLike) -> NDArray[np.float64]:
    r"""Estimate k-hat of each cell, the shape of the Pareto tail of its importance weights.

    k-hat shows how well q(z|x) fits p(z|x). The log weights are
    :math:`\log w_s = \log p(x, z_s) - \log q(z_s|x)` for draws :math:`z_s` from q(z|x). Moments of
    the weights exist up to order 1/k. Below a k-hat of 0.5 plain importance sampling is reliable,
    up to 0.7 (:data:`K_HAT_LIMIT`) its Pareto-smoothed form is, and above 0.7 neither is, because
    q(z|x) misses a part of p(z|x).

    Parameters
    ----------
    log_weight_sn
        Log weights of s draws from q for n cells, shape ``(s, n)``; they need not be normalized.

    Returns
    -------
    ndarray
        k-hat, shape ``(n,)``. It is ``-inf`` where all weights are equal (q is the posterior) or
        the largest weights are equal, and ``inf`` where they are too far apart to fit a tail.

    Raises
    ------
    ValueError
        If there are fewer than 25 draws, a log weight is NaN or ``inf``, or all log weights of a
        cell are ``-inf``.

    References
    ----------
    Vehtari et al. 2024, *Pareto smoothed importance sampling*, arXiv:1507.02646; Yao et al.
    2018, *Yes, but did it work?: evaluating variational inference*, arXiv:1802.02538.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.random.default_rng(0).uniform(size=(4000, 1))
    >>> (pareto_k(-0.3 * np.log(uniform)).round(1), pareto_k(-1.2 * np.log(uniform)).round(1))
    (array([0.3]), array([1.2]))
    """
    return _smoothed(log_weight_sn)[1]


def importance_log_evidence(
    log_weight_sn: ArrayLike, *, smoothed: bool = True
) -> NDArray[np.float64]:
    r"""Estimate log p(x) of each cell from its importance weights, in nats, shape ``(n,)``.

    .. math:: \log \tfrac1S \sum_s w_s

    Parameters
    ----------
    log_weight_sn
        Log weights log p(x, z_s) - log q(z_s|x), shape ``(s, n)``.
    smoothed
        If True, replace the largest weights by quantiles of the Pareto distribution fitted to
        them (at most the largest weight), which reduces the variance and adds a small bias. If
        False, return the plain estimate: its exponential is an unbiased estimate of p(x), and its
        expectation is a lower bound on log p(x).

    Raises
    ------
    ValueError
        If the log weights are not valid, as in :func:`pareto_k`.

    References
    ----------
    Vehtari et al. 2024, *Pareto smoothed importance sampling*, arXiv:1507.02646.

    Examples
    --------
    >>> log_weight_sn = np.random.default_rng(0).normal(-100, 0.5, size=(1000, 3))
    >>> importance_log_evidence(log_weight_sn).round(1)
    array([-99.9, -99.9, -99.9])
    """
    check_bool("smoothed", smoothed)
    log_w_sn = check_array("log_weight_sn", log_weight_sn, np.float64)
    if log_w_sn.ndim < 1 or not len(log_w_sn):
        raise ValueError(f"log weights of shape {log_w_sn.shape}: expected (draws, cells).")
    log_w_sn = _smoothed(log_w_sn)[0] if smoothed else log_w_sn
    return np.asarray(logsumexp(log_w_sn, axis=0) - np.log(len(log_w_sn)), dtype=np.float64)


def calibration(
    responsibilities_nk: ArrayLike, clusters: ArrayLike, *, n_bins: int = 10
) -> pd.DataFrame:
    """Compare the confidence of cluster assignments with their accuracy (reliability diagram).

    If a model is calibrated, 90 % of the cells whose largest responsibility is 0.9 are assigned to
    their true component.

    Parameters
    ----------
    responsibilities_nk
        Responsibilities q(c|x), shape ``(n, k)``; the rows sum to one.
    clusters
        True component of each cell, ``0`` to ``k - 1``, shape ``(n,)``. It is known in simulated
        data; labels have to be matched to components first (:func:`match_clusters`). ``-1`` marks a
        cell that belongs to no component.
    n_bins
        Number of bins of equal width between 1/k, the smallest possible confidence, and 1.

    Returns
    -------
    DataFrame
        One row per bin that has cells, indexed by the bounds of the bin. Columns: ``n_cells``,
        ``confidence`` (mean of the largest responsibility), ``observed`` (fraction of the cells
        whose most probable component is the true one) and ``error`` (standard error of
        ``observed`` if its expectation were ``confidence``).

    Raises
    ------
    ValueError
        If the lengths differ, a row does not hold probabilities, or a cluster is not a component.

    References
    ----------
    Guo et al. 2017, *On calibration of modern neural networks*, arXiv:1706.04599.

    Examples
    --------
    >>> calibration([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], n_bins=2).round(2)
                 n_cells  confidence  observed  error
    [0.5, 0.75)        1        0.60       0.0   0.49
    [0.75, 1]          2        0.85       1.0   0.25
    """
    q_nk = check_array("responsibilities_nk", responsibilities_nk, np.float64)
    c_n = check_array("clusters", clusters)
    if q_nk.ndim != 2 or c_n.shape != q_nk.shape[:1] or not len(q_nk):
        raise ValueError(
            f"responsibilities of shape {q_nk.shape} and clusters of shape {c_n.shape}: expected "
            "(n, k) and (n,), with n at least one."
        )
    if not ((q_nk >= 0).all() and np.allclose(q_nk.sum(1), 1, atol=1e-4)):
        raise ValueError("responsibilities must be probabilities whose rows sum to one.")
    k = q_nk.shape[1]
    if not np.issubdtype(c_n.dtype, np.integer) or c_n.min() < -1 or c_n.max() >= k:
        raise ValueError(
            f"clusters must be whole numbers from 0 to {k - 1}, or -1 for no component; match "
            "labels to components first (match_clusters)."
        )
    check_int("n_bins", n_bins, most=10**6)
    edges = np.linspace(1 / k, 1, n_bins + 1)
    confidence_n = q_nk.max(1)
    bin_n = np.clip(np.searchsorted(edges, confidence_n, side="right") - 1, 0, n_bins - 1)
    rows, names = [], []
    for b in np.unique(bin_n):
        here = bin_n == b
        mean = confidence_n[here].mean()
        right = (q_nk[here].argmax(1) == c_n[here]).mean()
        error = np.sqrt(max(mean * (1 - mean), 0.0) / here.sum())
        rows.append((int(here.sum()), mean, right, error))
        names.append(f"[{edges[b]:.3g}, {edges[b + 1]:.3g}" + ("]" if b == n_bins - 1 else ")"))
    columns = ["n_cells", "confidence", "observed", "error"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(names))


def posterior_predictive_pvalues(
    predicted_s: ArrayLike, observed: ArrayLike
) -> NDArray[np.float64]:
    r"""Compute posterior predictive p values of observations from replicated draws.

    .. math:: P(T(x^{rep}) > T(x)) + \tfrac12 P(T(x^{rep}) = T(x))

    A value near zero means that the model predicts too little, a value near one too much. For a
    correct model the mean is 1/2, but the distribution is *not* uniform: the draws are conditioned
    on x, so the p values concentrate around 1/2.

    Parameters
    ----------
    predicted_s
        Posterior predictive draws of a quantity T(x), shape ``(s, ...)``.
    observed
        Observed value of the same quantity, shape ``(...)``.

    Returns
    -------
    ndarray
        p values between zero and one, shape ``(...)``.

    Raises
    ------
    ValueError
        If the shapes do not match, or there are no draws.

    References
    ----------
    Gelman, Meng and Stern 1996, *Posterior predictive assessment of model fitness via realized
    discrepancies*, Statistica Sinica 6:733-807.

    Examples
    --------
    >>> posterior_predictive_pvalues([[3, 0], [4, 1], [5, 2], [6, 3]], [4, 9])
    array([0.625, 0.   ])
    """
    draws = check_array("predicted_s", predicted_s, np.float64)
    seen = check_array("observed", observed, np.float64)
    if draws.ndim < 1 or draws.shape[1:] != seen.shape or not len(draws):
        raise ValueError(
            f"predictions of shape {draws.shape} and observations of shape {seen.shape}: "
            "expected (draws, ...) and (...)."
        )
    return np.asarray((draws > seen).mean(0) + 0.5 * (draws == seen).mean(0), dtype=np.float64)
