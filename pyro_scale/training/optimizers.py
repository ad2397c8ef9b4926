"""Adam for every parameter, and what is particular to some of them."""

from __future__ import annotations

from typing import Any

import torch

from pyro_scale.programs import MixtureVAE
from pyro_scale.training.peak_adam import PeakAdam
from pyro_scale.training.plan import TrainingPlan

__all__ = ["optimizers_of"]


def optimizers_of(
    vae: MixtureVAE, plan: TrainingPlan, n_cells: int, *, alone: bool
) -> tuple[torch.optim.Optimizer, PeakAdam | None]:
    """Adam; the Gaussian prior on the decoder's weights enters as their weight decay.

    Parameters
    ----------
    vae
        The parameters; the prior's are Adam's second group, because they may be replaced.
    plan
        Learning rate and precision of the decoder's weights.
    n_cells
        Of training.
    alone
        Whether one process trains: :class:`PeakAdam`'s gradients are not sent to others.

    Returns
    -------
    tuple
        Adam, and on the CPU :class:`PeakAdam` for the layer that reads the peaks, if there is one.
    """
    weights = [p for p in vae.likelihood.parameters() if p.ndim > 1]
    apart = {id(p) for p in weights}
    peak_adam: PeakAdam | None = None
    layer = vae.encoder.peaks
    if layer is not None and layer.weight_ph.device.type == "cpu" and alone:
        peak_adam = PeakAdam(layer, plan.lr)
        apart.add(id(layer.weight_ph))
    prior = list(vae.prior.parameters())
    apart.update(map(id, prior))
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": plan.decoder_precision / n_cells},
        {"params": prior},
        {"params": [p for p in vae.parameters() if id(p) not in apart]},
    ]
    return torch.optim.Adam(groups, lr=plan.lr, weight_decay=0.0, fused=True), peak_adam
