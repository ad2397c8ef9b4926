"""The ladder of bounds: every gap is its divergence, by two roads."""

import numpy as np
import pytest
import torch

import pyro_scale as ps
from pyro_scale.comparison.quadrature import (
    converge,
    gauss_hermite,
    half_width,
    legendre,
    posterior_mode,
    trapezoid,
)
from pyro_scale.programs import MixtureVAE

GAPS = ("posterior", "optimal", "averaged", "scale")


@pytest.fixture
def model(cells):
    return ps.SCALE(cells, n_components=3, n_latent=2, hidden=(16,))


@pytest.mark.parametrize("n_latent", [1, 2])
@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_gaps_are_divergences_by_quadrature(counts, n_latent, likelihood):
    model = ps.SCALE(counts, n_components=3, n_latent=n_latent, hidden=(16,), likelihood=likelihood)
    rungs = ps.ladder(model, n_cells=6)
    frame = rungs.to_frame()
    assert rungs.max_discrepancy < 1e-8
    for name in GAPS:
        assert (frame[f"gap_{name}"] >= -1e-10).all()
        assert (frame[f"error_{name}"] < 1e-8).all()
    assert frame["gap_optimal"].max() > 0.01  # the identities are not 0 = 0
    assert frame["gap_scale"].max() > 0.01


def bimodal(n_latent, decoder_hidden=()):
    """A model whose posterior has two modes, 12 apart, of which an encoder sees none."""
    torch.manual_seed(12)
    vae = MixtureVAE(
        6, n_components=2, n_latent=n_latent, hidden=(5,), decoder_hidden=decoder_hidden
    ).double()
    with torch.no_grad():
        vae.prior.logits_k.zero_()
        vae.prior.loc_kd.zero_()
        vae.prior.loc_kd[:, 0] = torch.tensor([-6.0, 6.0])
        vae.prior.raw_var_kd.fill_(np.log(np.expm1(0.09)))
        vae.likelihood.peaks.weight.mul_(0.01 if not decoder_hidden else 1)
    return vae


@pytest.mark.parametrize("decoder_hidden", [(), (7,)])
@pytest.mark.parametrize("n_latent", [1, 2])
def test_log_p_x_of_a_posterior_with_two_modes(n_latent, decoder_hidden):
    """Against a grid over both modes, whose step is a twelfth of a component's deviation."""
    vae = bimodal(n_latent, decoder_hidden)
    x = np.random.default_rng(0).integers(0, 2, (3, 6)).astype(float)
    result = ps.ladder(vae, x, n_cells=3, warmup_steps=0)
    sides = [torch.arange(-9, 9, 0.025, dtype=torch.float64)]
    if n_latent == 2:
        sides.append(torch.arange(-3, 3, 0.025, dtype=torch.float64))
    z = torch.cartesian_prod(*sides).reshape(-1, n_latent)
    with torch.no_grad():
        logits = vae.likelihood.peaks(vae.likelihood.hidden(z))
        log_p_z = vae.prior.mixture().log_prob(z)
        grid = [
            float(
                (
                    -torch.nn.functional.binary_cross_entropy_with_logits(
                        logits, row.expand_as(logits), reduction="none"
                    ).sum(1)
                    + log_p_z
                ).logsumexp(0)
            )
            + n_latent * np.log(0.025)
            for row in torch.from_numpy(x)
        ]
    frame = result.to_frame()
    np.testing.assert_allclose(frame["log_px"], grid, atol=1e-8)
    # p(c|z) is a step where the encoder's q(z|x) lies: what does not converge there is told.
    for name in GAPS:
        discrepancy = (frame[f"gap_{name}"] - frame[f"kl_{name}"]).abs().max()
        assert discrepancy <= frame[f"error_{name}"].max() + 1e-12
    if n_latent == 1 and not decoder_hidden:
        assert result.max_discrepancy < 1e-8


def test_the_price_of_scale_is_a_jeffreys_divergence(model):
    """L_str - E[L_SCALE] is the sum of three divergences, which are computed without bounds."""
    frame = ps.ladder(model, n_cells=6).to_frame()
    price = frame["structured"] - frame["scale"]
    assert price.max() > 0.01
    total = frame[["kl_optimal", "kl_averaged", "kl_scale"]].sum(axis=1)
    np.testing.assert_allclose(price, total, atol=1e-8)


def test_monte_carlo_agrees_with_quadrature_within_its_errors(model, monkeypatch):
    exact = ps.ladder(model, n_cells=5, seed=2).to_frame()
    import sys

    module = sys.modules["pyro_scale.comparison.ladder"]
    monkeypatch.setattr(
        module, "by_quadrature", lambda vae, cells: module.by_monte_carlo(vae, cells, 4000)
    )
    sampled = module.ladder(model, n_cells=5, seed=2).to_frame()
    for name in GAPS[1:]:
        z = (sampled[f"gap_{name}"] - exact[f"gap_{name}"]) / sampled[f"error_{name}"]
        assert z.abs().max() < 5.5  # 15 scores at a failure rate of 2e-5
        z = (sampled[f"gap_{name}"] - sampled[f"kl_{name}"]) / sampled[f"error_{name}"]
        assert z.abs().max() < 5.5


def test_beyond_two_dimensions_errors_khat_and_doubling_are_told(cells):
    model = ps.SCALE(cells, n_components=3, n_latent=4, hidden=(16,))
    rungs = ps.ladder(model, n_cells=6, n_samples=500)
    frame = rungs.to_frame()
    assert rungs.settings["method"].startswith("Monte Carlo, 500")
    assert frame["kl_posterior"].isna().all()
    assert np.isfinite(frame[["khat", "doubling"]]).all().all()
    assert set(rungs.summary().index) == {f"gap_{name}" for name in GAPS}


def test_khat_is_that_of_the_largest_weights(cells):
    """A q(z|x) that is made far too narrow has weights without a mean."""
    model = ps.SCALE(cells, n_components=3, n_latent=4, hidden=(16,))
    model.train(20, progress_bar=False)
    before = ps.ladder(model, n_cells=6, n_samples=1000).to_frame()["khat"]
    with torch.no_grad():
        model.vae.encoder.raw_var.bias.sub_(5)
    narrow = ps.ladder(model, n_cells=6, n_samples=1000).to_frame()["khat"]
    assert before.median() < 0.7
    assert narrow.median() > 0.7


def test_figure_stacks_four_gaps_over_every_cell(model):
    figure = ps.ladder(model, n_cells=5).plot()
    assert len(figure.axes[0].patches) == 4 * 5


def test_too_few_draws_are_refused(model):
    with pytest.raises(ValueError, match="n_samples=10"):
        ps.ladder(model, n_samples=10)
    with pytest.raises(ValueError, match="warmup_steps=-1 must be at least zero"):
        ps.ladder(model, warmup_steps=-1)


@pytest.mark.parametrize("rule", [gauss_hermite, legendre, trapezoid])
def test_rules_integrate_a_gaussian_and_its_moments(rule):
    x, log_w = rule(96, 2)
    density = torch.exp(-0.5 * x.square().sum(-1)) / (2 * np.pi)
    weight = log_w.exp() * density
    assert float(weight.sum()) == pytest.approx(1, abs=1e-12)
    assert float((weight * x[:, 0] ** 2 * x[:, 1] ** 2).sum()) == pytest.approx(1, abs=1e-12)


def test_convergence_is_reported_when_it_is_not_reached():
    value, change = converge(lambda n: torch.tensor([1.0 / n]).double(), 2, 16, 1e-6)
    assert float(value) == 1 / 16
    assert float(change) == pytest.approx(1 / 16)


def test_newton_finds_the_mode_of_a_gaussian():
    a = torch.tensor([[2.0, 0.3], [0.3, 0.5]]).double()
    centre = torch.tensor([3.0, -1.0]).double()
    mode, root = posterior_mode(
        lambda z: -0.5 * ((z - centre) @ a * (z - centre)).sum(-1), torch.zeros(1, 2).double()
    )
    torch.testing.assert_close(mode[0], centre)
    torch.testing.assert_close(root[0] @ root[0].T, torch.linalg.inv(a))


def test_the_box_grows_until_the_function_has_decayed():
    """A first version cut off a posterior with a wide tail, alike on both sides of the identity."""
    assert half_width(lambda x: -0.5 * x.square().sum(-1), 2) == 9
    assert half_width(lambda x: -0.5 * (x / 10).square().sum(-1), 1) == 144


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_log_p_x_given_z_of_a_linear_decoder_is_concave(counts, likelihood):
    """So that p(x|z) p(z|c) has one mode. With a hidden layer it is not concave."""

    def least_above_chord(decoder_hidden):
        model = ps.SCALE(
            counts, 2, 2, hidden=(8,), likelihood=likelihood, decoder_hidden=decoder_hidden
        )
        vae = model.vae.double().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter in (*vae.likelihood.hidden.parameters(), vae.likelihood.peaks.weight):
            parameter.normal_(generator=generator)
        cells = ps.data.dense_cells(model.counts()[:1], dtype=torch.float64)
        a_m1d, b_m1d = 3 * torch.randn(2, 500, 1, 2, dtype=torch.float64, generator=generator)

        def log_p(z_m1d):
            return vae.likelihood(z_m1d, cells).log_prob(cells.x_np)

        chord = (log_p(a_m1d) + log_p(b_m1d)) / 2
        return float((log_p((a_m1d + b_m1d) / 2) - chord).min())

    assert least_above_chord(()) > -1e-9
    assert least_above_chord((7,)) < 0
