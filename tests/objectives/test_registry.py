"""The table of formulations x estimators, and what reads it."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from helpers import small_cells, small_lsi, small_vae

from pyro_scale.comparison.estimates import (
    estimate_objective,
    evaluate_closed_form,
    gradient_difference,
)
from pyro_scale.objectives import (
    CLOSED_FORMS,
    ESTIMATORS,
    OBJECTIVES,
    REGISTRY,
    Objective,
    resolve_objective,
    to_markdown,
)
from pyro_scale.programs import FORMULATIONS

SUPPORTED = [row for row in OBJECTIVES if row.supported]
TRAINABLE = list({(r.formulation, r.estimator, r.c): r for r in SUPPORTED}.values())

EXACT_ROWS = [row for row in SUPPORTED if row.value_agreement == "exact"]

STRUCTURAL_ZEROS = {
    # One component has weight one whatever its logit, so nothing can move it.
    "K = 1": {"prior.logits_k"},
}


def row_id(row):
    return f"{row.formulation}-{row.c}-{row.estimator}-{row.closed_form}"


def test_every_cell_of_the_matrix_is_filled():
    cells = {(row.formulation, row.c, row.estimator) for row in OBJECTIVES}
    expected = {
        (f.name, c, e)
        for f, e in itertools.product(FORMULATIONS.values(), ESTIMATORS)
        for c in f.treatments
    }
    assert cells == expected


def test_a_cell_is_refused_or_supported_and_no_row_is_there_twice():
    cell = lambda row: (row.formulation, row.c, row.estimator)  # noqa: E731
    refused = [cell(row) for row in OBJECTIVES if not row.supported]
    assert set(refused).isdisjoint(map(cell, SUPPORTED))
    assert len(OBJECTIVES) == len(set(OBJECTIVES)) == len(refused) + len(SUPPORTED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        OBJECTIVES[0].closed_form = "scale"


def test_supported_rows_have_a_closed_form_and_every_formulation_has_one():
    assert len(SUPPORTED) == 30
    assert {row.closed_form for row in SUPPORTED} == set(CLOSED_FORMS)
    assert {row.formulation for row in SUPPORTED} == set(FORMULATIONS)
    assert all(not row.closed_form for row in OBJECTIVES if not row.supported)


def test_find_row_finds_every_row_and_the_defaults():
    for row in TRAINABLE:
        found = resolve_objective(row.formulation, row.estimator, row.c)
        assert (found.formulation, found.estimator, found.c) == (
            row.formulation,
            row.estimator,
            row.c,
        )
    assert {
        name: (resolve_objective(name).estimator, resolve_objective(name).c)
        for name in FORMULATIONS
    } == {
        "collapsed": ("Trace_ELBO", "marginalized"),
        "model_enumerated": ("TraceEnum_ELBO", "enumerated"),
        "structured": ("TraceEnum_ELBO", "enumerated"),
        "mean_field": ("TraceEnumMeanField_ELBO", "enumerated"),
        "amortized": ("TraceEnumMeanField_ELBO", "enumerated"),
        "scale": ("TraceEnum_ELBO", "enumerated"),
    }
    assert resolve_objective("scale", c="sampled").estimator == "Trace_ELBO"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"formulation": "vade"}, "'vade' is not known.*collapsed"),
        ({"formulation": "collapsed", "estimator": "SVI"}, "'SVI' is not known.*Trace_ELBO"),
        (
            {"formulation": "mean_field", "estimator": "RenyiELBO"},
            r"cannot be trained.*choose one of TraceEnumMeanField_ELBO \(c enumerated\), "
            r"TraceEnum_ELBO \(c enumerated\), Trace_ELBO \(c sampled\)",
        ),
        ({"formulation": "structured", "c": "collapsed"}, "cannot be trained"),
    ],
)
def test_find_row_names_what_was_given_and_what_there_is(kwargs, words):
    with pytest.raises(ValueError, match=words):
        resolve_objective(**kwargs)


def test_build_refuses_a_treatment_that_a_formulation_lacks():
    with pytest.raises(ValueError, match="supports c='marginalized', not 'sampled'"):
        REGISTRY.build(small_vae(), "collapsed", "sampled")


def test_unknown_estimator_and_missing_classifier_are_named():
    with pytest.raises(ValueError, match=r"'Trace' is not known.*Trace_ELBO, TraceGraph_ELBO"):
        Objective(small_vae(), "collapsed", "Trace")
    with pytest.raises(ValueError, match="no classifier"):
        Objective(small_vae(), "amortized", "TraceEnum_ELBO").backward(small_cells())


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("row", TRAINABLE, ids=row_id)
def test_every_parameter_gets_a_gradient_and_a_step_lowers_nothing_to_nan(row, likelihood):
    """From a start without symmetries: finite and non-zero everywhere after one step."""
    vae = small_vae(
        likelihood=likelihood,
        classifier=row.formulation == "amortized",
        mean_log_depth=2.0 if likelihood == "bernoulli" else None,
        lsi=small_lsi(),
        layer_norm=True,
    )
    cells = small_cells(likelihood=likelihood, n_cells=12)
    objective = Objective(vae, row.formulation, row.estimator, row.c, n_particles=row.n_particles)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
    objective.backward(cells, divide_by=cells.n_cells)
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    optimizer.step()
    for name, parameter in vae.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), name


def test_the_declared_structural_zeros_are_the_only_ones():
    vae = small_vae(n_components=1)
    Objective(vae, "collapsed", "Trace_ELBO").backward(small_cells())
    zero = {name for name, p in vae.named_parameters() if float(p.grad.abs().max()) == 0}
    assert zero == STRUCTURAL_ZEROS["K = 1"]


@pytest.mark.parametrize("row", EXACT_ROWS, ids=row_id)
def test_exact_rows_equal_their_closed_forms(row):
    vae, cells = small_vae(classifier=True), small_cells()
    objective = Objective(vae, row.formulation, row.estimator, row.c, n_particles=row.n_particles)
    one = estimate_objective(vae, objective, cells)
    loss, by_hand = evaluate_closed_form(vae, row, cells, one.z_nd)
    assert one.loss == pytest.approx(loss, rel=1e-9)
    if row.gradient_agreement == "exact":
        assert gradient_difference(one.gradients, by_hand) <= 1e-9


@pytest.mark.parametrize("row", TRAINABLE, ids=row_id)
def test_loss_forward_and_backward_give_one_value(row):
    vae, cells = small_vae(classifier=True), small_cells()
    objective = Objective(vae, row.formulation, row.estimator, row.c)

    def same_draw(evaluate, *weight):
        torch.manual_seed(5)
        return float(evaluate(cells, *weight))

    for weight in ((), (0.3,)):
        value = same_draw(objective.loss, *weight)
        assert all(parameter.grad is None for parameter in vae.parameters())
        if objective.differentiable:
            forward = same_draw(lambda *inputs: objective(*inputs).detach(), *weight)
            assert forward == pytest.approx(value)
        else:
            with pytest.raises(NotImplementedError, match=r"call \.backward"):
                objective(cells)
        assert same_draw(objective.backward, *weight) == pytest.approx(value)
        vae.zero_grad()
    assert same_draw(objective.loss) == same_draw(objective.loss, 1.0) != value


def test_loss_builds_no_graph(monkeypatch):
    objective = Objective(small_vae(), "collapsed", "Trace_ELBO")
    monkeypatch.setattr(objective.elbo, "loss", lambda *_: torch.is_grad_enabled())
    assert objective.loss(small_cells()) == float(False)


def test_objective_draws_once_unless_told_and_iwae_four_times():
    objective = Objective(small_vae(), "collapsed", "RenyiELBO")
    assert (objective.elbo.num_particles, objective.elbo.max_plate_nesting) == (1, 1)
    assert resolve_objective("collapsed", "RenyiELBO").n_particles == 4


@pytest.mark.parametrize("row", TRAINABLE, ids=row_id)
def test_divided_gradients_are_the_gradients_divided(row):
    vae = small_vae(classifier=True)
    cells = small_cells()
    objective = Objective(vae, row.formulation, row.estimator, row.c, n_particles=2)
    losses, grads = [], []
    for divide_by in (1.0, 4.0, 2.0, 0.5):
        torch.manual_seed(5)
        vae.zero_grad()
        losses.append(objective.backward(cells, divide_by=divide_by) * divide_by)
        grads.append(vae.encoder.loc.weight.grad * divide_by)
    for loss, grad in zip(losses, grads, strict=True):
        assert loss == pytest.approx(losses[0])
        torch.testing.assert_close(grad, grads[0])


def test_readme_has_this_table():
    readme = Path(__file__).parents[2] / "README.md"
    table = to_markdown()
    assert table in readme.read_text()
    lines = table.split("\n")
    assert len(lines) == 2 + len(SUPPORTED)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert all(
        f"`{row.closed_form}`" in line for row, line in zip(SUPPORTED, lines[2:], strict=True)
    )
