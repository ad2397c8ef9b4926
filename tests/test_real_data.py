"""Real cells. Labels are for scoring alone."""

import pytest

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mixture_finds_the_cell_types_of_the_forebrain(forebrain, seed):
    """Argmax of the responsibilities, not k-means; the original's argmax gamma is near 0."""
    model = ps.SCALE(forebrain, n_components=8, seed=seed)
    model.train(progress_bar=False)
    scores = cluster_scores(forebrain.obs["cell_type"], model.get_cluster_assignments())
    assert scores["ari"] > 0.55, scores


def test_outlying_cells_do_not_take_whole_components(leukemia):
    """38,673 peaks, 321 cells, some with 150 open peaks: k-means on the means gives ARI 0.1-0.5."""
    model = ps.SCALE(leukemia, n_components=4)
    model.train(progress_bar=False)
    clusters = model.get_cluster_assignments()
    assert clusters.value_counts().min() > 0.05 * leukemia.n_obs
    assert cluster_scores(leukemia.obs["cell_type"], clusters)["ari"] > 0.5


def test_the_matrix_holds_on_the_forebrain(forebrain):
    """Enough draws for power; the command's own defaults take more."""
    model = ps.SCALE(forebrain, n_components=8, preset="plain")
    table = ps.compare(model, n_cells=48, n_samples=24)
    failed = [row for row in table.rows if row.holds is False]
    assert not failed
    exact = [row for row in table.rows if row.gradient_agreement == "exact"]
    assert all(row.holds for row in exact)
    assert sum(row.holds is True for row in table.rows) >= 14


def test_gaps_are_divergences_on_real_cells_in_two_dimensions(forebrain):
    model = ps.SCALE(forebrain, n_components=8, n_latent=2)
    model.train(max_epochs=15, progress_bar=False)
    rungs = ps.ladder(model, n_cells=4)
    frame = rungs.to_frame()
    assert rungs.max_discrepancy <= 1e-8
    assert (frame.filter(like="gap_") >= -1e-8).all().all()
    assert frame["gap_posterior"].max() > 0.01
