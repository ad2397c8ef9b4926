r"""Kernels that sum softplus and exp of the logits over all peaks, in single precision.

The logits eta_np = h_n . w_p + b_p + s_n are computed once, in blocks of peaks that fit the cache.
With :math:`e = \exp(-|\eta|) \in (0, 1]`,

.. math:: \mathrm{softplus}(\eta) = \max(\eta, 0) + \log(1 + e), \qquad
          \sigma(\eta) = \{1 \text{ or } e\} / (1 + e),

where sigma is the derivative of softplus. A call of exp or log of the C library would keep the
compiler from vectorizing the loop. Therefore :math:`e = 2^k 2^f` is computed from an integer k and
:math:`|f| \le 1/2`, and :math:`2^f` and :math:`\log(1 + e) / e` are evaluated as polynomials
(Chebyshev interpolation, below).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

from pyro_scale.ops._numba import N_PARTS, compiled, in_parallel, parts

__all__ = ["exp_gradients", "exp_sums", "softplus_gradients", "softplus_sums"]

_Array = NDArray[np.float32]
_BLOCK = 512  # peaks at a time: their weights and the logits of four cells fit the L1 cache
_ROW = _BLOCK + 16  # row length of work arrays: a power of two would cause cache conflicts
_FLAGS = {"contract", "nsz", "reassoc"}  # sums may be reordered, NaN and infinities are kept
_njit, _inline = compiled(_FLAGS), compiled(_FLAGS, inline=True)


def _fit(function: Callable[[Any], Any], domain: tuple[float, float], degree: int) -> Any:
    """Return the coefficients of the polynomial that equals ``function`` at Chebyshev points."""
    fitted = Chebyshev.interpolate(function, degree, domain).convert(
        kind=Polynomial, domain=[-1, 1]
    )
    return tuple(np.float32(each) for each in fitted.coef)


_A0, _A1, _A2, _A3, _A4, _A5, _A6 = _fit(np.exp2, (-0.5, 0.5), 6)  # to 3e-9
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _fit(
    lambda e: np.log1p(e) / e, (1e-12, 1.0), 9
)  # to 5e-9
_LOG2_E, _MIN_EXPONENT, _HALF = np.float32(np.log2(np.e)), np.float32(-126), np.float32(0.5)
_ZERO, _ONE = np.float32(0), np.float32(1)


@_inline
def _exp_minus_abs(x):  # type: ignore[no-untyped-def]
    t = max(-abs(x) * _LOG2_E, _MIN_EXPONENT)
    k = np.floor(t + _HALF)
    f = t - k
    two_f = (((((_A6 * f + _A5) * f + _A4) * f + _A3) * f + _A2) * f + _A1) * f + _A0
    return two_f * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@_inline
def _softplus(x):  # type: ignore[no-untyped-def]
    e = _exp_minus_abs(x)
    low = (((_L4 * e + _L3) * e + _L2) * e + _L1) * e + _L0
    high = (((_L9 * e + _L8) * e + _L7) * e + _L6) * e + _L5
    return max(x, _ZERO) + e * (low + high * (e * e) * (e * e) * e)


@_inline
def _sigmoid(x):  # type: ignore[no-untyped-def]
    e = _exp_minus_abs(x)
    return (_ONE if x >= _ZERO else e) / (_ONE + e)


@_inline
def _transpose_block(w_pr, first, last, w_rj):  # type: ignore[no-untyped-def]
    for j in range(last - first):
        for r in range(w_pr.shape[1]):
            w_rj[r, j] = w_pr[first + j, r]


@_njit
def _logits_of_four(h_nr, w_rj, b_j, shift_n, cells, eta):  # type: ignore[no-untyped-def]
    n_peaks, n_inputs = len(b_j), h_nr.shape[1]
    eta0, eta1, eta2, eta3 = eta[0], eta[1], eta[2], eta[3]
    c0, c1, c2, c3 = cells
    s0, s1, s2, s3 = shift_n[c0], shift_n[c1], shift_n[c2], shift_n[c3]
    for j in range(n_peaks):
        b = b_j[j]
        eta0[j], eta1[j], eta2[j], eta3[j] = b + s0, b + s1, b + s2, b + s3
    even = n_inputs // 2 * 2
    for r in range(0, even, 2):
        g0, g1, g2, g3 = h_nr[c0, r], h_nr[c1, r], h_nr[c2, r], h_nr[c3, r]
        h0, h1, h2, h3 = h_nr[c0, r + 1], h_nr[c1, r + 1], h_nr[c2, r + 1], h_nr[c3, r + 1]
        v, w = w_rj[r], w_rj[r + 1]
        for j in range(n_peaks):
            x, y = v[j], w[j]
            eta0[j] += g0 * x + h0 * y
            eta1[j] += g1 * x + h1 * y
            eta2[j] += g2 * x + h2 * y
            eta3[j] += g3 * x + h3 * y
    for r in range(even, n_inputs):
        h0, h1, h2, h3 = h_nr[c0, r], h_nr[c1, r], h_nr[c2, r], h_nr[c3, r]
        w = w_rj[r]
        for j in range(n_peaks):
            eta0[j] += h0 * w[j]
            eta1[j] += h1 * w[j]
            eta2[j] += h2 * w[j]
            eta3[j] += h3 * w[j]


@_inline
def _next_four(n, n_cells):  # type: ignore[no-untyped-def]
    last = n_cells - 1  # repeated where fewer than four cells are left
    return n, min(n + 1, last), min(n + 2, last), min(n + 3, last)


@_inline
def _exp(x):  # type: ignore[no-untyped-def]
    e = _exp_minus_abs(x)
    return e if x <= _ZERO else _ONE / e


@_njit
def _softplus_sums(h_nr, w_pr, b_p, shift_n, begin, end, out_n):  # type: ignore[no-untyped-def]
    n_cells, eta = h_nr.shape[0], np.empty((4, _ROW), np.float32)
    w_rj = np.empty((h_nr.shape[1], _ROW), np.float32)
    for first in range(begin, end, _BLOCK):
        last = min(first + _BLOCK, end)
        _transpose_block(w_pr, first, last, w_rj)
        for n in range(0, n_cells, 4):
            _logits_of_four(h_nr, w_rj, b_p[first:last], shift_n, _next_four(n, n_cells), eta)
            for i in range(min(4, n_cells - n)):
                total, eta_p = _ZERO, eta[i]
                for j in range(last - first):
                    total += _softplus(eta_p[j])
                out_n[n + i] += total


@_njit
def _exp_sums(h_nr, w_pr, b_p, shift_n, begin, end, max_n, out_n):  # type: ignore[no-untyped-def]
    n_cells, eta = h_nr.shape[0], np.empty((4, _ROW), np.float32)
    w_rj = np.empty((h_nr.shape[1], _ROW), np.float32)
    for first in range(begin, end, _BLOCK):
        last = min(first + _BLOCK, end)
        _transpose_block(w_pr, first, last, w_rj)
        for n in range(0, n_cells, 4):
            _logits_of_four(h_nr, w_rj, b_p[first:last], shift_n, _next_four(n, n_cells), eta)
            for i in range(min(4, n_cells - n)):
                eta_p, largest, total = eta[i], np.float32(max_n[n + i]), _ZERO
                for j in range(last - first):
                    largest = max(largest, eta_p[j])
                for j in range(last - first):
                    total += _exp(eta_p[j] - largest)
                if largest > max_n[n + i]:
                    out_n[n + i] *= np.exp(max_n[n + i] - largest)
                    max_n[n + i] = largest
                out_n[n + i] += total


@_njit
def _gradients(  # type: ignore[no-untyped-def]
    h_nr, w_pr, b_p, shift_n, grad_n, begin, end, grad_nr, grad_pr, grad_p, grad_shift_n, sigmoid
):
    n_cells, n_inputs = h_nr.shape
    eta = np.empty((4, _ROW), np.float32)
    w_rj = np.empty((n_inputs, _ROW), np.float32)
    grad_rj = np.empty((n_inputs, _ROW), np.float32)
    d0, d1, d2, d3 = eta[0], eta[1], eta[2], eta[3]
    for first in range(begin, end, _BLOCK):
        last = min(first + _BLOCK, end)
        n_peaks, grad_b = last - first, grad_p[first:last]
        _transpose_block(w_pr, first, last, w_rj)
        grad_rj[:] = 0
        for n in range(0, n_cells, 4):
            c0, c1, c2, c3 = cells = _next_four(n, n_cells)
            _logits_of_four(h_nr, w_rj, b_p[first:last], shift_n, cells, eta)
            for i in range(4):
                total, eta_p = _ZERO, eta[i]
                factor = grad_n[n + i] if n + i < n_cells else _ZERO
                if sigmoid:
                    for j in range(n_peaks):
                        d = _sigmoid(eta_p[j]) * factor
                        eta_p[j] = d
                        total += d
                else:
                    for j in range(n_peaks):
                        d = _exp(eta_p[j]) * factor
                        eta_p[j] = d
                        total += d
                if n + i < n_cells:
                    grad_shift_n[n + i] += total
            for j in range(n_peaks):
                grad_b[j] += (d0[j] + d1[j]) + (d2[j] + d3[j])
            for r in range(n_inputs):
                h0, h1, h2, h3 = h_nr[c0, r], h_nr[c1, r], h_nr[c2, r], h_nr[c3, r]
                a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
                w, grad_w = w_rj[r], grad_rj[r]
                for j in range(n_peaks):
                    x, x0, x1, x2, x3 = w[j], d0[j], d1[j], d2[j], d3[j]
                    a0 += x0 * x
                    a1 += x1 * x
                    a2 += x2 * x
                    a3 += x3 * x
                    grad_w[j] += (x0 * h0 + x1 * h1) + (x2 * h2 + x3 * h3)
                grad_nr[c0, r] += a0  # the term of a repeated cell is zero
                grad_nr[c1, r] += a1
                grad_nr[c2, r] += a2
                grad_nr[c3, r] += a3
        for j in range(n_peaks):
            for r in range(n_inputs):
                grad_pr[first + j, r] = grad_rj[r, j]


def softplus_sums(h_nr: _Array, w_pr: _Array, b_p: _Array, shift_n: _Array) -> NDArray[np.float64]:
    """Return sum_p softplus(eta_np), shape ``(n,)``."""
    out = np.zeros((N_PARTS, len(h_nr)))
    parted = zip(parts(len(b_p)), out, strict=True)
    in_parallel(
        _softplus_sums, [(h_nr, w_pr, b_p, shift_n, *part, out_n) for part, out_n in parted]
    )
    total_n: NDArray[np.float64] = out.sum(0)
    return total_n


def exp_sums(h_nr: _Array, w_pr: _Array, b_p: _Array, shift_n: _Array) -> NDArray[np.float64]:
    """Return log sum_p exp(eta_np), shape ``(n,)``."""
    least = float(-np.finfo(np.float32).max)
    max_of_parts = np.full((N_PARTS, len(h_nr)), least)
    out = np.zeros((N_PARTS, len(h_nr)))
    parted = zip(parts(len(b_p)), max_of_parts, out, strict=True)
    in_parallel(
        _exp_sums,
        [(h_nr, w_pr, b_p, shift_n, *part, max_n, out_n) for part, max_n, out_n in parted],
    )
    max_n = max_of_parts.max(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # an infinite maximum, replaced below
        total: NDArray[np.float64] = max_n + np.log((out * np.exp(max_of_parts - max_n)).sum(0))
    total[max_n == np.inf] = np.inf
    total[(max_n == least) & ~np.isnan(total)] = -np.inf  # all logits are
    return total


def _all_gradients(
    h_nr: _Array, w_pr: _Array, b_p: _Array, shift_n: _Array, grad_n: _Array, sigmoid: bool
) -> tuple[NDArray[np.float64], _Array, _Array, NDArray[np.float64]]:
    grad_nr = np.zeros((N_PARTS, *h_nr.shape))
    grad_shift_n = np.zeros((N_PARTS, len(h_nr)))
    grad_pr, grad_p = np.empty_like(w_pr), np.zeros_like(b_p)
    parted = zip(parts(len(b_p)), grad_nr, grad_shift_n, strict=True)
    in_parallel(
        _gradients,
        [
            (h_nr, w_pr, b_p, shift_n, grad_n, *part, to_nr, grad_pr, grad_p, to_n, sigmoid)
            for part, to_nr, to_n in parted
        ],
    )
    return grad_nr.sum(0), grad_pr, grad_p, grad_shift_n.sum(0)


def softplus_gradients(
    h_nr: _Array, w_pr: _Array, b_p: _Array, shift_n: _Array, grad_n: _Array
) -> tuple[NDArray[np.float64], _Array, _Array, NDArray[np.float64]]:
    """Return the gradients of sum_n grad_n sum_p softplus(eta_np).

    They are the gradients with respect to h, w, b and the shift.
    """
    return _all_gradients(h_nr, w_pr, b_p, shift_n, grad_n, True)


def exp_gradients(
    h_nr: _Array, w_pr: _Array, b_p: _Array, shift_n: _Array, grad_n: _Array
) -> tuple[NDArray[np.float64], _Array, _Array, NDArray[np.float64]]:
    """Return the gradients of sum_n grad_n sum_p exp(eta_np).

    They are the gradients with respect to h, w, b and the shift.
    """
    return _all_gradients(h_nr, w_pr, b_p, shift_n, grad_n, False)
