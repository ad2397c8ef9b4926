"""Chapter 2: Jensen's inequality with any q(z,c|x), the five terms, the Gaussian integrals."""

import math

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import At, Models, five_terms, kl, mean_under_q
from oracle_checks import TOLERANCE, assert_identity
from oracle_posterior import log_p_x
from oracle_programs import expected_terms
from scipy.special import log_softmax

from pyro_scale.objectives import mean_field, mean_field_at_z, terms


def any_log_q_c(models: Models):
    """Return an arbitrary log q(c|z,x): a function of ``At`` with values ``(s, n, k)``."""
    a_nk, b_nk = np.random.default_rng(1).normal(0, 1, (2, len(models), models.k))
    return lambda at: log_softmax(a_nk + b_nk * np.tanh(at.z_snd.sum(-1))[..., None], -1)


def five_terms_of(models: Models, log_q_c) -> np.ndarray:
    """Return the five terms from their definition, by a grid in z and a loop over c."""
    rows = np.zeros((5, len(models)))
    for c in range(models.k):

        def weighted(f, c=c):
            return mean_under_q(models, lambda at: np.exp(log_q_c(at)[..., c]) * f(at))

        rows[0] += weighted(lambda at: at.log_lik)
        rows[1] += weighted(lambda at, c=c: at.log_p_z_given_c[..., c])
        rows[2] += weighted(lambda at, c=c: np.log(models.pi_nk[:, c]) + 0 * at.log_lik)
        rows[3] += weighted(lambda at: -at.log_q_z)
        rows[4] += weighted(lambda at, c=c: -log_q_c(at)[..., c])
    return rows


def test_d02_1_the_gap_of_any_q_is_its_divergence_from_the_posterior(models):
    log_q_c, truth = any_log_q_c(models), log_p_x(models)

    def divergence(at: At) -> np.ndarray:
        """Return log q(z,c|x) - log p(z,c|x), averaged over c."""
        total = 0.0
        for c in range(models.k):
            log_q = at.log_q_z + log_q_c(at)[..., c]
            log_joint = np.log(models.pi_nk[:, c]) + at.log_p_z_given_c[..., c] + at.log_lik
            total = total + np.exp(log_q_c(at)[..., c]) * (log_q - (log_joint - truth))
        return total

    def bound(at: At) -> np.ndarray:
        return mean_field_at_z(models.point(at.z_snd), torch.tensor(log_q_c(at))).total().numpy()

    gap = mean_under_q(models, divergence)
    brute = five_terms_of(models, log_q_c)
    only_z = gap - mean_under_q(models, lambda at: kl(np.exp(log_q_c(at)), at.gamma))
    wrong = {"the divergence of z alone": only_z, "log pi dropped": gap + brute[2]}
    assert_identity(truth - mean_under_q(models, bound), gap, terms=brute, wrong=wrong)
    assert (gap > 0).all()


def test_d02_2_the_bound_is_five_terms(models):
    log_q_c = any_log_q_c(models)

    def ours(at: At) -> np.ndarray:
        five = mean_field_at_z(models.point(at.z_snd), torch.tensor(log_q_c(at)))
        return torch.stack(torch.broadcast_tensors(*five), -1).numpy()

    found, truth = mean_under_q(models, ours).T, five_terms_of(models, log_q_c)
    for row in range(5):
        wrong = {"sign": -truth[row], "another term": truth[(row + 1) % 5]}
        assert_identity(found[row], truth[row], terms=truth, wrong=wrong)


def expectation(f, t: sp.Symbol) -> sp.Expr:
    """Return E[f(t)] for a standard normal t, by symbolic integration."""
    density = sp.exp(-(t**2) / 2) / sp.sqrt(2 * sp.pi)
    return sp.simplify(sp.integrate(sp.expand(f) * density, (t, -sp.oo, sp.oo)))


T, M, MU = sp.symbols("t m mu", real=True)
S, V = sp.symbols("sigma v", positive=True)
Z = M + S * T


def log_normal(z, mean, variance) -> sp.Expr:
    return -sp.log(2 * sp.pi * variance) / 2 - (z - mean) ** 2 / (2 * variance)


def test_d02_3_the_expected_square_is_variance_plus_squared_distance():
    square = expectation((Z - MU) ** 2, T)
    assert sp.simplify(square - (S**2 + (M - MU) ** 2)) == 0
    assert sp.simplify(square - (M - MU) ** 2) != 0  # sigma^2 forgotten
    for moment, value in ((T, 0), (T**2, 1)):
        assert expectation(moment, T) == value


def test_d02_4_the_expected_log_density_of_a_component_is_the_formula_of_the_code():
    symbolic = expectation(log_normal(Z, MU, V), T)
    by_hand = -(sp.log(2 * sp.pi * V) + (S**2 + (M - MU) ** 2) / V) / 2
    assert sp.simplify(symbolic - by_hand) == 0
    rng = np.random.default_rng(0)
    m, mu, s, v = rng.normal(size=(2, 50)).tolist() + rng.uniform(0.3, 2, (2, 50)).tolist()
    f = sp.lambdify((M, MU, S, V), symbolic)
    right = f(*map(np.array, (m, mu, s, v)))
    columns = [torch.tensor(column)[:, None] for column in (m, np.square(s), mu, v)]
    ours = torch.stack([
        terms.expected_log_p_z_given_c(a[None], b[None], c[None], d[None])[0, 0]
        for a, b, c, d in zip(*columns, strict=True)
    ])  # fmt: skip
    wrong = {
        "variance used as scale": f(*map(np.array, (m, mu, s, np.sqrt(v)))),
        "sigma used as variance": f(*map(np.array, (m, mu, np.sqrt(s), v))),
    }
    assert_identity(ours, right, terms=np.maximum(np.abs(right), 1), wrong=wrong)


def test_d02_5_the_entropy_of_q_of_z_is_the_formula_of_the_code():
    symbolic = -expectation(log_normal(Z, M, S**2), T)
    assert sp.simplify(symbolic - (1 + sp.log(2 * sp.pi * S**2)) / 2) == 0
    s = np.random.default_rng(0).uniform(0.1, 3, 50)
    right = sp.lambdify(S, symbolic)(s)
    ours = terms.entropy_z(torch.tensor(s**2)[:, None])
    wrong = {"minus the entropy": -right, "sigma used as variance": right - np.log(s) / 2}
    assert_identity(ours, right, terms=np.ones(50), wrong=wrong)


def test_d02_6_the_expected_log_density_is_minus_kl_minus_entropy():
    symbolic = expectation(log_normal(Z, M, S**2) - log_normal(Z, MU, V), T)
    entropy = (1 + sp.log(2 * sp.pi * S**2)) / 2
    by_hand = -(sp.log(2 * sp.pi * V) + (S**2 + (M - MU) ** 2) / V) / 2
    assert sp.simplify(sp.expand_log(by_hand - (-symbolic - entropy))) == 0
    assert sp.simplify(sp.expand_log(by_hand - (-symbolic))) != 0


def test_d02_6_and_so_for_the_registered_kl_of_the_estimator(models):
    point = models.point(models.m_nd[None])
    ours = point.expected_log_p_z_given_c_nk
    for c in range(models.k):
        q, p = (
            torch.distributions.Independent(torch.distributions.Normal(loc, var.sqrt()), 1)
            for loc, var in (
                (point.loc_nd, point.var_nd),
                (point.loc_kd[:, c], point.var_kd[:, c]),
            )
        )
        registered = torch.distributions.kl_divergence(q, p)
        reverse = torch.distributions.kl_divergence(p, q)
        assert_identity(
            ours[:, c],
            -registered - q.entropy(),
            terms=registered + q.entropy().abs() + 1,
            wrong={"KL(p||q)": -reverse - q.entropy(), "entropy dropped": -registered},
        )


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    log_var=st.tuples(*[st.floats(math.log(1e-6), math.log(1e6))] * 2),
    loc=st.tuples(*[st.floats(-50, 50)] * 2),
    k=st.integers(1, 4),
    d=st.integers(1, 3),
)
def test_d02_7_the_formulas_hold_from_variance_1e_minus_6_to_1e6(log_var, loc, k, d):
    var_q, var_p = (torch.full((2, d), math.exp(v)).double() for v in log_var)
    m, mu = (torch.full((2, d), x).double() for x in loc)
    loc_kd, var_kd = mu[:1].expand(k, d), var_p[:1].expand(k, d)
    found = terms.expected_log_p_z_given_c(m, var_q, loc_kd, var_kd)
    assert found.shape == (2, k)
    with mpmath.workdps(50):
        q, p = (mpmath.mpf(float(v[0, 0])) for v in (var_q, var_p))
        square = (q + (mpmath.mpf(loc[0]) - mpmath.mpf(loc[1])) ** 2) / p
        right = -d * (mpmath.log(2 * mpmath.pi * p) + square) / 2
        entropy = d * (1 + mpmath.log(2 * mpmath.pi * q)) / 2
    largest = float(d * square) + 30
    assert abs(float(found[0, 0]) - float(right)) <= TOLERANCE * largest
    assert abs(float(terms.entropy_z(var_q)[0]) - float(entropy)) <= TOLERANCE * 30
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("which", ["gbar", "g*"])
def test_d02_8_the_mean_field_closed_form_is_the_average_of_its_sampled_form(models, which):
    g_nk = mean_under_q(models, lambda at: at.gamma)
    log_g = torch.tensor(np.log(g_nk)) if which == "gbar" else None
    averaged = expected_terms(models, lambda at: mean_field_at_z(at, log_g))
    closed = expected_terms(models, lambda at: mean_field(at, log_g))
    for row in range(5):
        wrong = {"another term": closed[(row + 1) % 5]}
        assert_identity(averaged[row], closed[row], terms=closed, wrong=wrong)
    if which == "gbar":
        truth = five_terms(models, "mean_field", g_nk)
        wrong = {"log pi dropped": truth.sum(0) - truth[2]}
        assert_identity(closed.sum(0), truth.sum(0), terms=truth, wrong=wrong)
