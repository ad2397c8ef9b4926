"""Process-wide lock around code that uses Pyro's and torch's global state.

Pyro's handler stack and settings, torch's default generator and Python's warning filters exist once
per process, and threads that use them at the same time would change each other's results. Training,
comparing and evaluating an objective therefore hold one re-entrant lock, so that threads get the
same results as if they ran one after the other. Processes are independent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

__all__ = ["exclusive", "module_local_params"]

_lock = threading.RLock()
_settings_lock = threading.Lock()
# The setting before the first thread entered module_local_params, once per thread inside.
_saved_settings: list[Any] = []


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the process-wide lock; use it as a context manager or as a decorator.

    The lock is re-entrant: the thread that holds it may take it again. Gradients are computed in
    the block also if the caller has switched them off, by ``torch.no_grad`` or
    ``torch.inference_mode``, whose tensors could not be trained later.

    Examples
    --------
    >>> @exclusive()
    ... def alone():
    ...     return 1
    >>> with exclusive():
    ...     alone()
    1
    """
    with _lock, torch.inference_mode(mode=False), torch.enable_grad():
        yield


@contextmanager
def module_local_params() -> Iterator[None]:
    """Switch on Pyro's ``module_local_params`` while at least one thread is inside.

    Without this setting, a PyroModule that is built or called silently registers its parameters in
    Pyro's global store. Several threads can be inside at the same time, so that a model can be
    built, saved and loaded while another thread trains; the setting is restored when the last one
    leaves.
    """
    with _settings_lock:
        before = _saved_settings[0] if _saved_settings else pyro.settings.get("module_local_params")
        _saved_settings.append(before)
        pyro.settings.set(module_local_params=True)
    try:
        yield
    finally:
        with _settings_lock:
            before = _saved_settings.pop()
            if not _saved_settings:
                pyro.settings.set(module_local_params=before)
