"""The networks, each introduced by the distribution it parameterises."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_scale.programs.cells import Cells
from pyro_scale.programs.sparse import is_sparse, matmul, rows_of, with_values

__all__ = ["Classifier", "Encoder", "Lsi", "PeakLinear", "PosteriorVariance", "mlp"]

PosteriorVariance = Literal["softplus", "exp"]
"""How the encoder's output becomes a variance."""


def mlp(
    sizes: Sequence[int], *, layer_norm: bool = False, first: nn.Module | None = None
) -> nn.Sequential:
    """Linear-(LayerNorm)-ReLU for each consecutive pair of sizes; empty for a single size.

    ``first`` takes the place of the first linear layer.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers.append(linear(n_in, n_out) if layers or first is None else first)
        if layer_norm:
            layers.append(nn.LayerNorm(n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer with Xavier-normal weights and zero bias, as in the original SCALE."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PeakLinear(nn.Module):
    """A linear layer that reads accessibility: its weights are stored peak by peak.

    A cell's hidden units are the sum of the rows of its open peaks, so a sparse cell costs what its
    ones cost.

    Parameters
    ----------
    n_peaks, n_hidden
        P and H.

    Examples
    --------
    >>> layer = PeakLinear(n_peaks=30, n_hidden=8)
    >>> x_np = (torch.rand(5, 30) < 0.2).float()
    >>> layer(x_np).shape, torch.allclose(layer(x_np), layer(x_np.to_sparse_csr()), atol=1e-6)
    (torch.Size([5, 8]), True)
    """

    def __init__(self, n_peaks: int, n_hidden: int) -> None:
        super().__init__()
        layer = linear(n_peaks, n_hidden)
        self.weight_ph = nn.Parameter(layer.weight.detach().T.contiguous())
        self.bias_h = layer.bias
        self.product: Callable[[Tensor], Tensor] | None = None  # an optimiser's, while it trains

    def forward(self, x_np: Tensor) -> Tensor:
        """Shape ``(n, h)``, for sparse or dense accessibility."""
        product_nh = self.product(x_np) if self.product else matmul(x_np, self.weight_ph)
        return product_nh + self.bias_h


class Lsi(nn.Module):
    r"""Latent semantic indexing: TF-IDF projected on R directions, of unit length per cell.

    .. math:: y_n = \log(1 + 10^4 \, x_n / \mathrm{depth}_n \cdot \mathrm{idf}), \quad
              f_n = \sqrt{R} \; y_n V / \lVert y_n V \rVert

    The directions are the data's (:func:`pyro_scale.training.lsi_of`) and are not trained. Where
    cells come from several batches, the mean coordinates of a cell's batch are taken off f: a
    decoder that is told the batch does not stop z from repeating it.

    Parameters
    ----------
    n_peaks, n_directions, n_batches
        P, R and the number of batches.

    References
    ----------
    Cusanovich et al. 2015, doi:10.1126/science.aab1601 (TF-IDF, SVD, depth's component left out).

    Examples
    --------
    >>> lsi = Lsi(n_peaks=30, n_directions=4)
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.5).float())
    >>> lsi.n_directions, lsi.tf_idf(cells.x_np, cells.depth_n).shape
    (4, torch.Size([5, 30]))
    >>> lsi.centre(cells)  # of one batch: nothing to do
    >>> lsi(cells.x_np, cells.depth_n).shape
    torch.Size([5, 4])
    """

    def __init__(self, n_peaks: int, n_directions: int, n_batches: int = 1) -> None:
        super().__init__()
        self.register_buffer("centre_br", torch.zeros(n_batches, n_directions))
        self.centre_br: Tensor
        self.register_buffer("idf_p", torch.ones(n_peaks))
        self.register_buffer("directions_pr", torch.zeros(n_peaks, n_directions))
        self.idf_p: Tensor
        self.directions_pr: Tensor

    @property
    def n_directions(self) -> int:
        """R, the number of directions."""
        return self.directions_pr.shape[1]

    def tf_idf(self, x_np: Tensor, depth_n: Tensor) -> Tensor:
        """y, sparse where ``x_np`` is, shape ``(n, p)``; ``depth_n`` has shape ``(n,)``."""
        depth_n = depth_n.clamp_min(1.0)
        if not is_sparse(x_np):
            return torch.log1p(1e4 * x_np / depth_n.unsqueeze(-1) * self.idf_p)
        x, depth, idf = x_np.values(), depth_n[rows_of(x_np)], self.idf_p[x_np.col_indices()]
        return with_values(x_np, torch.log1p(1e4 * x / depth * idf))

    def forward(self, x_np: Tensor, depth_n: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """The cells' coordinates, shape ``(n, r)``; without batches each row has length sqrt(R)."""
        f_nr: Tensor = matmul(self.tf_idf(x_np, depth_n), self.directions_pr)
        f_nr = F.normalize(f_nr, dim=-1) * self.n_directions**0.5
        return f_nr if batch_n is None else f_nr - self.centre_br[batch_n]

    @torch.no_grad()
    def centre(self, cells: Cells) -> None:
        """Take the mean coordinates of each batch from ``cells``; without batches, nothing."""
        if cells.batch_n is None:
            return
        f_nr = self(cells.x_np, cells.depth_n)
        for batch in cells.batch_n.unique():
            self.centre_br[batch] = f_nr[cells.batch_n == batch].mean(0)


class Encoder(nn.Module):
    """q(z|x) = Normal(loc(x), diag(var(x))).

    Parameters
    ----------
    n_peaks, n_latent
        P and D.
    hidden
        Widths of the hidden layers.
    layer_norm
        Normalise each hidden layer.
    lsi
        Maps :class:`Cells` to the network's input, shape ``(n, r)``; None feeds ``x_np``.
    min_var
        Floor of the posterior variance, in squared latent units.
    posterior_variance
        How the head's output becomes a variance: ``"softplus"``, or ``"exp"`` as in SCALE, which
        can overflow (and is bounded here at e^30).

    Examples
    --------
    >>> encoder = Encoder(n_peaks=30, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> loc_nd, var_nd = encoder(cells)  # encoder.moments(encoder.features(cells))
    >>> loc_nd.shape, encoder.q_z(loc_nd, var_nd).event_shape
    (torch.Size([5, 2]), torch.Size([2]))
    >>> encoder.peaks
    PeakLinear()
    """

    def __init__(
        self,
        n_peaks: int,
        n_latent: int,
        hidden: Sequence[int],
        *,
        layer_norm: bool = False,
        lsi: Lsi | None = None,
        min_var: float = 1e-6,
        posterior_variance: PosteriorVariance = "softplus",
    ) -> None:
        super().__init__()
        self.min_var, self.posterior_variance = min_var, posterior_variance
        self.lsi = lsi
        if lsi is None and not hidden:
            raise ValueError(
                "hidden=() leaves an encoder that reads the peaks no layer to read them with; give "
                "at least one width, such as (128,)."
            )
        sizes = [n_peaks if lsi is None else lsi.n_directions, *hidden]
        first = PeakLinear(*sizes[:2]) if lsi is None else None
        self.trunk = mlp(sizes, layer_norm=layer_norm, first=first)
        width = sizes[-1]
        self.loc = linear(width, n_latent)
        self.raw_var = linear(width, n_latent)

    def features(self, cells: Cells) -> Tensor:
        """The last hidden layer of ``cells``, shape ``(n, hidden[-1])``."""
        x_np = cells.x_np if cells.seen_np is None else cells.seen_np
        if self.lsi is not None:
            x_np = self.lsi(x_np, cells.depth_n, cells.batch_n)
        h_nh: Tensor = self.trunk(x_np)
        return h_nh

    @property
    def peaks(self) -> PeakLinear | None:
        """The layer that reads the peaks; None where LSI does."""
        return next((layer for layer in self.trunk if isinstance(layer, PeakLinear)), None)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z|x) from the last hidden layer ``features``, each ``(n, d)``."""
        raw_nd = self.raw_var(features)
        exp = self.posterior_variance == "exp"
        var_nd = raw_nd.clamp_max(30).exp() if exp else F.softplus(raw_nd)
        return self.loc(features), var_nd + self.min_var

    def forward(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z|x), each of shape ``(n, d)``."""
        return self.moments(self.features(cells))

    @staticmethod
    def q_z(loc_nd: Tensor, var_nd: Tensor) -> dist.Distribution:
        """q(z|x) of mean ``loc_nd`` and variance ``var_nd``: event shape ``(d,)``."""
        return dist.Normal(loc_nd, var_nd.sqrt()).to_event(1)


class Classifier(nn.Module):
    """q(c|x) = Categorical(softmax of a linear map of the encoder's last hidden layer).

    Parameters
    ----------
    n_features, n_components
        Width of that layer, and K.

    Examples
    --------
    >>> Classifier(n_features=8, n_components=3)(torch.rand(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(self, n_features: int, n_components: int) -> None:
        super().__init__()
        self.logits = linear(n_features, n_components)

    def forward(self, features: Tensor) -> Tensor:
        """log q(c|x), shape ``(n, k)``."""
        return F.log_softmax(self.logits(features), dim=-1)
