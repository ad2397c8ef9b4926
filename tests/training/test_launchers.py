"""Processes that torchrun, srun or mpirun started train one model, or none in silence."""

import os
import subprocess
import sys

import pytest

from pyro_scale.training.launchers import launched

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "atac",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
    "SLURM_NNODES": "1",
}
SCRIPT = """
import pyro_scale as ps
import torch.distributed as dist
cells = ps.simulate(n_cells=90, n_peaks=120, n_clusters=3, density=0.15, seed=0)
model = ps.SCALE(cells, 3, n_latent=2, hidden=(16,))
model.train(3, accelerator="cpu", progress_bar=False)
several = dist.is_initialized()
print(dist.get_rank() if several else 0, dist.get_world_size() if several else 1,
      model.history.elbo_train.iloc[-1])
"""


def without_launcher():
    left_out = ("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def said(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-2000:]
    return [line.split() for line in out.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "srun"])
def test_processes_that_are_there_train_one_model(how, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    if how == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        environments = [without_launcher()]
    else:  # as srun sets them for each of its two tasks
        command = [sys.executable]
        tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2"}
        environments = [
            without_launcher() | SLURM | tasks | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            for rank in "01"
        ]
    command = [*command, str(tmp_path / "script.py")]
    running = [subprocess.Popen(command, env=each, **options) for each in environments]
    lines = sorted(line for process in running for line in said(process))
    assert [line[:2] for line in lines] == [["0", "2"], ["1", "2"]]
    assert lines[0][2] == lines[1][2]  # the bound of all cells


@pytest.mark.slow
def test_slurm_without_srun_is_one_process(tmp_path):
    """sbatch --ntasks=4 and a Python of its own: Lightning would refuse the number of tasks."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = SLURM | {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        env=without_launcher() | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[:2] == ["0", "1"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}
TASKS = SLURM | {"SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"devices": 1}),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, {"devices": 1}),
        (TORCHRUN, {"devices": 2, "num_nodes": 3}),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1"}, {"devices": 1}),
        (TASKS | {"SLURM_NTASKS_PER_NODE": "3"}, {"devices": 3, "num_nodes": 2}),
        (
            TASKS | {"SLURM_NTASKS_PER_NODE": "3", "SLURM_STEP_TASKS_PER_NODE": "3(x2)"},
            {"devices": 3, "num_nodes": 2},
        ),
        (TORCHRUN | TASKS, {"devices": 2, "num_nodes": 3}),  # torchrun, once on each node
    ],
)
def test_auto_is_what_was_started(environment, expected):
    assert launched("auto", environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "4 processes were started by mpirun, each of which"),
        ({"PMI_SIZE": "2"}, "2 processes were started by mpirun"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_NTASKS": "4"}, "4 processes were started by mpirun"),
        (TASKS, "srun has started 6 tasks; start as many on each node"),
        (TASKS | {"SLURM_NTASKS_PER_NODE": "4"}, "6 processes were started by srun, 4 of them"),
        (
            TASKS | {"SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "3(x2)"},
            "give that number with --ntasks-per-node",
        ),
        (TORCHRUN | {"WORLD_SIZE": "3"}, "3 processes were started by torchrun, 2 of them"),
        (TASKS | {"SLURM_STEP_TASKS_PER_NODE": "4,2"}, "srun has started 6 tasks"),
    ],
)
def test_what_cannot_be_joined_is_refused(environment, words, caplog):
    with pytest.raises(ValueError, match=words):
        launched("auto", environment)
    assert launched(1, environment)["devices"] == 1
    assert "each trains a whole model by itself, as devices=1 asks" in caplog.text


def test_one_process_in_an_allocation_of_several_tasks_may_start_others_itself():
    given = launched(2, SLURM | {"SLURM_NTASKS": "4"})
    assert given["devices"] == 2
    assert not given["plugins"][0].creates_processes_externally
