"""NUTS on z of some cells, against p(z|x) and p(c|x) by quadrature on a grid."""

import copy

import anndata
import numpy as np
import pytest
import torch
from helpers import small_scale, train
from scipy.stats import norm

import pyro_scale as ps
from pyro_scale.comparison.nuts import compare_to_nuts, sample_latent_nuts
from pyro_scale.data import sparse_cells
from pyro_scale.objectives import CLOSED_FORMS, evaluate

CRITICAL = norm.isf(1e-6)


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(n_cells=60, n_peaks=40, n_clusters=3, density=0.2, counts=True, seed=1)


def overlapping(adata, n_latent, likelihood):
    """A trained model whose components overlap, unevenly weighted, so that p(c|x) is open."""
    model = train(small_scale(adata, n_latent=n_latent, likelihood=likelihood), max_epochs=4)
    prior = model.vae.prior
    loc_kd = torch.tensor([[-1.0, 0.5], [0.3, -0.8], [1.2, 0.9]])[:, :n_latent]
    prior.set_components(torch.tensor([0.5, 0.2, 0.3]), loc_kd, torch.full_like(loc_kd, 0.4))
    return model


@pytest.fixture(scope="module")
def model(adata):
    return overlapping(adata, 2, "bernoulli")


@pytest.fixture(scope="module")
def result(model):
    return sample_latent_nuts(model, n_cells=3, n_draws=250, n_warmup=100, seed=3)


def on_a_grid(model, counts, *, log_prior_weight=True, width=7.0, n=141):
    """Mean and sd of p(z|x), ``(n, d)``, p(c|x), ``(n, k)``, and log p(x), on a regular grid.

    The grid knows nothing of q, and uses the Pyro distributions where the library under test
    uses its closed forms.
    """
    vae = copy.deepcopy(model.vae).double()
    d = vae.n_latent
    axis = torch.linspace(-width, width, n, dtype=torch.float64)
    z_md = torch.cartesian_prod(*[axis] * d).view(-1, d)
    cells = sparse_cells(counts).dense().to(torch.float64)
    with torch.no_grad():
        z_mnd = z_md[:, None].expand(-1, cells.n_cells, -1)
        log_lik_mn = vae.likelihood(z_mnd, cells).log_prob(cells.x_np)
        log_p_mk = torch.stack(
            [vae.prior.component(torch.tensor(k)).log_prob(z_md) for k in range(3)], -1
        )
        if log_prior_weight:
            log_p_mk = log_p_mk + vae.prior.log_pi_k
        log_joint_mnk = log_lik_mn[..., None] + log_p_mk[:, None]
        log_cell = d * torch.log(axis[1] - axis[0])
        log_px_n = log_joint_mnk.logsumexp((0, 2)) + log_cell
        p_mnk = (log_joint_mnk + log_cell - log_px_n[:, None]).exp()
        mean_nd = torch.einsum("mnk,md->nd", p_mnk, z_md)
        square_nd = torch.einsum("mnk,md->nd", p_mnk, z_md**2)
    sd_nd = (square_nd - mean_nd**2).sqrt()
    return mean_nd.numpy(), sd_nd.numpy(), p_mnk.sum(0).numpy(), log_px_n.numpy()


def check(result, exact):
    """Largest |difference| in standard errors: of p(c|x), and of the mean of z."""
    mean_nd, sd_nd, p_nk, _ = exact
    in_c = np.abs(result.gamma - p_nk) / result.gamma_error
    error_nd = sd_nd / np.sqrt(result.ess.to_numpy()[:, None])
    in_z = np.abs(result.z.mean((0, 1)) - mean_nd) / error_nd
    return float(in_c.to_numpy().max()), float(in_z.max())


def test_nuts_agrees_with_quadrature(model, result):
    counts = model.counts()
    counts = counts[counts.obs_names.get_indexer(result.cells)]
    exact = on_a_grid(model, counts)
    finer = on_a_grid(model, counts, n=281, width=9.0)
    for one, other in zip(exact, finer, strict=True):  # the oracle itself has converged
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
    assert max(check(result, exact)) < CRITICAL
    np.testing.assert_allclose(result.z.std((0, 1)), exact[1], rtol=0.25)
    assert result.n_divergent == 0
    assert (result.rhat < 1.05).all()
    assert (result.ess > 80).all()
    assert ((exact[2] > 0.02).sum(1) > 1).any()  # p(c|x) is open: agreement is not empty
    # Power: uniform weights, or another cell's posterior, fail.
    assert max(check(result, on_a_grid(model, counts, log_prior_weight=False))) > CRITICAL
    swapped = on_a_grid(model, counts[np.roll(np.arange(3), 1)])
    assert max(check(result, swapped)) > CRITICAL


def test_nuts_agrees_with_quadrature_for_counts_in_one_dimension(adata):
    model = overlapping(adata, 1, "poisson")
    names = list(adata.obs_names[[7, 2]])
    result = sample_latent_nuts(model, cells=names, n_draws=200, n_warmup=100)
    assert list(result.cells) == names
    exact = on_a_grid(model, model.counts(adata[names]), n=2001)
    assert max(check(result, exact)) < CRITICAL
    wrong = on_a_grid(model, model.counts(adata[names]), n=2001, log_prior_weight=False)
    assert max(check(result, wrong)) > CRITICAL


def test_agreement_is_the_distance_to_q(model, result):
    """Against q(c|x) and q(z|x) computed otherwise, with more draws."""
    table = compare_to_nuts(result, model)
    assert table.index.equals(result.cells)
    some = model.get_responsibilities(n_samples=2000)
    order = model.counts().obs_names.get_indexer(result.cells)
    tv = 0.5 * np.abs(some[order] - result.gamma).sum(axis=1)
    assert (np.abs(table["tv"] - tv) < 0.05).all()
    loc = model.get_latent_representation()[order]
    away = np.abs(loc - result.z.mean((0, 1))) / result.z.std((0, 1))
    np.testing.assert_allclose(table["z_difference"], away.max(1), rtol=1e-4)
    # q moved by three of its own standard deviations is seen.
    moved = copy.copy(model)
    moved.vae = copy.deepcopy(model.vae)
    with torch.no_grad():
        moved.vae.encoder.loc.bias.add_(5)
    assert (compare_to_nuts(result, moved)["z_difference"] > table["z_difference"] + 1).all()
    # The exact posterior as q would be within noise: p(c|x) of the grid is.
    exact_nk = on_a_grid(model, model.counts()[order])[2]
    tv = 0.5 * np.abs(result.gamma - exact_nk).sum(axis=1)
    assert (tv < CRITICAL * 0.5 * result.gamma_error.sum(axis=1)).all()


def test_seeds_reproduce_and_nothing_of_the_caller_changes(model):
    parameters = {name: p.clone() for name, p in model.vae.named_parameters()}
    numbers, arrays = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    small = {"n_cells": 2, "n_draws": 5, "n_warmup": 5}
    one, same, other = (sample_latent_nuts(model, seed=seed, **small) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.z, same.z)
    assert one.cells.equals(same.cells)
    assert not np.array_equal(one.z, other.z)
    assert not np.array_equal(one.z[0], one.z[1])
    assert torch.equal(numbers, torch.random.get_rng_state())
    assert np.array_equal(arrays, np.random.get_state()[1])  # noqa: NPY002
    for name, p in model.vae.named_parameters():
        assert torch.equal(p, parameters[name])
        assert p.requires_grad
        assert p.dtype == torch.float32


def test_the_density_is_the_collapsed_bound_without_q(model):
    """log p(x, z) of the sampler is the collapsed closed form plus log q(z|x)."""
    from pyro_scale.comparison.nuts import _fixed, _log_joint

    vae, cells = _fixed(model, model.counts())
    moments = vae.encoder(cells)
    z = torch.randn(60, 2, dtype=torch.float64)
    log_w = CLOSED_FORMS["collapsed"](evaluate(vae, cells, z))
    log_q = vae.encoder.q_z(*moments).log_prob(z)
    torch.testing.assert_close(_log_joint(vae, cells, z, moments), log_w + log_q)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cells": ["cell_1", "no such"]}, r"1 are not in the data, such as 'no such'"),
        ({"cells": []}, r"of 0\): expected distinct names of cells such as 'cell_1'"),
        ({"cells": ["cell_1", "cell_1"]}, r"of 2\): expected distinct names"),
        ({"n_cells": 0}, "n_cells=0 must be at least one"),
        ({"n_chains": 1}, r"n_chains=1 must be at least two"),
        ({"n_draws": 3}, r"n_draws=3 must be at least 4"),
    ],
)
def test_chains_that_there_are_not(model, options, words):
    with pytest.raises(ValueError, match=words):
        sample_latent_nuts(model, **options)


def test_an_untrained_model_other_cells_and_more_cells_than_there_are(adata, model, result):
    with pytest.raises(ps.NotTrainedError, match=r"call model.train\(\)"):
        sample_latent_nuts(small_scale(adata))
    some = adata[[4, 9]]
    found = sample_latent_nuts(model, some, n_cells=20, n_draws=4, n_warmup=1)
    assert list(found.cells) == list(some.obs_names)
    assert len(compare_to_nuts(found, model, some)) == 2
    with pytest.raises(ps.DataError, match="are not in the data"):
        compare_to_nuts(result, model, anndata.AnnData.copy(adata[[0]]))
    with pytest.raises(ValueError, match="n_samples=1 must be at least two"):
        compare_to_nuts(result, model, n_samples=1)
