"""Run Lightning's Trainer, and leave the caller's process as it was."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pyro
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyro_scale.data import Counts
from pyro_scale.errors import OutOfMemory
from pyro_scale.kernels.parallel import kernels_have_the_threads
from pyro_scale.objectives import Row
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.checkpoint import Checkpoints, check, made_for
from pyro_scale.training.module import TrainingModule
from pyro_scale.training.plan import TrainingPlan

__all__ = ["fit"]

logger = logging.getLogger(__name__)


class _StopAtBest(EarlyStopping):
    """Early stopping that looks only after the warm-up, and goes back to the best weights."""

    def __init__(self, vae: MixtureVAE, plan: TrainingPlan) -> None:
        patience = plan.patience if plan.early_stopping else plan.max_epochs
        self.vae = vae
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
        return super().state_dict() | {"best_state": self.best_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best_state = state_dict["best_state"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.current_epoch < self.first_epoch:
            return
        super().on_validation_end(trainer, pl_module)
        if self.keep_best and self.wait_count == 0:
            self.best_state = copy.deepcopy(self.vae.state_dict())

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best_state is not None:
            self.vae.load_state_dict(self.best_state)


@contextmanager
def _quiet_and_scoped(seed: int) -> Iterator[None]:
    """The caller's random state, validation flag, threads and log levels come back afterwards."""
    lightning_log = logging.getLogger("lightning.pytorch")
    level = lightning_log.level
    cuda = list(range(torch.cuda.device_count()))
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
            kernels_have_the_threads(),
        ):
            lightning_log.setLevel(logging.WARNING)
            # Minibatches are one CSR slice each: worker processes cost more than they save.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*fewer than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*treespec.*")
            warnings.filterwarnings("ignore", message=".*has `__len__` defined.*")  # no workers
            warnings.filterwarnings("ignore", message="Encountered (NaN|.*inf)")  # told by us
            torch.manual_seed(seed)
            yield
    finally:
        lightning_log.setLevel(level)


def _is_one(devices: Any) -> bool:
    """Whether Lightning's ``devices`` names one: 1, "1", the second as "1," or as [1]."""
    if isinstance(devices, str):
        *first, last = devices.split(",")
        return devices == "1" or (len(first) == 1 and not last)
    return devices == 1 or (isinstance(devices, (list, tuple)) and len(devices) == 1)


@contextmanager
def _ctrl_c_is_ctrl_c(trainer: L.Trainer) -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving Python, and ignores it from then on."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


def _refuse_what_several_devices_cannot(row: Row, counts: Counts, choose_k: bool) -> None:
    """Processes average gradients after one backward over the same steps; not all rows do that."""
    if row.estimator in ("TraceGraph_ELBO", "RenyiELBO"):
        raise ValueError(
            f"estimator={row.estimator!r} calls backward itself, so several devices would not "
            "share gradients; choose another estimator or devices=1."
        )
    if choose_k:
        raise ValueError(
            "n_components=None on several devices: the chosen components would not be shared; "
            "choose K on one device, or give n_components."
        )
    if counts.on_disk:
        raise ValueError(
            "cells on disk are trained on one device; read them with adata.to_memory() for several."
        )


def fit(
    vae: MixtureVAE,
    counts: Counts,
    row: Row,
    plan: TrainingPlan,
    *,
    accelerator: str = "auto",
    devices: int | str = "auto",
    progress_bar: bool = True,
    choose_k: bool = False,
    trainer_kwargs: dict[str, Any] | None = None,
    history: list[dict[str, Any]] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> pd.DataFrame:
    """Train ``vae`` in place.

    Parameters
    ----------
    vae
        The parameters.
    counts
        The cells.
    row
        A supported row of the table.
    plan
        The settings.
    accelerator, devices
        As Lightning's Trainer; ``devices="auto"`` is one device. Several devices or nodes share
        each minibatch and average their gradients (distributed data parallel).
    progress_bar
        Show one.
    choose_k
        Choose the number of components from the encoder's means, after the warm-up.
    trainer_kwargs
        Further arguments of Lightning's Trainer; callbacks are added to our own.
    history
        A list that every epoch is appended to as it ends, for who wants to know of an interrupted
        run.
    checkpoint
        A file that the state of training is written to, and that training goes on from if it is
        there; None: neither.
    checkpoint_seconds
        The least time between two writings; after the last epoch it is written in any case.

    Returns
    -------
    DataFrame
        The history, one row per epoch: phase, kl_weight, elbo_train and, where cells were
        held out, elbo_validation (both in nats per cell).

    Raises
    ------
    ValueError
        If K is to be chosen without a warm-up; if several devices are asked for and the
        estimator calls backward itself, K is to be chosen, or the cells are on disk.
    CheckpointError
        If the checkpoint is of other cells or settings, or not one.
    NonFiniteError
        If the loss or its gradient is not finite.
    """
    if choose_k and plan.n_warmup == 0:
        raise ValueError(
            "n_components=None is chosen after the warm-up, and there is none: give n_components, "
            "or warmup_epochs of at least one."
        )
    given = {"devices": devices, "num_nodes": 1, **(trainer_kwargs or {})}
    if given["devices"] == "auto":
        given["devices"] = 1
    several = not _is_one(given["devices"]) or given["num_nodes"] != 1
    if several:
        _refuse_what_several_devices_cannot(row, counts, choose_k)
        given.setdefault(
            "strategy", DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        )
    n_validation = int(plan.validation_size * counts.n_cells)
    order = np.random.default_rng(plan.seed).permutation(counts.n_cells)
    held_out, training = (
        counts[np.sort(part)] for part in (order[:n_validation], order[n_validation:])
    )
    if training.n_cells < vae.n_components and plan.n_warmup > 0:
        held_out, training, n_validation = counts[order[:0]], counts, 0
    if n_validation == 0:
        logger.info("no cells are held out: training runs for all %d epochs.", plan.max_epochs)

    with _quiet_and_scoped(plan.seed):
        module = TrainingModule(
            vae.train(),
            row,
            plan,
            training,
            held_out if n_validation else None,
            choose_k=choose_k,
            several=several,
            history=history,
        )
        max_epochs, resumed = plan.max_epochs, None
        if checkpoint is not None:
            module.made_for = made_for(vae, counts, row, plan, choose_k=choose_k)
            if checkpoint.exists():
                found, resumed = check(checkpoint, module.made_for), checkpoint
                logger.info("going on from %s after %d epochs.", checkpoint, found["epochs"])
                max_epochs = found["epochs"] if found["finished"] else max_epochs
        callbacks = given.pop("callbacks", None) or []
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        if checkpoint is not None:
            callbacks = [*callbacks, Checkpoints(checkpoint, checkpoint_seconds)]
        options: dict[str, Any] = {
            "accelerator": accelerator,
            "max_epochs": max_epochs,
            "callbacks": [_StopAtBest(vae, plan), *callbacks] if n_validation else callbacks,
            "enable_progress_bar": progress_bar,
            "enable_model_summary": False,
            "enable_checkpointing": checkpoint is not None,
            "logger": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "limit_val_batches": 1.0 if n_validation else 0,
        }
        try:
            trainer = L.Trainer(**options | given)
        except MisconfigurationException as error:
            raise ValueError(
                f"accelerator={accelerator!r}, devices={devices!r} cannot be had here: {error}"
            ) from error
        try:
            with _ctrl_c_is_ctrl_c(trainer):
                trainer.fit(module, ckpt_path=resumed, weights_only=True)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                f"out of memory in a minibatch of batch_size={plan.batch_size} cells x "
                f"{counts.n_peaks} peaks; try batch_size={max(1, plan.batch_size // 2)}."
            ) from error
        finally:  # a model to be asked, whose layer has its ordinary backward again
            vae.eval()
            module.release()
    return pd.DataFrame(module.history).set_index("epoch")
