"""Sums over all peaks of functions of the logits, without an array of cells x peaks.

The logit of a cell and a peak is the inner product of a short vector of the cell and one of the
peak, plus a bias of the peak and a shift of the cell. The sums that a likelihood needs are computed
in blocks of peaks that fit the cache; the backward pass recomputes the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import has_torch_function

from pyro_scale.ops.sparse import dispatched, is_sparse, matmul, to_scipy, totals

__all__ = ["Logits", "logsumexp_over_peaks", "softplus_over_peaks"]

_MAX_CELLS_X_PEAKS = {"cpu": 2**18, "cuda": 2**25}  # logits per block, which fit the caches

_Reduction = Literal["softplus", "logsumexp"]
_Arrays = tuple[Any, Any, Any, Any]  # h, w, b and shift as NumPy arrays
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of h, w, b and the shift


class Logits(NamedTuple):
    """The factors of the logits eta_np = h_nr @ w_pr.T + b_p + shift_n.

    Attributes
    ----------
    h_nr, w_pr, b_p, shift_n
        Input of the decoder's last layer, weights and biases of this layer, and a shift of each
        cell's logits, such as its depth term; shapes ``(..., n, r)``, ``(p, r)``, ``(p,)`` and
        ``(n,)``. With None there is no shift.
    """

    h_nr: Tensor
    w_pr: Tensor
    b_p: Tensor
    shift_n: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the logits as an array, shape ``(..., n, p)``."""
        eta_np = F.linear(self.h_nr, self.w_pr, self.b_p)
        return eta_np if self.shift_n is None else eta_np + self.shift_n.unsqueeze(-1)

    def weighted_sum(self, x_np: Tensor) -> Tensor:
        """Return sum_p x_np eta_np, shape ``(..., n)``.

        If x is sparse, the cost is proportional to its number of non-zero entries.
        """
        sum_n = _weighted_sum(x_np, self.h_nr, self.w_pr, self.b_p)
        return sum_n if self.shift_n is None else sum_n + self.shift_n * totals(x_np)


def softplus_over_peaks(eta: Logits) -> Tensor:
    """Return sum_p softplus(eta_np), shape ``(..., n)``."""
    if has_torch_function(eta):
        return dispatched(softplus_over_peaks, eta)
    return _reduce("softplus", eta)


def logsumexp_over_peaks(eta: Logits) -> Tensor:
    """Return log sum_p exp(eta_np), shape ``(..., n)``."""
    if has_torch_function(eta):
        return dispatched(logsumexp_over_peaks, eta)
    return _reduce("logsumexp", eta)


def _reduce(reduction: _Reduction, eta: Logits) -> Tensor:
    h_nr, w_pr, b_p, shift_n = eta
    shape = h_nr.shape[:-1]
    flat_n = None if shift_n is None else shift_n.expand(shape).reshape(-1)
    flat_nr = h_nr.reshape(-1, h_nr.shape[-1])
    total: Tensor = _SumOverPeaks.apply(reduction, flat_nr, w_pr, b_p, flat_n)  # type: ignore[no-untyped-call]  # untyped in torch
    return total.view(shape)


def _weighted_sum(x_np: Tensor, h_nr: Tensor, w_pr: Tensor, b_p: Tensor) -> Tensor:
    """Return sum_p x_np (h_n . w_p + b_p), shape ``(..., n)``."""
    given = (x_np, h_nr, w_pr, b_p)
    if has_torch_function(given):
        return dispatched(_weighted_sum, *given)
    if is_sparse(x_np) and h_nr.ndim == 2 and _implementation(h_nr) is _Compiled:
        total_n: Tensor = _WeightedSum.apply(*given)  # type: ignore[no-untyped-call]  # untyped in torch
        return total_n
    product_nr = matmul(x_np, torch.cat([w_pr, b_p.unsqueeze(-1)], -1))  # one pass over x
    return (h_nr * product_nr[:, :-1]).sum(-1) + product_nr[:, -1]


class _SumOverPeaks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reduction: _Reduction,
        h_nr: Tensor,
        w_pr: Tensor,
        b_p: Tensor,
        shift_n: Tensor | None,
    ) -> Tensor:
        ctx.reduction, ctx.eta = reduction, Logits(h_nr, w_pr, b_p, shift_n)
        ctx.total_n = _implementation(h_nr).total(reduction, ctx.eta)
        total_n: Tensor = ctx.total_n.clone()
        return total_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        implementation = _implementation(grad_n)
        return None, *implementation.gradients(ctx.reduction, ctx.eta, ctx.total_n, grad_n)


class _Blockwise:
    """Sums over peaks by torch operations on blocks of peaks, for any device and dtype."""

    @staticmethod
    def total(reduction: _Reduction, eta: Logits) -> Tensor:
        n = len(eta.h_nr)
        if reduction == "softplus":
            total_n = eta.h_nr.new_zeros(n)
            for _, eta_np in _Blockwise._blocks(eta):
                total_n += F.softplus(eta_np).sum(-1)
            return total_n
        total_n = eta.h_nr.new_full((n,), -torch.inf)
        for _, eta_np in _Blockwise._blocks(eta):
            total_n = torch.logaddexp(total_n, eta_np.logsumexp(-1))
        return total_n

    @staticmethod
    def gradients(
        reduction: _Reduction, eta: Logits, total_n: Tensor, grad_n: Tensor
    ) -> _Gradients:
        h_nr, w_pr, b_p, shift_n = eta
        grad_nr, grad_p = torch.zeros_like(h_nr), torch.zeros_like(b_p)
        grad_rp = w_pr.new_empty(w_pr.shape[::-1])
        grad_shift_n = None if shift_n is None else torch.zeros_like(shift_n)
        for peaks, eta_np in _Blockwise._blocks(eta):
            if reduction == "softplus":
                slope_np = eta_np.sigmoid_().mul_(grad_n[:, None])
            else:
                slope_np = eta_np.sub_(total_n[:, None]).exp_().mul_(grad_n[:, None])
            grad_nr.addmm_(slope_np, w_pr[peaks])
            torch.mm(h_nr.T, slope_np, out=grad_rp[:, peaks])
            torch.sum(slope_np, 0, out=grad_p[peaks])
            if grad_shift_n is not None:
                grad_shift_n += slope_np.sum(1)
        return grad_nr, grad_rp.T.contiguous(), grad_p, grad_shift_n

    @staticmethod
    def _blocks(eta: Logits) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of peaks and their logits."""
        h_nr, w_pr, b_p, shift_n = eta
        w_rp = w_pr.T.contiguous()  # products of a block then read and write contiguous rows
        max_size = _MAX_CELLS_X_PEAKS.get(h_nr.device.type, 2**18)
        step = max(1, max_size // max(1, len(h_nr)))
        for start in range(0, len(b_p), step):
            peaks = slice(start, start + step)
            eta_np = torch.addmm(b_p[peaks], h_nr, w_rp[:, peaks])
            yield peaks, eta_np if shift_n is None else eta_np.add_(shift_n[:, None])


class _Compiled:
    """Sums over peaks by compiled kernels, for the CPU and single precision."""

    @staticmethod
    def total(reduction: _Reduction, eta: Logits) -> Tensor:
        from pyro_scale.ops import _peak_sum_kernels as kernels

        sums = kernels.softplus_sums if reduction == "softplus" else kernels.exp_sums
        return torch.from_numpy(sums(*_Compiled._arrays(eta))).to(eta.h_nr)

    @staticmethod
    def gradients(
        reduction: _Reduction, eta: Logits, total_n: Tensor, grad_n: Tensor
    ) -> _Gradients:
        from pyro_scale.ops import _peak_sum_kernels as kernels

        grad = grad_n.contiguous().numpy()
        if reduction == "softplus":
            slopes = kernels.softplus_gradients(*_Compiled._arrays(eta), grad)
        else:
            slopes = kernels.exp_gradients(*_Compiled._arrays(eta, total_n), grad)
        grad_nr, grad_pr, grad_p, grad_shift_n = map(torch.from_numpy, slopes)
        shift = None if eta.shift_n is None else grad_shift_n.to(grad_n)
        return grad_nr.to(grad_n), grad_pr, grad_p, shift

    @staticmethod
    def _arrays(eta: Logits, subtracted_n: Tensor | None = None) -> _Arrays:
        """Return NumPy arrays of the factors; ``subtracted_n`` is subtracted from the logits."""
        h_nr, w_pr, b_p, shift_n = eta
        shift_n = h_nr.new_zeros(len(h_nr)) if shift_n is None else shift_n
        shift_n = shift_n if subtracted_n is None else shift_n - subtracted_n
        h, w, b, shift = _as_numpy(h_nr, w_pr, b_p, shift_n)
        return h, w, b, shift


def _implementation(like: Tensor) -> type[_Blockwise] | type[_Compiled]:
    """Return the implementation for the device and dtype of a tensor."""
    compiled = like.device.type == "cpu" and like.dtype == torch.float32
    return _Compiled if compiled else _Blockwise


class _WeightedSum(torch.autograd.Function):
    """Compute sum_p x_np (h_n . w_p + b_p) by compiled kernels that visit only non-zero x_np."""

    @staticmethod
    def forward(ctx: Any, x_np: Tensor, h_nr: Tensor, w_pr: Tensor, b_p: Tensor) -> Tensor:
        from pyro_scale.ops import _csr_kernels as kernels

        ctx.x, ctx.given = kernels.in_order(to_scipy(x_np)), (h_nr, w_pr)
        sums = kernels.weighted_sums(ctx.x, *_as_numpy(h_nr, w_pr, b_p))
        return torch.from_numpy(sums).to(h_nr)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        from pyro_scale.ops import _csr_kernels as kernels

        slopes = kernels.gradients(ctx.x, *_as_numpy(*ctx.given, grad_n))
        grad_nr, grad_pr, grad_p = map(torch.from_numpy, slopes)
        return None, grad_nr.to(grad_n), grad_pr, grad_p


def _as_numpy(*tensors: Tensor) -> tuple[Any, ...]:
    """Return contiguous NumPy arrays of tensors, sharing memory if possible."""
    return tuple(each.detach().contiguous().numpy() for each in tensors)
