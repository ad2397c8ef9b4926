"""A killed run: nothing half-written, and it ends as if nothing had been."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import small_scale
from helpers.kill_process import CHECKPOINT, MOVING, SET_UP, WRITING, At, killed, plainly
from helpers.results_on_disk import damaged, differences
from lightning import Callback
from typer.testing import CliRunner

from pyro_scale.cli import app


class Terminated(Callback):
    """A SIGTERM after some step, or after the last, where Lightning does not look any more."""

    def __init__(self, hook):
        setattr(self, hook, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_end"])
def test_a_sigterm_stops_the_program_as_ctrl_c_does(cells, tmp_path, hook):
    """Lightning exits with status 0, or goes on: a run would seem to have ended well."""
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    settings = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0, "progress_bar": False}
    model = small_scale(cells)
    with pytest.raises(KeyboardInterrupt):
        model.train(2, trainer_kwargs={"callbacks": [Terminated(hook)]}, **settings)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    model = small_scale(cells)
    model.train(2, **settings)
    assert len(model.history) == 2


def test_what_a_killed_process_left_goes_when_the_next_is_done(cells, tmp_path):
    """Also where it had not come to a checkpoint, or none is made."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ["run", str(tmp_path / "cells.h5ad"), "--embed", "none"]
    out, again = tmp_path / "out", tmp_path / "again"
    (out / ".scale-left" / "new").mkdir(parents=True)
    found = CliRunner().invoke(app, [*command, "-k", "3", "--max-epochs", "2", "-o", str(out)])
    assert found.exit_code == 0, found.output
    assert not list(out.glob(".scale-*"))
    (again / ".scale-left" / "new").mkdir(parents=True)
    found = CliRunner().invoke(app, [*command, "--pretrain", str(out / "model"), "-o", str(again)])
    assert found.exit_code == 0, found.output
    assert not list(again.glob(".scale-*"))


@pytest.mark.slow
def test_a_run_killed_in_each_part_of_its_writing_is_finished(cells, tmp_path):
    """Three of the two hundred of tests/benchmarks/kills.py, on small cells."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ["run", str(tmp_path / "cells.h5ad"), "-k", "3", "--max-epochs", "6"]
    command += ["--embed", "none", "--impute", "-o"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    moments = [
        (At.of(CHECKPOINT, 3), signal.SIGKILL),
        (At.of(WRITING), signal.SIGTERM),
        (At.of(MOVING), signal.SIGKILL),
    ]
    with ThreadPoolExecutor(1) as pool:
        reference = pool.submit(plainly, [*command, str(whole)], tmp_path / "log of the whole")
        for at, by in moments:
            end = killed([*command, str(out)], tmp_path / "log", at, by=by)
            assert end.signalled, end.log
            assert end.status == -by, end.log
            assert end.at >= at > At.of(SET_UP)
            assert damaged(out) == []
            assert (out / "training.checkpoint").exists()
        last = plainly([*command, str(out)], tmp_path / "log")
        assert last.status == reference.result().status == 0, last.log
    assert "after 6 epochs" in last.log
    assert differences(out, whole) == []
    (out / "model" / "weights.safetensors").write_bytes(b"half")
    assert [each.split(":")[0] for each in damaged(out)] == ["model"]  # so it would have been seen
    assert differences(out, whole) == ["model/weights.safetensors"]
