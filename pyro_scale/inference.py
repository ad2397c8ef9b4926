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

from pyro_scale.data import Counts, loader
from pyro_scale.objectives import TWINS, evaluate
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["Kind", "bound", "latent", "own_kind", "responsibilities"]

_AT_ONCE = 4096  # cells x draws

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


def latent(
    vae: MixtureVAE, counts: Counts, give_mean: bool, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """The mean of q(z|x), or one draw of it, shape ``(n, d)``."""

    def one(cells: Cells, normal: _Normal) -> Tensor:
        loc_nd, var_nd = vae.encoder(cells)
        return loc_nd if give_mean else normal.draw(loc_nd, var_nd, 1)[0]

    return _map(vae, counts, batch_size, seed, one)


def responsibilities(
    vae: MixtureVAE, counts: Counts, kind: Kind, n_samples: int, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """One of the q(c|x), shape ``(n, k)``, rows summing to one."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {', '.join(get_args(Kind))}.")

    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least one.")

    def one(cells: Cells, normal: _Normal) -> Tensor:
        if kind == "amortized":
            return vae.log_q_c(cells).exp()
        loc_nd, var_nd = vae.encoder(cells)
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
    twin = "mean_field" if name == "amortized" else name
    if twin not in TWINS:
        raise ValueError(
            f"bound={name!r} is not known; choose one of amortized, {', '.join(TWINS)}."
        )
    if n_samples < 1:
        raise ValueError(f"n_mc_samples={n_samples} must be at least one.")

    def one(cells: Cells, normal: _Normal) -> Tensor:
        loc_nd, var_nd = vae.encoder(cells)
        z_snd = normal.draw(loc_nd, var_nd, n_samples)
        log_q_c_nk = vae.log_q_c(cells) if name == "amortized" else None
        at_once = max(1, _AT_ONCE // cells.n_cells)
        parts = []
        for start in range(0, n_samples, at_once):
            part_snd = z_snd[start : start + at_once]
            at = evaluate(vae, cells, part_snd)
            if name == "importance_weighted":
                parts.append(TWINS["collapsed"](at, None))
            else:
                parts.append(TWINS[twin](at, log_q_c_nk).expand(len(part_snd), -1))
        values_sn = torch.cat(parts)
        if name == "importance_weighted":
            return values_sn.logsumexp(0) - np.log(n_samples)
        return values_sn.mean(0)

    return _map(vae, counts, batch_size, seed, one)
