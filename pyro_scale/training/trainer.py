"""Training with Lightning's Trainer, which leaves the process-wide state as it was."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pyro
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pyro_scale._locking import exclusive
from pyro_scale._streams import tolerant_output
from pyro_scale.data import CountMatrix
from pyro_scale.exceptions import OutOfMemoryError
from pyro_scale.objectives import ObjectiveSpec
from pyro_scale.ops._numba import reserve_threads_for_kernels
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.callbacks import (
    EarlyStoppingRestoreBest,
    TrainingCheckpoint,
    check_checkpoint,
    fingerprint,
)
from pyro_scale.training.config import TrainingConfig, TrainingProgress
from pyro_scale.training.launchers import launched
from pyro_scale.training.module import TrainingModule
from pyro_scale.training.start import reason_against_sweeps

__all__ = [
    "check_distributed",
    "check_precision",
    "check_sweeps",
    "check_trainer",
    "check_warmup",
    "fit",
    "is_one",
]

logger = logging.getLogger(__name__)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, switch off Pyro's validation and silence warnings inside the block.

    Random state, validation, number of threads, warning filters and log levels are restored
    afterwards.
    """
    logs = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    cuda = list(range(torch.cuda.device_count()))
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
            reserve_threads_for_kernels(),
        ):
            for log in logs:
                log.setLevel(logging.WARNING)
            # Lightning 2.6 warns of few workers (a minibatch is one CSR slice), of no validation
            # set, and of sums that are logged on every device.
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            # torch 2.13 warns of LeafSpec, treespec and broadcast_buffers in Lightning's calls.
            warnings.filterwarnings("ignore", category=FutureWarning)
            # Lightning 2.6 warns of an iterable dataset with a length (cells on disk).
            warnings.filterwarnings("ignore", message=".*has `__len__` defined")
            # Pyro 1.9 warns of losses that are not finite; TrainingModule handles them.
            warnings.filterwarnings("ignore", message="Encountered (NaN|.*inf)")
            torch.manual_seed(seed)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextmanager
def _restored(vae: MixtureVAE) -> Iterator[None]:
    """Restore the model's dtype, which ``precision="64-true"`` changes, and set eval mode."""
    dtype = vae.encoder.loc.weight.dtype
    try:
        yield
    finally:
        vae.to(dtype).eval()


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM, and restore the handler of SIGINT.

    On Ctrl-C Lightning raises SystemExit and ignores SIGINT from then on. On SIGTERM it raises
    SystemExit with status 0, as if training had finished.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        terminated = isinstance(error, SIGTERMException)
        if not (terminated or isinstance(error.__context__, KeyboardInterrupt)):  # another exit
            raise
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


@exclusive()
def fit(
    vae: MixtureVAE,
    counts: CountMatrix,
    objective: ObjectiveSpec,
    config: TrainingConfig,
    *,
    accelerator: str = "auto",
    devices: int | str = "auto",
    progress_bar: bool = True,
    choose_k: bool = False,
    trainer_kwargs: dict[str, Any] | None = None,
    progress: TrainingProgress | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> pd.DataFrame:
    """Train ``vae`` in place.

    Only one training runs at a time in a process. After training ``vae`` is in eval mode and has
    its former dtype, also if training failed.

    Parameters
    ----------
    vae
        The model, whose parameters are trained.
    counts
        The cells.
    objective
        The objective, one that is supported.
    config
        The training settings.
    accelerator, devices
        As in Lightning's Trainer; ``devices="auto"`` is one device, or the processes that torchrun
        or srun has started. Several devices or nodes split each minibatch and average their
        gradients (distributed data parallel).
    progress_bar
        Whether to show a progress bar.
    choose_k
        Whether to choose the number of components from the cells' posterior means after the Newton
        sweeps or the warm-up.
    trainer_kwargs
        Further keyword arguments of Lightning's Trainer. Callbacks among them run in addition to
        those of this package. With ``max_time``, training stops at the end of the epoch in which
        the time is over.
    progress
        Record of the epochs and of whether the mixture has started, which is updated as training
        goes on, so that it is kept also if training is interrupted, or None.
    checkpoint
        File to which the state of training is written, or None. If the file exists, training
        resumes from it.
    checkpoint_seconds
        Minimum number of seconds between two checkpoints. The checkpoint after the last epoch is
        always written.

    Returns
    -------
    DataFrame
        The history, one row per epoch: ``phase`` (``"warm-up"`` or ``"mixture"``), ``kl_weight``
        (weight of the KL terms) and, in nats per cell, ``elbo_train``, ``objective`` and, if cells
        were held out, ``elbo_validation``. The objective is what is maximized: the ELBO plus the
        log prior density of the decoder's weights, up to a constant. With ``max_nan_retries`` there
        is also ``n_nan_retries``.

    Raises
    ------
    ValueError
        If a setting is not supported: several devices (:func:`check_distributed`), Newton sweeps of
        a decoder with hidden layers, choosing K without sweeps or a warm-up, a precision of less
        than 32 bits, a strategy that forks or spawns processes, or an argument of the Trainer that
        :meth:`pyro_scale.SCALE.train` has itself.
    CheckpointError
        If ``checkpoint`` is not a checkpoint, or was saved by a run with other cells or settings.
    NonFiniteError
        If the loss or its gradient is not finite.

    Examples
    --------
    >>> config = TrainingConfig(max_epochs=2, warmup_epochs=1)
    >>> fit(model.vae, counts, model.config.objective, config, progress_bar=False).shape
    (2, 4)
    """
    progress = TrainingProgress() if progress is None else progress
    given = _trainer_arguments(trainer_kwargs or {}, devices)
    precision = check_precision(given.get("precision"))
    distributed = not is_one(given["devices"]) or given["num_nodes"] != 1
    if distributed:
        check_distributed(objective, counts, choose_k)
    if given.get("strategy", "ddp") == "ddp":
        # The programs of the warm-up and of the mixture use different parameters.
        ddp = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        given["strategy"] = ddp if distributed else "auto"
    check_sweeps(vae, config)
    if choose_k:
        check_warmup(config)
    n_validation = int(config.validation_size * counts.n_cells)
    order = np.random.default_rng(config.seed).permutation(counts.n_cells)
    if counts.n_cells - n_validation < vae.n_components and config.n_warmup > 0:
        n_validation = 0
    held_out = counts[np.sort(order[:n_validation])]
    training = counts[np.sort(order[n_validation:])] if n_validation else counts
    if n_validation == 0:
        logger.info("no cells are held out: training runs for all %d epochs.", config.max_epochs)

    with _seeded(config.seed), _restored(vae):
        module = TrainingModule(
            vae.train(),
            objective,
            config,
            training,
            held_out if n_validation else None,
            choose_k=choose_k,
            distributed=distributed,
            progress=progress,
        )
        max_epochs, resumed = config.max_epochs, None
        if checkpoint is not None:
            wanted = fingerprint(vae, counts, objective, config, choose_k=choose_k)
            module.fingerprint = wanted | {"several devices": distributed, "precision": precision}
            if checkpoint.exists():
                found, resumed = check_checkpoint(checkpoint, module.fingerprint), checkpoint
                logger.info("resuming from %s after %d epochs.", checkpoint, found["epochs"])
                max_epochs = found["epochs"] if found["finished"] else max_epochs
        if (limit := given.pop("max_epochs", None)) not in (None, -1):
            max_epochs = min(max_epochs, limit)
        callbacks = given.pop("callbacks")
        if checkpoint is not None:
            callbacks = [*callbacks, TrainingCheckpoint(checkpoint, checkpoint_seconds)]
        options: dict[str, Any] = {
            "accelerator": accelerator,
            "max_epochs": max_epochs,
            "callbacks": [EarlyStoppingRestoreBest(vae, config), *callbacks]
            if n_validation
            else callbacks,
            "enable_progress_bar": progress_bar
            or any(isinstance(each, ProgressBar) for each in callbacks),
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "logger": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "limit_val_batches": 1.0 if n_validation else 0,
        }
        try:
            trainer = L.Trainer(**options | given)
        except MisconfigurationException as error:
            others = f" with trainer_kwargs={sorted(trainer_kwargs)}" if trainer_kwargs else ""
            raise ValueError(
                f"accelerator={accelerator!r}, devices={devices!r}{others}: Lightning's Trainer "
                f"refuses this: {error}"
            ) from error
        check_trainer(trainer)
        try:
            with _keyboard_interrupts(), tolerant_output():
                trainer.fit(module, ckpt_path=resumed, weights_only=True)
                # Lightning does not check after the last step.
                if trainer.received_sigterm or module.terminated:
                    raise SIGTERMException
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"out of memory in a minibatch of batch_size={config.batch_size} cells x "
                f"{counts.n_peaks} peaks; try batch_size={max(1, config.batch_size // 2)}."
            ) from error
        finally:
            epochs = module.history
            module.release()
    return pd.DataFrame(epochs).set_index("epoch") if epochs else pd.DataFrame()


_OF_TRAIN = {
    "gradient_clip_val": "gradient_clip, the maximum norm of the gradient",
    "gradient_clip_algorithm": "gradient_clip, which is a maximum norm",
    "accumulate_grad_batches": "batch_size: a step is one minibatch",
}
"""Arguments of the Trainer that ``train`` has itself or replaces, and by what."""


def _trainer_arguments(trainer_kwargs: Mapping[str, Any], devices: Any) -> dict[str, Any]:
    """Check the arguments for Lightning's Trainer, and complete devices, nodes and callbacks.

    Raises
    ------
    ValueError
        If an argument is one of ``train`` itself.
    """
    given = dict(trainer_kwargs)
    for name, instead in _OF_TRAIN.items():
        value = given.pop(name, None)
        if value is not None and (name, value) != ("accumulate_grad_batches", 1):
            raise ValueError(f"trainer_kwargs has {name}={value!r}; give train() {instead}.")
    started = launched(given.get("devices", devices), os.environ)
    plugins = given.pop("plugins", None) or []
    plugins = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins = [*plugins, *started.pop("plugins", [])]
    callbacks = given.pop("callbacks", None) or []
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    if (max_time := given.pop("max_time", None)) is not None:
        callbacks.append(Timer(max_time, interval="epoch", verbose=False))
    started.pop("plugins", None)
    return {"num_nodes": 1, **given, **started, "plugins": plugins, "callbacks": callbacks}


_32 = (None, "32-true", "32", 32)  # Lightning's names
_64 = ("64-true", "64", 64)


def is_one(devices: Any) -> bool:
    """Return whether ``devices``, as Lightning takes it, is one device.

    The number 1 and "1" are one device; "1," and [1] are the device with index 1.

    Examples
    --------
    >>> is_one("1,"), is_one("0,1"), is_one(-1)
    (True, False, False)
    """
    if isinstance(devices, str):
        *first, last = devices.split(",")
        return devices == "1" or (len(first) == 1 and not last)
    return devices == 1 or (isinstance(devices, (list, tuple)) and len(devices) == 1)


def check_distributed(objective: ObjectiveSpec, counts: CountMatrix, choose_k: bool) -> None:
    """Check that training on several devices supports an objective and the cells.

    The processes average their gradients in a backward pass, which Lightning has to start, once
    per step. ``choose_k`` is whether the number of components, K, is to be chosen.

    Raises
    ------
    ValueError
        If the estimator calls backward itself, K is to be chosen, or the cells are on disk.
    """
    if objective.estimator in ("TraceGraph_ELBO", "RenyiELBO"):
        raise ValueError(
            f"estimator={objective.estimator!r} calls backward itself, so several devices would "
            "not average their gradients; choose another estimator or devices=1."
        )
    if choose_k:
        raise ValueError(
            "n_components=None on several devices is not supported, as each process would choose K "
            "for itself; choose K on one device, or give n_components."
        )
    if counts.is_backed:
        raise ValueError(
            "cells on disk are trained on one device only; read them into memory with "
            "adata.to_memory() to train on several."
        )


def check_warmup(config: TrainingConfig) -> None:
    """Check that there are Newton sweeps or a warm-up, from which K is chosen.

    Raises
    ------
    ValueError
        If there are neither.
    """
    if config.n_warmup == 0 and config.newton_sweeps == 0:
        raise ValueError(
            "n_components=None is chosen after Newton sweeps or a warm-up, and there is neither; "
            "give n_components, newton_sweeps or warmup_epochs of at least one."
        )


def check_sweeps(vae: MixtureVAE, config: TrainingConfig) -> None:
    """Check that Newton sweeps, if there are any, can fit the model.

    Raises
    ------
    ValueError
        If the decoder has hidden layers or too many batches.
    """
    if config.newton_sweeps and (reason := reason_against_sweeps(vae)):
        raise ValueError(
            f"newton_sweeps={config.newton_sweeps} is not possible, because {reason}; leave it out."
        )


def check_precision(given: Any) -> int:
    """Return the number of bits, 32 or 64, of ``given``, a value of Lightning's ``precision``.

    Lower precisions are not supported: the sparse products and LazyAdam have no half precision, and
    its rounding errors in a sum over all peaks are larger than the differences between bounds.

    Raises
    ------
    ValueError
        For any other precision.
    """
    if given not in (*_32, *_64):
        raise ValueError(
            f"precision={given!r}: the bound is a sum over all peaks, which is too inaccurate in "
            "less than 32 bits; leave precision out, or give '32-true' (the default) or '64-true'."
        )
    return 32 if given in _32 else 64


def check_trainer(trainer: L.Trainer) -> None:
    """Check the strategy of a Trainer, and its precision, which plugins may have set.

    Raises
    ------
    ValueError
        If the precision is less than 32 bits, or the strategy is neither one device nor distributed
        data parallel, or forks or spawns processes.
    """
    check_precision(trainer.precision)
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"strategy={type(trainer.strategy).__name__} is not supported; leave strategy out, or "
            "give 'ddp' for several devices."
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "processes that are forked or spawned (strategy='ddp_spawn', 'ddp_fork' or "
            "'ddp_notebook') do not return the history and the best weights; leave strategy out, "
            "and train on several devices from a script."
        )
