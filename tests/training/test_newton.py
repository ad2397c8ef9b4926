"""Newton sweeps, against scipy's optima, and training that starts from them."""

import logging

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import adjusted_rand_score
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_scale as ps
from pyro_scale.config import ModelConfig
from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.programs import MixturePrior
from pyro_scale.training import (
    GaussianPosterior,
    NewtonSweeps,
    TrainingConfig,
    build_vae,
    components_from_posteriors,
    fit_encoder,
    newton_start,
    reason_against_sweeps,
    start,
)
from pyro_scale.training.initialization import standard_normal_prior

N, P, D = 50, 20, 2
RIDGE = 3.0


def _cells(likelihood, *, batches=False, seed=0):
    adata = ps.simulate(N, P, 2, density=0.4, counts=likelihood == "poisson", seed=seed)
    adata.obs["donor"] = np.where(np.arange(N) % 2, "b", "a")
    binary = likelihood == "bernoulli"
    return CountMatrix.from_anndata(adata, binary=binary, batch_key="donor" if batches else None)


def _vae(counts, likelihood, preset="default"):
    names = ("a", "b") if counts.batch is not None else None
    config = ModelConfig(
        2,
        D,
        hidden=(8,),
        likelihood=likelihood,
        preset=preset,
        batch_key="donor" if names else None,
        batches=names,
    )
    torch.manual_seed(0)
    return build_vae(counts, config).double()


def _sweeps(counts, vae, seed=0):
    z_nd = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return NewtonSweeps(vae, counts, z_nd, decoder_precision=RIDGE, seed=0)


def _log_p_x(vae, counts, z_nd):
    """log p(x|z) by the program's own likelihood, in which the normalizer of z is not constant."""
    cells = sparse_cells(counts).to(torch.float64).dense()
    return vae.likelihood(z_nd, cells).log_prob(cells.x_np)


CASES = [
    ("bernoulli", "default", False),
    ("bernoulli", "default", True),
    ("bernoulli", "plain", False),
    ("poisson", "default", False),
    ("poisson", "default", True),
]


@pytest.mark.parametrize(("likelihood", "preset", "batches"), CASES)
def test_steps_for_peaks_reach_the_optimum_of_the_penalized_likelihood(likelihood, preset, batches):
    counts = _cells(likelihood, batches=batches)
    vae = _vae(counts, likelihood, preset)
    sweeps = _sweeps(counts, vae)
    z_nd, start_pr = sweeps.loc_nd, sweeps.start_pr.clone()
    for _ in range(60 if likelihood == "bernoulli" else 12_000 if batches else 2_000):
        # Poisson: only their priors fix what all biases, or all offsets, share, and do so slowly.
        sweeps.step_peaks((torch.arange(P), z_nd))
    sweeps.write_decoder(vae)
    reached = sweeps.w_pr.clone()

    def loss(flat):
        w_pr = torch.tensor(flat.reshape(start_pr.shape), requires_grad=True)
        decoder = {"peaks.weight": w_pr[:, :-1], "peaks.bias": w_pr[:, -1]}
        cells = sparse_cells(counts).to(torch.float64).dense()
        p_x = torch.func.functional_call(vae.likelihood, decoder, (z_nd, cells))
        penalty = (sweeps.precision_r * (w_pr - start_pr).square()).sum() / 2
        value = penalty - p_x.log_prob(cells.x_np).sum()
        value.backward()
        return value.item(), w_pr.grad.numpy().ravel()

    best = minimize(loss, start_pr.numpy().ravel(), jac=True, method="L-BFGS-B", tol=1e-14)
    at_reached, gradient = loss(reached.numpy().ravel())
    assert abs(gradient).max() < 1e-6
    assert at_reached == pytest.approx(best.fun, rel=1e-9)


@pytest.mark.parametrize(("likelihood", "preset", "batches"), CASES)
def test_steps_for_cells_reach_the_posterior_mode_and_its_curvature(likelihood, preset, batches):
    counts = _cells(likelihood, batches=batches)
    vae = _vae(counts, likelihood, preset)
    sweeps = _sweeps(counts, vae)
    sweeps.step_peaks((torch.arange(P), sweeps.loc_nd))
    prior = MixturePrior(1, D).double().requires_grad_(False)
    prior.set_components(torch.ones(1), torch.tensor([[0.5, -1.0]]), torch.tensor([[0.7, 2.0]]))
    sweeps.slope = None if sweeps.slope is None else torch.tensor(0.8).double()
    held = None if sweeps.slope is None else sweeps.slope.clone()
    for _ in range(40):
        sweeps.step_cells(prior)
        if held is not None:
            sweeps.slope = held.clone()  # it is fitted too; here the cells alone are
    sweeps.write_decoder(vae)

    def log_joint(z_nd):
        return _log_p_x(vae, counts, z_nd) + prior.mixture().log_prob(z_nd)

    z_nd = sweeps.posterior.loc_nd.clone().requires_grad_(True)
    (gradient_nd,) = torch.autograd.grad(log_joint(z_nd).sum(), z_nd)
    assert gradient_nd.abs().max() < 1e-8

    def of_first(z_d):
        return log_joint(torch.cat([z_d[None], z_nd[1:].detach()]))[0]

    hessian_dd = torch.autograd.functional.hessian(of_first, z_nd[0].detach())
    precision_dd = sweeps.posterior.precision_ndd[0]
    if likelihood == "bernoulli":  # with Poisson, each half of the peaks has its own normalizer
        torch.testing.assert_close(precision_dd, -hessian_dd)
    else:
        torch.testing.assert_close(precision_dd, -hessian_dd, rtol=1e-6, atol=1e-6)
    best = minimize(lambda z: -of_first(torch.tensor(z)).item(), np.zeros(D), tol=1e-12)
    np.testing.assert_allclose(z_nd[0].detach(), best.x, atol=1e-4)


def test_the_depth_slope_reaches_its_optimum():
    counts = _cells("bernoulli")
    vae = _vae(counts, "bernoulli")
    sweeps = _sweeps(counts, vae)
    for _ in range(60):
        sweeps.sweep(standard_normal_prior(D).double())
    for _ in range(30):
        z_nd = sweeps.loc_nd
        sweeps.step_cells(standard_normal_prior(D).double())
        sweeps.loc_nd = z_nd  # the slope alone
    sweeps.write_decoder(vae)
    slope = vae.likelihood.depth_slope
    (gradient,) = torch.autograd.grad(_log_p_x(vae, counts, sweeps.loc_nd).sum(), slope)
    assert abs(gradient) < 1e-6


def test_standardizing_does_not_change_the_logits():
    counts = _cells("bernoulli")
    vae = _vae(counts, "bernoulli")
    sweeps = _sweeps(counts, vae)
    sweeps.sweep(standard_normal_prior(D).double())
    sweeps.write_decoder(vae)
    cells = sparse_cells(counts).to(torch.float64)
    before = vae.likelihood.logits(sweeps.loc_nd, cells).detach().clone()
    sweeps.standardize()
    sweeps.write_decoder(vae)
    torch.testing.assert_close(vae.likelihood.logits(sweeps.loc_nd, cells).detach(), before)
    posterior = sweeps.posterior
    second = posterior.loc_nd.square().mean(0) + posterior.var_nd.mean(0)
    torch.testing.assert_close(posterior.loc_nd.mean(0), torch.zeros(D).double())
    torch.testing.assert_close(second, torch.ones(D).double())


def test_peaks_that_are_left_out_are_fitted_at_the_end():
    counts = _cells("bernoulli")
    sweeps = NewtonSweeps(
        _vae(counts, "bernoulli"),
        counts,
        torch.randn(N, D).double(),
        decoder_precision=RIDGE,
        seed=0,
        max_peaks=8,
    )
    for _ in range(5):
        sweeps.sweep(standard_normal_prior(D).double())
    open_p = np.asarray(counts.x.sum(0)).ravel()
    fitted = (sweeps.w_pr[:, :-1] != 0).any(1).numpy()
    assert fitted.sum() == 8
    assert open_p[fitted].min() >= open_p[~fitted].max()
    sweeps.include_all_peaks()
    assert (sweeps.w_pr[:, :-1] != 0).any(1).all()
    assert len(sweeps.peaks) == P


def test_the_encoder_is_fitted_by_the_divergence_from_the_posterior():
    """The minimum of the loss over diagonal Gaussians is the mode, and one over the precisions."""
    counts = _cells("bernoulli")
    vae = _vae(counts, "bernoulli").float()
    factor = torch.randn(D, 3 * D)
    precision_dd = factor @ factor.T
    posterior = GaussianPosterior(
        torch.tensor([[0.7, -0.4]]).expand(N, D), precision_dd.expand(N, D, D)
    )
    fit_encoder(vae, sparse_cells(counts), posterior, mask_rate=0.5, seed=0)
    loc_nd, var_nd = vae.encoder(sparse_cells(counts))
    torch.testing.assert_close(loc_nd.mean(0), posterior.loc_nd[0], atol=0.03, rtol=0)
    torch.testing.assert_close(var_nd.mean(0), 1 / precision_dd.diagonal(), atol=0.03, rtol=0.1)


def test_the_encoders_loss_is_the_divergence_of_gaussians_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(6, D, 3 * D, generator=generator, dtype=torch.float64)
    posterior = GaussianPosterior(
        torch.randn(6, D, generator=generator, dtype=torch.float64), factor @ factor.mT
    )
    loc_nd = torch.randn(6, D, generator=generator, dtype=torch.float64).requires_grad_(True)
    var_nd = torch.rand(6, D, generator=generator, dtype=torch.float64).requires_grad_(True)
    q_z = MultivariateNormal(loc_nd, torch.diag_embed(var_nd))
    p_z = MultivariateNormal(posterior.loc_nd, precision_matrix=posterior.precision_ndd)
    found, expected = start._divergence(loc_nd, var_nd, posterior), kl_divergence(q_z, p_z)
    constant = (D + posterior.precision_ndd.logdet()) / 2
    torch.testing.assert_close(found - constant, expected)
    for value in (loc_nd, var_nd):
        (of_ours,) = torch.autograd.grad(found.sum(), value, retain_graph=True)
        (of_theirs,) = torch.autograd.grad(expected.sum(), value, retain_graph=True)
        torch.testing.assert_close(of_ours, of_theirs)


@pytest.mark.parametrize("preset", ["default", "plain"])
def test_the_encoder_learns_each_cell_posterior(preset):
    adata = ps.simulate(400, 200, 3, density=0.15, fold=8.0, seed=0)
    counts = CountMatrix.from_anndata(adata)
    vae = build_vae(counts, ModelConfig(3, D, hidden=(32, 16), preset=preset))
    newton_start(vae, counts, TrainingConfig(newton_sweeps=8))
    loc_nd = vae.eval().encoder(sparse_cells(counts))[0].detach()
    sweeps = NewtonSweeps(vae, counts, loc_nd, decoder_precision=10.0, seed=0)
    sweeps.w_pr = torch.cat(
        [vae.likelihood.peaks.weight, vae.likelihood.peaks.bias[:, None]], 1
    ).detach()
    for _ in range(10):
        sweeps.step_cells(vae.prior)
    residual = (loc_nd - sweeps.loc_nd).var() / sweeps.loc_nd.var()
    assert residual < 0.3


def test_pooled_components_maximize_the_expected_prior_density():
    generator = torch.Generator().manual_seed(0)
    loc_nd = torch.randn(60, D, generator=generator)
    loc_nd += 4 * torch.eye(D)[torch.arange(60) % D]
    posterior = GaussianPosterior(loc_nd, 5 * torch.eye(D).expand(60, D, D))
    prior = MixturePrior(2, D).requires_grad_(False)

    def bound():
        nearest = prior.log_pi_k - 0.5 * (
            prior.var_kd.log() + ((loc_nd[:, None] - prior.loc_kd).square() + 0.2) / prior.var_kd
        ).sum(-1)
        return nearest.logsumexp(1).mean()

    before = bound()
    for _ in range(20):
        prior.set_components(*components_from_posteriors(prior, posterior))
        assert bound() >= before - 1e-5
        before = bound()
    torch.testing.assert_close(prior.var_kd[0], prior.var_kd[1])


OPTIONS = [
    {},
    {"preset": "plain", "hidden": (32, 16)},
    {"likelihood": "poisson"},
    {"batch_key": "donor"},
    {"batch_key": "donor", "preset": "plain", "hidden": (32, 16)},
    {"formulation": "structured", "estimator": "TraceEnumMeanField_ELBO"},
    {"formulation": "amortized"},
    {"formulation": "scale"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_starts_from_the_sweeps_and_finds_the_clusters(options):
    adata = ps.simulate(
        300, 600, 3, density=0.1, counts=options.get("likelihood") == "poisson", seed=1
    )
    adata.obs["donor"] = np.where(np.arange(300) % 2, "b", "a")
    model = ps.SCALE(adata, 3, **options)
    model.train(3, progress_bar=False)
    assert list(model.history["phase"]) == ["mixture"] * 3
    found = adjusted_rand_score(adata.obs["cell_type"], model.get_cluster_assignments())
    assert found > 0.8
    alone = ps.SCALE(adata, 3, **options)
    alone.train(3, warmup_epochs=2, progress_bar=False)
    assert model.get_elbo().mean() > alone.get_elbo().mean()


def test_k_is_chosen_from_the_sweeps():
    adata = ps.simulate(300, 600, 3, density=0.1, seed=1)
    model = ps.SCALE(adata)
    model.train(2, progress_bar=False)
    assert model.config.n_components == model.vae.n_components > 1


def test_a_trained_model_goes_on_from_its_weights():
    adata = ps.simulate(300, 300, 3, density=0.1, seed=1)
    model = ps.SCALE(adata, 3)
    model.train(5, progress_bar=False)
    means = model.vae.prior.loc_kd.detach().clone()
    model.train(1, lr=1e-5, progress_bar=False)
    torch.testing.assert_close(model.vae.prior.loc_kd.detach(), means, atol=1e-3, rtol=1e-3)
    assert list(model.history["phase"]) == ["mixture"]


@pytest.mark.parametrize(
    ("options", "n_cells", "reason"),
    [
        ({"decoder_hidden": (8,)}, 300, "the decoder has hidden layers"),
        ({}, 199, "there are fewer than 200 cells"),
        ({"n_latent": 12}, 230, "there are fewer than 240 cells"),
    ],
)
def test_the_log_says_why_there_are_no_sweeps(caplog, options, n_cells, reason):
    adata = ps.simulate(n_cells, 100, 2, density=0.2, seed=0)
    model = ps.SCALE(adata, 2, **options)
    assert reason_against_sweeps(model.vae, n_cells) == reason
    with caplog.at_level(logging.INFO, "pyro_scale"):
        model.train(3, progress_bar=False)
    assert f"without Newton sweeps, because {reason}" in caplog.text
    assert list(model.history["phase"]) == ["warm-up", "mixture", "mixture"]


def test_sweeps_of_a_decoder_with_hidden_layers_are_refused():
    model = ps.SCALE(ps.simulate(300, 100, 2, density=0.2, seed=0), 2, decoder_hidden=(8,))
    with pytest.raises(ValueError, match=r"newton_sweeps=3 is not possible.*hidden layers"):
        model.train(2, newton_sweeps=3, progress_bar=False)


def test_sweeps_may_be_followed_by_a_warmup():
    model = ps.SCALE(ps.simulate(300, 100, 2, density=0.2, seed=0), 2)
    model.train(3, newton_sweeps=3, warmup_epochs=2, progress_bar=False)
    assert list(model.history["phase"]) == ["warm-up", "warm-up", "mixture"]
    assert model.is_trained


def test_training_that_starts_from_sweeps_resumes_bit_by_bit(tmp_path):
    adata = ps.simulate(300, 100, 2, density=0.2, seed=0)
    whole = ps.SCALE(adata, 2)
    whole.train(4, progress_bar=False)
    stopped = ps.SCALE(adata, 2)
    path = tmp_path / "checkpoint"
    stopped.train(4, checkpoint=path, trainer_kwargs={"max_epochs": 2}, progress_bar=False)
    assert len(stopped.history) == 2
    resumed = ps.SCALE(adata, 2)
    resumed.train(4, checkpoint=path, progress_bar=False)
    for name, value in whole.vae.state_dict().items():
        assert torch.equal(value, resumed.vae.state_dict()[name]), name


def test_large_data_are_swept_in_part(monkeypatch):
    monkeypatch.setattr(start, "_MAX_CELLS_X_PEAKS", 20_000)
    monkeypatch.setattr(start, "_MIN_CELLS", 100)
    monkeypatch.setattr(start, "_MAX_PEAKS", 150)
    adata = ps.simulate(400, 300, 3, density=0.15, seed=1)
    counts = CountMatrix.from_anndata(adata)
    assert start._limits(counts) == (133, 150)
    model = ps.SCALE(adata, 3, n_latent=3)
    model.train(5, progress_bar=False)
    assert adjusted_rand_score(adata.obs["cell_type"], model.get_cluster_assignments()) > 0.6
