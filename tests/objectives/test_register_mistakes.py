"""`register`: a mistake is named, and nothing is registered."""

import pytest
from helpers import small_scale
from helpers.registered_formulation import (
    CLOSED_FORM,
    EXACT,
    EXACT_FIELDS,
    TEMPERED,
    changed,
    tempered,
)

import pyro_scale as ps
from pyro_scale.comparison import compare
from pyro_scale.objectives import ObjectiveSpec, collapsed, resolve_objective
from pyro_scale.programs import MixtureModel
from pyro_scale.programs.formulations import Program, Programs

REFUSED = {
    "a name of the package": (
        TEMPERED._replace(name="collapsed"),
        [EXACT],
        CLOSED_FORM,
        "package's own",
        ValueError,
    ),
    "no word": (
        TEMPERED._replace(name="a b"),
        [EXACT],
        CLOSED_FORM,
        "expected an identifier",
        ValueError,
    ),
    "no formulation": ("tempered", [EXACT], CLOSED_FORM, "expected a .*Formulation", TypeError),
    "no function": (
        TEMPERED._replace(build=3),
        [EXACT],
        CLOSED_FORM,
        "build .* is a int",
        TypeError,
    ),
    "no treatment": (
        TEMPERED._replace(treatments=()),
        [EXACT],
        CLOSED_FORM,
        "treatments=",
        ValueError,
    ),
    "a word as treatments": (
        TEMPERED._replace(treatments="sampled"),
        [EXACT],
        CLOSED_FORM,
        "expected a tuple of marginalized, enumerated, sampled",
        ValueError,
    ),
    "no programs": (
        TEMPERED._replace(build=lambda vae, _: MixtureModel(vae)),
        [EXACT],
        CLOSED_FORM,
        r"expected Programs\(model, guide\)",
        TypeError,
    ),
    "plain functions": (
        TEMPERED._replace(build=lambda vae, _: Programs(print, print)),
        [EXACT],
        CLOSED_FORM,
        "each a .*Program",
        TypeError,
    ),
    "a closed form of the package": (
        TEMPERED,
        [changed(3, "scale")],
        {"scale": tempered},
        "'scale' of 'tempered' exists already",
        ValueError,
    ),
    "a closed form that is none": (TEMPERED, [EXACT], {"tempered": 1}, "is a int", TypeError),
    "a closed form no row names": (
        TEMPERED,
        [EXACT],
        CLOSED_FORM | {"other": tempered},
        "no objective of 'tempered' uses its closed form 'other'",
        ValueError,
    ),
    "a row of another": (
        TEMPERED,
        [EXACT, changed(0, "scale")],
        CLOSED_FORM,
        "objective of 'scale', not of 'tempered'",
        ValueError,
    ),
    "an unknown estimator": (
        TEMPERED,
        [changed(1, "SVI")],
        CLOSED_FORM,
        "estimator='SVI'; choose one of Trace_ELBO",
        ValueError,
    ),
    "an unknown closed form": (
        TEMPERED,
        [EXACT, changed(3, "hot")],
        CLOSED_FORM,
        "closed_form='hot'; choose one of collapsed.*, tempered",
        ValueError,
    ),
    "a treatment it lacks": (
        TEMPERED,
        [changed(2, "collapsed")],
        CLOSED_FORM,
        "c='collapsed'; choose one of enumerated, sampled",
        ValueError,
    ),
    "an agreement that there is not": (
        TEMPERED,
        [changed(4, "nearly")],
        CLOSED_FORM,
        "value_agreement='nearly'; choose one of exact, in expectation",
        ValueError,
    ),
    "half a row": (
        TEMPERED,
        [changed(5, "unsupported")],
        CLOSED_FORM,
        "supported in part",
        ValueError,
    ),
    "an unsupported row with a closed form": (
        TEMPERED,
        [EXACT, ObjectiveSpec("tempered", "RenyiELBO", "sampled", "tempered")],
        CLOSED_FORM,
        "supported in part",
        ValueError,
    ),
    "a row twice": (TEMPERED, [EXACT, EXACT], CLOSED_FORM, "is listed twice", ValueError),
    "a tuple for a row": (
        TEMPERED,
        [EXACT_FIELDS],
        CLOSED_FORM,
        "expected a pyro_scale.objectives.ObjectiveSpec",
        TypeError,
    ),
    "nothing supported": (
        TEMPERED,
        [ObjectiveSpec("tempered", "RenyiELBO", "sampled", note="biased")],
        {},
        "no supported objective",
        ValueError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_named_and_registers_nothing(name):
    formulation, rows, closed_forms, words, kind = REFUSED[name]
    with pytest.raises(kind, match=words):
        ps.register(formulation, rows, closed_forms)


def test_a_refused_replacement_leaves_the_first(registered):
    with pytest.raises(ValueError, match="closed_form='hot'"):
        ps.register(TEMPERED, [changed(3, "hot")], replace=True)
    assert resolve_objective("tempered") == EXACT


def test_a_build_that_fails_says_so_itself():
    def broken(vae, _):
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        ps.register(TEMPERED._replace(build=broken), [EXACT], CLOSED_FORM)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda at: at.log_lik_n.mean(), r"returned \(\) for 5 cells"),
        (lambda at: 0.0, "returned float"),
    ],
)
def test_a_closed_form_of_the_wrong_shape_is_named_with_its_row(cells, form, words):
    with (
        ps.register(TEMPERED, [EXACT], {"tempered": form}),
        pytest.raises(ValueError, match=words),
    ):
        compare(small_scale(cells), n_cells=5, n_samples=3, formulations=["tempered"])


def test_what_goes_wrong_in_a_row_says_which_row(cells):
    class Odd(Program):
        def forward(self, cells, kl_weight=1.0):
            raise ZeroDivisionError("in the guide")

    odd = TEMPERED._replace(build=lambda vae, _: Programs(MixtureModel(vae), Odd(vae)))
    with (
        ps.register(odd, [EXACT], {"tempered": collapsed}),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        compare(small_scale(cells), n_cells=5, n_samples=3, formulations=["tempered"])
    assert caught.value.__notes__ == ["in the objective tempered, TraceEnum_ELBO, c enumerated"]
