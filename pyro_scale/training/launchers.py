"""The processes that torchrun, srun or mpirun have started, and what Lightning is told of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

__all__ = ["launched"]

logger = logging.getLogger(__name__)


def launched(devices: Any, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that fit the processes that were started.

    With ``devices="auto"``, the processes of torchrun or srun train one model together. Otherwise
    each process that was started would train a whole model by itself, and nobody would notice.

    Parameters
    ----------
    devices
        The argument ``devices`` of :meth:`pyro_scale.SCALE.train`.
    environment
        The environment variables.

    Returns
    -------
    dict
        ``devices`` and, if needed, ``num_nodes`` and ``plugins``.

    Raises
    ------
    ValueError
        If several processes were started in a way that gives Lightning too little to join them.

    Examples
    --------
    >>> launched("auto", {})
    {'devices': 1}
    >>> torchrun = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
    >>> launched("auto", torchrun)
    {'devices': 2, 'num_nodes': 2}
    """
    auto = devices == "auto"
    given = {"devices": 1 if auto else devices}
    n_processes, how = _started(environment)
    if how == "SLURM":  # an allocation in which srun has started no other process
        n_tasks = environment["SLURM_NTASKS"]
        if n_tasks != "1":
            logger.info(
                "SLURM has allotted %s tasks, and this is the only process: it trains alone. Start "
                "it by srun to train with all of them.",
                n_tasks,
            )
        return given | {"plugins": [LightningEnvironment()]}
    if n_processes == 1:
        return given
    if not auto:
        if devices in (1, "1"):
            logger.warning(
                "%d processes were started by %s, and each trains a whole model by itself, as "
                "devices=1 asks.",
                n_processes,
                how,
            )
            if how == "srun":  # Lightning would compare devices with the tasks of a node
                given["plugins"] = [LightningEnvironment()]
        return given
    if how == "mpirun":
        raise ValueError(
            f"{n_processes} processes were started by mpirun, each of which would train a whole "
            "model by itself: start them by torchrun to train one model together, or give "
            "devices=1 to train one in each."
        )
    per_node = (
        _tasks_per_node(environment) if how == "srun" else int(environment["LOCAL_WORLD_SIZE"])
    )
    if n_processes % per_node:
        raise ValueError(
            f"{n_processes} processes were started by {how}, {per_node} of them on this node; "
            "expected as many on each node."
        )
    logger.info("%d processes, started by %s, train one model together.", n_processes, how)
    return {"devices": per_node, "num_nodes": n_processes // per_node}


def _started(environment: Mapping[str, str]) -> tuple[int, str]:
    """Return how many processes were started, and by what; ``""`` by nothing that is known."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"]), "torchrun"
    if (n_processes := int(environment.get("OMPI_COMM_WORLD_SIZE", 1))) > 1:
        return n_processes, "mpirun"
    if (n_processes := int(environment.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        return n_processes, "srun"
    if (n_processes := int(environment.get("PMI_SIZE", 1))) > 1:
        return n_processes, "mpirun"
    return 1, "SLURM" if "SLURM_NTASKS" in environment else ""


def _tasks_per_node(environment: Mapping[str, str]) -> int:
    """Return the number of tasks on each node of a SLURM step, which must all be equal.

    SLURM writes them as ``"2(x3)"`` (two on each of three nodes) or ``"2,1"``. Lightning refuses
    a job without ``--ntasks-per-node``, and one whose steps have another number.
    """
    of_job = environment.get("SLURM_NTASKS_PER_NODE")
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", of_job or "")
    found = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    if found is None or found[1] != of_job:
        raise ValueError(
            f"srun has started {environment['SLURM_STEP_NUM_TASKS']} tasks; start as many on each "
            "node, and give that number with --ntasks-per-node to sbatch and to srun, as Lightning "
            "needs it, or give devices=1 to train a whole model in each."
        )
    return int(found[1])
