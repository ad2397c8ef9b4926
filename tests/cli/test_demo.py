"""The demonstration, and the version."""

from importlib import import_module

from helpers.command_line import call

import pyro_scale as ps


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
    assert "supported objectives hold" in told.output
