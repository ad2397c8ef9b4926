"""One row of the table, evaluated: the estimator, and its twin at the estimator's own z."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_scale.objectives import TWINS, Objective, Row, evaluate
from pyro_scale.programs import Cells, MixtureVAE

__all__ = [
    "Draw",
    "Gradients",
    "draw",
    "gradient_difference",
    "refusal",
    "twin_draw",
    "twin_loss",
]

Gradients = dict[str, Tensor]


class Draw(NamedTuple):
    """One evaluation of an estimator.

    Attributes
    ----------
    loss
        Minus the bound, summed over cells, in nats.
    gradients
        Of the loss, by parameter name; zeros where a parameter is not reached.
    z_nd
        z as the guide drew it, ``(n, d)``, or ``(particles, n, d)`` for several particles.
    seconds
        Of value and gradient together.
    drawn_m, probability_m
        Every value that a discrete site of the guide can take, m of them (cells x components for
        c): whether it was drawn, and how probable it was. Empty where nothing discrete is drawn.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective, find_row
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> one = draw(vae, Objective(vae, "collapsed", "Trace_ELBO"), cells)
    >>> one.z_nd.shape, one.gradients["prior.loc_kd"].shape
    (torch.Size([5, 2]), torch.Size([3, 2]))
    """

    loss: float
    gradients: Gradients
    z_nd: Tensor
    seconds: float
    drawn_m: Tensor
    probability_m: Tensor


class _Record(Messenger):
    """Keeps what the guide draws; the model replays the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[dict[str, Any]] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not any(msg["value"] is kept["value"] for kept in self.sites):
            self.sites.append({part: msg[part] for part in ("name", "value", "fn", "infer")})

    @property
    def z(self) -> list[Tensor]:
        """As often as it was drawn."""
        return [site["value"].detach() for site in self.sites if site["name"] == "z"]

    @torch.no_grad()
    def discrete(self) -> tuple[Tensor, Tensor]:
        """Over the discrete sites that were drawn and not enumerated."""
        drawn, probable = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0)]
        for site in self.sites:
            fn, value, enumerated = site["fn"], site["value"], "_enumerate_dim" in site["infer"]
            if getattr(fn, "has_enumerate_support", False) and not enumerated:
                support = fn.enumerate_support()
                log_prob = fn.log_prob(support)
                same = (support == value).reshape(*log_prob.shape, -1).all(-1)
                drawn.append(same.flatten().cpu())
                probable.append(log_prob.exp().flatten().cpu())
        return torch.cat(drawn), torch.cat(probable)


def _take_gradients(vae: MixtureVAE) -> Gradients:
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in vae.named_parameters()
    }
    vae.zero_grad(set_to_none=True)
    return gradients


def draw(vae: MixtureVAE, objective: Objective, cells: Cells) -> Draw:
    """Evaluate an objective once, with gradients, and keep its z.

    Parameters
    ----------
    vae
        The parameters.
    objective
        Programs under an estimator, over ``vae``.
    cells
        n cells, accessibility of shape ``(n, p)``.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective, find_row
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> draw(vae, Objective(vae, "collapsed", "RenyiELBO", n_particles=4), cells).z_nd.shape
    torch.Size([4, 5, 2])
    """
    vae.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with _Record() as record:
        loss = objective.backward(cells)
    seconds = time.perf_counter() - started
    z_nd = record.z[0] if len(record.z) == 1 else torch.stack(record.z)
    return Draw(loss, _take_gradients(vae), z_nd, seconds, *record.discrete())


def twin_loss(vae: MixtureVAE, row: Row, cells: Cells, z_nd: Tensor) -> Tensor:
    """Minus the row's closed form at z, summed over cells: a differentiable scalar.

    z moves with the encoder, as loc + sd * noise with the noise of the estimator's own draw.
    """
    features = vae.encoder.features(cells)
    loc_nd, var_nd = vae.encoder.moments(features)
    noise_nd = ((z_nd - loc_nd) / var_nd.sqrt()).detach()
    at = evaluate(vae, cells, loc_nd + var_nd.sqrt() * noise_nd, moments=(loc_nd, var_nd))
    amortized = row.formulation == "amortized"
    log_q_c_nk = vae.required_classifier(features) if amortized else None
    return -TWINS[row.twin](at, log_q_c_nk).sum()


def twin_draw(vae: MixtureVAE, row: Row, cells: Cells, z_nd: Tensor) -> tuple[float, Gradients]:
    """Minus a row's closed form at z, summed over cells, and its total derivative.

    Parameters
    ----------
    vae
        The parameters.
    row
        Names the closed form.
    cells
        n cells, accessibility of shape ``(n, p)``.
    z_nd
        Shape ``(n, d)``, or ``(particles, n, d)``: an estimator's own. It moves with the encoder.

    Examples
    --------
    >>> from pyro_scale.objectives import Objective, find_row
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> row, objective = find_row("structured"), Objective(vae, "structured", "TraceEnum_ELBO")
    >>> estimate = draw(vae, objective, cells)
    >>> value, gradients = twin_draw(vae, row, cells, estimate.z_nd)
    >>> abs(value - estimate.loss) < 1e-3, gradient_difference(estimate.gradients, gradients) < 1e-2
    (True, True)
    """
    vae.zero_grad(set_to_none=True)
    loss = twin_loss(vae, row, cells, z_nd)
    loss.backward()
    return float(loss.detach()), _take_gradients(vae)


def gradient_difference(ours: Gradients, twin: Gradients) -> float:
    """Largest relative difference over named parameters.

    ``max|a - b| / max(max|b|, 1e-6 max over all parameters of max|b|)`` of ``ours`` and ``twin``,
    each a dictionary of tensors whose shapes are those of the parameters.

    Examples
    --------
    >>> ours, twin = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    >>> gradient_difference({"weight": ours}, {"weight": twin})
    0.2
    """
    largest = max(float(b.abs().max()) for b in twin.values())
    worst = 0.0
    for name, b in twin.items():
        difference = float((ours[name] - b).abs().max())
        scale = max(float(b.abs().max()), 1e-6 * largest)
        if math.isnan(difference):
            return math.inf
        if difference > 0:
            worst = max(worst, difference / scale if scale > 0 else math.inf)
    return worst


def refusal(vae: MixtureVAE, row: Row, cells: Cells) -> str:
    """Why a combination is not supported, in the library's own words where it has any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            objective = Objective(
                vae, row.formulation, row.estimator, row.c, n_particles=row.n_particles
            )
            objective.backward(cells)
        except Exception as error:  # whatever the library says, it is the answer
            return f"{type(error).__name__}: {error}"
        finally:
            vae.zero_grad(set_to_none=True)
    said = dict.fromkeys(
        " ".join(str(w.message).split()) for w in caught if w.category is UserWarning
    )
    return "; ".join(
        [*(f"UserWarning: {text}" for text in said), *([row.note] if row.note else [])]
        or ["it runs, and no closed form is named for what it computes"]
    )
