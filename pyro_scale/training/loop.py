"""Run Lightning's Trainer, and leave the caller's process as it was."""

from __future__ import annotations

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
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pyro_scale.data import Counts
from pyro_scale.errors import OutOfMemory
from pyro_scale.kernels.parallel import kernels_have_the_threads
from pyro_scale.objectives import Row
from pyro_scale.one_at_a_time import being_trained, one_at_a_time
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.checkpoint import Checkpoints, check, made_for
from pyro_scale.training.module import TrainingModule
from pyro_scale.training.plan import TrainingPlan
from pyro_scale.training.refusals import (
    check_precision,
    check_trainer,
    is_one,
    refuse_several,
    refuse_without_warmup,
)
from pyro_scale.training.stopping import StopAtBest

__all__ = ["fit"]

logger = logging.getLogger(__name__)


@contextmanager
def _quiet_and_scoped(seed: int) -> Iterator[None]:
    """The caller's random state, validation flag, threads and log levels come back afterwards."""
    logs = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    cuda = list(range(torch.cuda.device_count()))
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
            kernels_have_the_threads(),
        ):
            for log in logs:
                log.setLevel(logging.WARNING)
            # Minibatches are one CSR slice each: worker processes cost more than they save.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*fewer than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*treespec.*")
            warnings.filterwarnings("ignore", message=".*has `__len__` defined.*")  # no workers
            warnings.filterwarnings("ignore", message="Number of distinct clusters")  # alike cells
            warnings.filterwarnings("ignore", message="Encountered (NaN|.*inf)")  # told by us
            # Of several devices: what is logged is a sum over them already.
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
            warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")
            torch.manual_seed(seed)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextmanager
def _as_it_was(vae: MixtureVAE) -> Iterator[None]:
    """A model to be asked afterwards, in its dtype: Lightning's ``64-true`` changes that."""
    dtype = vae.encoder.loc.weight.dtype
    try:
        with being_trained(vae):
            yield
    finally:
        vae.to(dtype).eval()


@contextmanager
def _ctrl_c_is_ctrl_c() -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving Python, and ignores it from then on.

    A SIGTERM it answers by an exit with status 0, as if all had been done: that is a Ctrl-C too.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        terminated = isinstance(error, SIGTERMException)
        if not (terminated or isinstance(error.__context__, KeyboardInterrupt)):  # somebody's exit
            raise
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


@one_at_a_time()
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
    """Train ``vae`` in place, one training at a time in a process.

    Whether it ends well or not, ``vae`` is in eval mode afterwards and in the dtype that it had.

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
        If several devices are asked for and the estimator calls backward itself, K is to be
        chosen, or the cells are on disk; if K is to be chosen without a warm-up; for numbers of
        less than 32 bits, and processes that are forked or spawned.
    CheckpointError
        If the checkpoint is of other cells or settings, or not one.
    NonFiniteError
        If the loss or its gradient is not finite.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> counts = ps.data.as_counts(adata)
    >>> from pyro_scale.objectives import find_row
    >>> plan = TrainingPlan(max_epochs=2, warmup_epochs=1)
    >>> vae = MixtureVAE(60, n_components=2, n_latent=2, hidden=(8,))
    >>> fit(vae, counts, find_row("collapsed"), plan, progress_bar=False).shape
    (2, 3)
    """
    given = {"devices": devices, "num_nodes": 1, **(trainer_kwargs or {})}
    if given["devices"] == "auto":
        given["devices"] = 1
    precision = check_precision(given.get("precision"))
    several = not is_one(given["devices"]) or given["num_nodes"] != 1
    if several:
        refuse_several(row, counts, choose_k)
        given.setdefault(
            "strategy", DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        )
    if choose_k:
        refuse_without_warmup(plan)
    n_validation = int(plan.validation_size * counts.n_cells)
    order = np.random.default_rng(plan.seed).permutation(counts.n_cells)
    if counts.n_cells - n_validation < vae.n_components and plan.n_warmup > 0:
        n_validation = 0
    held_out = counts[np.sort(order[:n_validation])]
    training = counts[np.sort(order[n_validation:])] if n_validation else counts  # not a copy
    if n_validation == 0:
        logger.info("no cells are held out: training runs for all %d epochs.", plan.max_epochs)

    with _quiet_and_scoped(plan.seed), _as_it_was(vae):
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
            wanted = made_for(vae, counts, row, plan, choose_k=choose_k)
            module.made_for = wanted | {"several devices": several, "precision": precision}
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
            "callbacks": [StopAtBest(vae, plan), *callbacks] if n_validation else callbacks,
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
        check_trainer(trainer)
        try:
            with _ctrl_c_is_ctrl_c():
                trainer.fit(module, ckpt_path=resumed, weights_only=True)
                if trainer.received_sigterm:  # after the last step, where Lightning does not look
                    raise SIGTERMException
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                f"out of memory in a minibatch of batch_size={plan.batch_size} cells x "
                f"{counts.n_peaks} peaks; try batch_size={max(1, plan.batch_size // 2)}."
            ) from error
        finally:  # the layer has its ordinary backward again
            epochs = module.history
            module.release()
    return pd.DataFrame(epochs).set_index("epoch")
