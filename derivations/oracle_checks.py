"""Assertions that two quantities are equal, exactly or as a mean of random draws.

Both assertions also take wrong formulas and fail if one of them passes, because a test that a
wrong formula passes is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TOLERANCE = 1e-10  # largest error of an identity, relative to its largest term
# Probability that any statistical comparison of this folder fails by chance.
FAILURE_RATE = 2e-5
N_COMPARISONS = 2048  # upper limit of their number; assert_mean counts them

_made = 0


def z_star(n_samples: int) -> float:
    """Return the largest allowed error of a mean of n samples, in standard errors.

    It follows from the failure rate that all comparisons share.
    """
    return float(stats.t.isf(FAILURE_RATE / 2 / N_COMPARISONS, n_samples - 1))


def _array(value: ArrayLike) -> np.ndarray:
    detach = getattr(value, "detach", None)
    return np.asarray(value if detach is None else detach(), dtype=float)


def assert_identity(
    left: ArrayLike, right: ArrayLike, *, terms: ArrayLike, wrong: Mapping[str, ArrayLike]
) -> None:
    """Assert that ``left == right`` to 1e-10 of the largest of ``terms``.

    Parameters
    ----------
    left, right
        The two sides, ``(n,)``: one entry per model.
    terms
        The terms that the two sides are sums of, ``(terms, n)``. The largest one is the scale
        of the rounding error.
    wrong
        Plausible wrong values of ``right`` by name. Each must differ from ``left`` by more than
        a thousand tolerances in nine of ten models.
    """
    left, right = np.broadcast_arrays(_array(left), _array(right))
    assert left.size, "no models"
    scale = np.broadcast_to(np.abs(np.atleast_2d(_array(terms))).max(0), left.shape)
    error = np.abs(left - right) / scale
    assert error.max() <= TOLERANCE, f"the two sides differ by {error.max():.1e} of a term"
    assert wrong, "an equality needs a wrong formula beside it"
    for name, value in wrong.items():
        caught = np.abs(left - _array(value)) / scale > 1000 * TOLERANCE
        assert caught.mean() >= 0.9, f"{name!r} passes in {1 - caught.mean():.0%} of the models"


def z_scores(samples: ArrayLike, exact: ArrayLike) -> np.ndarray:
    """Return |mean - exact| / standard error along the first axis.

    Some coordinates have no noise. There, the score is 0 for a difference that is rounding, and
    infinite for any other.
    """
    samples, exact = _array(samples), _array(exact)
    difference = np.abs(samples.mean(0) - exact)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    rounding = TOLERANCE * np.abs(exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference <= rounding, 0.0, difference / error)


def assert_mean(samples: ArrayLike, exact: ArrayLike, *, wrong: Mapping[str, ArrayLike]) -> None:
    """Assert that samples have the mean ``exact``, to ``z_star`` standard errors.

    Parameters
    ----------
    samples
        Independent draws, ``(s, ...)``.
    exact
        Their expected mean, ``(...)``.
    wrong
        Plausible wrong means by name. At least one coordinate must reject each.
    """
    global _made
    z, allowed = z_scores(samples, exact), z_star(len(_array(samples)))
    _made += z.size
    assert _made <= N_COMPARISONS, "raise N_COMPARISONS: the failure rate is shared by all"
    assert z.max() <= allowed, f"off by {z.max():.1f} standard errors, {allowed:.1f} allowed"
    assert wrong, "an equality needs a wrong formula beside it"
    for name, value in wrong.items():
        assert z_scores(samples, value).max() > allowed, f"{name!r} passes"
