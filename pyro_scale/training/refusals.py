"""What training cannot do, said before it has begun."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from pyro_scale.data import Counts
from pyro_scale.objectives import Row
from pyro_scale.training.plan import TrainingPlan

__all__ = ["check_precision", "check_trainer", "is_one", "refuse_several", "refuse_without_warmup"]

_32 = (None, "32-true", "32", 32)  # as Lightning spells them
_64 = ("64-true", "64", 64)


def is_one(devices: Any) -> bool:
    """Whether Lightning's ``devices`` names one: 1, "1", the second as "1," or as [1].

    Examples
    --------
    >>> is_one("1,"), is_one("0,1"), is_one(-1)
    (True, False, False)
    """
    if isinstance(devices, str):
        *first, last = devices.split(",")
        return devices == "1" or (len(first) == 1 and not last)
    return devices == 1 or (isinstance(devices, (list, tuple)) and len(devices) == 1)


def refuse_several(row: Row, counts: Counts, choose_k: bool) -> None:
    """Processes average gradients after one backward over the same steps; not all rows do that.

    Raises
    ------
    ValueError
        For an estimator that calls backward itself, a K that is to be chosen, cells on disk.
    """
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


def refuse_without_warmup(plan: TrainingPlan) -> None:
    """K is chosen by clusters of what the warm-up has learnt.

    Raises
    ------
    ValueError
        If there is no warm-up.
    """
    if plan.n_warmup == 0:
        raise ValueError(
            "n_components=None is chosen after the warm-up, and there is none: give n_components, "
            "or warmup_epochs of at least one."
        )


def check_precision(given: Any) -> int:
    """Numbers of 32 or 64 bits: how many.

    Raises
    ------
    ValueError
        For any other of Lightning's: products with sparse cells and Adam on the peaks have none,
        and a bound is a sum over so many peaks that half precision would lose what it is about.
    """
    if given not in (*_32, *_64):
        raise ValueError(
            f"precision={given!r}: the bound is a sum over all peaks, which numbers of less than "
            "32 bits cannot hold; leave precision out, or give '32-true' (the default) or "
            "'64-true'."
        )
    return 32 if given in _32 else 64


def check_trainer(trainer: L.Trainer) -> None:
    """What only the Trainer knows: plugins set a precision, and strategies start processes.

    Raises
    ------
    ValueError
        For less than 32 bits, or processes that are forked or spawned.
    """
    check_precision(trainer.precision)
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "processes that are forked or spawned (as strategy='ddp_spawn', 'ddp_fork' and "
            "'ddp_notebook' do) keep the history and the chosen weights to themselves; leave "
            "strategy out, and train on several devices from a script."
        )
