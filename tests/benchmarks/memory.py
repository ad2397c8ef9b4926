"""Peak memory and throughput of training on cells that stay on disk, as their number grows.

    python tests/benchmarks/memory.py --cells 10000 50000 500000 --output memory

Cells are simulated into an h5ad file (in a temporary folder: about 4 GB for 500,000 cells), opened
``backed="r"``, checked, and trained on for some minibatches, each size in a process of its own;
the smallest once more from memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import speed
from lightning import Callback

import pyro_scale as ps


def write(path: Path, n_cells: int, n_peaks: int, density: float) -> None:
    """An h5ad of ones at random places, written a chunk of cells at a time."""
    rng, per_cell = np.random.default_rng(0), int(density * n_peaks)
    names = pd.Index([f"cell_{i}" for i in range(n_cells)])
    empty = sp.csr_matrix((0, n_peaks), dtype=np.float32)
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "X", empty, dataset_kwargs={"chunks": (2**16,)})
        is_backed = ad.io.sparse_dataset(file["X"])
        for start in range(0, n_cells, 10_000):
            n = min(10_000, n_cells - start)
            columns = np.sort(rng.integers(n_peaks, size=(n, per_cell)), axis=1).ravel()
            indptr = np.arange(0, n * per_cell + 1, per_cell)
            ones = np.ones(len(columns), dtype=np.float32)
            is_backed.append(sp.csr_matrix((ones, columns, indptr), (n, n_peaks)))
        ad.io.write_elem(file, "obs", pd.DataFrame(index=names))
        ad.io.write_elem(file, "var", pd.DataFrame(index=[f"peak_{i}" for i in range(n_peaks)]))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def measure(path: str, preset: str, in_memory: bool, steps: int, batch: int) -> dict:
    """In this process."""
    adata = ad.read_h5ad(path, backed=None if in_memory else "r")
    clock = speed.Clock(steps)
    model = ps.SCALE(adata, 10, preset=preset)
    kwargs = {"callbacks": [speed._callback(clock, Callback)]}
    with contextlib.suppress(speed.Enough):
        model.train(
            10**6, batch_size=batch, warmup_epochs=0, progress_bar=False, trainer_kwargs=kwargs
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_gib": round(peak, 3), "cells_per_second": round(batch / clock.seconds())}


def main() -> None:
    """Every size from disk, the smallest from memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", type=int, default=[10_000, 50_000, 500_000])
    parser.add_argument("--peaks", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.03)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("memory"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    rows = []
    for n_cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            write(path, n_cells, options.peaks, options.density)
            for in_memory in (False, True) if n_cells == min(options.cells) else (False,):
                job = [str(path), options.preset, in_memory, options.steps, options.batch]
                command = [sys.executable, __file__, "--measure", json.dumps(job)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                where = "memory" if in_memory else "disk"
                row = {"preset": options.preset, "cells": n_cells, "from": where}
                rows.append(row | json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.output.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
