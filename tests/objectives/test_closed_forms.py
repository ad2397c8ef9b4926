"""The hand-derived terms against explicit loops, one number at a time."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import small_cells, small_vae

from pyro_scale.objectives import (
    NO_OFFSETS,
    collapsed,
    evaluate,
    importance_weighted,
    mean_field,
    mean_field_at_z,
    scale,
    terms,
)


def log_normal(z, loc, var):
    return -0.5 * (math.log(2 * math.pi * var) + (z - loc) ** 2 / var)


@pytest.fixture
def at():
    vae, cells = small_vae().requires_grad_(False), small_cells()
    with torch.no_grad():
        loc, var = vae.encoder(cells)
        return evaluate(vae, cells, loc + var.sqrt() * torch.randn_like(loc))


def loop(at, n, density):
    """Sum_d of a function of (z, m, v) and one component, for each component."""
    return [
        sum(
            density(
                float(at.z_nd[n, d]),
                float(at.loc_nd[n, d]),
                float(at.var_nd[n, d]),
                float(at.loc_kd[k, d]),
                float(at.var_kd[k, d]),
            )
            for d in range(at.z_nd.shape[1])
        )
        for k in range(len(at.log_pi_k))
    ]


def expected(at, n):
    """E_q[log N(z; mu, var)] per component, as a loop."""
    return loop(
        at,
        n,
        lambda z, m, v, mu, var: -0.5 * (math.log(2 * math.pi * var) + (v + (m - mu) ** 2) / var),
    )


def test_log_p_z_given_c_equals_a_loop(at):
    for n in range(len(at.z_nd)):
        by_hand = loop(at, n, lambda z, m, v, mu, var: log_normal(z, mu, var))
        np.testing.assert_allclose(at.log_p_z_given_c_nk[n].numpy(), by_hand, rtol=1e-13)


def test_expected_log_p_z_given_c_equals_a_loop(at):
    for n in range(len(at.z_nd)):
        np.testing.assert_allclose(
            at.expected_log_p_z_given_c_nk[n].numpy(), expected(at, n), rtol=1e-13
        )


def test_every_objective_equals_its_definition_in_a_loop(at):
    pi = at.log_pi_k.exp().tolist()
    for n in range(len(at.z_nd)):
        d = range(at.z_nd.shape[1])
        log_n = loop(at, n, lambda z, m, v, mu, var: log_normal(z, mu, var))
        joint = [p * math.exp(x) for p, x in zip(pi, log_n, strict=True)]
        gamma = [x / sum(joint) for x in joint]
        e = [math.log(p) + x for p, x in zip(pi, expected(at, n), strict=True)]
        g = [math.exp(x) / sum(map(math.exp, e)) for x in e]
        log_q = sum(
            log_normal(float(at.z_nd[n, i]), float(at.loc_nd[n, i]), float(at.var_nd[n, i]))
            for i in d
        )
        entropy = sum(0.5 * math.log(2 * math.pi * math.e * float(at.var_nd[n, i])) for i in d)
        log_lik = float(at.log_lik_n[n])
        by_hand = {
            collapsed: log_lik + math.log(sum(joint)) - log_q,
            mean_field: log_lik
            + entropy
            + sum(w * (x - math.log(w)) for w, x in zip(g, e, strict=True)),
            mean_field_at_z: log_lik
            - log_q
            + sum(
                w * (math.log(p) + x - math.log(w)) for w, p, x in zip(g, pi, log_n, strict=True)
            ),
            scale: log_lik
            + entropy
            + sum(w * (x - math.log(w)) for w, x in zip(gamma, e, strict=True)),
        }
        for objective, value in by_hand.items():
            assert float(objective(at).total()[n]) == pytest.approx(value, rel=1e-12)


def test_power_a_wrong_formula_differs(at):
    """Dropping log pi, a variance used as a scale and a flat gamma would all be seen."""
    right = scale(at).total()
    no_pi = scale(at._replace(log_pi_k=torch.zeros_like(at.log_pi_k))).total()
    scale_for_var = scale(at._replace(var_kd=at.var_kd.square())).total()
    flat = mean_field(at, torch.full_like(at.log_gamma_nk, -math.log(3))).total()
    for wrong in (no_pi, scale_for_var, flat):
        assert (wrong - right).abs().max() > 1e-2


def test_importance_weighted_is_the_log_mean_weight_and_one_sample_is_collapsed():
    vae, cells = small_vae(), small_cells()
    with torch.no_grad():
        loc, var = vae.encoder(cells)
        z_snd = loc + var.sqrt() * torch.randn(5, *loc.shape)
        weights = torch.stack([collapsed(evaluate(vae, cells, z)).total().exp() for z in z_snd])
        at = evaluate(vae, cells, z_snd)
        torch.testing.assert_close(importance_weighted(at), weights.mean(0).log())
        one = evaluate(vae, cells, z_snd[:1])
        torch.testing.assert_close(importance_weighted(one), collapsed(one).total()[0])


def test_leading_dimensions_are_samples():
    """They may be in every argument: a term equals itself sample by sample."""
    s, n, d, k, p = 2, 3, 4, 5, 6
    z, loc, log_var = torch.randn(3, s, n, d).double()
    loc_kd, log_var_kd = torch.randn(2, k, d).double()
    log_pi = torch.randn(k).double().log_softmax(0)
    logits, x = torch.randn(s, n, p).double(), (torch.rand(s, n, p) < 0.5).double()
    var, var_kd = log_var.exp(), log_var_kd.exp()
    log_n = terms.log_p_z_given_c(z, loc_kd, var_kd)
    given_c = {"loc_kd": loc_kd, "var_kd": var_kd}
    for term, arguments in [
        (terms.bernoulli_log_lik, (logits, x)),
        (partial(terms.bernoulli_log_lik, eps=1e-8), (logits, x)),
        (terms.poisson_log_lik, (logits, x)),
        (partial(terms.log_p_z_given_c, **given_c), (z,)),
        (partial(terms.expected_log_p_z_given_c, **given_c), (loc, var)),
        (terms.log_q_z, (z, loc, var)),
        (terms.entropy_z, (var,)),
        (partial(terms.log_responsibilities, log_pi), (log_n,)),
        (partial(terms.log_responsibilities, log_pi, floor=1e-10), (log_n,)),
        (partial(terms.log_optimal_q_c, log_pi), (log_n,)),
    ]:
        by_sample = torch.stack([term(*one) for one in zip(*arguments, strict=True)])
        torch.testing.assert_close(term(*arguments), by_sample)


def test_several_samples_of_z_are_so_many_evaluations():
    vae, cells = small_vae().requires_grad_(False), small_cells()
    z_snd = torch.randn(5, 6, 2).double()
    for objective in (collapsed, mean_field, mean_field_at_z, scale):
        by_sample = torch.stack([objective(evaluate(vae, cells, z)).total() for z in z_snd])
        torch.testing.assert_close(objective(evaluate(vae, cells, z_snd)).total(), by_sample)


def test_exact_means_no_constants():
    assert NO_OFFSETS == (0, 0, 0)


def test_kl_weight_leaves_the_likelihood_alone(at):
    for objective in (collapsed, mean_field, mean_field_at_z, scale):
        whole, half = objective(at).total(), objective(at).total(0.5)
        torch.testing.assert_close(half, (whole + at.log_lik_n) / 2)


def test_likelihoods_equal_a_loop():
    logits, rates = torch.randn(3, 4).double(), torch.rand(3, 4).double() + 0.1
    x, counts = (torch.rand(3, 4) < 0.5).double(), torch.randint(0, 4, (3, 4)).double()
    bernoulli = [
        sum(
            math.log(1 / (1 + math.exp(-float(v)))) if y else math.log(1 / (1 + math.exp(float(v))))
            for v, y in zip(row, xs, strict=True)
        )
        for row, xs in zip(logits, x, strict=True)
    ]
    poisson = [
        sum(
            int(y) * math.log(float(r)) - float(r) - math.log(math.factorial(int(y)))
            for r, y in zip(row, ys, strict=True)
        )
        for row, ys in zip(rates, counts, strict=True)
    ]
    np.testing.assert_allclose(terms.bernoulli_log_lik(logits, x), bernoulli, rtol=1e-13)
    np.testing.assert_allclose(terms.poisson_log_lik(rates.log(), counts), poisson, rtol=1e-13)


def test_extreme_values_stay_finite():
    """Responsibilities 1e4 standard deviations out, logits of +-200, variances 1e-6 and 1e6."""
    z = torch.tensor([[1e4, -1e4]]).double()
    loc = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-5.0, 5.0]]).double()
    var = torch.tensor([[1e-6, 1e6], [1.0, 1.0], [1e6, 1e-6]]).double()
    log_n = terms.log_p_z_given_c(z, loc, var)
    gamma = terms.log_responsibilities(torch.full((3,), -math.log(3.0)).double(), log_n).exp()
    assert torch.isfinite(gamma).all()
    assert float(gamma.sum()) == pytest.approx(1)
    logits = torch.tensor([[200.0, -200.0]]).double()
    assert float(terms.bernoulli_log_lik(logits, torch.tensor([[0.0, 1.0]]).double())) == -400


def test_a_likelihood_without_a_density_by_hand_is_refused():
    """A likelihood that is neither Bernoulli nor Poisson is not taken for one of them."""
    vae, cells = small_vae(), small_cells()
    vae.likelihood = torch.nn.Linear(2, 25)
    with pytest.raises(NotImplementedError, match="no log-density by hand for Linear"):
        evaluate(vae, cells, torch.zeros(6, 2))
