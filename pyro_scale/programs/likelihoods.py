"""The likelihoods p(x|z): Bernoulli for 0/1 accessibility, Poisson for counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_scale.ops.peak_sums import Logits, logsumexp_over_peaks, softplus_over_peaks
from pyro_scale.ops.sparse import is_sparse, totals, with_values
from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.networks import linear, mlp

__all__ = [
    "BernoulliLikelihood",
    "BernoulliPeaks",
    "LogPoisson",
    "PoissonLikelihood",
    "PoissonPeaks",
]


_BATCH_INPUT = 7.0
"""Value of the input that encodes a cell's batch, where one-hot encoding has a one.

A Gaussian prior with precision 50 on the decoder's weights is then one with precision 50/49 on the
batches' offsets of the logits. With precision 50 on the offsets themselves, which few cells
outweigh, they stayed at a quarter of their size, and z encoded the batch.
"""


class _DecoderLikelihood(nn.Module):
    """Decoder network (z, batch) -> eta_np; linear if it has no hidden layers.

    Parameters
    ----------
    n_peaks, n_latent, hidden
        Numbers of peaks (P) and of latent dimensions (D), widths of the hidden layers.
    n_batches
        Number of batches that cells come from. With more than one, the one-hot encoded batch times
        seven is concatenated to z, so that z need not encode the batch.

    Attributes
    ----------
    binary
        Whether x is 0/1 and E[x|z] a probability; otherwise x is a count and E[x|z] a rate.
    """

    binary: ClassVar[bool]

    def __init__(
        self, n_peaks: int, n_latent: int, hidden: Sequence[int], n_batches: int = 1
    ) -> None:
        super().__init__()
        self.n_batches = n_batches
        sizes = [n_latent + (n_batches if n_batches > 1 else 0), *hidden]
        self.hidden = mlp(sizes)
        self.peaks = linear(sizes[-1], n_peaks)

    def features(self, z_nd: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """Return the input of the decoder's last layer for ``z_nd`` and ``batch_n``.

        The result has shape ``(..., n, r)``.
        """
        if self.n_batches > 1:
            if batch_n is None:
                raise ValueError(
                    f"the decoder is conditioned on {self.n_batches} batches: give batch_n."
                )
            batch_nb = self.batch_inputs(batch_n).to(z_nd)
            z_nd = torch.cat([z_nd, batch_nb.expand(*z_nd.shape[:-1], -1)], -1)
        h_nr: Tensor = self.hidden(z_nd)
        return h_nr

    def batch_inputs(self, batch_n: Tensor) -> Tensor:
        """Return the inputs that encode the batches ``batch_n``, shape ``(n, b)``: 7 or 0."""
        return _BATCH_INPUT * F.one_hot(batch_n, self.n_batches)

    @torch.no_grad()
    def rescale_batch_offsets(self) -> None:
        """Convert, in place, weights that were trained with a one for a cell's batch.

        Models that were saved with schema version 5 have such weights.
        """
        if self.n_batches > 1:
            first = next(self.hidden.parameters(), self.peaks.weight)
            first[:, -self.n_batches :] /= _BATCH_INPUT

    def eta(self, z_nd: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """Return the decoder's output for ``z_nd`` and ``batch_n``, shape ``(..., n, p)``."""
        eta_np: Tensor = self.peaks(self.features(z_nd, batch_n))
        return eta_np

    def _logits(self, z_nd: Tensor, cells: CellBatch, shift_n: Tensor | None = None) -> Logits:
        """Return the factors of the logits eta_np + shift_n, without an array of cells x peaks."""
        h_nr = self.features(z_nd, cells.batch_n)
        return Logits(h_nr, self.peaks.weight, self.peaks.bias, shift_n)


class BernoulliLikelihood(_DecoderLikelihood):
    r"""x_np | z_n ~ Bernoulli(logits = decoder(z_n)_p + depth term).

    Without a depth term this is the likelihood of SCALE. With one, the logit of every peak is
    shifted by :math:`b \, (\log \mathrm{depth}_n - a)`, so that z need not encode sequencing depth.
    The slope *b* is learned from an initial value of one, which makes the odds proportional to
    depth; *a* is the mean log depth of the training cells.

    Parameters
    ----------
    n_peaks, n_latent, hidden, n_batches
        Numbers of peaks (P) and of latent dimensions (D), widths of the decoder's hidden layers,
        number of batches that it is conditioned on.
    mean_log_depth
        The center *a* of the depth term; None omits the term.

    Examples
    --------
    >>> likelihood, z_nd = BernoulliLikelihood(30, 2, mean_log_depth=1.5), torch.zeros(5, 2)
    >>> likelihood(z_nd, cells).log_prob(cells.x_np).shape
    torch.Size([5])
    >>> likelihood.mean(z_nd, cells).shape, likelihood.logits(z_nd, cells).shape
    (torch.Size([5, 30]), torch.Size([5, 30]))
    >>> likelihood.features(z_nd).shape, likelihood.eta(z_nd).shape  # without the depth term
    (torch.Size([5, 2]), torch.Size([5, 30]))
    >>> BernoulliLikelihood(30, 2, n_batches=2).batch_inputs(torch.tensor([0, 1]))
    tensor([[7., 0.],
            [0., 7.]])
    >>> likelihood.rescale_batch_offsets()  # of an old file; no effect without batches
    >>> likelihood.depth_term(cells.depth_n).shape
    torch.Size([5])
    >>> likelihood.draw(z_nd, cells, torch.Generator()).shape
    torch.Size([5, 30])
    """

    binary = True

    def __init__(
        self,
        n_peaks: int,
        n_latent: int,
        hidden: Sequence[int] = (),
        *,
        n_batches: int = 1,
        mean_log_depth: float | None = None,
    ) -> None:
        super().__init__(n_peaks, n_latent, hidden, n_batches)
        self.depth_slope: nn.Parameter | None = None
        if mean_log_depth is not None:
            self.depth_slope = nn.Parameter(torch.ones(()))
            self.register_buffer("mean_log_depth", torch.tensor(float(mean_log_depth)))
            self.mean_log_depth: Tensor

    def depth_term(self, depth_n: Tensor) -> Tensor | None:
        """Return b (log ``depth_n`` - a), shape ``(n,)``, or None without a depth term."""
        if self.depth_slope is None:
            return None
        return self.depth_slope * (depth_n.clamp_min(1.0).log() - self.mean_log_depth)

    def logits(self, z_nd: Tensor, cells: CellBatch) -> Tensor:
        """Return the logits of accessibility of ``cells`` at ``z_nd``, shape ``(..., n, p)``."""
        eta_np, shift_n = self.eta(z_nd, cells.batch_n), self.depth_term(cells.depth_n)
        return eta_np if shift_n is None else eta_np + shift_n.unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: CellBatch) -> dist.Distribution:
        """Return p(x|z), event shape ``(p,)``."""
        if cells.is_sparse:
            return BernoulliPeaks(self._logits(z_nd, cells, self.depth_term(cells.depth_n)))
        return dist.Bernoulli(logits=self.logits(z_nd, cells)).to_event(1)

    def mean(self, z_nd: Tensor, cells: CellBatch) -> Tensor:
        """Return E[x|z] of ``cells`` at ``z_nd``, probabilities, shape ``(..., n, p)``."""
        return torch.sigmoid(self.logits(z_nd, cells))

    def draw(self, z_nd: Tensor, cells: CellBatch, generator: torch.Generator) -> Tensor:
        """Draw x from p(x|z), shape ``(..., n, p)``.

        Parameters
        ----------
        z_nd
            Latent coordinates, shape ``(..., n, d)``.
        cells
            The cells, whose depth and batch enter p(x|z).
        generator
            Random number generator.
        """
        return torch.bernoulli(self.mean(z_nd, cells), generator=generator)


class PoissonLikelihood(_DecoderLikelihood):
    r"""x_np | z_n ~ Poisson(depth_n * softmax(decoder(z_n))_p).

    The cell's depth is its exposure, a covariate that the model is conditioned on. The softmax over
    peaks bounds the rates, which an exponential of the decoder's output would not.

    Parameters
    ----------
    n_peaks, n_latent, hidden, n_batches
        As in :class:`BernoulliLikelihood`.

    Examples
    --------
    >>> cells = CellBatch.from_counts(torch.poisson(torch.full((5, 30), 0.3)))
    >>> likelihood, z_nd = PoissonLikelihood(30, 2, ()), torch.zeros(5, 2)
    >>> likelihood(z_nd, cells).log_prob(cells.x_np).shape
    torch.Size([5])
    >>> likelihood.mean(z_nd, cells).shape, likelihood.log_rate(z_nd, cells).shape
    (torch.Size([5, 30]), torch.Size([5, 30]))
    >>> likelihood.features(z_nd).shape, likelihood.eta(z_nd).shape
    (torch.Size([5, 2]), torch.Size([5, 30]))
    >>> PoissonLikelihood(30, 2, (), n_batches=2).batch_inputs(torch.tensor([1]))
    tensor([[0., 7.]])
    >>> likelihood.rescale_batch_offsets()  # of an old file; no effect without batches
    >>> likelihood.draw(z_nd, cells, torch.Generator()).shape
    torch.Size([5, 30])
    """

    binary = False

    def log_rate(self, z_nd: Tensor, cells: CellBatch) -> Tensor:
        """Return the log rates of ``cells`` at ``z_nd``, shape ``(..., n, p)``."""
        log_fraction_np = F.log_softmax(self.eta(z_nd, cells.batch_n), dim=-1)
        return log_fraction_np + cells.depth_n.clamp_min(1.0).log().unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: CellBatch) -> dist.Distribution:
        """Return p(x|z), event shape ``(p,)``."""
        if cells.is_sparse:
            return PoissonPeaks(self._logits(z_nd, cells), cells.depth_n.clamp_min(1.0))
        return LogPoisson(self.log_rate(z_nd, cells)).to_event(1)

    def mean(self, z_nd: Tensor, cells: CellBatch) -> Tensor:
        """Return E[x|z] of ``cells`` at ``z_nd``, rates, shape ``(..., n, p)``."""
        return self.log_rate(z_nd, cells).exp()

    def draw(self, z_nd: Tensor, cells: CellBatch, generator: torch.Generator) -> Tensor:
        """Draw x from p(x|z), shape ``(..., n, p)``.

        Parameters
        ----------
        z_nd
            Latent coordinates, shape ``(..., n, d)``.
        cells
            The cells, whose depth and batch enter p(x|z).
        generator
            Random number generator.
        """
        return torch.poisson(self.mean(z_nd, cells), generator=generator)


class _IndependentPeaks(TorchDistribution):
    r"""Distribution of x_1 .. x_P, independent given the logits :math:`\eta_p`.

    They form an exponential family, :math:`\log p(x) = \sum_p x_p \eta_p - A(\eta) + \ldots`. The
    first sum runs over the non-zero entries of x, and A, the log normalizer, is computed in blocks
    of peaks, so that no array of cells x peaks is allocated.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, eta: Logits) -> None:
        self.eta = eta
        super().__init__(eta.h_nr.shape[:-1], eta.b_p.shape, validate_args=False)


class BernoulliPeaks(_IndependentPeaks):
    """Bernoulli(logits=eta_p) for every peak p; its log normalizer is sum_p softplus(eta_p)."""

    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def log_prob(self, x_np: Tensor) -> Tensor:
        """Return log p(x), shape ``(..., n)``."""
        return self.eta.weighted_sum(x_np) - softplus_over_peaks(self.eta)

    @property
    def mean(self) -> Tensor:
        """Probabilities of accessibility, shape ``(..., n, p)``."""
        return self.eta.dense().sigmoid()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw dense accessibility, shape ``sample_shape + (..., n, p)``."""
        return torch.bernoulli(self.mean.expand(sample_shape + self.shape()))


class PoissonPeaks(_IndependentPeaks):
    """Poisson(exposure * softmax(eta)_p) for every peak p.

    The log-probability needs no sum over all peaks other than the logsumexp of eta.

    Parameters
    ----------
    eta
        Factors of the logits.
    exposure_n
        Total rate of each cell, shape ``(n,)``.
    """

    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 1)

    def __init__(self, eta: Logits, exposure_n: Tensor) -> None:
        self.exposure_n = exposure_n
        super().__init__(eta)

    def log_prob(self, x_np: Tensor) -> Tensor:
        """Return log p(x), shape ``(..., n)``."""
        shift_n = self.exposure_n.log() - logsumexp_over_peaks(self.eta)
        log_rates_n = self.eta.weighted_sum(x_np) + totals(x_np) * shift_n
        return log_rates_n - self.exposure_n - _log_factorials(x_np)

    @property
    def mean(self) -> Tensor:
        """Rates, shape ``(..., n, p)``."""
        return self.exposure_n.unsqueeze(-1) * self.eta.dense().softmax(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw dense accessibility, shape ``sample_shape + (..., n, p)``."""
        return torch.poisson(self.mean.expand(sample_shape + self.shape()))


class LogPoisson(dist.Poisson):
    """Poisson(exp(log_rate)), whose log-probability is accurate even if the rate underflows to 0.

    Parameters
    ----------
    log_rate
        Log of the rate; its shape is the batch shape.
    """

    def __init__(self, log_rate: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> LogPoisson:
        """Return the distribution expanded to ``batch_shape``."""
        new: LogPoisson = self._get_checked_instance(LogPoisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        super().expand(batch_shape, new)
        return new

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), whose shape is the batch shape."""
        if self._validate_args:
            self._validate_sample(x)
        log_prob: Tensor = x * self.log_rate - self.rate - torch.lgamma(x + 1)
        return log_prob


def _log_factorials(x_np: Tensor) -> Tensor:
    """Return sum_p log x_p!, shape ``(n,)``; zeros contribute nothing."""
    if not is_sparse(x_np):
        return torch.lgamma(x_np + 1).sum(-1)
    return totals(with_values(x_np, torch.lgamma(x_np.values() + 1)))
