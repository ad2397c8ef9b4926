"""The generative model, in the three forms that the formulations need.

A formulation is a choice of q(z,c|x). All three models have the same joint distribution
p(c) p(z|c) p(x|z). The component c is a site in two of them and summed out in the other; one of the
former also has the auxiliary variable u of SCALE. ``kl_weight`` multiplies the log-densities of the
latent variables in both model and guide (KL warm-up); it is a positive scalar, and 1 for the ELBO.
"""

from __future__ import annotations

from typing import Any, cast

import pyro
from pyro import poutine
from pyro.nn import PyroModule

from pyro_scale._locking import module_local_params
from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.vae import MixtureVAE

__all__ = [
    "AuxiliaryModel",
    "CollapsedModel",
    "MixtureModel",
    "Program",
]


class Program(PyroModule):
    """A Pyro program over the parameters of a :class:`MixtureVAE`.

    A PyroModule registers its parameters in Pyro's global store unless ``module_local_params`` is
    on when the module is built and whenever it is called. A Program switches the setting on for
    these calls only, so that the caller's settings and parameter store do not change.

    Parameters
    ----------
    vae
        Module that holds the parameters; several programs may share it.

    Examples
    --------
    >>> class Mean(Program):
    ...     def forward(self, cells):
    ...         return self.vae.encoder(cells)[0]
    >>> Mean(vae)(cells).shape
    torch.Size([5, 2])
    """

    #: Whether reading ``vae`` registers a ``pyro.param`` site for each parameter, which SVI needs.
    #: Registration takes a tenth of the time of a small model's training step.
    param_sites = True

    def __init__(self, vae: MixtureVAE) -> None:
        with module_local_params():
            super().__init__()
            self.vae = vae  # type: ignore[misc]  # registered as a submodule

    @property
    def vae(self) -> MixtureVAE:
        """The parameters, each registered as a ``pyro.param`` site if ``param_sites`` is true."""
        found = super().__getattr__("vae") if self.param_sites else self._modules["vae"]
        return cast(MixtureVAE, found)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with ``module_local_params`` switched on."""
        with module_local_params():
            return super().__call__(*args, **kwargs)


class MixtureModel(Program):
    r"""The generative model of SCALE, with the component c as a site.

    .. math::
        c_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid c_n &\sim \mathrm{Normal}(\mu_{c_n}, \mathrm{diag}(\mathrm{var}_{c_n})) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    Parameters
    ----------
    vae
        Module that holds the parameters.
    enumerate_c
        Whether TraceEnum_ELBO sums c out of the model, as in the model-enumerated formulation. The
        guide must not contain c then.

    Examples
    --------
    >>> trace = pyro.poutine.trace(MixtureModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("c", "z", "x")}
    {'c': (5,), 'z': (5, 2), 'x': (5, 30)}
    """

    def __init__(self, vae: MixtureVAE, *, enumerate_c: bool = False) -> None:
        super().__init__(vae)
        self.infer_c: dict[str, Any] = {"enumerate": "parallel"} if enumerate_c else {}

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample c and z, and condition x on the accessibility in ``cells``."""
        prior, likelihood = self.vae.prior, self.vae.likelihood
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                c = pyro.sample("c", prior.weight(), infer=self.infer_c)
                z = pyro.sample("z", prior.component(c))
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)


class CollapsedModel(Program):
    r"""The generative model of SCALE, with c summed out by the mixture density.

    .. math::
        z_n &\sim \textstyle\sum_c \pi_c \mathrm{Normal}(\mu_c, \mathrm{diag}(\mathrm{var}_c)) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    Parameters
    ----------
    vae
        Module that holds the parameters.

    Examples
    --------
    >>> trace = pyro.poutine.trace(CollapsedModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("z", "x")}
    {'z': (5, 2), 'x': (5, 30)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample z, and condition x on the accessibility in ``cells``."""
        prior, likelihood = self.vae.prior, self.vae.likelihood
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z", prior.mixture())
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)


class AuxiliaryModel(Program):
    r"""The generative model with an auxiliary variable u, which makes SCALE's objective an ELBO.

    .. math::
        u_n \mid x_n &\sim q(z \mid x_n) \\
        c_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid c_n &\sim \mathrm{Normal}(\mu_{c_n}, \mathrm{diag}(\mathrm{var}_{c_n})) \\
        x_n \mid z_n &\sim \mathrm{Likelihood}(\mathrm{decoder}(z_n))

    u has the same density in :class:`~pyro_scale.programs.guides.AuxiliaryGuide`, so that the two
    densities cancel and the ELBO is a lower bound of log p(x).

    Parameters
    ----------
    vae
        Module that holds the parameters.

    Examples
    --------
    >>> trace = pyro.poutine.trace(AuxiliaryModel(vae)).get_trace(cells)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("u", "c", "z", "x")}
    {'u': (5, 2), 'c': (5,), 'z': (5, 2), 'x': (5, 30)}
    """

    def forward(self, cells: CellBatch, kl_weight: float = 1.0) -> None:
        """Sample u, c and z, and condition x on the accessibility in ``cells``."""
        prior, encoder, likelihood = self.vae.prior, self.vae.encoder, self.vae.likelihood
        q_z = encoder.q_z(*encoder(cells))
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                pyro.sample("u", q_z)
                c = pyro.sample("c", prior.weight())
                z = pyro.sample("z", prior.component(c))
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)
