"""Training callbacks: checkpoints that training resumes from, and early stopping."""

from __future__ import annotations

import copy
import hashlib
import pickle
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from pyro_scale import _atomic
from pyro_scale.data import CountMatrix
from pyro_scale.exceptions import CheckpointError
from pyro_scale.objectives import ObjectiveSpec
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.config import TrainingConfig

__all__ = [
    "KEY",
    "EarlyStoppingRestoreBest",
    "TrainingCheckpoint",
    "check_checkpoint",
    "digest",
    "fingerprint",
    "goes_on",
    "has_ended",
    "random_states",
    "restore_random_states",
    "stops_here",
]

KEY = "pyro_scale"  # this package's entry in a Lightning checkpoint


def digest(counts: CountMatrix) -> str:
    """Return a hash of the cells, which depends on their order.

    It covers the names of cells and peaks, the batches and, if it is in memory, the matrix.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for names in (counts.obs_names, counts.var_names):
        hashed.update("\0".join(map(str, names)).encode())
        hashed.update(b"\1")
    if not counts.is_backed:
        x = counts.read()
        for part in (x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data):
            hashed.update(np.ascontiguousarray(part).view(np.uint8).data)
    if counts.batch is not None:
        hashed.update(counts.batch.astype(np.int64).data)
    return hashed.hexdigest()


def fingerprint(
    vae: MixtureVAE,
    counts: CountMatrix,
    objective: ObjectiveSpec,
    config: TrainingConfig,
    *,
    choose_k: bool,
) -> dict[str, Any]:
    """Return the fingerprint of a run: a record of its cells, networks and settings.

    A checkpoint holds the fingerprint of the run that wrote it, and only a run with an equal one
    can resume from it. With ``choose_k`` the shapes of the prior's parameters are left out, because
    the number of components changes during training.
    """
    shapes = {
        name: list(tensor.shape)
        for name, tensor in vae.state_dict().items()
        if not (choose_k and name.startswith("prior."))
    }
    return {
        **asdict(config),
        "formulation": objective.formulation,
        "estimator": objective.estimator,
        "c": objective.c,
        "the model's networks": shapes,
        "the cells": digest(counts),
    }


def check_checkpoint(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a checkpoint was saved by a run with the same cells and settings as this one.

    Training can resume from such a checkpoint. ``wanted`` is the record (:func:`fingerprint`) of
    the cells and settings of the current run; the checkpoint at ``path`` holds that of its own run.

    Returns
    -------
    dict
        ``finished``, whether the run that saved the checkpoint has ended, and ``epochs``, the
        number of epochs that it had completed.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint of this package, or its run had other cells or settings.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[KEY]
        saved, finished = dict(found["fingerprint"]), found["finished"]
        epochs = len(found["history"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, pickle.PickleError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that train() wrote; give another file for checkpoint=, or "
            "delete this one to start anew."
        ) from error
    different = [name for name in wanted if saved.get(name) != wanted[name]]
    if different:
        first, *others = different
        values = f" ({saved.get(first)!r} in the checkpoint, {wanted[first]!r} now)"
        values = "" if first.startswith("the ") else values
        raise CheckpointError(
            f"{path} is the checkpoint of a training that differs in "
            f"{', '.join([first + values, *others])}. Call train() with the same arguments as then "
            "to resume it, or give another file for checkpoint=."
        )
    return {"finished": finished, "epochs": epochs}


def goes_on(path: Path) -> bool:
    """Return whether a checkpoint is of a training that went on from a trained model's weights.

    Such a training has neither Newton sweeps nor a warm-up. A file that is not a checkpoint gives
    False; :func:`check_checkpoint` refuses it later.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[KEY]
        settings = saved["fingerprint"]
        return bool(settings["newton_sweeps"] == 0 and settings["warmup_epochs"] == 0)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, pickle.PickleError):
        return False


def random_states() -> dict[str, Any]:
    """Return the states of torch's random number generators, on the CPU and on all GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states of torch's random number generators that :func:`random_states` returned.

    The states of the GPUs are restored only if the number of GPUs is the same as when they were
    saved.
    """
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def stops_here(trainer: L.Trainer) -> bool:
    """Return whether training stops after the current epoch, for whatever reason."""
    at_limit = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop) or at_limit or _n_epochs(trainer) == trainer.max_epochs


def has_ended(trainer: L.Trainer, max_epochs: int) -> bool:
    """Return whether training is complete: all epochs are done, or it has stopped early by itself.

    A run that is stopped by a limit of time or steps, or by anything else, is not complete.
    """
    stopped_early = any(
        isinstance(callback, EarlyStopping) and callback.stopped_epoch > 0
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )
    return stopped_early or _n_epochs(trainer) >= max_epochs


def _n_epochs(trainer: L.Trainer) -> int:
    """Return the number of epochs that are complete, the one that ends now included."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


class TrainingCheckpoint(ModelCheckpoint):
    """Callback that writes a checkpoint file after an epoch, and always after the last one.

    Parameters
    ----------
    path
        Path of the checkpoint. A file with ``.new`` appended is written, flushed and then renamed.
    seconds
        Minimum number of seconds between two checkpoints. The checkpoint after the last epoch is
        always written.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(dirpath=path.parent, filename=path.name, save_top_k=0)
        self.path, self.seconds, self.last_written = path, seconds, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint after the last epoch, or ``seconds`` after the previous checkpoint.

        The history in the checkpoint includes the epoch that ends, because Lightning calls the
        module's hook first.
        """
        due = stops_here(trainer) or time.monotonic() - self.last_written >= self.seconds
        # Saving is collective: one process decides for all, by its own clock.
        if not trainer.strategy.broadcast(due):
            return
        new = self.path.with_name(f"{self.path.name}.new")
        self._save_checkpoint(trainer, str(new))
        if trainer.is_global_zero:
            _atomic.replace(new, self.path, self.path.parent)
        self.last_written = time.monotonic()


class EarlyStoppingRestoreBest(EarlyStopping):
    """Early stopping that starts after the warm-up and restores the best weights.

    Parameters
    ----------
    vae
        The model that is trained.
    config
        The training settings, of which the callback uses ``early_stopping``, ``patience`` and the
        lengths of both warm-ups.
    """

    def __init__(self, vae: MixtureVAE, config: TrainingConfig) -> None:
        patience = config.patience if config.early_stopping else config.max_epochs
        self.vae = weakref.proxy(vae)  # the Trainer holds the callback and must not keep vae alive
        super().__init__(
            "elbo_validation",
            mode="max",
            patience=patience,
            check_finite=False,
            check_on_train_epoch_end=False,  # if True, on_validation_end would do nothing
        )
        self.keep_best = config.early_stopping
        self.first_epoch = max(config.n_warmup, config.n_kl_warmup)
        self.best_state: dict[str, torch.Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, including the best weights."""
        return super().state_dict() | {"best_state": self.best_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint, including the best weights."""
        super().load_state_dict(state_dict)
        self.best_state = state_dict["best_state"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights if the ELBO of the held-out cells is the highest so far."""
        if trainer.sanity_checking or trainer.current_epoch < self.first_epoch:
            return
        super().on_validation_end(trainer, pl_module)
        if self.keep_best and self.wait_count == 0:
            self.best_state = copy.deepcopy(self.vae.state_dict())

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the best weights."""
        if self.best_state is not None:
            self.vae.load_state_dict(self.best_state)
            self.best_state = None
