"""Chapter 3: how q(z,c|x) may factorize, and what the best q(c|z,x) is."""

import numpy as np
import pytest
import torch
from oracle import g_bar, g_star, kl, mean_under_q
from oracle_checks import assert_identity, assert_mean
from oracle_posterior import log_p_x, mean_under_posterior
from oracle_programs import Watch, expected_terms, gradient_error, gradients, repeat, toy
from scipy.special import softmax

from pyro_scale.objectives import Objective, collapsed, evaluate, mean_field, mean_field_at_z


def any_q_c(models, seed=0):
    """Return an arbitrary q(c|z,x): a function of ``At`` with values ``(s, n, k)``."""
    rng = np.random.default_rng(seed)
    a_nk, b_nk = rng.normal(0, 1, (2, len(models), models.k))
    return lambda at: softmax(a_nk + b_nk * np.sin(at.z_snd.sum(-1))[..., None], -1)


def test_d03_1_given_z_the_data_say_nothing_more_about_c(models):
    z_snd = np.random.default_rng(0).normal(0, 1.5, (20, len(models), models.d))
    at = models.at(z_snd)
    joint = [  # p(c|z,x) from the whole joint density of x, z and c
        np.log(models.pi_nk[:, c]) + at.log_p_z_given_c[..., c] + at.log_lik
        for c in range(models.k)
    ]
    posterior = softmax(np.stack(joint, -1), -1)
    ours = models.point(z_snd).log_gamma_nk.exp().numpy()
    p_c_x = mean_under_posterior(models, lambda at: at.gamma)
    for c in range(models.k):
        assert_identity(
            posterior[..., c].ravel(),
            ours[..., c].ravel(),
            terms=np.ones(ours[..., c].size),
            wrong={"p(c|x)": np.broadcast_to(p_c_x[:, c], ours.shape[:-1]).ravel()},
        )


def test_d03_2_under_the_true_posterior_c_and_z_are_dependent(models):
    p_c_x = mean_under_posterior(models, lambda at: at.gamma)
    information = mean_under_posterior(models, lambda at: kl(at.gamma, p_c_x))
    assert information.min() > 1e-3  # nats; 0 if c and z were independent given x


def test_d03_3_any_other_q_of_c_loses_its_divergence_from_gamma(models):
    q = any_q_c(models)

    def bound(at):
        """Return log [p(x,z,c) / (q(z|x) q(c|z,x))], averaged over c by a loop."""
        total = at.log_lik - at.log_q_z
        for c in range(models.k):
            inside = np.log(models.pi_nk[:, c]) + at.log_p_z_given_c[..., c]
            total = total + q(at)[..., c] * (inside - np.log(q(at)[..., c]))
        return total

    best = expected_terms(models, collapsed)
    loss = mean_under_q(models, lambda at: kl(q(at), at.gamma))
    reverse = mean_under_q(models, lambda at: kl(at.gamma, q(at)))
    assert_identity(
        best.sum(0) - mean_under_q(models, bound),
        loss,
        terms=best,
        wrong={"no loss": 0 * loss, "the divergence the other way round": reverse},
    )
    assert (loss > 0).all()


def test_d03_4_a_c_that_ignores_z_loses_at_least_as_much_as_the_best_such_c(models):
    best = expected_terms(models, collapsed)
    for g_nk in (g_star(models), g_bar(models), np.full_like(g_bar(models), 1 / models.k)):
        log_g = torch.tensor(np.log(g_nk))
        found = expected_terms(models, lambda at, log_g=log_g: mean_field(at, log_g))
        loss = mean_under_q(models, lambda at, g_nk=g_nk: kl(g_nk, at.gamma))
        wrong = {"the other way round": mean_under_q(models, lambda at, g=g_nk: kl(at.gamma, g))}
        assert_identity(best.sum(0) - found.sum(0), loss, terms=best, wrong=wrong)
        least = mean_under_q(models, lambda at: kl(g_star(models), at.gamma))
        assert (loss >= least * (1 - 1e-9)).all()


SAME = (
    ("collapsed", "Trace_ELBO", "marginalized"),
    ("model_enumerated", "TraceEnum_ELBO", "enumerated"),
    ("structured", "TraceEnum_ELBO", "enumerated"),
)


def at_its_own_z(formulation, estimator, c):
    """Return the loss of a program and the evaluation point at the z that it drew."""
    vae, cells = toy()
    with Watch() as watch:
        loss = Objective(vae, formulation, estimator, c)(cells)
    return vae, loss, evaluate(vae, cells, watch.value)


@pytest.mark.parametrize("case", SAME, ids=lambda case: case[0])
def test_d03_5_three_programs_are_one_objective_at_the_same_z(case):
    vae, loss, point = at_its_own_z(*case)
    five = collapsed(point)
    terms = torch.stack(five).sum(1, keepdim=True)
    wrong = {
        "log pi dropped": -(terms.sum() - five.log_p_c_n.sum()).reshape(1),
        "mean field": -mean_field_at_z(point).total().sum().reshape(1),
    }
    assert_identity(loss.reshape(1), -five.total().sum().reshape(1), terms=terms, wrong=wrong)
    ours, theirs = gradients(-five.total().sum(), vae), gradients(loss, vae)
    assert gradient_error(ours, theirs) < 1e-10
    assert gradient_error(gradients(-mean_field_at_z(point).total().sum(), vae), theirs) > 1e-3


@pytest.mark.parametrize("estimator", ["Trace_ELBO", "TraceEnum_ELBO"])
def test_d03_6_a_c_drawn_from_gamma_leaves_no_trace_in_the_value(estimator):
    values = set()
    for seed in range(5):
        vae, cells = toy()
        objective = Objective(vae, "structured", estimator, "sampled")
        torch.manual_seed(seed)  # draws another z and another c
        with Watch() as watch, Watch("c") as drawn:
            loss = objective(cells)
        values.add(tuple(drawn.value.tolist()))
        five = collapsed(evaluate(vae, cells, watch.value))
        terms = torch.stack(five).sum(1, keepdim=True)
        right = -five.total().sum().reshape(1)
        wrong = {"entropy of c dropped": right + five.minus_log_q_c_n.sum()}
        assert_identity(loss.reshape(1), right, terms=terms, wrong=wrong)
    assert len(values) > 1  # more than one c was drawn


def test_d03_6_its_gradient_is_right_on_average_only():
    vae, cells = toy()
    cells = repeat(cells, 100)
    objective = Objective(vae, "structured", "Trace_ELBO", "sampled")
    differences, without_pi = [], []
    for seed in range(100):
        torch.manual_seed(seed)
        with Watch() as watch:
            theirs = gradients(objective(cells), vae)
        five = collapsed(evaluate(vae, cells, watch.value))
        ours = gradients(-five.total().sum(), vae)
        wrong = gradients(five.log_p_c_n.sum(), vae)  # what dropping log p(c) would change
        differences.append([(theirs[name] - ours[name]).flatten()[0] for name in PRIOR])
        without_pi.append([wrong[name].flatten()[0] for name in PRIOR])
    differences = torch.tensor(differences)
    assert differences.abs().max() > 1e-2  # the gradients differ at each sample
    mean_shift = torch.tensor(without_pi).mean(0)
    assert_mean(differences, torch.zeros(3), wrong={"log pi dropped": mean_shift})


PRIOR = ("prior.logits_k", "prior.loc_kd", "prior.raw_var_kd")


def test_d03_7_the_structured_bound_needs_only_q_of_z_to_be_right(models):
    # With q(c|z,x) = p(c|z) the gap is KL(q(z|x) || p(z|x)) alone.
    truth = log_p_x(models)
    gap = truth - expected_terms(models, collapsed).sum(0)

    def divergence(at):
        return at.log_q_z - (at.log_p_z + at.log_lik - truth)

    right = mean_under_q(models, divergence)
    wrong = {"prior instead of posterior": right + mean_under_q(models, lambda at: at.log_lik)}
    terms = np.stack([truth, gap])
    assert_identity(gap, right, terms=terms, wrong=wrong)
