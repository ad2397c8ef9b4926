"""Fuzz every reader, saved models and arguments: nothing may hang, crash, or fail without a name.

    python tests/benchmarks/fuzz.py --n 100000 --seed 0

Each target runs in a process of its own, with limits of memory and of time per input, so that a
crash, a hang or a swollen memory is caught too. An input is a function of target, seed and number:
``--target h5ad --first 17 --n 1`` tries one again. What breaks is written to ``--out``, the damaged
files beside its traceback.
"""

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
MEMORY = 3 * 2**30  # beyond what the imports take
SECONDS = 20  # per input
SHARES = {"model": 1.5, "sealed": 1.5, "tables": 1.5, "arguments": 1.5}  # others one


def work(target: str, seed: int, first: int, end: int, folder: Path) -> None:
    """A worker: one line of JSON for each input."""
    sys.path.insert(0, str(TESTS))
    os.environ["OMP_NUM_THREADS"] = "1"
    import logging

    import numpy as np
    import torch
    from helpers.fuzz_targets import TARGETS, outcome

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints
    made = TARGETS[target](folder / "files")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    key = sum(ord(letter) * 257**i for i, letter in enumerate(target)) % 2**32
    for number in range(first, end):
        rng = np.random.default_rng([seed, key, number])
        action, restore = made.one(rng)
        found = outcome(action)
        if found not in ("accepted", "refused"):
            keep(folder, number)
        restore()
        answers.write(json.dumps([number, found]) + "\n")


def keep(folder: Path, number: int) -> None:
    """Copy the files of an input that broke something."""
    if (folder / "files").exists():
        shutil.copytree(folder / "files", folder / "broken" / str(number), dirs_exist_ok=True)


def fuzz(target: str, seed: int, first: int, n: int, out: Path) -> Counter:
    """All inputs of a target; a worker that dies is replaced, and its input counted as broken."""
    counted: Counter = Counter()
    number, end = first, first + n
    while number < end:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            number = _run(target, seed, number, end, folder, out, counted)
    return counted


def _run(
    target: str, seed: int, number: int, end: int, folder: Path, out: Path, counted: Counter
) -> int:
    """Run a worker as far as it goes; the number of the next input."""
    command = [sys.executable, __file__, "--worker", str(folder), "--target", target]
    command += ["--seed", str(seed), "--first", str(number), "--n", str(end - number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with (folder / "stderr").open("wb") as errors:
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0
        )
    assert worker.stdout is not None
    lines, patience, started = b"", 180.0, False
    try:
        while number < end:
            ready, _, _ = select.select([worker.stdout], [], [], patience)
            chunk = os.read(worker.stdout.fileno(), 2**16) if ready else b""
            if not chunk:
                break
            *whole, lines = (lines + chunk).split(b"\n")
            for line in whole:
                at, found = json.loads(line)
                if found in ("accepted", "refused"):
                    counted[found] += 1
                else:
                    _broken(target, seed, at, found, folder / "broken" / str(at), out, counted)
                number, started, patience = at + 1, True, float(SECONDS)
        if number < end:
            hung = worker.poll() is None
            worker.kill()
            code = worker.wait()
            words = f"no answer in {patience:g} seconds" if hung else f"the process died ({code})"
            words += "\n" + (folder / "stderr").read_text(errors="replace")[-4000:]
            if not started and counted["died at once"] > 2:
                raise RuntimeError(f"{target}: workers do not start: {words}")
            counted["died at once"] += not started
            _broken(target, seed, number, words, folder / "files", out, counted)
            number += 1
    finally:
        worker.kill()
        worker.wait()
    return number


def _broken(
    target: str, seed: int, number: int, words: str, files: Path, out: Path, counted: Counter
) -> None:
    counted["BROKEN"] += 1
    place = out / f"{target}-{seed}-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "why.txt").write_text(words)
    if files.exists():
        shutil.copytree(files, place / "files")
    last = words.strip().splitlines()[-1][:160]
    print(f"  BROKEN {target} --seed {seed} --first {number} --n 1: {last}", flush=True)


def main() -> None:
    """Count what was accepted, refused by name, and broken, for each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="inputs in all, or of one --target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="one target alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "fuzz")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        end = options.first + options.n
        work(options.target, options.seed, options.first, end, options.worker)
        return
    sys.path.insert(0, str(TESTS))
    from helpers.fuzz_targets import TARGETS

    names = [options.target] if options.target else list(TARGETS)
    total, start = Counter(), time.monotonic()
    share = sum(SHARES.get(name, 1) for name in names)
    for name in names:
        n = -(-int(options.n * SHARES.get(name, 1)) // int(share)) if len(names) > 1 else options.n
        began = time.monotonic()
        counted = fuzz(name, options.seed, options.first, n, options.out)
        total += counted
        each = ", ".join(f"{counted[key]} {key}" for key in ("accepted", "refused", "BROKEN"))
        print(f"{name:10} {n:7d} inputs: {each} ({time.monotonic() - began:.0f} s)", flush=True)
    each = ", ".join(f"{total[key]} {key}" for key in ("accepted", "refused", "BROKEN"))
    print(f"seed {options.seed}: {sum(total.values())} inputs: {each}, in "
          f"{time.monotonic() - start:.0f} s; what broke is in {options.out}")  # fmt: skip
    sys.exit(bool(total["BROKEN"]))


if __name__ == "__main__":
    main()
