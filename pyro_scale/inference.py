"""What a trained model says of cells, in minibatches and without gradients."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale.analysis import diagnostics
from pyro_scale.checks import check_choice, check_flag, check_seed, check_whole
from pyro_scale.data import Counts, loader
from pyro_scale.errors import NonFiniteError
from pyro_scale.objectives import TWINS, evaluate
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["Kind", "bound", "latent", "log_weights", "own_kind", "pareto_k", "responsibilities"]

_AT_ONCE = 4096  # cells x draws
_MOST_DRAWS = 10**6  # per cell: they are held at once

Kind = Literal["averaged", "optimal", "at_mean", "amortized"]
"""Which q(c|x)."""


def own_kind(formulation: str) -> Kind:
    """The q(c|x) that a formulation itself implies."""
    if formulation == "amortized":
        return "amortized"
    return "optimal" if formulation == "mean_field" else "averaged"


class _Normal:
    """Standard normal draws that belong to a cell: by its name and the seed, not by its place.

    So what is said of a cell depends neither on the cells beside it nor on ``batch_size``.
    """

    def __init__(self, names: pd.Index, seed: int) -> None:
        self.keys = [(seed, zlib.crc32(str(name).encode())) for name in names]

    def draw(self, loc_nd: Tensor, var_nd: Tensor, n_samples: int) -> Tensor:
        """Draws of q(z|x), shape ``(s, n, d)``."""
        shape = (n_samples, loc_nd.shape[1])
        noise = [
            np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
            for key in self.keys
        ]
        return loc_nd + var_nd.sqrt() * torch.from_numpy(np.stack(noise, 1)).to(loc_nd)


def _map(
    vae: MixtureVAE,
    counts: Counts,
    batch_size: int,
    seed: int,
    function: Callable[[Cells, _Normal], Tensor],
) -> NDArray[np.float32]:
    """Apply a function to minibatches, in order, each with the draws of its cells."""
    check_whole("batch_size", batch_size)
    check_seed(seed)
    head = vae.encoder.loc.weight
    parts: list[Tensor] = []
    start = 0
    vae.eval()
    with torch.inference_mode():
        for cells in loader(counts, batch_size):
            normal = _Normal(counts.obs_names[start : start + cells.n_cells], seed)
            parts.append(function(cells.to(head), normal).cpu())
            start += cells.n_cells
    return torch.cat(parts).numpy()


def _moments(vae: MixtureVAE, cells: Cells) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(z|x), each ``(n, d)``; an error where they are no numbers."""
    loc_nd, var_nd = vae.encoder(cells)
    if not (torch.isfinite(loc_nd).all() and torch.isfinite(var_nd).all()):
        raise NonFiniteError(
            "q(z|x) of some cells is not finite: the weights of this model are too large to be "
            "those of a training that worked; train it again."
        )
    return loc_nd, var_nd


def latent(
    vae: MixtureVAE, counts: Counts, give_mean: bool, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """The mean of q(z|x), or one draw of it, shape ``(n, d)``."""
    check_flag("give_mean", give_mean)

    def one(cells: Cells, normal: _Normal) -> Tensor:
        loc_nd, var_nd = _moments(vae, cells)
        return loc_nd if give_mean else normal.draw(loc_nd, var_nd, 1)[0]

    return _map(vae, counts, batch_size, seed, one)


def responsibilities(
    vae: MixtureVAE, counts: Counts, kind: Kind, n_samples: int, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """One of the q(c|x), shape ``(n, k)``, rows summing to one."""
    check_choice("kind", kind, get_args(Kind))
    check_whole("n_samples", n_samples, most=_MOST_DRAWS)

    def one(cells: Cells, normal: _Normal) -> Tensor:
        if kind == "amortized":
            return vae.log_q_c(cells).exp()
        loc_nd, var_nd = _moments(vae, cells)
        if kind == "optimal":
            return vae.prior.log_optimal_q_c(loc_nd, var_nd).exp()
        if kind == "at_mean":
            return vae.prior.log_responsibilities(loc_nd).exp()
        z_snd = normal.draw(loc_nd, var_nd, n_samples)
        return vae.prior.log_responsibilities(z_snd).exp().mean(0)

    return _map(vae, counts, batch_size, seed, one)


def bound(
    vae: MixtureVAE, counts: Counts, name: str, n_samples: int, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """A bound of log p(x) per cell, by closed form, averaged over draws of z: shape ``(n,)``.

    The importance-weighted bound takes its draws together.
    """
    twin = "mean_field" if isinstance(name, str) and name == "amortized" else name
    check_choice("bound", twin, ["amortized", *TWINS])
    check_whole("n_mc_samples", n_samples, most=_MOST_DRAWS)

    def one(cells: Cells, normal: _Normal) -> Tensor:
        moments = loc_nd, var_nd = _moments(vae, cells)
        z_snd = normal.draw(loc_nd, var_nd, n_samples)
        if name == "importance_weighted":
            log_w_sn = log_weights(vae, cells, z_snd, moments)
            log_mean_w_n: Tensor = log_w_sn.logsumexp(0) - np.log(n_samples)
            return log_mean_w_n
        log_q_c_nk = vae.log_q_c(cells) if name == "amortized" else None
        return _twin(vae, cells, z_snd, moments, twin, log_q_c_nk).mean(0)

    return _map(vae, counts, batch_size, seed, one)


def _twin(
    vae: MixtureVAE,
    cells: Cells,
    z_snd: Tensor,
    moments: tuple[Tensor, Tensor],
    name: str,
    log_q_c_nk: Tensor | None = None,
) -> Tensor:
    """A closed form at every draw, some draws at a time: shape ``(s, n)``."""
    parts = z_snd.split(max(1, _AT_ONCE // cells.n_cells))
    values = (TWINS[name](evaluate(vae, cells, z, moments=moments), log_q_c_nk) for z in parts)
    return torch.cat([v.expand(len(z), -1) for v, z in zip(values, parts, strict=True)])


def log_weights(
    vae: MixtureVAE, cells: Cells, z_snd: Tensor, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """log p(x, z) - log q(z|x), c summed out, at draws of z: shape ``(s, n)``, in nats."""
    return _twin(vae, cells, z_snd, moments, "collapsed")


def pareto_k(
    vae: MixtureVAE, counts: Counts, n_samples: int, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """k-hat of the importance weights of q(z|x), shape ``(n,)``."""
    check_whole("n_samples", n_samples, most=_MOST_DRAWS)

    def one(cells: Cells, normal: _Normal) -> Tensor:
        moments = loc_nd, var_nd = _moments(vae, cells)
        z_snd = normal.draw(loc_nd, var_nd, n_samples)
        log_w_sn = log_weights(vae, cells, z_snd, moments)
        return torch.from_numpy(diagnostics.pareto_k(log_w_sn.cpu().numpy()))

    return _map(vae, counts, batch_size, seed, one)
