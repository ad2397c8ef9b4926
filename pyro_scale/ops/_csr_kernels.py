"""Kernels that visit each non-zero entry of a CSR minibatch of cells x peaks once.

They compute the weighted sum of logits that are given as factors, its gradients, and the product
with the transposed matrix. The work is split into ranges of peaks. The weights of a range fit the
cache, and only one thread writes its gradients. The column indices of a CSR row are sorted, so the
first entry of a range is found by binary search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.ops._numba import N_PARTS, compiled, in_parallel, parts

__all__ = ["first_at", "gradients", "in_order", "transposed_product", "weighted_sums"]

_FLAGS = {"contract", "reassoc"}  # sums may be reordered
_njit, _inline = compiled(_FLAGS), compiled(_FLAGS, inline=True)
_Array = NDArray[Any]


def in_order(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``x`` if the column indices of each row are sorted, else a copy with sorted ones."""
    return x if x.has_sorted_indices else x.sorted_indices()


@_inline
def first_at(indices, begin, end, peak):  # type: ignore[no-untyped-def]
    """Return the first position in [``begin``, ``end``) whose peak index is at least ``peak``.

    If there is none, return ``end``.
    """
    while begin < end:
        middle = (begin + end) // 2
        if indices[middle] < peak:
            begin = middle + 1
        else:
            end = middle
    return begin


@_njit
def _weighted_sums(indptr, indices, data, h_nr, w_pr, b_p, first, last, out_n):  # type: ignore[no-untyped-def]
    n_inputs = h_nr.shape[1]
    for n in range(len(h_nr)):
        total, h_r, row_end = 0.0, h_nr[n], indptr[n + 1]
        e = first_at(indices, indptr[n], row_end, first)
        while e < row_end and indices[e] < last:
            w_r, eta = w_pr[indices[e]], b_p[indices[e]]
            for r in range(n_inputs):
                eta += h_r[r] * w_r[r]
            total += data[e] * eta
            e += 1
        out_n[n] = total


@_njit
def _gradients(  # type: ignore[no-untyped-def]
    indptr, indices, data, h_nr, w_pr, grad_n, first, last, grad_nr, grad_pr, grad_p
):
    n_inputs = h_nr.shape[1]
    to_r = np.empty(n_inputs, h_nr.dtype)
    for n in range(len(h_nr)):
        h_r, row_end = h_nr[n], indptr[n + 1]
        to_r[:] = 0
        e = first_at(indices, indptr[n], row_end, first)
        while e < row_end and indices[e] < last:
            p = indices[e]
            w_r, grad_r, slope = w_pr[p], grad_pr[p], data[e] * grad_n[n]
            grad_p[p] += slope
            for r in range(n_inputs):
                grad_r[r] += slope * h_r[r]
            for r in range(n_inputs):
                to_r[r] += slope * w_r[r]
            e += 1
        grad_nr[n] = to_r


@_njit
def _transposed_product(indptr, indices, data, grad_nh, first, last, out_ph):  # type: ignore[no-untyped-def]
    for n in range(len(indptr) - 1):
        from_h, row_end = grad_nh[n], indptr[n + 1]
        e = first_at(indices, indptr[n], row_end, first)
        while e < row_end and indices[e] < last:
            x, out_h = data[e], out_ph[indices[e]]
            for h in range(out_ph.shape[1]):
                out_h[h] += x * from_h[h]
            e += 1


def weighted_sums(x: sparse.csr_matrix, h_nr: _Array, w_pr: _Array, b_p: _Array) -> _Array:
    """Return sum_p x_np (h_n . w_p + b_p), shape ``(n,)``, in double precision."""
    given, out = (x.indptr, x.indices, x.data, h_nr, w_pr, b_p), np.zeros((N_PARTS, len(h_nr)))
    parted = zip(parts(len(b_p)), out, strict=True)
    in_parallel(_weighted_sums, [(*given, *part, out_n) for part, out_n in parted])
    total: _Array = out.sum(0)
    return total


def gradients(
    x: sparse.csr_matrix, h_nr: _Array, w_pr: _Array, grad_n: _Array
) -> tuple[_Array, _Array, _Array]:
    """Return the gradients of sum_n grad_n sum_p x_np (h_n . w_p + b_p).

    They are the gradients with respect to h, w and b, with the shapes of these.
    """
    grad_nr = np.zeros((N_PARTS, *h_nr.shape))
    grad_pr, grad_p = np.zeros_like(w_pr), np.zeros(len(w_pr), w_pr.dtype)
    given = (x.indptr, x.indices, x.data, h_nr, w_pr, grad_n)
    parted = zip(parts(len(w_pr)), grad_nr, strict=True)
    in_parallel(_gradients, [(*given, *part, to_nr, grad_pr, grad_p) for part, to_nr in parted])
    return grad_nr.sum(0), grad_pr, grad_p


def transposed_product(x: sparse.csr_matrix, grad_nh: _Array) -> _Array:
    """Return x^T g, the gradient with respect to W, shape ``(p, h)``.

    g is ``grad_nh``, the gradient with respect to the product x W.
    """
    x, out_ph = in_order(x), np.zeros((x.shape[1], grad_nh.shape[1]), grad_nh.dtype)
    given = (x.indptr, x.indices, x.data, grad_nh)
    in_parallel(_transposed_product, [(*given, *part, out_ph) for part in parts(x.shape[1])])
    return out_ph
