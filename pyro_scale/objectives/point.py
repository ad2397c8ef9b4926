"""What the closed forms are evaluated from, and the five terms that they give."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_scale.objectives import terms
from pyro_scale.programs import Cells, MixtureVAE, PoissonLikelihood

__all__ = ["EXACT", "PUBLISHED", "Constants", "Point", "Terms", "evaluate"]


class Constants(NamedTuple):
    """The small constants that the published SCALE code adds.

    Attributes
    ----------
    log_eps
        Added to the probabilities inside the logarithms of the likelihood.
    gamma_floor
        Added to every pi_c p(z|c) before gamma is normalised.
    var_eps
        Added to the component variances: once in gamma, twice in the loss.

    Examples
    --------
    >>> PUBLISHED
    Constants(log_eps=1e-08, gamma_floor=1e-10, var_eps=1e-08)
    """

    log_eps: float = 0.0
    gamma_floor: float = 0.0
    var_eps: float = 0.0


EXACT = Constants()
"""None added: the formulas themselves."""

PUBLISHED = Constants(log_eps=1e-8, gamma_floor=1e-10, var_eps=1e-8)
"""Those of PyPI ``scale`` 1.1.2."""


class Point(NamedTuple):
    """Everything the closed forms need, at one z per cell.

    Attributes
    ----------
    z_nd
        The sample of z, shape ``(..., n, d)``.
    loc_nd, var_nd
        Mean and variance of q(z|x), shape ``(n, d)``.
    log_pi_k, loc_kd, var_kd
        The prior's log weights ``(k,)``, means and variances ``(k, d)``. ``log_pi_k`` need not
        be normalised: the published code's is not.
    log_lik_n
        log p(x|z), shape ``(..., n)``.
    vae, cells
        What it was evaluated from, for a closed form with another likelihood or parameters of
        its own; the cells may be sparse (``cells.dense()``). :func:`evaluate` sets them.

    Examples
    --------
    Three cells, K = 2, D = 2; :func:`evaluate` makes one of a model's networks.

    >>> import torch
    >>> z_nd, loc_nd, var_nd = torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2)
    >>> log_pi_k, loc_kd, var_kd = torch.tensor([0.5, 0.5]).log(), torch.eye(2), torch.ones(2, 2)
    >>> at = Point(z_nd, loc_nd, var_nd, log_pi_k, loc_kd, var_kd, log_lik_n=torch.zeros(3))
    >>> at.log_p_z_given_c_nk.shape, at.expected_log_p_z_given_c_nk.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    >>> at.log_gamma_nk.exp()[0], at.log_g_star_nk.exp()[0]
    (tensor([0.5000, 0.5000]), tensor([0.5000, 0.5000]))
    """

    z_nd: Tensor
    loc_nd: Tensor
    var_nd: Tensor
    log_pi_k: Tensor
    loc_kd: Tensor
    var_kd: Tensor
    log_lik_n: Tensor
    vae: MixtureVAE | None = None
    cells: Cells | None = None

    @property
    def expected_log_p_z_given_c_nk(self) -> Tensor:
        """E_q(z|x)[log p(z|c)], shape ``(n, k)``."""
        return terms.expected_log_p_z_given_c(self.loc_nd, self.var_nd, self.loc_kd, self.var_kd)

    @property
    def log_p_z_given_c_nk(self) -> Tensor:
        """log p(z|c) at the sample, shape ``(..., n, k)``."""
        return terms.log_p_z_given_c(self.z_nd, self.loc_kd, self.var_kd)

    @property
    def log_gamma_nk(self) -> Tensor:
        """log p(c|z) at the sample, shape ``(..., n, k)``."""
        return terms.log_responsibilities(self.log_pi_k, self.log_p_z_given_c_nk)

    @property
    def log_g_star_nk(self) -> Tensor:
        """log g*, shape ``(n, k)``."""
        return terms.log_optimal_q_c(self.log_pi_k, self.expected_log_p_z_given_c_nk)


class Terms(NamedTuple):
    """An objective per cell, in nats, split into its five terms, each ``(..., n)``.

    Attributes
    ----------
    log_lik_n
        log p(x|z).
    log_p_z_n
        log p(z|c), averaged over c.
    log_p_c_n
        log p(c), averaged over c.
    minus_log_q_z_n
        -log q(z|x), or its expectation H.
    minus_log_q_c_n
        -log q(c|.), averaged over c.

    Examples
    --------
    >>> import torch
    >>> terms = Terms(torch.tensor([-9.0]), *torch.tensor([[-3.0], [-1.0], [2.0], [0.5]]))
    >>> terms.total(), terms.total(kl_weight=0.5)
    (tensor([-10.5000]), tensor([-9.7500]))
    """

    log_lik_n: Tensor
    log_p_z_n: Tensor
    log_p_c_n: Tensor
    minus_log_q_z_n: Tensor
    minus_log_q_c_n: Tensor

    def total(self, kl_weight: float = 1.0) -> Tensor:
        """The objective (a bound, to be maximised), shape ``(..., n)``.

        ``kl_weight`` multiplies all terms but the first (KL warm-up).
        """
        kl_terms_n = self.log_p_z_n + self.log_p_c_n + self.minus_log_q_z_n + self.minus_log_q_c_n
        return self.log_lik_n + kl_weight * kl_terms_n


def evaluate(
    vae: MixtureVAE,
    cells: Cells,
    z_nd: Tensor,
    *,
    moments: tuple[Tensor, Tensor] | None = None,
    constants: Constants = EXACT,
) -> Point:
    """Evaluate the networks and the prior at a sample of z.

    Parameters
    ----------
    vae
        The parameters.
    cells
        The minibatch.
    z_nd
        z of every cell, shape ``(..., n, d)``.
    moments
        Mean and variance of q(z|x), where they are at hand; None runs the encoder.
    constants
        ``log_eps`` is used here, in the Bernoulli likelihood.

    Returns
    -------
    Point
        With ``log_lik_n`` of shape ``(..., n)``.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> evaluate(vae, cells, torch.zeros(5, 2)).log_lik_n.shape
    torch.Size([5])
    """
    loc_nd, var_nd = vae.encoder(cells) if moments is None else moments
    given = cells
    if cells.is_sparse and constants.log_eps:
        cells = cells.dense()
    if cells.is_sparse:
        log_lik_n = vae.likelihood(z_nd, cells).log_prob(cells.x_np)
    elif isinstance(vae.likelihood, PoissonLikelihood):
        log_lik_n = terms.poisson_log_lik(vae.likelihood.log_rate(z_nd, cells), cells.x_np)
    else:
        logits_np = vae.likelihood.logits(z_nd, cells)
        log_lik_n = terms.bernoulli_log_lik(logits_np, cells.x_np, eps=constants.log_eps)
    prior = vae.prior
    return Point(
        z_nd,
        loc_nd,
        var_nd,
        prior.log_pi_k,
        prior.loc_kd,
        prior.var_kd,
        log_lik_n,
        vae,
        given,
    )
