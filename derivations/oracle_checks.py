"""What it means, here, that two things are equal; and that a wrong formula is not.

Both checks demand wrong formulas and fail when one of them passes: a test that a mistake would
survive is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TOLERANCE = 1e-10  # of an identity, relative to its largest term
FAILURE_RATE = 2e-5  # of all statistical comparisons of the folder together
N_COMPARISONS = 2048  # at most; counted below

_made = 0


def z_star(n_samples: int) -> float:
    """How many standard errors a mean of n samples may be off: one failure rate for all."""
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
        What they are sums of, ``(terms, n)``: sets the scale of rounding.
    wrong
        Name -> what a plausible mistake puts in the place of ``right``. Nine in ten models must
        tell it from ``left`` by a thousand tolerances.
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
    """(mean - exact) / standard error along the first axis.

    A difference that is rounding scores 0 (some coordinates have no noise); any other difference
    without noise is infinite.
    """
    samples, exact = _array(samples), _array(exact)
    difference = np.abs(samples.mean(0) - exact)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    rounding = TOLERANCE * np.abs(exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference <= rounding, 0.0, difference / error)


def assert_mean(samples: ArrayLike, exact: ArrayLike, *, wrong: Mapping[str, ArrayLike]) -> None:
    """Assert that samples ``(s, ...)`` have mean ``exact``, to ``z_star`` standard errors.

    ``wrong``: name -> a plausible wrong mean; at least one coordinate must reject it.
    """
    global _made
    z, allowed = z_scores(samples, exact), z_star(len(_array(samples)))
    _made += z.size
    assert _made <= N_COMPARISONS, "raise N_COMPARISONS: the failure rate is shared by all"
    assert z.max() <= allowed, f"off by {z.max():.1f} standard errors, {allowed:.1f} allowed"
    assert wrong, "an equality needs a wrong formula beside it"
    for name, value in wrong.items():
        assert z_scores(samples, value).max() > allowed, f"{name!r} passes"
