r"""The terms of the ELBO, derived by hand: one function per term.

The functions use no Pyro distributions, so that they are an independent check of Pyro's
estimators. Shapes: n cells, p peaks, d latent dimensions, k components; ``...`` are leading
sample dimensions. All values are in nats and computed in log space.

The arguments ``floor`` and ``eps`` are constants of the published SCALE code. They are zero in
the exact formulas.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bernoulli_log_lik",
    "entropy_z",
    "expected_log_p_z_given_c",
    "kl_categorical",
    "log_optimal_q_c",
    "log_p_z_given_c",
    "log_q_z",
    "log_responsibilities",
    "poisson_log_lik",
]

LOG_2PI = math.log(2 * math.pi)


def bernoulli_log_lik(logits_np: Tensor, x_np: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""Bernoulli log-likelihood log p(x|z) of binary peaks, shape ``(..., n)``.

    .. math:: \sum_p x_p \ell_p - \mathrm{softplus}(\ell_p)

    With ``eps``, the formula of the published code on probabilities :math:`s = \sigma(\ell)`,
    :math:`\sum_p x_p \log(s_p + \epsilon) + (1 - x_p) \log(1 - s_p + \epsilon)`.

    Parameters
    ----------
    logits_np
        Logits of an accessible peak, shape ``(..., n, p)``.
    x_np
        Binary accessibility (0 or 1), shape ``(n, p)``.
    eps
        Constant added inside the logarithms.

    Examples
    --------
    >>> bernoulli_log_lik(torch.zeros(5, 4), torch.ones(5, 4))[0]
    tensor(-2.7726)
    """
    if eps == 0.0:
        return (x_np * logits_np - F.softplus(logits_np)).sum(-1)
    s_np = torch.sigmoid(logits_np)
    return (x_np * torch.log(s_np + eps) + (1 - x_np) * torch.log(1 - s_np + eps)).sum(-1)


def poisson_log_lik(log_rate_np: Tensor, x_np: Tensor) -> Tensor:
    r"""Poisson log-likelihood log p(x|z) of counts, shape ``(..., n)``.

    .. math:: \sum_p x_p \log \lambda_p - \lambda_p - \log \Gamma(x_p + 1)

    Parameters
    ----------
    log_rate_np
        Logarithm of the rate lambda, shape ``(..., n, p)``.
    x_np
        Counts, shape ``(n, p)``.

    Examples
    --------
    >>> poisson_log_lik(torch.zeros(5, 4), torch.ones(5, 4))[0]
    tensor(-4.)
    """
    return (x_np * log_rate_np - log_rate_np.exp() - torch.lgamma(x_np + 1)).sum(-1)


def log_p_z_given_c(z_nd: Tensor, loc_kd: Tensor, var_kd: Tensor) -> Tensor:
    r"""log p(z|c) = log N(z; mu_c, var_c) for every c, shape ``(..., n, k)``.

    .. math:: -\tfrac12 \sum_d \log 2\pi\,\mathrm{var}_{cd} + (z_d-\mu_{cd})^2/\mathrm{var}_{cd}

    Parameters
    ----------
    z_nd
        Sample of z, shape ``(..., n, d)``.
    loc_kd, var_kd
        The components' means and variances, shape ``(k, d)``.

    Examples
    --------
    >>> log_p_z_given_c(torch.zeros(5, 2), torch.zeros(3, 2), torch.ones(3, 2)).shape
    torch.Size([5, 3])
    """
    square_nkd = (z_nd.unsqueeze(-2) - loc_kd).square() / var_kd
    return -0.5 * (LOG_2PI + var_kd.log() + square_nkd).sum(-1)


def expected_log_p_z_given_c(
    loc_nd: Tensor, var_nd: Tensor, loc_kd: Tensor, var_kd: Tensor
) -> Tensor:
    r"""E_q(z|x)[log N(z; mu_c, var_c)] for every c, shape ``(..., n, k)``.

    .. math::
        -\tfrac12 \sum_d \log 2\pi\,\mathrm{var}_{cd}
        + (\sigma_d^2 + (m_d - \mu_{cd})^2)/\mathrm{var}_{cd}

    where :math:`m` and :math:`\sigma^2` are the mean and the variance of q(z|x).

    Parameters
    ----------
    loc_nd, var_nd
        Mean and variance of q(z|x), shape ``(..., n, d)``.
    loc_kd, var_kd
        The components' means and variances, shape ``(k, d)``.

    Examples
    --------
    >>> q_z = torch.zeros(5, 2), torch.ones(5, 2)
    >>> components = torch.zeros(3, 2), torch.ones(3, 2)
    >>> expected_log_p_z_given_c(*q_z, *components).shape
    torch.Size([5, 3])
    """
    square_nkd = (loc_nd.unsqueeze(-2) - loc_kd).square() + var_nd.unsqueeze(-2)
    return -0.5 * (LOG_2PI + var_kd.log() + square_nkd / var_kd).sum(-1)


def log_q_z(z_nd: Tensor, loc_nd: Tensor, var_nd: Tensor) -> Tensor:
    r"""log q(z|x) at a sample of z, shape ``(..., n)``.

    .. math:: -\tfrac12 \sum_d \log 2\pi\sigma_d^2 + (z_d - m_d)^2/\sigma_d^2

    Parameters
    ----------
    z_nd
        Sample of z, shape ``(..., n, d)``.
    loc_nd, var_nd
        Mean and variance of q(z|x), shape ``(..., n, d)``.

    Examples
    --------
    >>> log_q_z(torch.zeros(5, 2), torch.zeros(5, 2), torch.ones(5, 2))[0]
    tensor(-1.8379)
    """
    return -0.5 * (LOG_2PI + var_nd.log() + (z_nd - loc_nd).square() / var_nd).sum(-1)


def entropy_z(var_nd: Tensor) -> Tensor:
    r"""Entropy H of q(z|x), shape ``(..., n)``.

    .. math:: \tfrac12 \sum_d 1 + \log 2\pi\sigma_d^2

    Parameters
    ----------
    var_nd
        Variance of q(z|x), shape ``(..., n, d)``.

    Examples
    --------
    >>> entropy_z(torch.ones(5, 2))[0]
    tensor(2.8379)
    """
    return 0.5 * (1 + LOG_2PI + var_nd.log()).sum(-1)


def log_responsibilities(
    log_pi_k: Tensor, log_p_z_given_c_nk: Tensor, *, floor: float = 0.0
) -> Tensor:
    r"""Log responsibilities log gamma_c(z) = log p(c|z), shape ``(..., n, k)``.

    .. math:: \gamma_c(z) = \pi_c N(z; \mu_c, \mathrm{var}_c) \,/\, p(z)

    With ``floor``, the formula of the published code, which adds ``floor`` to every
    pi_c N(z; mu_c, var_c) before normalizing. The responsibilities become uniform where all of
    these are far below ``floor``.

    Parameters
    ----------
    log_pi_k
        Log weights of the components, shape ``(k,)``.
    log_p_z_given_c_nk
        Result of :func:`log_p_z_given_c`, shape ``(..., n, k)``.
    floor
        Constant added to every pi_c N(z; mu_c, var_c).

    Examples
    --------
    >>> log_responsibilities(torch.zeros(2), torch.tensor([[0.0, 100.0]])).exp()
    tensor([[3.7835e-44, 1.0000e+00]])
    """
    joint_nk = log_pi_k + log_p_z_given_c_nk
    if floor > 0.0:
        joint_nk = (joint_nk.exp() + floor).log()
    return F.log_softmax(joint_nk, dim=-1)


def log_optimal_q_c(log_pi_k: Tensor, expected_log_p_z_given_c_nk: Tensor) -> Tensor:
    r"""log g*(c|x), the q(c|x) that maximizes the mean-field bound, shape ``(..., n, k)``.

    .. math:: g^* = \mathrm{softmax}_c(e_c), \quad
        e_c = \log\pi_c + E_{q(z|x)}[\log N(z; \mu_c, \mathrm{var}_c)]

    Parameters
    ----------
    log_pi_k
        Log weights of the components, shape ``(k,)``.
    expected_log_p_z_given_c_nk
        Result of :func:`expected_log_p_z_given_c`, shape ``(..., n, k)``.

    Examples
    --------
    >>> log_optimal_q_c(torch.tensor([0.2, 0.8]).log(), torch.zeros(5, 2)).exp()[0]
    tensor([0.2000, 0.8000])
    """
    return F.log_softmax(log_pi_k + expected_log_p_z_given_c_nk, dim=-1)


def kl_categorical(log_p_k: Tensor, log_q_k: Tensor) -> Tensor:
    r"""KL divergence between two distributions of c, given their logs, shape ``(...)``.

    .. math:: \mathrm{KL}(p \| q) = \sum_c p_c \, (\log p_c - \log q_c)

    Unlike torch's own, it is finite where a probability underflows but its log does not.

    Parameters
    ----------
    log_p_k, log_q_k
        Log probabilities, shape ``(..., k)``.

    Examples
    --------
    >>> kl_categorical(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, -800.0]))
    tensor(399.3068)
    """
    return (log_p_k.exp() * (log_p_k - log_q_k)).sum(-1)
