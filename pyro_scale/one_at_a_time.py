"""How the threads of a process take turns at what the process has one of.

Pyro's stack of handlers and its settings, torch's generator, the filters of warnings: there is one
of each in a process, and threads that use them at the same time get each other's. What uses them
(to train, to compare, to evaluate an objective) waits here until it is alone, so that threads give
what they would give one after the other. Processes share nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyro_scale.errors import BusyError

__all__ = ["being_trained", "one_at_a_time", "refuse_while_trained"]

_turn = threading.RLock()
_trained_by: dict[int, int] = {}  # of what is being trained, by its id: the thread


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread is in here; the same thread may come in again.

    It is a decorator too. Ctrl-C ends the waiting of the main thread.

    Examples
    --------
    >>> @one_at_a_time()
    ... def alone():
    ...     return 1
    >>> with one_at_a_time():
    ...     alone()
    1
    """
    with _turn:
        yield


@contextmanager
def being_trained(model: object) -> Iterator[None]:
    """Meanwhile other threads are refused by :func:`refuse_while_trained`."""
    before = _trained_by.get(id(model))
    _trained_by[id(model)] = threading.get_ident()
    try:
        yield
    finally:
        if before is None:
            _trained_by.pop(id(model), None)
        else:
            _trained_by[id(model)] = before


def refuse_while_trained(model: object) -> None:
    """Weights are not to be read while another thread changes them.

    Raises
    ------
    BusyError
        If another thread trains this very model.
    """
    if _trained_by.get(id(model), threading.get_ident()) != threading.get_ident():
        raise BusyError(
            "this model is being trained by another thread: wait until its train() is done, or ask "
            "a copy of the model that was saved before."
        )


def _after_fork() -> None:  # pragma: no cover  (runs in a process that ends untraced)
    """A forked process has no other thread whose turn it could be."""
    global _turn
    _turn = threading.RLock()
    for model, thread in list(_trained_by.items()):
        if thread != threading.get_ident():
            del _trained_by[model]


if hasattr(os, "register_at_fork"):  # pragma: no branch  (not on Windows)
    os.register_at_fork(after_in_child=_after_fork)
