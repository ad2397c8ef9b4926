"""What a program is conditioned on: a minibatch of cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.programs.sparse import is_sparse, with_values

__all__ = ["Cells"]


class Cells(NamedTuple):
    """A minibatch of n cells and p peaks.

    Attributes
    ----------
    x_np
        Accessibility, shape ``(n, p)``, dense or a CSR tensor: 0/1 for the Bernoulli
        likelihood, counts for the Poisson one.
    depth_n
        Total accessibility of each cell, shape ``(n,)``: a covariate the programs condition
        on, never a random variable.
    seen_np
        What the encoder reads of ``x_np``, shape ``(n, p)``; None: all of it.
    batch_n
        Number of the batch of each cell, shape ``(n,)``, int64: a covariate of the decoder; None
        where the model has none.

    Examples
    --------
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> cells.n_cells, cells.is_sparse, cells.depth_n.shape
    (5, False, torch.Size([5]))
    >>> cells.hide(share=0.5).seen_np.shape, cells.take(slice(2)).n_cells
    (torch.Size([5, 30]), 2)
    >>> sparse = Cells(cells.x_np.to_sparse_csr(), cells.depth_n)
    >>> sparse.dense().to(torch.float64).x_np.dtype
    torch.float64
    """

    x_np: Tensor
    depth_n: Tensor
    seen_np: Tensor | None = None
    batch_n: Tensor | None = None

    @classmethod
    def from_counts(cls, x_np: Tensor) -> Cells:
        """Cells whose depth is the total of their own row of ``x_np``, shape ``(n, p)``."""
        return cls(x_np, x_np.sum(-1))

    @property
    def n_cells(self) -> int:
        """Number of cells in the minibatch."""
        return self.x_np.shape[0]

    @property
    def is_sparse(self) -> bool:
        """Whether accessibility is held as its ones (a CSR tensor)."""
        return is_sparse(self.x_np)

    def hide(self, share: float, *, rescale: bool = False) -> Cells:
        """The same cells with a random ``share`` of the peaks hidden from the encoder.

        The decoder still accounts for every peak, so z has to hold what peaks share and not what
        one cell happens to show (Vincent et al. 2008, doi:10.1145/1390156.1390294). q(z|x) that
        sees less is still a q(z|x): the bound remains a bound. ``rescale`` divides what is seen by
        the share that is, as dropout does, for an encoder that adds up what it reads.
        """
        factor = 1 / (1 - share) if rescale else 1.0
        if not self.is_sparse:
            return self._replace(seen_np=factor * self.x_np * (torch.rand_like(self.x_np) >= share))
        ones = self.x_np.values()
        seen = torch.rand_like(ones).ge_(share).mul_(ones).mul_(factor)
        return self._replace(seen_np=with_values(self.x_np, seen))

    def dense(self) -> Cells:
        """The same cells, accessibility held as n x p numbers."""
        return self._each(Tensor.to_dense)

    def take(self, cells: slice) -> Cells:
        """The (dense) cells at ``cells``."""
        return self._each(lambda part: part[cells])

    def to(self, like: Tensor | torch.device | torch.dtype, **kwargs: Any) -> Cells:
        """Move to a device and cast to a type: ``like`` and ``kwargs`` as :meth:`torch.Tensor.to`.

        Devices other than CPU and CUDA have no CSR tensors and get dense ones; ``batch_n`` stays
        whole numbers.
        """
        device = like.device if isinstance(like, Tensor) else like
        elsewhere = isinstance(device, torch.device) and device.type not in ("cpu", "cuda")
        cells = self.dense() if elsewhere else self
        moved = cells._each(lambda part: part.to(like, **kwargs))
        return moved if moved.batch_n is None else moved._replace(batch_n=moved.batch_n.long())

    def _each(self, function: Callable[[Tensor], Tensor]) -> Cells:
        x_np, depth_n, seen_np, batch_n = self
        return Cells(
            function(x_np),
            function(depth_n),
            None if seen_np is None else function(seen_np),
            None if batch_n is None else function(batch_n),
        )
