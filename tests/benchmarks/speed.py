"""Step time, cells per second and peak memory of pyro_scale and its peers on simulated cells.

    pip install -e ".[bench]"
    python tests/benchmarks/speed.py --output speed

Every measurement is a process of its own, and methods take turns; the table has the median of the
rounds. Each method runs its own training loop and loader; the first steps, in which kernels are
compiled and memory is allocated, are not counted. The roofline is the time that the bytes of the
plain model's weights and moments take, by the bandwidth of a copy in the same process. The ones are
spread evenly, so that more rows are open than in cells of the same density. What is given more than
one value (peaks, density, cells, components) is drawn, with the usual value of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import peers
import scipy.sparse as sp
import torch
from speed_figure import draw

import pyro_scale as ps
from pyro_scale.data import CountMatrix, loader
from pyro_scale.objectives import collapsed, evaluate
from pyro_scale.ops._numba import reserve_threads_for_kernels
from pyro_scale.programs import MixtureVAE, rsample
from pyro_scale.training.lazy_adam import LazyAdam
from pyro_scale.training.optimizers import build_optimizer

HIDDEN = 0.5  # share of the ones that the encoder does not see, by default
SKIPPED = 3  # the first steps, in which memory is allocated


def random_cells(n_cells: int, n_peaks: int, density: float) -> ad.AnnData:
    """Ones at random places, which leaves the fewest peaks closed."""
    rng = np.random.default_rng(0)
    per_cell = rng.binomial(n_peaks, density, n_cells).clip(1)
    columns = np.concatenate([np.sort(rng.choice(n_peaks, k, replace=False)) for k in per_cell])
    indptr = np.concatenate([[0], per_cell.cumsum()])
    x = sp.csr_matrix((np.ones(len(columns), np.float32), columns, indptr), (n_cells, n_peaks))
    return ad.AnnData(x, obs=pd.DataFrame({"batch": pd.Categorical(["a"] * n_cells)}))


class Enough(Exception):  # noqa: N818
    """The measurement is over."""


class Clock:
    """Called after every step; ends the run after so many."""

    def __init__(self, steps: int) -> None:
        self.steps, self.times = steps, [time.perf_counter()]

    def __call__(self, *_: object) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) > self.steps + SKIPPED:
            raise Enough

    def seconds(self) -> float:
        """Per step, the first ones left out, what lies between epochs included."""
        times = self.times[SKIPPED:]
        return (times[-1] - times[0]) / (len(times) - 1)


def _callback(clock: Clock, base: type) -> object:
    return type("Callback", (base,), {"on_train_batch_end": lambda *_: clock()})()


def ours(**options) -> Callable:
    """SCALE.train, by Lightning and Pyro."""

    def run(adata, k, batch, clock):
        from lightning import Callback

        model = ps.SCALE(adata, k, **options)
        kwargs = {"callbacks": [_callback(clock, Callback)]}
        model.train(
            10**6, batch_size=batch, warmup_epochs=0, progress_bar=False, trainer_kwargs=kwargs
        )

    return run


def fused(**options) -> Callable:
    """The same with torch's fused Adam for every parameter, instead of the lazy Adam."""

    def run(*args):
        def build(*args, distributed):
            return build_optimizer(*args, distributed=True)

        with mock.patch("pyro_scale.training.module.build_optimizer", build):
            ours(**options)(*args)

    return run


def bare(adata, k, batch, clock):
    """The same network, sparse kernels and loss without Pyro and Lightning."""
    with reserve_threads_for_kernels():
        _bare(adata, k, batch, clock)


def _bare(adata, k, batch, clock):
    counts = CountMatrix.from_anndata(adata)
    vae = MixtureVAE(adata.n_vars, k)
    first = LazyAdam(vae.encoder.peaks, lr=2e-4)
    rest = [p for p in vae.parameters() if p is not vae.encoder.peaks.weight_ph]
    optimizer = torch.optim.Adam(rest, lr=2e-4, fused=True)
    while True:
        for cells in loader(counts, batch, seed=0):
            cells = cells.mask_peaks(HIDDEN, rescale=True)
            first.zero_grad()
            optimizer.zero_grad()
            loc, var = vae.encoder(cells)
            z = rsample(loc, var, torch.randn_like(loc))
            loss = -collapsed(evaluate(vae, cells, z, moments=(loc, var))).total().mean()
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in rest])
            scale = min(1.0, float(10.0 / torch.hypot(norm, first.norm())))
            torch.nn.utils.clip_grads_with_norm_(rest, 10.0, norm / scale)
            first.scale_gradient_(scale)
            optimizer.step()
            first.step()
            clock()


def original(fused: bool) -> Callable:
    """PyPI scale 1.1.2: its data set, loader and loop."""

    def run(adata, k, batch, clock):
        adam = torch.optim.Adam

        class Timed(adam):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, fused=fused, **kwargs)

            def step(self, *args):
                super().step(*args)
                clock()

        with peers.as_released(Timed):
            from scale.dataset import SingleCellDataset
            from scale.model import SCALE

            model = SCALE([adata.n_vars, 10, [1024, 128], []], n_centroids=k)
            data = torch.utils.data.DataLoader(
                SingleCellDataset(adata), batch, shuffle=True, drop_last=True, num_workers=4
            )
            model.fit(data, lr=2e-4, max_iter=10**6)

    return run


def peak_vi(adata, k, batch, clock):
    """scvi-tools' PeakVI with its defaults."""
    import scvi
    from lightning.pytorch import Callback

    scvi.model.PEAKVI.setup_anndata(adata)
    model = scvi.model.PEAKVI(adata, n_latent=10)
    model.train(
        10**6,
        batch_size=batch,
        accelerator="cpu",
        early_stopping=False,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
        callbacks=[_callback(clock, Callback)],
    )


METHODS: dict[str, Callable] = {
    "pyro_scale plain": ours(preset="plain"),
    "bare PyTorch": bare,
    "pyro_scale default": ours(),
    "SCALE 1.1.2": original(fused=False),
    "SCALE 1.1.2, fused Adam": original(fused=True),
    "PeakVI": peak_vi,
    "plain, fused Adam": fused(preset="plain"),
    "plain, mean field": ours(preset="plain", formulation="mean_field"),
    "plain, TraceEnum_ELBO": ours(preset="plain", formulation="structured"),
    "plain, SCALE's loss": ours(
        preset="plain", formulation="structured", estimator="TraceEnumMeanField_ELBO"
    ),
    "plain, auxiliary": ours(preset="plain", formulation="scale"),
}
DEFAULT = list(METHODS)[:6]
SETTING = ("peaks", "batch", "density", "cells", "components")


def measure(
    method: str, steps: int, peaks: int, batch: int, density: float, cells: int, components: int
) -> dict:
    """In this process: seconds per step, and memory above what was there before, in GiB."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    adata = random_cells(cells, peaks, density)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock(steps)
    silent = io.StringIO()
    with (
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
        contextlib.suppress(Enough),
    ):
        METHODS[method](adata, components, batch, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = clock.seconds()
    return {
        "ms_per_step": 1e3 * seconds,
        "cells_per_second": batch / seconds,
        "peak_gib": peak / 2**20,
        "added_gib": (peak - before) / 2**20,
        "roofline_ms": 1e3 * least_bytes(peaks, batch, density) / bandwidth(),
    }


def bandwidth() -> float:
    """Bytes per second that a copy of 256 MiB reads and writes."""
    a, b = torch.randn(2**26), torch.zeros(2**26)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        b.copy_(a)
        seconds.append(time.perf_counter() - start)
    return 2 * 4 * 2**26 / float(np.median(seconds))


def least_bytes(peaks: int, batch: int, density: float) -> float:
    """That a step of the plain model has to move, activations left out.

    First layer: the rows of open peaks, with two moments, are read and written. Decoder: weights
    read forwards and backwards, their gradient written and read, weights and moments read and
    written.
    """
    is_open = 1 - (1 - HIDDEN * density) ** batch
    return 4 * peaks * (6 * 1024 * is_open + 10 * (10 + 1))


def run(options: argparse.Namespace) -> pd.DataFrame:
    """Every combination, method after method within a round."""
    file = options.output.with_suffix(".csv")
    results = pd.read_csv(file) if file.exists() else pd.DataFrame()
    settings = itertools.product(*(getattr(options, name) for name in SETTING))
    for values, n_round, method in itertools.product(
        settings, range(options.rounds), options.methods
    ):
        keys = dict(zip(SETTING, values, strict=True)) | {"method": method}
        print(n_round, keys, file=sys.stderr, flush=True)
        job = json.dumps([method, options.steps, *values])
        command = [sys.executable, __file__, "--measure", job]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr[-500:], file=sys.stderr)
            continue
        row = keys | json.loads(done.stdout.splitlines()[-1])
        results = pd.concat([results, pd.DataFrame([row])])
        results.to_csv(file, index=False)
    return results


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Medians, and how many times faster than the original as shipped at the same setting."""
    setting = [*SETTING]
    table = results.groupby([*setting, "method"]).median().reset_index()
    shipped = table[table["method"] == "SCALE 1.1.2"].set_index(setting)["ms_per_step"]
    if len(shipped):
        times = shipped.reindex(pd.MultiIndex.from_frame(table[setting])).to_numpy()
        table["x_original"] = times / table["ms_per_step"]
        at_32 = shipped[shipped.index.get_level_values("batch") == 32].droplevel("batch")
        rest = [name for name in setting if name != "batch"]
        base = 32e3 / at_32.reindex(pd.MultiIndex.from_frame(table[rest])).to_numpy()
        table["x_throughput_of_original_at_32"] = table["cells_per_second"] / base
    return table.round(2)


def main() -> None:
    """Measure what is asked for; print and draw everything measured so far."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peaks", nargs="+", type=int, default=[5_000, 20_000, 100_000])
    parser.add_argument("--batch", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--density", nargs="+", type=float, default=[0.03])
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=METHODS)
    parser.add_argument("--cells", nargs="+", type=int, default=[4096])
    parser.add_argument("--components", nargs="+", type=int, default=[10])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("speed"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    table = summary(run(options))
    print(table.to_string(index=False))
    draw(table, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
