"""Kill ``pyro-scale run`` again and again: nothing is lost, nothing corrupt, the end is the same.

    PYRO_SCALE_DATA=<folder> python tests/benchmarks/kills.py --kills 200 --seed 0

A chain is one run of ``forebrain_half.h5ad``, killed 5 to 11 times and started again with the same
command after each, then left to finish; every third replaces an older result (``--overwrite``).
A moment is drawn: a stage, an epoch, how far into it; most kills are SIGKILL, some SIGTERM. What
is killed is a process of the command line that writes a checkpoint after every epoch and announces
what it does: a new one in every fourth chain, in others forked from one that has imported all.
The reference, and what finishes a chain, is the command as users have it, in a new process.
After each kill everything under its final name is read. A kill counts if work was left to do, and
its resumption if the next process says that it goes on from just what was there. At the end,
weights, histories, tables, the arrays of every h5ad and the pixels of the figure are compared bit
by bit. The exit status is 1 if anything is wrong, and its folder is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import killing
import results_on_disk as left
from helpers.kill_process import STAGES, TIDYING, At

N_EPOCHS = 20
COMMAND = ["-k", "8", "--embed", "tsne", "--impute"]
SHARES = (6, 30, 16, 14, 10, 12, 8, 4)  # of the stages, in per cent
SIGTERMS = 0.2
KINDS = ("in training", "outputs again", "from the start")


@dataclass
class Tally:
    """What came of a chain, or of all."""

    kills: Counter = field(default_factory=Counter)  # by stage and signal
    resumed: Counter = field(default_factory=Counter)  # by stage of the kill and kind
    of_new: int = 0  # kills of processes that were not forked
    too_late: int = 0  # kills with no work left to do
    overtaken: int = 0  # processes that ended before the moment came
    set_aside: int = 0  # kills between taking the old model away and putting the new one there
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    identical: int = 0
    chains: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


class Chain:
    """One run that is killed several times."""

    def __init__(self, bench: Bench, number: int, n_kills: int) -> None:
        self.bench, self.n_kills = bench, n_kills
        self.rng = random.Random(f"{bench.seed} {number}")
        self.folder = bench.scratch / f"chain-{number}"
        self.out, self.log = self.folder / "out", self.folder / "log"
        self.tally = Tally(chains=1)
        self.waiting: list[int] = []  # stages of kills whose resumption has not been seen
        self.state: tuple[int, bool] | None = None  # of the checkpoint that the last kill left
        self.there: set[str] = set()
        overwrite, self.fork = number % 3 == 2, number % 4 > 0
        self.arguments = [*bench.arguments(self.out), *["--overwrite"] * overwrite]
        if overwrite:
            shutil.copytree(bench.older, self.out)
            self.there = self._names()
        else:
            self.folder.mkdir()

    def run(self) -> Tally:
        """Kill, look, go on; then finish and compare."""
        for at in self._moments():
            by = signal.SIGTERM if self.rng.random() < SIGTERMS else signal.SIGKILL
            seconds = self.rng.uniform(0, 1.1) * self.bench.seconds.get(at.stage, 0.01)
            end = killing.killed(
                self.arguments, self.log, at, seconds=seconds, by=by, fork=self.fork
            )
            if not self._look(end, at, by):
                break
        else:
            end = killing.plainly(self.arguments, self.log)
            self._resumed(end)
            if end.status:
                self.tally.wrong.append(f"status {end.status}: {end.log[-600:]}")
        if different := left.differences(self.out, self.bench.reference):
            self.tally.wrong.append(f"{self.folder.name}: {', '.join(different)}")
        else:
            self.tally.identical += 1
        if not (self.tally.wrong or self.tally.lost or self.tally.corrupt):
            shutil.rmtree(self.folder)
        return self.tally

    def _moments(self) -> list[At]:
        """As they follow one another; while a process sets up, between any two."""
        stages = self.rng.choices(range(len(STAGES)), SHARES, k=self.n_kills)
        moments = [At.of(stage, self.rng.randrange(N_EPOCHS)) for stage in stages]
        later = sorted(at for at in moments if at.part)
        for at in moments:
            if not at.part:
                later.insert(self.rng.randrange(len(later) + 1), at)
        return later

    def _look(self, end: killing.End, at: At, by: signal.Signals) -> bool:
        """Whether there is work left."""
        tally, name = self.tally, self.folder.name
        self._resumed(end)
        if not end.signalled or end.at is None:
            tally.overtaken += 1
            if end.status:
                tally.wrong.append(f"{name}: status {end.status}: {end.log[-600:]}")
            return False
        try:
            state = left.checkpoint_of(self.out)
        except Exception as error:
            tally.corrupt.append(f"{name}: {error}")
            return False
        tally.corrupt += [f"{name}: {each}" for each in left.damaged(self.out)]
        if state is None and end.at.stage == TIDYING:
            tally.too_late += 1
            return False
        if end.status == 0:
            tally.wrong.append(f"{name}: {by.name} in {end.at} was not obeyed")
            return False
        tally.kills[end.at.stage, by.name] += 1
        tally.of_new += not self.fork
        self.waiting.append(end.at.stage)
        done = N_EPOCHS if end.at.part == 2 else end.at.epochs
        if (before := self.state[0] if self.state else 0) > done:
            done = before
        if done > (state[0] if state else 0):
            tally.lost.append(f"{name}: {done} epochs were written, {state} found, {end.at}")
        there = self._names()
        if gone := self.there - there:
            tally.lost.append(f"{name}: {', '.join(sorted(gone))}, {end.at}")
        self.there, self.state = there, state
        return True

    def _resumed(self, end: killing.End) -> None:
        """A process that came past its setting up has gone on, or has not, from what was there."""
        if not self.waiting or (end.heard and end.heard[-1][1].part == 0):
            return
        expected = self.state[0] if self.state else None
        if (found := killing.went_on_from(end.log)) != expected:
            where = f"{self.folder.name}: went on from {found}, not {expected}"
            self.tally.lost.append(f"{where}: {end.log[-600:]}")
        kind = KINDS[2 if self.state is None else self.state[1]]
        self.tally.resumed.update((stage, kind) for stage in self.waiting)
        self.waiting.clear()

    def _names(self) -> set[str]:
        """What of the result is there; a model that was to be replaced may be beside its place."""
        if not self.out.exists():
            return set()
        names = {path.name for path in self.out.iterdir()}
        aside = list(self.out.glob(".scale-*/old-model"))
        if "model" not in names and aside:
            left.whole_model(aside[0])
            self.tally.set_aside += 1
            names.add("model")
        return {name for name in names if name[0] != "." and "checkpoint" not in name}


class Bench:
    """The reference, and how long things take."""

    def __init__(self, cells: Path, scratch: Path, seed: int) -> None:
        self.cells, self.scratch, self.seed = cells, scratch, seed
        self.reference, self.older = scratch / "reference", scratch / "older"
        log = scratch / "log"
        runs = [(self.reference, N_EPOCHS), (self.older, 2)]
        for folder, epochs in runs:
            end = killing.plainly(self.arguments(folder, epochs), log)
            if end.status or left.damaged(folder):
                sys.exit(f"the reference failed: {end.log}")
        if not left.differences(self.reference, self.older):
            sys.exit("results of 20 and of 2 epochs are the same: the comparison sees nothing")
        timed = []
        for name in ("first", "second"):
            end = killing.killed(self.arguments(scratch / name), log)
            if end.status or left.differences(scratch / name, self.reference):
                sys.exit(f"with a checkpoint after every epoch the end is another: {end.log}")
            timed.append(killing.durations(end.heard))
        self.seconds = {stage: min(each[stage] for each in timed) for stage in timed[0]}

    def arguments(self, folder: Path, epochs: int = N_EPOCHS) -> list[str]:
        """Of the command."""
        chosen = ["--max-epochs", str(epochs), *COMMAND]
        return ["run", str(self.cells), *chosen, "-o", str(folder)]

    def chains(self, n_kills: int, jobs: int) -> Tally:
        """As many as it takes."""
        total, number = Tally(), 0
        lengths = random.Random(self.seed)
        with ThreadPoolExecutor(jobs) as pool:
            while (missing := n_kills - sum(total.kills.values())) > 0:
                chains = []
                while missing > 0:
                    length = min(missing, lengths.randint(5, 11))
                    chains.append(Chain(self, number, length))
                    missing, number = missing - length, number + 1
                for chain, tally in zip(chains, pool.map(Chain.run, chains), strict=True):
                    total += tally
                    said = f"{sum(tally.kills.values())} kills, {tally.identical} identical"
                    bad = [*tally.lost, *tally.corrupt, *tally.wrong]
                    print(f"{chain.folder.name}: {said}", *bad, sep="\n  ", flush=True)
        return total


def table(total: Tally) -> str:
    """By the stage that a kill fell in."""
    lines = [f"| {'killed while':31} | SIGKILL | SIGTERM | {' | '.join(KINDS)} |"]
    lines.append("|---|--:|--:|" + "--:|" * len(KINDS))
    for stage, name in enumerate(STAGES):
        counts = [total.kills[stage, by] for by in ("SIGKILL", "SIGTERM")]
        counts += [total.resumed[stage, kind] for kind in KINDS]
        lines.append(f"| {name:31} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> None:
    """Everything, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="Chains at a time.")
    options = parser.parse_args()
    data = os.environ.get("PYRO_SCALE_DATA")
    if not data:
        parser.error("set PYRO_SCALE_DATA to the folder that holds forebrain_half.h5ad")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scratch, began = Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    bench = Bench(Path(data).resolve() / "forebrain_half.h5ad", scratch, options.seed)
    print({STAGES[stage]: round(seconds, 4) for stage, seconds in bench.seconds.items()})
    total = bench.chains(options.kills, options.jobs)
    print(f"\n{table(total)}\n")
    kills, resumed = sum(total.kills.values()), sum(total.resumed.values())
    print(
        f"{total.too_late} more kills came when all was done, {total.overtaken} processes ended "
        f"before their moment; {total.set_aside} kills fell between an old model and the new one; "
        f"{total.of_new} were of processes that were not forked; it took "
        f"{(time.monotonic() - began) / 60:.0f} minutes."
    )
    print(
        f"{kills} kills: {resumed} resumptions, {len(total.lost)} lost, {len(total.corrupt)} "
        f"corrupt; {total.identical} of {total.chains} runs bit-identical to the uninterrupted one"
    )
    whole = kills == resumed and total.identical == total.chains
    if not whole or total.lost or total.corrupt or total.wrong:
        sys.exit(f"something is wrong: see {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
