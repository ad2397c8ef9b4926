"""What a program is conditioned on: a minibatch of cells."""

from __future__ import annotations

from typing import NamedTuple

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
    """

    x_np: Tensor
    depth_n: Tensor

    @classmethod
    def from_counts(cls, x_np: Tensor) -> Cells:
        """Cells whose depth is the total of their own row."""
        return cls(x_np, x_np.sum(-1))

    @property
    def n_cells(self) -> int:
        """Number of cells in the minibatch."""
        return self.x_np.shape[0]

    def to(self, *args: object, **kwargs: object) -> Cells:
        """Move or cast every tensor, as :meth:`torch.Tensor.to`."""
        return Cells(*(tensor.to(*args, **kwargs) for tensor in self))  # type: ignore[call-overload]
