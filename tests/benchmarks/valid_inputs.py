"""The counter-fuzz: valid inputs at random, of which none may be refused or read otherwise.

    python tests/benchmarks/valid_inputs.py --n 2000 --seed 0

An input is a function of seed and number: ``--first 17 --n 1`` tries one again.
"""

import argparse
import logging
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.valid_inputs import one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    taken, refused = Counter(), 0
    for number in range(options.first, options.first + options.n):
        with tempfile.TemporaryDirectory() as folder:
            try:
                rng = np.random.default_rng([options.seed, number])
                taken[one(rng, Path(folder))["format"]] += 1
            except Exception:
                refused += 1
                sys.stdout.write(f"--seed {options.seed} --first {number} --n 1\n")
                sys.stdout.write(traceback.format_exc(limit=-3))
    lines = ", ".join(f"{kind} {count}" for kind, count in sorted(taken.items()))
    sys.stdout.write(f"{sum(taken.values())} valid inputs taken ({lines}); {refused} refused\n")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
