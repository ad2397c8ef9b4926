"""Products with sparse accessibility that cost what its ones cost.

Accessibility is a CSR tensor of n cells and p peaks with few entries that are not zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

__all__ = [
    "dispatched",
    "from_scipy",
    "is_sparse",
    "matmul",
    "rows_of",
    "to_scipy",
    "totals",
    "with_values",
]

_ROWS = 2048  # peaks whose weights stay in the cache while all cells read them
_LARGE = 2**23  # weights that do not fit the cache

with warnings.catch_warnings():  # torch says once per process that CSR tensors are young
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([]).long(), torch.tensor([]), (1, 1))


def dispatched(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Let tensor subclasses (TraceGraph_ELBO's) have their say: ``Function.apply`` does not."""
    tensors = tuple(part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,)))
    result: Tensor = handle_torch_function(function, tensors, *args)
    return result


def is_sparse(x_np: Tensor) -> bool:
    """Whether accessibility is given as a CSR tensor."""
    return x_np.layout == torch.sparse_csr


def from_scipy(x: sparse.csr_matrix) -> Tensor:
    """A CSR tensor of the same entries (32-bit indices become 64-bit)."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int64)),
        torch.from_numpy(x.data),
        x.shape,
    )


def rows_of(x_np: Tensor) -> Tensor:
    """The cell of every entry, shape ``(nnz,)``."""
    counts = x_np.crow_indices().diff()
    return torch.repeat_interleave(counts, output_size=x_np.values().numel())


def with_values(x_np: Tensor, values: Tensor) -> Tensor:
    """The same places, other entries."""
    return torch.sparse_csr_tensor(x_np.crow_indices(), x_np.col_indices(), values, x_np.shape)


def totals(x_np: Tensor) -> Tensor:
    """sum_p x_np, shape ``(n,)``."""
    if not is_sparse(x_np):
        return x_np.sum(-1)
    return torch.segment_reduce(x_np.values(), "sum", offsets=x_np.crow_indices())


def to_scipy(x_np: Tensor) -> sparse.csr_matrix:
    """The same memory as a scipy matrix (CPU)."""
    parts = (x_np.values().numpy(), x_np.col_indices().numpy(), x_np.crow_indices().numpy())
    return sparse.csr_matrix(parts, shape=(x_np.shape[0], x_np.shape[1]))


def _bags(x: sparse.csr_matrix, weight_ph: Tensor) -> Tensor:
    """The product, as sums of rows of the weights."""
    return F.embedding_bag(
        torch.from_numpy(x.indices.astype(np.int64, copy=False)),
        weight_ph,
        torch.from_numpy(x.indptr[:-1].astype(np.int64, copy=False)),
        mode="sum",
        per_sample_weights=torch.from_numpy(x.data).to(weight_ph),
    )


def _product(x_np: Tensor, weight_ph: Tensor) -> Tensor:
    if x_np.device.type != "cpu":  # pragma: no cover  (tests/test_gpu.py)
        product_nh: Tensor = torch.sparse.mm(x_np, weight_ph)
        return product_nh
    x = to_scipy(x_np)
    if weight_ph.numel() < _LARGE or 2 * len(x.data) < weight_ph.shape[0]:
        return _bags(x, weight_ph)
    # Peaks in blocks: all cells read a block's weights before the next block's come.
    n, n_blocks = x.shape[0], -(-x.shape[1] // _ROWS)
    row = np.repeat(np.arange(n), np.diff(x.indptr)) + n * (x.indices // _ROWS)
    blocks = sparse.coo_matrix((x.data, (row, x.indices)), (n * n_blocks, x.shape[1])).tocsr()
    return _bags(blocks, weight_ph).view(n_blocks, n, -1).sum(0)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_np: Tensor, weight_ph: Tensor) -> Tensor:
        ctx.x_np = x_np
        return _product(x_np, weight_ph)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[None, Tensor | None]:
        if ctx.x_np.device.type != "cpu":  # pragma: no cover  (tests/test_gpu.py)
            csc = ctx.x_np.to_sparse_csc()
            x_pn = torch.sparse_csr_tensor(
                csc.ccol_indices(), csc.row_indices(), csc.values(), ctx.x_np.shape[::-1]
            )
            return None, torch.sparse.mm(x_pn, grad_nh)
        from pyro_scale.kernels.over_ones import transposed_product

        x = to_scipy(ctx.x_np)
        return None, torch.from_numpy(transposed_product(x, grad_nh.contiguous().numpy()))


def matmul(x_np: Tensor, weight_ph: Tensor) -> Tensor:
    """x_np @ weight_ph for sparse or dense x, differentiable in the weights.

    Parameters
    ----------
    x_np
        Accessibility, shape ``(n, p)``.
    weight_ph
        Shape ``(p, h)``.
    """
    if has_torch_function((x_np, weight_ph)):  # Pyro's tensors that know where they come from
        return dispatched(matmul, x_np, weight_ph)
    if not is_sparse(x_np):
        return x_np @ weight_ph
    result: Tensor = _Matmul.apply(x_np, weight_ph)  # type: ignore[no-untyped-call]  # torch's, without types
    return result
