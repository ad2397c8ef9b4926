"""Recovery from a loss that is not finite: find its cause, and restore an earlier state."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_scale.exceptions import NonFiniteError
from pyro_scale.objectives import Objective
from pyro_scale.programs import CellBatch

__all__ = ["NanRecovery", "first_nonfinite_site"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def first_nonfinite_site(objective: Objective, cells: CellBatch, kl_weight: float) -> str:
    """Describe the first parameter that is not finite, or else the first Pyro site.

    A site is not finite if its value or its log-density is not. The parameters come first, then the
    sites of the guide, then those of the model.
    """
    for name, parameter in objective.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name.removeprefix('programs.')}"
    model, guide = objective.programs.model, objective.programs.guide
    guide_trace = poutine.trace(guide).get_trace(cells, kl_weight)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
        cells, kl_weight
    )
    for where, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            value = site["value"]
            strided = isinstance(value, torch.Tensor) and value.layout == torch.strided
            if strided and not value.isfinite().all():
                return f"the value of site {name!r} of the {where}"
            if not site["fn"].log_prob(value).isfinite().all():
                return f"the log-density of site {name!r} of the {where}"
    return "the gradient: every site's value and log-density is finite"


class NanRecovery:
    """Recovery from a loss that is not finite.

    It restores the state at the end of the last epoch and halves the learning rate.

    Parameters
    ----------
    n_allowed
        Maximum number of recoveries; with zero, no state is kept.
    """

    def __init__(self, n_allowed: int) -> None:
        self.n_allowed, self.n_taken = n_allowed, 0
        self.parts: tuple[Any, ...] = ()
        self.states: list[dict[str, Any]] = []

    def keep(self, *parts: nn.Module | torch.optim.Optimizer) -> None:
        """Keep a copy of the state of the given modules and optimizers."""
        if self.n_allowed:
            self.parts = parts
            self.states = copy.deepcopy([part.state_dict() for part in parts])

    def not_finite(self, where: str, when: str) -> None:
        """Restore the state that was kept, or raise if that has been done ``n_allowed`` times.

        Parameters
        ----------
        where
            The first parameter or site that is not finite (:func:`first_nonfinite_site`), for the
            message.
        when
            Epoch and step, for the message.

        Raises
        ------
        NonFiniteError
            If there have been ``n_allowed`` recoveries already.
        """
        if self.n_taken >= self.n_allowed:
            raise NonFiniteError(
                f"the loss or its gradient is not finite {when}; first seen in {where}. The "
                "weights are those before this step. Try a smaller lr, or "
                f"max_nan_retries={self.n_allowed + 3}, which goes back to the end of the last "
                "epoch and halves the learning rate."
            )
        self.n_taken += 1
        logger.warning(
            "the loss or its gradient is not finite %s, first seen in %s: went back to the end "
            "of the last epoch and halved the learning rate.",
            when,
            where,
        )
        for part, state in zip(self.parts, self.states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["lr"] *= 0.5
        self.keep(*self.parts)
