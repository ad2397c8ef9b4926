# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training on a GPU
#
# In short: if there is a GPU, `model.train()` uses it, and everything else stays the same. This notebook covers the details: the choice of
# device, where results are computed, precision, saving and loading, running out of memory, loggers and callbacks, several devices, cells
# that do not fit into memory, and the time of a training step. It runs on whatever device it finds, with the same assertions.
#
# **What has been measured.** This notebook was run on a CPU, and its numbers are from there. Training on one NVIDIA H200 was measured
# separately ([tests/benchmarks](../tests/benchmarks/README.md#on-a-gpu)); the tests of training on a GPU (`tests/training/test_gpu.py`) pass
# there and are skipped without one. Two more things are tested on CPUs: that no tensor is created on the wrong device, with a simulated
# second device (`tests/training/test_fake_device.py`); and that several processes train the same model as one process
# (`tests/training/test_devices.py`). Several GPUs have **not been tried**. Run the last section to measure the speed on yours.

# %%
import os
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress")

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from matplotlib.ticker import LogLocator, StrMethodFormatter

import pyro_scale as ps

# %matplotlib inline

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # set by the tests: smaller sizes, same assertions
HAVE_GPU = torch.cuda.is_available()
device = torch.device("cuda" if HAVE_GPU else "cpu")
devices = ["cpu", "cuda"] if HAVE_GPU else ["cpu"]
where = torch.cuda.get_device_name() if HAVE_GPU else "no GPU: everything below is on the CPU"
print(f"{where}; torch {torch.__version__}, {torch.get_num_threads()} threads")

adata = ps.simulate(
    300 if SHORT else 1000,
    800 if SHORT else 3000,
    4,
    density=0.08,
    fold=6,
    marker_fraction=0.5,
    seed=0,
)
adata

# %% [markdown]
# ## Which device
#
# `accelerator` and `devices` are the arguments of Lightning's Trainer.
#
# | call | trains on |
# |---|---|
# | `model.train()` | a GPU if torch finds one, otherwise the CPU |
# | `model.train(accelerator="gpu")` | a GPU; an error if there is none |
# | `model.train(accelerator="gpu", devices=[1])` | the second GPU |
# | `model.train(accelerator="gpu", devices=2)` | two GPUs, each with half of every minibatch |
# | `model.train(accelerator="cpu")` | the CPU, even if there is a GPU |
#
# On the command line: `pyro-scale run cells.h5ad --gpu 1`, and `--gpu -1` for the CPU. A device that is not available raises an error; there
# is no silent fallback to the CPU.

# %%
EPOCHS = 10 if SHORT else 30


def new_model(**options):
    return ps.SCALE(adata, n_components=4, n_latent=5, **options)


model = new_model()
model.train(EPOCHS, progress_bar=False)
missing = torch.cuda.device_count()  # GPUs are numbered from 0, so this one does not exist
try:
    new_model().train(1, accelerator="gpu", devices=[missing], progress_bar=False)
except ValueError as error:
    print(f"ValueError: {error}")
    refused = True
assert refused
assert len(model.history) == EPOCHS

# %% [markdown]
# ## Where the results are computed
#
# **After training the model is on the CPU**, because Lightning moves the weights back at the end. `get_latent_representation` and the other
# methods then run on the CPU too. Each method moves the cells to the device of the weights, so with many cells move the weights
# to the GPU first. The methods return NumPy arrays in either case.

# %%
assert next(model.vae.parameters()).device.type == "cpu"
on_cpu = {"z": model.get_latent_representation(), "bound": model.get_elbo(bound="collapsed")}

model.vae.to(device)
on_device = {"z": model.get_latent_representation(), "bound": model.get_elbo(bound="collapsed")}
model.vae.to("cpu")
for name in on_cpu:
    assert isinstance(on_device[name], type(on_cpu[name]))
    np.testing.assert_allclose(on_device[name], on_cpu[name], rtol=1e-3, atol=1e-3)

# %% [markdown]
# ### Do devices agree?
#
# With the same weights they agree up to rounding. A cell's draws of z come from NumPy and are determined by the seed and the cell's name,
# so they are the same on every device and bounds can be compared cell by cell.
#
# The code differs between devices. In single precision on a CPU, sums over peaks use this package's compiled kernels; on a GPU, and in
# double precision on a CPU, they use torch. The two code paths can therefore be compared without a GPU: a copy of the model in float64
# takes the second path. The figure shows, for each cell, how much its bound differs from the float64 bound.

# %%
wide = new_model()
wide.vae.load_state_dict(model.vae.state_dict())
wide.is_trained = True  # it has the weights of a trained model
wide.vae.double()  # the same weights, arithmetic in float64
reference = wide.get_elbo(bound="collapsed").to_numpy()
differences = {}
for name in devices:
    model.vae.to(name)
    differences[name] = model.get_elbo(bound="collapsed").to_numpy() - reference
model.vae.to("cpu")

with ps.pl.style():
    figure, ax = plt.subplots(figsize=(4.2, 2.5), layout="constrained")
    for name, color, mark in zip(devices, ps.pl.PALETTE, "os", strict=False):
        ax.plot(
            -reference,
            np.abs(differences[name]),
            mark,
            ms=2.5,
            mew=0,
            alpha=0.7,
            color=color,
            label=f"{name}, float32",
        )
    scale = np.array([-reference.max(), -reference.min()])
    ax.plot(scale, scale * np.finfo(np.float32).eps, "k:", lw=1, label="float32 rounding error")
    ax.set(
        xlabel="minus the bound of the cell, nats",
        ylabel="difference from\nfloat64, nats",
        yscale="log",
    )
    figure.legend(loc="outside right center")
plt.show()
pd.DataFrame(
    {"largest difference, nats": {name: np.abs(d).max() for name, d in differences.items()}}
)

# %%
for difference in differences.values():
    assert (np.abs(difference) <= 1e-4 * np.abs(reference)).all()
assert np.abs(reference).min() > 10  # otherwise the relative tolerance would mean little

# %% [markdown]
# **Two training runs** are a different matter. Training uses the device's own random number generator, so a run on a GPU and a run on a CPU
# have different noise, like two runs with different seeds. Both should reach the same bound up to that noise. (Repeating the same call on the
# same CPU gives the same weights.) The cell below compares the devices or, without a GPU, two seeds.

# %%
runs = {}
for name, seed in [("cpu", 0), ("cuda", 0) if HAVE_GPU else ("cpu", 1), ("cpu", 0)]:
    run = new_model()
    run.train(EPOCHS, accelerator="gpu" if name == "cuda" else "cpu", seed=seed, progress_bar=False)
    again = ", repeated" if (label := f"{name}, seed {seed}") in runs else ""
    runs[label + again] = run

base = runs["cpu, seed 0"].history["elbo_train"]
with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained")
    left.plot(base.index, base, color="black", label="cpu, seed 0")
    left.set(ylabel="bound in training, nats per cell", title="First run")
    for (name, run), color, line in list(zip(runs.items(), ps.pl.PALETTE, "-- ", strict=False))[1:]:
        options = {"color": color, "label": name, "lw": 1.3}
        options |= {"ls": "-"} if line == "-" else {"ls": "", "marker": "o", "ms": 3}
        right.plot(base.index, run.history["elbo_train"] - base, **options)
    right.set(ylabel="difference, nats per cell", title="Other runs minus the first")
    start = base.index[(runs["cpu, seed 0"].history["phase"] == "mixture").argmax()]
    for ax in (left, right):
        ax.axvline(start - 0.5, color="0.6", lw=0.8)
        ax.set_xlabel("epoch (line: start of the mixture)")
    right.legend()
plt.show()

# %%
first, other, repeated = runs.values()
assert (first.history["elbo_train"] == repeated.history["elbo_train"]).all()
reached = [run.get_elbo(bound="collapsed").mean() for run in (first, other)]
assert abs(reached[0] - reached[1]) < 0.02 * abs(reached[0])
pd.Series(reached, index=list(runs)[:2], name="bound, nats per cell").round(2).to_frame()

# %% [markdown]
# ## Precision
#
# `trainer_kwargs` passes further arguments to Lightning's Trainer, among them `precision`. We try each value for a few epochs on this
# device.

# %%
outcomes = {}
for precision in ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"):
    tried = new_model()
    try:
        tried.train(5, progress_bar=False, trainer_kwargs={"precision": precision})
        bound = tried.history["elbo_train"].iloc[-1]
        outcomes[precision] = "works", f"{bound:.1f}", str(next(tried.vae.parameters()).dtype)
    except ValueError as error:
        outcomes[precision] = f"ValueError: {error}", "", ""
outcomes = pd.DataFrame(outcomes, index=["outcome", "bound, nats per cell", "dtype afterwards"]).T
outcomes

# %% [markdown]
# The package is written for single precision. Double precision works and gives the same result up to the noise of the draws. **Half
# precision, mixed or true, is refused on every device**: a bound is a sum over thousands of peaks of terms near zero, and clusters can be
# separated by differences of one nat, while bfloat16 has about three decimal digits. In between, GPUs offer TF32, which affects only matrix
# products and is a setting of torch:
#
# ```python
# torch.set_float32_matmul_precision("high")   # before train(); "highest" is the default
# ```
#
# We have not measured its effect. Compare `get_elbo()` with and without TF32 before you rely on it.

# %%
works = outcomes[outcomes["outcome"] == "works"]["bound, nats per cell"].astype(float)
assert {"32-true", "64-true"} <= set(works.index)
assert abs(works["32-true"] - works["64-true"]) < 0.02 * abs(works["32-true"])

# %% [markdown]
# ## Saving and loading
#
# `save` moves the weights to the CPU and writes them in their own dtype. `load` reads them in single precision, to the CPU unless
# `map_location` names another device, so a model trained on a GPU can be loaded without one.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.vae.to(device)  # save() works from any device
    model.save(Path(folder) / "model")
    loaded = ps.SCALE.load(Path(folder) / "model", adata)
    wide.save(Path(folder) / "wide")  # the copy in float64
    narrow = ps.SCALE.load(Path(folder) / "wide", adata)
    sizes = {file.name: file.stat().st_size for file in sorted((Path(folder) / "model").iterdir())}
model.vae.to("cpu")
for read in (loaded, narrow):
    weight = next(read.vae.parameters())
    assert weight.device.type == "cpu"
    assert weight.dtype == torch.float32
np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
pd.Series(sizes, name="bytes").to_frame()

# %% [markdown]
# The folder contains neither code nor the optimizer state. A long run can also write a checkpoint, `model.train(checkpoint="run.ckpt")`:
# repeating the same call resumes an interrupted run.
#
# ## Out of memory
#
# The memory of a training step grows with the minibatch. If there is too little, training raises `ps.OutOfMemoryError` (a subclass of
# `MemoryError`), whose message suggests a smaller batch size. To provoke it, the callback below raises torch's error for minibatches of more
# than 64 cells.


# %%
class SmallDevice(Callback):
    def on_train_batch_start(self, trainer, module, cells, *_):
        if cells.n_cells > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")


limited, batch_size, messages = new_model(), 256, []
while True:
    try:
        limited.train(
            3,
            batch_size=batch_size,
            progress_bar=False,
            trainer_kwargs={"callbacks": SmallDevice()},
        )
        break
    except ps.OutOfMemoryError as error:
        messages.append(str(error))
        batch_size //= 2
print(*messages, sep="\n")
assert isinstance(ps.OutOfMemoryError(), MemoryError)
assert len(messages) == 2
assert "batch_size=64" in messages[-1]
assert batch_size == 64
assert len(limited.history) == 3

# %% [markdown]
# Each call to `train` continues from the current weights, with a new optimizer. The methods that return results have an argument
# `batch_size` as well; it does not change the results.

# %%
np.testing.assert_allclose(
    model.get_latent_representation(batch_size=7), model.get_latent_representation(), atol=1e-4
)

# %% [markdown]
# ## Loggers and callbacks
#
# Both are passed through `trainer_kwargs`. The logged metrics are those of `model.history`: `elbo_train` and, if cells are held out,
# `elbo_validation`, once per epoch, in nats per cell. Your callbacks are added to the package's own.


# %%
class StepCounter(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


logged, counter = new_model(), StepCounter()
with tempfile.TemporaryDirectory() as folder:
    logger = CSVLogger(folder, name="scale")
    logged.train(
        6,
        progress_bar=False,
        validation_size=0.1,
        trainer_kwargs={"logger": logger, "callbacks": [counter], "log_every_n_steps": 1},
    )
    metrics = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
metrics = metrics.groupby("epoch")[["elbo_train", "elbo_validation"]].max()
for name in metrics:
    np.testing.assert_allclose(metrics[name], logged.history[name], rtol=1e-5)
n_training = adata.n_obs - int(0.1 * adata.n_obs)
assert counter.steps == 6 * -(-n_training // 128)
metrics.round(2)

# %% [markdown]
# ## Several devices
#
# `devices=2` starts two processes (distributed data parallel). Each process takes its part of **every minibatch**, and the gradients are
# averaged. `batch_size` and the learning rate therefore keep their meaning: two devices take the same steps as one. Use a script, not a
# notebook:
#
# ```python
# # train.py
# from lightning.pytorch.utilities import rank_zero_only
#
# import pyro_scale as ps
#
# model = ps.SCALE(ps.read("cells.h5ad"), n_components=8)
# model.train(accelerator="gpu", devices=2)
# if rank_zero_only.rank == 0:  # only one process writes
#     model.save("model")
# ```
#
# Start it with `python train.py`. For several machines with four GPUs each, set
# `model.train(accelerator="gpu", devices=4, trainer_kwargs={"num_nodes": 2})` and start the script on every machine with `torchrun`:
#
# ```
# torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py
# ```
#
# The tests verify that two processes on CPUs end with the same weights as one process; both ways to start the script were tried with them.
# Two machines have not been tried. What several devices do not support is refused before training starts:

# %%
refusals = {}
with tempfile.TemporaryDirectory() as folder:
    adata.write_h5ad(Path(folder) / "cells.h5ad")
    on_disk = anndata.read_h5ad(Path(folder) / "cells.h5ad", backed="r")
    for name, refused_model in {
        "n_components=None": ps.SCALE(adata),
        "an estimator that calls backward itself": new_model(estimator="TraceGraph_ELBO"),
        "cells on disk": ps.SCALE(on_disk, 4, 5),
    }.items():
        try:
            refused_model.train(2, devices=2, accelerator="cpu", progress_bar=False)
        except ValueError as error:
            refusals[name] = str(error)
    on_disk.file.close()
assert len(refusals) == 3
assert all("device" in message for message in refusals.values())
print(*(f"{name}:\n    {message}" for name, message in refusals.items()), sep="\n")

# %% [markdown]
# ## Cells larger than memory
#
# An AnnData in backed mode keeps its matrix on disk. Training reads blocks of 32 consecutive cells in random order, and shuffles the cells of
# 32 minibatches together. The cells should therefore not be stored sorted by type; if they are, shuffle the file once. Trained models return
# the same results for cells on disk and in memory.

# %%
with tempfile.TemporaryDirectory() as folder:
    adata.write_h5ad(Path(folder) / "cells.h5ad")
    backed = anndata.read_h5ad(Path(folder) / "cells.h5ad", backed="r")
    assert backed.isbacked
    from_disk = ps.SCALE(backed, n_components=4, n_latent=5)
    from_disk.train(EPOCHS, progress_bar=False)
    z_on_disk = from_disk.get_latent_representation()
    z_in_memory = from_disk.get_latent_representation(adata)
    bound = from_disk.get_elbo(bound="collapsed").mean()
    backed.file.close()
np.testing.assert_allclose(z_on_disk, z_in_memory, atol=1e-5)
assert abs(bound - reached[0]) < 0.02 * abs(reached[0])
print(
    f"bound after training on cells on disk {bound:.2f}, in memory {reached[0]:.2f} nats per cell"
)

# %% [markdown]
# ## The time of a training step
#
# Median time of one step (forward, backward, Adam) with the mixture prior, for each device and both presets. **There is no assertion on these
# times**: they depend on the machine and on what else runs on it. The CPU times use the compiled kernels. On an H200, the time of small
# minibatches was that of the host, some 10 ms per step, and large minibatches waited for the loader
# ([tests/benchmarks](../tests/benchmarks/README.md#on-a-gpu)).


# %%
class StepTimer(Callback):
    def __init__(self):
        self.seconds = []

    def now(self):
        if HAVE_GPU:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, *_):
        self.started = self.now()

    def on_train_batch_end(self, *_):
        self.seconds.append(self.now() - self.started)


n_cells, n_peaks = (400, 2000) if SHORT else (2000, 20_000)
many = ps.simulate(n_cells, n_peaks, 4, density=0.03, seed=0)
sizes = (32, 128, 400) if SHORT else (32, 128, 512)
costs = []
for preset in ("default", "plain"):
    timed = ps.SCALE(many, n_components=8, preset=preset)
    timed.train(1, progress_bar=False)  # compiles the kernels
    for name in devices:
        for size in sizes:
            timer = StepTimer()
            timed.train(
                2,
                accelerator="gpu" if name == "cuda" else "cpu",
                batch_size=size,
                warmup_epochs=0,
                progress_bar=False,
                trainer_kwargs={"callbacks": timer},
            )
            second_half = timer.seconds[len(timer.seconds) // 2 :]  # the first steps allocate
            seconds = float(np.median(second_half))
            costs.append((preset, name, size, 1e3 * seconds, size / seconds))
            assert len(timer.seconds) == 2 * -(-n_cells // size)
costs = pd.DataFrame(
    costs, columns=["preset", "device", "cells per step", "ms per step", "cells per s"]
)

with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    for (preset, name), group in costs.groupby(["preset", "device"]):
        options = {
            "color": ps.pl.PALETTE[0 if preset == "default" else 3],
            "ls": "-" if name == "cpu" else "--",
            "marker": "o" if name == "cpu" else "s",
            "ms": 4,
        }
        left.plot(
            group["cells per step"], group["ms per step"], label=f"{preset}, {name}", **options
        )
        right.plot(group["cells per step"], group["cells per s"], **options)
    left.set(ylabel="ms per step", title=f"{n_peaks:,} peaks, 3 % open")
    right.set(ylabel="cells per second")
    for ax in (left, right):
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="cells per step (batch_size)",
            xticks=sizes,
            xticklabels=sizes,
        )
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.legend(loc="outside right center")
plt.show()
costs.round({"ms per step": 1, "cells per s": 0})

# %% [markdown]
# ## What to take home
#
# | question | answer | evidence |
# |---|---|---|
# | Which device? | `accelerator` and `devices`; a GPU by default | run here, and on one GPU by `tests/training/test_gpu.py` |
# | After training? | the model is on the CPU; `model.vae.to("cuda")` for many cells | run here |
# | Same results? | same weights: up to rounding; training runs: up to noise | run here between code paths; on one GPU, [tests/benchmarks](../tests/benchmarks/README.md#on-a-gpu) |
# | Precision? | single or double; half precision is refused | run here |
# | Saving? | weights are saved from the CPU; `map_location` chooses the device when loading | run here |
# | Memory? | `ps.OutOfMemoryError` suggests a `batch_size` | error provoked here |
# | Several devices? | they divide each minibatch; `torchrun` for several machines | tested with two processes on CPUs |
# | Speed? | the last table, on your machine | measured here |
