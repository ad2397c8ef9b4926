"""Lazy Adam: updates only the rows of a layer's weights whose peaks are open in a minibatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_scale.ops.sparse import is_sparse, to_scipy
from pyro_scale.programs import PeakLinear

if TYPE_CHECKING:
    from pyro_scale.ops._lazy_adam_kernels import (
        AdamRows,
        DeferredUpdates,
        OpenPeaks,
        PendingGradients,
    )

__all__ = ["CombinedAdam", "LazyAdam"]

_T = TypeVar("_T")
_MAX_DEFERRED = 1024  # a moment moves a row for this many steps at most: 0.9**1024 < 1e-46
_MAX_PENDING_CELLS = 4096  # cells whose gradients are kept until their rows are read
_MIN_DECAY = 1e-20  # smaller decays are set to zero, which avoids denormal moments


class LazyAdam(torch.optim.Optimizer):
    r"""Adam for the weights of a :class:`~pyro_scale.programs.PeakLinear`, on the CPU.

    These weights, one row per peak, are nearly all parameters of the plain model; the default
    model, which reads LSI, has no such layer. The gradient of a row is zero if no cell of the
    minibatch has its peak open, which is true of most rows in a small minibatch. Adam nevertheless
    updates these rows at every step. If t is the step of a weight's last non-zero gradient, after
    which its moments are m and v, then in the next k steps Adam subtracts from the weight

    .. math:: \frac{m}{\sqrt{v}} \sum_{j=1}^{k} \eta_{t+j}
              \Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{j}, \qquad
              \eta_t = \mathrm{lr} \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t},

    where the sum is the same for all weights of a row. LazyAdam therefore defers these updates
    until a cell has the peak open again. When the row is then read for the product of cells and
    weights, the step of its last gradient and the deferred updates are applied first, in one pass
    over the row. The weights are those of Adam except for :math:`\epsilon`, which is added to
    :math:`\sqrt{v}` once for all deferred updates and not at each step. No array of the size of the
    weights is written for gradients or updates. A gradient is kept as two factors, the minibatch x
    and the gradient g with respect to the layer's product; the gradient with respect to the weights
    is :math:`x^T g`, and its norm is computed from :math:`x x^T` and :math:`g g^T`
    (:func:`pyro_scale.ops._lazy_adam_kernels.gradient_norm`).

    Between steps the layer's weights are not up to date. :meth:`flush` applies all pending
    gradients and deferred updates. The layer's ``state_dict`` calls it; before reading the weights
    otherwise, call it yourself.

    Parameters
    ----------
    layer
        The layer. Until :meth:`close` this optimizer computes its product with the cells, which
        must be sparse, and ``backward`` leaves ``grad`` of its weights empty.
    lr, betas, eps
        As in :class:`torch.optim.Adam` (Kingma and Ba 2015, arXiv:1412.6980).
    """

    def __init__(
        self,
        layer: PeakLinear,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__([layer.weight_ph], {"lr": lr, "betas": betas, "eps": eps})
        self.layer = layer
        # NumPy requests huge pages for large arrays and torch does not; a row fills a small page.
        weights = layer.weight_ph.detach().numpy().copy()
        layer.weight_ph.data = torch.from_numpy(weights)
        self.state[layer.weight_ph] = {
            "step": torch.zeros(()),
            "exp_avg": torch.from_numpy(np.zeros_like(weights)),
            "exp_avg_sq": torch.from_numpy(np.zeros_like(weights)),
        }
        w_ph = self._rows.w_ph
        self._pending = _GradientBuffer(w_ph.shape[1], w_ph.dtype)
        self._mark_up_to_date()
        self._grad_factors: list[tuple[OpenPeaks, sparse.csr_matrix, Tensor]] = []
        layer.product = self._product
        register = layer.register_state_dict_pre_hook  # has no type annotations in torch
        self._hook = register(lambda *_: self.flush())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Bring all rows up to date and restore the layer's ordinary product."""
        self.flush()
        self._hook.remove()
        self.layer.product = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, with moments that are up to date in all rows."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state, which must belong to the weights that the layer has now."""
        super().load_state_dict(state_dict)
        self._mark_up_to_date()
        self._grad_factors.clear()

    def _mark_up_to_date(self) -> None:
        """Record that all rows are up to date, and count steps from here."""
        n_peaks = len(self.layer.weight_ph)
        # Each row is up to date with this step; a pending gradient is that of the step after it.
        self._updated_to_p = np.zeros(n_peaks, np.int64)
        # Entries of each row's pending gradient in self._pending; none if start equals stop.
        self._grad_start_p, self._grad_stop_p = np.zeros((2, n_peaks), np.int64)
        # Of each step (see DeferredUpdates): rate and floor, its bias-corrected lr and eps; and
        # the pending decay, rate times (beta1 / sqrt(beta2))**k summed over the k-th steps after.
        self._step_scalars = np.zeros((3, 1))
        self._pending.clear()

    @property
    def _rows(self) -> AdamRows:
        """Weights and moments as arrays that share memory with the tensors."""
        from pyro_scale.ops._lazy_adam_kernels import AdamRows

        weight_ph, group = self.layer.weight_ph, self.param_groups[0]
        state = self.state[weight_ph]
        parts = (weight_ph.detach(), state["exp_avg"], state["exp_avg_sq"])
        w_ph, m_ph, v_ph = (part.numpy() for part in parts)
        beta1, beta2 = group["betas"]
        return AdamRows(w_ph, m_ph, v_ph, beta1, beta2, group["eps"])

    def _update_rows(
        self, peak: Any, kernel: Callable[[DeferredUpdates, PendingGradients, AdamRows], _T]
    ) -> _T:
        """Bring the rows of some peaks up to date by a Numba kernel, and return its result."""
        from pyro_scale.ops._lazy_adam_kernels import DeferredUpdates

        rows, start, stop = self._rows, self._grad_start_p[peak], self._grad_stop_p[peak]
        now, last_step = self._step_scalars.shape[1] - 1, self._updated_to_p[peak] + (start < stop)
        n_deferred = now - last_step
        exponents = np.arange(n_deferred.max(initial=0) + 1)
        powers = [beta**exponents for beta in (rows.beta1, rows.beta2)]
        decay, decay_sq = (np.where(each > _MIN_DECAY, each, 0.0)[n_deferred] for each in powers)
        scalars = (
            part.astype(rows.w_ph.dtype)
            for part in (*self._step_scalars[:, last_step], decay, decay_sq)
        )
        result = kernel(DeferredUpdates(start, stop, *scalars), self._pending.arrays(), rows)
        self._updated_to_p[peak] = now
        self._grad_stop_p[peak] = start
        return result

    def _product(self, x_np: Tensor) -> Tensor:
        """Return the product x W of cells and weights, shape ``(n, h)``.

        Its backward pass stores the two factors x and g of the gradient x^T g for :meth:`step`.
        """
        if not is_sparse(x_np):
            raise TypeError("LazyAdam needs sparse cells, and these are dense.")
        inputs = (x_np, self.layer.weight_ph, self)
        result: Tensor = _Product.apply(*inputs)  # type: ignore[no-untyped-call]  # untyped in torch
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discard the gradient."""
        self._grad_factors.clear()

    def _gradient(self) -> tuple[OpenPeaks, Tensor] | None:
        """Return the factors x and g of the gradient x^T g that accumulated since ``zero_grad``.

        If backward was called several times, the x and the g of all calls are stacked along cells.
        """
        from pyro_scale.ops._lazy_adam_kernels import OpenPeaks

        if not self._grad_factors:
            return None
        if len(self._grad_factors) > 1:
            _, matrices, grads = zip(*self._grad_factors, strict=True)
            stacked = sparse.csr_matrix(sparse.vstack(matrices))
            self._grad_factors[:] = [(OpenPeaks.from_csr(stacked), stacked, torch.cat(grads))]
        x, _, grad_nh = self._grad_factors[0]
        return x, grad_nh.contiguous()

    def norm(self) -> Tensor:
        """Return the Euclidean norm of the gradient."""
        from pyro_scale.ops import _lazy_adam_kernels as kernels

        gradient = self._gradient()
        if gradient is None:
            return torch.zeros(())
        x, grad_nh = gradient
        return torch.tensor(kernels.gradient_norm(x, (grad_nh @ grad_nh.T).numpy()))

    def scale_gradient_(self, factor: float) -> None:
        """Multiply the gradient by ``factor``, in place."""
        self._grad_factors[:] = [
            (x, matrix, factor * grad_nh) for x, matrix, grad_nh in self._grad_factors
        ]

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's returns the closure's loss
        self, closure: Callable[[], Any] | None = None
    ) -> None:
        """Take a step of Adam, which is carried out later.

        The gradient is stored as pending, and each row is updated when it is next read.
        """
        gradient = self._gradient()
        if gradient is None:
            return
        x, grad_nh = gradient
        if self._pending.n_cells + x.n_cells > _MAX_PENDING_CELLS:
            n_kept = min(_MAX_PENDING_CELLS // 4, _MAX_PENDING_CELLS - x.n_cells)
            self._apply_old_gradients(max(0, n_kept))
        self._apply_updates(x.peak[self._updated_to_p[x.peak] < self._step_scalars.shape[1] - 1])
        first = self._pending.append(x, grad_nh.numpy())
        self._grad_start_p[x.peak] = first + x.start[:-1]
        self._grad_stop_p[x.peak] = first + x.start[1:]
        group, state = self.param_groups[0], self.state[self.layer.weight_ph]
        state["step"] += 1
        (beta1, beta2), n_steps = group["betas"], float(state["step"])
        bias_correction2_sqrt = (1 - beta2**n_steps) ** 0.5
        rate = group["lr"] * bias_correction2_sqrt / (1 - beta1**n_steps)
        floor = group["eps"] * bias_correction2_sqrt
        n_deferred = np.arange(min(self._step_scalars.shape[1], _MAX_DEFERRED), 0, -1)
        self._step_scalars[2, -_MAX_DEFERRED:] += rate * (beta1 / beta2**0.5) ** n_deferred
        self._step_scalars = np.append(self._step_scalars, [[rate], [floor], [0.0]], axis=1)

    def _apply_updates(self, peak: Any) -> None:
        """Bring the rows of some peaks up to date."""
        from pyro_scale.ops import _lazy_adam_kernels as kernels

        if len(peak):
            self._update_rows(peak, lambda *arguments: kernels.apply_updates(peak, *arguments))

    def _apply_old_gradients(self, n_cells: int) -> None:
        """Apply and discard all pending gradients except those of the last ``n_cells`` cells.

        Only the rows whose last gradient is older than these cells are read. They are few if
        nearly all peaks are open in the last minibatches.
        """
        n_entries = self._pending.n_entries_before(n_cells)
        has_gradient_p = self._grad_start_p < self._grad_stop_p
        self._apply_updates(np.flatnonzero(has_gradient_p & (self._grad_start_p < n_entries)))
        self._pending.discard(n_entries)
        self._grad_start_p -= n_entries
        self._grad_stop_p -= n_entries

    @torch.no_grad()
    def flush(self) -> None:
        """Bring all rows up to date."""
        now = self._step_scalars.shape[1] - 1
        has_gradient_p = self._grad_start_p < self._grad_stop_p
        self._apply_updates(np.flatnonzero((self._updated_to_p < now) | has_gradient_p))
        self._mark_up_to_date()


class CombinedAdam(torch.optim.Adam):
    """Optimizer that applies :class:`LazyAdam` to a layer's weights and Adam to other parameters.

    Parameters
    ----------
    groups
        Parameter groups of the other parameters, as in :class:`torch.optim.Adam`. The learning rate
        of the last group is also that of ``lazy``.
    lazy
        The optimizer of the layer's weights.
    lr
        Learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], lazy: LazyAdam, lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self.lazy = lazy

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discard the gradients of both Adam and :class:`LazyAdam`."""
        super().zero_grad(set_to_none)
        self.lazy.zero_grad()

    def step(self, closure: Any = None) -> Any:
        """Take a step of both Adam and :class:`LazyAdam`."""
        loss = super().step(closure)
        self.lazy.param_groups[0]["lr"] = self.param_groups[-1]["lr"]
        self.lazy.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both Adam and :class:`LazyAdam`."""
        return {**super().state_dict(), "lazy": self.lazy.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both Adam and :class:`LazyAdam`."""
        rest = dict(state_dict)
        self.lazy.load_state_dict(rest.pop("lazy"))
        super().load_state_dict(rest)


class _GradientBuffer:
    """Buffer of the gradients of recent steps, each stored as its factors x and g.

    Of x the non-zero entries are stored. The arrays grow as needed and are reused.
    """

    def __init__(self, n_hidden: int, dtype: np.dtype[Any]) -> None:
        self.n_cells = self.n_entries = 0
        self._starts: list[tuple[int, int]] = []  # first cell and first entry of each step
        self._cell, self._value = np.empty(0, np.int32), np.empty(0, dtype)
        self._grad_nh = np.empty((0, n_hidden), dtype)

    def clear(self) -> None:
        """Discard all gradients."""
        self.n_cells = self.n_entries = 0
        self._starts.clear()

    def n_entries_before(self, n_cells: int) -> int:
        """Return the number of entries that do not belong to the last ``n_cells`` cells.

        If these cells begin within a step, all entries of that step are counted.
        """
        kept = (entry for cell, entry in self._starts if cell >= self.n_cells - n_cells)
        return next(kept, self.n_entries)

    def discard(self, n_entries: int) -> None:
        """Discard the gradients of the first steps, which have ``n_entries`` entries together."""
        steps = [step for step in self._starts if step[1] >= n_entries]
        n_cells = steps[0][0] if steps else self.n_cells
        for array in (self._cell, self._value):
            array[: self.n_entries - n_entries] = array[n_entries : self.n_entries]
        self._grad_nh[: self.n_cells - n_cells] = self._grad_nh[n_cells : self.n_cells]
        self.n_entries -= n_entries
        self.n_cells -= n_cells
        self._cell[: self.n_entries] -= n_cells
        self._starts = [(cell - n_cells, entry - n_entries) for cell, entry in steps]

    def append(self, x: OpenPeaks, grad_nh: NDArray[Any]) -> int:
        """Add the gradient of a step, and return the position of its first entry."""
        entries = slice(self.n_entries, self.n_entries + len(x.cell))
        cells = slice(self.n_cells, self.n_cells + x.n_cells)
        self._cell, self._value = (_enlarged(each, entries) for each in (self._cell, self._value))
        self._grad_nh = _enlarged(self._grad_nh, cells)
        self._cell[entries], self._value[entries] = x.cell + cells.start, x.value
        self._grad_nh[cells] = grad_nh
        self._starts.append((cells.start, entries.start))
        self.n_entries, self.n_cells = entries.stop, cells.stop
        return entries.start

    def arrays(self) -> PendingGradients:
        """Return the arrays as the kernels take them."""
        from pyro_scale.ops._lazy_adam_kernels import PendingGradients

        return PendingGradients(self._cell, self._value, self._grad_nh)


def _enlarged(array: NDArray[Any], new: slice) -> NDArray[Any]:
    """Return the array if it has room for the slice ``new``, otherwise a longer copy.

    Entries before ``new`` are copied; the others are not initialized.
    """
    if len(array) >= new.stop:
        return array
    enlarged = np.empty((max(new.stop, 2 * len(array)), *array.shape[1:]), array.dtype)
    enlarged[: new.start] = array[: new.start]
    return enlarged


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_np: Tensor, weight_ph: Tensor, optimizer: LazyAdam) -> Tensor:
        from pyro_scale.ops import _lazy_adam_kernels as kernels

        matrix = to_scipy(x_np)
        x = kernels.OpenPeaks.from_csr(matrix)
        ctx.x, ctx.matrix, ctx.optimizer = x, matrix, optimizer
        product_nh = optimizer._update_rows(
            x.peak, lambda *arguments: kernels.product(x, *arguments)
        )
        return torch.from_numpy(product_nh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[None, None, None]:
        ctx.optimizer._grad_factors.append((ctx.x, ctx.matrix, grad_nh))
        return None, None, None
