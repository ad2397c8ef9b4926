"""Mistakes that one function each can be given, and what its error says."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import pyro_scale as ps
from pyro_scale._validation import check_number, check_path
from pyro_scale.analysis import cluster_scores
from pyro_scale.data.readers.concat import concatenate
from pyro_scale.objectives import REGISTRY
from pyro_scale.programs import MixtureVAE


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
        lambda _: REGISTRY.build(
            MixtureVAE(n_peaks=9, n_components=2, n_latent=2, hidden=(4,)), "none"
        ),
        "formulation='none' is not known; choose one of collapsed",
    ),
    "a whole number beyond floats": (
        lambda _: check_number("lr", 10**400),
        "lr=1000",
    ),
    "a name too long": (lambda _: check_path("path", "a" * 300), "is not a valid path"),
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
