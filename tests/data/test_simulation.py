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


def rates(adata, column):
    """Fraction of open entries per value of a column of obs, shape ``(values, peaks)``."""
    x, values = adata.X.toarray() > 0, adata.obs[column].to_numpy()
    return np.stack([x[values == value].mean(0) for value in np.unique(values)])


def test_clusters_of_a_group_share_its_markers():
    adata = ps.simulate(4_000, 300, 6, n_groups=2, density=0.2, depth_sd=0.0, seed=0)
    group_of = adata.obs.groupby("cell_type", observed=True)["group"].unique()
    assert sorted(len(groups) for groups in group_of) == [1] * 6
    assert adata.obs["group"].value_counts().index.size == 2
    marks = adata.var["marker_of"]
    of_groups = marks.str.startswith("group_").sum()
    assert of_groups == marks.str.startswith("type_").sum() == 45  # half of three tenths each
    for group, rate in zip(("group_1", "group_2"), rates(adata, "group"), strict=True):
        other_rate = rates(adata, "group").sum(0) - rate
        own = (marks == group).to_numpy()
        background = (marks == "").to_numpy()
        assert (rate[own] > other_rate[own]).all()  # four times as open, of Poisson rates
        assert 0.9 < rate[background].sum() / other_rate[background].sum() < 1.1


@pytest.mark.parametrize("n_batches", [1, 3])
def test_batches_shift_peaks_depth_and_composition(n_batches):
    adata = ps.simulate(6_000, 200, 3, n_batches=n_batches, batch_sd=1.0, density=0.2, seed=1)
    if n_batches == 1:
        assert "batch" not in adata.obs
        return
    assert adata.obs["batch"].value_counts().tolist() == [2_000] * 3
    one, other, _ = np.log(rates(adata, "batch").clip(1e-3))
    assert 0.7 < (one - other).std() < 1.7  # of the difference of two shifts of 1, attenuated
    shares = adata.obs.groupby("batch", observed=True)["cell_type"].value_counts().unstack()
    assert (shares.std() > 50).any()  # binomial: at most 22
    depth = adata.obs.groupby("batch", observed=True)["depth_factor"].median()
    assert np.log(depth).std() > 0.03  # of medians of 2,000 cells: at most 0.011 by chance


def test_a_continuous_program_is_one_direction_within_each_cluster():
    options = {"density": 0.3, "depth_sd": 0.0, "marker_fraction": 0.0, "seed": 2}
    share = []
    for continuous_sd in (0.0, 1.0):
        x = ps.simulate(1_500, 200, 1, continuous_sd=continuous_sd, **options).X.toarray()
        values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        share.append(values[:2] / values.sum())
    assert share[1][0] > 2 * share[0][0]
    assert share[1][1] < 1.5 * share[0][1]


def test_cells_of_low_quality_have_about_ten_open_peaks():
    adata = ps.simulate(1_000, 3_000, 3, low_quality_fraction=0.1, seed=0)
    poor = adata.obs["low_quality"].to_numpy()
    assert 60 < poor.sum() < 145
    n_open = adata.X.getnnz(1)
    assert abs(n_open[poor].mean() - 10) < 5 * np.sqrt(10 / poor.sum())
    assert np.median(n_open[~poor]) > 50


def test_what_is_not_asked_for_changes_nothing():
    """The same seed gives the same cells with and without shifts of size zero."""
    options = {"n_cells": 100, "n_peaks": 80, "n_clusters": 3, "density": 0.1, "seed": 4}
    plain = ps.simulate(**options)
    also = ps.simulate(**options, continuous_sd=0.0, low_quality_fraction=0.0, batch_sd=3.0)
    assert (plain.X != also.X).nnz == 0
    assert plain.obs.equals(also.obs)


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
        ({"n_groups": 0}, "n_groups=0"),
        ({"n_clusters": 3, "n_groups": 4}, "n_groups=4 must be at most n_clusters=3"),
        ({"n_batches": 0}, "n_batches=0"),
        ({"batch_sd": -0.1}, "batch_sd=-0.1"),
        ({"batch_depth_sd": -0.1}, "batch_depth_sd=-0.1"),
        ({"continuous_sd": -0.1}, "continuous_sd=-0.1"),
        ({"low_quality_fraction": 1.0}, "low_quality_fraction=1.0"),
    ],
)
def test_what_cannot_be_simulated(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ps.simulate(**options)


@pytest.mark.parametrize("name", ["n_cells", "density", "counts"])
def test_a_size_or_a_flag_that_is_none_is_refused(name):
    with pytest.raises(TypeError, match=f"{name}='no' must be"):
        ps.simulate(**{name: "no"})
