"""Training that was killed goes on where it was: one file, replaced whole after an epoch."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from pyro_scale.data import Counts
from pyro_scale.errors import CheckpointError
from pyro_scale.objectives import Row
from pyro_scale.placing import flushed
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.plan import TrainingPlan

__all__ = [
    "KEY",
    "Checkpoints",
    "check",
    "digest",
    "made_for",
    "random_states",
    "restore_random_states",
]

KEY = "pyro_scale"  # what is ours in Lightning's checkpoint


def digest(counts: Counts) -> str:
    """A hash of the cells in their order: names, and the matrix where it is in memory."""
    hashed = hashlib.blake2b(digest_size=16)
    for names in (counts.obs_names, counts.var_names):
        hashed.update("\0".join(map(str, names)).encode())
        hashed.update(b"\1")
    if not counts.on_disk:
        x = counts.read()
        for part in (x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data):
            hashed.update(np.ascontiguousarray(part).view(np.uint8).data)
    if counts.batch is not None:
        hashed.update(counts.batch.astype(np.int64).data)
    return hashed.hexdigest()


def made_for(
    vae: MixtureVAE, counts: Counts, row: Row, plan: TrainingPlan, *, choose_k: bool
) -> dict[str, Any]:
    """What a checkpoint has to agree on with the training that goes on from it."""
    shapes = {
        name: list(tensor.shape)
        for name, tensor in vae.state_dict().items()
        if not (choose_k and name.startswith("prior."))
    }
    return {
        **asdict(plan),
        "formulation": row.formulation,
        "estimator": row.estimator,
        "c": row.c,
        "the model's networks": shapes,
        "the cells": digest(counts),
    }


def check(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is ours in a checkpoint, or an error that says why it cannot be gone on from.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint of this package, or one of other cells or settings.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[KEY]
        made, finished = dict(found["made_for"]), found["finished"]
        epochs = len(found["history"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, pickle.PickleError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that train() wrote: give another file for checkpoint=, or "
            "delete this one to start anew."
        ) from error
    other = [name for name in wanted if made.get(name) != wanted[name]]
    if other:
        name = other[0]
        told = f" ({made.get(name)!r} there, {wanted[name]!r} here)"
        told = "" if name.startswith("the ") else told
        raise CheckpointError(
            f"{path} was made with other values: {', '.join(other)}{told}. Train with the same to "
            "go on from it, or give another file for checkpoint=."
        )
    return {"finished": finished, "epochs": epochs}


def random_states() -> dict[str, Any]:
    """Of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Those of the GPUs only if there are as many."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class Checkpoints(Checkpoint):
    """Writes one after the last epoch, and after others if some time has passed.

    Parameters
    ----------
    path
        The file; beside it ``.new`` is written, and takes its place when it is on the disk.
    seconds
        The least time between two.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.written = path, seconds, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the module's own, which appends the epoch to the history."""
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not last and time.monotonic() - self.written < self.seconds:
            return
        new = self.path.with_name(self.path.name + ".new")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            for each in (new, self.path.parent):
                flushed(each)
            os.replace(new, self.path)
            flushed(self.path.parent)
        self.written = time.monotonic()
