"""How long until the held-out likelihood of the original's 12,000 steps is reached.

    pip install -e ".[bench]"
    PYRO_SCALE_DATA=... python tests/benchmarks/time_to_quality.py

A tenth of the cells is held out. What the original takes, as shipped and with fused Adam, is its
start and the time of some steps, times their number; all steps are made once, for the score. Ours
is trained from the start once for every number of epochs, with the defaults of ``train`` otherwise,
and its time is all of it: the model made, its start, the training.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import peers
import quality

import pyro_scale as ps


def independent(train, test) -> float:
    """log p(x) where every peak is open by itself, as often as in the other cells."""
    open_p = (np.asarray(train.X.sum(0)).ravel() + 0.5) / (train.n_obs + 1)
    x = test.X.toarray()
    return float((x @ np.log(open_p) + (1 - x) @ np.log1p(-open_p)).mean())


def seconds_of_original(train, k, steps, timed, *, fused) -> float:
    """As if all steps were made, from a few and more."""
    seconds = []
    few = timed // 10
    for n in (few, timed):  # their difference has no start in it
        start = time.perf_counter()
        peers.OriginalScale(train, k, 0, steps=n, fused=fused)
        seconds.append(time.perf_counter() - start)
    return seconds[1] + (seconds[1] - seconds[0]) / (timed - few) * (steps - timed)


def ours(train, test, k, epochs, **options) -> dict:
    """From nothing to a model, and how good it is."""
    start = time.perf_counter()
    model = ps.SCALE(train, k, seed=0, **options)
    model.train(epochs, progress_bar=False)
    seconds = time.perf_counter() - start
    score = float(model.get_marginal_ll(test, n_mc_samples=500).mean())
    return {"epochs": len(model.history), "seconds": seconds, "held_out": score}


def main() -> None:
    """Print each as it comes, and the ratio at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="forebrain_half", help="name of an .h5ad file")
    parser.add_argument("--label", default="cell_type", help="column of obs, for its number only")
    parser.add_argument("--steps", type=int, default=peers.STEPS)
    parser.add_argument("--timed-steps", type=int, default=1_000)
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 2, 5, 10, 20, 50, 100])
    parser.add_argument("--output", type=Path, default=Path("time_to_quality"))
    options = parser.parse_args()
    adata = quality.read(Path(os.environ["PYRO_SCALE_DATA"]), options.data)
    k = adata.obs[options.label].nunique()
    held_out = np.random.default_rng(0).permutation(adata.n_obs) < adata.n_obs // 10
    train, test = adata[~held_out].copy(), adata[held_out].copy()
    train.obs["batch"] = pd.Categorical(["a"] * train.n_obs)  # its data set asks for it
    ours(train, test, k, 2)  # kernels are compiled once per machine
    print("peaks drawn independently:", round(independent(train, test), 1), flush=True)
    rows = []
    for preset, epochs in itertools.product(("plain", "default"), options.epochs):
        row = {"method": f"pyro_scale {preset}"} | ours(train, test, k, epochs, preset=preset)
        rows.append(row)
        print(row, flush=True)
    for name, fused in (("SCALE 1.1.2", False), ("SCALE 1.1.2, fused Adam", True)):
        seconds = seconds_of_original(train, k, options.steps, options.timed_steps, fused=fused)
        rows.append({"method": name, "steps": options.steps, "seconds": seconds})
        print(rows[-1], flush=True)
    target = float(peers.OriginalScale(train, k, 0, steps=options.steps).held_out(test, 500).mean())
    table = pd.DataFrame(rows)
    table["held_out"] = table["held_out"].fillna(target)
    table["x_as_shipped"] = table["seconds"].iloc[-2] / table["seconds"]
    table.to_csv(options.output.with_suffix(".csv"), index=False)
    print(table.round(2).to_string(index=False))
    first = table[(table["held_out"] >= target) & (table["method"] == "pyro_scale plain")].iloc[0]
    print(f"the plain model reaches {target:.1f} in {first['seconds']:.2f} s")


if __name__ == "__main__":
    main()
