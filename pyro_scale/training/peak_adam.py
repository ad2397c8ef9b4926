"""Adam for the layer that reads the peaks, at the cost of the peaks that a minibatch has open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_scale.programs import PeakLinear
from pyro_scale.programs.sparse import is_sparse, to_scipy

if TYPE_CHECKING:
    from pyro_scale.kernels.peak_rows import Behind, OpenPeaks, Rows, Taken

__all__ = ["PeakAdam"]

_T = TypeVar("_T")
_MOVING = 1024  # steps after which a row has come to rest: 0.9^1024 is nothing
_KEPT = 4096  # cells whose gradients wait for their rows to be read
_FORGOTTEN = 1e-20  # share of a moment that is as good as none, and not yet a denormal number


class PeakAdam(torch.optim.Optimizer):
    r"""Adam on the weights of a :class:`~pyro_scale.programs.PeakLinear`, on the CPU.

    The weights are nearly all of a model's, and a minibatch of few cells has few of the peaks open:
    the gradient of all other rows is zero. Adam moves those all the same: :math:`k` steps after its
    last gradient, a weight with moments m and v (there and then) has gone further by

    .. math:: \frac{m}{\sqrt{v}} \sum_{j=1}^{k} \eta_{t+j}
              \Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{j}, \qquad
              \eta_t = \mathrm{lr} \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t},

    where the sum is the same for a whole row. So a row is left alone until a cell has its peak open
    again. Then it is read, takes the step of its last gradient and what it is owed since, and goes
    into the product: once through memory, and the same weights but for :math:`\epsilon`, which is
    added to :math:`\sqrt{v}` once and not at each step. Nothing as large as the weights is written,
    neither a gradient nor a step, and the gradient's norm comes from two small matrices
    (:func:`pyro_scale.kernels.peak_rows.norm`).

    Between steps the weights in memory are behind. :meth:`settle` brings every row up to date; it
    is called before the layer's ``state_dict`` is read, and should be before anything else reads
    them.

    Parameters
    ----------
    layer
        Its products go through this optimiser from now on, until :meth:`release`; backward leaves
        no gradient in its weights. It reads sparse cells only.
    lr, betas, eps
        As :class:`torch.optim.Adam` (Kingma and Ba 2015, arXiv:1412.6980).
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
        # NumPy asks the system for large pages, torch does not: a row is a page of the usual size.
        weights = layer.weight_ph.detach().numpy().copy()
        layer.weight_ph.data = torch.from_numpy(weights)
        self.state[layer.weight_ph] = {
            "step": torch.zeros(()),
            "exp_avg": torch.from_numpy(np.zeros_like(weights)),
            "exp_avg_sq": torch.from_numpy(np.zeros_like(weights)),
        }
        w_ph = self._rows.w_ph
        self._taken = _Taken(w_ph.shape[1], w_ph.dtype)
        self._settled()
        self._used: list[tuple[OpenPeaks, sparse.csr_matrix, Tensor]] = []
        layer.product = self._product
        told = layer.register_state_dict_pre_hook  # without types, as torch has it
        self._hook = told(lambda *_: self.settle())  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Bring every row up to date and give the layer its ordinary product back."""
        self.settle()
        self._hook.remove()
        self.layer.product = None

    def state_dict(self) -> dict[str, Any]:
        """The moments of every row as they are now."""
        self.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take moments that belong to the weights that the layer has now."""
        super().load_state_dict(state_dict)
        self._settled()
        self._used.clear()

    def _settled(self) -> None:
        """No row is behind: steps are counted from here."""
        n_peaks = len(self.layer.weight_ph)
        self._last_p = np.zeros(n_peaks, np.int64)  # the step that a row is up to date with
        self._start_p, self._stop_p = np.zeros((2, n_peaks), np.int64)  # its part of what was taken
        self._steps = np.zeros((3, 1))  # of each step: its rate, floor, and what is owed since
        self._taken.clear()

    @property
    def _rows(self) -> Rows:
        """Weights and moments as arrays (the same memory)."""
        from pyro_scale.kernels.peak_rows import Rows

        weight_ph, group = self.layer.weight_ph, self.param_groups[0]
        state = self.state[weight_ph]
        parts = (weight_ph.detach(), state["exp_avg"], state["exp_avg_sq"])
        w_ph, m_ph, v_ph = (part.numpy() for part in parts)
        beta1, beta2 = group["betas"]
        return Rows(w_ph, m_ph, v_ph, beta1, beta2, group["eps"])

    def _read(self, peak: Any, by: Callable[[Behind, Taken, Rows], _T]) -> _T:
        """Let a kernel bring some rows up to date."""
        from pyro_scale.kernels.peak_rows import Behind

        rows, start, stop = self._rows, self._start_p[peak], self._stop_p[peak]
        now, last = self._steps.shape[1] - 1, self._last_p[peak] + (start < stop)
        age = now - last
        n_ages = age.max(initial=0) + 1
        left = [beta ** np.arange(n_ages) for beta in (rows.beta1, rows.beta2)]
        decay, decay_sq = (np.where(each > _FORGOTTEN, each, 0.0)[age] for each in left)
        scalars = (
            part.astype(rows.w_ph.dtype) for part in (*self._steps[:, last], decay, decay_sq)
        )
        result = by(Behind(start, stop, *scalars), self._taken.arrays(), rows)
        self._last_p[peak] = now
        self._stop_p[peak] = start
        return result

    def _product(self, x_np: Tensor) -> Tensor:
        """x W, whose backward keeps x and the gradient for the step."""
        if not is_sparse(x_np):
            raise TypeError("PeakAdam trains a layer on sparse cells; these are dense.")
        taken = (x_np, self.layer.weight_ph, self)
        result: Tensor = _Product.apply(*taken)  # type: ignore[no-untyped-call]  # torch's, without types
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last step's."""
        self._used.clear()

    def _factors(self) -> tuple[OpenPeaks, Tensor] | None:
        """x and g of every use of the layer since the last step, one below the other."""
        from pyro_scale.kernels.peak_rows import OpenPeaks

        if not self._used:
            return None
        if len(self._used) > 1:
            _, matrices, grads = zip(*self._used, strict=True)
            x = sparse.csr_matrix(sparse.vstack(matrices))
            self._used[:] = [(OpenPeaks.of(x), x, torch.cat(grads))]
        of_all, _, grad_nh = self._used[0]
        return of_all, grad_nh.contiguous()

    def norm(self) -> Tensor:
        """The Euclidean norm of the gradient."""
        from pyro_scale.kernels import peak_rows

        factors = self._factors()
        if factors is None:
            return torch.zeros(())
        x, grad_nh = factors
        return torch.tensor(peak_rows.norm(x, (grad_nh @ grad_nh.T).numpy()))

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's would return the closure's loss
        self, closure: Callable[[], Any] | None = None, *, scale: float = 1.0
    ) -> None:
        """Update the weights by ``scale`` times the gradient: each row when it is next read."""
        factors = self._factors()
        if factors is None:
            return
        x, grad_nh = factors
        if self._taken.n_rows + x.n_cells > _KEPT:
            self._make_room(max(0, min(_KEPT // 4, _KEPT - x.n_cells)))
        self._pay(x.peak[self._last_p[x.peak] < self._steps.shape[1] - 1])
        first = self._taken.append(x, (scale * grad_nh).numpy())
        self._start_p[x.peak], self._stop_p[x.peak] = first + x.start[:-1], first + x.start[1:]
        group, state = self.param_groups[0], self.state[self.layer.weight_ph]
        state["step"] += 1
        (beta1, beta2), n_steps = group["betas"], float(state["step"])
        root = (1 - beta2**n_steps) ** 0.5
        rate = group["lr"] * root / (1 - beta1**n_steps)
        ages = np.arange(min(self._steps.shape[1], _MOVING), 0, -1)
        self._steps[2, -_MOVING:] += rate * (beta1 / beta2**0.5) ** ages
        self._steps = np.append(self._steps, [[rate], [group["eps"] * root], [0.0]], axis=1)

    def _pay(self, peak: Any) -> None:
        from pyro_scale.kernels import peak_rows

        if len(peak):
            self._read(peak, lambda *given: peak_rows.pay(peak, *given))

    def _make_room(self, n_cells: int) -> None:
        """Keep the gradients of the last so many cells; rows that wait for older ones take them.

        Those are few where the last minibatches open nearly every peak: no pass over all rows.
        """
        older = self._taken.before_the_last(n_cells)
        self._pay(np.flatnonzero((self._start_p < self._stop_p) & (self._start_p < older)))
        self._taken.drop(older)
        self._start_p -= older
        self._stop_p -= older

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every row up to date."""
        now = self._steps.shape[1] - 1
        self._pay(np.flatnonzero((self._last_p < now) | (self._start_p < self._stop_p)))
        self._settled()


class _Taken:
    """Gradients that rows have not taken yet, in memory that grows and is used again."""

    def __init__(self, n_hidden: int, dtype: np.dtype[Any]) -> None:
        self.n_rows = self.n_entries = 0
        self._starts: list[tuple[int, int]] = []  # of each step: its first row and entry
        self._cell, self._value = np.empty(0, np.int32), np.empty(0, dtype)
        self._grad_rh = np.empty((0, n_hidden), dtype)

    def clear(self) -> None:
        """Every row has taken its gradient."""
        self.n_rows = self.n_entries = 0
        self._starts.clear()

    def before_the_last(self, n_rows: int) -> int:
        """How many entries are of steps before the last so many rows."""
        kept = (entry for row, entry in self._starts if row >= self.n_rows - n_rows)
        return next(kept, self.n_entries)

    def drop(self, n_entries: int) -> None:
        """The first steps', which have so many entries."""
        steps = [step for step in self._starts if step[1] >= n_entries]
        n_rows = steps[0][0] if steps else self.n_rows
        for kept in (self._cell, self._value):
            kept[: self.n_entries - n_entries] = kept[n_entries : self.n_entries]
        self._grad_rh[: self.n_rows - n_rows] = self._grad_rh[n_rows : self.n_rows]
        self.n_entries -= n_entries
        self.n_rows -= n_rows
        self._cell[: self.n_entries] -= n_rows
        self._starts = [(row - n_rows, entry - n_entries) for row, entry in steps]

    def append(self, x: OpenPeaks, grad_nh: NDArray[Any]) -> int:
        """Keep a step's; where its entries start."""
        entries = slice(self.n_entries, self.n_entries + len(x.cell))
        rows = slice(self.n_rows, self.n_rows + x.n_cells)
        self._cell, self._value = (_with_room(kept, entries) for kept in (self._cell, self._value))
        self._grad_rh = _with_room(self._grad_rh, rows)
        self._cell[entries], self._value[entries] = x.cell + rows.start, x.value
        self._grad_rh[rows] = grad_nh
        self._starts.append((rows.start, entries.start))
        self.n_entries, self.n_rows = entries.stop, rows.stop
        return entries.start

    def arrays(self) -> Taken:
        """For the kernels."""
        from pyro_scale.kernels.peak_rows import Taken

        return Taken(self._cell, self._value, self._grad_rh)


def _with_room(kept: NDArray[Any], for_rows: slice) -> NDArray[Any]:
    """The array, or a longer one that starts with what is before the slice."""
    if len(kept) >= for_rows.stop:
        return kept
    grown = np.empty((max(for_rows.stop, 2 * len(kept)), *kept.shape[1:]), kept.dtype)
    grown[: for_rows.start] = kept[: for_rows.start]
    return grown


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_np: Tensor, weight_ph: Tensor, optimizer: PeakAdam) -> Tensor:
        from pyro_scale.kernels import peak_rows

        matrix = to_scipy(x_np)
        x = peak_rows.OpenPeaks.of(matrix)
        ctx.x, ctx.matrix, ctx.optimizer = x, matrix, optimizer
        product_nh = optimizer._read(x.peak, lambda *given: peak_rows.product(x, *given))
        return torch.from_numpy(product_nh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[None, None, None]:
        ctx.optimizer._used.append((ctx.x, ctx.matrix, grad_nh))
        return None, None, None
