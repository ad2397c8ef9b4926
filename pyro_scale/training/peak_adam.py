"""Adam for the layer that reads the peaks, whose gradient is never held whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.optim.adam import adam

from pyro_scale.programs import PeakLinear
from pyro_scale.programs.sparse import Columns, to_scipy

__all__ = ["PeakAdam"]

_ROWS = 2048  # peaks whose gradient is made and used at a time


class PeakAdam(torch.optim.Optimizer):
    r"""Adam on the weights of a :class:`~pyro_scale.programs.PeakLinear`, on the CPU.

    The gradient of the weights is :math:`x^T g`, with g the gradient of the hidden units. It is as
    large as the weights, and writing it, reading it for its norm and reading it for the step costs
    as much memory traffic as Adam itself. Here a block of its rows is made and used while it is
    in the cache, and its norm comes from two small matrices:
    :math:`\lVert x^T g \rVert^2 = \sum_{nm} (x x^T)_{nm} (g g^T)_{nm}`.

    Parameters
    ----------
    layer
        Its backward leaves x and g here from now on, and no gradient in its weights.
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
        layer.deferred = []

    def _factors(self) -> tuple[sparse.csr_matrix, Tensor] | None:
        """x and g of every use of the layer since the last step, one below the other."""
        if not self.layer.deferred:
            return None
        x, grad = zip(*self.layer.deferred, strict=True)
        if len(x) == 1:
            return to_scipy(x[0]), grad[0].contiguous()
        return sparse.vstack([to_scipy(x_np) for x_np in x], format="csr"), torch.cat(grad)

    def norm(self) -> Tensor:
        """The Euclidean norm of the gradient."""
        factors = self._factors()
        if factors is None:
            return torch.zeros(())
        x, grad_nh = factors
        gram_nn = torch.from_numpy((x @ x.T).toarray()).to(grad_nh)
        return (gram_nn * (grad_nh @ grad_nh.T)).sum().clamp_min(0).sqrt()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last step's."""
        self.layer.deferred = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, scale: float = 1.0) -> None:  # type: ignore[override]
        """Update the weights by ``scale`` times the gradient."""
        factors = self._factors()
        if factors is None:
            return
        columns, grad_nh = Columns.of(factors[0]), scale * factors[1]
        weight_ph, options = self.layer.weight_ph, self.param_groups[0]
        state = self.state[weight_ph]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight_ph)
            state["exp_avg_sq"] = torch.zeros_like(weight_ph)
        buffer = weight_ph.new_empty(min(_ROWS, len(weight_ph)), weight_ph.shape[1])
        for start in range(0, len(weight_ph), _ROWS):
            peaks = slice(start, start + _ROWS)
            rows = weight_ph[peaks]
            grad_ph = columns.take(start, len(rows)).product(grad_nh, buffer[: len(rows)])
            adam(
                [rows],
                [grad_ph],
                [state["exp_avg"][peaks]],
                [state["exp_avg_sq"][peaks]],
                [],
                [state["step"].clone()],
                fused=True,
                amsgrad=False,
                beta1=options["betas"][0],
                beta2=options["betas"][1],
                lr=options["lr"],
                weight_decay=0.0,
                eps=options["eps"],
                maximize=False,
            )
        state["step"] += 1
