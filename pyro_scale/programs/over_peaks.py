"""Sums over all peaks that never hold cells x peaks numbers.

Logits are an inner product of a few numbers per cell and per peak; what a likelihood needs of
them, sums over all peaks, is taken over blocks of peaks that fit the cache, forwards and again
backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import has_torch_function

from pyro_scale.programs.sparse import dispatched, is_sparse, matmul, to_scipy, totals

__all__ = ["Logits", "logsumexp_over_peaks", "softplus_over_peaks"]

_BLOCK = {"cpu": 2**18, "cuda": 2**25}  # cells x peaks at a time: what fits the caches


class Logits(NamedTuple):
    """eta_np = h_nr @ w_pr.T + b_p + shift_n, not multiplied out.

    Attributes
    ----------
    h_nr, w_pr, b_p, shift_n
        Shapes ``(..., n, r)``, ``(p, r)``, ``(p,)`` and ``(n,)`` (None: no shift).
    """

    h_nr: Tensor
    w_pr: Tensor
    b_p: Tensor
    shift_n: Tensor | None = None

    def dense(self) -> Tensor:
        """The logits, shape ``(..., n, p)``."""
        eta_np = F.linear(self.h_nr, self.w_pr, self.b_p)
        return eta_np if self.shift_n is None else eta_np + self.shift_n.unsqueeze(-1)

    def weighted_sum(self, x_np: Tensor) -> Tensor:
        """sum_p x_np eta_np, shape ``(..., n)``: over the ones where x is sparse."""
        sum_n = _over_ones(x_np, self.h_nr, self.w_pr, self.b_p)
        return sum_n if self.shift_n is None else sum_n + self.shift_n * totals(x_np)


def _compiled(h_nr: Tensor) -> bool:
    """Whether there are kernels for these: in single precision on the CPU."""
    return h_nr.device.type == "cpu" and h_nr.dtype == torch.float32


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """The same memory, for the kernels."""
    return tuple(each.detach().contiguous().numpy() for each in tensors)


class _OverOnes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_np: Tensor, h_nr: Tensor, w_pr: Tensor, b_p: Tensor) -> Tensor:
        from pyro_scale.kernels import over_ones

        ctx.x, ctx.given = over_ones.in_order(to_scipy(x_np)), (h_nr, w_pr)
        return torch.from_numpy(over_ones.weighted_sums(ctx.x, *_arrays(h_nr, w_pr, b_p))).to(h_nr)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        from pyro_scale.kernels import over_ones

        slopes = over_ones.gradients(ctx.x, *_arrays(*ctx.given, grad_n))
        grad_nr, grad_pr, grad_p = map(torch.from_numpy, slopes)
        return None, grad_nr.to(grad_n), grad_pr, grad_p


def _over_ones(x_np: Tensor, h_nr: Tensor, w_pr: Tensor, b_p: Tensor) -> Tensor:
    """sum_p x_np (h_n . w_p + b_p), shape ``(..., n)``."""
    given = (x_np, h_nr, w_pr, b_p)
    if has_torch_function(given):
        return dispatched(_over_ones, *given)
    if is_sparse(x_np) and h_nr.ndim == 2 and _compiled(h_nr):
        total_n: Tensor = _OverOnes.apply(*given)  # type: ignore[no-untyped-call]  # torch's, without types
        return total_n
    sum_n = (h_nr * matmul(x_np, w_pr)).sum(-1)
    return sum_n + matmul(x_np, b_p.unsqueeze(-1)).squeeze(-1)


class _Blocks:
    """Logits ``h_nr @ w_pr.T + b_p + shift_n``, some peaks at a time."""

    def __init__(self, h_nr: Tensor, w_pr: Tensor, b_p: Tensor, shift_n: Tensor | None) -> None:
        self.h_nr, self.w_pr, self.b_p, self.shift_n = h_nr, w_pr, b_p, shift_n
        self.step = max(1, _BLOCK.get(h_nr.device.type, 2**18) // max(1, len(h_nr)))

    @cached_property
    def w_rp(self) -> Tensor:
        """The weights along the peaks: so every product of a block reads and writes rows."""
        return self.w_pr.T.contiguous()

    def arrays(self, less_n: Tensor | None = None) -> tuple[Any, ...]:
        """For the kernels; ``less_n`` is taken off each cell's logits."""
        shift_n = torch.zeros(len(self.h_nr)) if self.shift_n is None else self.shift_n
        shift_n = shift_n if less_n is None else shift_n - less_n
        return _arrays(self.h_nr, self.w_pr, self.b_p, shift_n)

    def gradients_by(
        self, kernel: Callable[..., tuple[Any, ...]], grad_n: Tensor, less_n: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """What a kernel says the gradients in h, w, b and shift are."""
        slopes = kernel(*self.arrays(less_n), grad_n.contiguous().numpy())
        grad_nr, grad_pr, grad_p, grad_shift_n = map(torch.from_numpy, slopes)
        shift = None if self.shift_n is None else grad_shift_n.to(grad_n)
        return grad_nr.to(grad_n), grad_pr, grad_p, shift

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.b_p), self.step):
            peaks = slice(start, start + self.step)
            eta_np = torch.addmm(self.b_p[peaks], self.h_nr, self.w_rp[:, peaks])
            yield peaks, eta_np if self.shift_n is None else eta_np.add_(self.shift_n[:, None])

    def gradients(self, slope: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
        """Of sum_np f(eta_np) in h, w, b and shift, where ``slope(eta)`` is df / deta."""
        h_nr, w_rp, b_p, shift_n = self.h_nr, self.w_rp, self.b_p, self.shift_n
        grad_nr, grad_rp, grad_p = (torch.zeros_like(part) for part in (h_nr, w_rp, b_p))
        grad_n = None if shift_n is None else torch.zeros_like(shift_n)
        for peaks, eta_np in self:
            slope_np = slope(eta_np)
            grad_nr.addmm_(slope_np, w_rp[:, peaks].T)
            torch.mm(h_nr.T, slope_np, out=grad_rp[:, peaks])
            torch.sum(slope_np, 0, out=grad_p[peaks])
            if grad_n is not None:
                grad_n += slope_np.sum(1)
        return grad_nr, grad_rp.T.contiguous(), grad_p, grad_n


class _SoftplusOverPeaks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_nr: Tensor, w_pr: Tensor, b_p: Tensor, shift_n: Tensor | None
    ) -> Tensor:
        ctx.blocks = blocks = _Blocks(h_nr, w_pr, b_p, shift_n)
        if _compiled(h_nr):
            from pyro_scale.kernels.over_peaks import softplus_sums

            return torch.from_numpy(softplus_sums(*blocks.arrays())).to(h_nr)
        total_n = h_nr.new_zeros(len(h_nr))
        for _, eta_np in blocks:
            total_n += F.softplus(eta_np).sum(-1)
        return total_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        blocks: _Blocks = ctx.blocks
        if _compiled(blocks.h_nr):
            from pyro_scale.kernels.over_peaks import softplus_gradients

            return blocks.gradients_by(softplus_gradients, grad_n)
        grad_n1 = grad_n.unsqueeze(-1)
        return blocks.gradients(lambda eta_np: eta_np.sigmoid_().mul_(grad_n1))


class _LogsumexpOverPeaks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_nr: Tensor, w_pr: Tensor, b_p: Tensor, shift_n: Tensor | None
    ) -> Tensor:
        ctx.blocks = blocks = _Blocks(h_nr, w_pr, b_p, shift_n)
        if _compiled(h_nr):
            from pyro_scale.kernels.over_peaks import exp_sums

            log_n: Tensor = torch.from_numpy(exp_sums(*blocks.arrays())).to(h_nr)
            ctx.total_n = log_n
            return log_n.clone()
        total_n = h_nr.new_full((len(h_nr),), -torch.inf)
        for _, eta_np in blocks:
            total_n = torch.logaddexp(total_n, eta_np.logsumexp(-1))
        ctx.total_n = total_n.clone()
        return total_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        blocks: _Blocks = ctx.blocks
        if _compiled(blocks.h_nr):
            from pyro_scale.kernels.over_peaks import exp_gradients

            return blocks.gradients_by(exp_gradients, grad_n, ctx.total_n)
        total_n1, grad_n1 = ctx.total_n.unsqueeze(-1), grad_n.unsqueeze(-1)
        return blocks.gradients(lambda eta_np: eta_np.sub_(total_n1).exp_().mul_(grad_n1))


def _over_peaks(function: Any, eta: Logits) -> Tensor:
    h_nr, w_pr, b_p, shift_n = eta
    shape = h_nr.shape[:-1]
    flat_n = None if shift_n is None else shift_n.expand(shape).reshape(-1)
    total: Tensor = function.apply(h_nr.reshape(-1, h_nr.shape[-1]), w_pr, b_p, flat_n)
    return total.view(shape)


def softplus_over_peaks(eta: Logits) -> Tensor:
    """sum_p softplus(eta_np), shape ``(..., n)``."""
    if has_torch_function(eta):
        return dispatched(softplus_over_peaks, eta)
    return _over_peaks(_SoftplusOverPeaks, eta)


def logsumexp_over_peaks(eta: Logits) -> Tensor:
    """log sum_p exp(eta_np), shape ``(..., n)``."""
    if has_torch_function(eta):
        return dispatched(logsumexp_over_peaks, eta)
    return _over_peaks(_LogsumexpOverPeaks, eta)
