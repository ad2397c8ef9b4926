"""Data at the edge of what can be: it trains and answers soundly, or is refused by name before."""

import anndata
import numpy as np
import pytest
from helpers import small_scale, train
from scipy import sparse

import pyro_scale as ps


def cells_of(x):
    names = (
        [f"cell{i}" for i in range(x.shape[0])],
        [f"chr1:{10 * i}-{10 * i + 5}" for i in range(x.shape[1])],
    )
    adata = anndata.AnnData(sparse.csr_matrix(x.astype(np.float32)))
    adata.obs_names, adata.var_names = names
    return adata


def random_counts(n_cells=24, n_peaks=40, share=0.2, seed=0):
    """Zero, one or two; no cell is empty."""
    rng = np.random.default_rng(seed)
    x = rng.binomial(2, share, (n_cells, n_peaks))
    x[np.arange(n_cells), rng.integers(n_peaks, size=n_cells)] = 1
    return x


def with_columns(value):
    x = random_counts()
    x[:, [0, 7, 39]] = value
    x[:, 3] = np.maximum(x[:, 3], 1)
    return x


def nearly_empty():
    """0.01 % of 2,000 x 6,000 is open: six hundredths of a peak a cell, so each has just one."""
    x = sparse.lil_matrix((60, 10_000))
    x[np.arange(60), np.random.default_rng(0).integers(10_000, size=60)] = 1
    return x.tocsr()


def very_deep():
    """Every peak is open, up to 30,000 times; one cell has a single one beside them."""
    x = np.random.default_rng(0).integers(1, 30_000, (20, 40))
    x[0] = 0
    x[0, 5] = 1
    return x


CASES = {  # cells x peaks, K, batch_size
    "one cell": (lambda: random_counts(1), 1, 32),
    "two cells": (lambda: random_counts(2), 2, 32),
    "one peak": (lambda: np.ones((12, 1)), 2, 32),
    "one cell, one peak": (lambda: np.ones((1, 1)), 1, 32),
    "K = N": (lambda: random_counts(9), 9, 4),
    "K = 1": (random_counts, 1, 8),
    "K to be chosen": (random_counts, None, 8),
    "K to be chosen for one cell": (lambda: random_counts(1), None, 8),
    "peaks that no cell has": (lambda: with_columns(0), 3, 8),
    "peaks that every cell has": (lambda: with_columns(1), 3, 8),
    "cells that are all alike": (lambda: np.tile(random_counts(1), (12, 1)), 3, 8),
    "cells with every peak": (lambda: np.ones((12, 30)), 2, 8),
    "0.01 % open": (nearly_empty, 2, 16),
    "one cell at a time": (lambda: random_counts(7), 2, 1),
    "a cell left over": (lambda: random_counts(9), 2, 8),
    "very deep": (very_deep, 2, 8),
}


def sound(array, shape):
    array = np.asarray(array)
    assert array.shape == shape
    assert np.isfinite(array).all()


@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("case", CASES)
def test_it_trains_answers_and_comes_back(case, likelihood, preset, tmp_path):
    make, k, batch_size = CASES[case]
    cells = cells_of(make())
    n, p = cells.shape
    model = small_scale(cells, k, likelihood=likelihood, preset=preset)
    train(model, 4, batch_size=batch_size, warmup_epochs=2)
    found = model.vae.n_components
    assert found == (k or found)
    assert np.isfinite(model.history["elbo_train"]).all()
    sound(model.get_latent_representation(), (n, 3))
    gamma = model.get_responsibilities()
    sound(gamma, (n, found))
    np.testing.assert_allclose(gamma.sum(1), 1, rtol=1e-5)
    sound(model.get_elbo(n_mc_samples=2), (n,))
    accessible = model.get_normalized_accessibility(depth="observed")
    sound(accessible, (n, p))
    assert (accessible.to_numpy() >= 0).all()
    if likelihood == "bernoulli":
        assert (accessible.to_numpy() <= 1).all()
    assert model.get_binary_accessibility().shape == (n, p)
    model.save(tmp_path / "model")
    again = ps.SCALE.load(tmp_path / "model", cells)
    np.testing.assert_array_equal(again.get_responsibilities(), gamma)
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_program_and_closed_form_agree(case, preset):
    """Where a row has power it holds; two formulations, to be quick."""
    make, k, _ = CASES[case]
    likelihood = "poisson" if case == "very deep" else "bernoulli"
    model = small_scale(cells_of(make()), k, likelihood=likelihood, preset=preset)
    options = {"n_cells": 6, "n_samples": 6, "formulations": ["collapsed", "mean_field"]}
    compared = ps.compare(model, warmup_steps=3, **options)
    assert compared.rows
    failed = [row for row in compared.rows if row.holds is False]
    assert not failed


NO_CELLS, NO_PEAKS = np.zeros((0, 5)), np.zeros((5, 0))
AN_EMPTY_CELL = np.vstack([random_counts(5, 10), np.zeros((1, 10))])


@pytest.mark.parametrize(
    ("x", "k", "words"),
    [
        (NO_CELLS, 1, "the AnnData has 0 cells and 5 peaks; at least one of each is needed"),
        (NO_PEAKS, 1, "the AnnData has 5 cells and 0 peaks"),
        (AN_EMPTY_CELL, 2, r"1 of 6 cells have no open peak .*filter_cells\(adata, min_peaks=1\)"),
        (np.zeros((4, 6)), 2, "4 of 4 cells have no open peak"),
        (random_counts(3), 4, "n_components=4 is more than the 3 cells; choose at most one"),
        (random_counts(1), 2, "n_components=2 is more than the 1 cells"),
    ],
    ids=["no cells", "no peaks", "an empty cell", "only empty cells", "K > N", "K > N = 1"],
)
def test_what_cannot_be_is_refused_by_name(x, k, words):
    with pytest.raises(ValueError, match=words) as refused:
        small_scale(cells_of(x), k)
    assert k > len(x) > 0 or refused.type is ps.DataError
