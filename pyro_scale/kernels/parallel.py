"""Parts of a loop, on several threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["N_PARTS", "in_parallel", "kernels_have_the_threads", "parts"]

N_PARTS = 8  # fixed, so that sums are the same on any number of threads


@functools.lru_cache(maxsize=1)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """One pool a process (a forked one has none of its parent's threads)."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="pyro_scale")


_kernel_threads = 0  # none of their own: as many as torch has


@contextmanager
def kernels_have_the_threads() -> Iterator[None]:
    """Torch works on one thread, the kernels on all those that torch had.

    Beside the kernels torch's work is small, and its threads wait for more of it by turning in
    circles for milliseconds, on the cores that the kernels need.
    """
    global _kernel_threads
    before = _kernel_threads, torch.get_num_threads()
    _kernel_threads = _kernel_threads or before[1]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _kernel_threads = before[0]
        torch.set_num_threads(before[1])


def parts(n: int) -> list[tuple[int, int]]:
    """Where each of :data:`N_PARTS` parts of n things starts and ends.

    Examples
    --------
    >>> parts(20)[:3]
    [(0, 2), (2, 5), (5, 7)]
    """
    return [(i * n // N_PARTS, (i + 1) * n // N_PARTS) for i in range(N_PARTS)]


def in_parallel(kernel: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    """Call a kernel once for every tuple of arguments; what it raises is raised here."""
    n_threads = min(_kernel_threads or torch.get_num_threads(), len(arguments))

    def every(first: int) -> None:
        for each in arguments[first::n_threads]:
            kernel(*each)

    others = []
    if n_threads > 1:
        pool = _pool(os.getpid(), n_threads)
        others = [pool.submit(every, first) for first in range(1, n_threads)]
    try:
        every(0)
    finally:
        for other in others:
            other.result()
