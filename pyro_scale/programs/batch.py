"""The minibatch of cells that a program is conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.ops.sparse import is_sparse, with_values

__all__ = ["CellBatch"]


class CellBatch(NamedTuple):
    """A minibatch of n cells and p peaks.

    Attributes
    ----------
    x_np
        Accessibility, shape ``(n, p)``, dense or a CSR tensor: 0/1 for the Bernoulli
        likelihood, counts for the Poisson one.
    depth_n
        Total accessibility of each cell, shape ``(n,)``: a covariate that the programs condition
        on, not a random variable.
    encoder_input_np
        Input of the encoder, shape ``(n, p)``, such as ``x_np`` with masked peaks. If it is None,
        the encoder reads ``x_np``.
    batch_n
        Index of each cell's batch, shape ``(n,)``, int64: a covariate of the decoder. None for a
        model without batches.

    Examples
    --------
    >>> cells.n_cells, cells.is_sparse, cells.depth_n.shape
    (5, False, torch.Size([5]))
    >>> cells.mask_peaks(0.5).encoder_input_np.shape, cells.take(slice(2)).n_cells
    (torch.Size([5, 30]), 2)
    >>> one, other = cells.split_peaks()
    >>> torch.equal(one.encoder_input_np + other.encoder_input_np, cells.x_np)
    True
    >>> sparse = CellBatch(cells.x_np.to_sparse_csr(), CellBatch.from_counts(cells.x_np).depth_n)
    >>> sparse.dense().to(torch.float64).x_np.dtype
    torch.float64
    """

    x_np: Tensor
    depth_n: Tensor
    encoder_input_np: Tensor | None = None
    batch_n: Tensor | None = None

    @classmethod
    def from_counts(cls, x_np: Tensor) -> CellBatch:
        """Build a minibatch from ``x_np``, shape ``(n, p)``; the depth of a cell is its row sum."""
        return cls(x_np, x_np.sum(-1))

    @property
    def n_cells(self) -> int:
        """Number of cells in the minibatch."""
        return self.x_np.shape[0]

    @property
    def is_sparse(self) -> bool:
        """Whether the accessibility is a CSR tensor."""
        return is_sparse(self.x_np)

    def mask_peaks(self, mask_rate: float, *, rescale: bool = False) -> CellBatch:
        """Mask each peak of each cell with probability ``mask_rate`` in the encoder's input.

        The likelihood still includes all peaks, so that z has to encode what is common to several
        peaks rather than the noise of single peaks, as in a denoising autoencoder (Vincent et al.
        2008, doi:10.1145/1390156.1390294). The encoder's output for masked peaks is a valid q(z|x),
        so the ELBO remains a lower bound of log p(x). ``rescale`` divides the unmasked values by
        1 - ``mask_rate``, as dropout does, for an encoder that sums over its input.
        """
        return self._replace(encoder_input_np=self._unmasked(mask_rate, rescale))

    def split_peaks(self, rescale: bool = False) -> tuple[CellBatch, CellBatch]:
        """Split the encoder's input into two halves, with each peak of each cell in one of them.

        The peaks of the other half are masked. ``rescale`` is as in :meth:`mask_peaks`.
        """
        one_np = self._unmasked(0.5, rescale)
        factor = 2.0 if rescale else 1.0
        if self.is_sparse:
            other_np = with_values(self.x_np, factor * self.x_np.values() - one_np.values())
        else:
            other_np = factor * self.x_np - one_np
        return self._replace(encoder_input_np=one_np), self._replace(encoder_input_np=other_np)

    def _unmasked(self, mask_rate: float, rescale: bool) -> Tensor:
        """Return the accessibility with each peak of each cell masked at random."""
        factor = 1 / (1 - mask_rate) if rescale else 1.0
        if not self.is_sparse:
            return factor * self.x_np * (torch.rand_like(self.x_np) >= mask_rate)
        values = self.x_np.values()
        return with_values(
            self.x_np, torch.rand_like(values).ge_(mask_rate).mul_(values).mul_(factor)
        )

    def dense(self) -> CellBatch:
        """Return the same cells with dense accessibility."""
        return self._map(Tensor.to_dense)

    def take(self, cells: slice) -> CellBatch:
        """Select the rows ``cells`` of a dense minibatch."""
        return self._map(lambda part: part[cells])

    def to(self, like: Tensor | torch.device | torch.dtype, **kwargs: Any) -> CellBatch:
        """Move and cast the tensors; ``like`` and ``kwargs`` are those of :meth:`torch.Tensor.to`.

        Accessibility becomes dense on devices other than CPU and CUDA, which lack CSR tensors;
        ``batch_n`` remains int64.
        """
        device = like.device if isinstance(like, Tensor) else like
        lacks_csr = isinstance(device, torch.device) and device.type not in ("cpu", "cuda")
        cells = self.dense() if lacks_csr else self
        moved = cells._map(lambda part: part.to(like, **kwargs))
        return moved if moved.batch_n is None else moved._replace(batch_n=moved.batch_n.long())

    def _map(self, function: Callable[[Tensor], Tensor]) -> CellBatch:
        """Apply a function to every tensor."""
        x_np, depth_n, encoder_input_np, batch_n = self
        return CellBatch(
            function(x_np),
            function(depth_n),
            None if encoder_input_np is None else function(encoder_input_np),
            None if batch_n is None else function(batch_n),
        )
