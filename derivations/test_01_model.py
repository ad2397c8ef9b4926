"""Chapter 1: the generative model, p(c|z), and log p(x) without a bound."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Models, standard_grid
from oracle_batches import batch
from oracle_checks import TOLERANCE, assert_identity, assert_mean
from oracle_posterior import POSTERIOR_NODES, log_p_x
from oracle_programs import models_of, repeat, toy
from pyro import poutine
from scipy import stats

from pyro_scale.programs import CollapsedModel, MixtureModel, MixturePrior


@functools.cache
def log_p_x_from_the_prior(models: Models) -> np.ndarray:
    """Return log p(x) = log sum_c pi_c E_p(z|c)[p(x|z)], integrated over the prior."""
    total = -np.inf
    for c in range(models.k):
        t_sd, w_s = standard_grid(models.d, 2 * POSTERIOR_NODES[models.d] - 1)
        z_snd = models.mu_nkd[:, c] + np.sqrt(models.var_nkd[:, c]) * t_sd[:, None, :]
        lik = np.tensordot(w_s, np.exp(models.at(z_snd).log_lik), 1)
        total = np.logaddexp(total, np.log(models.pi_nk[:, c]) + np.log(lik))
    return total


@pytest.mark.parametrize("value", [0, 1, 2])
def test_d01_1_the_program_scores_the_joint_density_factor_by_factor(value):
    vae, cells = toy()
    c = torch.full((cells.n_cells,), value)
    z_nd = torch.randn(cells.n_cells, 2)
    program = poutine.condition(MixtureModel(vae), data={"c": c, "z": z_nd})
    trace = poutine.trace(program).get_trace(cells)
    trace.compute_log_prob()
    models = models_of(vae, cells)
    at = models.at(z_nd[None].numpy())
    truth = {
        "c": np.log(models.pi_nk[:, value]),
        "z": at.log_p_z_given_c[0, :, value],
        "x": at.log_lik[0],
    }
    terms = np.abs(list(truth.values()))
    for n in range(cells.n_cells):  # compare the oracle's Gaussian with scipy's
        normal = stats.multivariate_normal(
            models.mu_nkd[n, value], np.diag(models.var_nkd[n, value])
        )
        assert truth["z"][n] == pytest.approx(normal.logpdf(z_nd[n].numpy()), rel=1e-12)
    for site, right in truth.items():
        wrong = {"another component": np.log(models.pi_nk[:, value - 1])}
        assert_identity(trace.nodes[site]["log_prob"], right, terms=terms, wrong=wrong)


def test_d01_2_summing_c_out_gives_the_mixture_density(models):
    z_snd = np.random.default_rng(0).normal(0, 2, (10, len(models), models.d))
    density = models.at(z_snd).log_p_z
    for n in range(min(5, len(models))):
        prior = prior_of(models, n)
        ours = prior.mixture().log_prob(torch.tensor(z_snd[:, n]))
        per_dimension = torch.distributions.MixtureSameFamily(
            prior.weight(),
            torch.distributions.Normal(prior.loc_kd[:, 0], prior.var_kd[:, 0].sqrt()),
        )
        wrong = {"variance used as scale": with_variance_as_scale(models, n, z_snd[:, n])}
        if models.d > 1:  # in one dimension the two mixtures are the same
            wrong["a mixture in each dimension"] = per_dimension.log_prob(
                torch.tensor(z_snd[:, n, 0])
            )
        assert_identity(ours, density[:, n], terms=density[:, n], wrong=wrong)


def prior_of(models: Models, n: int) -> MixturePrior:
    prior = MixturePrior(models.k, models.d).requires_grad_(False)
    fields = (models.pi_nk, models.mu_nkd, models.var_nkd)
    prior.set_components(*(torch.tensor(field[n]) for field in fields))
    # set_components raises small weights; this test needs them unchanged.
    prior.logits_k.copy_(torch.tensor(np.log(models.pi_nk[n])))
    return prior


def with_variance_as_scale(models: Models, n: int, z_sd: np.ndarray) -> np.ndarray:
    one = models.select(np.arange(len(models)) == n)
    return one.change(var_nkd=one.var_nkd**2).at(z_sd[:, None]).log_p_z[:, 0]


def test_d01_2_the_mixture_density_integrates_to_one():
    models = batch(3, 1)
    z_s, step = np.linspace(-30, 30, 6001, retstep=True)
    for n in range(5):
        density = prior_of(models, n).mixture().log_prob(torch.tensor(z_s)[:, None]).exp()
        part = prior_of(models, n).component(torch.tensor(0)).log_prob(torch.tensor(z_s)[:, None])
        total, one_component = (float(v.sum()) * step for v in (density, part.exp() / 3))
        assert abs(total - 1) < TOLERANCE
        assert abs(one_component - 1) > 0.1


def test_d01_3_gamma_is_bayes_rule(models):
    z_snd = np.random.default_rng(0).normal(0, 2, (10, len(models), models.d))
    log_gamma, at = models.point(z_snd).log_gamma_nk, models.at(z_snd)
    no_pi = models.change(pi_nk=np.full_like(models.pi_nk, 1 / models.k)).at(z_snd).log_gamma
    evidence = sum(models.pi_nk[:, b] * np.exp(at.log_p_z_given_c[..., b]) for b in range(models.k))
    for c in range(models.k):
        joint = models.pi_nk[:, c] * np.exp(at.log_p_z_given_c[..., c])
        terms = np.log(joint).ravel()[None]
        wrong = {"log pi dropped": no_pi[..., c].ravel(), "not normalised": terms[0]}
        ours, right = log_gamma[..., c].flatten(), np.log(joint / evidence).ravel()
        assert_identity(ours, right, terms=np.maximum(np.abs(terms), 1), wrong=wrong)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    k=st.integers(1, 5),
    d=st.integers(1, 4),
    log_var=st.floats(np.log(1e-3), np.log(1e6)),
    logit=st.floats(-50, 50),
    z=st.floats(-50, 50),
    seed=st.integers(0, 999),
)
def test_d01_3_and_it_is_a_distribution_at_extreme_parameters(k, d, log_var, logit, z, seed):
    torch.manual_seed(seed)
    prior = MixturePrior(k, d).double()
    with torch.no_grad():
        prior.logits_k[0] = logit
        prior.raw_var_kd.copy_(torch.randn(k, d) + np.log(np.expm1(min(np.exp(log_var), 500))))
    z_nd = z * torch.randn(3, d)
    log_gamma = prior.log_responsibilities(z_nd)
    assert log_gamma.shape == (3, k)
    assert torch.isfinite(log_gamma).all()
    assert torch.allclose(log_gamma.exp().sum(-1), torch.ones(3), rtol=0, atol=1e-12)


def test_d01_4_the_likelihood_is_a_distribution_over_all_binary_cells():
    vae, cells = toy(n=1)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    z_nd = torch.randn(1, 2).expand(len(every), 2)
    many = type(cells).from_counts(every)
    log_lik = vae.likelihood(z_nd, many).log_prob(every).detach()
    assert abs(float(log_lik.exp().sum()) - 1) < TOLERANCE
    mean = (log_lik.exp()[:, None] * every).sum(0)
    right = torch.sigmoid(vae.likelihood.eta(z_nd[:1])[0])
    assert_identity(mean, right, terms=torch.ones(8), wrong={"logits": vae.likelihood.eta(z_nd)[0]})


def test_d01_5_log_p_x_is_the_same_from_the_posteriors_side_and_from_the_priors(models):
    around_modes, from_prior = log_p_x(models), log_p_x_from_the_prior(models)
    flat = np.log(np.full(models.k, 1 / models.k))
    no_pi = log_p_x(models.change(pi_nk=np.broadcast_to(np.exp(flat), models.pi_nk.shape)))
    wrong = {"log pi dropped": no_pi, "p(x|z) at the mean": models.at(models.m_nd[None]).log_lik[0]}
    assert_identity(around_modes, from_prior, terms=from_prior, wrong=wrong)


def test_d01_6_p_of_x_sums_to_one_over_all_binary_cells():
    every = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    first = batch(3, 1).select(np.zeros(len(every), dtype=int))
    models = first.change(x_np=every)
    assert abs(np.exp(log_p_x(models)).sum() - 1) < TOLERANCE
    at_one_z = np.exp(models.at(models.m_nd[None]).log_lik + models.at(models.m_nd[None]).log_p_z)
    assert abs(at_one_z.sum() - 1) > 0.1


def test_d01_7_ancestral_sampling_from_either_program_has_the_same_mean_of_z():
    vae, cells = toy(n=4)
    many = repeat(cells, 2000)
    truth = (vae.prior.log_pi_k.exp() @ vae.prior.loc_kd).detach()
    wrong = {"flat weights": vae.prior.loc_kd.detach().mean(0)}
    for program in (MixtureModel(vae), CollapsedModel(vae)):
        with torch.no_grad():
            z_nd = poutine.trace(poutine.uncondition(program)).get_trace(many).nodes["z"]["value"]
        assert_mean(z_nd, truth, wrong=wrong)
