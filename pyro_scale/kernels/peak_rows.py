"""The rows of a layer's weights that a minibatch reads, brought up to date as they are read.

A row's gradient is taken when the row is next read, together with what Adam's decaying first moment
has moved it by in the steps between, in which no cell had its peak open: that is one number for all
its weights. So weights and moments go through memory once for every minibatch that reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.kernels.compiling import compiled
from pyro_scale.kernels.over_ones import first_at, in_order
from pyro_scale.kernels.parallel import N_PARTS, in_parallel, parts

__all__ = ["Behind", "OpenPeaks", "Rows", "Taken", "norm", "pay", "product"]

_njit = compiled({"contract"})


class OpenPeaks(NamedTuple):
    """The peaks that some cell of a minibatch has open, and which cells.

    Attributes
    ----------
    peak
        Shape ``(t,)``, in order.
    start
        Where each peak's entries start, shape ``(t + 1,)``.
    cell, value
        The entries, none of them zero.
    n_cells
        n.
    """

    peak: NDArray[np.int64]
    start: NDArray[np.int64]
    cell: NDArray[np.int32]
    value: NDArray[Any]
    n_cells: int

    @classmethod
    def of(cls, x: sparse.csr_matrix) -> OpenPeaks:
        """Those of a matrix of cells x peaks."""
        n_cells, n_peaks = x.shape
        x = in_order(x)
        rows, ranges = (x.indptr, x.indices, x.data), parts(n_peaks)
        count_p = np.zeros(n_peaks, np.int64)
        in_parallel(_count, [(*rows, *peaks, count_p) for peaks in ranges])
        end_p = count_p.cumsum()
        at_p, n_entries = end_p - count_p, end_p[-1]
        peak = np.flatnonzero(count_p)
        start = np.append(at_p[peak], n_entries)
        cell, value = np.empty(n_entries, np.int32), np.empty(n_entries, x.data.dtype)
        in_parallel(_by_peak, [(*rows, *peaks, at_p, cell, value) for peaks in ranges])
        return cls(peak, start, cell, value, n_cells)


class Taken(NamedTuple):
    """Gradients of earlier steps as two factors each: x^T g is not multiplied out.

    Attributes
    ----------
    cell, value
        Entries of the steps' x, peak by peak; ``cell`` is a row of ``grad_rh``.
    grad_rh
        The steps' g, one below the other.
    """

    cell: NDArray[np.int32]
    value: NDArray[Any]
    grad_rh: NDArray[Any]


class Behind(NamedTuple):
    """What each of some rows has missed.

    Attributes
    ----------
    start, stop
        Which of the :class:`Taken` are its last gradient's; none if they are equal.
    rate, floor
        Of that gradient's step t: lr sqrt(1 - beta2^t) / (1 - beta1^t) and eps sqrt(1 - beta2^t).
    owed
        The sum over the steps after it of rate times decay of moments.
    decay, decay_sq
        How much of the first and of the second moment is left after those.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    rate: NDArray[Any]
    floor: NDArray[Any]
    owed: NDArray[Any]
    decay: NDArray[Any]
    decay_sq: NDArray[Any]


class Rows(NamedTuple):
    """A layer's weights and both moments, each of shape ``(p, h)``, with Adam's constants."""

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
def _by_peak(indptr, indices, data, first, last, at_p, cell, value):  # type: ignore[no-untyped-def]
    """Put entries in order of their peaks; ``at_p`` is where a peak's next goes."""
    for n in range(len(indptr) - 1):
        e = first_at(indices, indptr[n], indptr[n + 1], first)
        while e < indptr[n + 1] and indices[e] < last:
            if data[e] != 0:
                at = at_p[indices[e]]
                cell[at], value[at] = n, data[e]
                at_p[indices[e]] = at + 1
            e += 1


@_njit
def _read(peak, start, cell, value, behind, taken, rows, first, last, out_nh):  # type: ignore[no-untyped-def]
    w_ph, m_ph, v_ph, beta1, beta2, eps = rows
    number = w_ph.dtype.type
    new1, new2 = number(1 - beta1), number(1 - beta2)
    beta1, beta2, eps = number(beta1), number(beta2), number(eps)
    n_hidden = w_ph.shape[1]
    grad_h = np.empty(n_hidden, w_ph.dtype)
    for t in range(first, last):
        w_h, m_h, v_h = w_ph[peak[t]], m_ph[peak[t]], v_ph[peak[t]]
        owed, keep1, keep2 = behind.owed[t], behind.decay[t], behind.decay_sq[t]
        if behind.start[t] < behind.stop[t]:
            rate, floor = behind.rate[t], behind.floor[t]
            grad_h[:] = 0
            for e in range(behind.start[t], behind.stop[t]):
                x, from_h = taken.value[e], taken.grad_rh[taken.cell[e]]
                for h in range(n_hidden):
                    grad_h[h] += x * from_h[h]
            for h in range(n_hidden):
                g = grad_h[h]
                m = beta1 * m_h[h] + new1 * g
                v = beta2 * v_h[h] + new2 * g * g
                deviation = np.sqrt(v)
                w_h[h] -= rate * m / (deviation + floor) + owed * m / (deviation + eps)
                m_h[h], v_h[h] = keep1 * m, keep2 * v
        elif keep1 != 1:
            for h in range(n_hidden):
                w_h[h] -= owed * m_h[h] / (np.sqrt(v_h[h]) + eps)
                m_h[h] *= keep1
                v_h[h] *= keep2
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


def product(x: OpenPeaks, behind: Behind, taken: Taken, rows: Rows) -> NDArray[Any]:
    """Bring the rows of the open peaks up to date; x W, shape ``(n, h)``."""
    shape = (x.n_cells, rows.w_ph.shape[1])
    sums = [np.zeros(shape, rows.w_ph.dtype) for _ in range(N_PARTS)]
    given = (*x[:4], behind, taken, rows)
    in_parallel(
        _read,
        [(*given, *part, out_nh) for part, out_nh in zip(parts(len(x.peak)), sums, strict=True)],
    )
    for other in sums[1:]:
        sums[0] += other
    return sums[0]


def pay(peak: NDArray[np.int64], behind: Behind, taken: Taken, rows: Rows) -> None:
    """Bring some peaks' rows up to date."""
    no_cell, no_value = np.empty(0, np.int32), np.empty(0, rows.w_ph.dtype)
    nothing = OpenPeaks(peak, np.zeros(len(peak) + 1, np.int64), no_cell, no_value, 0)
    product(nothing, behind, taken, rows)


def norm(x: OpenPeaks, gram_nn: NDArray[Any]) -> float:
    r"""The norm of x^T g: its square is :math:`\sum_{nm} (x x^T)_{nm} (g g^T)_{nm}`.

    ``gram_nn`` is :math:`g g^T`.
    """
    totals = np.zeros((N_PARTS, 1))
    rows = (x.start, x.cell, x.value, gram_nn)
    in_parallel(
        _norm_sq,
        [(*rows, *part, out) for part, out in zip(parts(len(x.peak)), totals, strict=True)],
    )
    return float(np.sqrt(max(totals.sum(), 0.0)))
