"""Pyro's estimators under one interface: a value, and gradients accumulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_scale.objectives.trace_enum_mean_field_elbo import TraceEnumMeanField_ELBO
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import Cells, MixtureVAE, Treatment, build

__all__ = ["ESTIMATORS", "Objective"]

ESTIMATORS: dict[str, type[ELBO]] = {
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceEnum_ELBO": TraceEnum_ELBO,
    "TraceEnumMeanField_ELBO": TraceEnumMeanField_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "RenyiELBO": RenyiELBO,
}
"""Every estimator by name; RenyiELBO is used at alpha = 0, where it is IWAE."""


class Objective(nn.Module):
    """A formulation under an estimator: the loss of the programs, as a torch module.

    Parameters
    ----------
    vae
        The parameters; its parameters are the module's.
    formulation
        A name in :data:`pyro_scale.programs.FORMULATIONS`.
    estimator
        A name in :data:`ESTIMATORS`.
    c
        ``"collapsed"``, ``"enumerated"`` or ``"sampled"``; None: the formulation's first.
    n_particles
        Samples per evaluation. For RenyiELBO the bound depends on it (IWAE); for the others
        it only averages.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> objective = Objective(vae, "structured", "TraceEnum_ELBO")
    >>> objective(cells).shape, type(objective.loss(cells))
    (torch.Size([]), <class 'float'>)
    >>> loss = objective.backward(cells, divide_by=cells.n_cells)
    >>> vae.prior.loc_kd.grad.shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        vae: MixtureVAE,
        formulation: str,
        estimator: str,
        c: Treatment | None = None,
        *,
        n_particles: int = 1,
    ) -> None:
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator={estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}."
            )
        model, guide = build(vae, formulation, c)
        options: dict[str, Any] = {"num_particles": n_particles, "max_plate_nesting": 1}
        if estimator == "RenyiELBO":
            options["alpha"] = 0.0
        if issubclass(ESTIMATORS[estimator], TraceEnum_ELBO):
            options["strict_enumeration_warning"] = False  # c may be sampled or summed out
        self.estimator = estimator
        self.elbo = ESTIMATORS[estimator](**options)
        self.differentiable = hasattr(self.elbo, "differentiable_loss")
        # The others look for a pyro.param site before they call backward.
        model.param_sites = guide.param_sites = not self.differentiable
        self.programs = self.elbo(model, guide)

    @one_at_a_time()
    def forward(self, cells: Cells, kl_weight: float = 1.0) -> Tensor:
        """A differentiable loss: minus the bound, summed over cells, in nats.

        Raises
        ------
        NotImplementedError
            For TraceGraph_ELBO and RenyiELBO, which call backward themselves: use
            :meth:`backward`.
        """
        if not self.differentiable:
            raise NotImplementedError(
                f"{self.estimator} has no differentiable loss; call .backward(cells)."
            )
        loss: Tensor = self.programs(cells, kl_weight)
        return loss

    @one_at_a_time()
    @torch.no_grad()
    def loss(self, cells: Cells, kl_weight: float = 1.0) -> float:
        """Minus the bound, summed over ``cells``, in nats; no gradients.

        ``kl_weight`` multiplies the terms of z and c.
        """
        value = self.elbo.loss(self.programs.model, self.programs.guide, cells, kl_weight)
        return float(value)

    @one_at_a_time()
    def backward(
        self,
        cells: Cells,
        kl_weight: float = 1.0,
        *,
        divide_by: float = 1.0,
        backward: Callable[[Tensor], object] = torch.Tensor.backward,
    ) -> float:
        """Evaluate the loss and accumulate its gradients.

        Parameters
        ----------
        cells, kl_weight
            The minibatch and the weight of the KL terms.
        divide_by
            Loss and gradients are divided by it (the number of cells, for a mean). The
            gradients must be None beforehand when it is not one.
        backward
            What to call on the differentiable loss (Lightning's ``manual_backward``).

        Returns
        -------
        float
            The loss, divided.
        """
        if self.differentiable:
            loss = self(cells, kl_weight) / divide_by
            backward(loss)
            return float(loss.detach())
        model, guide = self.programs.model, self.programs.guide
        value = self.elbo.loss_and_grads(model, guide, cells, kl_weight)
        if divide_by != 1.0:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(divide_by)
        return float(value) / divide_by
