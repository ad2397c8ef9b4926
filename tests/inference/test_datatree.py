"""The DataTree: its groups and names, what its numbers are, and that nothing else changes."""

import numpy as np
import pytest
import torch
from arviz_stats import summary
from helpers import small_scale, train
from scipy.stats import norm
from xarray import DataTree, open_datatree

import pyro_scale as ps
from pyro_scale.analysis.diagnostics import importance_log_evidence, pareto_k
from pyro_scale.data import dense_cells
from pyro_scale.inference.datatree import sample_guide
from pyro_scale.objectives import collapsed, evaluate
from pyro_scale.programs import FORMULATIONS

CRITICAL = norm.isf(1e-6)


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(n_cells=50, n_peaks=70, n_clusters=3, density=0.15, counts=True, seed=1)


@pytest.fixture(scope="module")
def model(adata):
    return train(small_scale(adata), max_epochs=8)


@pytest.fixture(scope="module")
def tree(model):
    return model.to_datatree(n_cells=12, n_samples=400, n_peaks=20, seed=2)


def test_groups_dimensions_and_names(adata, model, tree):
    assert isinstance(tree, DataTree)
    cells = {"chain": 1, "draw": 400, "cell": 12}
    shapes = {
        "posterior": {
            "z": {**cells, "latent": 3},
            "c": cells,
            "q_c": {**cells, "component": 3},
        },
        "sample_stats": {"log_weight": cells},
        "posterior_predictive": {
            "n_open": cells,
            "accessibility": {"chain": 1, "draw": 400, "peak": 20},
        },
        "observed_data": {"n_open": {"cell": 12}, "accessibility": {"peak": 20}},
    }
    assert {
        group: {name: dict(x.sizes) for name, x in tree[group].data_vars.items()}
        for group in tree.children
    } == shapes
    names = tree["posterior"]["cell"].to_numpy()
    at = adata.obs_names.get_indexer(names)
    assert (np.diff(at) > 0).all()  # some of the cells, in their order
    assert (np.diff(adata.var_names.get_indexer(tree["observed_data"]["peak"])) > 0).all()
    for group in ("sample_stats", "posterior_predictive", "observed_data"):
        assert list(tree[group]["cell"].to_numpy()) == list(names)
    assert list(tree["posterior"]["component"].to_numpy()) == [0, 1, 2]
    assert tree.attrs["subsampled"].startswith("12 of 50 cells, accessibility of 20 of 70 peaks")
    assert tree.attrs["formulation"] == "collapsed"


def test_observed_data_is_that_of_the_names(adata, tree):
    observed = tree["observed_data"]
    x = adata[observed["cell"].to_numpy()].X.toarray() > 0
    np.testing.assert_array_equal(observed["n_open"], x.sum(1))
    peaks = adata.var_names.get_indexer(observed["peak"].to_numpy())
    np.testing.assert_allclose(observed["accessibility"], x[:, peaks].mean(0), rtol=1e-12)


def test_z_is_of_q_and_c_of_its_probabilities(model, adata, tree):
    posterior = tree["posterior"]
    some = adata[posterior["cell"].to_numpy()]
    with torch.no_grad():
        loc, var = model.vae.encoder(dense_cells(model.counts(some)))
    noise = (posterior["z"].to_numpy()[0] - loc.numpy()) / var.sqrt().numpy()
    assert abs(noise.mean()) < CRITICAL / np.sqrt(noise.size)
    assert abs(np.square(noise).mean() - 1) < CRITICAL * np.sqrt(2 / noise.size)
    gamma = model.vae.prior.log_responsibilities(torch.tensor(posterior["z"].to_numpy())).exp()
    np.testing.assert_allclose(posterior["q_c"], gamma.detach(), atol=1e-5)
    # The mean of q at the c that was drawn is sum_c q_c^2.
    q, c = posterior["q_c"].to_numpy().astype(float), posterior["c"].to_numpy()[..., None]
    expected = (q**2).sum(-1)
    error = np.sqrt(((q**3).sum(-1) - expected**2).sum())
    at_c, at_another = (np.take_along_axis(q, some, -1)[..., 0] for some in (c, (c + 1) % 3))
    assert abs((at_c - expected).sum()) < CRITICAL * error
    assert abs((at_another - expected).sum()) > CRITICAL * error  # power


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_c_is_drawn_as_the_formulation_has_it(adata, formulation):
    model = train(small_scale(adata, formulation=formulation), 2)
    tree = model.to_datatree(n_cells=30, n_samples=300, predictive=False)
    posterior = tree["posterior"]
    assert "posterior_predictive" not in tree.children
    some = adata[posterior["cell"].to_numpy()]
    q_c = posterior["q_c"].to_numpy()[0].astype(float)
    own = model.get_responsibilities(some, n_samples=2000, batch_size=30, seed=5)
    error = np.sqrt((q_c.var(0) + 1e-9) * (1 / 300 + 1 / 2000))
    assert (np.abs(q_c.mean(0) - own) < CRITICAL * error + 2e-6).all()
    gamma = model.vae.prior.log_responsibilities(torch.tensor(posterior["z"].to_numpy()[0]))
    is_gamma = np.allclose(q_c, gamma.detach().exp(), atol=1e-5)
    assert is_gamma == (formulation in ("collapsed", "model_enumerated", "structured"))
    independent = np.ptp(q_c, axis=0).max() < 1e-6
    assert independent == (formulation in ("mean_field", "amortized"))


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_log_weights_are_the_collapsed_bound_of_each_draw(adata, likelihood):
    """Every draw, by the closed form on dense cells in float64."""
    model = train(small_scale(adata, likelihood=likelihood), 2)
    model.vae.double()
    tree = model.to_datatree(n_samples=40, predictive=False)
    z = torch.tensor(tree["posterior"]["z"].to_numpy()[0])
    cells = dense_cells(model.counts(), dtype=torch.float64)
    with torch.no_grad():
        exact = collapsed(evaluate(model.vae, cells, z)).total()
    log_weight = tree["sample_stats"]["log_weight"].to_numpy()[0]
    np.testing.assert_allclose(log_weight, exact, rtol=1e-10)
    estimate = importance_log_evidence(log_weight, smoothed=False)
    np.testing.assert_allclose(estimate, exact.logsumexp(0) - np.log(40), rtol=1e-10)
    assert pareto_k(log_weight).shape == (50,)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("at_once", [2**24, 500])
def test_predictions_have_the_mean_of_the_likelihood(adata, likelihood, at_once, monkeypatch):
    """Given the draws of z; whole, and in blocks of fewer cells than there are."""
    monkeypatch.setattr("pyro_scale.inference.accessibility._AT_ONCE", at_once)
    model = train(small_scale(adata, likelihood=likelihood, batch_key="cell_type"), 2)
    tree = model.to_datatree(adata, n_cells=15, n_samples=150, n_peaks=None)
    posterior, predicted = tree["posterior"], tree["posterior_predictive"]
    counts = model.counts(adata[posterior["cell"].to_numpy()])
    z = torch.tensor(posterior["z"].to_numpy()[0])
    with torch.no_grad():
        mean = model.vae.likelihood.mean(z, dense_cells(counts)).double().numpy()
    variance, is_open = mean, 1 - np.exp(-mean)
    if likelihood == "bernoulli":
        variance, is_open = mean * (1 - mean), mean
    n_open = predicted["n_open"].to_numpy()[0]
    assert np.issubdtype(n_open.dtype, np.integer)
    error_n = np.sqrt((is_open * (1 - is_open)).sum((0, 2)))
    z_n = (n_open.sum(0) - is_open.sum((0, 2))) / error_n
    assert (np.abs(z_n) < CRITICAL).all()
    accessibility = predicted["accessibility"].to_numpy()[0]
    z_p = (15 * accessibility.sum(0) - mean.sum((0, 1))) / np.sqrt(variance.sum((0, 1)))
    assert (np.abs(z_p) < CRITICAL).all()
    # Power: the next cell's, and the next peak's.
    assert (np.abs((n_open.sum(0) - np.roll(is_open.sum((0, 2)), 1)) / error_n) > CRITICAL).any()
    other = (15 * accessibility.sum(0) - np.roll(mean.sum((0, 1)), 1)) / np.sqrt(
        variance.sum((0, 1))
    )
    assert (np.abs(other) > CRITICAL).any()


def test_arviz_reads_it_and_a_file_keeps_it(tree, tmp_path):
    assert len(summary(tree, var_names=["z"], kind="stats")) == 12 * 3
    one = tree["posterior_predictive"]["n_open"].sel(cell=tree["posterior"]["cell"][3])
    assert one.shape == (1, 400)
    tree.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    again = open_datatree(tmp_path / "tree.zarr", engine="zarr", consolidated=False)
    for group in tree.children:
        assert again[group].dataset.load().equals(tree[group].dataset)
    assert again.attrs == tree.attrs


def test_seeds_reproduce_and_nothing_of_the_caller_changes(model):
    numbers = torch.random.get_rng_state()
    small = {"n_cells": 10, "n_samples": 5, "n_peaks": 9}
    one, same, other = (model.to_datatree(seed=seed, **small) for seed in (0, 0, 1))
    for group in one.children:
        assert one[group].dataset.equals(same[group].dataset)
        assert not one[group].dataset.equals(other[group].dataset)
    assert torch.equal(numbers, torch.random.get_rng_state())


def test_other_cells_and_all_of_them(adata, model):
    some = adata[[7, 3, 40]]
    for n_cells in (None, 3, 1000):
        tree = model.to_datatree(some, n_cells=n_cells, n_samples=3, n_peaks=None)
        assert list(tree["posterior"]["cell"].to_numpy()) == list(some.obs_names)
        assert tree["observed_data"].sizes["peak"] == 70


@pytest.mark.parametrize("option", ["n_cells", "n_samples", "n_peaks"])
def test_a_number_below_one(model, option):
    with pytest.raises(ValueError, match=f"{option}=0 must be at least one"):
        model.to_datatree(**{option: 0})


def test_an_untrained_model_and_a_model_without_a_classifier(adata, model):
    with pytest.raises(ps.NotTrainedError, match=r"call model.train\(\)"):
        small_scale(adata).to_datatree()
    generator = torch.Generator()
    with pytest.raises(ValueError, match="no classifier"):
        sample_guide(
            model.vae, dense_cells(model.counts()), FORMULATIONS["amortized"], 2, generator
        )
