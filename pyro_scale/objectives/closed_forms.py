"""The objectives in closed form, derived by hand, term by term.

Every closed form except the importance-weighted bound is a sum of the same five terms, so that one
can see in which terms two objectives differ. q(c|.) stands for the weights of c:

    log p(x|z)   log p(z|c)   log p(c)   -log q(z|x)   -log q(c|.)
"""

from __future__ import annotations

import math

from torch import Tensor

from pyro_scale.objectives import terms
from pyro_scale.objectives.evaluation import (
    NO_OFFSETS,
    ElboTerms,
    EvaluationPoint,
    NumericalOffsets,
)

__all__ = [
    "collapsed",
    "importance_weighted",
    "mean_field",
    "mean_field_at_z",
    "scale",
]


def _average(weight_nk: Tensor, value_nk: Tensor) -> Tensor:
    return (weight_nk * value_nk).sum(-1)


def collapsed(at: EvaluationPoint) -> ElboTerms:
    r"""The collapsed bound L_str at one sample of z: c is summed out.

    .. math:: \log p(x|z) + \log \sum_c \pi_c N(z; \mu_c, \mathrm{var}_c) - \log q(z|x)

    It is a one-sample estimate of the ELBO of q(z|x) under the mixture prior, which equals the ELBO
    of q(z|x) p(c|z). The second term equals :math:`\sum_c \gamma_c(z)\,[\log p(z|c) + \log \pi_c -
    \log \gamma_c(z)]` (derivations, chapter 4).

    Parameters
    ----------
    at
        Evaluation point with ``z_nd`` of shape ``(..., n, d)``.

    Examples
    --------
    >>> at = ps.objectives.evaluate(vae, cells, torch.zeros(5, 2))
    >>> collapsed(at).total().shape
    torch.Size([5])
    """
    log_p_z_given_c_nk = at.log_p_z_given_c_nk
    log_gamma_nk = terms.log_responsibilities(at.log_pi_k, log_p_z_given_c_nk)
    gamma_nk = log_gamma_nk.exp()
    return ElboTerms(
        at.log_lik_n,
        _average(gamma_nk, log_p_z_given_c_nk),
        _average(gamma_nk, at.log_pi_k),
        -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        -_average(gamma_nk, log_gamma_nk),
    )


def importance_weighted(at: EvaluationPoint) -> Tensor:
    r"""The importance-weighted bound (IWAE) over the S samples in the first dimension of z.

    .. math:: \log \tfrac1S \sum_s w_s, \quad \log w_s = \text{collapsed at } z_s

    Parameters
    ----------
    at
        Evaluation point with ``z_nd`` of shape ``(s, n, d)``.

    Returns
    -------
    Tensor
        The bound per cell, in nats, shape ``(n,)``.

    References
    ----------
    Burda et al. 2016, *Importance weighted autoencoders*, arXiv:1509.00519, eq. 8.

    Examples
    --------
    >>> at = ps.objectives.evaluate(vae, cells, torch.randn(4, 5, 2))
    >>> importance_weighted(at).shape
    torch.Size([5])
    """
    log_w_sn = collapsed(at).total()
    return log_w_sn.logsumexp(0) - math.log(log_w_sn.shape[0])


def mean_field(at: EvaluationPoint, log_g_nk: Tensor | None = None) -> ElboTerms:
    r"""The mean-field bound L_mf(g), the ELBO of q(z|x) g(c|x), at one sample of z.

    The log-densities of z are integrated over q(z|x); only log p(x|z) depends on the sample. H is
    the entropy of q(z|x).

    .. math:: \log p(x|z) + \sum_c g_c\,(e_c - \log g_c) + H, \quad
        e_c = \log\pi_c + E_{q(z|x)}[\log N(z; \mu_c, \mathrm{var}_c)]

    Parameters
    ----------
    at
        Evaluation point with ``z_nd`` of shape ``(..., n, d)``.
    log_g_nk
        log g(c|x), shape ``(n, k)``; if None, log g* of the optimal g* = softmax(e).

    Examples
    --------
    >>> at = ps.objectives.evaluate(vae, cells, torch.zeros(5, 2))
    >>> mean_field(at).total().shape
    torch.Size([5])
    """
    expected_nk = at.expected_log_p_z_given_c_nk
    log_g_nk = terms.log_optimal_q_c(at.log_pi_k, expected_nk) if log_g_nk is None else log_g_nk
    g_nk = log_g_nk.exp()
    return ElboTerms(
        at.log_lik_n,
        _average(g_nk, expected_nk),
        _average(g_nk, at.log_pi_k),
        terms.entropy_z(at.var_nd),
        -_average(g_nk, log_g_nk),
    )


def mean_field_at_z(at: EvaluationPoint, log_g_nk: Tensor | None = None) -> ElboTerms:
    r"""The bound of :func:`mean_field`, with the log-densities of z evaluated at the sample of z.

    .. math:: \log p(x|z) + \sum_c g_c\,[\log\pi_c + \log N(z; \mu_c, \mathrm{var}_c)
        - \log g_c] - \log q(z|x)

    Parameters
    ----------
    at
        Evaluation point with ``z_nd`` of shape ``(..., n, d)``.
    log_g_nk
        log g(c|x), shape ``(n, k)``; if None, log g*, as in :func:`mean_field`.

    Examples
    --------
    >>> at = ps.objectives.evaluate(vae, cells, torch.zeros(5, 2))
    >>> mean_field_at_z(at).total().shape
    torch.Size([5])
    """
    log_g_nk = at.log_g_star_nk if log_g_nk is None else log_g_nk
    g_nk = log_g_nk.exp()
    return ElboTerms(
        at.log_lik_n,
        _average(g_nk, at.log_p_z_given_c_nk),
        _average(g_nk, at.log_pi_k),
        -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        -_average(g_nk, log_g_nk),
    )


def scale(at: EvaluationPoint, *, offsets: NumericalOffsets = NO_OFFSETS) -> ElboTerms:
    r"""Minus the loss of SCALE, which uses gamma(z) = p(c|z) at one sample of z as q(c|x).

    .. math:: \log p(x|z) + \sum_c \gamma_c(z)\,(e_c - \log \gamma_c(z)) + H

    e_c = log pi_c + E_q(z|x)[log p(z|c)] and the entropy H of q(z|x) are the same as in the
    mean-field bound; the weights gamma at the sample are the same as in the collapsed bound. With
    ``offsets=SCALE_1_1_2_OFFSETS`` it equals ``elbo_SCALE`` of PyPI ``scale`` 1.1.2, including
    that code's numerical peculiarities.

    Parameters
    ----------
    at
        Evaluation point with ``z_nd`` of shape ``(..., n, d)``.
    offsets
        Constants that the published code adds to the formula; none by default.

    References
    ----------
    Xiong et al. 2019, doi:10.1038/s41467-019-12630-7, Methods; jsxlei/SCALE ``loss.py``.

    Examples
    --------
    >>> at = ps.objectives.evaluate(vae, cells, torch.zeros(5, 2))
    >>> scale(at).total().shape
    torch.Size([5])
    """
    in_gamma = at._replace(var_kd=at.var_kd + offsets.var_eps)
    in_loss = at._replace(var_kd=at.var_kd + 2 * offsets.var_eps)
    log_gamma_nk = terms.log_responsibilities(
        at.log_pi_k, in_gamma.log_p_z_given_c_nk, floor=offsets.gamma_floor
    )
    gamma_nk = log_gamma_nk.exp()
    return ElboTerms(
        at.log_lik_n,
        _average(gamma_nk, in_loss.expected_log_p_z_given_c_nk),
        _average(gamma_nk, at.log_pi_k),
        terms.entropy_z(at.var_nd),
        -_average(gamma_nk, log_gamma_nk),
    )
