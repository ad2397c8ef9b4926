"""Compilation of the Numba kernels, and the threads that they run on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from numba import njit

__all__ = [
    "N_PARTS",
    "compiled",
    "in_parallel",
    "parts",
    "reserve_threads_for_kernels",
]


def compiled(flags: set[str], *, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that applies Numba's ``njit`` with LLVM's fast-math ``flags``.

    Kernels have no annotations, because Numba compiles them for each combination of argument types.
    Compiled code is cached beside the source or in the user's cache directory. If neither is
    writable (a package in a read-only image), every process compiles again, which takes seconds.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": flags, "error_model": "numpy"}
    if inline:
        options["inline"] = "always"

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # Numba: "no locator available"
            return njit(**options)(function)

    return decorate


N_PARTS = 8  # fixed, so that sums do not depend on the number of threads


@functools.lru_cache(maxsize=1)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """Return the thread pool of a process; a forked process needs a new one."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="pyro_scale")


_kernel_threads = 0  # number of threads of the kernels; 0 stands for torch's


@contextmanager
def reserve_threads_for_kernels() -> Iterator[None]:
    """Set torch to one thread and let the kernels use as many threads as torch had.

    After each operation, torch's OpenMP threads busy-wait for milliseconds and occupy cores that
    the kernels need. Torch's own operations are small compared with the kernels and need only one
    thread.
    """
    global _kernel_threads
    kernel_threads, torch_threads = _kernel_threads, torch.get_num_threads()
    _kernel_threads = kernel_threads or torch_threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _kernel_threads = kernel_threads
        torch.set_num_threads(torch_threads)


def parts(n: int) -> list[tuple[int, int]]:
    """Split ``range(n)`` into :data:`N_PARTS` ranges, each as (start, stop).

    Examples
    --------
    >>> parts(20)[:3]
    [(0, 2), (2, 5), (5, 7)]
    """
    return [(i * n // N_PARTS, (i + 1) * n // N_PARTS) for i in range(N_PARTS)]


def in_parallel(kernel: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    """Call a kernel once per tuple of arguments, on several threads.

    An exception of a call is raised again.
    """
    n_threads = min(_kernel_threads or torch.get_num_threads(), len(arguments))

    def run_calls_of(thread: int) -> None:
        for each in arguments[thread::n_threads]:
            kernel(*each)

    futures = []
    if n_threads > 1:
        pool = _pool(os.getpid(), n_threads)
        futures = [pool.submit(run_calls_of, thread) for thread in range(1, n_threads)]
    try:
        run_calls_of(0)
    finally:
        for future in futures:
            future.result()
