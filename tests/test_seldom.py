"""Branches that nothing else reaches: mistakes with a remedy, and results that are degenerate."""

import errno
import os
from importlib import import_module

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import call

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores
from pyro_scale.analysis.diagnostics import importance_log_evidence, pareto_k
from pyro_scale.checks import check_number, check_path
from pyro_scale.cli.inputs import add_labels
from pyro_scale.data.claims import _refuse_ragged
from pyro_scale.data.join import concatenate
from pyro_scale.placing import place
from pyro_scale.programs import MixtureVAE
from pyro_scale.programs.formulations import build


def _without_x(cells):
    return ad.AnnData(None, cells.obs, cells.var, layers={"raw": cells.X})


def _peak_twice(cells):
    cells.var_names = [cells.var_names[0], *cells.var_names[:-1]]
    return cells


JOIN = {"join": "inner", "batch_key": "batch"}
MISTAKES = {
    "a label short": (
        lambda _: cluster_scores(["a", "b"], ["a"]),
        "2 labels and 1 clusters: expected one each",
    ),
    "no cells": (lambda _: cluster_scores([], []), "there are no cells to score"),
    "part without X": (
        lambda cells: concatenate([_without_x(cells)] * 2, ["a", "b"], **JOIN),
        "a has no X, only layers",
    ),
    "part with a peak twice": (
        lambda cells: concatenate([cells, _peak_twice(cells.copy())], ["a", "b"], **JOIN),
        "b has peak 'chr1.*' more than once",
    ),
    "no scores": (
        lambda _: ps.pl.metrics(
            pd.DataFrame({"method": ["a"], "at": [1], "ari": [np.nan]}), x="at"
        ),
        "no row has 'at', 'ari' and 'method'",
    ),
    "no such formulation": (
        lambda _: build(MixtureVAE(n_peaks=9, n_components=2, n_latent=2, hidden=(4,)), "none"),
        "formulation='none' is not known; choose one of collapsed",
    ),
    "a whole number beyond floats": (
        lambda _: check_number("lr", 10**400),
        "lr=1000",
    ),
    "a name too long": (lambda _: check_path("path", "a" * 300), "can be no path"),
    "peaks that repeat": (
        lambda cells: ps.pl.peak_heatmap(_peak_twice(cells.copy()), ["x"]),
        "peak names repeat",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_is_expected(mistake, cells):
    make, words = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=words):
        make(cells)


@pytest.mark.parametrize(
    ("text", "words"),
    [("cell_1\ncell_2\n", "has one column"), ("cell_1\ta\n", "has no label for 79 of 80 cells")],
)
def test_a_table_of_labels_that_does_not_fit(text, words, cells, tmp_path):
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(ps.DataError, match=words):
        add_labels(cells, str(tmp_path / "labels.tsv"))


def test_ragged_numbers_are_found_within_other_types():
    ragged = h5py.vlen_dtype(np.int32)
    inside = np.dtype([("a", np.int32), ("b", ragged)])
    for kind in (ragged, inside, np.dtype((inside, (2,)))):
        with pytest.raises(ps.DataError, match="x is ragged"):
            _refuse_ragged(h5py.h5t.py_create(kind, logical=True), "x")
    plain = np.dtype([("a", np.int32), ("b", np.float64, (2,))])
    _refuse_ragged(h5py.h5t.py_create(plain, logical=True), "x")


@pytest.mark.parametrize("nats", [500, 1000, 10_000])
def test_weights_too_far_apart_for_a_tail_are_not_called_reliable(nats):
    """ArviZ has k-hat 0.05, which is good, and no number for the weights, once they underflow."""
    log_w = nats * np.random.default_rng(0).normal(size=(1000, 2))
    log_w[:, 1] /= nats
    k_n = pareto_k(log_w)
    assert k_n[0] == np.inf
    assert k_n[1] < 0.7
    estimated = importance_log_evidence(log_w)
    np.testing.assert_allclose(estimated[0], importance_log_evidence(log_w, smoothed=False)[0])
    assert np.isfinite(estimated).all()


def test_one_draw_that_is_not_minus_infinity():
    log_w = np.full((100, 1), -np.inf)
    log_w[3] = -7.0
    assert pareto_k(log_w) == np.inf
    np.testing.assert_allclose(importance_log_evidence(log_w), -7.0 - np.log(100))


@pytest.mark.parametrize("there", [False, True])
def test_a_move_that_fails_puts_back_what_was_there(there, tmp_path, monkeypatch):
    new, target, scratch = (tmp_path / name for name in ("new", "target", "scratch"))
    new.mkdir()
    scratch.mkdir()
    if there:
        target.mkdir()
        (target / "old").touch()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        place(new, target, scratch)
    assert target.exists() == there
    assert not there or [path.name for path in target.iterdir()] == ["old"]


def test_the_version():
    assert call("--version").output == f"pyro-scale {ps.__version__}\n"


def test_demo_writes_what_run_and_compare_write(tmp_path, monkeypatch):
    """The demonstration, on fewer cells and for fewer epochs."""
    module = import_module("pyro_scale.cli.demo")
    simulate, train, compare = ps.simulate, ps.SCALE.train, module.compare_model
    few = {"n_cells": 60, "n_peaks": 80, "n_clusters": 5, "density": 0.2}
    monkeypatch.setattr(ps, "simulate", lambda seed, **_: simulate(**few, seed=seed))
    monkeypatch.setattr(ps.SCALE, "train", lambda model, **_: train(model, max_epochs=2))
    monkeypatch.setattr(
        module, "compare_model", lambda model, _, __, *rest: compare(model, 4, 4, *rest)
    )
    told = call("demo", "-o", tmp_path / "out", "--seed", 2)
    assert told.exit_code == 0, told.output
    assert "simulated 60 cells x 80 peaks in 5 clusters" in told.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adata.h5ad", "model", "scale.png", "comparison.json", "comparison.png"} <= written
    assert torch.get_default_dtype() == torch.float32
