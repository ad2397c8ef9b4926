"""Chapter 4: what SCALE computes by putting gamma(z) in the place of q(c|x)."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Models, five_terms, g_bar, g_star, kl, mean_under_q
from oracle_checks import TOLERANCE, assert_identity, assert_mean
from oracle_programs import expected_terms, models_of, repeat, toy
from pyro import poutine

from pyro_scale.objectives import REGISTRY, EvaluationPoint, collapsed, mean_field, scale

COMMON, LOG_P_Z, LOG_Q_C = [0, 2, 3], 1, 4


def mean_field_at_g_bar(models: Models):
    log_g_nk = torch.tensor(np.log(g_bar(models)))
    return lambda at: mean_field(at, log_g_nk)


def covariance(models: Models):
    """Return sum_c Cov_q(gamma_c(z), log p(z|c)), from the definition of a covariance."""
    total = 0.0
    for c in range(models.k):
        value_n = mean_under_q(models, lambda at, c=c: at.log_p_z_given_c[..., c])
        weight_n = g_bar(models)[:, c]

        def product(at, c=c, value_n=value_n, weight_n=weight_n):
            return (at.gamma[..., c] - weight_n) * (at.log_p_z_given_c[..., c] - value_n)

        total = total + mean_under_q(models, product)
    return total


def mutual_information(models: Models):
    """Return E_q KL(gamma(z) || gbar), the mutual information of c and z under q(z|x) p(c|z)."""
    g_nk = g_bar(models)
    return mean_under_q(models, lambda at: kl(at.gamma, g_nk))


def sum_over_c(weight, value):
    return sum(weight[..., c] * value[..., c] for c in range(weight.shape[-1]))


def test_d04_1_the_structured_joint_has_marginals_q_z_and_g_bar_but_is_not_their_product(models):
    ones = np.ones(len(models))
    at_z = models.point(models.m_nd[None]).log_gamma_nk.exp().numpy()[0]
    assert_identity(at_z.sum(-1), ones, terms=ones, wrong={"one c": at_z[:, 0]})
    g_nk = mean_under_q(models, lambda at: models.point(at.z_snd).log_gamma_nk.exp().numpy())
    for c in range(models.k):
        mass_n = mean_under_q(models, lambda at, c=c: at.gamma[..., c])
        wrong = {"flat gamma": ones / models.k, "gamma at the mean": at_z[:, c]}
        assert_identity(g_nk[:, c], mass_n, terms=ones, wrong=wrong)
    assert mutual_information(models).min() > 0.01  # zero if the joint were the product


def test_d04_2_three_terms_are_common_to_both_readings(models):
    structured = expected_terms(models, collapsed)
    factorised = expected_terms(models, mean_field_at_g_bar(models))
    truth = five_terms(models, "structured")
    at_g_star = five_terms(models, "mean_field", g_star(models))
    for row in COMMON:
        wrong = {"another term": truth[(row + 1) % 5]}
        if row == 2:
            wrong["log p(c) at g*"] = at_g_star[row]
        assert_identity(structured[row], truth[row], terms=truth, wrong=wrong)
        assert_identity(factorised[row], truth[row], terms=truth, wrong=wrong)


def test_d04_3_the_average_of_log_p_c_needs_only_the_weights_g_bar(models):
    g_nk, log_pi_nk = g_bar(models), np.log(models.pi_nk)
    direct = mean_under_q(models, lambda at: sum_over_c(at.gamma, log_pi_nk))
    by_weights = sum(g_nk[:, c] * log_pi_nk[:, c] for c in range(models.k))
    wrong = {"flat gamma": log_pi_nk.mean(-1), "prior weights": sum_over_c(models.pi_nk, log_pi_nk)}
    assert_identity(direct, by_weights, terms=log_pi_nk.T, wrong=wrong)


def test_d04_3_log_pi_of_a_c_drawn_by_the_program_has_that_average():
    vae, cells = toy()
    models = models_of(vae, cells)
    log_pi_k = vae.prior.log_pi_k.detach()
    _, guide = REGISTRY.build(vae, "structured", "sampled")
    many = 4000
    with torch.no_grad():
        c = poutine.trace(guide).get_trace(repeat(cells, many)).nodes["c"]["value"]
    samples = log_pi_k[c].view(many, cells.n_cells)
    exact = g_bar(models) @ log_pi_k.numpy()
    assert_mean(samples, exact, wrong={"flat gamma": np.full_like(exact, log_pi_k.mean())})


def test_d04_4_log_p_z_given_c_differs_by_a_covariance(models):
    structured = expected_terms(models, collapsed)
    factorised = expected_terms(models, mean_field_at_g_bar(models))
    assert_identity(
        structured[LOG_P_Z] - factorised[LOG_P_Z],
        covariance(models),
        terms=structured,
        wrong={"no difference": np.zeros(len(models)), "sign": -covariance(models)},
    )
    assert covariance(models).min() > 0


def test_d04_5_log_q_c_differs_by_the_mutual_information(models):
    structured = expected_terms(models, collapsed)
    factorised = expected_terms(models, mean_field_at_g_bar(models))
    information = mutual_information(models)
    assert_identity(
        factorised[LOG_Q_C] - structured[LOG_Q_C],
        information,
        terms=structured,
        wrong={"no difference": 0 * information, "the covariance": covariance(models)},
    )


def test_d04_6_scale_takes_one_term_from_each_reading(models):
    hybrid = expected_terms(models, scale)
    truth = five_terms(models, "scale")
    structured = expected_terms(models, collapsed)
    factorised = expected_terms(models, mean_field_at_g_bar(models))
    for row in range(5):
        wrong = {"another term": truth[(row + 1) % 5]}
        assert_identity(hybrid[row], truth[row], terms=truth, wrong=wrong)
    swap = {"structured": structured[LOG_P_Z]}
    assert_identity(hybrid[LOG_P_Z], factorised[LOG_P_Z], terms=truth, wrong=swap)
    swap = {"mean field": factorised[LOG_Q_C]}
    assert_identity(hybrid[LOG_Q_C], structured[LOG_Q_C], terms=truth, wrong=swap)


def test_d04_7_scale_is_below_each_reading_by_that_readings_one_term(models):
    hybrid = expected_terms(models, scale)
    structured = expected_terms(models, collapsed)
    factorised = expected_terms(models, mean_field_at_g_bar(models))
    to_structured, to_mean_field = covariance(models), mutual_information(models)
    assert_identity(
        structured.sum(0) - hybrid.sum(0),
        to_structured,
        terms=structured,
        wrong={"the thread's 'gamma = p(c|z)' reading": 0 * to_structured, "MI": to_mean_field},
    )
    assert_identity(
        factorised.sum(0) - hybrid.sum(0),
        to_mean_field,
        terms=structured,
        wrong={"the thread's 'c and z independent' reading": 0 * to_mean_field},
    )


def test_d04_8_the_three_terms_with_c_collapse_to_log_p_z(models):
    z_snd = np.random.default_rng(0).normal(0, 2, (50, len(models), models.d))
    at, five = models.at(z_snd), collapsed(models.point(z_snd))
    total = five.log_p_z_n + five.log_p_c_n + five.minus_log_q_c_n
    rows = np.abs(np.stack([five.log_p_z_n, five.log_p_c_n, five.minus_log_q_c_n]))
    one_term_short = {"log pi dropped": total - five.log_p_c_n, "log gamma dropped": rows[0]}
    assert_identity(total, at.log_p_z, terms=rows.max((0, 1)), wrong=one_term_short)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    k=st.integers(1, 4),
    d=st.integers(1, 3),
    scale_of_z=st.floats(0.0, 30.0),
    log_var=st.floats(np.log(1e-6), np.log(1e6)),
    logit=st.floats(-50, 50),
    seed=st.integers(0, 1000),
)
def test_d04_8_and_so_at_extreme_parameters(k, d, scale_of_z, log_var, logit, seed):
    rng = np.random.default_rng(seed)
    logits_k = np.zeros(k)
    logits_k[0] = logit
    log_pi_k = logits_k - np.logaddexp.reduce(logits_k)
    loc_kd, var_kd = rng.normal(0, 1, (k, d)), np.exp(log_var + rng.normal(0, 0.1, (k, d)))
    z_nd = scale_of_z * rng.normal(0, 1, (3, d))
    tensors = map(torch.tensor, (z_nd, z_nd, np.ones((3, d)), log_pi_k, loc_kd, var_kd))
    point = EvaluationPoint(*tensors, log_lik_n=torch.zeros(3))
    five = collapsed(point)
    assert five.log_p_z_n.shape == (3,)
    log_n = [-0.5 * (np.log(2 * np.pi * v) + (z_nd - m) ** 2 / v).sum(-1)
             for m, v in zip(loc_kd, var_kd, strict=True)]  # fmt: skip
    truth = np.logaddexp.reduce([a + b for a, b in zip(log_pi_k, log_n, strict=True)])
    total = (five.log_p_z_n + five.log_p_c_n + five.minus_log_q_c_n).numpy()
    size = 1 + np.abs(five.log_p_z_n.numpy())
    assert (np.abs(total - truth) <= TOLERANCE * size).all()
