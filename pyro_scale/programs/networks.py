"""The networks, each documented by the distribution that it parameterizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_scale._validation import check_choice
from pyro_scale.ops.sparse import is_sparse, matmul, rows_of, with_values
from pyro_scale.programs.batch import CellBatch

__all__ = ["Classifier", "Encoder", "Lsi", "PeakLinear", "PosteriorVariance", "mlp", "rsample"]

PosteriorVariance = Literal["softplus", "exp"]
"""Function that maps the encoder's output to a variance."""


def mlp(
    sizes: Sequence[int], *, layer_norm: bool = False, first: nn.Module | None = None
) -> nn.Sequential:
    """Build a linear layer, an optional LayerNorm and a ReLU for each pair of consecutive sizes.

    For a single size, the result is empty. ``first`` replaces the first linear layer.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers.append(linear(n_in, n_out) if layers or first is None else first)
        if layer_norm:
            layers.append(nn.LayerNorm(n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def linear(n_in: int, n_out: int) -> nn.Linear:
    """Build a linear layer with Xavier-normal weights and zero bias, as in the original SCALE."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def rsample(loc_nd: Tensor, var_nd: Tensor, noise_nd: Tensor) -> Tensor:
    """Return the reparameterized draw z = loc + sd * noise from q(z|x).

    Parameters
    ----------
    loc_nd, var_nd
        Mean and variance of q(z|x), shape ``(n, d)``.
    noise_nd
        Standard normal noise, shape ``(..., n, d)``.

    Examples
    --------
    >>> rsample(torch.ones(5, 2), torch.ones(5, 2), torch.zeros(4, 5, 2)).shape
    torch.Size([4, 5, 2])
    """
    return loc_nd + var_nd.sqrt() * noise_nd


class PeakLinear(nn.Module):
    """Linear layer that reads accessibility; its weights have one row per peak.

    The product of a cell's accessibility with the weights is a weighted sum of the weight rows of
    its open peaks. For sparse accessibility, the cost is proportional to the number of non-zero
    entries.

    Parameters
    ----------
    n_peaks, n_hidden
        Numbers of peaks (P) and of hidden units (H).

    Examples
    --------
    >>> layer = PeakLinear(n_peaks=30, n_hidden=8)
    >>> x_np = cells.x_np
    >>> layer(x_np).shape, torch.allclose(layer(x_np), layer(x_np.to_sparse_csr()), atol=1e-6)
    (torch.Size([5, 8]), True)
    """

    #: Function that replaces :func:`pyro_scale.ops.sparse.matmul` while
    #: :class:`~pyro_scale.training.lazy_adam.LazyAdam` trains the weights.
    product: Callable[[Tensor], Tensor] | None = None

    def __init__(self, n_peaks: int, n_hidden: int) -> None:
        super().__init__()
        layer = linear(n_peaks, n_hidden)
        self.weight_ph = nn.Parameter(layer.weight.detach().T.contiguous())
        self.bias_h = layer.bias

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle, with up-to-date weights and without ``product``."""
        self.state_dict()  # LazyAdam's state_dict hook brings the weights up to date
        return {key: value for key, value in self.__dict__.items() if key != "product"}

    def forward(self, x_np: Tensor) -> Tensor:
        """Return the hidden units before activation, ``(n, h)``, of sparse or dense ``x_np``."""
        product_nh = self.product(x_np) if self.product else matmul(x_np, self.weight_ph)
        return product_nh + self.bias_h


class Lsi(nn.Module):
    r"""Latent semantic indexing: TF-IDF projected onto R directions and normalized per cell.

    .. math:: y_n = \log(1 + 10^4 \, x_n / \mathrm{depth}_n \cdot \mathrm{idf}), \quad
              f_n = \sqrt{R} \; y_n V / \lVert y_n V \rVert

    The directions are computed from the data (:func:`pyro_scale.training.fit_lsi`) and not trained.
    If cells come from several batches, the mean coordinates of each cell's batch are subtracted
    from f. Otherwise z could encode the batch although the decoder is conditioned on it.

    Parameters
    ----------
    n_peaks, n_directions, n_batches
        Numbers of peaks (P), of directions (R) and of batches.

    References
    ----------
    Cusanovich et al. 2015, doi:10.1126/science.aab1601 (TF-IDF and SVD without the component that
    follows depth).

    Examples
    --------
    >>> lsi = Lsi(n_peaks=30, n_directions=4)
    >>> lsi.n_directions, lsi.tf_idf(cells.x_np, cells.depth_n).shape
    (4, torch.Size([5, 30]))
    >>> lsi.centre(cells)  # has no effect without batches
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
        """Return y, shape ``(n, p)``, sparse if ``x_np`` is; ``depth_n`` has shape ``(n,)``."""
        depth_n = depth_n.clamp_min(1.0)
        if not is_sparse(x_np):
            return torch.log1p(1e4 * x_np / depth_n.unsqueeze(-1) * self.idf_p)
        x, depth, idf = x_np.values(), depth_n[rows_of(x_np)], self.idf_p[x_np.col_indices()]
        return with_values(x_np, torch.log1p(1e4 * x / depth * idf))

    def forward(self, x_np: Tensor, depth_n: Tensor, batch_n: Tensor | None = None) -> Tensor:
        """Return the LSI coordinates of accessibility ``x_np``, shape ``(n, r)``.

        ``depth_n`` holds the depth of each cell. Each row is scaled to the norm sqrt(R), where R is
        the number of directions. If ``batch_n``, the experimental batch of each cell, is given, the
        mean coordinates of that batch are then subtracted.
        """
        f_nr: Tensor = matmul(self.tf_idf(x_np, depth_n), self.directions_pr)
        f_nr = F.normalize(f_nr, dim=-1) * self.n_directions**0.5
        return f_nr if batch_n is None else f_nr - self.centre_br[batch_n]

    @torch.no_grad()
    def centre(self, cells: CellBatch) -> None:
        """Compute the mean coordinates of each batch from ``cells`` and store them.

        Without batches, this has no effect.
        """
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
        Numbers of peaks (P) and of latent dimensions (D).
    hidden
        Widths of the hidden layers.
    layer_norm
        Whether each hidden layer is normalized.
    lsi
        Transform to the LSI coordinates that the network reads, shape ``(n, r)``. With None the
        network reads the accessibility.
    min_var
        Lower bound of the posterior variance, in squared latent units.
    posterior_variance
        Function that maps the output of the linear layer ``raw_var`` to a variance:
        ``"softplus"``, or ``"exp"`` as in SCALE. The exponential can overflow and is bounded here
        at e^30.

    Examples
    --------
    >>> encoder = Encoder(n_peaks=30, n_latent=2, hidden=(8,))
    >>> encoder.inputs(cells).shape
    torch.Size([5, 30])
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
        check_choice("posterior_variance", posterior_variance, get_args(PosteriorVariance))
        self.min_var, self.posterior_variance = min_var, posterior_variance
        self.lsi = lsi
        if lsi is None and not hidden:
            raise ValueError(
                "hidden=() is an encoder without a layer that reads the peaks; give at least one "
                "width, such as (128,)."
            )
        sizes = [n_peaks if lsi is None else lsi.n_directions, *hidden]
        first = PeakLinear(*sizes[:2]) if lsi is None else None
        self.trunk = mlp(sizes, layer_norm=layer_norm, first=first)
        width = sizes[-1]
        self.loc = linear(width, n_latent)
        self.raw_var = linear(width, n_latent)

    def inputs(self, cells: CellBatch) -> Tensor:
        """Return what the hidden layers read of ``cells``: LSI coordinates or accessibility.

        The shape is ``(n, r)`` or ``(n, p)``.
        """
        x_np = cells.x_np if cells.encoder_input_np is None else cells.encoder_input_np
        if self.lsi is None:
            return x_np
        f_nr: Tensor = self.lsi(x_np, cells.depth_n, cells.batch_n)
        return f_nr

    def features(self, cells: CellBatch) -> Tensor:
        """Return the last hidden layer of ``cells``, shape ``(n, hidden[-1])``."""
        h_nh: Tensor = self.trunk(self.inputs(cells))
        return h_nh

    @property
    def peaks(self) -> PeakLinear | None:
        """The layer that reads the peaks; None for an encoder that reads LSI coordinates."""
        return next((layer for layer in self.trunk if isinstance(layer, PeakLinear)), None)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(z|x), each ``(n, d)``, from the last hidden layer.

        ``features`` is the result of :meth:`features`.
        """
        raw_nd = self.raw_var(features)
        exp = self.posterior_variance == "exp"
        var_nd = raw_nd.clamp_max(30).exp() if exp else F.softplus(raw_nd)
        return self.loc(features), var_nd + self.min_var

    def forward(self, cells: CellBatch) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(z|x), each of shape ``(n, d)``."""
        return self.moments(self.features(cells))

    @staticmethod
    def q_z(loc_nd: Tensor, var_nd: Tensor) -> dist.Distribution:
        """Return q(z|x) with mean ``loc_nd`` and variance ``var_nd``, event shape ``(d,)``."""
        return dist.Normal(loc_nd, var_nd.sqrt()).to_event(1)


class Classifier(nn.Module):
    """q(c|x) = Categorical(softmax of a linear map of the encoder's last hidden layer).

    Parameters
    ----------
    n_features, n_components
        Width of the encoder's last hidden layer, and number of mixture components (K).

    Examples
    --------
    >>> Classifier(n_features=8, n_components=3)(torch.rand(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(self, n_features: int, n_components: int) -> None:
        super().__init__()
        self.logits = linear(n_features, n_components)

    def forward(self, features: Tensor) -> Tensor:
        """Return log q(c|x), shape ``(n, k)``."""
        return F.log_softmax(self.logits(features), dim=-1)
