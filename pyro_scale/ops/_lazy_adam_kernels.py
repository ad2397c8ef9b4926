"""Kernels of LazyAdam, which update a layer's weight rows when a minibatch reads them.

Before a row is read, it receives the updates of the steps since it was last read. The first is the
step of its pending gradient. In the later steps no cell had its peak open, so the gradient was zero
and Adam moved the row by its decaying first moment. All weights of a row decay by the same factors,
so that these steps are applied at once. Weights and moments are therefore read and written once for
every minibatch that reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.ops._csr_kernels import first_at, in_order
from pyro_scale.ops._numba import N_PARTS, compiled, in_parallel, parts

__all__ = [
    "AdamRows",
    "DeferredUpdates",
    "OpenPeaks",
    "PendingGradients",
    "apply_updates",
    "gradient_norm",
    "product",
]

_njit = compiled({"contract"})


class OpenPeaks(NamedTuple):
    """The non-zero entries of a minibatch, grouped by peak.

    Attributes
    ----------
    peak
        The t peaks that are open in at least one cell, in ascending order, shape ``(t,)``.
    start
        Position of each peak's first entry, shape ``(t + 1,)``.
    cell, value
        Row of the cell and value of each entry, shape ``(nnz,)``; no value is zero.
    n_cells
        Number of cells n in the minibatch.
    """

    peak: NDArray[np.int64]
    start: NDArray[np.int64]
    cell: NDArray[np.int32]
    value: NDArray[Any]
    n_cells: int

    @classmethod
    def from_csr(cls, x: sparse.csr_matrix) -> OpenPeaks:
        """Group the entries of a matrix of cells x peaks by peak; explicit zeros are dropped."""
        n_cells, n_peaks = x.shape
        x = in_order(x)
        rows, ranges = (x.indptr, x.indices, x.data), parts(n_peaks)
        count_p = np.zeros(n_peaks, np.int64)
        in_parallel(_count, [(*rows, *peaks, count_p) for peaks in ranges])
        end_p = count_p.cumsum()
        next_p, n_entries = end_p - count_p, end_p[-1]
        peak = np.flatnonzero(count_p)
        start = np.append(next_p[peak], n_entries)
        cell, value = np.empty(n_entries, np.int32), np.empty(n_entries, x.data.dtype)
        in_parallel(_group_by_peak, [(*rows, *peaks, next_p, cell, value) for peaks in ranges])
        return cls(peak, start, cell, value, n_cells)


class PendingGradients(NamedTuple):
    """Gradients of earlier steps, x^T g, which are stored as the two factors x and g.

    g is the gradient with respect to the product x W.

    Attributes
    ----------
    cell, value
        The entries of each step's x, grouped by peak; ``cell`` is a row of ``grad_rh``.
    grad_rh
        The g of all steps, stacked along the first axis, shape ``(r, h)``.
    """

    cell: NDArray[np.int32]
    value: NDArray[Any]
    grad_rh: NDArray[Any]


class DeferredUpdates(NamedTuple):
    """The Adam steps that each of t weight rows has not received yet.

    Every array has shape ``(t,)``.

    Attributes
    ----------
    start, stop
        Range of the entries of :class:`PendingGradients` that form the row's last gradient. The
        range is empty if no gradient is pending.
    rate, floor
        Step size and epsilon of that gradient's step s: lr sqrt(1 - beta2^s) / (1 - beta1^s) and
        eps sqrt(1 - beta2^s).
    pending_decay
        Sum over the k later steps j = 1 .. k of the step's rate times (beta1 / sqrt(beta2))^j.
    decay, decay_sq
        Factors beta1^k and beta2^k by which these steps decay the first and the second moment.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    rate: NDArray[Any]
    floor: NDArray[Any]
    pending_decay: NDArray[Any]
    decay: NDArray[Any]
    decay_sq: NDArray[Any]


class AdamRows(NamedTuple):
    """A layer's weights and both moments of Adam, each ``(p, h)``, and Adam's hyperparameters."""

    w_ph: NDArray[Any]
    m_ph: NDArray[Any]
    v_ph: NDArray[Any]
    beta1: float
    beta2: float
    eps: float


@_njit
def _count(indptr, indices, data, first, last, count_p):  # type: ignore[no-untyped-def]
    for n in range(len(indptr) - 1):
        e = first_at(indices, indptr[n], indptr[n + 1], first)
        while e < indptr[n + 1] and indices[e] < last:
            count_p[indices[e]] += data[e] != 0
            e += 1


@_njit
def _group_by_peak(indptr, indices, data, first, last, next_p, cell, value):  # type: ignore[no-untyped-def]
    """Group entries by peak; ``next_p`` is the position of the next entry of each peak."""
    for n in range(len(indptr) - 1):
        e = first_at(indices, indptr[n], indptr[n + 1], first)
        while e < indptr[n + 1] and indices[e] < last:
            if data[e] != 0:
                position = next_p[indices[e]]
                cell[position], value[position] = n, data[e]
                next_p[indices[e]] = position + 1
            e += 1


@_njit
def _update_and_multiply(  # type: ignore[no-untyped-def]
    peak, start, cell, value, deferred, pending, rows, first, last, out_nh
):
    w_ph, m_ph, v_ph, beta1, beta2, eps = rows
    cast = w_ph.dtype.type
    new1, new2 = cast(1 - beta1), cast(1 - beta2)
    beta1, beta2, eps = cast(beta1), cast(beta2), cast(eps)
    n_hidden = w_ph.shape[1]
    grad_h = np.empty(n_hidden, w_ph.dtype)
    for t in range(first, last):
        w_h, m_h, v_h = w_ph[peak[t]], m_ph[peak[t]], v_ph[peak[t]]
        pending_decay = deferred.pending_decay[t]
        decay, decay_sq = deferred.decay[t], deferred.decay_sq[t]
        if deferred.start[t] < deferred.stop[t]:
            rate, floor = deferred.rate[t], deferred.floor[t]
            grad_h[:] = 0
            for e in range(deferred.start[t], deferred.stop[t]):
                x, from_h = pending.value[e], pending.grad_rh[pending.cell[e]]
                for h in range(n_hidden):
                    grad_h[h] += x * from_h[h]
            for h in range(n_hidden):
                g = grad_h[h]
                m = beta1 * m_h[h] + new1 * g
                v = beta2 * v_h[h] + new2 * g * g
                root_v = np.sqrt(v)
                w_h[h] -= rate * m / (root_v + floor) + pending_decay * m / (root_v + eps)
                m_h[h], v_h[h] = decay * m, decay_sq * v
        elif decay != 1:
            for h in range(n_hidden):
                w_h[h] -= pending_decay * m_h[h] / (np.sqrt(v_h[h]) + eps)
                m_h[h] *= decay
                v_h[h] *= decay_sq
        for e in range(start[t], start[t + 1]):
            x, out_h = value[e], out_nh[cell[e]]
            for h in range(n_hidden):
                out_h[h] += x * w_h[h]


@_njit
def _norm_sq(start, cell, value, gram_nn, first, last, out):  # type: ignore[no-untyped-def]
    total = 0.0
    for t in range(first, last):
        for e in range(start[t], start[t + 1]):
            x, gram_n = value[e], gram_nn[cell[e]]
            for f in range(start[t], e):
                total += 2.0 * x * value[f] * gram_n[cell[f]]
            total += x * x * gram_n[cell[e]]
    out[0] = total


def product(
    x: OpenPeaks, deferred: DeferredUpdates, pending: PendingGradients, rows: AdamRows
) -> NDArray[Any]:
    """Update the rows of the open peaks in place and return x W, shape ``(n, h)``."""
    shape = (x.n_cells, rows.w_ph.shape[1])
    sums = [np.zeros(shape, rows.w_ph.dtype) for _ in range(N_PARTS)]
    given = (*x[:4], deferred, pending, rows)
    in_parallel(
        _update_and_multiply,
        [(*given, *part, out_nh) for part, out_nh in zip(parts(len(x.peak)), sums, strict=True)],
    )
    for other in sums[1:]:
        sums[0] += other
    return sums[0]


def apply_updates(
    peak: NDArray[np.int64], deferred: DeferredUpdates, pending: PendingGradients, rows: AdamRows
) -> None:
    """Apply the deferred updates of the rows of ``peak``, in place."""
    no_cell, no_value = np.empty(0, np.int32), np.empty(0, rows.w_ph.dtype)
    no_entries = OpenPeaks(peak, np.zeros(len(peak) + 1, np.int64), no_cell, no_value, 0)
    product(no_entries, deferred, pending, rows)


def gradient_norm(x: OpenPeaks, gram_nn: NDArray[Any]) -> float:
    r"""Return the Frobenius norm of the gradient x^T g, without computing the gradient.

    Its square is :math:`\sum_{nm} (x x^T)_{nm} (g g^T)_{nm}`; ``gram_nn`` is the matrix g g^T.
    """
    totals = np.zeros((N_PARTS, 1))
    rows = (x.start, x.cell, x.value, gram_nn)
    in_parallel(
        _norm_sq,
        [(*rows, *part, out) for part, out in zip(parts(len(x.peak)), totals, strict=True)],
    )
    return float(np.sqrt(max(totals.sum(), 0.0)))
