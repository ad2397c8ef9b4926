"""`register`: one file adds a formulation to all that reads the table."""

import subprocess
import sys
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_cells, small_scale, small_vae, train
from helpers.registered_formulation import (
    CLOSED_FORM,
    EXACT,
    ON_AVERAGE,
    TEMPERED,
    TemperedGuide,
    changed,
    tempered,
)
from pyro import poutine

import pyro_scale as ps
from pyro_scale.comparison import (
    compare,
    estimate_objective,
    evaluate_closed_form,
    gradient_difference,
)
from pyro_scale.objectives import (
    OBJECTIVES,
    REGISTRY,
    Objective,
    ObjectiveSpec,
    collapsed,
    resolve_objective,
    terms,
    to_markdown,
)
from pyro_scale.programs import FORMULATIONS, Encoder, LatentGuide, MixtureModel
from pyro_scale.programs.formulations import Formulation, Program, Programs


def test_everything_that_reads_the_table_knows_it(registered, cells):
    assert repr(registered) == "Registration('tempered', 2 supported objectives)"
    assert resolve_objective("tempered") == EXACT
    assert resolve_objective("tempered", "Trace_ELBO") == ON_AVERAGE
    assert "| tempered | q(z\\|x) p(c\\|z)^(1/T) | enumerated | TraceEnum_ELBO" in to_markdown()
    assert len([row for row in OBJECTIVES if row.formulation == "tempered"]) == 12
    with pytest.raises(ValueError, match=r"choose one of .*, tempered, or import the file"):
        resolve_objective("tempred")
    model = small_scale(cells, formulation="tempered")
    assert "tempered by TraceEnum_ELBO" in repr(model)


def test_compare_holds_its_rows_and_leaves_the_others_what_they_were(cells):
    model = small_scale(cells, preset="plain")
    alone = compare(model, n_cells=20, n_samples=10).to_frame()
    with ps.register(TEMPERED, [EXACT, ON_AVERAGE], CLOSED_FORM):
        table = compare(model, n_cells=20, n_samples=10)
        mine = compare(model, n_cells=20, n_samples=100, formulations="tempered")
    frame = table.to_frame()
    assert len(frame) == len(alone) + 12
    pairs = frame["value"][: len(alone)], alone["value"]
    assert np.array_equal(*pairs, equal_nan=True)
    assert {row.formulation for row in mine.rows} == {"tempered"}
    supported = {row.estimator: row for row in mine.rows if row.supported}
    assert supported["TraceEnum_ELBO"].status == "holds"
    assert supported["TraceEnum_ELBO"].max_relative_gradient_difference <= 1e-9
    assert supported["Trace_ELBO"].status != "FAILS"
    assert all(row.reason for row in mine.rows if not row.supported)
    labels = table.plot().axes[0].get_yticklabels()
    assert len(labels) == sum(row.supported for row in table.rows)


def without_normaliser(at):
    log_q_nk = at.log_gamma_nk / at.vae.log_temperature.exp()
    right = tempered(at)
    return right._replace(minus_log_q_c_n=-(log_q_nk.softmax(-1) * log_q_nk).sum(-1))


def with_temperature_detached(at):
    held = at.vae.log_temperature.detach()
    log_q_nk = (at.log_gamma_nk / held.exp()).log_softmax(-1)
    inner_nk = at.log_p_z_given_c_nk + at.log_pi_k - log_q_nk
    value_n = at.log_lik_n + (log_q_nk.exp() * inner_nk).sum(-1)
    return value_n - terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)


@pytest.mark.parametrize(
    ("slip", "reason"),
    [
        (without_normaliser, "value and gradient differ"),
        (with_temperature_detached, "gradient differs"),
        (collapsed, "value and gradient differ"),
    ],
)
def test_a_wrong_closed_form_fails(cells, slip, reason):
    with ps.register(TEMPERED, [EXACT], {"tempered": slip}):
        table = compare(small_scale(cells), n_cells=20, n_samples=10, formulations=["tempered"])
    (row,) = [row for row in table.rows if row.supported]
    assert (row.status, row.reason) == ("FAILS", f"{reason} from the closed form")


def test_a_bound_that_is_another_one_has_no_power(cells):
    """At T = 1 it is the collapsed bound: agreement would say nothing of the temperature."""

    def at_one(vae, enumerate_c):
        if not hasattr(vae, "log_temperature"):
            vae.log_temperature = torch.nn.Parameter(torch.zeros_like(vae.prior.logits_k[0]))
        return Programs(MixtureModel(vae), TemperedGuide(vae, enumerate_c))

    with ps.register(TEMPERED._replace(build=at_one), [EXACT], CLOSED_FORM):
        table = compare(small_scale(cells), n_cells=10, n_samples=5, formulations=["tempered"])
    (row,) = [row for row in table.rows if row.supported]
    assert row.status == "no power"


def test_it_trains_its_own_parameter_and_gives_its_own_bound(registered, cells):
    model = train(small_scale(cells, formulation="tempered", preset="plain"), 6, warmup_epochs=2)
    assert float(model.vae.log_temperature.detach()) != pytest.approx(0.7)
    bound = model.get_elbo()
    assert bound.name == "tempered"
    assert bound.mean() < model.get_elbo(bound="collapsed").mean()  # the same draws


def tempered_log_q(vae, cells, z_nd):
    return (vae.prior.log_responsibilities(z_nd) / vae.log_temperature.exp()).log_softmax(-1)


@pytest.mark.parametrize("given", [None, tempered_log_q], ids=["off the guide", "log_q_c"])
def test_a_registered_formulation_gives_its_own_responsibilities(cells, given):
    """Not p(c|z), of which the temperature makes another distribution."""
    with ps.register(TEMPERED._replace(log_q_c=given), [EXACT], CLOSED_FORM):
        model = train(small_scale(cells, formulation="tempered"), 4)
        with torch.no_grad():  # a temperature that changes the most probable component's weight
            model.vae.log_temperature.fill_(1.5)
        before = torch.get_rng_state()
        own, of_gamma = model.get_responsibilities(), model.get_responsibilities(kind="averaged")
        assert torch.equal(torch.get_rng_state(), before)
        tree = model.to_datatree(n_cells=None, n_samples=300, predictive=False)
        z = torch.from_numpy(tree["posterior"]["z"].to_numpy()[0])
        with torch.no_grad():
            expected_snk = tempered_log_q(model.vae, None, z).exp().numpy()
        clusters = model.get_cluster_assignments()
    np.testing.assert_allclose(tree["posterior"]["q_c"].to_numpy()[0], expected_snk, atol=1e-5)
    np.testing.assert_allclose(own, expected_snk.mean(0), atol=0.05)
    assert np.abs(own - of_gamma).max() > 0.2
    assert list(clusters.cat.codes) == list(own.argmax(1))


def test_a_registered_q_c_of_x_alone_needs_no_draws(cells):
    """1 / K for every cell, whatever z is, and clusters that say so."""

    class FlatGuide(Program):
        def forward(self, cells, kl_weight=1.0):
            encoder, k = self.vae.encoder, self.vae.n_components
            with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
                z = pyro.sample("z", encoder.q_z(*encoder(cells)))
                flat = dist.Categorical(logits=z.new_zeros(len(z), k))
                pyro.sample("c", flat, infer={"enumerate": "parallel"})

    def flat(at):
        log_p_n = (at.log_p_z_given_c_nk + at.log_pi_k).mean(-1)
        return at.log_lik_n + log_p_n + np.log(3) - terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)

    formulation = Formulation(
        "flat",
        "q(z|x) / K",
        ("enumerated",),
        lambda vae, _: Programs(MixtureModel(vae), FlatGuide(vae)),
        c_given="x",
    )
    spec = ObjectiveSpec("flat", "TraceEnum_ELBO", "enumerated", "flat", "exact", "exact")
    with ps.register(formulation, [spec], {"flat": flat}):
        model = train(small_scale(cells, formulation="flat"), 2)
        np.testing.assert_allclose(model.get_responsibilities(), 1 / 3, rtol=1e-6)
        tree = model.to_datatree(n_samples=20, predictive=False)
        np.testing.assert_allclose(tree["posterior"]["q_c"], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_packages_own_q_c_is_that_of_the_guide(name):
    """What each formulation says of q(c|.), and what its guide samples c from."""
    vae, some = small_vae(classifier=True), small_cells()
    formulation, z = FORMULATIONS[name], torch.randn(3, 6, 2).double()
    off_the_guide = formulation._replace(log_q_c=None).log_q(vae, some, z)
    torch.testing.assert_close(formulation.log_q(vae, some, z), off_the_guide)
    assert off_the_guide.shape == (3, 6, 3)
    torch.testing.assert_close(off_the_guide.exp().sum(-1), torch.ones(3, 6).double())


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_saved_model_comes_back_with_its_parameter(registered, cells, tmp_path, epochs):
    model = small_scale(cells, formulation="tempered")
    if epochs:
        train(model, epochs)
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", cells)
    ours, theirs = model.vae.state_dict(), loaded.vae.state_dict()
    assert set(ours) == set(theirs)
    assert "log_temperature" in theirs
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_model_without_its_file_says_to_import_it(cells, tmp_path):
    with ps.register(TEMPERED, [EXACT], CLOSED_FORM):
        small_scale(cells, formulation="tempered").save(tmp_path / "model")
    with pytest.raises(ps.ModelFileError, match=r"'tempered'.*import the module that registers it"):
        ps.SCALE.load(tmp_path / "model", cells)


def test_a_file_is_all_it_takes(tmp_path):
    """As a user has it: a module that registers on import, in a process of its own."""
    (tmp_path / "flat.py").write_text(
        textwrap.dedent(
            """
            import pyro, pyro.distributions as dist, torch
            import pyro_scale as ps
            from pyro_scale.objectives import ObjectiveSpec, terms
            from pyro_scale.programs import MixtureModel
            from pyro_scale.programs.formulations import Formulation, Program, Programs

            class FlatGuide(Program):
                def forward(self, cells, kl_weight=1.0):
                    encoder, k = self.vae.encoder, self.vae.n_components
                    with pyro.plate("cells", cells.n_cells), pyro.poutine.scale(scale=kl_weight):
                        z = pyro.sample("z", encoder.q_z(*encoder(cells)))
                        flat = dist.Categorical(logits=z.new_zeros(len(z), k))
                        pyro.sample("c", flat, infer={"enumerate": "parallel"})

            def flat(at):
                inner_nk = at.log_p_z_given_c_nk + at.log_pi_k
                k = torch.tensor(float(inner_nk.shape[-1]))
                log_q_z_n = terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)
                return at.log_lik_n + inner_nk.mean(-1) + k.log() - log_q_z_n

            ps.register(
                Formulation("flat", "q(z|x) / K", ("enumerated",),
                            lambda vae, _: Programs(MixtureModel(vae), FlatGuide(vae))),
                [ObjectiveSpec("flat", "TraceEnum_ELBO", "enumerated", "flat", "exact", "exact")],
                {"flat": flat},
            )
            """
        )
    )
    script = """
import flat, pyro_scale as ps
adata = ps.simulate(60, 80, n_clusters=2, density=0.1, seed=0)
model = ps.SCALE(adata, 3, 2, hidden=(8,), formulation="flat")
rows = ps.compare(model, n_cells=16, n_samples=8, formulations=["flat"]).rows
print([row.status for row in rows if row.supported])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['holds']"


def test_a_cell_that_is_run_twice_replaces_its_own(registered):
    with pytest.raises(ValueError, match="'tempered' is registered already: replace=True"):
        ps.register(TEMPERED, [EXACT], CLOSED_FORM)
    with ps.register(TEMPERED, [EXACT], {"tempered": collapsed}, replace=True):
        assert len([row for row in OBJECTIVES.listed if row.formulation == "tempered"]) == 1
        registered.remove()  # it is not there any more, and takes nothing of another out
        assert "tempered" in REGISTRY.formulations
    assert "tempered" not in REGISTRY.formulations


def test_a_closed_form_that_is_there_may_be_named_and_then_not_be_lost():
    other = TEMPERED._replace(name="warm")
    row = ObjectiveSpec("warm", "TraceEnum_ELBO", "enumerated", "tempered", "exact", "exact")
    first = ps.register(TEMPERED, [EXACT], CLOSED_FORM)
    with ps.register(other, [row]):
        with pytest.raises(ValueError, match="'tempered' is used by an objective of 'warm'"):
            first.remove()
        renamed = [changed(3, "another")]
        with pytest.raises(ValueError, match="'tempered' is used by an objective of 'warm'"):
            ps.register(TEMPERED, renamed, {"another": tempered}, replace=True)
        assert resolve_objective("warm") == row
    first.remove()
    first.remove()


def test_compare_names_the_formulations_there_are(cells):
    with pytest.raises(ValueError, match=r"formulations=\['hot'\]: expected some of collapsed"):
        compare(small_scale(cells), formulations=["hot"])


def test_another_likelihood_reads_the_cells(cells):
    """P(x = 1) = 1 - exp(-exp(eta)): the closed form looks at vae and cells."""

    class Thresholded(Program):
        def forward(self, cells, kl_weight=1.0):
            prior, decoder = self.vae.prior, self.vae.likelihood
            with pyro.plate("cells", cells.n_cells):
                with poutine.scale(scale=kl_weight):
                    z = pyro.sample("z", prior.mixture())
                probability = -torch.expm1(-decoder.logits(z, cells).exp())
                x = dist.Bernoulli(probability).to_event(1)
                pyro.sample("x", x, obs=cells.x_np)

    def thresholded(at):
        rate_np = at.vae.likelihood.logits(at.z_nd, at.cells.dense()).exp()
        x_np = at.cells.dense().x_np
        log_lik_n = (x_np * torch.log(-torch.expm1(-rate_np)) - (1 - x_np) * rate_np).sum(-1)
        return collapsed(at)._replace(log_lik_n=log_lik_n)

    formulation = Formulation(
        "thresholded",
        "q(z|x)",
        ("marginalized",),
        lambda vae, _: Programs(Thresholded(vae), LatentGuide(vae)),
    )
    row = ObjectiveSpec(
        "thresholded", "Trace_ELBO", "marginalized", "thresholded", "exact", "exact"
    )
    with ps.register(formulation, [row], {"thresholded": thresholded}):
        model = small_scale(cells)
        table = compare(model, n_cells=10, n_samples=5, formulations=["thresholded"])
        assert table.rows[0].status == "holds"
        trained = train(model)
        there = trained.get_elbo(bound="thresholded")  # sparse cells, in minibatches
        assert not np.allclose(there, trained.get_elbo(bound="collapsed"))


def test_another_encoder_shares_the_rest_and_the_closed_forms_follow(cells):
    class Free(torch.nn.Module):
        q_z = staticmethod(Encoder.q_z)

        def __init__(self, n, d):
            super().__init__()
            self.loc_nd = torch.nn.Parameter(torch.randn(n, d).double())
            self.log_var_nd = torch.nn.Parameter(torch.randn(n, d).double())

        def features(self, cells):
            return cells

        def moments(self, _):
            return self.loc_nd, self.log_var_nd.exp()

        def forward(self, cells):
            return self.moments(cells)

    vae = small_vae(n_peaks=cells.n_vars)
    free = vae.with_encoder(Free(8, 2))
    assert free.prior is vae.prior
    assert free.likelihood is vae.likelihood
    assert isinstance(vae.encoder, Encoder)
    some = ps.data.dense_cells(ps.data.CountMatrix.from_anndata(cells[:8]), dtype=torch.float64)
    one = estimate_objective(free, Objective(free, "structured", "TraceEnum_ELBO"), some)
    value, gradients = evaluate_closed_form(free, resolve_objective("structured"), some, one.z_nd)
    assert value == pytest.approx(one.loss, rel=1e-12)
    assert gradient_difference(one.gradients, gradients) < 1e-9
    assert gradients["encoder.loc_nd"].abs().min() > 0
