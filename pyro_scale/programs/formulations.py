"""Which model and guide make a formulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pyro_scale.programs._program import Program
from pyro_scale.programs.guides import (
    AmortizedGuide,
    AuxiliaryGuide,
    LatentGuide,
    MeanFieldGuide,
    StructuredGuide,
)
from pyro_scale.programs.models import AuxiliaryModel, CollapsedModel, MixtureModel
from pyro_scale.programs.vae import MixtureVAE

__all__ = ["FORMULATIONS", "Formulation", "Program", "Programs", "Treatment", "build"]

Treatment = Literal["collapsed", "enumerated", "sampled"]
"""What becomes of c: summed out by a density, enumerated by Pyro, or sampled."""


class Programs(NamedTuple):
    """A model and the guide that goes with it.

    Attributes
    ----------
    model
        p(x, z, c), or p(x, z).
    guide
        q(z,c|x), or q(z|x).

    Examples
    --------
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> type(Programs(MixtureModel(vae), StructuredGuide(vae)).guide).__name__
    'StructuredGuide'
    """

    model: Program
    guide: Program


class Formulation(NamedTuple):
    """A choice of q(z,c|x), and how to build its programs.

    Attributes
    ----------
    name
        The value of ``formulation=``.
    posterior
        q(z,c|x) in words.
    treatments
        What can become of c, the preferred way first.
    build
        Builds the programs over a :class:`MixtureVAE`, c enumerated or not. Parameters of its
        own it gives to the ``vae`` where that has none yet, on its device and in its dtype.

    Examples
    --------
    >>> formulation = FORMULATIONS["structured"]
    >>> formulation.posterior, formulation.treatments
    ('q(z|x) p(c|z)', ('enumerated', 'sampled'))
    """

    name: str
    posterior: str
    treatments: tuple[Treatment, ...]
    build: Callable[[MixtureVAE, bool], Programs]


FORMULATIONS: dict[str, Formulation] = {
    formulation.name: formulation
    for formulation in (
        Formulation(
            "collapsed",
            "q(z|x), mixture prior on z",
            ("collapsed",),
            lambda vae, _: Programs(CollapsedModel(vae), LatentGuide(vae)),
        ),
        Formulation(
            "model_enumerated",
            "q(z|x), c enumerated in the model",
            ("enumerated",),
            lambda vae, _: Programs(MixtureModel(vae, enumerate_c=True), LatentGuide(vae)),
        ),
        Formulation(
            "structured",
            "q(z|x) p(c|z)",
            ("enumerated", "sampled"),
            lambda vae, enum: Programs(MixtureModel(vae), StructuredGuide(vae, enumerate_c=enum)),
        ),
        Formulation(
            "mean_field",
            "q(z|x) g*(c|x)",
            ("enumerated", "sampled"),
            lambda vae, enum: Programs(MixtureModel(vae), MeanFieldGuide(vae, enumerate_c=enum)),
        ),
        Formulation(
            "amortized",
            "q(z|x) q(c|x), q(c|x) a classifier network",
            ("enumerated", "sampled"),
            lambda vae, enum: Programs(MixtureModel(vae), AmortizedGuide(vae, enumerate_c=enum)),
        ),
        Formulation(
            "scale",
            "q(u|x) p(c|z=u) q(z|x), u auxiliary",
            ("enumerated", "sampled"),
            lambda vae, enum: Programs(AuxiliaryModel(vae), AuxiliaryGuide(vae, enumerate_c=enum)),
        ),
    )
}
"""Every formulation by name; :func:`pyro_scale.register` adds one, with its rows of the table."""


def build(vae: MixtureVAE, formulation: str, c: Treatment | None = None) -> Programs:
    """The model and guide of a formulation, over the parameters ``vae``.

    Parameters
    ----------
    vae
        The parameters.
    formulation
        A name in :data:`FORMULATIONS`.
    c
        ``"enumerated"`` or ``"sampled"`` where the formulation leaves the choice; None takes
        its preferred way.

    Raises
    ------
    ValueError
        For an unknown formulation, or a treatment of c that it does not have.

    Examples
    --------
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> model, guide = build(vae, "structured")
    >>> type(guide).__name__
    'StructuredGuide'
    """
    chosen = FORMULATIONS.get(formulation)
    if chosen is None:
        raise ValueError(
            f"formulation={formulation!r} is not known; choose one of {', '.join(FORMULATIONS)}, "
            "or import the file that registers it (pyro_scale.register)."
        )
    treatment = chosen.treatments[0] if c is None else c
    if treatment not in chosen.treatments:
        raise ValueError(
            f"formulation={formulation!r} has c {' or '.join(chosen.treatments)}, not {c!r}."
        )
    return chosen.build(vae, treatment == "enumerated")
