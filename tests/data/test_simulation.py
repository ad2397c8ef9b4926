"""The simulator draws what its docstring says."""

import re

import numpy as np
import pytest
from scipy.stats import norm

import pyro_scale as ps

FAILURE_RATE = 1e-6


def test_same_seed_same_simulated_cells():
    a, b = (ps.simulate(50, 80, 3, density=0.1, counts=True, seed=3) for _ in range(2))
    other = ps.simulate(50, 80, 3, density=0.1, counts=True, seed=4)
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs)
    assert a.var.equals(b.var)
    assert (a.X != other.X).nnz > 0


@pytest.mark.parametrize("density", [0.03, 0.3])
@pytest.mark.parametrize("counts", [False, True])
def test_simulated_density_is_the_one_asked_for(density, counts):
    """Entries are independent given the rates, and 200 cells are all used to set them."""
    x = ps.simulate(200, 2000, 4, density=density, counts=counts, seed=1).X
    variance = density * (1 - density) * 200 * 2000  # an upper bound: rates differ
    assert abs(x.nnz - density * 200 * 2000) < norm.isf(FAILURE_RATE / 2) * np.sqrt(variance)
    assert (x.max() > 1) == counts


@pytest.mark.parametrize("fold", [1.0, 4.0])
def test_markers_are_more_open_in_their_own_cluster_if_there_is_a_fold(fold):
    adata = ps.simulate(600, 500, 4, density=0.1, depth_sd=0.0, fold=fold, seed=2)
    z = []
    for name in ("type_1", "type_2", "type_3", "type_4"):
        x = adata.X[:, (adata.var["marker_of"] == name).to_numpy()].toarray()
        inside = (adata.obs["cell_type"] == name).to_numpy()
        a, b = x[inside].mean(1), x[~inside].mean(1)
        z.append((a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b)))
    critical = norm.isf(FAILURE_RATE / 8)
    assert min(z) > critical if fold > 1 else np.abs(z).max() < critical


@pytest.mark.parametrize(("n_cells", "n_clusters"), [(5, 5), (40, 7), (10, 1)])
def test_every_cluster_has_a_cell_and_a_name(n_cells, n_clusters):
    adata = ps.simulate(n_cells, 30, n_clusters, density=0.2, concentration=0.1, seed=0)
    names = {f"type_{k + 1}" for k in range(n_clusters)}
    assert set(adata.obs["cell_type"]) == names
    assert set(adata.var["marker_of"]) <= names | {""}


def test_no_simulated_cell_is_empty():
    adata = ps.simulate(200, 20, 2, density=0.005, seed=0)
    per_cell = np.diff(adata.X.indptr)
    assert per_cell.min() == 1
    assert (per_cell == 1).mean() > 0.9  # most would have been empty
    assert adata.X.dtype == np.uint8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_cells": 0}, "n_cells=0"),
        ({"n_peaks": 0}, "n_peaks=0"),
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_cells": 3, "n_clusters": 4}, "n_clusters=4 must be at most n_cells=3"),
        ({"density": 0.0}, "density=0.0"),
        ({"density": 1.0}, "density=1.0"),
        ({"density": np.nan}, "density=nan"),
        ({"marker_fraction": 1.1}, "marker_fraction=1.1"),
        ({"fold": 0.0}, "fold=0.0"),
        ({"concentration": 0.0}, "concentration=0.0"),
        ({"depth_sd": -1.0}, "depth_sd=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_simulated(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ps.simulate(**options)


@pytest.mark.parametrize("name", ["n_cells", "density", "counts"])
def test_a_size_or_a_flag_that_is_none_is_refused(name):
    with pytest.raises(TypeError, match=f"{name}='no' must be"):
        ps.simulate(**{name: "no"})
