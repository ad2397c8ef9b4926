"""Start ``pyro-scale run``, and kill it at a chosen moment.

Run as a script it is the process to be killed: the command line, in a process of its own, that
writes every checkpoint it can and says through a pipe what it is about to do. The same can be had
of a fork of a process that has imported everything and done nothing. A moment is a stage, an epoch,
and how long after it was announced.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

STAGES = (
    "reading and setting up",
    "training",
    "writing a checkpoint",
    "putting the checkpoint in place",
    "computing the outputs",
    "writing the outputs",
    "moving the outputs into place",
    "tidying up",
)
SET_UP, TRAINING, CHECKPOINT, RENAMING, COMPUTING, WRITING, MOVING, TIDYING = range(len(STAGES))


class At(NamedTuple):
    """A place on the way of a run; places compare as they follow one another."""

    part: int  # before training, in it, after it
    epochs: int  # that are over
    stage: int

    @classmethod
    def of(cls, stage: int, epochs: int = 0) -> At:
        part = 0 if stage == SET_UP else 1 if stage < COMPUTING else 2
        return cls(part, epochs if part == 1 else 0, stage)


class End(NamedTuple):
    """How a process ended."""

    status: int  # negative: by that signal
    at: At | None  # the last it announced (SIGKILL), or at the signal (SIGTERM may be put off)
    signalled: bool
    heard: list[tuple[float, At]]
    log: str


class _Started:
    """A new process of this file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.pipe, theirs = os.pipe()
        with log.open("w") as file:
            command = [sys.executable, __file__, str(theirs), *arguments]
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, pass_fds=[theirs], env=_environment()
            )
        os.close(theirs)

    def wait(self) -> int:
        return self.process.wait()


class _Forked:
    """The same without the seconds of importing."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        preloaded = ["helpers.kill_process", "pyro_scale.cli", "sklearn.manifold"]
        context.set_forkserver_preload(preloaded)
        os.environ.update(_environment())
        ours, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_as_a_fork, args=(theirs, arguments, log))
        self.process.start()
        theirs.close()
        self.pipe = os.dup(ours.fileno())
        ours.close()

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


def _as_a_fork(pipe: Connection, arguments: list[str], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    _main(pipe.fileno(), arguments)


def plainly(arguments: list[str], log: Path) -> End:
    """Run to the end, with nothing of this file in the process."""
    with log.open("w") as file:
        command = [sys.executable, "-m", "pyro_scale", *arguments]
        done = subprocess.run(command, stdout=file, stderr=file, env=_environment())
    return End(done.returncode, None, False, [], log.read_text())


def killed(
    arguments: list[str],
    log: Path,
    at: At | None = None,
    *,
    seconds: float = 0.0,
    by: signal.Signals = signal.SIGKILL,
    fork: bool = False,
) -> End:
    """Run until ``at`` is announced or passed, and ``seconds`` more; None: to the end.

    Nothing here has a time limit: a machine may be busy, and a process may be stopped for long.
    """
    started = (_Forked if fork else _Started)(arguments, log)
    heard: list[tuple[float, At]] = []
    signalled_at: At | None = None
    due: float | None = None
    rest = b""
    while True:
        left = None if due is None else max(0.0, due - time.monotonic())
        if not select.select([started.pipe], [], [], left)[0]:
            with suppress(ProcessLookupError):
                os.kill(started.process.pid, by)
            signalled_at, due = heard[-1][1], None
            at = None
            continue
        if not (read := os.read(started.pipe, 4096)):
            break
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            heard.append((time.monotonic(), At.of(*map(int, line.split()))))
            if at is not None and due is None and heard[-1][1] >= at:
                due = time.monotonic() + seconds
    os.close(started.pipe)
    status = started.wait()
    where = heard[-1][1] if heard and status == -signal.SIGKILL else signalled_at
    return End(status, where, signalled_at is not None, heard, log.read_text())


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "1000"}  # a message is a line


def durations(heard: list[tuple[float, At]]) -> dict[int, float]:
    """Seconds that a stage takes, its median where it comes again."""
    taken: dict[int, list[float]] = {}
    run: tuple[float, At] | None = None
    for time_, at in heard:
        if run is None or run[1] != at:
            if run is not None:
                taken.setdefault(run[1].stage, []).append(time_ - run[0])
            run = time_, at
    return {stage: float(np.median(seconds)) for stage, seconds in taken.items()}


def went_on_from(log: str) -> int | None:
    """After how many epochs a process says that it went on; None: it does not say so."""
    found = re.search(r"resuming from .* after (\d+) epochs", log)
    return int(found[1]) if found else None


def announce(pipe: int) -> None:
    """Say what comes before it is done, and let no time have to pass between two checkpoints."""
    from pyro_scale.cli import _files
    from pyro_scale.training import callbacks
    from pyro_scale.training.module import TrainingModule

    epochs = 0

    def say(stage: int) -> None:
        os.write(pipe, f"{stage} {epochs}\n".encode())

    def before(owner: object, name: str, stage: int) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def announced(*arguments, **keywords):
            nonlocal epochs
            if stage == TRAINING:
                epochs = len(arguments[0].history)
            if stage == CHECKPOINT:
                arguments[0].seconds = 0.0
            say(stage)
            result = original(*arguments, **keywords)
            if stage == CHECKPOINT:
                epochs += 1
                say(TRAINING)
            return result

        setattr(owner, name, announced)

    def own_atomic(module: object) -> SimpleNamespace:
        """The atomic writes of one module alone."""
        module._atomic = SimpleNamespace(**vars(module._atomic))
        return module._atomic

    before(TrainingModule, "on_train_epoch_start", TRAINING)
    before(callbacks.TrainingCheckpoint, "on_train_epoch_end", CHECKPOINT)
    before(own_atomic(callbacks), "replace", RENAMING)
    before(_files.Outputs, "write", COMPUTING)
    before(_files.SCALE, "save", WRITING)
    before(own_atomic(_files), "replace", MOVING)
    before(_files.Outputs, "_report", TIDYING)
    say(SET_UP)


def _main(pipe: int, arguments: list[str]) -> None:
    from pyro_scale.cli import main

    announce(pipe)
    sys.argv = ["pyro-scale", *arguments]
    main()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
