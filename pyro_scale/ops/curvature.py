r"""Sums of expectations and variances of many observations, for Newton steps.

The natural parameter of observation (i, j) is :math:`\eta_{ij} = a_i \cdot b_j + s_i + t_j`. Row i
of a factorization is fitted by Newton's method with the gradient and the negative Hessian

.. math:: \sum_j (x_{ij} - \mu_{ij}) \, c_j, \qquad \sum_j v_{ij} \, c_j c_j^T,

where :math:`\mu = A'(\eta)` and :math:`v = A''(\eta)` are the mean and the variance of x in an
exponential family with log normalizer A, and :math:`c_j` is what multiplies the parameters of row i
that change: all or part of :math:`b_j`. Rows can be peaks, whose parameters are decoder weights, or
cells, whose parameters are latent coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ExpectedSums", "expected_sums", "newton_step", "symmetric"]

_TILE = {"cpu": 512, "cuda": 8192}  # rows and columns at a time; a tile fits the L2 cache of a CPU
_MAX_LOG_RATE = 30.0  # so that rates stay finite in single precision, far from any optimum


class ExpectedSums(NamedTuple):
    """The sums over observations j of every row i.

    Attributes
    ----------
    mean_is
        sum_j mu_ij c_j, shape ``(i, s)``.
    curvature_iss
        sum_j v_ij c_j c_j^T, shape ``(i, s, s)``.
    """

    mean_is: Tensor
    curvature_iss: Tensor


def expected_sums(
    a_ir: Tensor,
    b_jr: Tensor,
    c_js: Tensor,
    shift_i: Tensor | None = None,
    shift_j: Tensor | None = None,
    *,
    binary: bool,
) -> ExpectedSums:
    """Return the sums of means and variances over observations j of every row i.

    They are computed in tiles, so that no array of all observations is allocated. Each tile costs
    an exponential per observation and three dense matrix products.

    Parameters
    ----------
    a_ir, b_jr
        Factors of the natural parameters, shapes ``(i, r)`` and ``(j, r)``.
    c_js
        The vectors :math:`c_j`, which multiply those parameters of a row that change, shape
        ``(j, s)``.
    shift_i, shift_j
        Shifts of the natural parameters, shapes ``(i,)`` and ``(j,)``, or None.
    binary
        Whether observations are Bernoulli with these logits; otherwise they are Poisson with these
        log rates.

    Examples
    --------
    >>> a_ir, b_jr = torch.zeros(4, 2), torch.ones(6, 2)
    >>> sums = expected_sums(a_ir, b_jr, b_jr, binary=True)
    >>> sums.mean_is[0], sums.curvature_iss[0, 0]
    (tensor([3., 3.]), tensor([1.5000, 1.5000]))
    """
    n_i, n_j, s = len(a_ir), len(b_jr), c_js.shape[1]
    row, column = torch.triu_indices(s, s, device=a_ir.device)
    squares_tj = (c_js[:, row] * c_js[:, column]).T.contiguous()
    c_sj = c_js.T.contiguous()
    # The shifts are one more input each, so that a tile of natural parameters is one product.
    one_i, one_j = torch.ones_like(a_ir[:, 0]), torch.ones_like(b_jr[:, 0])
    shift_i = 0 * one_i if shift_i is None else shift_i
    shift_j = 0 * one_j if shift_j is None else shift_j
    a_ri = torch.cat([a_ir.T, shift_i[None], one_i[None]])
    b_jr = torch.cat([b_jr, one_j[:, None], shift_j[:, None]], 1)
    mean_si, curvature_ti = a_ir.new_zeros(s, n_i), a_ir.new_zeros(len(row), n_i)
    tile = _TILE.get(a_ir.device.type, _TILE["cuda"])
    for i in _slices(n_i, tile):
        for j in _slices(n_j, tile):
            mean_ji = b_jr[j] @ a_ri[:, i]
            if binary:
                mean_ji.sigmoid_()
                variance_ji = torch.addcmul(mean_ji, mean_ji, mean_ji, value=-1)
            else:
                variance_ji = mean_ji.clamp_(max=_MAX_LOG_RATE).exp_()
            mean_si[:, i] += c_sj[:, j] @ mean_ji
            curvature_ti[:, i] += squares_tj[:, j] @ variance_ji
    return ExpectedSums(mean_si.T.contiguous(), symmetric(curvature_ti.T, s))


def symmetric(upper_nt: Tensor, size: int) -> Tensor:
    """Return symmetric matrices, ``(n, size, size)``, from their upper triangles, row by row.

    Examples
    --------
    >>> symmetric(torch.tensor([[1.0, 2.0, 3.0]]), 2)
    tensor([[[1., 2.],
             [2., 3.]]])
    """
    row, column = torch.triu_indices(size, size, device=upper_nt.device)
    full = upper_nt.new_empty(len(upper_nt), size, size)
    full[:, row, column] = upper_nt
    full[:, column, row] = upper_nt
    return full


def newton_step(gradient_nr: Tensor, curvature_nrr: Tensor, longest: float) -> Tensor:
    """Return the Newton steps curvature^-1 gradient, each of whose entries is at most ``longest``.

    The limit keeps a step from a point where the likelihood is flat from going too far. A row whose
    curvature is not positive definite in the arithmetic's precision does not move.

    Parameters
    ----------
    gradient_nr
        Gradients of the log-density, shape ``(n, r)``.
    curvature_nrr
        Negative Hessians, shape ``(n, r, r)``.
    longest
        Largest absolute value of an entry of a step.

    Examples
    --------
    >>> newton_step(torch.tensor([[2.0, 9.0]]), 2 * torch.eye(2)[None], longest=1.5)
    tensor([[1.0000, 1.5000]])
    """
    factor_nrr, failed_n = torch.linalg.cholesky_ex(curvature_nrr)
    step_nr = torch.cholesky_solve(gradient_nr.unsqueeze(-1), factor_nrr).squeeze(-1)
    step_nr[failed_n > 0] = 0
    return step_nr.nan_to_num_(0.0).clamp_(-longest, longest)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
