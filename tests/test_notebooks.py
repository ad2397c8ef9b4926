"""Every notebook runs, its two forms say the same, and the claims it cites exist."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))


def test_there_is_a_notebook():
    assert SOURCES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's machinery, not of the library
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_in_short_mode(source, monkeypatch):
    monkeypatch.setenv("PYRO_SCALE_SHORT", "1")
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("assert " in cell.source for cell in code)
    assert all(cell.execution_count for cell in code)
    shown = [output.get("data", {}) for cell in code for output in cell.outputs]
    figures = [data for data in shown if data.get("text/plain", "").startswith("<Figure")]
    assert all("image/png" in data for data in figures)  # else: %matplotlib inline


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_and_script_are_the_same_and_hold_no_output(source):
    script = jupytext.read(source)
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in script.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ], "run: jupytext --sync notebooks/*.py"
    assert all(not c.get("outputs") for c in notebook.cells)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_claims_that_a_notebook_cites_exist(source):
    chapters = [path.read_text() for path in (FOLDER.parent / "derivations").glob("*.md")]
    stated = set(re.findall(r"\*\*(D\d\d\.\d+)\*\*", "".join(chapters)))
    assert set(re.findall(r"\bD\d\d\.\d+\b", source.read_text())) <= stated
