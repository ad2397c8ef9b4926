"""The base class of every model and guide."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule

from pyro_scale.programs.vae import MixtureVAE

__all__ = ["Program"]


class Program(PyroModule):
    """A Pyro program over the parameters of a :class:`MixtureVAE`.

    Pyro's ``module_local_params`` must be on when a PyroModule is built and at every call, or
    its parameters go through the global store. It is switched on here, for exactly that
    long, so that the caller's settings and store are left alone.

    Parameters
    ----------
    vae
        The parameters; programs that are compared share one.
    """

    def __init__(self, vae: MixtureVAE) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__()
            self.vae = vae

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)
