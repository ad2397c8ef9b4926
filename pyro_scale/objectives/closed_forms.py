"""The objectives in closed form, term by term: the hand-derived twins of the programs.

Each objective is written with the same five terms, so that one sees where two of them differ:

    log p(x|z)   log p(z|c)   log p(c)   -log q(z|x)   -log q(c|.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pyro_scale.objectives import terms
from pyro_scale.programs import Cells, MixtureVAE, PoissonLikelihood

__all__ = [
    "EXACT",
    "PUBLISHED",
    "Constants",
    "Point",
    "Terms",
    "collapsed",
    "evaluate",
    "importance_weighted",
    "mean_field",
    "mean_field_at_z",
    "scale",
]


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
    """

    log_eps: float = 0.0
    gamma_floor: float = 0.0
    var_eps: float = 0.0


EXACT = Constants()
PUBLISHED = Constants(log_eps=1e-8, gamma_floor=1e-10, var_eps=1e-8)


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
    """An objective per cell, in nats, split into its five terms, each ``(..., n)``."""

    log_lik_n: Tensor
    """log p(x|z)"""
    log_p_z_n: Tensor
    """log p(z|c), averaged over c"""
    log_p_c_n: Tensor
    """log p(c), averaged over c"""
    minus_log_q_z_n: Tensor
    """-log q(z|x), or its expectation H"""
    minus_log_q_c_n: Tensor
    """-log q(c|.), averaged over c"""

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


def _average(weight_nk: Tensor, value_nk: Tensor) -> Tensor:
    return (weight_nk * value_nk).sum(-1)


def collapsed(at: Point) -> Terms:
    r"""c summed out; one sample of the bound L_str of q(z|x), and of q(z|x) p(c|z).

    .. math:: \log p(x|z) + \log \sum_c \pi_c N(z; \mu_c, \mathrm{var}_c) - \log q(z|x)

    whose second term is :math:`\sum_c \gamma_c(z)\,[\log p(z|c) + \log \pi_c -
    \log \gamma_c(z)]` (derivations, chapter 4).
    """
    log_gamma_nk = at.log_gamma_nk
    gamma_nk = log_gamma_nk.exp()
    return Terms(
        at.log_lik_n,
        _average(gamma_nk, at.log_p_z_given_c_nk),
        _average(gamma_nk, at.log_pi_k),
        -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        -_average(gamma_nk, log_gamma_nk),
    )


def importance_weighted(at: Point) -> Tensor:
    r"""The importance-weighted bound (IWAE) over the S samples in the first dimension of z.

    .. math:: \log \tfrac1S \sum_s w_s, \quad \log w_s = \text{collapsed at } z_s

    Returns
    -------
    Tensor
        Shape ``(n,)``: per cell, in nats.

    References
    ----------
    Burda et al. 2016, *Importance weighted autoencoders*, arXiv:1509.00519, eq. 8.
    """
    log_w_sn = collapsed(at).total()
    return log_w_sn.logsumexp(0) - math.log(log_w_sn.shape[0])


def mean_field(at: Point, log_g_nk: Tensor | None = None) -> Terms:
    r"""q(z|x) g(c|x) with z integrated out of both its log-densities: the bound L_mf(g).

    .. math:: \log p(x|z) + \sum_c g_c\,(e_c - \log g_c) + H, \quad
        e_c = \log\pi_c + E_{q(z|x)}[\log N(z; \mu_c, \mathrm{var}_c)]

    Parameters
    ----------
    at
        Where to evaluate.
    log_g_nk
        log g(c|x), shape ``(n, k)``; None takes the optimal g* = softmax(e).
    """
    log_g_nk = at.log_g_star_nk if log_g_nk is None else log_g_nk
    g_nk = log_g_nk.exp()
    return Terms(
        at.log_lik_n,
        _average(g_nk, at.expected_log_p_z_given_c_nk),
        _average(g_nk, at.log_pi_k),
        terms.entropy_z(at.var_nd),
        -_average(g_nk, log_g_nk),
    )


def mean_field_at_z(at: Point, log_g_nk: Tensor | None = None) -> Terms:
    r"""As :func:`mean_field`, with the log-densities of z at the sample instead.

    .. math:: \log p(x|z) + \sum_c g_c\,[\log\pi_c + \log N(z; \mu_c, \mathrm{var}_c)
        - \log g_c] - \log q(z|x)
    """
    log_g_nk = at.log_g_star_nk if log_g_nk is None else log_g_nk
    g_nk = log_g_nk.exp()
    return Terms(
        at.log_lik_n,
        _average(g_nk, at.log_p_z_given_c_nk),
        _average(g_nk, at.log_pi_k),
        -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        -_average(g_nk, log_g_nk),
    )


def scale(at: Point, *, constants: Constants = EXACT) -> Terms:
    r"""SCALE's loss (as a bound): gamma(z) at one sample, put in the place of q(c|x).

    .. math:: \log p(x|z) + \sum_c \gamma_c(z)\,(e_c - \log \gamma_c(z)) + H

    log p(z|c) is taken as the mean-field reading has it (its expectation, e_c) and
    log q(c|.) as the structured one (gamma at the sample). ``constants=PUBLISHED`` gives
    ``elbo_SCALE`` of PyPI ``scale`` 1.1.2, its quirks included.

    References
    ----------
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7, Methods; jsxlei/SCALE ``loss.py``.
    """
    in_gamma = at._replace(var_kd=at.var_kd + constants.var_eps)
    in_loss = at._replace(var_kd=at.var_kd + 2 * constants.var_eps)
    log_gamma_nk = terms.log_responsibilities(
        at.log_pi_k, in_gamma.log_p_z_given_c_nk, floor=constants.gamma_floor
    )
    gamma_nk = log_gamma_nk.exp()
    return Terms(
        at.log_lik_n,
        _average(gamma_nk, in_loss.expected_log_p_z_given_c_nk),
        _average(gamma_nk, at.log_pi_k),
        terms.entropy_z(at.var_nd),
        -_average(gamma_nk, log_gamma_nk),
    )
