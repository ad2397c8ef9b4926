"""What a trained model says of cells, in minibatches and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
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


def _map(
    vae: MixtureVAE,
    counts: Counts,
    batch_size: int,
    seed: int,
    function: Callable[[Cells, torch.Generator], Tensor],
) -> NDArray[np.float32]:
    """Apply a function to minibatches, in order, with a generator of its own."""
    head = vae.encoder.loc.weight
    generator = torch.Generator(head.device).manual_seed(seed)
    vae.eval()
    with torch.inference_mode():
        parts = [function(cells.to(head), generator).cpu() for cells in loader(counts, batch_size)]
    return torch.cat(parts).numpy()


def _draw(loc: Tensor, var: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n samples of q(z|x), shape ``(n, *loc.shape)``."""
    noise = torch.randn((n, *loc.shape), generator=generator, device=loc.device, dtype=loc.dtype)
    return loc + var.sqrt() * noise


def latent(
    vae: MixtureVAE, counts: Counts, give_mean: bool, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """The mean of q(z|x), or one draw of it, shape ``(n, d)``."""

    def one(cells: Cells, generator: torch.Generator) -> Tensor:
        loc_nd, var_nd = vae.encoder(cells)
        return loc_nd if give_mean else _draw(loc_nd, var_nd, 1, generator)[0]

    return _map(vae, counts, batch_size, seed, one)


def responsibilities(
    vae: MixtureVAE, counts: Counts, kind: Kind, n_samples: int, batch_size: int, seed: int
) -> NDArray[np.float32]:
    """One of the q(c|x), shape ``(n, k)``, rows summing to one."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {', '.join(get_args(Kind))}.")

    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least one.")

    def one(cells: Cells, generator: torch.Generator) -> Tensor:
        if kind == "amortized":
            return vae.log_q_c(cells).exp()
        loc_nd, var_nd = vae.encoder(cells)
        if kind == "optimal":
            return vae.prior.log_optimal_q_c(loc_nd, var_nd).exp()
        if kind == "at_mean":
            return vae.prior.log_responsibilities(loc_nd).exp()
        z_snd = _draw(loc_nd, var_nd, n_samples, generator)
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

    def one(cells: Cells, generator: torch.Generator) -> Tensor:
        loc_nd, var_nd = vae.encoder(cells)
        log_q_c_nk = vae.log_q_c(cells) if name == "amortized" else None
        at_once = max(1, _AT_ONCE // cells.n_cells)
        parts = []
        for start in range(0, n_samples, at_once):
            n = min(at_once, n_samples - start)
            at = evaluate(vae, cells, _draw(loc_nd, var_nd, n, generator))
            if name == "importance_weighted":
                parts.append(TWINS["collapsed"](at, None))
            else:
                parts.append(TWINS[twin](at, log_q_c_nk).expand(n, -1))
        values_sn = torch.cat(parts)
        if name == "importance_weighted":
            return values_sn.logsumexp(0) - np.log(n_samples)
        return values_sn.mean(0)

    return _map(vae, counts, batch_size, seed, one)
