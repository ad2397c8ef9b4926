"""Evaluate one objective: by its estimator, and by its closed form at the estimator's z."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_scale.objectives import CLOSED_FORMS, Objective, ObjectiveSpec, evaluate
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

__all__ = [
    "Estimate",
    "Gradients",
    "closed_form_loss",
    "estimate_objective",
    "evaluate_closed_form",
    "gradient_difference",
    "unsupported_reason",
]

Gradients = dict[str, Tensor]


class Estimate(NamedTuple):
    """One evaluation of an estimator.

    Attributes
    ----------
    loss
        Minus the bound, summed over cells, in nats.
    gradients
        Gradients of the loss by parameter name; zeros for parameters that backward does not reach.
    z_nd
        z as drawn by the guide, shape ``(n, d)``, or ``(particles, n, d)`` for several particles.
    seconds
        Time to compute value and gradient.
    drawn_m, probability_m
        The m values that the discrete sites which the guide samples can take; for c these are
        cells x components. ``drawn_m`` tells whether each value was drawn, and ``probability_m`` is
        its probability, both of shape ``(m,)``. Both are empty if no discrete site is sampled.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective
    >>> estimate = estimate_objective(vae, Objective(vae, "collapsed", "Trace_ELBO"), cells)
    >>> estimate.z_nd.shape, estimate.gradients["prior.loc_kd"].shape
    (torch.Size([5, 2]), torch.Size([3, 2]))
    """

    loss: float
    gradients: Gradients
    z_nd: Tensor
    seconds: float
    drawn_m: Tensor
    probability_m: Tensor


class _SampleRecorder(Messenger):
    """Record the sites that the guide samples.

    The model replays the same values; they are recognized and not recorded again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[dict[str, Any]] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not any(msg["value"] is site["value"] for site in self.sites):
            self.sites.append({part: msg[part] for part in ("name", "value", "fn", "infer")})

    @property
    def z(self) -> list[Tensor]:
        """The draws of z, one per particle."""
        return [site["value"].detach() for site in self.sites if site["name"] == "z"]

    @torch.no_grad()
    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return whether each value of the discrete sites was drawn, and its probability.

        Both have shape ``(m,)``: one entry per site, value in its support and element of its batch.
        Enumerated sites are left out.
        """
        drawn, probability = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0)]
        for site in self.sites:
            fn, value, enumerated = site["fn"], site["value"], "_enumerate_dim" in site["infer"]
            if getattr(fn, "has_enumerate_support", False) and not enumerated:
                support = fn.enumerate_support()
                log_prob = fn.log_prob(support)
                same = (support == value).reshape(*log_prob.shape, -1).all(-1)
                drawn.append(same.flatten().cpu())
                probability.append(log_prob.exp().flatten().cpu())
        return torch.cat(drawn), torch.cat(probability)


def _take_gradients(vae: MixtureVAE) -> Gradients:
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in vae.named_parameters()
    }
    vae.zero_grad(set_to_none=True)
    return gradients


def estimate_objective(vae: MixtureVAE, objective: Objective, cells: CellBatch) -> Estimate:
    """Evaluate an objective and its gradients once, and record the z that the guide draws.

    Parameters
    ----------
    vae
        The networks and the prior.
    objective
        Loss of a formulation (a choice of q(z,c|x)) under an estimator, with the parameters of
        ``vae``.
    cells
        Minibatch of n cells, with accessibility of shape ``(n, p)``.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective
    >>> objective = Objective(vae, "collapsed", "RenyiELBO", n_particles=4)
    >>> estimate_objective(vae, objective, cells).z_nd.shape
    torch.Size([4, 5, 2])
    """
    vae.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with _SampleRecorder() as record:
        loss = objective.backward(cells)
    seconds = time.perf_counter() - started
    z_nd = record.z[0] if len(record.z) == 1 else torch.stack(record.z)
    return Estimate(loss, _take_gradients(vae), z_nd, seconds, *record.discrete())


def closed_form_loss(
    vae: MixtureVAE, spec: ObjectiveSpec, cells: CellBatch, z_nd: Tensor
) -> Tensor:
    """Return minus the closed form at z, summed over cells, as a differentiable scalar.

    z is reparameterized as loc + sd * noise, where the noise is recovered from ``z_nd``, so that
    gradients reach the encoder through z.
    """
    loc_nd, var_nd = vae.encoder(cells)
    noise_nd = ((z_nd - loc_nd) / var_nd.sqrt()).detach()
    z_nd = rsample(loc_nd, var_nd, noise_nd)
    at = evaluate(vae, cells, z_nd, moments=(loc_nd, var_nd))
    return -CLOSED_FORMS[spec.closed_form](at).sum()


def evaluate_closed_form(
    vae: MixtureVAE, spec: ObjectiveSpec, cells: CellBatch, z_nd: Tensor
) -> tuple[float, Gradients]:
    """Evaluate minus the closed form at z, summed over cells, and its gradients.

    Parameters
    ----------
    vae
        The networks and the prior.
    spec
        The objective, which names the closed form.
    cells
        Minibatch of n cells, with accessibility of shape ``(n, p)``.
    z_nd
        z as drawn by an estimator, shape ``(n, d)`` or ``(particles, n, d)``. It is written as
        loc + sd * noise, so that the gradients of the encoder include those through z.

    Returns
    -------
    tuple
        The value in nats, and the gradients by parameter name.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective, resolve_objective
    >>> spec = resolve_objective("structured")
    >>> objective = Objective(vae, "structured", "TraceEnum_ELBO")
    >>> estimate = estimate_objective(vae, objective, cells)
    >>> value, gradients = evaluate_closed_form(vae, spec, cells, estimate.z_nd)
    >>> abs(value - estimate.loss) < 1e-3, gradient_difference(estimate.gradients, gradients) < 1e-2
    (True, True)
    """
    vae.zero_grad(set_to_none=True)
    loss = closed_form_loss(vae, spec, cells, z_nd)
    loss.backward()
    return float(loss.detach()), _take_gradients(vae)


def gradient_difference(ours: Gradients, closed_form: Gradients) -> float:
    """Return the largest relative difference between two sets of gradients over all parameters.

    For gradients a in ``ours`` and b in ``closed_form``, dictionaries of tensors with the shapes of
    the parameters, the difference of one parameter is
    ``max|a - b| / max(max|b|, 1e-6 * max over all parameters of max|b|)``.

    Examples
    --------
    >>> ours, closed_form = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    >>> gradient_difference({"weight": ours}, {"weight": closed_form})
    0.2
    """
    largest = max(float(b.abs().max()) for b in closed_form.values())
    worst = 0.0
    for name, b in closed_form.items():
        difference = float((ours[name] - b).abs().max())
        scale = max(float(b.abs().max()), 1e-6 * largest)
        if math.isnan(difference):
            return math.inf
        if difference > 0:
            worst = max(worst, difference / scale if scale > 0 else math.inf)
    return worst


def unsupported_reason(vae: MixtureVAE, spec: ObjectiveSpec, cells: CellBatch) -> str:
    """Return why an objective is unsupported.

    The objective is evaluated once on ``cells``. The reason is the error raised or, if there is
    none, the warnings and the note of the objective.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            objective = Objective(
                vae, spec.formulation, spec.estimator, spec.c, n_particles=spec.n_particles
            )
            objective.backward(cells)
        except Exception as error:  # any error of Pyro or of the programs is the reason
            return f"{type(error).__name__}: {error}"
        finally:
            vae.zero_grad(set_to_none=True)
    messages = dict.fromkeys(
        " ".join(str(w.message).split()) for w in caught if w.category is UserWarning
    )
    return "; ".join(
        [*(f"UserWarning: {text}" for text in messages), *([spec.note] if spec.note else [])]
        or ["the estimator runs, but no closed form is registered for what it computes"]
    )
