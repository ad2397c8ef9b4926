"""Chapter 5, second half: when the gaps vanish, and where gamma or g* may be detached."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DOUBLING, NODES, Models, five_terms, g_bar, g_star, standard_grid
from oracle_batches import batch, random_models
from oracle_checks import TOLERANCE, assert_identity
from oracle_programs import expected_terms

from pyro_scale.objectives import EvaluationPoint, collapsed, mean_field, scale


def gaps(models: Models) -> np.ndarray:
    """Return L_str - L_mf(g*), L_mf(g*) - L_mf(gbar) and L_mf(gbar) - E[L_scale], ``(3, n)``."""
    rungs = [five_terms(models, "structured").sum(0)]
    rungs += [five_terms(models, "mean_field", g(models)).sum(0) for g in (g_star, g_bar)]
    return -np.diff([*rungs, five_terms(models, "scale").sum(0)], axis=0)


def size(models: Models) -> float:
    return np.abs(five_terms(models, "structured")).max()


@pytest.mark.parametrize("case", ["one component", "identical components"])
def test_d05_10_the_lower_gaps_vanish_when_gamma_is_constant(case):
    models = random_models(20, 1 if case == "one component" else 3, 1, seed=3)
    if models.k > 1:
        same = {f: np.repeat(getattr(models, f)[:, :1], 3, 1) for f in ("mu_nkd", "var_nkd")}
        models = models.change(**same)
    assert np.abs(gaps(models)).max() <= TOLERANCE * size(models)
    ours = [expected_terms(models, form).sum(0) for form in (collapsed, mean_field, scale)]
    assert np.ptp(ours, axis=0).max() <= TOLERANCE * size(models)


def test_d05_10_and_only_then(models):
    assert gaps(models).min() > 0.01  # gamma is not constant in the random models
    nearly = models.change(mu_nkd=models.mu_nkd[:, :1] + 1e-3 * models.mu_nkd)
    same = np.repeat(models.var_nkd[:, :1], models.k, 1)
    assert gaps(nearly.change(var_nkd=same)).sum(0).min() > 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    k=st.integers(1, 4),
    log_var=st.floats(np.log(1e-6), np.log(1e6)),
    logit=st.floats(-50, 50),
    seed=st.integers(0, 99),
)
def test_d05_10_at_extreme_parameters_with_constant_gamma_scale_is_collapsed(
    k, log_var, logit, seed
):
    rng = np.random.default_rng(seed)
    z_nd = torch.tensor(rng.normal(0, 3, (5, 2)))
    log_pi_k = torch.tensor([logit] + [0.0] * (k - 1)).double().log_softmax(-1)
    loc_kd = torch.tensor(rng.normal(size=(1, 2))).expand(k, 2)
    var_kd = torch.full((k, 2), float(np.exp(log_var)), dtype=torch.float64)
    point = EvaluationPoint(
        z_nd, z_nd, torch.ones(5, 2).double(), log_pi_k, loc_kd, var_kd, torch.zeros(5)
    )
    for form in (collapsed, mean_field, scale):
        assert torch.allclose(form(point).minus_log_q_c_n, mean_field(point).minus_log_q_c_n)
        assert torch.isfinite(form(point).total()).all()
    rounding = TOLERANCE * float(point.log_p_z_given_c_nk.abs().max() + abs(logit))
    assert torch.allclose(point.log_gamma_nk, log_pi_k.expand(5, k), rtol=0, atol=rounding)


def fisher_information(models: Models) -> np.ndarray:
    """Return sum_c |grad gamma_c|^2 / gamma_c at the mean of q(z|x), by central differences."""
    step, total = 1e-5, 0.0
    for d in range(models.d):
        shift = step * np.eye(models.d)[d]
        ahead, behind = (models.at(models.m_nd[None] + sign * shift).gamma[0] for sign in (1, -1))
        here = models.at(models.m_nd[None]).gamma[0]
        total = total + (((ahead - behind) / (2 * step)) ** 2 / here).sum(-1)
    return total


def test_d05_11_for_a_narrow_q_the_price_is_sigma_squared_times_a_fisher_information(models):
    information = fisher_information(models)
    errors = []
    for sd in (1e-1, 1e-2):
        narrow = models.change(s2_nd=np.full_like(models.s2_nd, sd**2))
        scaled = gaps(narrow) / sd**2
        expected = np.stack([information / 2, 0 * information, information / 2])
        errors.append(np.abs(scaled - expected).max(0) / (1 + information))
    # The error of scaled is O(sigma^2): a tenth of sigma gives a hundredth of the error.
    assert np.median(errors[1] / errors[0]) < 0.02
    assert errors[1].max() < 1e-2
    assert np.abs(scaled[0] - information).max() > 0.1  # wrong: the whole price in one gap


def toy(distance: float, mean: float, sd: float = 1.0) -> Models:
    """Return two unit components of equal weight, ``distance`` apart, and q = N(mean, sd^2)."""
    one = random_models(1, 2, 1, seed=0)
    mu_nkd = np.array([[[-distance / 2], [distance / 2]]])
    return one.change(
        pi_nk=np.full((1, 2), 0.5),
        mu_nkd=mu_nkd,
        var_nkd=np.ones((1, 2, 1)),
        m_nd=np.full((1, 1), mean),
        s2_nd=np.full((1, 1), sd**2),
    )


def fine(models: Models) -> float:
    """Return L_str - E[L_scale], on a grid fine enough for steep responsibilities."""
    before = NODES[1]
    NODES[1] = 4001
    try:
        return float(gaps(models).sum())
    finally:
        NODES[1] = before


def test_d05_12_inside_one_component_the_price_vanishes_with_separation():
    prices = [fine(toy(d, mean=d / 2, sd=0.7)) for d in (2, 4, 6, 8)]
    assert prices == pytest.approx([0.230, 0.053, 8.1e-4, 1.2e-6], rel=0.02)


def test_d05_13_separated_clusters_alone_are_not_enough_the_price_grows_when_q_straddles():
    distances = (1, 3, 10, 30)
    prices = np.array([fine(toy(d, mean=0.0)) for d in distances])
    assert prices == pytest.approx([0.2066, 1.0335, 3.9260, 11.9465], abs=1e-4)
    assert (np.diff(prices) > 0).all()  # the false claim says that it falls
    assert prices[-1] == pytest.approx(30 / np.sqrt(2 * np.pi), rel=0.01)
    # gamma is nearly a step function: one-hot at almost every z, yet 0.5 on average over z.
    averaged = g_bar(toy(30, mean=0.0))
    assert averaged[0, 0] == pytest.approx(0.5, abs=1e-6)


def leaves_of(models: Models) -> dict[str, torch.Tensor]:
    fields = {
        "logits": np.log(models.pi_nk),
        "mu": models.mu_nkd,
        "var": models.var_nkd,
        "m": models.m_nd,
        "s2": models.s2_nd,
    }
    return {name: torch.tensor(value, requires_grad=True) for name, value in fields.items()}


def point_at(leaves: dict[str, torch.Tensor], t_sd: np.ndarray) -> EvaluationPoint:
    """Return the evaluation point at z = m + sigma t, a function of the leaves; log p(x|z) is 0."""
    z_snd = leaves["m"] + leaves["s2"].sqrt() * torch.tensor(t_sd)[:, None, :]
    log_pi_nk = leaves["logits"].log_softmax(-1)
    lik = torch.zeros(z_snd.shape[:2])
    return EvaluationPoint(
        z_snd, leaves["m"], leaves["s2"], log_pi_nk, leaves["mu"], leaves["var"], lik
    )


def gradient(value: torch.Tensor, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the gradient with respect to all leaves as one vector per model, ``(q, n)``."""
    n = len(leaves["m"])
    inputs = tuple(leaves.values())
    grads = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    rows = [
        torch.zeros_like(leaf) if grad is None else grad
        for grad, leaf in zip(grads, inputs, strict=True)
    ]
    return torch.cat([row.reshape(n, -1).T for row in rows])


def assert_same_gradient(a: torch.Tensor, b: torch.Tensor, *, wrong: torch.Tensor) -> None:
    """Compare gradients ``(q, n)`` per model, relative to the model's largest entry."""
    scale_n = b.abs().max(0).values
    assert ((a - b).abs().max(0).values / scale_n).max() <= TOLERANCE
    assert (((a - wrong).abs().max(0).values / scale_n) > 1000 * TOLERANCE).double().mean() >= 0.9


def test_d05_14_fishers_identity_gamma_may_be_detached_in_the_structured_bound(models):
    leaves = leaves_of(models)
    at = point_at(leaves, np.random.default_rng(0).normal(size=(3, models.d)))
    joint_nk = at.log_p_z_given_c_nk + at.log_pi_k
    five = collapsed(at)
    with_c = five.log_p_z_n + five.log_p_c_n + five.minus_log_q_c_n
    detached = (at.log_gamma_nk.exp().detach() * joint_nk).sum(-1)
    flat = joint_nk.mean(-1)
    assert_same_gradient(
        gradient(with_c, leaves), gradient(detached, leaves), wrong=gradient(flat, leaves)
    )


def test_d05_15_g_star_may_be_detached_in_its_own_bound(models):
    leaves = leaves_of(models)
    at = point_at(leaves, np.zeros((1, models.d)))
    total = gradient(mean_field(at).total(), leaves)
    held = gradient(mean_field(at, at.log_g_star_nk.detach()).total(), leaves)
    log_bar = torch.tensor(np.log(g_bar(models)))
    wrong = gradient(mean_field(at, log_bar).total(), leaves)
    assert_same_gradient(total, held, wrong=wrong)


def test_d05_16_gamma_may_not_be_detached_in_scale_not_even_on_average():
    models = batch(3, 1)
    leaves = leaves_of(models)
    t_sd, w_s = standard_grid(1, NODES[1])
    at = point_at(leaves, t_sd)
    weights = torch.tensor(w_s)[:, None]
    expected_nk = at.expected_log_p_z_given_c_nk + at.log_pi_k
    log_gamma = at.log_gamma_nk.detach()
    held = (log_gamma.exp() * (expected_nk - log_gamma)).sum(-1) + scale(at).minus_log_q_z_n
    full = gradient(weights * scale(at).total(), leaves)
    without = gradient(weights * held, leaves)

    def bound(step: float) -> np.ndarray:
        moved = models.change(mu_nkd=models.mu_nkd + step * np.eye(3)[0][:, None])
        return five_terms(moved, "scale")[1:].sum(0)

    step = 1e-4
    by_differences = (bound(step) - bound(-step)) / (2 * step)
    row = 3  # the first component's mean, after three logits
    error = np.abs(by_differences - full[row].numpy())
    assert error.max() < 10 * step**2 + DOUBLING / step
    assert (np.abs(by_differences - without[row].numpy()) > 1e-4).mean() >= 0.9
    assert_identity(
        full[row], full[row], terms=full.abs().max(0).values, wrong={"detached": without[row]}
    )
