"""Chapter 5: the four bounds of the ladder and their four gaps, each a divergence."""

import functools

import numpy as np
import pytest
import torch
from oracle import At, Models, five_terms, g_bar, g_star, kl, mean_under_q
from oracle_batches import ladder
from oracle_checks import assert_identity
from oracle_posterior import log_p_x, mean_under_posterior
from oracle_programs import expected_terms
from scipy.optimize import minimize
from scipy.special import softmax

from pyro_scale.objectives import collapsed, mean_field, scale


@functools.cache
def rungs(models: Models) -> np.ndarray:
    """Return L_str, L_mf(g*), L_mf(gbar) and E[L_scale] by the closed forms, ``(4, n)``."""
    log_g_bar = torch.tensor(np.log(g_bar(models)))
    forms = (collapsed, mean_field, lambda at: mean_field(at, log_g_bar), scale)
    return np.stack([expected_terms(models, form).sum(0) for form in forms])


@functools.cache
def sizes(models: Models) -> np.ndarray:
    """Return the terms that set the scale of rounding errors, ``(6, n)``."""
    return np.concatenate([five_terms(models, "structured"), log_p_x(models)[None]])


@functools.cache
def divergences(models: Models) -> dict[str, np.ndarray]:
    """Return the divergences of the chapter, by their definitions."""
    star, bar = g_star(models), g_bar(models)
    truth = log_p_x(models)

    def log_ratio(at: At) -> np.ndarray:
        return at.log_q_z - (at.log_lik + at.log_p_z - truth)

    return {
        "q(z|x) || p(z|x)": mean_under_q(models, log_ratio),
        "p(z|x) || q(z|x)": mean_under_posterior(models, lambda at: -log_ratio(at)),
        "g* || gamma": mean_under_q(models, lambda at: kl(star, at.gamma)),
        "gamma || g*": mean_under_q(models, lambda at: kl(at.gamma, star)),
        "gbar || g*": kl(bar, star),
        "g* || gbar": kl(star, bar),
        "gbar || gamma": mean_under_q(models, lambda at: kl(bar, at.gamma)),
        "gamma || gbar": mean_under_q(models, lambda at: kl(at.gamma, bar)),
    }


def test_d05_1_log_p_x_minus_structured_is_kl_of_q_z_from_the_posterior_of_z(models):
    # log p(x) is integrated around the modes of the posterior, the bound on a grid of q(z|x).
    kls = divergences(models)
    gap = log_p_x(models) - rungs(models)[0]
    right = kls["q(z|x) || p(z|x)"]
    wrong = {"the other way round": kls["p(z|x) || q(z|x)"], "no gap": 0 * gap}
    assert_identity(gap, right, terms=sizes(models), wrong=wrong)


def test_d05_2_structured_minus_best_mean_field_is_kl_of_g_star_from_gamma(models):
    kls, bound = divergences(models), rungs(models)
    wrong = {"the other way round": kls["gamma || g*"], "no gap": 0 * bound[0]}
    assert_identity(bound[0] - bound[1], kls["g* || gamma"], terms=sizes(models), wrong=wrong)


def test_d05_3_best_mean_field_minus_mean_field_at_g_bar_is_kl_of_g_bar_from_g_star(models):
    kls, bound = divergences(models), rungs(models)
    wrong = {"the other way round": kls["g* || gbar"], "no gap": 0 * bound[0]}
    assert_identity(bound[1] - bound[2], kls["gbar || g*"], terms=sizes(models), wrong=wrong)


def test_d05_4_mean_field_at_g_bar_minus_scale_is_the_mutual_information(models):
    kls, bound = divergences(models), rungs(models)
    wrong = {"the other way round": kls["gbar || gamma"], "no gap": 0 * bound[0]}
    assert_identity(bound[2] - bound[3], kls["gamma || gbar"], terms=sizes(models), wrong=wrong)


def test_d05_5_the_ladder_is_the_brute_force_one_and_descends(models):
    truth, bound = ladder(models), rungs(models)
    for rung in range(4):
        short = truth[rung + 1] - five_terms(models, "structured")[2]
        wrong = {"log pi dropped": short, "the rung above": truth[rung]}
        assert_identity(bound[rung], truth[rung + 1], terms=sizes(models), wrong=wrong)
    assert (np.diff(np.concatenate([truth[:1], bound]), axis=0) < -0.01).all()


def test_d05_6_the_price_of_the_substitution_is_a_jeffreys_divergence(models):
    kls, bound = divergences(models), rungs(models)
    price = bound[0] - bound[3]
    jeffreys = kls["g* || gamma"] + kls["gamma || g*"]
    wrong = {
        "one direction": kls["gamma || g*"],
        "at gbar": kls["gbar || gamma"] + kls["gamma || gbar"] + kls["gbar || g*"],
        "the mutual information": kls["gamma || gbar"],
    }
    assert_identity(price, jeffreys, terms=sizes(models), wrong=wrong)
    # The same divergence between the joint densities of (z, c).
    star = g_star(models)

    def both_ways(at: At) -> np.ndarray:
        total = 0.0
        for c in range(models.k):
            log_ratio = (at.log_q_z + at.log_gamma[..., c]) - (at.log_q_z + np.log(star[:, c]))
            total = total + (at.gamma[..., c] - star[:, c]) * log_ratio
        return total

    joints = mean_under_q(models, both_ways)
    assert_identity(price, joints, terms=sizes(models), wrong={"half of it": joints / 2})


def test_d05_7_and_it_is_a_covariance(models):
    bound = rungs(models)

    def covariance(value, weight):
        total = 0.0
        for c in range(models.k):
            v = mean_under_q(models, lambda at, c=c: value(at)[..., c])
            w = mean_under_q(models, lambda at, c=c: weight(at)[..., c])
            both = mean_under_q(models, lambda at, c=c: value(at)[..., c] * weight(at)[..., c])
            total = total + both - v * w
        return total

    right = covariance(lambda at: at.log_p_z_given_c, lambda at: at.gamma)
    # log p(z) is the same for all c, so log gamma_c may replace log p(z|c).
    with_log_gamma = covariance(lambda at: at.log_gamma, lambda at: at.gamma)
    wrong = {"variances only": covariance(lambda at: at.gamma, lambda at: at.gamma)}
    assert_identity(bound[0] - bound[3], right, terms=sizes(models), wrong=wrong)
    assert_identity(right, with_log_gamma, terms=sizes(models), wrong=wrong)


def mean_field_bound(models: Models, g_nk: np.ndarray) -> np.ndarray:
    """Return the part of L_mf(g) that depends on g, i.e. without R and H, ``(n,)``."""
    rows = five_terms(models, "mean_field", g_nk)
    return rows[1] + rows[2] + rows[4]


def test_d05_8_every_g_loses_its_divergence_from_g_star(models):
    rng = np.random.default_rng(0)
    star = g_star(models)
    best = mean_field_bound(models, star)
    for g_nk in (g_bar(models), models.pi_nk, rng.dirichlet(np.ones(models.k), len(models))):
        loss = best - mean_field_bound(models, g_nk)
        wrong = {"the other way round": kl(star, g_nk)}
        assert_identity(loss, kl(g_nk, star), terms=sizes(models), wrong=wrong)


def test_d05_8_at_g_star_the_gradient_over_the_simplex_is_zero(models):
    log_g = torch.tensor(np.log(g_star(models)), requires_grad=True)
    z_snd = models.m_nd[None]

    def slope(logits):
        value = mean_field(models.point(z_snd), logits.log_softmax(-1)).total().sum()
        return torch.autograd.grad(value, logits)[0].abs().max().item()

    assert slope(log_g) < 1e-12
    at_bar = torch.tensor(np.log(g_bar(models)), requires_grad=True)
    assert slope(at_bar) > 1e-3


@pytest.mark.parametrize("start", [0, 1])
def test_d05_8_a_numerical_search_over_the_simplex_ends_at_g_star(models, start):
    expected_nk = mean_under_q(models, lambda at: at.log_p_z_given_c) + np.log(models.pi_nk)
    worst_bar = 0.0
    for n in range(min(len(models), 10)):

        def objective(logits, n=n):
            g = softmax(logits)
            slope = g * (expected_nk[n] - np.log(g))
            value = slope.sum()
            return -value, -(slope - g * value)

        first = np.random.default_rng(start).normal(size=models.k)
        found = minimize(objective, first, jac=True, method="BFGS", options={"gtol": 1e-10})
        assert np.abs(softmax(found.x) - g_star(models)[n]).max() < 1e-6
        worst_bar = max(worst_bar, np.abs(softmax(found.x) - g_bar(models)[n]).max())
    assert worst_bar > 1e-2  # the search does not end at gbar


def test_d05_9_vades_argument_gives_g_star_the_geometric_mean(models):
    # g* minimizes E_q KL(g || gamma) over g, gbar minimizes E_q KL(gamma || g).
    kls, rng = divergences(models), np.random.default_rng(0)
    star, bar = g_star(models), g_bar(models)
    ours = models.point(models.m_nd[None]).log_g_star_nk.exp().numpy()
    for c in range(models.k):
        assert_identity(
            ours[:, c], star[:, c], terms=np.ones(len(models)), wrong={"arithmetic": bar[:, c]}
        )
    for _ in range(20):
        other = rng.dirichlet(np.ones(models.k), len(models))
        forward = mean_under_q(models, lambda at, g=other: kl(g, at.gamma))
        reverse = mean_under_q(models, lambda at, g=other: kl(at.gamma, g))
        assert (forward >= kls["g* || gamma"]).all()
        assert (reverse >= kls["gamma || gbar"]).all()
    assert (kls["gbar || gamma"] > kls["g* || gamma"]).all()
    assert (kls["gamma || g*"] > kls["gamma || gbar"]).all()
    # The divergence is not zero at its minimum: no q(c|x) equals p(c|z).
    assert (kls["g* || gamma"] > 0.01).all()
