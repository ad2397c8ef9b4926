"""What a model is, as data: saved with it, and checked where it is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal

from pyro_scale.objectives import Row, find_row
from pyro_scale.programs import LikelihoodName, PosteriorVariance, Treatment

__all__ = ["Configuration"]


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Configuration:
    """The arguments of :class:`pyro_scale.SCALE`, checked."""

    n_components: int | None = None
    n_latent: int = 10
    formulation: str = "collapsed"
    estimator: str | None = None
    c: Treatment | None = None
    likelihood: LikelihoodName = "bernoulli"
    preset: Literal["default", "plain"] = "default"
    hidden: tuple[int, ...] | None = None
    decoder_hidden: tuple[int, ...] = ()
    n_lsi: int = 50
    layer: str | None = None
    batch_key: str | None = None
    batches: tuple[str, ...] | None = None
    seed: int = 0
    posterior_variance: PosteriorVariance = "softplus"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.preset not in ("default", "plain"):
            raise ValueError(f"preset={self.preset!r} is not known; choose 'default' or 'plain'.")
        if self.hidden is None:
            object.__setattr__(self, "hidden", (1024, 128) if self.plain else (128,))
        for name in ("n_components", "n_latent", "n_lsi"):
            value = getattr(self, name)
            if name == "n_components" and value is None:
                continue
            if not _whole(value) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least one.")
            object.__setattr__(self, name, int(value))  # numpy's integers are not JSON
        for name in ("hidden", "decoder_hidden"):
            widths = getattr(self, name)
            if not isinstance(widths, (tuple, list)) or not all(
                _whole(width) and width >= 1 for width in widths
            ):
                raise ValueError(
                    f"{name}={widths!r} must be a tuple of widths of at least one, such as (64,)."
                )
            object.__setattr__(self, name, tuple(int(width) for width in widths))
        if self.batches is not None:
            object.__setattr__(self, "batches", tuple(self.batches))  # a list in JSON
        if not _whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed!r} must be a whole number from 0 to 2**32 - 1.")
        object.__setattr__(self, "seed", int(self.seed))
        if self.posterior_variance not in ("softplus", "exp"):
            raise ValueError(
                f"posterior_variance={self.posterior_variance!r} is not known; choose 'softplus' "
                "or 'exp'."
            )
        if self.likelihood not in ("bernoulli", "poisson"):
            raise ValueError(
                f"likelihood={self.likelihood!r} is not known; choose 'bernoulli' or 'poisson'."
            )
        row = self.row
        if self.n_components is None and row.formulation == "amortized":
            raise ValueError(
                "formulation='amortized' has a classifier of n_components classes: give "
                "n_components, None is for the other formulations."
            )

    @property
    def row(self) -> Row:
        """The row of the table that training follows."""
        return find_row(self.formulation, self.estimator, self.c)

    @property
    def plain(self) -> bool:
        """Whether the networks are those of the paper."""
        return self.preset == "plain"

    @property
    def binary(self) -> bool:
        """Whether counts are set to 0/1."""
        return self.likelihood == "bernoulli"

    @property
    def n_batches(self) -> int:
        """How many batches the decoder tells apart; one: it does not."""
        return max(1, len(self.batches or ()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
