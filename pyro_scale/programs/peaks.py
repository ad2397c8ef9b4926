"""Distributions of accessibility that torch has not: sparse observations, rates that underflow."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_scale.programs.over_peaks import Logits, logsumexp_over_peaks, softplus_over_peaks
from pyro_scale.programs.sparse import is_sparse, totals, with_values

__all__ = ["BernoulliPeaks", "LogPoisson", "PoissonPeaks"]


class _Peaks(TorchDistribution):
    r"""x_1 .. x_P, independent given logits :math:`\eta_p`.

    An exponential family: :math:`\log p(x) = \sum_p x_p \eta_p - A(\eta) + \ldots`, whose first
    sum runs over the ones and whose A is taken over blocks of peaks, so that no array of
    cells x peaks is made.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, eta: Logits) -> None:
        self.eta = eta
        super().__init__(eta.h_nr.shape[:-1], eta.b_p.shape, validate_args=False)


class BernoulliPeaks(_Peaks):
    """Bernoulli(logits = eta) for every peak: A is the sum of softplus."""

    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def log_prob(self, x_np: Tensor) -> Tensor:
        """Shape ``(..., n)``."""
        return self.eta.weighted_sum(x_np) - softplus_over_peaks(self.eta)

    @property
    def mean(self) -> Tensor:
        """Probabilities, shape ``(..., n, p)``."""
        return self.eta.dense().sigmoid()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """A dense draw."""
        return torch.bernoulli(self.mean.expand(sample_shape + self.shape()))


class PoissonPeaks(_Peaks):
    """Poisson(exposure * softmax(eta)_p) for every peak: A is exposure plus a logsumexp.

    Parameters
    ----------
    eta
        Logits.
    exposure_n
        Total rate of each cell, shape ``(n,)``.
    """

    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 1)

    def __init__(self, eta: Logits, exposure_n: Tensor) -> None:
        self.exposure_n = exposure_n
        super().__init__(eta)

    def log_prob(self, x_np: Tensor) -> Tensor:
        """Shape ``(..., n)``."""
        shift_n = self.exposure_n.log() - logsumexp_over_peaks(self.eta)
        log_rates_n = self.eta.weighted_sum(x_np) + totals(x_np) * shift_n
        return log_rates_n - self.exposure_n - _log_factorials(x_np)

    @property
    def mean(self) -> Tensor:
        """Rates, shape ``(..., n, p)``."""
        return self.exposure_n.unsqueeze(-1) * self.eta.dense().softmax(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """A dense draw."""
        return torch.poisson(self.mean.expand(sample_shape + self.shape()))


class LogPoisson(dist.Poisson):
    """Poisson(exp(log_rate)), whose log-probability has no logarithm of a rate that underflows.

    Parameters
    ----------
    log_rate
        Any shape, which is the batch shape.
    """

    def __init__(self, log_rate: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> LogPoisson:
        """Of a larger batch shape."""
        new: LogPoisson = self._get_checked_instance(LogPoisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        super().expand(batch_shape, new)
        return new

    def log_prob(self, x: Tensor) -> Tensor:
        """Shape of the batch."""
        if self._validate_args:
            self._validate_sample(x)
        log_prob: Tensor = x * self.log_rate - self.rate - torch.lgamma(x + 1)
        return log_prob


def _log_factorials(x_np: Tensor) -> Tensor:
    """sum_p log x_p!, shape ``(n,)``; zeros have none."""
    if not is_sparse(x_np):
        return torch.lgamma(x_np + 1).sum(-1)
    return totals(with_values(x_np, torch.lgamma(x_np.values() + 1)))
