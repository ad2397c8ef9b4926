"""Adam for the layer that reads the peaks, at the cost of the peaks that a minibatch has open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_scale.programs import PeakLinear
from pyro_scale.programs.sparse import is_sparse, to_scipy

if TYPE_CHECKING:
    from pyro_scale.kernels.peak_rows import OpenPeaks, Overdue

__all__ = ["PeakAdam"]

_MOVING = 1024  # steps after which a row has come to rest: 0.9^1024 is nothing
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
    again, and is paid what it is owed then: the same weights, but for :math:`\epsilon`, which is
    added to :math:`\sqrt{v}` once and not at each step. Nothing as large as the weights is written,
    neither a gradient nor a step, and the gradient's norm comes from two small matrices
    (:func:`pyro_scale.kernels.peak_rows.norm`).

    Between steps the weights in memory are behind. :meth:`settle` pays every row; it is called
    before the layer's ``state_dict`` is read, and should be before anything else reads them.

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
        self.state[layer.weight_ph] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(layer.weight_ph),
            "exp_avg_sq": torch.zeros_like(layer.weight_ph),
        }
        self._settled()
        self._used: list[tuple[OpenPeaks, sparse.csr_matrix, Tensor]] = []
        layer.product = self._product
        self._hook = layer.register_state_dict_pre_hook(lambda *_: self.settle())

    def release(self) -> None:
        """Pay every row and give the layer its ordinary product back."""
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
        """Nobody is owed anything: steps are counted from here."""
        self._last_p = np.zeros(len(self.layer.weight_ph), np.int64)
        self._owed = np.zeros(1)  # by the step of a row's last gradient

    @property
    def _memory(self) -> tuple[Any, Any, Any]:
        """Weights and moments as arrays (the same memory)."""
        weight_ph = self.layer.weight_ph
        state = self.state[weight_ph]
        parts = (weight_ph.detach(), state["exp_avg"], state["exp_avg_sq"])
        return tuple(part.numpy() for part in parts)  # type: ignore[return-value]

    def _due(self, peak: Any) -> Overdue:
        """What the rows of some peaks have missed."""
        from pyro_scale.kernels.peak_rows import Overdue

        last = self._last_p[peak]
        age = len(self._owed) - 1 - last
        n_ages = age.max(initial=0) + 1
        left = [beta ** np.arange(n_ages) for beta in self.param_groups[0]["betas"]]
        decay, decay_sq = (np.where(each > _FORGOTTEN, each, 0.0)[age] for each in left)
        dtype = self._memory[0].dtype
        return Overdue(*(part.astype(dtype) for part in (self._owed[last], decay, decay_sq)))

    def _product(self, x_np: Tensor) -> Tensor:
        """x W, whose backward keeps x and the gradient for the step."""
        if not is_sparse(x_np):
            raise TypeError("PeakAdam trains a layer on sparse cells; these are dense.")
        result: Tensor = _Product.apply(x_np, self.layer.weight_ph, self)
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
    def step(self, closure: Callable[[], Any] | None = None, *, scale: float = 1.0) -> None:  # type: ignore[override]
        """Update the weights by ``scale`` times the gradient."""
        from pyro_scale.kernels import peak_rows

        factors = self._factors()
        if factors is None:
            return
        x, grad_nh = factors
        (beta1, beta2), eps = self.param_groups[0]["betas"], self.param_groups[0]["eps"]
        state = self.state[self.layer.weight_ph]
        state["step"] += 1
        n_steps = float(state["step"])
        rate = self.param_groups[0]["lr"] / (1 - beta1**n_steps)
        root = (1 - beta2**n_steps) ** 0.5
        scalars = (rate, 1 / root, eps, beta1, beta2)
        peak_rows.step(x, self._due(x.peak), (scale * grad_nh).numpy(), scalars, *self._memory)
        # All rows but these are owed one step more.
        now = len(self._owed)
        self._last_p[x.peak] = now
        ages = np.arange(min(now, _MOVING), 0, -1)
        self._owed[-_MOVING:] += rate * root * (beta1 / beta2**0.5) ** ages
        self._owed = np.append(self._owed, 0.0)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every row up to date."""
        from pyro_scale.kernels import peak_rows

        behind = np.flatnonzero(self._last_p < len(self._owed) - 1)
        if len(behind):
            peak_rows.pay(behind, self._due(behind), self.param_groups[0]["eps"], *self._memory)
        self._settled()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_np: Tensor, weight_ph: Tensor, optimizer: PeakAdam) -> Tensor:
        from pyro_scale.kernels import peak_rows

        matrix = to_scipy(x_np)
        x = peak_rows.OpenPeaks.of(matrix)
        ctx.x, ctx.matrix, ctx.optimizer = x, matrix, optimizer
        eps = optimizer.param_groups[0]["eps"]
        due = optimizer._due(x.peak)
        return torch.from_numpy(peak_rows.product(x, due, eps, *optimizer._memory))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[None, None, None]:
        ctx.optimizer._used.append((ctx.x, ctx.matrix, grad_nh))
        return None, None, None
