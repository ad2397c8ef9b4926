"""The rows of a layer's weights that a minibatch reads, and Adam's step on them alone.

A row that no cell of a minibatch has open has no gradient. Adam moves it all the same, by its
decaying first moment; what it is *owed* of that is one number for all its weights, and is paid when
the row is next read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.kernels.compiling import compiled
from pyro_scale.kernels.parallel import N_PARTS, in_parallel, parts

__all__ = ["OpenPeaks", "Overdue", "norm", "pay", "product", "step", "transposed_product"]

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
    cell: NDArray[np.int64]
    value: NDArray[Any]
    n_cells: int

    @classmethod
    def of(cls, x: sparse.csr_matrix) -> OpenPeaks:
        """Those of a matrix of cells x peaks."""
        peak, start, cell, value = _open_peaks(x.indptr, x.indices, x.data, x.shape[1])
        return cls(peak, start, cell, value, x.shape[0])


class Overdue(NamedTuple):
    """What each of some rows has missed since its last step, in the dtype of the weights.

    Attributes
    ----------
    owed
        The sum over missed steps of rate times decay of moments.
    decay, decay_sq
        How much of the first and of the second moment is left.
    """

    owed: NDArray[Any]
    decay: NDArray[Any]
    decay_sq: NDArray[Any]


@_njit
def _open_peaks(indptr, indices, data, n_peaks):  # type: ignore[no-untyped-def]
    count = np.zeros(n_peaks, np.int64)
    for e in range(len(indices)):
        if data[e] != 0:
            count[indices[e]] += 1
    n_open = 0
    for p in range(n_peaks):
        n_open += count[p] > 0
    peak, start = np.empty(n_open, np.int64), np.zeros(n_open + 1, np.int64)
    t = 0
    for p in range(n_peaks):
        if count[p] > 0:
            peak[t], start[t + 1] = p, start[t] + count[p]
            count[p] = start[t]  # from here on: where its next entry goes
            t += 1
    cell, value = np.empty(start[n_open], np.int64), np.empty(start[n_open], data.dtype)
    for n in range(len(indptr) - 1):
        for e in range(indptr[n], indptr[n + 1]):
            if data[e] != 0:
                p = indices[e]
                cell[count[p]], value[count[p]] = n, data[e]
                count[p] += 1
    return peak, start, cell, value


@_njit
def _product(peak, start, cell, value, owed, eps, w_ph, m_ph, v_ph, first, last, out_nh):  # type: ignore[no-untyped-def]
    n_hidden = w_ph.shape[1]
    eps, row_h = w_ph.dtype.type(eps), np.empty(n_hidden, w_ph.dtype)
    for t in range(first, last):
        w_h, m_h, v_h, due = w_ph[peak[t]], m_ph[peak[t]], v_ph[peak[t]], owed[t]
        if due == 0:
            for h in range(n_hidden):
                row_h[h] = w_h[h]
        else:
            for h in range(n_hidden):
                row_h[h] = w_h[h] - due * m_h[h] / (np.sqrt(v_h[h]) + eps)
        for e in range(start[t], start[t + 1]):
            x, out_h = value[e], out_nh[cell[e]]
            for h in range(n_hidden):
                out_h[h] += x * row_h[h]


@_njit
def _step(  # type: ignore[no-untyped-def]
    peak, start, cell, value, owed, decay, decay_sq, grad_nh, scalars, w_ph, m_ph, v_ph, first, last
):
    n_hidden, number = w_ph.shape[1], w_ph.dtype.type
    rate, root, eps = number(scalars[0]), number(scalars[1]), number(scalars[2])
    beta1, beta2 = number(scalars[3]), number(scalars[4])
    new1, new2 = number(1 - scalars[3]), number(1 - scalars[4])
    grad_h = np.empty(n_hidden, w_ph.dtype)
    for t in range(first, last):
        grad_h[:] = 0
        for e in range(start[t], start[t + 1]):
            x, from_h = value[e], grad_nh[cell[e]]
            for h in range(n_hidden):
                grad_h[h] += x * from_h[h]
        w_h, m_h, v_h = w_ph[peak[t]], m_ph[peak[t]], v_ph[peak[t]]
        due, keep1, keep2 = owed[t], decay[t] * beta1, decay_sq[t] * beta2
        for h in range(n_hidden):
            g = grad_h[h]
            w = w_h[h] - due * m_h[h] / (np.sqrt(v_h[h]) + eps)
            m = keep1 * m_h[h] + new1 * g
            v = keep2 * v_h[h] + new2 * g * g
            m_h[h], v_h[h] = m, v
            w_h[h] = w - rate * m / (root * np.sqrt(v) + eps)


@_njit
def _pay(peak, owed, decay, decay_sq, eps, w_ph, m_ph, v_ph, first, last):  # type: ignore[no-untyped-def]
    n_hidden, eps = w_ph.shape[1], w_ph.dtype.type(eps)
    for t in range(first, last):
        w_h, m_h, v_h = w_ph[peak[t]], m_ph[peak[t]], v_ph[peak[t]]
        due, keep1, keep2 = owed[t], decay[t], decay_sq[t]
        for h in range(n_hidden):
            w_h[h] -= due * m_h[h] / (np.sqrt(v_h[h]) + eps)
            m_h[h] *= keep1
            v_h[h] *= keep2


@_njit
def _transposed_product(indptr, indices, data, grad_nh, out_ph):  # type: ignore[no-untyped-def]
    for n in range(len(indptr) - 1):
        from_h = grad_nh[n]
        for e in range(indptr[n], indptr[n + 1]):
            x, out_h = data[e], out_ph[indices[e]]
            for h in range(out_ph.shape[1]):
                out_h[h] += x * from_h[h]


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
    x: OpenPeaks,
    due: Overdue,
    eps: float,
    w_ph: NDArray[Any],
    m_ph: NDArray[Any],
    v_ph: NDArray[Any],
) -> NDArray[Any]:
    """x W with the rows of W as they would be had they been paid, shape ``(n, h)``."""
    shape = (x.n_cells, w_ph.shape[1])
    sums = [np.zeros(shape, w_ph.dtype) for _ in range(N_PARTS)]
    rows = (*x[:4], due.owed, eps, w_ph, m_ph, v_ph)
    in_parallel(
        _product,
        [(*rows, *part, out_nh) for part, out_nh in zip(parts(len(x.peak)), sums, strict=True)],
    )
    for other in sums[1:]:
        sums[0] += other
    return sums[0]


def step(
    x: OpenPeaks,
    due: Overdue,
    grad_nh: NDArray[Any],
    scalars: tuple[float, float, float, float, float],
    w_ph: NDArray[Any],
    m_ph: NDArray[Any],
    v_ph: NDArray[Any],
) -> None:
    """Pay the open peaks' rows, then Adam's step on them with the gradient x^T g.

    ``scalars`` are lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, beta1 and beta2.
    """
    rows = (*x[:4], *due, grad_nh, scalars, w_ph, m_ph, v_ph)
    in_parallel(_step, [(*rows, *part) for part in parts(len(x.peak))])


def pay(
    peak: NDArray[np.int64],
    due: Overdue,
    eps: float,
    w_ph: NDArray[Any],
    m_ph: NDArray[Any],
    v_ph: NDArray[Any],
) -> None:
    """Pay some peaks' rows, and let their moments decay."""
    rows = (peak, *due, eps, w_ph, m_ph, v_ph)
    in_parallel(_pay, [(*rows, *part) for part in parts(len(peak))])


def transposed_product(x: sparse.csr_matrix, grad_nh: NDArray[Any]) -> NDArray[Any]:
    """x^T g, every peak's row, shape ``(p, h)``."""
    out_ph = np.zeros((x.shape[1], grad_nh.shape[1]), grad_nh.dtype)
    _transposed_product(x.indptr, x.indices, x.data, grad_nh, out_ph)
    return out_ph


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
