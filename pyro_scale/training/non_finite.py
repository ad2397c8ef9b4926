"""When the loss is no longer a number: which site it comes from, and going back."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_scale.errors import NonFiniteError
from pyro_scale.objectives import Objective
from pyro_scale.programs import Cells

__all__ = ["BackOff", "culprit"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def culprit(objective: Objective, cells: Cells, kl_weight: float) -> str:
    """The first parameter or site that is not finite, in words."""
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


class BackOff:
    """Going back to the end of the last epoch, with half the learning rate.

    Parameters
    ----------
    n_allowed
        How many times; with none, nothing is kept.
    """

    def __init__(self, n_allowed: int) -> None:
        self.n_allowed, self.n_taken = n_allowed, 0
        self.parts: tuple[Any, ...] = ()
        self.states: list[dict[str, Any]] = []

    def keep(self, *parts: nn.Module | torch.optim.Optimizer) -> None:
        """Remember weights and optimisers as they are."""
        if self.n_allowed:
            self.parts = parts
            self.states = copy.deepcopy([part.state_dict() for part in parts])

    def not_finite(self, where: str, when: str) -> None:
        """Go back, or say what happened.

        Raises
        ------
        NonFiniteError
            If no time is left.
        """
        if self.n_taken >= self.n_allowed:
            raise NonFiniteError(
                f"the loss or its gradient is not finite {when}; first seen in {where}. The "
                f"weights are those before this step. Try a smaller lr, or "
                f"back_offs={self.n_allowed + 3}, which goes back to the end of the last epoch "
                "with half the learning rate."
            )
        self.n_taken += 1
        logger.warning(
            "not finite %s, first in %s: back to the last epoch's end, half the learning rate.",
            when,
            where,
        )
        for part, state in zip(self.parts, self.states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["lr"] *= 0.5
        self.keep(*self.parts)
