"""How a loop is compiled: without the interpreter's lock, once per machine where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(flags: set[str], *, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: Numba's ``njit`` with LLVM's ``flags`` of floating-point arithmetic.

    The function has no annotations: Numba compiles it for each combination of types that comes.
    What is compiled is kept beside the source or in the user's cache; where neither can be written
    (a package in a read-only image), every process compiles for itself, which takes seconds.
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
