"""Numerical integration over z for D <= 2, with the number of nodes doubled until convergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Rule",
    "converge",
    "gauss_hermite",
    "half_width",
    "legendre",
    "posterior_mode",
    "trapezoid",
]


class Rule(NamedTuple):
    """An integration rule: the integral of f over R^d is ``sum_m exp(log_w_m) f(x_m)``.

    Nodes have shape ``(m, d)``, log weights ``(m,)``.
    """

    x_md: Tensor
    log_w_m: Tensor


def _product(x: Tensor, log_w: Tensor, dimension: int) -> Rule:
    grids = torch.meshgrid(*[x] * dimension, indexing="ij")
    weights = torch.meshgrid(*[log_w] * dimension, indexing="ij")
    x_md = torch.stack([grid.reshape(-1) for grid in grids], -1)
    return Rule(x_md, torch.stack([weight.reshape(-1) for weight in weights]).sum(0))


def gauss_hermite(n: int, dimension: int) -> Rule:
    """Return the Gauss-Hermite rule for functions that decay like exp(-x^2/2).

    Parameters
    ----------
    n
        Number of nodes per dimension.
    dimension
        d, one or two.
    """
    x, w = np.polynomial.hermite_e.hermegauss(n)
    # The rule's weight function exp(-x^2/2) is divided out.
    log_w = np.log(np.maximum(w, 1e-300)) + x**2 / 2
    return _product(torch.from_numpy(x), torch.from_numpy(log_w), dimension)


def legendre(n: int, dimension: int, width: float = 9.0) -> Rule:
    """Return the Gauss-Legendre rule on [-width, width]^d, divided into panels.

    Parameters
    ----------
    n
        Number of nodes per dimension: 32 in each of n / 32 panels.
    dimension
        d, one or two.
    width
        Half the side of the box.
    """
    x, w = np.polynomial.legendre.leggauss(32)
    edges = np.linspace(-width, width, n // 32 + 1)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    nodes = ((edges[1:] + edges[:-1])[:, None] / 2 + half * x).ravel()
    log_w = np.log(half * w).ravel()
    return _product(torch.from_numpy(nodes), torch.from_numpy(log_w), dimension)


def trapezoid(n: int, dimension: int, width: float = 9.0) -> Rule:
    """Return the trapezoidal rule on [-width, width]^d.

    It is spectrally accurate for smooth functions that have decayed at the boundary.

    Parameters
    ----------
    n
        Number of nodes per dimension.
    dimension
        d, one or two.
    width
        Half the side of the box.
    """
    x = torch.linspace(-width, width, n, dtype=torch.float64)
    step = 2 * width / (n - 1)
    return _product(x, torch.full((n,), float(np.log(step)), dtype=torch.float64), dimension)


def half_width(
    log_f: Callable[[Tensor], Tensor], dimension: int, *, drop: float = 40.0, least: float = 9.0
) -> float:
    """Return half the side of a box around the origin outside which a function is negligible.

    Parameters
    ----------
    log_f
        Function that maps points of shape ``(m, d)`` to log f, shape ``(m,)``. The mass of f lies
        around the origin, on a scale of one.
    dimension
        d, one or two.
    drop
        How far log f must fall below its value at the origin on the boundary of the box.
    least
        Smallest half side that is tried.

    Returns
    -------
    float
        Half the side of the box: ``least``, doubled until log f has fallen by ``drop`` (from 288
        on, it is not doubled any more).
    """
    side = torch.linspace(-1, 1, 33, dtype=torch.float64)
    box = _product(side, torch.zeros_like(side), dimension).x_md
    edge = box[box.abs().amax(-1) == 1]
    centre = float(log_f(torch.zeros_like(edge[:1])))
    width = least
    while width < 288 and float(log_f(width * edge).max()) > centre - drop:
        width *= 2
    return width


def converge(
    integrate: Callable[[int], Tensor], start: int, stop: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Double the number of nodes until the result changes by at most ``tolerance``.

    Parameters
    ----------
    integrate
        Function that maps a number of nodes per dimension to results of any shape.
    start, stop
        First number of nodes, and the number from which on it is not doubled any more.
    tolerance
        Absolute change of every element at which the doubling ends.

    Returns
    -------
    tuple of Tensor
        The last result, and the absolute change of each element by the last doubling.
    """
    nodes, result = start, integrate(start)
    change = torch.full_like(result, torch.inf)
    while nodes < stop and not bool((change <= tolerance).all()):
        nodes *= 2
        finer = integrate(nodes)
        change, result = (finer - result).abs(), finer
    return result, change


def posterior_mode(
    log_joint: Callable[[Tensor], Tensor], start_nd: Tensor, *, steps: int = 200
) -> tuple[Tensor, Tensor]:
    """Find the mode of p(z|x) of each cell by damped Newton steps, with the Laplace covariance.

    Parameters
    ----------
    log_joint
        Function that maps z of shape ``(n, d)`` to log p(x, z) per cell, shape ``(n,)``.
    start_nd
        Starting point, shape ``(n, d)``.
    steps
        Maximum number of Newton steps.

    Returns
    -------
    tuple of Tensor
        Modes ``(n, d)`` and matrices L ``(n, d, d)`` such that L L^T is minus the inverse Hessian
        at the mode.
    """
    z_nd = start_nd.detach().clone()
    identity = torch.eye(z_nd.shape[1], dtype=z_nd.dtype)

    def derivatives(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.detach().requires_grad_(True)
        value_n = log_joint(z)
        (gradient_nd,) = torch.autograd.grad(value_n.sum(), z, create_graph=True)
        rows = [
            torch.autograd.grad(gradient_nd[:, d].sum(), z, retain_graph=True)[0]
            for d in range(z.shape[1])
        ]
        return value_n.detach(), gradient_nd.detach(), torch.stack(rows, 1)

    damping_n = torch.full((len(z_nd),), 1e-3, dtype=z_nd.dtype)
    value_n, gradient_nd, hessian_ndd = derivatives(z_nd)
    for _ in range(steps):
        # The shift makes the shifted negative Hessian positive definite where it is not.
        lowest_n = torch.linalg.eigvalsh(-hessian_ndd)[:, 0]
        shift_n = damping_n + (1e-6 - lowest_n).clamp_min(0)
        step_nd = torch.linalg.solve(-hessian_ndd + shift_n[:, None, None] * identity, gradient_nd)
        with torch.no_grad():
            better_n = log_joint(z_nd + step_nd) >= value_n
        z_nd = torch.where(better_n[:, None], z_nd + step_nd, z_nd)
        damping_n = torch.where(better_n, damping_n / 4, damping_n * 8).clamp(1e-12, 1e12)
        value_n, gradient_nd, hessian_ndd = derivatives(z_nd)
        if float(gradient_nd.abs().max()) < 1e-8:
            break
    values, vectors = torch.linalg.eigh(-hessian_ndd)
    return z_nd, vectors * values.clamp_min(1e-6).rsqrt().unsqueeze(-2)
