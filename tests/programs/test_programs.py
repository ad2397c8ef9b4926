"""Prior, networks and programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_cells, small_vae

from pyro_scale.config import ModelConfig
from pyro_scale.objectives import REGISTRY, terms
from pyro_scale.programs import CellBatch, MixturePrior, MixtureVAE
from pyro_scale.programs.likelihoods import LogPoisson


def test_prior_is_on_the_simplex_and_positive_for_any_parameter():
    prior = MixturePrior(4, 3)
    for size in (1.0, 1e3, 1e6):
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.copy_(size * torch.randn_like(parameter))
        torch.testing.assert_close(prior.log_pi_k.exp().sum(), torch.tensor(1.0))
        assert (prior.var_kd >= prior.min_var).all()


def test_a_new_prior_is_uniform_of_unit_variance_over_a_positive_floor():
    prior = MixturePrior(n_components=4, n_latent=3).requires_grad_(False)
    torch.testing.assert_close(prior.log_pi_k.exp(), torch.full((4,), 0.25))
    torch.testing.assert_close(prior.var_kd, torch.ones(4, 3))
    prior.raw_var_kd.fill_(-1e3)
    assert (prior.var_kd > 0).all()


def test_gamma_and_g_star_equal_the_hand_derived_ones_for_several_samples():
    prior = MixturePrior(3, 2).double().requires_grad_(False)
    prior.set_components(torch.rand(3).double(), prior.loc_kd, torch.rand(3, 2).double() + 0.1)
    z, loc, log_var = torch.randn(3, 5, 4, 2).double()
    log_n = terms.log_p_z_given_c(z, prior.loc_kd, prior.var_kd)
    expected = terms.expected_log_p_z_given_c(loc, log_var.exp(), prior.loc_kd, prior.var_kd)
    for ours, by_hand in [
        (prior.log_responsibilities(z), terms.log_responsibilities(prior.log_pi_k, log_n)),
        (
            prior.log_optimal_q_c(loc, log_var.exp()),
            terms.log_optimal_q_c(prior.log_pi_k, expected),
        ),
    ]:
        torch.testing.assert_close(ours, by_hand)


def test_mixture_density_integrates_to_one():
    prior = MixturePrior(3, 2).double()
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = prior.mixture().log_prob(z).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-9)


def test_responsibilities_stay_exact_where_densities_underflow():
    prior = MixturePrior(2, 10)
    prior.set_components(
        torch.ones(2) / 2, torch.stack([torch.zeros(10), 8 * torch.ones(10)]), torch.ones(2, 10)
    )
    gamma = prior.log_responsibilities(torch.full((1, 10), 30.0)).exp()
    torch.testing.assert_close(gamma, torch.tensor([[0.0, 1.0]]))


def test_set_components_is_read_back():
    prior = MixturePrior(3, 2).double()
    pi, loc, var = (
        torch.tensor([0.2, 0.3, 0.5]).double(),
        torch.randn(3, 2).double(),
        torch.rand(3, 2).double() + 0.1,
    )
    prior.set_components(pi, loc, var)
    torch.testing.assert_close(prior.log_pi_k.exp(), pi)
    torch.testing.assert_close(prior.loc_kd, loc)
    torch.testing.assert_close(prior.var_kd, var)


def test_set_components_raises_small_variances_and_empty_weights():
    """To twice the floor, and to a tenth of a uniform share."""
    prior = MixturePrior(4, 2, min_var=0.01).double().requires_grad_(False)
    var = torch.tensor([1e-12, 0.015, 0.021, 1.0]).double()[:, None].repeat(1, 2)
    prior.set_components(torch.tensor([0.0, 0.01, 0.49, 0.5]).double(), prior.loc_kd, var)
    pi = torch.tensor([0.025, 0.025, 0.49, 0.5]).double()
    torch.testing.assert_close(prior.log_pi_k.exp(), pi / pi.sum())
    torch.testing.assert_close(prior.var_kd[:, 0], torch.tensor([0.02, 0.02, 0.021, 1.0]).double())


def test_variances_are_set_over_many_orders_of_magnitude():
    var = torch.logspace(-10, 4, 50, dtype=torch.float64)[:, None]
    prior = MixturePrior(50, 1, min_var=1e-12).double().requires_grad_(False)
    prior.set_components(torch.full((50,), 0.02).double(), torch.zeros_like(var), var)
    torch.testing.assert_close(prior.var_kd, var)


def test_depth_shifts_every_logit_and_starts_at_odds_in_proportion():
    vae = MixtureVAE(5, 2, 2, hidden=(4,), mean_log_depth=1.0)
    z = torch.randn(3, 2)
    logits = vae.likelihood.logits(z, CellBatch(torch.ones(3, 5), torch.full((3,), 2.0)))
    doubled = vae.likelihood.logits(z, CellBatch(torch.ones(3, 5), torch.full((3,), 4.0)))
    torch.testing.assert_close(doubled - logits, torch.full((3, 5), 2.0).log())


def test_poisson_rates_sum_to_the_depth():
    vae = MixtureVAE(5, 2, 2, hidden=(4,), likelihood="poisson")
    cells = CellBatch.from_counts(torch.randint(0, 5, (3, 5)).float() + 1)
    rates = vae.likelihood.mean(torch.randn(3, 2), cells)
    torch.testing.assert_close(rates.sum(-1), cells.depth_n)


def test_unknown_likelihood_is_named():
    with pytest.raises(ValueError, match="likelihood='gamma'"):
        MixtureVAE(5, 2, 2, likelihood="gamma")


def test_one_decoder_program_per_site_names():
    """Site names are the symbols, and the plate is "cells"."""
    vae, cells = small_vae(classifier=True), small_cells()
    sites = {}
    for name in ("collapsed", "structured", "scale"):
        model, guide = REGISTRY.build(vae, name)
        trace = pyro.poutine.trace(guide).get_trace(cells)
        sites[name] = {n for n, s in trace.nodes.items() if s["type"] == "sample"}
        replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace)).get_trace(cells)
        assert "x" in replayed.nodes
        assert replayed.nodes["x"]["is_observed"]
    assert sites["collapsed"] == {"cells", "z"}
    assert sites["structured"] == {"cells", "z", "c"}
    assert sites["scale"] == {"cells", "u", "z", "c"}


def test_with_prior_shares_networks_and_leaves_the_original():
    vae = small_vae()
    other = vae.with_prior(MixturePrior(1, 2))
    assert other.encoder is vae.encoder
    assert other.n_components == 1
    assert vae.n_components == 3


def test_every_parameter_is_in_the_state_dict_once():
    vae = small_vae(classifier=True)
    pointers = [t.data_ptr() for t in vae.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_a_classifier_of_another_width_than_the_prior_is_refused():
    vae = small_vae(classifier=True)
    vae.prior.resize(vae.n_components + 1)
    with pytest.raises(ValueError, match="give n_components"):
        vae.log_q_c(small_cells())


def test_log_poisson_is_poisson_and_keeps_rates_that_underflow():
    log_rate = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.poisson(torch.full((4, 3), 2.0, dtype=torch.float64))
    ours, torchs = LogPoisson(log_rate), dist.Poisson(log_rate.exp())
    torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x))
    wide = ours.expand((5, 4, 3))
    assert wide.batch_shape == (5, 4, 3)
    torch.testing.assert_close(wide.log_prob(x)[2], torchs.log_prob(x))
    assert wide.sample().shape == (5, 4, 3)
    (slope,) = torch.autograd.grad(ours.log_prob(x).sum(), log_rate)
    torch.testing.assert_close(slope, x - log_rate.exp())
    low = LogPoisson(torch.tensor([-1000.0]))
    torch.testing.assert_close(low.log_prob(torch.tensor([3.0])), torch.tensor([-3001.7918]))
    with pytest.raises(ValueError, match="support"):
        LogPoisson(torch.zeros(1), validate_args=True).log_prob(torch.tensor([0.5]))


@pytest.mark.parametrize("name", ["likelihood", "posterior_variance"])
def test_an_unknown_name_is_not_taken_for_another(name):
    with pytest.raises(ValueError, match=f"{name}='typo' is not known; choose"):
        MixtureVAE(5, 2, 2, hidden=(4,), **{name: "typo"})


def test_a_configuration_builds_the_encoder_that_it_names():
    vae = ModelConfig(2, 2, hidden=(4,), preset="plain", posterior_variance="exp").build_vae(5)
    assert vae.encoder.posterior_variance == "exp"
