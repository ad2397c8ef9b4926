"""Time to draw normal numbers by cell name, beside a generator of numpy's for each cell.

    python tests/benchmarks/draws.py

Both give draws that depend on the seed and the cell's name alone. Microseconds per cell, medians
of five rounds in turn, for 5,120 cells in minibatches of 512 and ten latent dimensions.
"""

import sys
import time
import zlib

import numpy as np
import pandas as pd

from pyro_scale.ops._normal_kernels import keyed_normals

N_CELLS, BATCH, N_DIMS, ROUNDS = 5120, 512, 10, 5


def by_counter(names: list[str], n_samples: int) -> np.ndarray:
    keys = pd.util.hash_array(np.array(names, dtype=object), categorize=False)
    return keyed_normals(keys, 0, n_samples, N_DIMS)


def by_philox(names: list[str], n_samples: int) -> np.ndarray:
    draws = [
        np.random.Generator(np.random.Philox(key=(0, zlib.crc32(name.encode())))).standard_normal(
            (n_samples, N_DIMS), np.float32
        )
        for name in names
    ]
    return np.stack(draws, 1)


def seconds(draw, n_samples: int) -> float:
    names = [f"AAACGAAAGC-{cell}" for cell in range(N_CELLS)]
    start = time.perf_counter()
    for first in range(0, N_CELLS, BATCH):
        draw(names[first : first + BATCH], n_samples)
    return time.perf_counter() - start


def main() -> None:
    by_counter(["compile"], 1)
    for n_samples in (1, 20, 100):
        rounds = [
            [seconds(draw, n_samples) for draw in (by_counter, by_philox)] for _ in range(ROUNDS)
        ]
        counter, philox = 1e6 * np.median(rounds, 0) / N_CELLS
        sys.stdout.write(
            f"{n_samples} draws: {counter:.2f} us by counter, {philox:.2f} by Philox\n"
        )


if __name__ == "__main__":
    main()
