"""The base class of every model and guide."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro
from pyro.nn import PyroModule

from pyro_scale.programs.vae import MixtureVAE

__all__ = ["Program"]


_lock = threading.Lock()
_before: list[Any] = []  # what the setting was, once for everyone who is inside


@contextmanager
def _module_local_params() -> Iterator[None]:
    """On while any thread is inside: the last one out puts back what the first one found."""
    with _lock:
        _before.append(_before[0] if _before else pyro.settings.get("module_local_params"))
        pyro.settings.set(module_local_params=True)
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                pyro.settings.set(module_local_params=before)


class Program(PyroModule):
    """A Pyro program over the parameters of a :class:`MixtureVAE`.

    Pyro's ``module_local_params`` must be on when a PyroModule is built and at every call, or
    its parameters go through the global store. It is switched on here, for exactly that
    long, so that the caller's settings and store are left alone.

    Parameters
    ----------
    vae
        The parameters; programs that are compared share one.

    Examples
    --------
    >>> import torch
    >>> from pyro_scale.programs import Cells, MixtureVAE, Program
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> class Mean(Program):
    ...     def forward(self, cells):
    ...         return self.vae.encoder(cells)[0]
    >>> Mean(vae)(cells).shape
    torch.Size([5, 2])
    """

    param_sites = True  # by which SVI finds what to train; a tenth of a small model's step

    def __init__(self, vae: MixtureVAE) -> None:
        with _module_local_params():
            super().__init__()
            self.vae = vae  # type: ignore[misc]  # a module: it is kept as one

    @property
    def vae(self) -> MixtureVAE:
        """The parameters; each becomes a ``pyro.param`` site if ``param_sites`` says so."""
        found = super().__getattr__("vae") if self.param_sites else self._modules["vae"]
        return cast(MixtureVAE, found)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _module_local_params():
            return super().__call__(*args, **kwargs)
