"""The formulations: choices of q(z,c|x), with the Pyro model and guide that define them."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_scale._locking import exclusive
from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.guides import (
    AmortizedGuide,
    AuxiliaryGuide,
    LatentGuide,
    MeanFieldGuide,
    StructuredGuide,
)
from pyro_scale.programs.models import AuxiliaryModel, CollapsedModel, MixtureModel, Program
from pyro_scale.programs.vae import MixtureVAE

__all__ = [
    "FORMULATIONS",
    "ConditioningOfC",
    "Formulation",
    "Program",
    "Programs",
    "Treatment",
    "build_programs",
]

Treatment = Literal["marginalized", "enumerated", "sampled"]
"""How the mixture component c is treated: summed out by the mixture density, enumerated by Pyro
(an exact sum), or sampled."""

ConditioningOfC = Literal["z", "x", "u"]
"""The variable that the variational distribution of c is conditioned on: z, x alone, or u, an
auxiliary draw from q(z|x)."""


class Programs(NamedTuple):
    """A model and its guide.

    Attributes
    ----------
    model
        The program of p(x, z, c), or of p(x, z).
    guide
        The program of q(z,c|x), or of q(z|x).

    Examples
    --------
    >>> type(Programs(MixtureModel(vae), StructuredGuide(vae)).guide).__name__
    'StructuredGuide'
    """

    model: Program
    guide: Program


class Formulation(NamedTuple):
    """A choice of q(z,c|x), with the functions that build its programs and evaluate its q(c|.).

    q(c|.) is the variational distribution of the mixture component c; ``c_given`` names the
    variable that it is conditioned on.

    Attributes
    ----------
    name
        Name of the formulation, which users give as ``formulation=``.
    posterior
        Description of q(z,c|x).
    treatments
        The ways in which c can be treated (``"marginalized"``, ``"enumerated"``, ``"sampled"``),
        the default first.
    build
        Function ``(vae, enumerate_c) -> Programs`` that builds the model and the guide with the
        parameters of a :class:`MixtureVAE`. If the formulation needs further parameters, the
        function adds them to a ``vae`` that does not have them yet, on the device and in the dtype
        of the ``vae``.
    log_q_c
        Function ``(vae, cells, z_nd) -> log q(c|.)`` with a result of shape ``(..., n, k)`` for
        ``z_nd`` of shape ``(..., n, d)``. With None, the guide is run with z fixed to ``z_nd``, and
        q(c|.) is its distribution of c; if the guide has no c, q(c|.) is the exact posterior
        p(c|z).
    c_given
        Variable that q(c|.) is conditioned on: ``"z"``, ``"x"`` or ``"u"``. With ``"u"``, the third
        argument of ``log_q_c`` is u.
    needs_classifier
        Whether the ``vae`` needs the classifier network q(c|x).

    Examples
    --------
    >>> formulation = FORMULATIONS["structured"]
    >>> formulation.posterior, formulation.treatments
    ('q(z|x) p(c|z)', ('enumerated', 'sampled'))
    >>> formulation.log_q(vae, cells, torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    name: str
    posterior: str
    treatments: tuple[Treatment, ...]
    build: Callable[[MixtureVAE, bool], Programs]
    log_q_c: Callable[[MixtureVAE, CellBatch, Tensor], Tensor] | None = None
    c_given: ConditioningOfC = "z"
    needs_classifier: bool = False

    def log_q(self, vae: MixtureVAE, cells: CellBatch, z_nd: Tensor) -> Tensor:
        """Return the log of the variational distribution of c, shape ``(..., n, k)``.

        Parameters
        ----------
        vae
            Module that holds the parameters.
        cells
            A minibatch of n cells.
        z_nd
            Values of z, or of u if ``c_given`` is ``"u"``, shape ``(..., n, d)``.
        """
        if self.log_q_c is not None:
            log_q_c_nk = self.log_q_c(vae, cells, z_nd)
        else:
            log_q_c_nk = _log_q_c_of_guide(self.build(vae, False).guide, vae, cells, z_nd)
        return log_q_c_nk.expand(*z_nd.shape[:-1], -1)


def _log_q_c_of_guide(guide: Program, vae: MixtureVAE, cells: CellBatch, z_nd: Tensor) -> Tensor:
    """Return the log of a guide's distribution of c, with z fixed.

    If the guide has no site "c", return log p(c|z).
    """
    if z_nd.ndim > 2:  # guides expect one draw per cell
        return torch.stack([_log_q_c_of_guide(guide, vae, cells, z) for z in z_nd])
    fixed = {"z": z_nd, "u": z_nd, "c": z_nd.new_zeros(len(z_nd), dtype=torch.int64)}
    with exclusive(), torch.random.fork_rng(devices=[]):  # a guide may sample other sites
        site = poutine.trace(poutine.condition(guide, fixed)).get_trace(cells).nodes.get("c")
    if site is None:
        return vae.prior.log_responsibilities(z_nd)
    log_q_c_kn: Tensor = site["fn"].log_prob(site["fn"].enumerate_support())
    return log_q_c_kn.movedim(0, -1)


def _log_p_c_given_z(vae: MixtureVAE, _: CellBatch, z_nd: Tensor) -> Tensor:
    return vae.prior.log_responsibilities(z_nd)


def _log_g_star(vae: MixtureVAE, cells: CellBatch, _: Tensor) -> Tensor:
    return vae.prior.log_optimal_q_c(*vae.encoder(cells))


def _log_classifier(vae: MixtureVAE, cells: CellBatch, _: Tensor) -> Tensor:
    return vae.log_q_c(cells)


FORMULATIONS = MappingProxyType(
    {
        formulation.name: formulation
        for formulation in (
            Formulation(
                "collapsed",
                "q(z|x), mixture prior on z",
                ("marginalized",),
                lambda vae, _: Programs(CollapsedModel(vae), LatentGuide(vae)),
                _log_p_c_given_z,
            ),
            Formulation(
                "model_enumerated",
                "q(z|x), c enumerated in the model",
                ("enumerated",),
                lambda vae, _: Programs(MixtureModel(vae, enumerate_c=True), LatentGuide(vae)),
                _log_p_c_given_z,
            ),
            Formulation(
                "structured",
                "q(z|x) p(c|z)",
                ("enumerated", "sampled"),
                lambda vae, enumerate_c: Programs(
                    MixtureModel(vae), StructuredGuide(vae, enumerate_c=enumerate_c)
                ),
                _log_p_c_given_z,
            ),
            Formulation(
                "mean_field",
                "q(z|x) g*(c|x)",
                ("enumerated", "sampled"),
                lambda vae, enumerate_c: Programs(
                    MixtureModel(vae), MeanFieldGuide(vae, enumerate_c=enumerate_c)
                ),
                _log_g_star,
                c_given="x",
            ),
            Formulation(
                "amortized",
                "q(z|x) q(c|x), q(c|x) a classifier network",
                ("enumerated", "sampled"),
                lambda vae, enumerate_c: Programs(
                    MixtureModel(vae), AmortizedGuide(vae, enumerate_c=enumerate_c)
                ),
                _log_classifier,
                c_given="x",
                needs_classifier=True,
            ),
            Formulation(
                "scale",
                "q(u|x) p(c|z=u) q(z|x), u auxiliary",
                ("enumerated", "sampled"),
                lambda vae, enumerate_c: Programs(
                    AuxiliaryModel(vae), AuxiliaryGuide(vae, enumerate_c=enumerate_c)
                ),
                _log_p_c_given_z,
                c_given="u",
            ),
        )
    }
)
"""The built-in formulations by name; :func:`pyro_scale.register` adds others to
:data:`pyro_scale.objectives.REGISTRY`, not to this mapping."""


def build_programs(
    vae: MixtureVAE, formulation: Formulation, treatment: Treatment | None = None
) -> Programs:
    """Build the model and the guide of a formulation, a choice of q(z,c|x).

    Parameters
    ----------
    vae
        Module that holds the parameters.
    formulation
        One of :data:`FORMULATIONS`, or another :class:`Formulation`.
    treatment
        How the mixture component c is treated: ``"marginalized"``, ``"enumerated"`` or
        ``"sampled"``, one of ``formulation.treatments``. If None, the first of these.

    Raises
    ------
    ValueError
        If the formulation does not support the treatment.

    Examples
    --------
    >>> model, guide = build_programs(vae, FORMULATIONS["structured"])
    >>> type(guide).__name__
    'StructuredGuide'
    """
    chosen = formulation.treatments[0] if treatment is None else treatment
    if chosen not in formulation.treatments:
        raise ValueError(
            f"formulation={formulation.name!r} supports c="
            f"{' or '.join(map(repr, formulation.treatments))}, not {treatment!r}."
        )
    return formulation.build(vae, chosen == "enumerated")
