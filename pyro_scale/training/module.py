"""The LightningModule of training: one step of Adam on an objective."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from pyro_scale._validation import listed
from pyro_scale.data import CountMatrix, loader
from pyro_scale.objectives import Objective, ObjectiveSpec
from pyro_scale.programs import CellBatch, MixtureVAE
from pyro_scale.training.callbacks import KEY, has_ended, random_states, restore_random_states
from pyro_scale.training.clustering import (
    ComponentChoice,
    choose_n_components,
    components_from_means,
)
from pyro_scale.training.config import TrainingConfig, TrainingProgress
from pyro_scale.training.initialization import half_means, moments, standard_normal_prior
from pyro_scale.training.lazy_adam import CombinedAdam
from pyro_scale.training.nan_recovery import NanRecovery, first_nonfinite_site
from pyro_scale.training.optimizers import build_optimizer, clip_grad_norm_, close_optimizer
from pyro_scale.training.start import newton_start

__all__ = ["TrainingModule"]

logger = logging.getLogger(__name__)

_FEW = 3  # cells; a component with fewer is no cluster
_SUMS = ("loss", "cells", "loss_validation", "cells_validation")


class TrainingModule(L.LightningModule):
    """LightningModule that trains from Newton sweeps, or from a warm-up with an N(0, I) prior.

    Optimization is manual because TraceGraph_ELBO and RenyiELBO call backward themselves; the
    training step is the same for every objective.

    Parameters
    ----------
    vae
        The model, whose parameters are trained in place.
    objective
        The objective.
    config
        The training settings.
    counts
        The training cells; after the warm-up their encoded means initialize the mixture.
    held_out
        Cells that are not trained on, whose ELBO is computed after each epoch, or None.
    choose_k
        Whether to choose the number of components, K, after the warm-up.
    distributed
        Whether several processes train together.
    progress
        Record of what training has done, which is updated; if None, a new one.

    Examples
    --------
    >>> module = TrainingModule(model.vae, model.config.objective, TrainingConfig(), counts)
    >>> module.warming_up, module.current_objective.estimator, module.history, module.release()
    (True, 'Trace_ELBO', [], None)
    """

    def __init__(
        self,
        vae: MixtureVAE,
        objective: ObjectiveSpec,
        config: TrainingConfig,
        counts: CountMatrix,
        held_out: CountMatrix | None = None,
        *,
        choose_k: bool = False,
        distributed: bool = False,
        progress: TrainingProgress | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.vae, self.config, self.counts, self.choose_k = vae, config, counts, choose_k
        self.held_out, self.distributed = held_out, distributed
        self.objective = Objective(
            vae,
            objective.formulation,
            objective.estimator,
            objective.c,
            n_particles=config.n_particles,
        )
        warm_vae = vae.with_prior(standard_normal_prior(vae.n_latent))
        self.warmup_objective = Objective(warm_vae, "collapsed", "Trace_ELBO")
        self.progress = TrainingProgress() if progress is None else progress
        self.progress.mixture_started = config.n_warmup == 0 and not config.newton_sweeps
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._started = time.monotonic()
        self.terminated = False
        self._adam: torch.optim.Adam | None = None
        self.nan_recovery = NanRecovery(config.max_nan_retries)
        self._random_states: dict[str, Any] | None = (
            None  # of a checkpoint, until the next epoch starts
        )
        self.fingerprint: dict[str, Any] = {}
        if distributed:  # DDP warns if no parameter is unused, as after the warm-up
            self.never_used = torch.nn.Parameter(torch.zeros(()))

    @property
    def warming_up(self) -> bool:
        """Whether the current epoch is in the warm-up, with the N(0, I) prior."""
        return self.current_epoch < self.config.n_warmup

    @property
    def current_objective(self) -> Objective:
        """The objective of the current epoch."""
        return self.warmup_objective if self.warming_up else self.objective

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of the epochs so far."""
        return self.progress.epochs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam (:func:`build_optimizer`)."""
        self._adam = build_optimizer(
            self.vae, self.config, self.counts.n_cells, distributed=self.distributed
        )
        return self._adam

    def release(self) -> None:
        """Undo what LazyAdam changes in the encoder's layer, and free optimizer and gradients.

        The Pyro programs are freed too. Module and Trainer refer to each other, so weights and
        moments would otherwise stay in memory until Python's next garbage collection.
        """
        if self._adam is not None:
            close_optimizer(self._adam)
        self.vae.zero_grad(set_to_none=True)
        self._adam = None
        self.nan_recovery = NanRecovery(0)
        self._modules.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history, the random states and the fingerprint of the run to a checkpoint.

        The fingerprint is the record of the run's cells and settings
        (:func:`pyro_scale.training.callbacks.fingerprint`).
        """
        checkpoint["state_dict"].pop("never_used", None)
        # A limit of time is one of the process; Lightning would count the time of earlier ones.
        for name in [name for name in checkpoint["callbacks"] if name.startswith("Timer")]:
            del checkpoint["callbacks"][name]
        checkpoint[KEY] = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "n_nan_retries": self.nan_recovery.n_taken,
            "finished": has_ended(self.trainer, self.config.max_epochs),
            "mixture_started": self.progress.mixture_started,
            "n_components_table": self.progress.n_components_table,
            "random": random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the random states from a checkpoint.

        If the run that saved it had chosen K already, the prior is resized to that K.
        """
        ours = checkpoint[KEY]
        if self.distributed:
            checkpoint["state_dict"]["never_used"] = self.never_used.detach()
        n_components = len(checkpoint["state_dict"]["vae.prior.logits_k"])
        if n_components != self.vae.n_components:
            self.vae.prior.resize(n_components)
        self.history[:] = ours["history"]
        self.progress.mixture_started = ours["mixture_started"]
        self.progress.n_components_table = ours.get("n_components_table", [])  # 0.1.0 has none
        self.nan_recovery.n_taken, self._random_states = ours["n_nan_retries"], ours["random"]

    def on_train_epoch_start(self) -> None:
        """Start from Newton sweeps, or initialize the mixture if the warm-up has just ended."""
        if (
            self._random_states is not None and not self.distributed
        ):  # they are those of one process
            restore_random_states(self._random_states)
        self._random_states = None
        self._sums = dict.fromkeys(_SUMS, 0.0)
        if self.config.newton_sweeps and not self.history:
            self._sweep()
        if not self.warming_up and not self.progress.mixture_started:
            self._start_mixture()
        self.nan_recovery.keep(self.vae, self._optimizer.optimizer)

    def _sweep(self) -> None:
        """Start from Newton sweeps, which one process makes for all."""
        if self.trainer.is_global_zero:
            choice = newton_start(self.vae, self.counts, self.config, choose_k=self.choose_k)
            self._keep_table(choice)
        if self.distributed:
            self.vae.load_state_dict(self.trainer.strategy.broadcast(self.vae.state_dict()))
        if self.choose_k:
            self._replace_prior()
        self.progress.mixture_started = not self.warming_up

    def _start_mixture(self) -> None:
        """Initialize the mixture from the encoder's means, and choose K if that is asked for."""
        loc_nd, var_nd = moments(self.vae, self.counts)
        if self.choose_k:
            halves, seed = half_means(self.vae, self.counts, self.config.seed), self.config.seed
            choice = choose_n_components(loc_nd, seed, depth_n=self.counts.depth, half_means=halves)
            self._keep_table(choice)
            self.vae.prior.resize(choice.n_components)
            self._replace_prior()
        start = components_from_means(loc_nd, var_nd, self.vae.n_components, self.config.seed)
        self.vae.prior.set_components(*self.trainer.strategy.broadcast(start))
        self.progress.mixture_started = True

    def _keep_table(self, choice: ComponentChoice | None) -> None:
        if choice is not None:
            self.progress.n_components_table = [
                {str(name): value for name, value in row.items()}
                for row in choice.table.reset_index().to_dict("records")
            ]

    def on_fit_end(self) -> None:
        """Start the mixture if training was stopped within the warm-up, and log what was done."""
        n_epochs = len(self.history)
        if not n_epochs:
            logger.warning("training was stopped before its first epoch.")
            return
        if not has_ended(self.trainer, self.config.max_epochs):
            logger.warning(
                "training was stopped after %d of %d epochs.", n_epochs, self.config.max_epochs
            )
        if not self.progress.mixture_started:
            logger.warning(
                "training was stopped within the warm-up of %d epochs: the mixture is initialized "
                "from the encoder's means, and not trained.",
                self.config.n_warmup,
            )
            self._start_mixture()
        if self.trainer.is_global_zero:
            self._log_end()

    def _log_end(self) -> None:
        """Log the last ELBO and how many cells each component has; warn of components with few."""
        loc_nd, _ = moments(self.vae, self.counts, self.config.batch_size)
        log_gamma_nk = self.vae.prior.log_responsibilities(loc_nd)
        sizes = log_gamma_nk.argmax(-1).bincount(minlength=self.vae.n_components).tolist()
        logger.info(
            "trained %d epochs in %.0f s: ELBO %.3f nats per cell; the components have %s cells",
            len(self.history),
            time.monotonic() - self._started,
            self.history[-1]["elbo_train"],
            sizes,
        )
        few = [f"{k} ({size})" for k, size in enumerate(sizes) if size < _FEW]
        if few and self.vae.n_components > 1:
            logger.warning(
                "components with fewer than %d cells: %s. They are no clusters; fewer components "
                "or a filter for cells with few open peaks may help.",
                _FEW,
                listed(few),
            )

    def _replace_prior(self) -> None:
        """Replace the prior's parameters, which have been resized, in the optimizer."""
        optimizer = self._optimizer.optimizer
        group = optimizer.param_groups[1]
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
        group["params"] = [*self.vae.prior.parameters()]

    def train_dataloader(self) -> DataLoader[CellBatch]:
        """Return the minibatches of training cells.

        If several processes train together, these are this process's part of each minibatch.
        """
        part = (self.trainer.global_rank, self.trainer.world_size)
        return loader(
            self.counts,
            self.config.batch_size,
            seed=self.config.seed,
            epoch=len(self.history),  # current_epoch is updated later when resuming
            part=part,
            # Copies from pinned memory to a GPU are faster; Lightning's wait until they are done.
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def val_dataloader(self) -> DataLoader[CellBatch]:
        """Return the minibatches of held-out cells.

        If several processes train together, these are this process's part of each minibatch.
        """
        held_out = self.counts[:0] if self.held_out is None else self.held_out
        part = (self.trainer.global_rank, self.trainer.world_size)
        return loader(held_out, self.config.batch_size, part=part)

    def on_fit_start(self) -> None:
        """Seed every process differently, so that their draws differ."""
        self._started = time.monotonic()
        if self.distributed:
            torch.manual_seed((self.config.seed + self.trainer.global_rank) % 2**32)

    def on_train_start(self) -> None:
        """Take SIGTERM from Lightning if several processes train together."""
        if self.distributed and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)  # until Lightning restores it

    def _on_sigterm(self, *_: Any) -> None:
        """Note a SIGTERM; all processes stop together in their next step.

        Lightning 2.6 calls torch.distributed in its handler, within whatever torch.distributed is
        doing, so that processes that get the signal together wait for each other without end.
        """
        self.terminated = True

    def _totals(self, *values: float) -> list[float]:
        """Return the sum of each of ``values`` over processes."""
        if not self.distributed:
            return list(values)
        here = torch.tensor(values, dtype=torch.float64, device=self.device)
        totals: list[float] = self.trainer.strategy.reduce(here, reduce_op="sum").tolist()
        return totals

    def training_step(self, cells: CellBatch, _: int) -> None:
        """Take one step of Adam on the mean loss per cell.

        Distributed data parallel averages gradients over processes. For that average to be the
        gradient of the mean over all cells, each process divides its loss by the mean number of
        cells per process, not by its own number of cells.
        """
        optimizer = self._optimizer
        optimizer.zero_grad()
        if self.config.mask_rate > 0:
            cells = cells.mask_peaks(self.config.mask_rate, rescale=self.vae.encoder.lsi is None)
        n_cells, n_stopped = self._totals(cells.n_cells, self.terminated)
        if n_stopped:
            raise SIGTERMException
        mean_n_cells = n_cells / self.trainer.world_size
        loss = self.current_objective.backward(
            cells,
            self.config.kl_weight(self.current_epoch),
            divide_by=mean_n_cells,
            backward=self.manual_backward,
        )
        norm = clip_grad_norm_(self.vae, optimizer.optimizer, self.config.gradient_clip)
        if not (math.isfinite(loss) and norm.isfinite()):
            kl_weight = self.config.kl_weight(self.current_epoch)
            where = first_nonfinite_site(self.current_objective, cells, kl_weight)
            when = f"in epoch {self.current_epoch} (step {self.global_step + 1})"
            self.nan_recovery.not_finite(where, when)
            return
        optimizer.step()
        self._sums["loss"] += loss * mean_n_cells
        self._sums["cells"] += cells.n_cells

    @property
    def _optimizer(self) -> Any:
        """Adam, wrapped by Lightning, whose wrapper counts the steps."""
        return self.optimizers()

    def validation_step(self, cells: CellBatch, batch: int) -> None:
        """Compute the ELBO of held-out cells, with weight one for the KL terms.

        The random draws are the same in every epoch, so that epochs can be compared.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.config.seed + batch)
            self._sums["loss_validation"] += self.current_objective.loss(cells)
        self._sums["cells_validation"] += cells.n_cells

    def on_validation_epoch_end(self) -> None:
        """Log the mean ELBO of the held-out cells."""
        self.log("elbo_validation", self._mean("_validation"), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Append this epoch to the history."""
        if isinstance(self._adam, CombinedAdam):  # callbacks may read the weights
            self._adam.lazy.flush()
        elbo = self._mean("")
        epoch = {
            "epoch": self.current_epoch,
            "phase": "warm-up" if self.warming_up else "mixture",
            "kl_weight": self.config.kl_weight(self.current_epoch),
            "elbo_train": elbo,
            "objective": elbo + self._log_prior_of_decoder(),
        }
        if self.config.max_nan_retries:
            epoch["n_nan_retries"] = self.nan_recovery.n_taken
        if self._sums["cells_validation"]:
            epoch["elbo_validation"] = self._mean("_validation")
        self.history.append(epoch)
        self.log("elbo_train", elbo, prog_bar=True)

    def _log_prior_of_decoder(self) -> float:
        """Return the log prior density of the decoder's weights per cell, up to a constant."""
        precision = self.config.decoder_precision
        if not precision:
            return 0.0
        weights = [p for p in self.vae.likelihood.parameters() if p.ndim > 1]
        squares = sum(float(weight.detach().square().sum()) for weight in weights)
        return -precision / 2 * squares / self.counts.n_cells

    def _mean(self, suffix: str) -> float:
        loss, n_cells = self._totals(self._sums[f"loss{suffix}"], self._sums[f"cells{suffix}"])
        return -loss / n_cells
