"""The objectives in closed form, term by term: the hand-derived twins of the programs.

Each objective is written with the same five terms, so that one sees where two of them differ:

    log p(x|z)   log p(z|c)   log p(c)   -log q(z|x)   -log q(c|.)
"""

from __future__ import annotations

import math

from torch import Tensor

from pyro_scale.objectives import terms
from pyro_scale.objectives.point import EXACT, Constants, Point, Terms

__all__ = [
    "collapsed",
    "importance_weighted",
    "mean_field",
    "mean_field_at_z",
    "scale",
]


def _average(weight_nk: Tensor, value_nk: Tensor) -> Tensor:
    return (weight_nk * value_nk).sum(-1)


def collapsed(at: Point) -> Terms:
    r"""c summed out; one sample of the bound L_str of q(z|x), and of q(z|x) p(c|z).

    .. math:: \log p(x|z) + \log \sum_c \pi_c N(z; \mu_c, \mathrm{var}_c) - \log q(z|x)

    whose second term is :math:`\sum_c \gamma_c(z)\,[\log p(z|c) + \log \pi_c -
    \log \gamma_c(z)]` (derivations, chapter 4).

    Parameters
    ----------
    at
        Where to evaluate, ``z_nd`` of shape ``(..., n, d)``.

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.objectives import evaluate
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> at = evaluate(vae, cells, torch.zeros(5, 2))
    >>> collapsed(at).total().shape
    torch.Size([5])
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

    Parameters
    ----------
    at
        Where to evaluate, ``z_nd`` of shape ``(s, n, d)``.

    Returns
    -------
    Tensor
        Shape ``(n,)``: per cell, in nats.

    References
    ----------
    Burda et al. 2016, *Importance weighted autoencoders*, arXiv:1509.00519, eq. 8.

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.objectives import evaluate
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> at = evaluate(vae, cells, torch.randn(4, 5, 2))
    >>> importance_weighted(at).shape
    torch.Size([5])
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

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.objectives import evaluate
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> at = evaluate(vae, cells, torch.zeros(5, 2))
    >>> mean_field(at).total().shape
    torch.Size([5])
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

    Parameters
    ----------
    at, log_g_nk
        As there; log g(c|x) has shape ``(n, k)``.

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.objectives import evaluate
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> at = evaluate(vae, cells, torch.zeros(5, 2))
    >>> mean_field_at_z(at).total().shape
    torch.Size([5])
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

    Parameters
    ----------
    at
        Where to evaluate, ``z_nd`` of shape ``(..., n, d)``.
    constants
        What the code adds to the formula.

    References
    ----------
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7, Methods; jsxlei/SCALE ``loss.py``.

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.objectives import evaluate
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> at = evaluate(vae, cells, torch.zeros(5, 2))
    >>> scale(at).total().shape
    torch.Size([5])
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
