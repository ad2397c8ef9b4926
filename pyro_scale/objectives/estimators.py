"""A common interface to Pyro's estimators, which evaluate a loss and accumulate its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_scale._locking import exclusive
from pyro_scale._validation import check_choice
from pyro_scale.objectives.registry import ESTIMATORS, REGISTRY
from pyro_scale.programs import CellBatch, MixtureVAE, Treatment

__all__ = ["Objective"]


class Objective(nn.Module):
    """Loss of a formulation, a choice of q(z,c|x), under a Pyro estimator, as a torch module.

    Parameters
    ----------
    vae
        The networks and the prior; their parameters are those of the module.
    formulation
        Name of the formulation, built in or registered.
    estimator
        Name of an estimator in :data:`pyro_scale.objectives.ESTIMATORS`.
    c
        How the mixture component c is treated: ``"marginalized"``, ``"enumerated"`` or
        ``"sampled"``. If None, the first treatment that the formulation supports.
    n_particles
        Number of samples of z per evaluation. With RenyiELBO, the bound itself depends on this
        number (IWAE); the other estimators average over the samples.

    Examples
    --------
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
        check_choice("estimator", estimator, ESTIMATORS)
        model, guide = REGISTRY.build(vae, formulation, c)
        options: dict[str, Any] = {"num_particles": n_particles, "max_plate_nesting": 1}
        if estimator == "RenyiELBO":
            options["alpha"] = 0.0
        if issubclass(ESTIMATORS[estimator], TraceEnum_ELBO):
            options["strict_enumeration_warning"] = False  # c may be sampled or marginalized
        self.estimator = estimator
        self.elbo = ESTIMATORS[estimator](**options)
        self.differentiable = hasattr(self.elbo, "differentiable_loss")
        # Estimators without differentiable_loss call backward only if they find a pyro.param site.
        model.param_sites = guide.param_sites = not self.differentiable
        self.programs = self.elbo(model, guide)

    @exclusive()
    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> Tensor:
        """Return the differentiable loss: minus the bound, summed over cells, in nats.

        Raises
        ------
        NotImplementedError
            If the estimator is TraceGraph_ELBO or RenyiELBO, which have no differentiable loss. Use
            :meth:`backward` instead.
        """
        if not self.differentiable:
            raise NotImplementedError(
                f"{self.estimator} has no differentiable loss: call .backward(cells) instead."
            )
        loss: Tensor = self.programs(cells, kl_weight)
        return loss

    @exclusive()
    @torch.no_grad()
    def loss(self, cells: CellBatch, kl_weight: float = 1.0) -> float:
        """Return minus the bound, summed over ``cells``, in nats, without gradients.

        ``kl_weight`` multiplies all terms except log p(x|z).
        """
        value = self.elbo.loss(self.programs.model, self.programs.guide, cells, kl_weight)
        return float(value)

    @exclusive()
    def backward(
        self,
        cells: CellBatch,
        kl_weight: float = 1.0,
        *,
        divide_by: float = 1.0,
        backward: Callable[[Tensor], object] = torch.Tensor.backward,
    ) -> float:
        """Evaluate the loss and accumulate its gradients.

        Parameters
        ----------
        cells
            The minibatch.
        kl_weight
            Weight of all terms except log p(x|z).
        divide_by
            Divisor of the loss and its gradients, such as the number of cells for a mean per cell.
            If it is not 1 and the estimator has no differentiable loss (TraceGraph_ELBO,
            RenyiELBO), all gradients must be None before the call.
        backward
            Function that is called on the differentiable loss, such as Lightning's
            ``manual_backward``.

        Returns
        -------
        float
            The loss, divided by ``divide_by``.
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
