"""Chapter 8: where the published code departs from its own formula."""

import math

import numpy as np
import pytest
import torch
from oracle import five_terms, g_star, mean_under_q
from oracle_batches import batch
from oracle_checks import assert_identity, assert_mean
from oracle_programs import published, published_model
from scipy import stats
from torch import Tensor

from pyro_scale.objectives import (
    SCALE_1_1_2_OFFSETS,
    EvaluationPoint,
    NumericalOffsets,
    scale,
    terms,
)
from pyro_scale.programs import MixturePrior

EPS, FLOOR = 1e-8, 1e-10


def published_kl(model, z_nd: Tensor, loc_nd: Tensor, var_nd: Tensor) -> Tensor:
    """Return the KL terms of elbo_SCALE, its second value; the reconstruction is perfect."""
    gamma, mu_c, var_c, pi = model.get_gamma(z_nd)
    x = torch.ones(len(z_nd), 1)
    _, kld = published("loss").elbo_SCALE(x, x, gamma, (mu_c, var_c, pi), (loc_nd, var_nd.log()))
    return kld


def ours(offsets, pi_k, loc_kd, var_kd, z_nd, loc_nd, var_nd) -> Tensor:
    """Return the KL terms of our ``scale``; the likelihood is set to zero."""
    lik = torch.zeros(len(z_nd))
    return (
        -scale(
            EvaluationPoint(z_nd, loc_nd, var_nd, pi_k.log(), loc_kd, var_kd, lik), offsets=offsets
        )
        .total()
        .sum()
    )


def inputs(n=6, k=3, d=2, var=1.0):
    pi_k, loc_kd = torch.tensor([0.5, 0.3, 0.2])[:k], torch.randn(k, d)
    return pi_k, loc_kd, var * (0.5 + torch.rand(k, d)), *torch.randn(2, n, d), torch.rand(n, d)


def test_d08_1_multiplying_pi_lowers_the_loss_by_log_a_per_cell_without_end():
    pi_k, *rest = inputs()
    start = ours(NumericalOffsets(), pi_k, *rest)
    for a in (2.0, 100.0, 1e8):
        moved = ours(NumericalOffsets(), a * pi_k, *rest)
        wrong = {"normalised": start, "one cell's worth": start - math.log(a)}
        assert_identity(
            moved.reshape(1), start.reshape(1) - 6 * math.log(a), terms=[30.0], wrong=wrong
        )
        loc_kd, var_kd, *q = rest
        at_a, at_1 = (published_kl(published_model(b * pi_k, loc_kd, var_kd), *q) for b in (a, 1.0))
        assert at_a.item() - at_1.item() == pytest.approx(-6 * math.log(a), abs=1e-4)


def test_d08_1_the_softmax_of_our_prior_has_no_such_direction():
    prior = MixturePrior(3, 2)
    for shift in (0.0, 50.0):
        with torch.no_grad():
            prior.logits_k += shift
        assert abs(float(prior.log_pi_k.detach().exp().sum()) - 1) < 1e-12


def test_d08_2_gamma_turns_uniform_where_the_densities_underflow_the_floor():
    k, d = 5, 10
    loc_kd = 20 * torch.eye(k, d)
    var_kd, pi_k = torch.full((k, d), 16.0), torch.full((k,), 0.2)
    z_nd = loc_kd[:1] + 4.0 * torch.ones(1, d)  # one standard deviation away in every dimension
    gamma = published_model(pi_k, loc_kd, var_kd).get_gamma(z_nd)[0]
    assert torch.allclose(gamma, torch.full((1, k), 0.2), rtol=0, atol=5e-4)
    log_n = terms.log_p_z_given_c(z_nd, loc_kd, var_kd)
    exact = terms.log_responsibilities(pi_k.log(), log_n).exp()
    assert float(exact[0, 0]) > 0.99
    with_floor = terms.log_responsibilities(pi_k.log(), log_n, floor=FLOOR).exp()
    assert torch.allclose(with_floor, gamma, rtol=0, atol=1e-6)


def fraction_resolved(d: int) -> float:
    """Return P(gamma > 1/2 for the true component of five), i.e. P(pi N(z) > three floors)."""
    threshold = 2 * math.log(0.2 / (3 * FLOOR)) - d * math.log(2 * math.pi)
    return float(stats.chi2.cdf(threshold, d))


@pytest.mark.parametrize("d", [10, 12, 14, 16])
def test_d08_2_more_latent_dimensions_are_enough(d):
    k, n = 5, 4000
    loc_kd, var_kd, pi_k = 20 * torch.eye(k, d), torch.ones(k, d), torch.full((k,), 0.2)
    z_nd = loc_kd[:1] + torch.randn(n, d)
    resolved = published_model(pi_k, loc_kd, var_kd).get_gamma(z_nd)[0][:, 0] > 0.5
    wrong = {"all of them": 1.0, "two dimensions more": fraction_resolved(d + 2)}
    assert_mean(resolved.double(), fraction_resolved(d), wrong=wrong)
    log_n = terms.log_p_z_given_c(z_nd, loc_kd, var_kd)
    assert terms.log_responsibilities(pi_k.log(), log_n).exp()[:, 0].min() > 0.99
    assert fraction_resolved(20) < 1e-4


@pytest.mark.parametrize("floor", [1e-10, 1e-3, 1e-1])
def test_d08_3_the_floor_costs_tightness_but_not_validity(floor):
    models = batch(3, 1)
    offsets = NumericalOffsets(gamma_floor=floor)
    floored = mean_under_q(
        models, lambda at: scale(models.point(at.z_snd), offsets=offsets).total().numpy()
    )

    def other_gamma(at):
        joint = models.pi_nk * np.exp(at.log_p_z_given_c) + floor
        return joint / joint.sum(-1, keepdims=True)

    rows = five_terms(models, "scale")
    expected_nk = np.log(models.pi_nk) + mean_under_q(models, lambda at: at.log_p_z_given_c)
    inner = mean_under_q(
        models, lambda at: (other_gamma(at) * (expected_nk - np.log(other_gamma(at)))).sum(-1)
    )
    wrong = {} if floor < 1e-3 else {"no floor": rows.sum(0)}
    wrong |= {"log pi dropped": rows[0] + inner + rows[3] - rows[2]}
    assert_identity(floored, rows[0] + inner + rows[3], terms=rows, wrong=wrong)
    best = five_terms(models, "mean_field", g_star(models)).sum(0)
    assert (floored < best).all()


def test_d08_4_the_variance_has_eps_once_in_gamma_and_twice_in_the_loss():
    pi_k, loc_kd, var_kd, z_nd, loc_nd, var_nd = inputs(var=1e-8)
    loc_kd, z_nd, loc_nd = 1e-4 * loc_kd, 1e-4 * z_nd, 1e-4 * loc_nd
    var_nd = 1e-8 * var_nd
    arguments = (pi_k, loc_kd, var_kd, z_nd, loc_nd, var_nd)
    theirs = published_kl(published_model(pi_k, loc_kd, var_kd), z_nd, loc_nd, var_nd)
    once = ours(NumericalOffsets(gamma_floor=FLOOR, var_eps=EPS / 2), *arguments)
    wrong = {
        "eps once in the loss": once,
        "no eps": ours(NumericalOffsets(gamma_floor=FLOOR), *arguments),
    }
    right = ours(SCALE_1_1_2_OFFSETS, *arguments)
    assert_identity(theirs.reshape(1), right.reshape(1), terms=[right.item()], wrong=wrong)
    assert abs(right.item() - wrong["no eps"].item()) > 1.0  # nats; not small here


@pytest.mark.parametrize(("x", "logit"), [(1.0, -30.0), (0.0, 30.0), (1.0, -100.0)])
def test_d08_5_the_likelihood_is_clipped_and_its_gradient_vanishes_where_it_is_most_wrong(x, logit):
    logit_np, x_np = torch.tensor([[logit]], requires_grad=True), torch.tensor([[x]])
    theirs = -published("loss").binary_cross_entropy(torch.sigmoid(logit_np), x_np)
    clipped = terms.bernoulli_log_lik(logit_np, x_np, eps=SCALE_1_1_2_OFFSETS.log_eps)
    exact = terms.bernoulli_log_lik(logit_np, x_np)
    assert theirs.item() == pytest.approx(clipped.item(), rel=1e-10)
    assert theirs.item() == pytest.approx(math.log(EPS), abs=1e-4)
    assert exact.item() == pytest.approx(-abs(logit), rel=1e-9)
    slopes = [torch.autograd.grad(value.sum(), logit_np)[0].item() for value in (theirs, exact)]
    assert abs(slopes[0]) < 1e-4
    assert abs(slopes[1]) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("bad", ["pi", "var_c"])
def test_d08_6_nothing_keeps_pi_and_the_variances_positive(bad):
    pi_k, loc_kd, var_kd, z_nd, loc_nd, var_nd = inputs()
    assert torch.isfinite(published_kl(published_model(pi_k, loc_kd, var_kd), z_nd, loc_nd, var_nd))
    if bad == "pi":
        pi_k = pi_k.clone()
        pi_k[0] = -1e-4
    else:
        var_kd = var_kd.clone()
        var_kd[0, 0] = -1e-3
    loss = published_kl(published_model(pi_k, loc_kd, var_kd), z_nd, loc_nd, var_nd)
    assert torch.isnan(loss)


def test_d08_7_log_pi_inside_the_sum_over_dimensions_is_pi_to_the_power_d(models):
    z_snd = np.random.default_rng(0).normal(0, 2, (10, len(models), models.d))
    at = models.at(z_snd)
    inside = np.stack([
        sum(
            np.log(models.pi_nk[:, c])
            - 0.5 * np.log(2 * np.pi * models.var_nkd[:, c, d])
            - 0.5 * (z_snd[..., d] - models.mu_nkd[:, c, d]) ** 2 / models.var_nkd[:, c, d]
            for d in range(models.d)
        )
        for c in range(models.k)
    ], -1)  # fmt: skip
    to_the_d = models.d * np.log(models.pi_nk) + at.log_p_z_given_c
    wrong = {"pi once": (np.log(models.pi_nk) + at.log_p_z_given_c)[..., 0].ravel()}
    flat = {"no pi": at.log_p_z_given_c[..., 0].ravel()}
    assert_identity(
        inside[..., 0].ravel(),
        to_the_d[..., 0].ravel(),
        terms=np.maximum(np.abs(to_the_d[..., 0].ravel()), 1),
        wrong=wrong if models.d > 1 else flat,
    )
    gamma = np.exp(inside - np.logaddexp.reduce(inside, -1, keepdims=True))
    difference = np.abs(gamma - at.gamma).max()
    assert difference < 1e-10 if models.d == 1 else difference > 0.05
