"""Toy Pyro programs for the derivations, and access to the published code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from oracle import Array, Models, mean_under_q
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_scale.objectives import ElboTerms, EvaluationPoint
from pyro_scale.programs import (
    BernoulliLikelihood,
    CellBatch,
    MixtureVAE,
    PoissonLikelihood,
)

_LIKELIHOODS = {BernoulliLikelihood: "bernoulli", PoissonLikelihood: "poisson"}


def toy(
    *,
    likelihood: str = "bernoulli",
    classifier: bool = False,
    n: int = 4,
    d: int = 2,
    seed: int = 1,
) -> tuple[MixtureVAE, CellBatch]:
    """Return a small model without symmetries (K = 3, P = 8) and n cells."""
    torch.manual_seed(seed)
    vae = MixtureVAE(8, 3, d, hidden=(6,), likelihood=likelihood, classifier=classifier)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            rows = parameter.T if name.endswith("weight_ph") else parameter
            rows.add_(0.5 * torch.randn(rows.shape, dtype=rows.dtype))
        vae.prior.loc_kd.copy_(1.5 * torch.randn(3, d))
    x_np = (torch.rand(n, 8) < 0.4).double()
    x_np[:, 0] = 1.0
    if likelihood != "bernoulli":
        x_np = torch.poisson(1 + 3 * torch.rand(n, 8))
    return vae, CellBatch.from_counts(x_np)


def repeat(cells: CellBatch, times: int) -> CellBatch:
    """Repeat the cells, so that one evaluation uses ``times`` independent samples of z per cell."""
    return CellBatch(*(tensor.repeat(times, *[1] * (tensor.dim() - 1)) for tensor in cells[:2]))


def models_of(vae: MixtureVAE, cells: CellBatch) -> Models:
    """Convert a model and its cells to the oracle's :class:`Models`."""
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        peaks, prior, n = vae.likelihood.peaks, vae.prior, cells.n_cells

        def per_cell(tensor: Tensor) -> Array:
            return np.repeat(tensor.numpy()[None], n, 0)

        return Models(
            *map(per_cell, (prior.log_pi_k.exp(), prior.loc_kd, prior.var_kd)),
            *map(per_cell, (peaks.weight, peaks.bias)),
            *(tensor.numpy() for tensor in (cells.x_np, loc_nd, var_nd)),
            likelihood=_LIKELIHOODS[type(vae.likelihood)],
        )


def expected_terms(models: Models, closed_form: Callable[[EvaluationPoint], ElboTerms]) -> Array:
    """Return E_q(z|x) of a closed form's five terms, ``(5, n)``, by quadrature."""

    def at_nodes(at: Any) -> Array:
        columns = torch.broadcast_tensors(*closed_form(models.point(at.z_snd)))
        return np.broadcast_to(torch.stack(columns, -1), (*at.z_snd.shape[:2], 5))

    return mean_under_q(models, at_nodes).T


class Watch(Messenger):
    """Record the values of a site, so that a closed form can be evaluated at the same z."""

    def __init__(self, name: str = "z") -> None:
        super().__init__()
        self.name = name
        self.values: list[Tensor] = []

    @property
    def value(self) -> Tensor | None:
        """The last recorded value; None if the site did not occur."""
        return self.values[-1] if self.values else None

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] != self.name or msg["is_observed"]:
            return
        # The model is replayed with the guide's value, so the same tensor occurs twice.
        if not any(msg["value"] is seen for seen in self.values):
            self.values.append(msg["value"])


def gradients(loss: Tensor, vae: MixtureVAE) -> dict[str, Tensor]:
    """Return the gradient of every named parameter; zeros where autograd gives none."""
    names, parameters = zip(*vae.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(names, parameters, grads, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in pairs}


def gradient_error(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest relative difference of two gradients over all named parameters."""
    largest = max(float(g.abs().max()) for g in b.values())
    return max(
        float((a[name] - b[name]).abs().max()) / max(float(b[name].abs().max()), 1e-6 * largest)
        for name in b
    )


def published(module: str) -> ModuleType:
    """Import ``scale.<module>`` of PyPI ``scale`` 1.1.2 (``loss`` or ``model``).

    The package is imported under another name and without its ``__init__``, which uses names
    that NumPy 2 has removed. The arithmetic is unchanged.
    """
    name = "published_scale"
    if name not in sys.modules:
        origin = importlib.util.find_spec("scale")
        assert origin is not None, "pip install --no-deps scale==1.1.2"
        package = ModuleType(name)
        package.__path__ = list(origin.submodule_search_locations or [])
        sys.modules[name] = package
    return importlib.import_module(f"{name}.{module}")


def published_model(pi_k: Tensor, loc_kd: Tensor, var_kd: Tensor) -> Any:
    """Return the published SCALE module with these prior parameters, kept in the autograd graph."""
    k, d = loc_kd.shape
    model = published("model").SCALE([4, d, [3], []], n_centroids=k)
    for name, value in (("pi", pi_k), ("mu_c", loc_kd.T), ("var_c", var_kd.T)):
        del model._parameters[name]
        setattr(model, name, value)
    return model


def local_variables(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Call a function; return its local variables at return, with its result under "return"."""
    seen: dict[str, Any] = {}

    def watch(frame: Any, event: str, result: Any) -> None:
        if event == "return" and frame.f_code is function.__code__:
            seen.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        seen["return"] = function(*args, **kwargs)
    finally:
        sys.setprofile(before)
    return seen
