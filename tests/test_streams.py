"""Standard output that is closed, full or in another encoding does not end a run."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import pyro_scale as ps
from pyro_scale._streams import tolerant_output

COMMAND = """
import sys
from pyro_scale.cli import main
sys.argv = ["pyro-scale", "run", "cells.h5ad", "-k", "2", "--max-epochs", "2", "--embed", "none",
            "-o", "out"]
main()
"""
API = """
import pyro_scale as ps
cells = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
model = ps.SCALE(cells, 2, n_latent=2, hidden=(8,))
model.train(2)
model.save("out/model")
"""


@pytest.fixture
def run(tmp_path):
    ps.simulate(n_cells=40, n_peaks=60, density=0.2, seed=0).write_h5ad(tmp_path / "cells.h5ad")

    def run(script, redirect="", **environment):
        (tmp_path / "script.py").write_text(script)
        done = subprocess.run(
            f"{sys.executable} script.py {redirect}",
            shell=True,
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert (tmp_path / "out" / "model" / "model.json").is_file()
        return done

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "encoding"), [(COMMAND, "ascii"), (API, "latin-1")], ids=["command", "API"]
)
def test_an_encoding_that_lacks_characters(run, script, encoding):
    done = run(script, PYTHONIOENCODING=encoding)
    assert b"elbo_train" in done.stdout
    assert b"characters that it lacks are shown as ?" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the redirections are those of a POSIX shell")
@pytest.mark.parametrize(
    ("script", "redirect"),
    [(COMMAND, ">&- 2>&-"), (COMMAND, "| true; exit 0"), (API, ">&-"), (API, "| true; exit 0")],
    ids=["command, closed", "command, pipe", "API, closed", "API, pipe"],
)
def test_output_that_is_closed(run, script, redirect):
    run(script, redirect)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_disk_for_the_output_that_is_full(run):
    assert b"standard output cannot be written to any more" in run(COMMAND, "> /dev/full").stderr


def test_a_stream_that_fails_is_left_and_given_back(capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError("nobody reads")

    output = Closed()
    with redirect_stdout(output):
        with tolerant_output():
            sys.stdout.write("lost")
            sys.stdout.flush()
            sys.stdout.writelines(["lost as well"])
            with tolerant_output():
                sys.stdout.write("and this")
        assert sys.stdout is output
    said = capsys.readouterr().err
    assert said.count("cannot be written to any more (nobody reads); work goes on") == 1


def test_what_nobody_reads_for_a_while_is_dropped_and_the_stream_stays_the_users(tmp_path):
    class Blocks(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise BlockingIOError("try again")
            return super().write(text)

    output = Blocks()
    with redirect_stdout(output), tolerant_output():
        sys.stdout.write("lost")
        output.full = False
        sys.stdout.write("kept")
    assert output.getvalue() == "kept"

    class Full(io.FileIO):
        full = True

        def write(self, content):
            if self.full:
                raise OSError("no space left")
            return super().write(content)

    raw = Full(tmp_path / "log", "w")
    log = io.TextIOWrapper(raw, write_through=True)
    with redirect_stdout(log), tolerant_output():
        sys.stdout.write("lost")
    raw.full = False
    log.write("kept")
    log.close()
    assert (tmp_path / "log").read_text().endswith("kept")
