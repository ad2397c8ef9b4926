"""Chapter 7, second half: variance of the estimators, and bounds with several samples."""

import functools

import numpy as np
import pytest
import torch
from oracle import Models, mean_under_q, standard_grid
from oracle_batches import batch, random_models
from oracle_checks import TOLERANCE, assert_identity, assert_mean
from oracle_posterior import log_p_x, posterior_mode
from oracle_programs import Watch, expected_terms, gradient_error, gradients, toy
from scipy import special

from pyro_scale.objectives import (
    Objective,
    collapsed,
    evaluate,
    importance_weighted,
    scale,
)


@functools.cache
def gradient_variance(formulation: str, estimator: str, c: str) -> float:
    """Return the total variance of the gradient of one cell's loss, over 150 runs."""
    vae, cells = toy(d=2, n=1, seed=1)
    objective = Objective(vae, formulation, estimator, c)
    torch.manual_seed(3)
    rows = []
    for _ in range(150):
        grads = gradients(objective(cells), vae)
        rows.append(torch.cat([g.flatten() for g in grads.values()]))
    return float(torch.stack(rows).var(0).sum())


@pytest.mark.parametrize("formulation", ["mean_field", "structured"])
def test_d07_4_enumerating_c_has_less_gradient_variance_than_drawing_it(formulation):
    drawn = gradient_variance(formulation, "Trace_ELBO", "sampled")
    enumerated = gradient_variance(formulation, "TraceEnum_ELBO", "enumerated")
    assert enumerated < 0.9 * drawn


def test_d07_4_given_z_the_drawn_value_averages_to_the_enumerated_one():
    vae, cells = toy(n=1)
    point = evaluate(vae, cells, vae.encoder(cells)[0])
    log_g = point.log_g_star_nk.detach()
    c = torch.multinomial(log_g.exp()[0], 20_000, replacement=True)
    each = (point.log_p_z_given_c_nk + point.log_pi_k - log_g).detach()[0]
    right = (log_g.exp()[0] * each).sum()
    assert_mean(each[c], right, wrong={"flat": each.mean()})


def test_d07_5_here_the_analytic_estimator_has_less_variance_still():
    sampled = gradient_variance("mean_field", "TraceEnum_ELBO", "enumerated")
    analytic = gradient_variance("mean_field", "TraceEnumMeanField_ELBO", "enumerated")
    assert analytic < 0.5 * sampled


def at_the_posterior() -> Models:
    """Return models with K = 1 whose q(z|x) is the Laplace approximation of p(z|x)."""
    models = random_models(50, 1, 1, seed=2)
    mode_nd = posterior_mode(models, 0)
    s_np = special.expit(models.at(mode_nd[None]).eta_snp[0])
    curvature_n = np.einsum("npd,np->nd", models.w_npd**2, s_np * (1 - s_np))
    return models.change(m_nd=mode_nd, s2_nd=1 / (curvature_n + 1 / models.var_nkd[:, 0]))


def variance(models: Models, form) -> np.ndarray:
    """Return the variance under q of a closed form's value, ``(n,)``, by quadrature."""
    mean = expected_terms(models, form).sum(0)
    return mean_under_q(
        models, lambda at: (form(models.point(at.z_snd)).total().numpy() - mean) ** 2
    )


def test_d07_6_but_near_the_posterior_the_sampled_value_has_less():
    # With one component both closed forms have the same mean, so only the variances differ.
    near = at_the_posterior()
    sampled, analytic = variance(near, collapsed), variance(near, scale)
    assert np.median(sampled / analytic) < 0.2
    assert (sampled < analytic).all()
    # Far from the posterior the opposite holds in most models.
    narrow = near.change(s2_nd=near.s2_nd / 50)
    assert (variance(narrow, collapsed) > variance(narrow, scale)).mean() > 0.5


def weights(models: Models, s: int, *, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(s, len(models), models.d))
    return collapsed(models.point(models.m_nd + np.sqrt(models.s2_nd) * noise)).total()


def test_d07_7_the_average_weight_is_p_of_x():
    # q(z|x) is as wide as the prior here, so that the grid under q covers p(z|x).
    models = batch(3, 1)
    wide = models.change(m_nd=models.mu_nkd.mean(1), s2_nd=0 * models.s2_nd + 4.0)
    log_p = log_p_x(wide)

    def weight(at):
        return collapsed(wide.point(at.z_snd)).total().numpy() - log_p

    ratio = mean_under_q(wide, lambda at: np.exp(weight(at)))
    jensen = np.exp(mean_under_q(wide, weight))
    assert_identity(ratio, np.ones(len(wide)), terms=ratio, wrong={"log first": jensen})
    assert np.abs(ratio - 1).max() < TOLERANCE


def two_particle_bound(models: Models, nodes: int = 301) -> np.ndarray:
    """Return E log (w_1 + w_2) / 2 on a grid in both samples, ``(n,)``."""
    t_sd, w_s = standard_grid(1, nodes)
    z_snd = models.m_nd + np.sqrt(models.s2_nd) * t_sd[:, None, :]
    point = models.point(z_snd)
    pairs = torch.stack([point.z_nd.repeat(nodes, 1, 1), point.z_nd.repeat_interleave(nodes, 0)])
    log_lik = point.log_lik_n
    lik_pairs = torch.stack([log_lik.repeat(nodes, 1), log_lik.repeat_interleave(nodes, 0)])
    values = importance_weighted(point._replace(z_nd=pairs, log_lik_n=lik_pairs)).numpy()
    return np.outer(w_s, w_s).ravel() @ values


def test_d07_8_more_samples_tighten_the_bound():
    models = batch(3, 1)
    few = models.select(np.arange(len(models)) < 8)
    one, truth = expected_terms(few, collapsed).sum(0), log_p_x(few)
    two = two_particle_bound(few)
    assert np.abs(two - two_particle_bound(few, 201)).max() < 1e-8
    assert (one < two).all()
    assert (two < truth).all()
    log_w = weights(few, 40_000).view(8, 5000, -1)
    pairs = torch.logaddexp(log_w[0], log_w[1]) - np.log(2)
    assert_mean(pairs, two, wrong={"one sample": one})
    # In every draw, eight samples give at least the average over their four pairs.
    eight = log_w.logsumexp(0) - np.log(8)
    four_pairs = (log_w.view(2, 4, 5000, -1).logsumexp(0) - np.log(2)).mean(0)
    assert (eight >= four_pairs - TOLERANCE).all()
    assert (eight > four_pairs + 1e-3).double().mean() > 0.9


def test_d07_9_the_renyi_estimator_is_the_importance_weighted_closed_form():
    vae, cells = toy()
    for formulation, c in (("collapsed", "marginalized"), ("structured", "sampled")):
        objective = Objective(vae, formulation, "RenyiELBO", c, n_particles=4)
        with Watch() as watch:
            value = -objective.loss(cells)
        assert len(watch.values) == 4
        point = evaluate(vae, cells, torch.stack(watch.values))
        five, ours = collapsed(point), importance_weighted(point).sum()
        whole = five.total().sum(-1).logsumexp(0) - np.log(4)
        wrong = {"average of logs": five.total().mean(0).sum().reshape(1)}
        wrong |= {"one weight for the whole batch": whole.reshape(1)}
        terms = torch.stack(five).mean(1).sum(-1, keepdim=True)
        assert_identity([value], ours.reshape(1), terms=terms, wrong=wrong)


def test_d07_9_and_so_is_its_gradient_when_c_is_summed_out():
    vae, cells = toy()
    objective = Objective(vae, "collapsed", "RenyiELBO", n_particles=4)
    with Watch() as watch:
        objective.backward(cells)
    theirs = {name: -p.grad for name, p in vae.named_parameters()}
    vae.zero_grad()
    loc_nd, var_nd = vae.encoder(cells)
    noise = ((torch.stack(watch.values) - loc_nd) / var_nd.sqrt()).detach()
    point = evaluate(vae, cells, loc_nd + var_nd.sqrt() * noise)
    assert gradient_error(theirs, gradients(importance_weighted(point).sum(), vae)) < 1e-10
    average = collapsed(point).total().mean(0).sum()
    assert gradient_error(theirs, gradients(average, vae)) > 1e-3
