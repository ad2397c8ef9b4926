"""The generative model, in the three forms that the formulations need.

All three are the same joint distribution p(c) p(z|c) p(x|z); they differ in what they do
with c (keep it, sum it out) and in the auxiliary variable of SCALE. ``kl_weight`` multiplies
the log-densities of the latent variables, here and in the guides alike (KL warm-up); it is a
scalar above zero, and one for the ELBO itself.
"""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine

from pyro_scale.programs._program import Program
from pyro_scale.programs.cells import Cells
from pyro_scale.programs.vae import MixtureVAE

__all__ = ["AuxiliaryModel", "CollapsedModel", "MixtureModel"]


class MixtureModel(Program):
    r"""The generative model of SCALE, with the component c explicit.

    .. math::
        c_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid c_n &\sim \mathrm{Normal}(\mu_{c_n}, \mathrm{diag}(\mathrm{var}_{c_n})) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    Parameters
    ----------
    vae
        The parameters.
    enumerate_c
        Mark c to be summed out by TraceEnum_ELBO (the model-enumerated formulation); then no
        guide may sample it.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> trace = pyro.poutine.trace(MixtureModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in "czx"}
    {'c': (5,), 'z': (5, 2), 'x': (5, 30)}
    """

    def __init__(self, vae: MixtureVAE, *, enumerate_c: bool = False) -> None:
        super().__init__(vae)
        self.infer_c: dict[str, Any] = {"enumerate": "parallel"} if enumerate_c else {}

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Condition on ``cells`` and score c, z and x."""
        prior, likelihood = self.vae.prior, self.vae.likelihood
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                c = pyro.sample("c", prior.weight(), infer=self.infer_c)
                z = pyro.sample("z", prior.component(c))
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)


class CollapsedModel(Program):
    r"""The same model with c summed out by the mixture density.

    .. math::
        z_n &\sim \textstyle\sum_c \pi_c \mathrm{Normal}(\mu_c, \mathrm{diag}(\mathrm{var}_c)) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    Parameters
    ----------
    vae
        The parameters.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> trace = pyro.poutine.trace(CollapsedModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in "zx"}
    {'z': (5, 2), 'x': (5, 30)}
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Condition on ``cells`` and score z and x."""
        prior, likelihood = self.vae.prior, self.vae.likelihood
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z", prior.mixture())
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)


class AuxiliaryModel(Program):
    r"""The same model beside an auxiliary u, which makes SCALE's loss an honest ELBO.

    .. math::
        u_n \mid x_n &\sim q(z \mid x_n) \\
        c_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid c_n &\sim \mathrm{Normal}(\mu_{c_n}, \mathrm{diag}(\mathrm{var}_{c_n})) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    u has the same density as in :class:`~pyro_scale.programs.guides.AuxiliaryGuide`, so it
    cancels from the ELBO, which stays a lower bound of log p(x).

    Parameters
    ----------
    vae
        The parameters.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> trace = pyro.poutine.trace(AuxiliaryModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in "uczx"}
    {'u': (5, 2), 'c': (5,), 'z': (5, 2), 'x': (5, 30)}
    """

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Condition on ``cells`` and score u, c, z and x."""
        prior, encoder, likelihood = self.vae.prior, self.vae.encoder, self.vae.likelihood
        q_z = encoder.q_z(*encoder(cells))
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                pyro.sample("u", q_z)
                c = pyro.sample("c", prior.weight())
                z = pyro.sample("z", prior.component(c))
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)
