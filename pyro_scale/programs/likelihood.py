"""p(x|z): what the decoder's output means."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_scale.programs.cells import Cells
from pyro_scale.programs.networks import linear, mlp
from pyro_scale.programs.over_peaks import Logits
from pyro_scale.programs.peaks import BernoulliPeaks, LogPoisson, PoissonPeaks

__all__ = ["BernoulliLikelihood", "PoissonLikelihood"]


class _Decoded(nn.Module):
    """A decoder network (z, batch) -> eta_np; linear when it has no hidden layers.

    Parameters
    ----------
    n_peaks, n_latent, hidden
        P, D and the widths of the hidden layers.
    n_batches
        Number of batches that cells come from. With more than one, each has its own input unit
        beside z (one-hot), so that z need not tell batches apart.
    """

    def __init__(
        self, n_peaks: int, n_latent: int, hidden: Sequence[int], n_batches: int = 1
    ) -> None:
        super().__init__()
        self.n_batches = n_batches
        sizes = [n_latent + (n_batches if n_batches > 1 else 0), *hidden]
        self.hidden = mlp(sizes)
        self.peaks = linear(sizes[-1], n_peaks)

    def features(self, z_nd: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """What the last, linear layer reads at ``z_nd`` (and ``batch_n``), shape ``(..., r)``."""
        if self.n_batches > 1:
            if batch_n is None:
                raise ValueError(
                    f"the decoder is conditioned on {self.n_batches} batches: give batch_n."
                )
            one_hot_nb = F.one_hot(batch_n, self.n_batches).to(z_nd)
            z_nd = torch.cat([z_nd, one_hot_nb.expand(*z_nd.shape[:-1], -1)], -1)
        h_nr: Tensor = self.hidden(z_nd)
        return h_nr

    def eta(self, z_nd: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """The decoder's output at ``z_nd`` (and ``batch_n``), shape ``(..., p)``."""
        eta_np: Tensor = self.peaks(self.features(z_nd, batch_n))
        return eta_np

    def _logits(self, z_nd: Tensor, cells: Cells, shift_n: Tensor | None = None) -> Logits:
        """eta plus a shift of all peaks, not multiplied out."""
        h_nr = self.features(z_nd, cells.batch_n)
        return Logits(h_nr, self.peaks.weight, self.peaks.bias, shift_n)


class BernoulliLikelihood(_Decoded):
    r"""x_np | z_n ~ Bernoulli(logits = decoder(z_n)_p + depth term).

    Without a depth term this is the likelihood of SCALE. With one, the logit of every peak is
    shifted by :math:`b \, (\log \mathrm{depth}_n - a)`, where *b* is learned (it starts at one:
    odds proportional to depth) and *a* is the mean log depth of the training cells, so that
    sequencing depth need not be stored in z.

    Parameters
    ----------
    n_peaks, n_latent, hidden, n_batches
        P, D, the widths of the decoder's hidden layers, the number of batches it knows.
    mean_log_depth
        *a*; None leaves the depth term out.

    Examples
    --------
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> likelihood, z_nd = BernoulliLikelihood(30, 2, mean_log_depth=1.5), torch.zeros(5, 2)
    >>> likelihood(z_nd, cells).log_prob(cells.x_np).shape
    torch.Size([5])
    >>> likelihood.mean(z_nd, cells).shape, likelihood.logits(z_nd, cells).shape
    (torch.Size([5, 30]), torch.Size([5, 30]))
    >>> likelihood.features(z_nd).shape, likelihood.eta(z_nd).shape  # without the depth term
    (torch.Size([5, 2]), torch.Size([5, 30]))
    >>> likelihood.depth_term(cells.depth_n).shape
    torch.Size([5])
    """

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
        """b (log ``depth_n`` - a), shape ``(n,)``, if there is one."""
        if self.depth_slope is None:
            return None
        return self.depth_slope * (depth_n.clamp_min(1.0).log() - self.mean_log_depth)

    def logits(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """Logits of accessibility of ``cells`` at ``z_nd``, shape ``(..., n, p)``."""
        eta_np, shift_n = self.eta(z_nd, cells.batch_n), self.depth_term(cells.depth_n)
        return eta_np if shift_n is None else eta_np + shift_n.unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: Cells) -> dist.Distribution:
        """p(x|z), event shape ``(p,)``."""
        if cells.is_sparse:
            return BernoulliPeaks(self._logits(z_nd, cells, self.depth_term(cells.depth_n)))
        return dist.Bernoulli(logits=self.logits(z_nd, cells)).to_event(1)

    def mean(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """E[x|z] of ``cells`` at ``z_nd``, probabilities, shape ``(..., n, p)``."""
        return torch.sigmoid(self.logits(z_nd, cells))


class PoissonLikelihood(_Decoded):
    r"""x_np | z_n ~ Poisson(depth_n * softmax(decoder(z_n))_p).

    The cell's depth is its exposure: a covariate that is conditioned on. The softmax over
    peaks bounds the rate, which a bare exponential would not.

    Parameters
    ----------
    n_peaks, n_latent, hidden, n_batches
        As of :class:`BernoulliLikelihood`.

    Examples
    --------
    >>> cells = Cells.from_counts(torch.poisson(torch.full((5, 30), 0.3)))
    >>> likelihood, z_nd = PoissonLikelihood(30, 2, ()), torch.zeros(5, 2)
    >>> likelihood(z_nd, cells).log_prob(cells.x_np).shape
    torch.Size([5])
    >>> likelihood.mean(z_nd, cells).shape, likelihood.log_rate(z_nd, cells).shape
    (torch.Size([5, 30]), torch.Size([5, 30]))
    >>> likelihood.features(z_nd).shape, likelihood.eta(z_nd).shape
    (torch.Size([5, 2]), torch.Size([5, 30]))
    """

    def log_rate(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """Log rates of ``cells`` at ``z_nd``, shape ``(..., n, p)``."""
        log_share_np = F.log_softmax(self.eta(z_nd, cells.batch_n), dim=-1)
        return log_share_np + cells.depth_n.clamp_min(1.0).log().unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: Cells) -> dist.Distribution:
        """p(x|z), event shape ``(p,)``."""
        if cells.is_sparse:
            return PoissonPeaks(self._logits(z_nd, cells), cells.depth_n.clamp_min(1.0))
        return LogPoisson(self.log_rate(z_nd, cells)).to_event(1)

    def mean(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """E[x|z] of ``cells`` at ``z_nd``, rates, shape ``(..., n, p)``."""
        return self.log_rate(z_nd, cells).exp()
