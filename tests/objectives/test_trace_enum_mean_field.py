"""TraceEnumMeanField_ELBO: what it computes, where it has less variance, what it refuses."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import gradients, objective_gradients, small_cells, small_vae
from pyro import poutine

from pyro_scale.comparison.estimates import (
    estimate_objective,
    evaluate_closed_form,
    gradient_difference,
)
from pyro_scale.objectives import (
    Objective,
    TraceEnumMeanField_ELBO,
    evaluate,
    mean_field,
    resolve_objective,
    scale,
)

ESTIMATOR = "TraceEnumMeanField_ELBO"


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(
    ("formulation", "closed_form"),
    [
        ("structured", "scale"),
        ("mean_field", "mean_field"),
        ("amortized", "amortized"),
        ("model_enumerated", "mean_field"),
    ],
)
def test_equals_its_closed_form_sample_by_sample(formulation, closed_form, likelihood):
    vae = small_vae(likelihood=likelihood, classifier=True)
    cells = small_cells(likelihood=likelihood)
    row = resolve_objective(formulation, ESTIMATOR)
    assert row.closed_form == closed_form
    objective = Objective(vae, formulation, ESTIMATOR)
    for _ in range(10):
        one = estimate_objective(vae, objective, cells)
        loss, by_hand = evaluate_closed_form(vae, row, cells, one.z_nd)
        assert one.loss == pytest.approx(loss, rel=1e-12)
        assert gradient_difference(one.gradients, by_hand) <= 1e-10


@pytest.mark.parametrize("kl_weight", [0.05, 0.3, 1.7])
@pytest.mark.parametrize("formulation", ["structured", "mean_field", "model_enumerated"])
def test_keeps_the_scale_of_the_sites(formulation, kl_weight):
    """A KL weight of 0.3 was silently off by 220 % in the gradient when it was forgotten."""
    vae, cells = small_vae(), small_cells()
    objective = Objective(vae, formulation, ESTIMATOR)
    torch.manual_seed(3)
    loss, ours = objective_gradients(vae, objective, cells, kl_weight)
    torch.manual_seed(3)
    loc, var = vae.encoder(cells)
    at = evaluate(vae, cells, loc + var.sqrt() * torch.randn_like(loc), moments=(loc, var))
    form = scale if formulation == "structured" else mean_field
    closed_form = -form(at).total(kl_weight).sum()
    assert loss == pytest.approx(float(closed_form.detach()), rel=1e-12)
    assert gradient_difference(ours, gradients(vae, closed_form)) <= 1e-10


def test_keeps_the_mask_and_the_scale_together():
    """packed.scale_and_mask drops the scale when it is given a mask; here both must act."""
    mask = torch.tensor([True, False, True, True])
    q_loc = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    class Guide(torch.nn.Module):
        def forward(self):
            with pyro.plate("n", 4), poutine.scale(scale=0.3), poutine.mask(mask=mask):
                pyro.sample("z", dist.Normal(q_loc, 0.5).to_event(1))

    class Model(torch.nn.Module):
        def forward(self):
            with pyro.plate("n", 4), poutine.scale(scale=0.3), poutine.mask(mask=mask):
                pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    elbo = TraceEnumMeanField_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    loss = elbo(Model(), Guide())()
    kl = torch.distributions.kl_divergence(
        dist.Normal(q_loc, 0.5), dist.Normal(torch.zeros(2).double(), 1.0)
    ).sum(-1)
    torch.testing.assert_close(loss, 0.3 * kl[mask].sum())


def test_a_discrete_site_may_come_before_z():
    q_loc = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    loc_kd = torch.randn(3, 2).double()
    log_q, log_p = torch.randn(2, 3).double().log_softmax(-1)

    class Guide(torch.nn.Module):
        def forward(self):
            with pyro.plate("n", 4):
                pyro.sample("c", dist.Categorical(logits=log_q), infer={"enumerate": "parallel"})
                pyro.sample("z", dist.Normal(q_loc, 0.5).to_event(1))

    class Model(torch.nn.Module):
        def forward(self):
            with pyro.plate("n", 4):
                c = pyro.sample("c", dist.Categorical(logits=log_p))
                pyro.sample("z", dist.Normal(loc_kd[c], 1.0).to_event(1))

    loss = TraceEnumMeanField_ELBO(max_plate_nesting=1)(Model(), Guide())()
    kl_nk = torch.distributions.kl_divergence(
        dist.Normal(q_loc.unsqueeze(1), 0.5), dist.Normal(loc_kd, 1.0)
    ).sum(-1)
    torch.testing.assert_close(loss, (log_q.exp() * (log_q - log_p + kl_nk)).sum())


def test_has_less_gradient_variance_than_trace_enum_on_the_mean_field_guide():
    vae, cells = small_vae(), small_cells()

    def variance(estimator):
        objective = Objective(vae, "mean_field", estimator)
        draws = [
            torch.cat(
                [g.flatten() for g in estimate_objective(vae, objective, cells).gradients.values()]
            )
            for _ in range(300)
        ]
        return torch.stack(draws).var(0).sum().item()

    ours, pyros = variance(ESTIMATOR), variance("TraceEnum_ELBO")
    # The variance of a variance over 300 draws is well under a half of it.
    assert ours < 0.5 * pyros


def test_refuses_a_sampled_c():
    vae, cells = small_vae(), small_cells()
    with pytest.raises(NotImplementedError, match=r"'c' is sampled.*enumerate"):
        Objective(vae, "structured", ESTIMATOR, "sampled").backward(cells)


def test_refuses_a_site_without_a_registered_kl():
    vae, cells = small_vae(), small_cells()
    words = r"site 'z'.*q = Independent\(Normal\) and p = MixtureSameFamily\."
    with pytest.raises(NotImplementedError, match=words):
        Objective(vae, "collapsed", ESTIMATOR).backward(cells)


def test_refuses_a_guide_site_that_the_model_lacks():
    class Guide(torch.nn.Module):
        def forward(self):
            pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    class Model(torch.nn.Module):
        def forward(self):
            pass

    elbo = TraceEnumMeanField_ELBO(max_plate_nesting=0, strict_enumeration_warning=False)
    with pytest.raises(NotImplementedError, match=r"'extra' is only in the guide"):
        elbo(Model(), Guide())()


def test_one_component_and_one_cell_pack_to_the_same_numbers():
    """Pyro drops dimensions of size one when it packs; K = 1 and n = 1 must survive that."""
    for n_components, n_cells in ((1, 4), (3, 1), (1, 1)):
        vae = small_vae(n_components=n_components)
        cells = small_cells(n_cells=n_cells)
        row = resolve_objective("mean_field", ESTIMATOR)
        one = estimate_objective(vae, Objective(vae, "mean_field", ESTIMATOR), cells)
        loss, by_hand = evaluate_closed_form(vae, row, cells, one.z_nd.reshape(n_cells, 2))
        assert np.isclose(one.loss, loss, rtol=1e-12)
        assert gradient_difference(one.gradients, by_hand) <= 1e-10
