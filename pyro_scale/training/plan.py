"""What training does, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pyro_scale.checks import check_seed, check_whole

__all__ = ["TrainingPlan", "default_batch_size"]

_MANY_CELLS = 10_000


def default_batch_size(n_cells: int) -> int:
    """Cells per step: 128, or 512 where an epoch still has some twenty steps of them.

    Most of a step's cost is that of the peaks and not of the cells; where cells are few, fewer
    steps are too few (``tests/benchmarks/batches.py`` has what either costs in quality).

    Parameters
    ----------
    n_cells
        That training is on.

    Examples
    --------
    >>> default_batch_size(1_000), default_batch_size(20_000)
    (128, 512)
    """
    return 128 if n_cells < _MANY_CELLS else 512


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of one training run.

    Attributes
    ----------
    max_epochs
        Passes over the training cells, warm-up included.
    warmup_epochs
        The first epochs, with an N(0, I) prior in place of the mixture; at their end the
        mixture starts from the encoder's means. None: three fifths of ``max_epochs``.
    kl_warmup_epochs
        Epochs over which the weight of the KL terms rises linearly to one. None: 20, or a
        third of ``max_epochs`` if that is less.
    batch_size
        Cells per step.
    lr
        Of Adam.
    decoder_precision
        1 / variance of a zero-mean Gaussian prior on the decoder's weights, which training
        takes at its mode (as weight decay of ``decoder_precision / n_cells``); nothing else
        decays. Zero: no prior, as the plain model has it.
    hidden_share
        Share of the peaks hidden from the encoder, anew in every step.
    gradient_clip
        Largest norm of the gradient of the mean loss per cell.
    validation_size
        Share of cells held out; zero holds none out (then nothing stops early).
    early_stopping, patience
        If cells are held out: after the warm-up, stop when their bound has not risen for
        ``patience`` epochs, and go back to the best weights.
    n_particles
        Samples per evaluation of the objective.
    back_offs
        How many times training may go back to the end of the last epoch, with half the learning
        rate, when the loss or its gradient is not finite; then, or with none, it is an error.
    seed
        Of everything that is random in training.

    Examples
    --------
    >>> plan = TrainingPlan.of(2000, plain=False, max_epochs=None, early_stopping=False, lr=1e-3)
    >>> plan.max_epochs, plan.n_warmup, plan.n_kl_warmup, plan.kl_weight(0)
    (300, 180, 20, 0.05)
    """

    max_epochs: int = 300
    warmup_epochs: int | None = None
    kl_warmup_epochs: int | None = None
    batch_size: int = 128
    lr: float = 5e-3
    decoder_precision: float = 50.0
    hidden_share: float = 0.5
    gradient_clip: float = 10.0
    validation_size: float = 0.0
    early_stopping: bool = False
    patience: int = 30
    n_particles: int = 1
    back_offs: int = 0
    seed: int = 0

    @classmethod
    def of(
        cls,
        n_cells: int,
        *,
        plain: bool,
        max_epochs: int | None,
        early_stopping: bool,
        **settings: Any,
    ) -> TrainingPlan:
        """The settings for so many cells: what is given, and defaults for the rest.

        Parameters
        ----------
        n_cells, plain
            How many cells; whether the model is the paper's.
        max_epochs, early_stopping, settings
            As in :meth:`pyro_scale.SCALE.train`.

        Raises
        ------
        TypeError
            For a setting that there is not.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise TypeError(
                f"train() has no setting {', '.join(map(repr, unknown))}; the settings are "
                f"{', '.join(known)}. Arguments of Lightning's Trainer go in trainer_kwargs."
            )
        defaults: dict[str, Any] = {}
        if settings.get("batch_size") is None:
            settings["batch_size"] = default_batch_size(n_cells)
        if max_epochs is None:
            max_epochs = min(max(1_000_000 // n_cells, 50), 300)
        if plain:
            # 1024 units read every peak; depth is in z, and takes large weights to decode.
            defaults |= {"lr": 1e-3, "decoder_precision": 0.0}
        if early_stopping:
            defaults |= {"validation_size": 0.1}
        return cls(max_epochs=max_epochs, early_stopping=early_stopping, **defaults | settings)

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for name in ("max_epochs", "batch_size", "patience", "n_particles"):
            check_whole(name, getattr(self, name))
        check_whole("back_offs", self.back_offs, least=0)
        check_seed(self.seed)
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above zero.")
        if not self.decoder_precision >= 0:
            raise ValueError(f"decoder_precision={self.decoder_precision} must not be negative.")
        if self.kl_warmup_epochs is not None and self.kl_warmup_epochs < 0:
            raise ValueError(f"kl_warmup_epochs={self.kl_warmup_epochs} must not be negative.")
        for name, of in (("validation_size", "cells"), ("hidden_share", "peaks")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is a share of the {of}: expected a number "
                    "from 0 to below 1."
                )
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.max_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be at least 0 and below "
                f"max_epochs={self.max_epochs}."
            )

    @property
    def n_warmup(self) -> int:
        """Epochs with the N(0, I) prior."""
        return 3 * self.max_epochs // 5 if self.warmup_epochs is None else self.warmup_epochs

    @property
    def n_kl_warmup(self) -> int:
        """Epochs with a KL weight below one, or at it for the first time."""
        if self.kl_warmup_epochs is None:
            return min(20, self.max_epochs // 3)
        return self.kl_warmup_epochs

    def kl_weight(self, epoch: int) -> float:
        """Weight of the KL terms in ``epoch``: above zero, and one after the KL warm-up."""
        if epoch >= self.n_kl_warmup:
            return 1.0
        return (epoch + 1) / self.n_kl_warmup
