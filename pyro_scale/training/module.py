"""The training loop's step, as a LightningModule around the objective."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from pyro_scale.data import Counts, loader
from pyro_scale.objectives import Objective, Row
from pyro_scale.programs import Cells, MixtureVAE
from pyro_scale.training.checkpoint import KEY, random_states, restore_random_states
from pyro_scale.training.initialise import standard_normal_prior
from pyro_scale.training.mixture_start import (
    choose_n_components,
    components_from_means,
    moments,
)
from pyro_scale.training.non_finite import BackOff, culprit
from pyro_scale.training.optimizers import optimizers_of
from pyro_scale.training.peak_adam import PeakAdam
from pyro_scale.training.plan import TrainingPlan

__all__ = ["TrainingModule"]

_SUMS = ("loss", "cells", "loss_validation", "cells_validation")


class TrainingModule(L.LightningModule):
    """Trains a row of the table: an N(0, I) warm-up, then the mixture.

    Optimisation is manual because TraceGraph_ELBO and RenyiELBO call backward themselves;
    every row goes through the same step.

    Parameters
    ----------
    vae
        The parameters to train, in place.
    row
        Which programs, under which estimator.
    plan
        The settings.
    counts
        The training cells, whose means the mixture starts from.
    held_out
        Cells whose bound is computed after each epoch; None: none.
    choose_k
        Choose the number of components when the mixture starts.
    several
        Several processes train together.
    history
        Where each epoch is appended; None: a new list.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> counts = ps.data.as_counts(ps.simulate(n_cells=40, n_peaks=60, density=0.2))
    >>> vae, row = ps.programs.MixtureVAE(60, n_components=2, n_latent=2), ps.objectives.TABLE[0]
    >>> module = TrainingModule(vae, row, TrainingPlan(), counts)
    >>> module.warming_up, module.current_objective.estimator, module.release()
    (True, 'Trace_ELBO', None)
    """

    def __init__(
        self,
        vae: MixtureVAE,
        row: Row,
        plan: TrainingPlan,
        counts: Counts,
        held_out: Counts | None = None,
        *,
        choose_k: bool = False,
        several: bool = False,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.vae, self.plan, self.counts, self.choose_k = vae, plan, counts, choose_k
        self.held_out, self.several = held_out, several
        self.objective = Objective(
            vae, row.formulation, row.estimator, row.c, n_particles=plan.n_particles
        )
        warm_vae = vae.with_prior(standard_normal_prior(vae.n_latent))
        self.warmup_objective = Objective(warm_vae, "collapsed", "Trace_ELBO")
        self.history = [] if history is None else history
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._peak_adam: PeakAdam | None = None
        self._made: list[torch.optim.Optimizer] = []
        self.back_off = BackOff(plan.back_offs)
        self._random_states: dict[str, Any] | None = None  # of a checkpoint, until the next epoch
        self.made_for: dict[str, Any] = {}
        if several:  # where DDP finds no unused parameter (after the warm-up) it says so on stderr
            self.never_used = torch.nn.Parameter(torch.zeros(()))

    @property
    def warming_up(self) -> bool:
        """Whether the prior is still N(0, I)."""
        return self.current_epoch < self.plan.n_warmup

    @property
    def current_objective(self) -> Objective:
        """The objective of this epoch."""
        return self.warmup_objective if self.warming_up else self.objective

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam, and :class:`PeakAdam` where it can be (:func:`optimizers_of`)."""
        adam, self._peak_adam = optimizers_of(
            self.vae, self.plan, self.counts.n_cells, alone=not self.several
        )
        self._made = [adam] if self._peak_adam is None else [adam, self._peak_adam]
        return self._made

    def release(self) -> None:
        """Leave a layer as it was found, with the weights that training gave it, and let go of all.

        Module and Trainer refer to each other: what they hold (weights, moments, gradients) would
        stay in memory until Python next looks for cycles.
        """
        if self._peak_adam is not None:
            self._peak_adam.release()
        for optimizer in self._made:
            optimizer.state.clear()
            optimizer.param_groups.clear()
        self.vae.zero_grad(set_to_none=True)
        self._peak_adam = None
        self.back_off = BackOff(0)
        self._modules.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history, random states, and what the training is of."""
        last = self.trainer.should_stop or self.current_epoch + 1 == self.trainer.max_epochs
        checkpoint["state_dict"].pop("never_used", None)
        checkpoint[KEY] = {
            "made_for": self.made_for,
            "history": self.history,
            "n_back_offs": self.back_off.n_taken,
            "finished": last,
            "random": random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; a chosen K makes room for its components."""
        ours = checkpoint[KEY]
        if self.several:
            checkpoint["state_dict"]["never_used"] = self.never_used.detach()
        n_components = len(checkpoint["state_dict"]["vae.prior.logits_k"])
        if n_components != self.vae.n_components:
            self.vae.prior.resize(n_components)
        self.history[:] = ours["history"]
        self.back_off.n_taken, self._random_states = ours["n_back_offs"], ours["random"]

    def on_train_epoch_start(self) -> None:
        """Start the mixture from the encoder's means when the warm-up is over."""
        if self._random_states is not None and not self.several:  # those of one process
            restore_random_states(self._random_states)
        self._random_states = None
        self._sums = dict.fromkeys(_SUMS, 0.0)
        if self.plan.n_warmup > 0 and self.current_epoch == self.plan.n_warmup:
            loc_nd, var_nd = moments(self.vae, self.counts)
            if self.choose_k:
                self.vae.prior.resize(choose_n_components(loc_nd, self.plan.seed))
                self._replace_prior()
            start = components_from_means(loc_nd, var_nd, self.vae.n_components, self.plan.seed)
            self.vae.prior.set_components(*self.trainer.strategy.broadcast(start))
        optimizers = (self._optimizer.optimizer, self._peak_adam)
        self.back_off.keep(self.vae, *(each for each in optimizers if each is not None))

    def _replace_prior(self) -> None:
        """The prior has parameters that the optimiser does not know yet."""
        optimizer = self._optimizer.optimizer
        group = optimizer.param_groups[1]
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
        group["params"] = [*self.vae.prior.parameters()]

    def train_dataloader(self) -> DataLoader[Cells]:
        """The part of every minibatch that is this process's."""
        part = (self.trainer.global_rank, self.trainer.world_size)
        return loader(
            self.counts,
            self.plan.batch_size,
            seed=self.plan.seed,
            epoch=len(self.history),  # Lightning counts the one it goes on from a little later
            part=part,
            # Lightning's copies to a GPU do not block, which only helps from pinned memory.
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def val_dataloader(self) -> DataLoader[Cells]:
        """The same of held-out cells."""
        held_out = self.counts[:0] if self.held_out is None else self.held_out
        part = (self.trainer.global_rank, self.trainer.world_size)
        return loader(held_out, self.plan.batch_size, part=part)

    def on_fit_start(self) -> None:
        """Give every process draws of its own."""
        if self.several:
            torch.manual_seed((self.plan.seed + self.trainer.global_rank) % 2**32)

    def _total(self, value: float) -> float:
        """Summed over processes."""
        if not self.several:
            return value
        here = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self.trainer.strategy.reduce(here, reduce_op="sum"))

    def training_step(self, cells: Cells, _: int) -> None:
        """One step of Adam on the mean loss per cell.

        Several processes average their gradients: each divides by its fair share of the cells.
        """
        optimizer, peak_adam = self._optimizer, self._peak_adam
        optimizer.zero_grad()
        if peak_adam is not None:
            peak_adam.zero_grad()
        if self.plan.hidden_share > 0:
            cells = cells.hide(self.plan.hidden_share, rescale=self.vae.encoder.lsi is None)
        share = self._total(cells.n_cells) / self.trainer.world_size
        loss = self.current_objective.backward(
            cells,
            self.plan.kl_weight(self.current_epoch),
            divide_by=share,
            backward=self.manual_backward,
        )
        scale = self._clip()
        if not (math.isfinite(loss) and math.isfinite(scale)):
            kl_weight = self.plan.kl_weight(self.current_epoch)
            where = culprit(self.current_objective, cells, kl_weight)
            when = f"in epoch {self.current_epoch} (step {self.global_step + 1})"
            self.back_off.not_finite(where, when)
            return
        optimizer.step()
        if peak_adam is not None:
            peak_adam.step(scale=scale)  # not by Lightning, which would count it as a second step
        self._sums["loss"] += loss * share
        self._sums["cells"] += cells.n_cells

    def _clip(self) -> float:
        """Scale gradients down to a norm of at most ``gradient_clip``; the scale, NaN if it is not.

        Pascanu et al. 2013, arXiv:1211.5063. Gradients that are not longer are not touched.
        """
        held = [p for p in self.vae.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
        if self._peak_adam is not None:
            norm = torch.hypot(norm, self._peak_adam.norm().to(norm))
        if not norm.isfinite():
            return math.nan
        if norm <= self.plan.gradient_clip:
            return 1.0
        torch.nn.utils.clip_grads_with_norm_(held, self.plan.gradient_clip, norm)
        return float(self.plan.gradient_clip / (norm + 1e-6))

    @property
    def _optimizer(self) -> Any:
        """The one that Lightning counts the steps of."""
        optimizers: Any = self.optimizers()
        return optimizers[0] if isinstance(optimizers, list) else optimizers

    def validation_step(self, cells: Cells, batch: int) -> None:
        """The bound of held-out cells, at full KL weight.

        By the same draws at every epoch, so that epochs can be compared.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.plan.seed + batch)
            self._sums["loss_validation"] += self.current_objective.loss(cells)
        self._sums["cells_validation"] += cells.n_cells

    def on_validation_epoch_end(self) -> None:
        """Publish the held-out bound."""
        self.log("elbo_validation", self._mean("_validation"), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Append this epoch to the history."""
        if self._peak_adam is not None:
            self._peak_adam.settle()
        elbo = self._mean("")
        epoch = {
            "epoch": self.current_epoch,
            "phase": "warm-up" if self.warming_up else "mixture",
            "kl_weight": self.plan.kl_weight(self.current_epoch),
            "elbo_train": elbo,
        }
        if self.plan.back_offs:
            epoch["n_back_offs"] = self.back_off.n_taken
        if self._sums["cells_validation"]:
            epoch["elbo_validation"] = self._mean("_validation")
        self.history.append(epoch)
        self.log("elbo_train", elbo, prog_bar=True)

    def _mean(self, suffix: str) -> float:
        return -self._total(self._sums[f"loss{suffix}"]) / self._total(self._sums[f"cells{suffix}"])
