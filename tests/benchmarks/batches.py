"""What larger minibatches cost in quality and gain in time: many simulated cells, both presets.

    pip install -e ".[bench]"
    python tests/benchmarks/batches.py --cells 15000

The default of ``train`` rests on it (``pyro_scale.training.default_batch_size``). The number of
epochs is the same, so larger minibatches make fewer steps. A tenth of the cells is held out.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import pandas as pd

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores


def measure(
    preset: str, batch: int, seed: int, cells: int, peaks: int, fold: float
) -> dict[str, float]:
    """Adjusted Rand index of the mixture, log p(x) of cells held out, seconds."""
    adata = ps.simulate(
        n_cells=cells, n_peaks=peaks, n_clusters=8, marker_fraction=0.1, fold=fold, seed=seed
    )
    held_out = np.arange(cells) % 10 == 0
    model = ps.SCALE(adata[~held_out].copy(), 8, preset=preset, seed=seed)
    start = time.perf_counter()
    model.train(batch_size=batch, progress_bar=False)
    seconds = time.perf_counter() - start
    few = adata[np.flatnonzero(held_out)[:300]].copy()
    labels = adata.obs["cell_type"][~held_out]
    return {
        "ari": cluster_scores(labels, model.get_cluster_assignments())["ari"],
        "held_out": float(model.get_marginal_ll(few, n_mc_samples=200).mean()),
        "seconds": seconds,
    }


def main() -> None:
    """Print each as it comes, and means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=15_000)
    parser.add_argument("--peaks", type=int, default=10_000)
    parser.add_argument("--fold", type=float, default=4.0, help="markers over others")
    parser.add_argument("--batch", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows = []
    for seed, preset, batch in itertools.product(
        options.seeds, ("default", "plain"), options.batch
    ):
        keys = {"preset": preset, "batch": batch, "seed": seed}
        rows.append(keys | measure(preset, batch, seed, options.cells, options.peaks, options.fold))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby(["preset", "batch"])
    print(table.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
