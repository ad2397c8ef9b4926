"""Chapter 7: which estimators are unbiased for which bound."""

import functools

import numpy as np
import pytest
import torch
from oracle_checks import assert_mean, z_scores, z_star
from oracle_programs import gradients, repeat, toy
from torch import Tensor

from pyro_scale.objectives import CLOSED_FORMS, OBJECTIVES, Objective, evaluate
from pyro_scale.programs import CellBatch, MixtureVAE

COPIES, RUNS = 100, 40


def one_dimensional() -> tuple[MixtureVAE, CellBatch]:
    """Return a toy model with D = 1, where quadrature gives exact expectations over z."""
    return toy(d=1, n=3, classifier=True, seed=5)


def hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Hermite nodes and weights of a standard normal."""
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.tensor(t), torch.tensor(w / w.sum())


def exact_bound(vae: MixtureVAE, cells: CellBatch, closed_form: str) -> Tensor:
    """Return E_q(z|x) of a closed form, summed over cells; differentiable."""
    t, w = hermite(60)
    loc_nd, var_nd = vae.encoder(cells)
    point = evaluate(vae, cells, loc_nd + var_nd.sqrt() * t[:, None, None])
    return (w[:, None] * CLOSED_FORMS[closed_form](point)).sum()


@functools.cache
def exact(closed_form: str) -> tuple[float, dict[str, Tensor]]:
    """Return the exact bound and its exact gradient."""
    vae, cells = one_dimensional()
    value = exact_bound(vae, cells, closed_form)
    return value.item(), gradients(value, vae)


def project(grads: dict[str, Tensor]) -> Tensor:
    """Project each parameter's gradient on a fixed random direction, ``(names,)``."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        (g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in grads.values()
    ]
    return torch.stack(rows)


def sample(formulation: str, estimator: str, c: str, *, particles: int = 1) -> Tensor:
    """Return values and projected gradients, each averaged over COPIES, ``(runs, 1 + names)``."""
    vae, cells = one_dimensional()
    torch.manual_seed(11)
    objective, many = (
        Objective(vae, formulation, estimator, c, n_particles=particles),
        repeat(cells, COPIES),
    )
    rows = []
    for _ in range(RUNS):
        vae.zero_grad()
        value = -objective.backward(many) / COPIES
        grads = {
            name: torch.zeros_like(p) if p.grad is None else -p.grad / COPIES
            for name, p in vae.named_parameters()
        }
        rows.append(torch.cat([torch.tensor([value]), project(grads)]))
    return torch.stack(rows)


SPECS = [
    spec
    for spec in OBJECTIVES
    if spec.supported and not spec.closed_form.endswith("_at_z") and spec.estimator != "RenyiELBO"
]
NEIGHBOR = {
    "collapsed": "scale",
    "mean_field": "collapsed",
    "amortized": "collapsed",
    "scale": "mean_field",
}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.formulation}-{s.estimator}-{s.c}")
def test_d07_1_every_estimator_of_the_table_is_unbiased_in_value_and_gradient(spec):
    right, other = (
        torch.cat([torch.tensor([value]), project(grads)])
        for value, grads in (exact(form) for form in (spec.closed_form, NEIGHBOR[spec.closed_form]))
    )
    samples = sample(spec.formulation, spec.estimator, spec.c)
    assert_mean(samples, right, wrong={f"the bound {NEIGHBOR[spec.closed_form]}": other})


def two_particles(vae: MixtureVAE, cells: CellBatch, formulation: str, nodes: int) -> Tensor:
    """Return E log (w_1 + w_2) / 2 by quadrature over each z (and u) and sums over each c."""
    t, w = hermite(nodes)
    loc_nd, var_nd = vae.encoder(cells)
    z = loc_nd + var_nd.sqrt() * t[:, None, None]
    at, prior = evaluate(vae, cells, z), vae.prior
    log_q_z = torch.distributions.Normal(loc_nd, var_nd.sqrt()).log_prob(z).sum(-1)
    log_joint = at.log_p_z_given_c_nk + prior.log_pi_k
    if formulation in ("collapsed", "structured"):
        # p(z,c) / p(c|z) = p(z) whatever c is drawn, so the weight depends on z only.
        log_w = at.log_lik_n + log_joint.logsumexp(-1) - log_q_z
        log_w, log_p = log_w[None], w.log()[None, :, None].expand(1, -1, log_w.shape[-1])
    else:
        log_q_c = {
            "mean_field": lambda: at.log_g_star_nk[None],
            "amortized": lambda: vae.log_q_c(cells)[None],
            "scale": lambda: at.log_gamma_nk,  # the nodes serve as u
        }[formulation]()
        over = (at.log_lik_n - log_q_z)[None, :, :, None] + log_joint[None] - log_q_c[:, None]
        w_u = w if formulation == "scale" else torch.ones(1)
        prob = w_u.log()[:, None, None, None] + w.log()[:, None, None] + log_q_c[:, None]
        log_w = over.permute(0, 3, 1, 2).flatten(0, 2)[None]
        log_p = prob.expand_as(over).permute(0, 3, 1, 2).flatten(0, 2)[None]
    log_w, log_p = log_w[0], log_p[0]
    both = torch.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
    return ((log_p[:, None] + log_p[None]).exp() * both).sum()


@functools.cache
def exact_two(formulation: str) -> Tensor:
    vae, cells = one_dimensional()
    fine, coarse = (24, 20) if formulation == "scale" else (60, 50)
    value = two_particles(vae, cells, formulation, fine)
    with torch.no_grad():
        difference = value - two_particles(vae, cells, formulation, coarse)
    assert abs(difference.item()) < 5e-3  # nats; a tenth of the standard errors below
    return torch.cat([value.detach()[None], project(gradients(value, vae))])


@pytest.mark.parametrize(
    ("formulation", "c"), [("collapsed", "marginalized"), ("structured", "sampled")]
)
def test_d07_2_renyi_is_unbiased_where_the_weight_does_not_depend_on_c(formulation, c):
    samples = sample(formulation, "RenyiELBO", c, particles=2)
    value, grads = exact("collapsed")
    one = torch.cat([torch.tensor([value]), project(grads)])
    assert_mean(samples, exact_two(formulation), wrong={"one particle": one})


@pytest.mark.parametrize("formulation", ["mean_field", "amortized", "scale"])
def test_d07_3_renyi_with_a_sampled_c_is_right_in_value_and_biased_in_gradient(formulation):
    samples = sample(formulation, "RenyiELBO", "sampled", particles=2)
    right = exact_two(formulation)
    value, _ = exact(formulation)  # the closed form of the same name
    assert_mean(samples[:, :1], right[:1], wrong={"one particle": torch.tensor([value])})
    assert z_scores(samples[:, 1:], right[1:]).max() > z_star(RUNS)


def test_d07_3_under_an_amortized_guide_it_never_trains_the_classifier():
    vae, cells = one_dimensional()
    Objective(vae, "amortized", "RenyiELBO", "sampled", n_particles=2).backward(cells)
    for parameter in vae.classifier.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    value = two_particles(vae, cells, "amortized", 20)
    names = gradients(value, vae)
    assert names["classifier.logits.weight"].abs().max() > 1e-3
