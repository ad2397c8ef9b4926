"""The command line: what it writes, what it refuses, and that a mistake costs nothing."""

import json
import re
import subprocess
import sys

import anndata
import numpy as np
import pytest
import typer
from helpers.command_line import call
from scipy import sparse

import pyro_scale as ps
from pyro_scale.cli import app
from pyro_scale.cli._files import add_labels
from pyro_scale.objectives import CLOSED_FORMS, REGISTRY

COMMANDS = typer.main.get_command(app).commands
RESULTS = {"adata.h5ad", "specific_peaks.tsv", "scale.png", "scale.pdf", "model"}


def tree(folder):
    """Everything under a folder, files with their bytes."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def cells():
    adata = ps.simulate(60, 80, 3, density=0.2, counts=True, seed=1)
    adata.layers["raw"] = adata.X.copy()
    return adata


@pytest.fixture(scope="module")
def file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def run(file, output, *more):
    return call("run", file, "-k", 3, "-o", output, "--max-epochs", 4, *more)


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    """A finished run that no test changes: its folder, and what was printed."""
    output = tmp_path_factory.mktemp("done") / "a [bold] name" / "result"
    return output, run(file, output, "--label", "cell_type", "--seed", 5)


def test_run_writes_the_results(done, cells):
    output, told = done
    assert told.exit_code == 0, told.output
    assert {path.name for path in output.iterdir()} == RESULTS
    assert [path.name for path in output.parent.iterdir()] == ["result"]
    result = anndata.read_h5ad(output / "adata.h5ad")
    kept = cells[:, cells.X.getnnz(0) >= 0.01 * cells.n_obs]
    assert list(result.obs_names) == list(cells.obs_names)
    assert list(result.var_names) == list(kept.var_names)
    assert result.obsm["X_scale"].shape == (60, 10)
    assert result.obsm["scale_responsibilities"].shape == (60, 3)
    assert set(result.obs["scale_cluster"]) <= {"0", "1", "2"}
    assert result.uns["scale"]["config"]["seed"] == 5
    assert (output / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "scale.pdf").read_bytes().startswith(b"%PDF")


def test_run_saves_the_model_that_made_the_results(done):
    output, _ = done
    result = anndata.read_h5ad(output / "adata.h5ad")
    model = ps.SCALE.load(output / "model", result)
    assert len(model.history) == 4
    np.testing.assert_array_equal(model.get_latent_representation(), result.obsm["X_scale"])
    np.testing.assert_array_equal(
        model.get_responsibilities(), result.obsm["scale_responsibilities"]
    )


def test_run_says_where_with_which_seed_and_how_well(done):
    output, told = done
    assert f"output folder {output}, seed 5\n" in told.stdout
    assert f"in {output}/:\n" in told.stdout
    for words in ("kept 60 of 60 cells", "clusters: 0: ", "against obs['cell_type'] (not used"):
        assert words in told.stdout
    assert not told.stderr


def test_run_leaves_out_and_counts_empty_cells(cells, tmp_path):
    x = cells.X.toarray()
    x[:7] = 0
    anndata.AnnData(sparse.csr_matrix(x), cells.obs, cells.var).write_h5ad(tmp_path / "x.h5ad")
    told = run(tmp_path / "x.h5ad", tmp_path / "out", "--likelihood", "poisson")
    assert told.exit_code == 0, told.output
    assert "kept 53 of 60 cells" in told.stdout
    assert anndata.read_h5ad(tmp_path / "out" / "adata.h5ad").n_obs == 53


def test_an_existing_result_is_replaced_only_if_asked_and_other_files_stay(done, file, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "model").mkdir()
    (output / "model" / "old").write_text("an old model")
    before = tree(tmp_path)
    refused = run(file, output)
    assert refused.exit_code == 1
    assert "already holds a result (model)" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert tree(tmp_path) == before
    replaced = run(file, output, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in output.iterdir()} == RESULTS | {"notes.txt"}
    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / "model" / "old").exists()


def test_a_run_that_fails_leaves_the_old_result(file, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "scale.png").write_text("old")
    before = tree(tmp_path)

    def fail(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ps.SCALE, "save", fail)
        told = run(file, output, "--overwrite")
    assert told.exit_code == 1
    assert "No space left on device" in told.stderr
    checkpoint = output / "training.checkpoint"
    assert checkpoint.exists()  # the training is not lost
    kept = checkpoint.read_bytes()
    checkpoint.unlink()
    assert tree(tmp_path) == before
    checkpoint.write_bytes(kept)
    told = run(file, output, "--overwrite")
    assert told.exit_code == 0, told.output
    assert "resuming from it" in told.output
    assert not checkpoint.exists()


def test_compare_shows_the_table_and_writes_what_is_asked_for(file, tmp_path):
    out, figure = tmp_path / "rows.json", tmp_path / "rows.png"
    sizes = ("-k", 3, "--n-cells", 10, "--n-samples", 4)
    told = call("compare", file, *sizes, "--json", out, "--plot", figure, "--seed", 2)
    assert told.exit_code == 0, told.output
    rows = json.loads(out.read_text(), parse_constant=pytest.fail)["rows"]
    supported = [row for row in rows if row["value_agreement"] != "unsupported"]
    assert f"of {len(supported)} supported objectives hold" in told.stdout
    assert "seed 2\n" in told.stdout
    assert f"wrote {out}\n" in told.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_of_compare_is_printed_without_truncation(file, tmp_path, columns):
    out = tmp_path / "rows.json"
    sizes = ("-k", 3, "--n-cells", 6, "--n-samples", 4)
    told = call("compare", file, *sizes, "--json", out, columns=columns)
    assert told.exit_code == 0, told.output
    rows = json.loads(out.read_text())["rows"]
    supported = [row for row in rows if row["status"] != "unsupported"]

    lines = told.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("estimator"))
    header = re.split(r"  +| (?!form)", lines[first].strip())
    more = ["value", "ms"] if columns == 200 else []
    everywhere = ["estimator", "closed form", "difference", "gradient", "variance", "status"]
    assert sorted(header) == sorted(everywhere + more)

    end = next(i for i, line in enumerate(lines) if "supported objectives hold" in line)
    assert all(len(line) <= columns for line in lines[first:end])
    assert "…" not in told.stdout
    printed, group = [], None
    for line in lines[first + 1 : end]:
        if line.startswith("--- "):
            group = line.removeprefix("--- ").split(", c ")
            continue
        estimator, closed_form = line.split()[:2]
        variance, status = re.search(r" (\S+e\S+)(?: +\d+)? (no power|\w+)$", line).groups()
        printed.append([*group, estimator, closed_form, variance, status])
    assert printed == [
        [
            *(row["formulation"], row["c"], row["estimator"].removesuffix("_ELBO")),
            *(row["closed_form"], f"{row['gradient_variance']:.1e}", row["status"]),
        ]
        for row in supported
    ]


def test_compare_has_an_exit_code_for_a_row_that_fails(file, monkeypatch):
    right = CLOSED_FORMS["scale"]
    monkeypatch.setitem(REGISTRY._closed_forms, "scale", lambda at: right(at) + 1)
    told = call("compare", file, "-k", 3, "--n-cells", 5, "--n-samples", 4)
    assert told.exit_code == 2
    assert "FAILS" in told.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name):
    told = call(name, "--help")
    assert told.exit_code == 0
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    assert len(options) >= 3
    for option in options:
        assert all(spelling in told.stdout for spelling in option.opts), option
        assert option.help.split()[0] in told.stdout, option


def broken(cells, change):
    """A file of the cells whose dense X is changed."""

    def make(folder):
        x = cells.X.toarray().astype(float)
        change(x)
        anndata.AnnData(x, cells.obs, cells.var).write_h5ad(folder / "broken.h5ad")
        return folder / "broken.h5ad"

    return make


def with_content(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def nan(x):
    x[0, 0] = np.nan


def nothing(x):
    x[:] = 0


MISTAKES = {
    "no such file": (lambda d: d / "none.h5ad", [], "none.h5ad does not exist"),
    "a folder": (lambda d: d, [], "there is no matrix (*.mtx or *.mtx.gz)"),
    "another format": (with_content("cells.xlsx", b"a,b"), [], "cells.xlsx has no known format"),
    "not HDF5": (with_content("cells.h5ad", b"a,b"), [], "is not an HDF5 file"),
    "empty file": (with_content("cells.h5ad", b""), [], "is empty (0 bytes)"),
    "NaN": ("nan", [], "1 values of X are NaN or infinite (the first is nan in cell 'cell_1')"),
    "all cells empty": ("nothing", [], "none of the 60 cells has at least 1 open peaks"),
    "cut": ("cut", [], "damaged or cut short"),
    "K = 0": ("file", ["-k", 0], "n_components=0 must be at least one"),
    "too many K": ("file", ["-k", 61], "n_components=61 is more than the 60 cells"),
    "layer": ("file", ["--layer", "tpm"], "layer='tpm' is not in adata.layers"),
    "likelihood": ("file", ["--likelihood", "normal"], "likelihood='normal' is not known"),
    "seed": ("file", ["--seed", -1], "seed=-1 must be at least zero"),
}
MISTAKES_OF_RUN = {
    "formulation": ("file", ["--formulation", "vade"], "formulation='vade' is not known"),
    "preset": ("file", ["--preset", "paper"], "preset='paper' is not known"),
    "label": ("file", ["--label", "tissue"], "--label 'tissue' is not in obs; it has cell_type,"),
    "epochs": ("file", ["--max-epochs", 0], "max_epochs=0 must be at least one"),
    "cells": ("file", ["--min-peaks", 81], "none of the 60 cells has at least 81 open peaks"),
    "peaks": ("file", ["--min-cells", 61], "none of the 80 peaks is open in at least 61 of 60"),
    "output": ("file", ["-o", "taken"], "taken is a file; choose a folder with -o"),
}
MISTAKES_OF_COMPARE = {
    "cells": ("file", ["--n-cells", 0], "n_cells=0 must be at least one"),
    "samples": ("file", ["--n-samples", 1], "n_samples=1 must be at least two"),
    "json": ("file", ["--json", "none/rows.json"], "the folder none does not exist"),
    "plot": ("file", ["--plot", "rows.xyz"], "rows.xyz: expected a name that ends in .png"),
}
ALL_MISTAKES = [
    *(("run", name, *mistake) for name, mistake in (MISTAKES | MISTAKES_OF_RUN).items()),
    *(("compare", name, *mistake) for name, mistake in (MISTAKES | MISTAKES_OF_COMPARE).items()),
]


@pytest.mark.parametrize(
    ("command", "name", "make", "options", "words"),
    ALL_MISTAKES,
    ids=[f"{command}: {name}" for command, name, *_ in ALL_MISTAKES],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    command, name, make, options, words, cells, file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    makers = {
        "file": lambda _: file,
        "nan": broken(cells, nan),
        "nothing": broken(cells, nothing),
        "cut": with_content("cut.h5ad", file.read_bytes()[: file.stat().st_size // 2]),
    }
    path = makers.get(make, make)(tmp_path)
    (tmp_path / "taken").write_text("a file")
    before = tree(tmp_path)
    output = ["-o", "out", "--max-epochs", 2] if command == "run" else ["--json", "out.json"]
    told = call(command, path, "-k", 3, *output, *options)
    assert told.exit_code == 1, told.output
    assert told.stderr.startswith("error: ")
    assert words in told.stderr
    assert told.stderr.count("\n") == 1
    assert "Traceback" not in told.output
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import pyro_scale"], ["-m", "pyro_scale", "--help"]],
    ids=["import", "help"],
)
def test_a_fresh_process_is_silent_but_for_what_is_asked(arguments):
    """Any warning would be an error."""
    process = subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert bool(process.stdout) == ("--help" in arguments)
    if process.stdout:
        assert all(name in process.stdout for name in COMMANDS)


def test_nothing_slow_is_imported_before_it_is_used():
    slow = ("numba", "matplotlib", "lightning", "sklearn", "scanpy", "arviz_base")
    code = f"import sys, pyro_scale.cli; print([m for m in {slow} if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "words"),
    [("cell_1\ncell_2\n", "has one column"), ("cell_1\ta\n", "has no label for 59 of 60 cells")],
)
def test_a_table_of_labels_that_does_not_fit(text, words, cells, tmp_path):
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(ps.DataError, match=words):
        add_labels(cells, str(tmp_path / "labels.tsv"))
