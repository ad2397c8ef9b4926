"""The optimizer of training, Adam, and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_scale.programs import MixtureVAE
from pyro_scale.training.config import TrainingConfig
from pyro_scale.training.lazy_adam import CombinedAdam, LazyAdam

__all__ = ["build_optimizer", "clip_grad_norm_", "close_optimizer"]


def build_optimizer(
    vae: MixtureVAE, config: TrainingConfig, n_cells: int, *, distributed: bool
) -> torch.optim.Adam:
    """Build Adam, with weight decay for the decoder's weights.

    The weight decay is the gradient of the Gaussian prior on these weights
    (``config.decoder_precision``).

    Parameters
    ----------
    vae
        The model. The mixture's parameters are Adam's second parameter group, because they are
        replaced when the number of components is chosen.
    config
        The training settings, of which ``lr`` and ``decoder_precision`` are used.
    n_cells
        Number of training cells.
    distributed
        Whether several processes train together. :class:`LazyAdam` does not average its gradients
        over processes, so plain Adam then updates all parameters.

    Returns
    -------
    torch.optim.Adam
        :class:`CombinedAdam` if one process trains on the CPU and the encoder has a layer that
        reads the peaks, otherwise :class:`torch.optim.Adam`.
    """
    decoder_weights = [p for p in vae.likelihood.parameters() if p.ndim > 1]
    prior = list(vae.prior.parameters())
    grouped = {id(p) for p in (*decoder_weights, *prior)}
    layer = vae.encoder.peaks
    lazy: LazyAdam | None = None
    if layer is not None and layer.weight_ph.device.type == "cpu" and not distributed:
        lazy = LazyAdam(layer, config.lr)
        grouped.add(id(layer.weight_ph))
    groups: list[dict[str, Any]] = [
        {"params": decoder_weights, "weight_decay": config.decoder_precision / n_cells},
        {"params": prior},
        {"params": [p for p in vae.parameters() if id(p) not in grouped]},
    ]
    if lazy is None:
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return CombinedAdam(groups, lazy, config.lr)


def clip_grad_norm_(module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients to a total Euclidean norm of at most ``max_norm``, in place.

    Gradients whose norm is smaller or not finite are not changed. The gradient that a
    :class:`LazyAdam` in ``optimizer`` holds is included.

    Returns
    -------
    Tensor
        The norm before clipping.

    References
    ----------
    Pascanu et al. 2013, *On the difficulty of training recurrent neural networks*, arXiv:1211.5063.
    """
    lazy = optimizer.lazy if isinstance(optimizer, CombinedAdam) else None
    with_grad = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if lazy is not None:
        norm = torch.hypot(norm, lazy.norm().to(norm))
    if norm.isfinite() and norm > max_norm:
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
        if lazy is not None:
            lazy.scale_gradient_(float(max_norm / (norm + 1e-6)))
    return norm


def close_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Free the optimizer's state, and give the encoder's layer back its ordinary product."""
    if isinstance(optimizer, CombinedAdam):
        optimizer.lazy.close()
    optimizer.state.clear()
    optimizer.param_groups.clear()
