"""Chapter 9: the Poisson likelihood, and why the ladder is the same with it."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import five_terms, g_bar, g_star, kl, mean_under_q
from oracle_batches import batch, random_models
from oracle_checks import TOLERANCE, assert_identity
from oracle_posterior import log_p_x
from oracle_programs import Watch, expected_terms, models_of, toy
from scipy import special, stats

from pyro_scale.objectives import Objective, collapsed, evaluate, mean_field, scale, terms
from pyro_scale.programs import CellBatch


def test_d09_1_the_term_is_the_poisson_log_mass_with_its_factorial():
    vae, cells = toy(likelihood="poisson")
    z_nd = torch.randn(cells.n_cells, 2)
    log_rate_np = vae.likelihood.log_rate(z_nd, cells).detach()
    ours = terms.poisson_log_lik(log_rate_np, cells.x_np)
    right = stats.poisson.logpmf(cells.x_np.numpy(), log_rate_np.exp().numpy()).sum(-1)
    factorials = special.gammaln(cells.x_np.numpy() + 1).sum(-1)
    wrong = {"factorial dropped": right + factorials, "rate dropped": right + cells.depth_n.numpy()}
    assert_identity(ours, right, terms=right, wrong=wrong)
    of_the_program = vae.likelihood(z_nd, cells).log_prob(cells.x_np)
    assert_identity(of_the_program, right, terms=right, wrong=wrong)


def test_d09_1_it_sums_to_one_over_all_counts():
    log_rate = torch.tensor([[0.3, -0.4]])
    counts = torch.tensor(list(itertools.product(range(40), repeat=2))).double()
    total = terms.poisson_log_lik(log_rate, counts).exp().sum()
    without = (counts * log_rate - log_rate.exp()).sum(-1).exp().sum()
    assert abs(float(total) - 1) < TOLERANCE
    assert abs(float(without) - 1) > 0.1


@settings(derandomize=True, deadline=None, max_examples=50)
@given(scale_of_z=st.floats(0, 1e4), depth=st.floats(1, 1e6), seed=st.integers(0, 99))
def test_d09_2_the_rates_of_a_cell_add_up_to_its_depth(scale_of_z, depth, seed):
    torch.manual_seed(seed)
    vae, _ = toy(likelihood="poisson", seed=seed)
    z_nd = scale_of_z * torch.randn(3, 2)
    depth_n = torch.full((3,), depth).double()
    log_rate_np = vae.likelihood.log_rate(z_nd.double(), CellBatch(torch.ones(3, 8), depth_n))
    assert torch.isfinite(log_rate_np).all()
    assert torch.allclose(log_rate_np.exp().sum(-1), depth_n, rtol=1e-10)


def test_d09_3_it_is_a_multinomial_times_a_total_that_does_not_contain_z():
    models = batch(3, 1, "poisson")
    z_snd = np.random.default_rng(0).normal(0, 1.5, (20, len(models), 1))
    at = models.at(z_snd)
    depth_n = models.x_np.sum(-1)
    profile_snp = special.softmax(at.eta_snp, -1)
    x_np = models.x_np
    ways = special.gammaln(depth_n + 1) - special.gammaln(x_np + 1).sum(-1)
    multinomial = ways + special.xlogy(x_np, profile_snp).sum(-1)
    total_n = stats.poisson.logpmf(depth_n, depth_n)
    ours = models.point(z_snd).log_lik_n
    wrong = {"multinomial alone": multinomial.ravel()}
    right = (multinomial + total_n).ravel()
    assert_identity(ours.flatten(), right, terms=right, wrong=wrong)


def test_d09_4_the_ladder_holds_with_the_poisson_likelihood():
    models = batch(3, 1, "poisson")
    star, bar, truth = g_star(models), g_bar(models), log_p_x(models)
    log_bar = torch.tensor(np.log(bar))
    forms = (collapsed, mean_field, lambda at: mean_field(at, log_bar), scale)
    rungs = np.stack([truth, *(expected_terms(models, form).sum(0) for form in forms)])
    divergences = (
        mean_under_q(models, lambda at: at.log_q_z - (at.log_lik + at.log_p_z - truth)),
        mean_under_q(models, lambda at: kl(star, at.gamma)),
        kl(bar, star),
        mean_under_q(models, lambda at: kl(at.gamma, bar)),
    )
    terms_ = five_terms(models, "structured")
    for gap, divergence in zip(-np.diff(rungs, axis=0), divergences, strict=True):
        wrong = {"no gap": 0 * divergence, "half": divergence / 2}
        assert_identity(gap, divergence, terms=terms_, wrong=wrong)


def test_d09_5_the_lower_three_gaps_do_not_depend_on_the_likelihood():
    counts = random_models(30, 3, 1, seed=5, likelihood="poisson")
    binary = random_models(30, 3, 1, seed=6).change(
        **{name: getattr(counts, name) for name in ("pi_nk", "mu_nkd", "var_nkd", "m_nd", "s2_nd")}
    )
    both = []
    for models in (counts, binary):
        top = expected_terms(models, collapsed)
        both.append(top.sum(0) - expected_terms(models, scale).sum(0))
    likelihoods = [expected_terms(models, collapsed)[0] for models in (counts, binary)]
    wrong = {"likelihood included": both[1] + likelihoods[0] - likelihoods[1]}
    assert_identity(both[0], both[1], terms=top, wrong=wrong)
    first = [log_p_x(m) - expected_terms(m, collapsed).sum(0) for m in (counts, binary)]
    assert np.abs(first[0] - first[1]).max() > 0.1  # the first gap does depend on it


def test_d09_6_the_program_computes_the_closed_form_with_the_poisson_likelihood():
    vae, cells = toy(likelihood="poisson")
    with Watch() as watch:
        loss = Objective(vae, "structured", "TraceEnum_ELBO")(cells)
    five = collapsed(evaluate(vae, cells, watch.value))
    totals = torch.stack(five).sum(1, keepdim=True)
    factorials = torch.lgamma(cells.x_np + 1).sum()
    right = -five.total().sum().reshape(1)
    wrong = {"factorial dropped": right - factorials}
    assert_identity(loss.reshape(1), right, terms=totals, wrong=wrong)
    models = models_of(vae, cells)
    z_snd = watch.value.detach()[None].numpy()
    brute = models.at(z_snd)
    by_hand = (brute.log_lik + brute.log_p_z - brute.log_q_z).sum()
    assert_identity(-loss.reshape(1), [by_hand], terms=totals, wrong={"sign": [-by_hand]})


def test_d09_7_without_the_factorial_the_number_is_no_bound_of_log_p_x():
    models = batch(3, 1, "poisson")
    bound = expected_terms(models, collapsed).sum(0)
    factorials = special.gammaln(models.x_np + 1).sum(-1)
    assert (bound < log_p_x(models)).all()
    assert (log_p_x(models) < 0).all()  # a probability
    assert (bound + factorials > log_p_x(models)).any()
