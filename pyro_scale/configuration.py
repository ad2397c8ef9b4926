"""What a model is, as data: saved with it, and checked where it is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pyro_scale.objectives import Row, find_row
from pyro_scale.programs import LikelihoodName, Treatment

__all__ = ["Configuration"]


@dataclass(frozen=True)
class Configuration:
    """The arguments of :class:`pyro_scale.SCALE`, checked."""

    n_components: int
    n_latent: int = 10
    formulation: str = "collapsed"
    estimator: str | None = None
    c: Treatment | None = None
    likelihood: LikelihoodName = "bernoulli"
    preset: Literal["default", "plain"] = "default"
    hidden: tuple[int, ...] = (1024, 128)
    decoder_hidden: tuple[int, ...] = ()
    layer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("n_components", "n_latent"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least one.")
        for name in ("hidden", "decoder_hidden"):
            widths = getattr(self, name)
            if any(not isinstance(width, int) or width < 1 for width in widths):
                raise ValueError(f"{name}={widths!r} must be widths of at least one.")
        if self.likelihood not in ("bernoulli", "poisson"):
            raise ValueError(
                f"likelihood={self.likelihood!r} is not known; choose 'bernoulli' or 'poisson'."
            )
        if self.preset not in ("default", "plain"):
            raise ValueError(f"preset={self.preset!r} is not known; choose 'default' or 'plain'.")
        _ = self.row

    @property
    def row(self) -> Row:
        """The row of the table that training follows."""
        return find_row(self.formulation, self.estimator, self.c)

    @property
    def binary(self) -> bool:
        """Whether counts are set to 0/1."""
        return self.likelihood == "bernoulli"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
