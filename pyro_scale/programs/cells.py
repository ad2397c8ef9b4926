"""What a program is conditioned on: a minibatch of cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Cells"]


class Cells(NamedTuple):
    """A minibatch of n cells and p peaks.

    Attributes
    ----------
    x_np
        Accessibility, shape ``(n, p)``: 0/1 for the Bernoulli likelihood, counts for the
        Poisson one.
    depth_n
        Total accessibility of each cell, shape ``(n,)``: a covariate the programs condition
        on, never a random variable.
    seen_np
        What the encoder reads of ``x_np``, shape ``(n, p)``; None: all of it.
    """

    x_np: Tensor
    depth_n: Tensor
    seen_np: Tensor | None = None

    @classmethod
    def from_counts(cls, x_np: Tensor) -> Cells:
        """Cells whose depth is the total of their own row."""
        return cls(x_np, x_np.sum(-1))

    @property
    def n_cells(self) -> int:
        """Number of cells in the minibatch."""
        return self.x_np.shape[0]

    def hide(self, share: float) -> Cells:
        """The same cells with a random share of the peaks hidden from the encoder.

        The decoder still accounts for every peak, so z has to hold what peaks share and not what
        one cell happens to show (Vincent et al. 2008, doi:10.1145/1390156.1390294). q(z|x) that
        sees less is still a q(z|x): the bound remains a bound.
        """
        return self._replace(seen_np=self.x_np * (torch.rand_like(self.x_np) >= share))

    def to(self, *args: object, **kwargs: object) -> Cells:
        """Move or cast every tensor, as :meth:`torch.Tensor.to`."""
        x_np, depth_n, seen_np = self
        return Cells(
            x_np.to(*args, **kwargs),  # type: ignore[call-overload]
            depth_n.to(*args, **kwargs),  # type: ignore[call-overload]
            None if seen_np is None else seen_np.to(*args, **kwargs),  # type: ignore[call-overload]
        )
