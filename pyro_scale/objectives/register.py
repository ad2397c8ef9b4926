"""A formulation of your own, in the table beside those of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor

from pyro_scale.objectives.estimators import ESTIMATORS
from pyro_scale.objectives.point import Point, Terms
from pyro_scale.objectives.table import TABLE, TWINS, Agreement, Row
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import FORMULATIONS, Formulation, MixtureVAE, Treatment
from pyro_scale.programs.formulations import Program

__all__ = ["ClosedForm", "Registration", "register"]

ClosedForm = Callable[[Point], Tensor | Terms]
"""A bound per cell, derived by hand: as its five terms, or their sum of shape ``(..., n)``."""

_REGISTERED: dict[str, Registration] = {}


class Registration:
    """A registered formulation: ``remove()`` takes it out again, and so does leaving ``with``.

    Attributes
    ----------
    formulation, rows, twins
        What was registered; the twins by name.

    Examples
    --------
    >>> row = Row("again", "Trace_ELBO", "collapsed", "collapsed", "exact", "exact")
    >>> again = register(FORMULATIONS["collapsed"]._replace(name="again"), [row])
    >>> again
    Registration('again', 1 supported rows)
    >>> again.remove()
    """

    def __init__(
        self, formulation: Formulation, rows: tuple[Row, ...], twins: tuple[str, ...]
    ) -> None:
        self.formulation, self.rows, self.twins = formulation, rows, twins

    def remove(self) -> None:
        """Take the formulation, its rows and its closed forms out; a second time does nothing.

        Raises
        ------
        ValueError
            If another formulation's rows name one of its closed forms.
        """
        name = self.formulation.name
        if _REGISTERED.get(name) is not self:
            return
        _refuse_loss_of_twins(self, kept=())
        _take_out(self)

    def __enter__(self) -> Registration:
        """Until the end of the ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        supported = sum(row.supported for row in self.rows)
        return f"Registration({self.formulation.name!r}, {supported} supported rows)"


def register(
    formulation: Formulation,
    rows: Iterable[Row],
    twins: Mapping[str, ClosedForm] | None = None,
    *,
    replace: bool = False,
) -> Registration:
    """Add a formulation to the table, with what each estimator computes on its programs.

    From then on, in this process, ``pyro_scale.compare`` holds its programs against its closed
    forms, ``pyro_scale.SCALE(adata, formulation=name)`` trains it, ``model.get_elbo(bound=twin)``
    evaluates it. q(z|x) is the encoder's Gaussian in every formulation: that is what the closed
    forms' z moves with.

    Parameters
    ----------
    formulation
        Its name, q(z,c|x) in words, what can become of c, and how its programs are built.
    rows
        Its rows of the table; the first supported one is the default of training. A combination
        that is not listed is refused, and ``compare`` says why in Pyro's words.
    twins
        Its new closed forms by name, each a function of a :class:`~pyro_scale.objectives.Point`
        that returns the bound per cell. A row may also name a closed form that is there already.
    replace
        Take out a formulation that was *registered* under this name before (a cell of a notebook
        that is run again).

    Returns
    -------
    Registration
        Its ``remove()`` leaves everything as it was; so does the end of ``with register(...):``.

    Raises
    ------
    TypeError
        If ``formulation``, a row, a closed form or what ``build`` returns is something else.
    ValueError
        For a name that is taken, a row of another formulation, one that is there twice, or one
        that names an estimator, a treatment of c or a closed form that there is not. Nothing is
        registered then.

    Examples
    --------
    q(c|z) uniform, whatever z is: a poor choice, and a bound all the same.

    >>> import pyro, pyro.distributions as dist, torch
    >>> import pyro_scale as ps
    >>> from pyro_scale.objectives import Row, Terms, terms
    >>> from pyro_scale.programs import MixtureModel
    >>> from pyro_scale.programs.formulations import Formulation, Program, Programs
    >>> class FlatGuide(Program):
    ...     def forward(self, cells, kl_weight=1.0):
    ...         encoder, k = self.vae.encoder, self.vae.n_components
    ...         with pyro.plate("cells", cells.n_cells), pyro.poutine.scale(scale=kl_weight):
    ...             z = pyro.sample("z", encoder.q_z(*encoder(cells)))
    ...             flat = dist.Categorical(logits=z.new_zeros(len(z), k))
    ...             pyro.sample("c", flat, infer={"enumerate": "parallel"})
    >>> def flat(at):
    ...     k = len(at.log_pi_k)
    ...     minus_log_q_z_n = -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)
    ...     log_k_n = torch.full_like(at.log_lik_n, k).log()
    ...     log_p_z_n = at.log_p_z_given_c_nk.mean(-1)
    ...     return Terms(at.log_lik_n, log_p_z_n, at.log_pi_k.mean(), minus_log_q_z_n, log_k_n)
    >>> with ps.register(
    ...     Formulation("flat", "q(z|x) / K", ("enumerated",),
    ...                 lambda vae, _: Programs(MixtureModel(vae), FlatGuide(vae))),
    ...     rows=[Row("flat", "TraceEnum_ELBO", "enumerated", "flat", "exact", "exact")],
    ...     twins={"flat": flat},
    ... ):
    ...     adata = ps.simulate(n_cells=60, n_peaks=100, n_clusters=2, density=0.1, seed=0)
    ...     model = ps.SCALE(adata, n_components=3, n_latent=2, hidden=(16,), preset="plain")
    ...     table = ps.compare(model, n_samples=50, formulations=["flat"])
    >>> [(row.estimator, row.verdict) for row in table.rows if row.supported]
    [('TraceEnum_ELBO', 'holds')]
    """
    _refuse_formulation(formulation)
    name = formulation.name
    earlier = _REGISTERED.get(name)
    if name in FORMULATIONS and (earlier is None or not replace):
        raise ValueError(
            f"formulation {name!r} is the package's own: choose another name."
            if earlier is None
            else f"formulation {name!r} is registered already: replace=True takes it out first."
        )
    forms = dict(twins or {})
    listed = tuple(rows)
    _refuse_twins(name, forms, earlier)
    _refuse_rows(formulation, listed, forms, earlier)
    _refuse_programs(formulation)
    if earlier is not None:
        _refuse_loss_of_twins(earlier, kept=forms)
        _take_out(earlier)
    new = Registration(formulation, listed, tuple(forms))
    FORMULATIONS[name] = formulation
    TWINS.update({twin: _as_twin(twin, form) for twin, form in forms.items()})
    _REGISTERED[name] = new
    TABLE._set((*TABLE.listed, *listed))
    return new


def _take_out(old: Registration) -> None:
    del FORMULATIONS[old.formulation.name], _REGISTERED[old.formulation.name]
    for twin in old.twins:
        del TWINS[twin]
    TABLE._set(tuple(row for row in TABLE.listed if row.formulation != old.formulation.name))


def _as_twin(name: str, form: ClosedForm) -> Callable[[Point, Tensor | None], Tensor]:
    """The form as :data:`TWINS` has them, its result checked."""

    def twin(at: Point, _: Tensor | None) -> Tensor:
        value = form(at)
        value_n = value.total() if isinstance(value, Terms) else value
        n = at.log_lik_n.shape[-1]
        if not isinstance(value_n, Tensor) or value_n.shape[-1:] != (n,):
            got = tuple(value_n.shape) if isinstance(value_n, Tensor) else type(value_n).__name__
            raise ValueError(
                f"closed form {name!r} returned {got} for {n} cells: expected Terms, or a tensor "
                "with one bound per cell in its last dimension."
            )
        return value_n

    return twin


def _refuse_formulation(formulation: Formulation) -> None:
    if not isinstance(formulation, Formulation):
        raise TypeError(
            f"formulation is a {type(formulation).__name__}: expected a "
            "pyro_scale.programs.Formulation(name, posterior, treatments, build)."
        )
    name, _, treatments, build = formulation
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name={name!r}: expected a word such as 'tempered'.")
    if not callable(build):
        raise TypeError(f"build of {name!r} is a {type(build).__name__}: expected a function.")
    known = get_args(Treatment)
    if isinstance(treatments, str) or not treatments or set(treatments) - set(known):
        raise ValueError(
            f"treatments={treatments!r} of {name!r}: expected a tuple of {', '.join(known)}, the "
            "preferred one first."
        )


def _refuse_twins(name: str, forms: Mapping[str, ClosedForm], earlier: Registration | None) -> None:
    replaced = () if earlier is None else earlier.twins
    for twin, form in forms.items():
        if twin in TWINS and twin not in replaced:
            raise ValueError(
                f"closed form {twin!r} of {name!r} is there already: name it in the rows if it is "
                "the same, or choose another name."
            )
        if not callable(form):
            raise TypeError(
                f"closed form {twin!r} is a {type(form).__name__}: expected a function of a Point."
            )


def _refuse_rows(
    formulation: Formulation,
    rows: tuple[Row, ...],
    forms: Mapping[str, ClosedForm],
    earlier: Registration | None,
) -> None:
    name, _, treatments, _ = formulation
    replaced = () if earlier is None else earlier.twins
    known = {
        "estimator": tuple(ESTIMATORS),
        "c": treatments,
        "value_agreement": get_args(Agreement),
        "gradient_agreement": get_args(Agreement),
        "twin": ("", *(twin for twin in TWINS if twin not in replaced), *forms),
    }
    seen = set()
    for row in rows:
        if not isinstance(row, Row):
            raise TypeError(
                f"a row of {name!r} is a {type(row).__name__}: expected pyro_scale.objectives.Row."
            )
        if row.formulation != name:
            raise ValueError(f"{row} is a row of {row.formulation!r}, not of {name!r}.")
        for field, values in known.items():
            if (given := getattr(row, field)) not in values:
                raise ValueError(
                    f"a row of {name!r} has {field}={given!r}; there is "
                    f"{', '.join(filter(None, values))}."
                )
        supported = {row.value_agreement, row.gradient_agreement} != {"unsupported"}
        half = "unsupported" in (row.value_agreement, row.gradient_agreement)
        if supported and (half or not row.twin):
            raise ValueError(
                f"{row} is supported in part: it needs a twin and the agreement of both value and "
                "gradient, or none of them."
            )
        if (cell := (row.estimator, row.c, row.twin)) in seen:
            raise ValueError(f"{row} is there twice.")
        seen.add(cell)
    if not any(row.supported for row in rows):
        raise ValueError(f"{name!r} has no supported row, so there is nothing to compare or train.")
    if unused := sorted(set(forms) - {row.twin for row in rows}):
        raise ValueError(f"no row of {name!r} names its closed form {unused[0]!r}.")


@one_at_a_time()
def _refuse_programs(formulation: Formulation) -> None:
    """Build them once, over a small model that is thrown away."""
    with torch.random.fork_rng(devices=[]):
        for c in formulation.treatments:
            vae = MixtureVAE(n_peaks=4, n_components=2, n_latent=2, hidden=(3,))
            built = formulation.build(vae, c == "enumerated")
            pair = isinstance(built, tuple) and len(built) == 2
            if not pair or not all(isinstance(program, Program) for program in built):
                raise TypeError(
                    f"build of {formulation.name!r} returned {built!r}: expected "
                    "Programs(model, guide), each a pyro_scale.programs.formulations.Program."
                )


def _refuse_loss_of_twins(old: Registration, kept: Iterable[str]) -> None:
    lost = set(old.twins).difference(kept)
    for row in TABLE.listed:
        if row.twin in lost and row.formulation != old.formulation.name:
            raise ValueError(
                f"closed form {row.twin!r} of {old.formulation.name!r} is named by a row of "
                f"{row.formulation!r}: remove that first."
            )
