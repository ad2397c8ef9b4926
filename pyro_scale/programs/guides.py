"""One guide per formulation.

Each guide's factorisation stands in its docstring and its body reads like it. A guide that
has c samples it either by enumeration (``enumerate_c=True``: an exact sum, no noise) or by
Monte Carlo.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine

from pyro_scale.programs._program import Program
from pyro_scale.programs.cells import Cells
from pyro_scale.programs.vae import MixtureVAE

__all__ = [
    "AmortizedGuide",
    "AuxiliaryGuide",
    "LatentGuide",
    "MeanFieldGuide",
    "StructuredGuide",
]


class LatentGuide(Program):
    r"""q(z|x): c is not in the guide (collapsed and model-enumerated formulations).

    .. math:: z_n \sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n)))
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Sample z given ``cells``."""
        encoder = self.vae.encoder
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(*encoder(cells)))


class _GuideWithC(Program):
    """A guide that also samples c, by enumeration or by Monte Carlo."""

    def __init__(self, vae: MixtureVAE, *, enumerate_c: bool = True) -> None:
        super().__init__(vae)
        self.infer_c: dict[str, Any] = {"enumerate": "parallel"} if enumerate_c else {}


class StructuredGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) p(c|z): the component's exact posterior given z.

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n \mid z_n &\sim \mathrm{Categorical}(\gamma(z_n)), \quad \gamma_c(z) = p(c \mid z)
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Sample z and then c given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            z = pyro.sample("z", encoder.q_z(*encoder(cells)))
            gamma = dist.Categorical(logits=prior.log_responsibilities(z))
            pyro.sample("c", gamma, infer=self.infer_c)


class MeanFieldGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) g*(c|x): c independent of z, with the best such q(c|x).

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n &\sim \mathrm{Categorical}(g^*(x_n)), \quad
        g^*_c(x) \propto \exp E_{q(z|x)} \log p(c \mid z)
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Sample z and c, independently, given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        loc_nd, var_nd = encoder(cells)
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(loc_nd, var_nd))
            g_star = dist.Categorical(logits=prior.log_optimal_q_c(loc_nd, var_nd))
            pyro.sample("c", g_star, infer=self.infer_c)


class AmortizedGuide(_GuideWithC):
    r"""q(z,c|x) = q(z|x) q(c|x): c independent of z, with q(c|x) a classifier network.

    .. math::
        z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n))) \\
        c_n &\sim \mathrm{Categorical}(\mathrm{classifier}(x_n))
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Sample z and c, independently, given ``cells``."""
        encoder, classifier = self.vae.encoder, self.vae.required_classifier
        features = encoder.features(cells)
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            pyro.sample("z", encoder.q_z(*encoder.moments(features)))
            pyro.sample("c", dist.Categorical(logits=classifier(features)), infer=self.infer_c)


class AuxiliaryGuide(_GuideWithC):
    r"""SCALE as a variational program: c sees an auxiliary draw u, not z.

    .. math::
        u_n, z_n &\sim \mathrm{Normal}(\mathrm{loc}(x_n), \mathrm{diag}(\mathrm{var}(x_n)))
        \text{, independently} \\
        c_n \mid u_n &\sim \mathrm{Categorical}(\gamma(u_n)), \quad \gamma_c(u) = p(c \mid z{=}u)

    With :class:`~pyro_scale.programs.models.AuxiliaryModel` its ELBO is the expectation of
    SCALE's loss, which is therefore a lower bound of log p(x).
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Sample u, then c, and z given ``cells``."""
        encoder, prior = self.vae.encoder, self.vae.prior
        q_z = encoder.q_z(*encoder(cells))
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            u = pyro.sample("u", q_z)
            gamma = dist.Categorical(logits=prior.log_responsibilities(u))
            pyro.sample("c", gamma, infer=self.infer_c)
            pyro.sample("z", q_z)
