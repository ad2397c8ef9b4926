"""Operations on sparse accessibility, at a cost proportional to its non-zero entries.

Accessibility is a CSR tensor of n cells and p peaks.
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

_ROWS = 2048  # peaks per block: their weights stay in the cache while all cells read them
_LARGE = 2**23  # number of weights from which they do not fit the cache

with warnings.catch_warnings():  # torch warns once per process that CSR is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([]).long(), torch.tensor([]), (1, 1))


def dispatched(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call ``function`` through ``__torch_function__`` of the arguments that are tensor subclasses.

    TraceGraph_ELBO passes such tensors, and ``torch.autograd.Function.apply`` ignores them.
    """
    tensors = tuple(part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,)))
    result: Tensor = handle_torch_function(function, tensors, *args)
    return result


def is_sparse(x_np: Tensor) -> bool:
    """Return whether accessibility is a CSR tensor."""
    return x_np.layout == torch.sparse_csr


def from_scipy(x: sparse.csr_matrix) -> Tensor:
    """Convert a SciPy matrix to a CSR tensor with 64-bit indices."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int64)),
        torch.from_numpy(x.data),
        x.shape,
    )


def rows_of(x_np: Tensor) -> Tensor:
    """Return the row (cell) of every entry, shape ``(nnz,)``."""
    counts = x_np.crow_indices().diff()
    return torch.repeat_interleave(counts, output_size=x_np.values().numel())


def with_values(x_np: Tensor, values: Tensor) -> Tensor:
    """Return a CSR tensor with the indices of ``x_np`` and other ``values``."""
    return torch.sparse_csr_tensor(x_np.crow_indices(), x_np.col_indices(), values, x_np.shape)


def totals(x_np: Tensor) -> Tensor:
    """Return sum_p x_np, shape ``(n,)``."""
    if not is_sparse(x_np):
        return x_np.sum(-1)
    return torch.segment_reduce(x_np.values(), "sum", offsets=x_np.crow_indices())


def to_scipy(x_np: Tensor) -> sparse.csr_matrix:
    """Return a SciPy matrix that shares the memory of a CSR tensor on the CPU."""
    parts = (x_np.values().numpy(), x_np.col_indices().numpy(), x_np.crow_indices().numpy())
    return sparse.csr_matrix(parts, shape=(x_np.shape[0], x_np.shape[1]))


def _bags(x: sparse.csr_matrix, weight_ph: Tensor) -> Tensor:
    """Return x @ weight_ph as weighted sums of rows of the weights."""
    return F.embedding_bag(
        torch.from_numpy(x.indices.astype(np.int64, copy=False)),
        weight_ph,
        torch.from_numpy(x.indptr[:-1].astype(np.int64, copy=False)),
        mode="sum",
        per_sample_weights=torch.from_numpy(x.data).to(weight_ph),
    )


def _has_kernels(x_np: Tensor) -> bool:
    """Return whether the kernels for the CPU multiply this matrix.

    Tests replace this function, to run the code for other devices on the CPU.
    """
    return x_np.device.type == "cpu"


def _transposed(x_np: Tensor) -> Tensor:
    """Return x^T as a CSR tensor, by one sort of the entries and without synchronizing a GPU.

    ``to_sparse_csc`` uses one thread per row to convert the row pointers, which takes longer on a
    GPU than the product itself.
    """
    n_cells, n_peaks = x_np.shape
    peak, order = torch.sort(x_np.col_indices().int(), stable=True)
    start = torch.searchsorted(peak, torch.arange(n_peaks + 1, device=x_np.device).int())
    return torch.sparse_csr_tensor(
        start, rows_of(x_np)[order], x_np.values()[order], (n_peaks, n_cells)
    )


def _product(x_np: Tensor, weight_ph: Tensor) -> Tensor:
    if not _has_kernels(x_np):
        product_nh: Tensor = torch.sparse.mm(x_np, weight_ph)
        return product_nh
    x = to_scipy(x_np)
    if weight_ph.numel() < _LARGE or 2 * len(x.data) < weight_ph.shape[0]:
        return _bags(x, weight_ph)
    # In blocks of peaks: all cells read the weights of a block while they are in the cache.
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
        if not _has_kernels(ctx.x_np):
            return None, torch.sparse.mm(_transposed(ctx.x_np), grad_nh)
        from pyro_scale.ops._csr_kernels import transposed_product

        x = to_scipy(ctx.x_np)
        return None, torch.from_numpy(transposed_product(x, grad_nh.contiguous().numpy()))


def matmul(x_np: Tensor, weight_ph: Tensor) -> Tensor:
    """Return x_np @ weight_ph for sparse or dense x, differentiable in the weights.

    Parameters
    ----------
    x_np
        Accessibility, shape ``(n, p)``.
    weight_ph
        Weights, shape ``(p, h)``.
    """
    if has_torch_function((x_np, weight_ph)):  # Pyro's provenance tensors
        return dispatched(matmul, x_np, weight_ph)
    if not is_sparse(x_np):
        return x_np @ weight_ph
    result: Tensor = _Matmul.apply(x_np, weight_ph)  # type: ignore[no-untyped-call]  # untyped in torch
    return result
