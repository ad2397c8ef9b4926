"""`compare`: the matrix holds, a wrong formula does not, and an empty agreement is called so."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers import small_vae

import pyro_scale as ps
from pyro_scale.comparison import critical_z
from pyro_scale.comparison.verdicts import Projections, z_scores
from pyro_scale.objectives import CLOSED_FORMS, OBJECTIVES, REGISTRY, ObjectiveSpec
from pyro_scale.programs import FORMULATIONS


def small_model(adata, **kwargs):
    return ps.SCALE(adata, n_components=3, n_latent=3, hidden=(16, 8), **kwargs)


@pytest.mark.parametrize("preset", ["plain", "default"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_every_supported_row_holds(counts, preset, likelihood):
    model = small_model(counts, preset=preset, likelihood=likelihood)
    table = ps.compare(model, n_cells=40, n_samples=100, seed=1)
    frame = table.to_frame()
    assert len(frame) == len(OBJECTIVES)
    supported = frame[frame["value_agreement"] != "unsupported"]
    assert len(supported) == 30
    wrong = supported[supported["holds"] != True]  # noqa: E712 (None is not True)
    assert wrong.empty, wrong[["formulation", "estimator", "c", "status", "reason"]].to_string()
    exact = supported[supported["gradient_agreement"] == "exact"]
    assert (exact["max_relative_gradient_difference"] <= 1e-9).all()
    refused = frame[frame["value_agreement"] == "unsupported"]
    assert (refused["reason"].str.len() > 10).all()


def test_a_wrong_closed_form_fails_its_rows(cells, monkeypatch):
    right = CLOSED_FORMS["mean_field"]
    monkeypatch.setitem(
        REGISTRY._closed_forms, "mean_field", lambda at: right(at) - at.log_pi_k.mean()
    )
    table = ps.compare(small_model(cells, preset="plain"), n_cells=40, n_samples=100)
    for row in table.rows:
        if row.closed_form == "mean_field":
            assert row.status == "FAILS", row
            assert "value" in row.reason
        elif row.closed_form in ("collapsed", "scale"):
            assert row.status != "FAILS", row


def _sure():
    """One component explains every cell, whose z varies little: the others are never drawn."""
    vae = small_vae()
    with torch.no_grad():
        vae.prior.loc_kd.copy_(4 * torch.arange(3.0)[:, None].expand(3, 2))
        vae.encoder.raw_var.bias.fill_(-8.0)
    return vae


@pytest.mark.parametrize("seed", range(4))
def test_components_that_are_never_drawn_raise_no_alarm(seed):
    """Their share of the gradient is missing from the mean over draws, and from its error."""
    counts = (np.random.default_rng(0).random((6, 25)) < 0.3).astype(np.float32)
    options = {"seed": seed, "warmup_steps": 0, "formulations": ["structured", "mean_field"]}
    table = ps.compare(_sure(), counts, **options).to_frame()
    assert table["max_gradient_z"].max() > 20, "nothing here would be taken for a difference"
    assert not (table["holds"] == False).any()  # noqa: E712 (None is not False)
    assert table["reason"].str.contains("were never drawn").any()


def test_a_difference_that_what_was_not_drawn_cannot_explain_fails(monkeypatch):
    counts = (np.random.default_rng(0).random((6, 25)) < 0.3).astype(np.float32)
    right = CLOSED_FORMS["mean_field"]
    monkeypatch.setitem(
        REGISTRY._closed_forms, "mean_field", lambda at: right(at) + at.loc_nd.sum()
    )
    table = ps.compare(_sure(), counts, warmup_steps=0, formulations=["mean_field"])
    row = next(r for r in table.rows if (r.estimator, r.c) == ("Trace_ELBO", "sampled"))
    assert row.holds is False


def test_one_component_has_no_power(cells):
    """With K = 1 every formulation is the same bound: agreement says nothing."""
    model = ps.SCALE(cells, n_components=1, n_latent=2, hidden=(8,), preset="plain")
    table = ps.compare(model, n_cells=10, n_samples=10)
    supported = [row for row in table.rows if row.supported]
    assert {row.status for row in supported} == {"no power"}
    assert all("no power" in row.reason for row in supported)


def test_the_model_and_the_cells_are_unchanged(cells):
    model = small_model(cells)
    before = {k: v.clone() for k, v in model.vae.state_dict().items()}
    rng = torch.get_rng_state()
    ps.compare(model, n_cells=5, n_samples=3)
    assert torch.equal(rng, torch.get_rng_state())
    assert model.vae.classifier is None
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, before[name])


def test_same_seed_same_numbers(cells):
    model = small_model(cells)
    a, b = (ps.compare(model, n_cells=5, n_samples=3, seed=4).to_frame() for _ in range(2))
    columns = ["value", "closed_form_value", "difference", "gradient_variance"]
    assert a[columns].equals(b[columns])


def test_json_is_strict_and_complete(cells, tmp_path):
    table = ps.compare(small_model(cells), n_cells=5, n_samples=3)
    path = tmp_path / "out.json"
    text = table.to_json(path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content == json.loads(text)
    assert len(content["rows"]) == len(OBJECTIVES)
    fields = (
        "formulation, estimator, c, closed_form, value_agreement, gradient_agreement, value, "
        "closed_form_value, difference, standard_error, max_relative_gradient_difference, "
        "max_gradient_z, gradient_variance, seconds, holds, reason"
    )
    assert set(fields.split(", ")) <= set(content["rows"][0])
    assert set(content) == {"rows", "gaps", "settings"}


def test_a_matrix_is_as_good_as_an_anndata_and_the_wrong_width_is_named(cells):
    model = small_model(cells)
    x = cells.X.toarray()
    a = ps.compare(model, x, n_cells=5, n_samples=3).to_frame()["value"]
    b = ps.compare(model, cells, n_cells=5, n_samples=3).to_frame()["value"]
    assert a.equals(b)
    with pytest.raises(ValueError, match="119 peaks, the model 120"):
        ps.compare(model, x[:, 1:])
    with pytest.raises(ValueError, match="n_samples=1"):
        ps.compare(model, n_samples=1)
    with pytest.raises(ValueError, match="n_cells=0"):
        ps.compare(model, n_cells=0)


def test_compare_and_ladder_take_a_bare_vae(cells):
    vae = small_vae(n_peaks=cells.n_vars)
    before = copy.deepcopy(vae.state_dict())
    x = cells.X.toarray()
    for given in (cells, x):
        table = ps.compare(vae, given, n_cells=6, n_samples=3, formulations=["structured"])
        assert table.settings["warmup_steps"] == 0
        assert {row.status for row in table.rows if row.supported} <= {"holds", "no power"}
        assert ps.ladder(vae, given, n_cells=2).max_discrepancy < 1e-8
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    with pytest.raises(ValueError, match="has no cells of its own"):
        ps.ladder(vae)
    with pytest.raises(ValueError, match="119 peaks, the model 120"):
        ps.compare(vae, x[:, 1:])


def test_figure_has_a_line_for_every_supported_row(cells):
    table = ps.compare(small_model(cells), n_cells=5, n_samples=3)
    figure = table.plot()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == sum(row.supported for row in table.rows)
    assert len(set(labels)) == len(labels)


def test_critical_z_keeps_its_failure_rate():
    """Of many sets of true nulls, a share of about the failure rate is called false."""
    rng = np.random.default_rng(0)
    n, m, sets = 20, 50, 2000
    threshold = critical_z(m, n, failure_rate=0.1)
    called = [(z_scores(rng.normal(size=(n, m))) > threshold).any() for _ in range(sets)]
    assert abs(np.mean(called) - 0.1) < 5 * np.sqrt(0.1 * 0.9 / sets)


def test_z_scores_of_nothing_of_rounding_and_of_a_constant():
    assert z_scores(np.zeros((5, 1)))[0] == 0
    assert z_scores(np.full((5, 1), 1e-15), 1e-12)[0] == 0
    assert np.isinf(z_scores(np.full((5, 1), 0.25))[0])


def test_a_projection_sees_every_coordinate():
    shapes = {"a": torch.zeros(4, 5).double(), "b": torch.zeros(3).double()}
    projections = Projections(shapes, torch.Generator().manual_seed(0))
    for name, value in shapes.items():
        for i in range(value.numel()):
            one = {k: torch.zeros_like(v) for k, v in shapes.items()}
            one[name].view(-1)[i] = 1.0
            assert (np.abs(projections(one)) > 1e-6).sum() == 3


def test_a_formulation_that_is_not_compared_is_not_built(cells):
    def build(vae, enumerate_c):
        assert vae.n_peaks == 4, "built for a comparison"  # register checks it on four peaks
        return FORMULATIONS["collapsed"].build(vae, enumerate_c)

    mine = FORMULATIONS["collapsed"]._replace(name="mine", build=build)
    spec = ObjectiveSpec("mine", "Trace_ELBO", "marginalized", "collapsed", "exact", "exact")
    with ps.register(mine, [spec]):
        ps.compare(small_model(cells), n_cells=5, n_samples=2, formulations=["collapsed"])
        with pytest.raises(AssertionError, match="built for a comparison"):
            ps.compare(small_model(cells), n_cells=5, n_samples=2, formulations=["mine"])
