"""The Gaussian-mixture prior p(c) p(z|c)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions.transforms import SoftplusTransform

__all__ = ["MixturePrior"]

_inverse_softplus = SoftplusTransform().inv


class MixturePrior(nn.Module):
    r"""Mixture of K diagonal Gaussians over a D-dimensional latent space.

    .. math:: p(z) = \sum_{c=1}^K \pi_c \, N(z; \mu_c, \mathrm{diag}(\mathrm{var}_c))

    For every value of the parameters the weights lie on the simplex (softmax of ``logits_k``) and
    the variances are positive (softplus of ``raw_var_kd`` plus a floor). The published SCALE code
    guarantees neither.

    Parameters
    ----------
    n_components
        K, the number of mixture components.
    n_latent
        D, the dimension of the latent space.
    min_var
        Lower bound of every component variance, in squared latent units.

    References
    ----------
    Jiang et al. 2017, *Variational deep embedding*, arXiv:1611.05148, eq. 2-3.
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7.

    Examples
    --------
    >>> prior = MixturePrior(n_components=3, n_latent=2)
    >>> prior.n_components, prior.log_pi_k.shape, prior.var_kd.shape
    (3, torch.Size([3]), torch.Size([3, 2]))
    >>> c_n = prior.weight().sample((5,))
    >>> z_nd = prior.component(c_n).sample()
    >>> prior.mixture().log_prob(z_nd).shape, prior.log_responsibilities(z_nd).shape
    (torch.Size([5]), torch.Size([5, 3]))
    >>> prior.log_optimal_q_c(z_nd, torch.ones_like(z_nd)).shape
    torch.Size([5, 3])
    >>> prior.resize(4)
    >>> prior.set_components(torch.full((4,), 0.25), torch.randn(4, 2), torch.ones(4, 2))
    """

    def __init__(self, n_components: int, n_latent: int, *, min_var: float = 1e-4) -> None:
        super().__init__()
        self.min_var = min_var
        self.logits_k = nn.Parameter(torch.zeros(n_components))
        self.loc_kd = nn.Parameter(torch.randn(n_components, n_latent))
        self.raw_var_kd = nn.Parameter(torch.empty(n_components, n_latent))
        with torch.no_grad():
            self.raw_var_kd.copy_(_inverse_softplus(torch.ones_like(self.raw_var_kd) - min_var))

    @property
    def n_components(self) -> int:
        """K, the number of mixture components."""
        return self.loc_kd.shape[0]

    @property
    def log_pi_k(self) -> Tensor:
        """Log mixture weights, shape ``(K,)``; their exponentials sum to one."""
        return F.log_softmax(self.logits_k, dim=-1)

    @property
    def var_kd(self) -> Tensor:
        """Component variances, shape ``(K, D)``."""
        return F.softplus(self.raw_var_kd) + self.min_var

    def weight(self) -> dist.Distribution:
        """Return p(c) = Categorical(pi)."""
        return dist.Categorical(logits=self.log_pi_k)

    def component(self, c: Tensor) -> dist.Distribution:
        """Return p(z|c) = Normal(mu_c, diag(var_c)), for component indices ``c`` of any shape."""
        return dist.Normal(self.loc_kd[c], self.var_kd.sqrt()[c]).to_event(1)

    def mixture(self) -> dist.Distribution:
        """Return p(z), the mixture density with c summed out."""
        components = dist.Normal(self.loc_kd, self.var_kd.sqrt()).to_event(1)
        return dist.MixtureSameFamily(self.weight(), components)

    def log_responsibilities(self, z_nd: Tensor) -> Tensor:
        r"""Return log p(c|z), the log responsibilities at ``z_nd``, shape ``(..., K)``.

        .. math:: \gamma_c(z) = \pi_c N(z; \mu_c, \mathrm{var}_c) \,/\, p(z)
        """
        components = dist.Normal(self.loc_kd, self.var_kd.sqrt()).to_event(1)
        return F.log_softmax(self.log_pi_k + components.log_prob(z_nd.unsqueeze(-2)), dim=-1)

    def log_optimal_q_c(self, loc_nd: Tensor, var_nd: Tensor) -> Tensor:
        r"""Return log g*(c|x), shape ``(..., K)``.

        g* is the q(c|x) that maximizes the ELBO among those independent of z.

        .. math::
            g^*_c \propto \exp\big(\log \pi_c + E_{q(z|x)}[\log N(z; \mu_c, \mathrm{var}_c)]\big)

        Parameters
        ----------
        loc_nd, var_nd
            Mean and variance of q(z|x), shape ``(..., D)``.
        """
        loc_n1d, var_n1d = loc_nd.unsqueeze(-2), var_nd.unsqueeze(-2)
        quadratic_nkd = (var_n1d + (loc_n1d - self.loc_kd).square()) / self.var_kd
        expected_nk = -0.5 * (math.log(2 * math.pi) + self.var_kd.log() + quadratic_nkd).sum(-1)
        return F.log_softmax(self.log_pi_k + expected_nk, dim=-1)

    def resize(self, n_components: int) -> None:
        """Replace the parameters by newly initialized ones for ``n_components`` components.

        Device and dtype remain the same.
        """
        other = MixturePrior(n_components, self.loc_kd.shape[1], min_var=self.min_var)
        other = other.to(self.loc_kd)
        self.logits_k, self.loc_kd = other.logits_k, other.loc_kd
        self.raw_var_kd = other.raw_var_kd

    @torch.no_grad()
    def set_components(self, pi_k: Tensor, loc_kd: Tensor, var_kd: Tensor) -> None:
        """Set the weights, means and variances of the components in place.

        Smaller variances are raised to ``2 * min_var``, and smaller weights to ``0.1 / K`` before
        normalization, so that training can still assign cells to an empty component.

        Parameters
        ----------
        pi_k, loc_kd, var_kd
            Weights, means and variances, shapes ``(K,)``, ``(K, D)`` and ``(K, D)``.
        """
        self.logits_k.copy_(pi_k.clamp_min(0.1 / len(pi_k)).log())
        self.loc_kd.copy_(loc_kd)
        self.raw_var_kd.copy_(_inverse_softplus(var_kd.clamp_min(2 * self.min_var) - self.min_var))
