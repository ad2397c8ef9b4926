"""The variational guides of the formulations, which are choices of q(z,c|x).

The docstring of each guide states its factorization, and the body follows it line by line. A guide
that contains the mixture component c either enumerates it (``enumerate_c=True``), which sums over c
exactly and without Monte Carlo noise, or samples it.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine

from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.models import Program
from pyro_scale.programs.vae import MixtureVAE

__all__ = [
    "AmortizedGuide",
    "AuxiliaryGuide",
    "LatentGuide",
    "MeanFieldGuide",
    "StructuredGuide",
]


class LatentGuide(Program):
    r"""q(z|x), a guide without c, for the collapsed and model-enumerated formulations.

    .. math:: z_n \sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n)))

    Parameters
    ----------
    vae
        Module that holds the parameters.

    Examples
    --------
    >>> trace = pyro.poutine.trace(LatentGuide(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("z",)}
    {'z': (5, 2)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample z given ``cells``."""
        encoder = self.vae.encoder
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(*encoder(cells)))


class _GuideWithC(Program):
    """A guide that also contains c, enumerated or sampled."""

    def __init__(self, vae: MixtureVAE, *, enumerate_c: bool = True) -> None:
        super().__init__(vae)
        self.infer_c: dict[str, Any] = {"enumerate": "parallel"} if enumerate_c else {}


class StructuredGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) p(c|z), where c has its exact posterior given z.

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n \mid z_n &\sim \mathrm{Categorical}(\gamma(z_n)), \quad \gamma_c(z) = p(c \mid z)

    Parameters
    ----------
    vae
        Module that holds the parameters.
    enumerate_c
        Whether c is enumerated, so that Pyro sums over it exactly, or sampled.

    Examples
    --------
    >>> trace = pyro.poutine.trace(StructuredGuide(vae, enumerate_c=False)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("z", "c")}
    {'z': (5, 2), 'c': (5,)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample z and then c given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            z = pyro.sample("z", encoder.q_z(*encoder(cells)))
            gamma = dist.Categorical(logits=prior.log_responsibilities(z))
            pyro.sample("c", gamma, infer=self.infer_c)


class MeanFieldGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) g*(c|x), where c is independent of z and has the optimal q(c|x).

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n &\sim \mathrm{Categorical}(g^*(x_n)), \quad
        g^*_c(x) \propto \exp E_{q(z|x)} \log p(c \mid z)

    Parameters
    ----------
    vae
        Module that holds the parameters.
    enumerate_c
        Whether c is enumerated, so that Pyro sums over it exactly, or sampled.

    Examples
    --------
    >>> trace = pyro.poutine.trace(MeanFieldGuide(vae, enumerate_c=False)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("z", "c")}
    {'z': (5, 2), 'c': (5,)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample z and c, independently, given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        loc_nd, var_nd = encoder(cells)
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(loc_nd, var_nd))
            g_star = dist.Categorical(logits=prior.log_optimal_q_c(loc_nd, var_nd))
            pyro.sample("c", g_star, infer=self.infer_c)


class AmortizedGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) q(c|x), where c is independent of z and q(c|x) is a classifier network.

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n &\sim \mathrm{Categorical}(\mathrm{classifier}(x_n))

    Parameters
    ----------
    vae
        Module that holds the parameters.
    enumerate_c
        Whether c is enumerated, so that Pyro sums over it exactly, or sampled.

    Examples
    --------
    >>> vae.add_classifier()
    >>> trace = pyro.poutine.trace(AmortizedGuide(vae, enumerate_c=False)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("z", "c")}
    {'z': (5, 2), 'c': (5,)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample z and c, independently, given ``cells``."""
        encoder, classifier = self.vae.encoder, self.vae.required_classifier
        features = encoder.features(cells)
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(*encoder.moments(features)))
            pyro.sample("c", dist.Categorical(logits=classifier(features)), infer=self.infer_c)


class AuxiliaryGuide(_GuideWithC):
    r"""q(u|x) p(c|z=u) q(z|x), the guide of SCALE: c depends on an auxiliary draw u, not on z.

    .. math::
        u_n, z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n)))
        \text{, independently} \\
        c_n \mid u_n &\sim \mathrm{Categorical}(\gamma(u_n)), \quad \gamma_c(u) = p(c \mid z{=}u)

    With :class:`~pyro_scale.programs.models.AuxiliaryModel` its ELBO is the expectation of
    SCALE's objective (the negative loss), which is therefore a lower bound of log p(x).

    Parameters
    ----------
    vae
        Module that holds the parameters.
    enumerate_c
        Whether c is enumerated, so that Pyro sums over it exactly, or sampled.

    Examples
    --------
    >>> trace = pyro.poutine.trace(AuxiliaryGuide(vae, enumerate_c=False)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("u", "c", "z")}
    {'u': (5, 2), 'c': (5,), 'z': (5, 2)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample u, then c, and z given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        q_z = encoder.q_z(*encoder(cells))
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            u = pyro.sample("u", q_z)
            gamma = dist.Categorical(logits=prior.log_responsibilities(u))
            pyro.sample("c", gamma, infer=self.infer_c)
            pyro.sample("z", q_z)
