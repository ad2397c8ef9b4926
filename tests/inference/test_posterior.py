"""What a trained model says of cells: aligned by name, reproducible, bounds in their order."""

import itertools
import logging
import re

import anndata
import numpy as np
import pytest
from helpers import small_scale, train
from scipy.stats import norm

import pyro_scale as ps
from pyro_scale.objectives import ObjectiveSpec, importance_weighted
from pyro_scale.programs import FORMULATIONS
from pyro_scale.training import moments

CRITICAL = norm.isf(1e-6)
KINDS = ("averaged", "optimal", "at_mean", "amortized")


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(n_cells=80, n_peaks=120, n_clusters=3, density=0.1, counts=True, seed=1)


@pytest.fixture(scope="module")
def model(adata):
    """A trained model that no test changes, with a classifier."""
    return train(small_scale(adata, formulation="amortized"), max_epochs=12)


def test_results_follow_the_names_of_the_cells(adata, model):
    order = np.random.default_rng(0).permutation(adata.n_obs)
    other = adata[order]
    one = {"batch_size": 1}  # bit for bit: a product does not depend on its neighbours
    z, z_other = (model.get_latent_representation(a, **one) for a in (adata, other))
    np.testing.assert_array_equal(z_other, z[order])
    for kind in ("optimal", "at_mean", "amortized"):
        q, q_other = (model.get_responsibilities(a, kind=kind, **one) for a in (adata, other))
        np.testing.assert_array_equal(q_other, q[order])
    clusters = model.get_cluster_assignments()
    assert list(clusters.index) == list(adata.obs_names)
    assert list(clusters.cat.categories) == ["0", "1", "2"]
    again = model.get_cluster_assignments(other)
    assert again.loc[adata.obs_names].equals(clusters)
    assert list(model.get_elbo(other, n_mc_samples=1).index) == list(other.obs_names)
    assert list(model.get_marginal_ll(other, n_mc_samples=1).index) == list(other.obs_names)


def test_what_is_said_of_a_cell_does_not_depend_on_its_neighbours(adata, model):
    """Neither draws nor clusters: other cells, another order, another batch size."""
    some = np.random.default_rng(0).permutation(adata.n_obs)[:50]
    for verb, options in (
        (model.get_responsibilities, {"kind": "averaged", "n_samples": 20}),
        (model.get_elbo, {"bound": "collapsed", "n_mc_samples": 2}),
        (model.get_marginal_ll, {"n_mc_samples": 20}),
        (model.get_latent_representation, {"give_mean": False}),
        (model.get_pareto_k, {"n_samples": 50}),
    ):
        one = np.asarray(verb(**options))[some]
        other = verb(adata[some], batch_size=7, **options)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(verb(seed=1, **options))[some] - one).max() > 1e-3


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_peaks_are_matched_by_name(adata, model, caplog):
    caplog.set_level(logging.INFO, logger="pyro_scale")
    extra = adata[:, :7].copy()
    extra.var_names = [f"other_{name}" for name in extra.var_names]
    shuffled = anndata.concat([adata[:, ::-1], extra], axis=1)
    np.testing.assert_array_equal(
        model.get_latent_representation(shuffled), model.get_latent_representation()
    )
    assert "peaks matched by name: reordered, 7 others left out." in caplog.messages
    with pytest.raises(ps.DataError, match=r"1 of the model's 120 peaks are not .*'chr1_1000000_"):
        model.get_latent_representation(adata[:, 1:])
    twice = anndata.concat([adata, adata[:, :1]], axis=1)
    with pytest.raises(ps.DataError, match="1 peak names are repeated"):
        model.get_latent_representation(twice)
    with pytest.raises(TypeError, match="AnnData"):
        model.get_latent_representation(adata.X)


@pytest.mark.parametrize("kind", KINDS)
def test_responsibilities_are_probabilities(model, kind):
    q = model.get_responsibilities(kind=kind)
    assert q.shape == (80, 3)
    assert (q >= 0).all()
    # The sum of three float32 numbers and, if averaged, of a hundred rows.
    np.testing.assert_allclose(q.sum(1), 1, rtol=0, atol=100 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_formulation_has_its_own_responsibilities_and_bound(adata, formulation):
    model = train(small_scale(adata, formulation=formulation), 2)
    kind = {"amortized": "amortized", "mean_field": "optimal"}.get(formulation, "averaged")
    own = model.get_responsibilities()
    same = [
        other
        for other in KINDS
        if (other != "amortized" or formulation == "amortized")
        and np.array_equal(model.get_responsibilities(kind=other), own)
    ]
    assert same == [kind]
    bound = {"model_enumerated": "collapsed", "structured": "collapsed"}.get(
        formulation, formulation
    )
    elbo = model.get_elbo()
    assert elbo.name == bound
    assert elbo.equals(model.get_elbo(bound=bound))


def test_samples_are_reproducible_and_of_the_right_distribution(model):
    z = model.get_latent_representation()
    a, b, c = (model.get_latent_representation(give_mean=False, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()
    assert (a != z).all()
    draws = [model.get_latent_representation(give_mean=False, seed=seed) for seed in range(50)]
    _, var_nd = moments(model.vae, model.counts())
    noise = (np.stack(draws) - z) / np.sqrt(var_nd.numpy())
    assert abs(noise.mean()) < CRITICAL / np.sqrt(noise.size)
    assert abs(np.square(noise).mean() - 1) < CRITICAL * np.sqrt(2 / noise.size)


def test_bounds_are_in_their_order(model):
    """Paired over the same draws of z; a difference is judged by its error over the draws."""
    names = ("collapsed", "mean_field", "amortized", "scale")
    values = {
        name: np.array(
            [model.get_elbo(bound=name, n_mc_samples=5, seed=s).mean() for s in range(80)]
        )
        for name in names
    }
    marginal = [model.get_marginal_ll(n_mc_samples=5, seed=s).mean() for s in range(80)]
    chain = [np.array(marginal)] + [values[name] for name in ("collapsed", "mean_field", "scale")]
    pairs = [*itertools.pairwise(chain), (values["mean_field"], values["amortized"])]
    for higher, lower in pairs:
        difference = higher - lower
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        assert difference.mean() > CRITICAL * error, difference.mean()


def test_more_draws_tighten_the_importance_weighted_bound(model):
    few, many = (model.get_marginal_ll(n_mc_samples=n).mean() for n in (2, 500))
    assert many > few


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        (
            "get_responsibilities",
            {"kind": "soft"},
            "kind='soft' is not known; choose one of averaged",
        ),
        ("get_responsibilities", {"n_samples": 0}, "n_samples=0 must be at least one"),
        (
            "get_elbo",
            {"bound": "iwae"},
            "bound='iwae' is not known; choose one of collapsed, importance_weighted",
        ),
        ("get_elbo", {"n_mc_samples": 0}, "n_mc_samples=0 must be at least one"),
        ("get_marginal_ll", {"n_mc_samples": 0}, "n_mc_samples=0 must be at least one"),
        ("get_latent_representation", {"batch_size": 0}, "batch_size=0 must be at least one"),
    ],
)
def test_a_result_that_there_is_not(model, verb, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        getattr(model, verb)(**options)


def test_only_an_amortized_model_has_a_classifier(adata):
    model = train(small_scale(adata), 1)
    for ask in (
        lambda: model.get_responsibilities(kind="amortized"),
        lambda: model.get_elbo(bound="amortized"),
    ):
        with pytest.raises(ValueError, match=r"no classifier .*formulation='amortized'"):
            ask()


def test_a_registered_closed_form_that_reduces_over_draws_gets_all_draws_of_a_cell(model):
    """In blocks of draws the bound would depend on the size of the minibatches."""
    formulation = FORMULATIONS["collapsed"]._replace(name="mine")
    spec = ObjectiveSpec("mine", "RenyiELBO", "marginalized", "iwae", "exact", "exact")
    with ps.register(formulation, [spec], {"iwae": importance_weighted}):
        bounds = [
            model.get_elbo(bound=name, n_mc_samples=1000, batch_size=size)
            for name in ("iwae", "importance_weighted")
            for size in (8, 60)
        ]
    for bound in bounds[1:]:
        np.testing.assert_allclose(bound, bounds[0], rtol=1e-5)
