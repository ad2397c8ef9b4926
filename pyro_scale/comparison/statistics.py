"""When a Monte Carlo difference counts as none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

__all__ = ["FAILURE_RATE", "Projections", "critical_z", "z_scores"]

FAILURE_RATE = 2e-5
"""Probability that any of a set of true equalities is called false, over all its assertions."""


def critical_z(n_assertions: int, n_samples: int, *, failure_rate: float = FAILURE_RATE) -> float:
    """The z-score that a true equality exceeds with a share of the failure rate.

    Bonferroni over the assertions, and Student's t because the standard error is estimated.

    Parameters
    ----------
    n_assertions
        How many two-sided z-scores are compared with it.
    n_samples
        Draws behind each standard error; at least two.
    failure_rate
        Probability that any of them is called false.

    Examples
    --------
    >>> round(critical_z(1, 10**9, failure_rate=0.05), 2)
    1.96
    """
    tail = failure_rate / (2 * max(1, n_assertions))
    return float(stats.t.isf(tail, n_samples - 1))


def z_scores(
    differences: NDArray[np.float64], resolution: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Mean over standard error along the first axis.

    Parameters
    ----------
    differences
        One row per draw.
    resolution
        Differences up to it are rounding: where no draw exceeds it, the score is 0. A mean
        beyond it without any spread has an infinite score.
    """
    mean = differences.mean(0)
    error = differences.std(0, ddof=1) / np.sqrt(len(differences))
    rounding = np.abs(differences).max(0) <= resolution
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rounding, 0.0, np.abs(mean) / error)


class Projections:
    """A few fixed random directions per named parameter: gradients as a handful of numbers.

    Comparing millions of coordinates one by one would need a threshold so high that it had no
    power; a random projection moves if any coordinate is off. A matrix is projected by a
    Gaussian vector on either side, which reads it once.

    Parameters
    ----------
    parameters
        Named tensors whose shapes (and dtype, device) gradients will have.
    generator
        Of the directions.
    n_directions
        Directions per parameter.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, n_directions: int = 3
    ) -> None:
        self.sides: dict[str, tuple[Tensor, Tensor]] = {}
        for name, value in parameters.items():
            rows, columns = _as_matrix(value).shape
            left = torch.randn(rows, n_directions, generator=generator, dtype=value.dtype)
            right = torch.randn(columns, n_directions, generator=generator, dtype=value.dtype)
            self.sides[name] = (
                left.to(value.device) / rows**0.5,
                right.to(value.device) / columns**0.5,
            )

    def __call__(self, gradients: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """All projections, shape ``(n_parameters * n_directions,)``."""
        parts = [
            (left * (_as_matrix(gradients[name]) @ right)).sum(0)
            for name, (left, right) in self.sides.items()
        ]
        return torch.cat(parts).cpu().numpy()

    def norms(self, gradients: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Norm of the parameter behind each projection, shape as of a call."""
        parts = [
            torch.linalg.vector_norm(gradients[name]).expand(left.shape[1])
            for name, (left, _) in self.sides.items()
        ]
        return torch.cat(parts).cpu().numpy()


def _as_matrix(value: Tensor) -> Tensor:
    return value if value.ndim == 2 else value.reshape(-1, 1)
