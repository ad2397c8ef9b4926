"""The approximate posterior q(z,c|x) of cells under a trained model, computed in minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale._validation import check_bool, check_choice, check_int, check_seed
from pyro_scale.analysis import diagnostics
from pyro_scale.data import CountMatrix, loader
from pyro_scale.exceptions import NonFiniteError
from pyro_scale.objectives import CLOSED_FORMS, OBJECTIVES, evaluate
from pyro_scale.programs import CellBatch, Formulation, MixtureVAE, rsample

__all__ = ["Kind", "Posterior", "log_weights"]

_MAX_CELLS_X_DRAWS = 4096  # cells x draws that are evaluated at a time
_MAX_DRAWS = 10**6  # per cell; all draws of a cell are in memory together

Kind = Literal["averaged", "optimal", "at_mean", "amortized"]
"""Which q(c|x), the probabilities of a cell's mixture component c, to compute.

``"averaged"`` is the mean of p(c|z) over draws of z from q(z|x), ``"optimal"`` the q(c|x)
independent of z that maximizes the ELBO, ``"at_mean"`` p(c|z) at the mean of q(z|x), and
``"amortized"`` the output of the classifier network. Where None is allowed, it stands for the
q(c|x) of the model's formulation.
"""


class _CellNoise:
    """Standard normal draws that depend only on the seed and the cell's name.

    Results for a cell therefore depend neither on the other cells nor on the batch size.
    """

    def __init__(self, names: pd.Index, seed: int) -> None:
        self.names, self.seed = names, seed

    def draw(self, like_nd: Tensor, n_samples: int) -> Tensor:
        """Return draws of shape ``(s, n, d)``, on the device and in the dtype of ``like_nd``."""
        from pyro_scale.ops._normal_kernels import keyed_normals  # Numba takes long to import

        names = self.names.astype(str).to_numpy(dtype=object)
        keys_n = pd.util.hash_array(names, categorize=False)
        noise_snd = keyed_normals(keys_n, self.seed, n_samples, like_nd.shape[1])
        return torch.from_numpy(noise_snd).to(like_nd)


class Posterior:
    """The approximate posterior q(z,c|x) of some cells, and quantities computed from it.

    These are latent means, responsibilities, bounds of log p(x) and the Pareto k-hat.

    Parameters
    ----------
    vae
        The trained model.
    counts
        The cells.
    formulation
        The formulation, a choice of q(z,c|x). Its q(c|.), the distribution of the mixture component
        c given z, given x, or given an auxiliary draw u from q(z|x), gives the responsibilities.
    batch_size
        Number of cells that are evaluated at a time.
    seed
        Seed of the draws. The draws of a cell depend only on the seed and the cell's name, not on
        which other cells are evaluated.
    """

    def __init__(
        self,
        vae: MixtureVAE,
        counts: CountMatrix,
        formulation: Formulation,
        *,
        batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        self.batch_size, self.seed = check_int("batch_size", batch_size), check_seed(seed)
        self.vae, self.counts, self.formulation = vae, counts, formulation

    def latent(self, *, give_mean: bool = True) -> NDArray[np.float32]:
        """Return the mean of q(z|x), or one draw from it, shape ``(n, d)``."""
        check_bool("give_mean", give_mean)

        def latent(cells: CellBatch, noise: _CellNoise) -> Tensor:
            loc_nd, var_nd = self._moments(cells)
            return loc_nd if give_mean else rsample(loc_nd, var_nd, noise.draw(loc_nd, 1))[0]

        return self._map(latent)

    def responsibilities(
        self, kind: Kind | None = None, *, n_samples: int = 100
    ) -> NDArray[np.float32]:
        """Return q(c|x), shape ``(n, k)``; its rows sum to one.

        ``kind`` chooses the q(c|x) (:data:`Kind`). With None it is that of the formulation. If the
        formulation's q(c|.) depends on z or u, it is averaged over ``n_samples`` draws from q(z|x).
        """
        check_choice("kind", kind, (*get_args(Kind), None))
        check_int("n_samples", n_samples, most=_MAX_DRAWS)
        prior, formulation = self.vae.prior, self.formulation

        def responsibilities(cells: CellBatch, noise: _CellNoise) -> Tensor:
            if kind == "amortized":
                return self.vae.log_q_c(cells).exp()
            loc_nd, var_nd = self._moments(cells)
            if kind == "optimal":
                return prior.log_optimal_q_c(loc_nd, var_nd).exp()
            if kind == "at_mean":
                return prior.log_responsibilities(loc_nd).exp()
            if kind is None and formulation.c_given == "x":
                return formulation.log_q(self.vae, cells, loc_nd).exp()
            z_snd = rsample(loc_nd, var_nd, noise.draw(loc_nd, n_samples))
            if kind is None:
                return formulation.log_q(self.vae, cells, z_snd).exp().mean(0)
            return prior.log_responsibilities(z_snd).exp().mean(0)

        return self._map(responsibilities)

    def clusters(self, q_c_nk: NDArray[np.float32]) -> pd.Series:
        """Return the most probable component of each cell, given ``q_c_nk`` of shape ``(n, k)``."""
        names = pd.Index([str(k) for k in range(self.vae.n_components)])
        clusters = pd.Categorical(names[q_c_nk.argmax(1)], categories=names)
        return pd.Series(clusters, index=self.counts.obs_names, name="scale_cluster")

    def bound(self, name: str, *, n_samples: int) -> pd.Series:
        """Return a bound of log p(x) per cell, in nats, estimated from ``n_samples`` draws.

        ``name`` is one of :data:`pyro_scale.objectives.CLOSED_FORMS`. The bound is the mean of that
        closed form over draws from q(z|x), except for a closed form that reduces over the draws
        itself, such as ``"importance_weighted"``, the log of the mean importance weight.
        """
        check_choice("bound", name, CLOSED_FORMS)
        check_int("n_mc_samples", n_samples, most=_MAX_DRAWS)

        # A closed form that reduces over the draws needs all draws of a cell at once; only the
        # importance-weighted bound can be put together from blocks of draws.
        streamed = name == "importance_weighted"
        reduces = any(o.closed_form == name and o.n_particles > 1 for o in OBJECTIVES.listed)
        batch_size = self.batch_size
        if reduces and not streamed:
            batch_size = min(batch_size, max(1, _MAX_CELLS_X_DRAWS // n_samples))

        def bound(cells: CellBatch, noise: _CellNoise) -> Tensor:
            moments = loc_nd, var_nd = self._moments(cells)
            z_snd = rsample(loc_nd, var_nd, noise.draw(loc_nd, n_samples))
            if streamed:
                log_w_sn = log_weights(self.vae, cells, z_snd, moments)
                log_mean_w_n: Tensor = log_w_sn.logsumexp(0) - np.log(n_samples)
                return log_mean_w_n
            if reduces:
                return CLOSED_FORMS[name](evaluate(self.vae, cells, z_snd, moments=moments))
            return _closed_form(self.vae, cells, z_snd, moments, name).mean(0)

        return pd.Series(self._map(bound, batch_size), index=self.counts.obs_names, name=name)

    def pareto_k(self, *, n_samples: int) -> pd.Series:
        """Return the Pareto k-hat of each cell, from ``n_samples`` importance weights of q(z|x).

        k-hat shows how well q(z|x) fits (:func:`pyro_scale.analysis.diagnostics.pareto_k`).
        """
        check_int("n_samples", n_samples, most=_MAX_DRAWS)

        def pareto_k(cells: CellBatch, noise: _CellNoise) -> Tensor:
            moments = loc_nd, var_nd = self._moments(cells)
            z_snd = rsample(loc_nd, var_nd, noise.draw(loc_nd, n_samples))
            log_w_sn = log_weights(self.vae, cells, z_snd, moments)
            return torch.from_numpy(diagnostics.pareto_k(log_w_sn.cpu().numpy()))

        return pd.Series(self._map(pareto_k), index=self.counts.obs_names, name="pareto_k")

    def _map(
        self,
        function: Callable[[CellBatch, _CellNoise], Tensor],
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Apply a function to each minibatch and its normal draws, and concatenate the results."""
        parameter = self.vae.encoder.loc.weight
        parts: list[Tensor] = []
        start = 0
        self.vae.eval()
        with torch.inference_mode():
            for cells in loader(self.counts, batch_size or self.batch_size):
                names = self.counts.obs_names[start : start + cells.n_cells]
                parts.append(function(cells.to(parameter), _CellNoise(names, self.seed)).cpu())
                start += cells.n_cells
        return torch.cat(parts).numpy()

    def _moments(self, cells: CellBatch) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(z|x), each ``(n, d)``; raise if one is not finite."""
        loc_nd, var_nd = self.vae.encoder(cells)
        if not (torch.isfinite(loc_nd).all() and torch.isfinite(var_nd).all()):
            raise NonFiniteError(
                "q(z|x) of some cells is not finite: the weights of this model are too large, as "
                "after a failed training; train it again."
            )
        return loc_nd, var_nd


def _closed_form(
    vae: MixtureVAE, cells: CellBatch, z_snd: Tensor, moments: tuple[Tensor, Tensor], name: str
) -> Tensor:
    """Evaluate a closed form at every draw of z, in blocks of draws; shape ``(s, n)``."""
    parts = z_snd.split(max(1, _MAX_CELLS_X_DRAWS // cells.n_cells))
    values = (CLOSED_FORMS[name](evaluate(vae, cells, z, moments=moments)) for z in parts)
    return torch.cat([v.expand(len(z), -1) for v, z in zip(values, parts, strict=True)])


def log_weights(
    vae: MixtureVAE, cells: CellBatch, z_snd: Tensor, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """Return log p(x,z) - log q(z|x) at ``z_snd``, with c summed out, shape ``(s, n)``, in nats.

    ``moments`` are the mean and variance of q(z|x), each ``(n, d)``.
    """
    return _closed_form(vae, cells, z_snd, moments, "collapsed")
