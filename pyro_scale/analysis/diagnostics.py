"""Whether q(z|x) can be trusted: diagnostics of draws, on arrays alone.

Shapes: s draws, n cells, k components, ``...`` whatever is predicted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from pyro_scale.checks import check_array, check_flag, check_whole

__all__ = [
    "K_HAT_LIMIT",
    "calibration",
    "importance_log_evidence",
    "pareto_k",
    "posterior_predictive_pvalues",
]

K_HAT_LIMIT = 0.7
"""Above it, importance weights from any practical number of draws cannot be trusted."""

_FEWEST_DRAWS = 25  # the fit of the tail wants five draws, which are a fifth of these
_NO_SPREAD = 1e-9  # nats: below it, weights differ by rounding


def _smoothed(log_weight_sn: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pareto-smoothed log weights, on the scale they came on, ``(s, n)``, and k-hat, ``(n,)``."""
    log_w_sn = check_array("log_weight_sn", log_weight_sn, np.float64)
    if log_w_sn.ndim != 2:
        raise ValueError(
            f"log weights of shape {log_w_sn.shape}: expected (draws, cells); for one cell give "
            "log_weight[:, None]."
        )
    if len(log_w_sn) < _FEWEST_DRAWS:
        raise ValueError(
            f"{len(log_w_sn)} draws per cell: a tail is fitted to no fewer than {_FEWEST_DRAWS}."
        )
    wrong = np.isnan(log_w_sn) | (log_w_sn == np.inf)
    if wrong.any() or (log_w_sn == -np.inf).all(0).any():
        raise ValueError(
            f"{int(wrong.sum())} of {wrong.size} log weights are NaN or infinite (or all of a "
            "cell are -inf): p(x, z) or q(z|x) is not a number there."
        )
    from arviz_stats.base import array_stats  # here, because it takes long to import

    smooth_sn, k_n = log_w_sn.copy(), np.full(log_w_sn.shape[1], -np.inf)
    for n, log_w_s in enumerate(log_w_sn.T):
        if np.ptp(log_w_s) < _NO_SPREAD:
            continue  # equal weights have no tail
        try:
            with np.errstate(all="ignore"):  # weights that underflow beside the largest
                # Its argument is minus the log weights, as leave-one-out has them.
                normalised_s, k = array_stats.psislw(-log_w_s)
        except ValueError as error:
            if "same" not in str(error):
                raise
            continue  # bounded weights that reach their bound
        if np.isnan(k) or np.isnan(normalised_s).any():
            k_n[n] = np.inf  # so far apart that the tail underflows: no fit, whatever k is
            continue
        k_n[n] = k
        # Only the tail was smoothed: the median tells what they were divided by.
        middle = np.argsort(log_w_s)[len(log_w_s) // 2]
        if np.isfinite(k) and np.isfinite(log_w_s[middle]):
            smooth_sn[:, n] = normalised_s + (log_w_s[middle] - normalised_s[middle])
    return smooth_sn, k_n


def pareto_k(log_weight_sn: ArrayLike) -> NDArray[np.float64]:
    r"""k-hat of each cell: the shape of the Pareto tail of its importance weights.

    With :math:`\log w_s = \log p(x, z_s) - \log q(z_s|x)`, moments of w of order below 1/k exist.
    Below 0.5 importance sampling works, to 0.7 its smoothed form does, and above
    (:data:`K_HAT_LIMIT`) q(z|x) misses some of p(z|x).

    Parameters
    ----------
    log_weight_sn
        Log weights, shape ``(s, n)``, s draws of q; they need not be normalised.

    Returns
    -------
    ndarray
        Shape ``(n,)``. ``-inf`` where the weights are equal (q is the posterior), ``inf`` where
        they are too far apart for a tail to be fitted.

    Raises
    ------
    ValueError
        For fewer than 25 draws, or log weights that are not numbers.

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
        log p(x, z_s) - log q(z_s|x), shape ``(s, n)``.
    smoothed
        Replace the largest weights by the quantiles of the Pareto distribution fitted to them
        (never above the largest): less variance, a little bias. False: the plain estimate, whose
        exponential is unbiased and which is itself a lower bound on average.

    Raises
    ------
    ValueError
        As :func:`pareto_k`.

    References
    ----------
    Vehtari et al. 2024, *Pareto smoothed importance sampling*, arXiv:1507.02646.

    Examples
    --------
    >>> log_weight_sn = np.random.default_rng(0).normal(-100, 0.5, size=(1000, 3))
    >>> importance_log_evidence(log_weight_sn).round(1)
    array([-99.9, -99.9, -99.9])
    """
    check_flag("smoothed", smoothed)
    log_w_sn = check_array("log_weight_sn", log_weight_sn, np.float64)
    if log_w_sn.ndim < 1 or not len(log_w_sn):
        raise ValueError(f"log weights of shape {log_w_sn.shape}: expected (draws, cells).")
    log_w_sn = _smoothed(log_w_sn)[0] if smoothed else log_w_sn
    return np.asarray(logsumexp(log_w_sn, axis=0) - np.log(len(log_w_sn)), dtype=np.float64)


def calibration(
    responsibilities_nk: ArrayLike, clusters: ArrayLike, *, n_bins: int = 10
) -> pd.DataFrame:
    """Whether cells that are assigned with confidence 0.9 are right nine times in ten.

    Parameters
    ----------
    responsibilities_nk
        q(c|x), shape ``(n, k)``, rows summing to one.
    clusters
        The component each cell is of, ``0`` to ``k - 1``, shape ``(n,)``: simulated, or a label
        matched to a component (:func:`match_clusters`); ``-1`` for a cell of none.
    n_bins
        Bins of equal width between 1/k, the least confidence there is, and 1.

    Returns
    -------
    DataFrame
        A row per bin that has cells, indexed by its bounds: ``n_cells``, ``confidence`` (mean
        of the largest responsibility), ``observed`` (share of the cells whose most probable
        component is theirs) and ``error`` (standard error of ``observed``, were it
        ``confidence``).

    Raises
    ------
    ValueError
        If lengths differ, rows are no probabilities, or a cluster is no component.

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
    of_n = check_array("clusters", clusters)
    if q_nk.ndim != 2 or of_n.shape != q_nk.shape[:1] or not len(q_nk):
        raise ValueError(
            f"responsibilities of shape {q_nk.shape} and clusters of shape {of_n.shape}: expected "
            "(n, k) and (n,), with n at least one."
        )
    if not ((q_nk >= 0).all() and np.allclose(q_nk.sum(1), 1, atol=1e-4)):
        raise ValueError("responsibilities must be probabilities whose rows sum to one.")
    k = q_nk.shape[1]
    if not np.issubdtype(of_n.dtype, np.integer) or of_n.min() < -1 or of_n.max() >= k:
        raise ValueError(
            f"clusters must be whole numbers from 0 to {k - 1}, or -1 for none; match labels to "
            "components first."
        )
    check_whole("n_bins", n_bins, most=10**6)
    edges = np.linspace(1 / k, 1, n_bins + 1)
    confidence_n = q_nk.max(1)
    bin_n = np.clip(np.searchsorted(edges, confidence_n, side="right") - 1, 0, n_bins - 1)
    rows, names = [], []
    for b in np.unique(bin_n):
        here = bin_n == b
        mean = confidence_n[here].mean()
        right = (q_nk[here].argmax(1) == of_n[here]).mean()
        error = np.sqrt(max(mean * (1 - mean), 0.0) / here.sum())
        rows.append((int(here.sum()), mean, right, error))
        names.append(f"[{edges[b]:.3g}, {edges[b + 1]:.3g}" + ("]" if b == n_bins - 1 else ")"))
    columns = ["n_cells", "confidence", "observed", "error"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(names))


def posterior_predictive_pvalues(
    predicted_s: ArrayLike, observed: ArrayLike
) -> NDArray[np.float64]:
    r"""How far up among its posterior predictive draws each observation lies.

    .. math:: P(T(x^{rep}) > T(x)) + \tfrac12 P(T(x^{rep}) = T(x))

    Near zero: the model predicts too little, near one: too much. It is 1/2 on average and *not*
    uniform for a model that is right, because the draws have seen x: it is closer to 1/2.

    Parameters
    ----------
    predicted_s
        Draws of a quantity of x, shape ``(s, ...)``.
    observed
        The same quantity observed, shape ``(...)``.

    Returns
    -------
    ndarray
        Shape ``(...)``, between zero and one.

    Raises
    ------
    ValueError
        If the shapes do not fit, or there are no draws.

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
