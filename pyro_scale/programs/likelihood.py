"""p(x|z): what the decoder's output means."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_scale.programs.cells import Cells
from pyro_scale.programs.networks import linear, mlp

__all__ = ["BernoulliLikelihood", "PoissonLikelihood"]


class _Decoded(nn.Module):
    """A decoder network z -> eta_np; linear when it has no hidden layers."""

    def __init__(self, n_peaks: int, n_latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.hidden = mlp([n_latent, *hidden])
        self.peaks = linear([n_latent, *hidden][-1], n_peaks)

    def eta(self, z_nd: Tensor) -> Tensor:
        """The decoder's output, shape ``(..., p)``."""
        return self.peaks(self.hidden(z_nd))


class BernoulliLikelihood(_Decoded):
    r"""x_np | z_n ~ Bernoulli(logits = decoder(z_n)_p + depth term).

    Without a depth term this is the likelihood of SCALE. With one, the logit of every peak is
    shifted by :math:`b \, (\log \mathrm{depth}_n - a)`, where *b* is learned (it starts at one:
    odds proportional to depth) and *a* is the mean log depth of the training cells, so that
    sequencing depth need not be stored in z.

    Parameters
    ----------
    n_peaks, n_latent, hidden
        P, D and the widths of the decoder's hidden layers.
    mean_log_depth
        *a*; None leaves the depth term out.
    """

    def __init__(
        self,
        n_peaks: int,
        n_latent: int,
        hidden: Sequence[int] = (),
        *,
        mean_log_depth: float | None = None,
    ) -> None:
        super().__init__(n_peaks, n_latent, hidden)
        self.depth_slope: nn.Parameter | None = None
        if mean_log_depth is not None:
            self.depth_slope = nn.Parameter(torch.ones(()))
            self.register_buffer("mean_log_depth", torch.tensor(float(mean_log_depth)))
            self.mean_log_depth: Tensor

    def logits(self, z_nd: Tensor, depth_n: Tensor) -> Tensor:
        """Logits of accessibility, shape ``(..., n, p)``."""
        eta_np = self.eta(z_nd)
        if self.depth_slope is None:
            return eta_np
        log_depth_n = depth_n.clamp_min(1.0).log() - self.mean_log_depth
        return eta_np + (self.depth_slope * log_depth_n).unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: Cells) -> dist.Distribution:
        """p(x|z), event shape ``(p,)``."""
        return dist.Bernoulli(logits=self.logits(z_nd, cells.depth_n)).to_event(1)

    def mean(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """E[x|z], probabilities of accessibility, shape ``(..., n, p)``."""
        return torch.sigmoid(self.logits(z_nd, cells.depth_n))


class PoissonLikelihood(_Decoded):
    r"""x_np | z_n ~ Poisson(depth_n * softmax(decoder(z_n))_p).

    The cell's depth is its exposure: a covariate that is conditioned on. The softmax over
    peaks bounds the rate, which a bare exponential would not.
    """

    def log_rate(self, z_nd: Tensor, depth_n: Tensor) -> Tensor:
        """Log rates, shape ``(..., n, p)``."""
        log_share_np = F.log_softmax(self.eta(z_nd), dim=-1)
        return log_share_np + depth_n.clamp_min(1.0).log().unsqueeze(-1)

    def forward(self, z_nd: Tensor, cells: Cells) -> dist.Distribution:
        """p(x|z), event shape ``(p,)``."""
        return dist.Poisson(self.mean(z_nd, cells)).to_event(1)

    def mean(self, z_nd: Tensor, cells: Cells) -> Tensor:
        """E[x|z], rates, shape ``(..., n, p)``."""
        rate_np = self.log_rate(z_nd, cells.depth_n).exp()
        return rate_np + torch.finfo(rate_np.dtype).tiny  # a rate that underflows keeps a log
