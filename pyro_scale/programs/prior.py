"""The Gaussian-mixture prior p(c) p(z|c)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MixturePrior", "inverse_softplus"]


def inverse_softplus(y: Tensor) -> Tensor:
    """The x with ``softplus(x) = y``, for y > 0, without overflow.

    Examples
    --------
    >>> import torch
    >>> float(torch.nn.functional.softplus(inverse_softplus(torch.tensor(3.0))))
    3.0
    """
    return y + torch.log(-torch.expm1(-y))


class MixturePrior(nn.Module):
    r"""Mixture of K diagonal Gaussians over a D-dimensional latent space.

    .. math:: p(z) = \sum_{c=1}^K \pi_c \, N(z; \mu_c, \mathrm{diag}(\mathrm{var}_c))

    Weights live on the simplex (softmax of ``logits_k``) and variances are positive
    (softplus of ``raw_var_kd`` plus a floor) for every value of the parameters, which is what
    the published SCALE code leaves open.

    Parameters
    ----------
    n_components
        K, the number of mixture components.
    n_latent
        D, the dimension of the latent space.
    min_var
        Floor of every component variance, in squared latent units.

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
            self.raw_var_kd.copy_(inverse_softplus(torch.ones_like(self.raw_var_kd) - min_var))

    @property
    def n_components(self) -> int:
        """K, the number of mixture components."""
        return self.loc_kd.shape[0]

    @property
    def log_pi_k(self) -> Tensor:
        """Log mixture weights, shape ``(K,)``; ``exp`` of them sums to one."""
        return F.log_softmax(self.logits_k, dim=-1)

    @property
    def var_kd(self) -> Tensor:
        """Component variances, shape ``(K, D)``."""
        return F.softplus(self.raw_var_kd) + self.min_var

    def weight(self) -> dist.Distribution:
        """p(c): Categorical(pi)."""
        return dist.Categorical(logits=self.log_pi_k)

    def component(self, c: Tensor) -> dist.Distribution:
        """p(z|c): Normal(mu_c, diag(var_c)), for component indices ``c`` of any shape."""
        return dist.Normal(self.loc_kd[c], self.var_kd.sqrt()[c]).to_event(1)

    def mixture(self) -> dist.Distribution:
        """p(z): the mixture density, with c summed out."""
        components = dist.Normal(self.loc_kd, self.var_kd.sqrt()).to_event(1)
        return dist.MixtureSameFamily(self.weight(), components)

    def log_responsibilities(self, z_nd: Tensor) -> Tensor:
        r"""log p(c|z), the responsibilities at ``z_nd``, by log_softmax: shape ``(..., K)``.

        .. math:: \gamma_c(z) = \pi_c N(z; \mu_c, \mathrm{var}_c) \,/\, p(z)
        """
        components = dist.Normal(self.loc_kd, self.var_kd.sqrt()).to_event(1)
        return F.log_softmax(self.log_pi_k + components.log_prob(z_nd.unsqueeze(-2)), dim=-1)

    def log_optimal_q_c(self, loc_nd: Tensor, var_nd: Tensor) -> Tensor:
        r"""log g*_c, the best q(c|x) that does not see z: shape ``(..., K)``.

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
        """Give the mixture ``n_components``: fresh parameters, on its device and in its dtype."""
        other = MixturePrior(n_components, self.loc_kd.shape[1], min_var=self.min_var)
        other = other.to(self.loc_kd)
        self.logits_k, self.loc_kd = other.logits_k, other.loc_kd
        self.raw_var_kd = other.raw_var_kd

    @torch.no_grad()
    def set_components(self, pi_k: Tensor, loc_kd: Tensor, var_kd: Tensor) -> None:
        """Overwrite weights, means and variances (used by initialisation).

        Variances below twice the floor are raised to it; an empty weight is raised to
        a tenth of a uniform share, so that its component can still be found.

        Parameters
        ----------
        pi_k, loc_kd, var_kd
            Shapes ``(K,)``, ``(K, D)`` and ``(K, D)``.
        """
        self.logits_k.copy_(pi_k.clamp_min(0.1 / len(pi_k)).log())
        self.loc_kd.copy_(loc_kd)
        self.raw_var_kd.copy_(inverse_softplus(var_kd.clamp_min(2 * self.min_var) - self.min_var))
