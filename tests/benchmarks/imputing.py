"""Peak memory and time of imputing to disk, as the number of cells grows.

    python tests/benchmarks/imputing.py --cells 5000 50000 --dtype uint8

Cells are simulated into an h5ad file (in a temporary folder), opened ``backed="r"`` and imputed by
a model of the first thousand, each size in a process of its own. 50,000 cells x 100,000 peaks take
5 GB (``uint8``) or 10 GB (``float16``) of disk before compression.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import memory

import pyro_scale as ps


def measure(path: str, dtype: str, suffix: str) -> dict:
    """In this process."""
    adata = ad.read_h5ad(path, backed="r")
    model = ps.SCALE(adata[:1000].to_memory(), 10)
    model.train(2, progress_bar=False)
    target = Path(path).with_name(f"imputed{suffix}")
    start = time.perf_counter()
    model.impute(target, adata, dtype=dtype)
    seconds = time.perf_counter() - start
    files = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
    return {
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "seconds": round(seconds, 1),
        "gib_on_disk": round(sum(file.stat().st_size for file in files) / 2**30, 2),
    }


def main() -> None:
    """Every size in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", type=int, default=[5_000, 50_000])
    parser.add_argument("--peaks", type=int, default=100_000)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--dtype", default="uint8")
    parser.add_argument("--suffix", default=".zarr", choices=[".zarr", ".h5ad"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    for n_cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            memory.write(path, n_cells, options.peaks, options.density)
            job = json.dumps([str(path), options.dtype, options.suffix])
            command = [sys.executable, __file__, "--measure", job]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"cells": n_cells, "peaks": options.peaks, "dtype": options.dtype}
            print(row | json.loads(done.stdout.splitlines()[-1]), flush=True)


if __name__ == "__main__":
    main()
