"""Early stopping, after the warm-up."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from pyro_scale.programs import MixtureVAE
from pyro_scale.training.plan import TrainingPlan

__all__ = ["StopAtBest"]


class StopAtBest(EarlyStopping):
    """Early stopping that looks only after the warm-up, and goes back to the best weights.

    Parameters
    ----------
    vae
        The parameters that training changes.
    plan
        Whether to stop, after how many epochs, and how long the warm-up is.
    """

    def __init__(self, vae: MixtureVAE, plan: TrainingPlan) -> None:
        patience = plan.patience if plan.early_stopping else plan.max_epochs
        self.vae = weakref.proxy(vae)  # the Trainer, which holds this, is no reason to keep it
        super().__init__(
            "elbo_validation",
            mode="max",
            patience=patience,
            check_finite=False,
            check_on_train_epoch_end=False,  # otherwise on_validation_end does not look at all
        )
        self.keep_best = plan.early_stopping
        self.first_epoch = max(plan.n_warmup, plan.n_kl_warmup)
        self.best_state: dict[str, torch.Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the best weights too."""
        return super().state_dict() | {"best_state": self.best_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self.best_state = state_dict["best_state"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the bound, and keep the weights if it is the best so far."""
        if trainer.sanity_checking or trainer.current_epoch < self.first_epoch:
            return
        super().on_validation_end(trainer, pl_module)
        if self.keep_best and self.wait_count == 0:
            self.best_state = copy.deepcopy(self.vae.state_dict())

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back to the best."""
        if self.best_state is not None:
            self.vae.load_state_dict(self.best_state)
            self.best_state = None
