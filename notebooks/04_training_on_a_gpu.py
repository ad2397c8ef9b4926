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
# In short: with a GPU, `model.train()` uses it, and everything else stays as it is. This notebook is about the rest: which device, which
# precision, where the results are computed, how a model moves, what to do when memory runs out, logging, several devices, cells that do not fit into
# memory, and what a step costs. It runs on whatever device it finds, with the same assertions.
#
# **What has been measured.** The authors had no GPU. Every number that they have seen in this notebook is from a CPU. Training on a GPU has a test
# (`tests/test_gpu.py`), which is skipped without one. That nothing is made on the wrong device is tested without a GPU, on torch's meta device, and
# that several processes train the same model as one, on CPUs (`tests/test_devices.py`). How fast a GPU is here, how much memory it takes, and what half
# precision would do is **not known to us**. The last table is for you to fill.

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

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # the tests shrink the sizes, not the claims
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
# `accelerator` and `devices` are those of Lightning's Trainer.
#
# | call | trains on |
# |---|---|
# | `model.train()` | a GPU if torch sees one, otherwise the CPU |
# | `model.train(accelerator="gpu")` | a GPU, or an error |
# | `model.train(accelerator="gpu", devices=[1])` | the second GPU |
# | `model.train(accelerator="gpu", devices=2)` | two GPUs, each with half of every minibatch |
# | `model.train(accelerator="cpu")` | the CPU, GPU or not |
#
# On the command line: `pyro-scale run cells.h5ad --gpu 1`, and `--gpu -1` for the CPU. A device that cannot be had is an error, not
# a silent run on the CPU.

# %%
EPOCHS = 10 if SHORT else 30


def new_model(**options):
    return ps.SCALE(adata, n_components=4, n_latent=5, **options)


model = new_model()
model.train(EPOCHS, progress_bar=False)
missing = torch.cuda.device_count()  # GPUs are numbered from 0: there is none of this number
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
# **After training the model is on the CPU**: Lightning takes the weights back when it ends. What you ask then, `get_latent_representation` and
# the others, runs on the CPU too. Each of them takes the cells to where the weights are, so move the weights if you have many cells; arrays
# come back as numpy arrays in any case.

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
# For the same weights: yes, to rounding. A cell's draws of z belong to its name and the seed, are made by numpy, and are the same everywhere, so bounds can be
# compared cell by cell.
#
# The code is not the same everywhere. In single precision on a CPU the sums over peaks are compiled kernels of ours; on a GPU, and in double precision
# on a CPU, they are torch's. So without a GPU we can still compare the two ways: a copy of the model in float64 takes the second. The figure
# shows the difference of each cell's bound.

# %%
wide = new_model()
wide.vae.load_state_dict(model.vae.state_dict())
wide.history = model.history  # it is a trained model now
wide.vae.double()  # weights as they are, arithmetic in float64
reference = wide.get_elbo(bound="collapsed").to_numpy()
off = {}
for name in devices:
    model.vae.to(name)
    off[name] = model.get_elbo(bound="collapsed").to_numpy() - reference
model.vae.to("cpu")

with ps.pl.style():
    figure, ax = plt.subplots(figsize=(4.2, 2.5), layout="constrained")
    for name, colour, mark in zip(devices, ps.pl.PALETTE, "os", strict=False):
        ax.plot(
            -reference,
            np.abs(off[name]),
            mark,
            ms=2.5,
            mew=0,
            alpha=0.7,
            color=colour,
            label=f"{name}, float32",
        )
    scale = np.array([-reference.max(), -reference.min()])
    ax.plot(scale, scale * np.finfo(np.float32).eps, "k:", lw=1, label="one float32 rounding")
    ax.set(
        xlabel="minus the bound of the cell, nats",
        ylabel="difference from\nfloat64, nats",
        yscale="log",
    )
    figure.legend(loc="outside right center")
plt.show()
pd.DataFrame({"largest difference, nats": {name: np.abs(d).max() for name, d in off.items()}})

# %%
for difference in off.values():
    assert (np.abs(difference) <= 1e-4 * np.abs(reference)).all()
assert np.abs(reference).min() > 10  # so that the line above says something

# %% [markdown]
# **Two training runs** are another matter. Draws in training come from the device's own generator, so a run on a GPU and one on a CPU see
# different noise, like runs with two seeds. They should reach the same bound, up to that noise. (The same call twice on the same CPU gives the same
# weights.) Here: each device, and without a GPU two seeds in its place.

# %%
runs = {}
for name, seed in [("cpu", 0), ("cuda", 0) if HAVE_GPU else ("cpu", 1), ("cpu", 0)]:
    run = new_model()
    run.train(EPOCHS, accelerator="gpu" if name == "cuda" else "cpu", seed=seed, progress_bar=False)
    again = " again" if (label := f"{name}, seed {seed}") in runs else ""
    runs[label + again] = run

base = runs["cpu, seed 0"].history["elbo_train"]
with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained")
    left.plot(base.index, base, color="black", label="cpu, seed 0")
    left.set(ylabel="bound in training, nats per cell", title="One run")
    for (name, run), colour, line in list(zip(runs.items(), ps.pl.PALETTE, "-- ", strict=False))[
        1:
    ]:
        drawn = {"color": colour, "label": name, "lw": 1.3}
        drawn |= {"ls": "-"} if line == "-" else {"ls": "", "marker": "o", "ms": 3}
        right.plot(base.index, run.history["elbo_train"] - base, **drawn)
    right.set(ylabel="difference, nats per cell", title="Other runs, minus that one")
    start = base.index[(runs["cpu, seed 0"].history["phase"] == "mixture").argmax()]
    for ax in (left, right):
        ax.axvline(start - 0.5, color="0.6", lw=0.8)
        ax.set_xlabel("epoch (the mixture from the line on)")
    right.legend()
plt.show()

# %%
first, other, again = runs.values()
assert (first.history["elbo_train"] == again.history["elbo_train"]).all()
reached = [run.get_elbo(bound="collapsed").mean() for run in (first, other)]
assert abs(reached[0] - reached[1]) < 0.02 * abs(reached[0])
pd.Series(reached, index=list(runs)[:2], name="bound, nats per cell").round(2).to_frame()

# %% [markdown]
# ## Precision
#
# What Lightning's Trainer takes passes through `trainer_kwargs`, and so `precision` does. We try each, for a few epochs, on this device.

# %%
outcomes = {}
for precision in ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"):
    tried = new_model()  # a new one each: one that failed may keep the weights' new type
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a CPU gets bf16-mixed for 16-mixed
            tried.train(5, progress_bar=False, trainer_kwargs={"precision": precision})
        bound = tried.history["elbo_train"].iloc[-1]
        outcomes[precision] = "works", f"{bound:.1f}", str(next(tried.vae.parameters()).dtype)
    except Exception as error:
        outcomes[precision] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:80], "", ""
outcomes = pd.DataFrame(outcomes, index=["outcome", "bound, nats per cell", "weights are then"]).T
outcomes

# %% [markdown]
# Single precision is what the package is written for, and double precision works, with the same result up to the noise of the draws. **Half precision, mixed or true, does not
# work on a CPU** (where Lightning takes bf16-mixed for 16-mixed): sums over peaks have a backward pass of their own, which expects one type throughout. On a GPU we have not been able to try. The
# bounds here are sums over thousands of peaks of terms near zero, and differences of a nat decide between clusters; bfloat16 has three digits. What
# GPUs offer in between is TF32, for matrix products only, and is torch's own switch:
#
# ```python
# torch.set_float32_matmul_precision("high")   # before train(); "highest" is the default
# ```
#
# That, too, has not been measured here. Compare `get_elbo()` with and without before you rely on it.

# %%
works = outcomes[outcomes["outcome"] == "works"]["bound, nats per cell"].astype(float)
assert {"32-true", "64-true"} <= set(works.index)
assert abs(works["32-true"] - works["64-true"]) < 0.02 * abs(works["32-true"])

# %% [markdown]
# ## Saving there, loading here
#
# There is no `map_location`. `save` writes the weights from the CPU and as they are, `load` reads them to the CPU in single precision, and needs no GPU. Then move
# them where you want.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.vae.to(device)  # as if left there
    model.save(Path(folder) / "model")
    loaded = ps.SCALE.load(Path(folder) / "model", adata)
    wide.save(Path(folder) / "wide")  # the one in float64
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
# The folder holds no code and no optimiser. A long run can also keep a checkpoint, `model.train(checkpoint="run.ckpt")`: what was killed goes on when the same
# call is made again.
#
# ## Out of memory
#
# What a step needs grows with the minibatch. If it is too much, the error is `ps.OutOfMemory` (also a `MemoryError`), and it names a batch size to try. We
# make it happen: this callback pretends that a minibatch of more than 64 cells does not fit.


# %%
class SmallDevice(Callback):
    def on_train_batch_start(self, trainer, module, cells, *_):
        if cells.n_cells > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")


tight, batch_size, said = new_model(), 256, []
while True:
    try:
        tight.train(
            3,
            batch_size=batch_size,
            progress_bar=False,
            trainer_kwargs={"callbacks": SmallDevice()},
        )
        break
    except ps.OutOfMemory as error:
        said.append(str(error))
        batch_size //= 2
print(*said, sep="\n")
assert isinstance(ps.OutOfMemory(), MemoryError)
assert len(said) == 2
assert "try batch_size=64" in said[-1]
assert batch_size == 64
assert len(tight.history) == 3

# %% [markdown]
# Each call goes on from the weights that it finds, with a new optimiser. The results have a `batch_size` as well, and what they say of a cell does not depend
# on it.

# %%
np.testing.assert_allclose(
    model.get_latent_representation(batch_size=7), model.get_latent_representation(), atol=1e-4
)

# %% [markdown]
# ## Loggers and callbacks
#
# Both pass through `trainer_kwargs`. Logged are `elbo_train` and, where cells are held out, `elbo_validation`, once an epoch, in nats per cell: what is in
# `model.history`. Callbacks are added to the package's own.


# %%
class Count(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


logged, count = new_model(), Count()
with tempfile.TemporaryDirectory() as folder:
    logger = CSVLogger(folder, name="scale")
    logged.train(
        6,
        progress_bar=False,
        validation_size=0.1,
        trainer_kwargs={"logger": logger, "callbacks": [count], "log_every_n_steps": 1},
    )
    metrics = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
metrics = metrics.groupby("epoch")[["elbo_train", "elbo_validation"]].max()
for name in metrics:
    np.testing.assert_allclose(metrics[name], logged.history[name], rtol=1e-5)
n_training = adata.n_obs - int(0.1 * adata.n_obs)
assert count.steps == 6 * -(-n_training // 128)
metrics.round(2)

# %% [markdown]
# ## Several devices
#
# `devices=2` starts two processes (distributed data parallel). Each takes its part of **every minibatch**, gradients are averaged, and so `batch_size` and the
# learning rate keep their meaning: two devices take the same steps as one. In a script, not in a notebook:
#
# ```python
# # train.py
# from lightning.pytorch.utilities import rank_zero_only
#
# import pyro_scale as ps
#
# model = ps.SCALE(ps.read("cells.h5ad"), n_components=8)
# model.train(accelerator="gpu", devices=2)
# if rank_zero_only.rank == 0:  # one process writes
#     model.save("model")
# ```
#
# Start it with `python train.py`. On several machines, each with four GPUs, `torchrun` starts it on each, with
# `model.train(accelerator="gpu", devices=4, trainer_kwargs={"num_nodes": 2})`:
#
# ```
# torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py
# ```
#
# Two processes on CPUs are tested to end with the weights of one, and both ways to start were tried with them. Two machines we have not had. What several devices cannot do is refused before anything starts.

# %%
refusals = {}
with tempfile.TemporaryDirectory() as folder:
    adata.write_h5ad(Path(folder) / "cells.h5ad")
    on_disk = anndata.read_h5ad(Path(folder) / "cells.h5ad", backed="r")
    for name, asked in {
        "K to be chosen": ps.SCALE(adata),
        "an estimator with its own backward": new_model(estimator="TraceGraph_ELBO"),
        "cells on disk": ps.SCALE(on_disk, 4, 5),
    }.items():
        try:
            asked.train(2, devices=2, accelerator="cpu", progress_bar=False)
        except ValueError as error:
            refusals[name] = str(error)
    on_disk.file.close()
assert len(refusals) == 3
assert all("device" in said for said in refusals.values())
with pd.option_context("display.max_colwidth", None):
    print(*(f"{name}:\n    {said}" for name, said in refusals.items()), sep="\n")

# %% [markdown]
# ## Cells larger than memory
#
# An AnnData in backed mode keeps its matrix on disk. Training reads blocks of 32 neighbouring cells, shuffles the blocks, and shuffles the cells of 32
# minibatches once more. Store the cells in an order that does not follow the types, or shuffle them once. What the trained model says of a cell is the same.

# %%
with tempfile.TemporaryDirectory() as folder:
    adata.write_h5ad(Path(folder) / "cells.h5ad")
    backed = anndata.read_h5ad(Path(folder) / "cells.h5ad", backed="r")
    assert backed.isbacked
    from_disk = ps.SCALE(backed, n_components=4, n_latent=5)
    from_disk.train(EPOCHS, progress_bar=False)
    z = {
        "read from disk": from_disk.get_latent_representation(),
        "in memory": from_disk.get_latent_representation(adata),
    }
    bound = from_disk.get_elbo(bound="collapsed").mean()
    backed.file.close()
np.testing.assert_allclose(*z.values(), atol=1e-5)
assert abs(bound - reached[0]) < 0.02 * abs(reached[0])
print(f"trained from disk: {bound:.2f}, in memory: {reached[0]:.2f} nats per cell")

# %% [markdown]
# ## What a step costs here
#
# Median time of a step (forward, backward, Adam) of the mixture, on each device found, for both presets. **Nothing is asserted of it**: it is the machine's, and
# other programs may be running. The CPU's numbers use the compiled kernels. On a GPU expect small minibatches to be bound by Pyro's own
# bookkeeping in Python, which takes some milliseconds whatever the device, and large ones by the device; that is an expectation, not a measurement.


# %%
class Clock(Callback):
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
    timed.train(1, progress_bar=False)  # kernels are compiled once
    for name in devices:
        for size in sizes:
            clock = Clock()
            timed.train(
                2,
                accelerator="gpu" if name == "cuda" else "cpu",
                batch_size=size,
                warmup_epochs=0,
                progress_bar=False,
                trainer_kwargs={"callbacks": clock},
            )
            half = clock.seconds[len(clock.seconds) // 2 :]  # later ones: the first allocate
            seconds = float(np.median(half))
            costs.append((preset, name, size, 1e3 * seconds, size / seconds))
            assert len(clock.seconds) == 2 * -(-n_cells // size)
costs = pd.DataFrame(
    costs, columns=["preset", "device", "cells per step", "ms per step", "cells per s"]
)

with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    for (preset, name), group in costs.groupby(["preset", "device"]):
        drawn = {
            "color": ps.pl.PALETTE[0 if preset == "default" else 3],
            "ls": "-" if name == "cpu" else "--",
            "marker": "o" if name == "cpu" else "s",
            "ms": 4,
        }
        left.plot(group["cells per step"], group["ms per step"], label=f"{preset}, {name}", **drawn)
        right.plot(group["cells per step"], group["cells per s"], **drawn)
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
# | question | answer | how we know |
# |---|---|---|
# | which device | `accelerator`, `devices`; a GPU by default | run here; GPU: test, skipped without one |
# | after training | the model is on the CPU; `model.vae.to("cuda")` for many cells | run here |
# | same result | same weights: to rounding; same call: to noise | run here between kernels; GPU: run this |
# | precision | single, or double; not half | run here on a CPU |
# | saving | to and from the CPU; no `map_location` | run here |
# | memory | `ps.OutOfMemory` names a `batch_size` | pretended here |
# | several devices | share each minibatch; `torchrun` for machines | two processes on CPUs: test |
# | speed | the last table, on your machine | a CPU |
