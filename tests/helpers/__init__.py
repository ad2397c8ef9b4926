"""Small float64 programs for exact tests, and a small SCALE that trains in no time."""

import torch

import pyro_scale as ps
from pyro_scale.objectives import Objective
from pyro_scale.programs import CellBatch, Lsi, MixtureVAE


def small_vae(*, likelihood="bernoulli", n_components=3, n_latent=2, n_peaks=25, **kwargs):
    """A vae whose formulations differ: overlapping components, uneven weights."""
    vae = MixtureVAE(
        n_peaks, n_components, n_latent, hidden=(9,), likelihood=likelihood, **kwargs
    ).double()
    with torch.no_grad():
        vae.prior.logits_k.copy_(torch.linspace(-0.5, 0.7, n_components))
        vae.prior.raw_var_kd.add_(0.5 * torch.randn_like(vae.prior.raw_var_kd))
    return vae


def small_lsi(n_peaks=25, n_directions=5):
    lsi = Lsi(n_peaks, n_directions)
    lsi.idf_p.copy_(0.5 + torch.rand(n_peaks))
    lsi.directions_pr.copy_(torch.linalg.qr(torch.randn(n_peaks, n_directions))[0])
    return lsi


def small_cells(*, likelihood="bernoulli", n_cells=6, n_peaks=25):
    x = torch.poisson(torch.full((n_cells, n_peaks), 0.6)).double()
    x[:, 0] = 1  # no empty cell
    return CellBatch.from_counts(x.clamp(max=1) if likelihood == "bernoulli" else x)


def _copied_gradients(vae):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in vae.named_parameters()
    }


def gradients(vae, loss):
    vae.zero_grad()
    loss.backward()
    return _copied_gradients(vae)


def objective_gradients(vae, objective: Objective, cells, kl_weight=1.0):
    vae.zero_grad()
    loss = objective.backward(cells, kl_weight)
    return loss, _copied_gradients(vae)


def small_scale(adata, n_components=3, **options):
    return ps.SCALE(adata, n_components, **{"n_latent": 3, "hidden": (16,), **options})


def train(model, max_epochs=4, **options):
    """A short training with a warm-up; training/test_newton.py is about that without."""
    defaults = {"progress_bar": False, "batch_size": 32, "lr": 1e-2, "newton_sweeps": 0}
    model.train(max_epochs, **{**defaults, **options})
    return model
