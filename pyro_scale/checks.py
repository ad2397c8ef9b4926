"""Arguments, checked where they are given: what was given, what was expected."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import DTypeLike, NDArray

from pyro_scale.errors import DataError

__all__ = [
    "check_adata",
    "check_array",
    "check_choice",
    "check_device",
    "check_flag",
    "check_indices",
    "check_labels",
    "check_number",
    "check_path",
    "check_seed",
    "check_sound",
    "check_whole",
    "named_layers",
]


def check_whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number within bounds, as Python's own.

    Raises
    ------
    TypeError, ValueError
        If it is none, or out of bounds.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a whole number.")
    number = int(value)
    if number < least:
        words = {0: "zero", 1: "one", 2: "two"}.get(least, str(least))
        raise ValueError(f"{name}={reprlib.repr(value)} must be at least {words}.")
    if most is not None and number > most:
        raise ValueError(f"{name}={reprlib.repr(value)} must be at most {most}.")
    return number


def check_seed(value: Any) -> int:
    """A seed, as numpy and torch take it."""
    return check_whole("seed", value, least=0, most=2**32 - 1)


def check_number(
    name: str, value: Any, *, least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number within bounds.

    Raises
    ------
    TypeError, ValueError
        If it is none, or out of bounds.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a number.")
    try:
        number = float(value)
    except OverflowError:  # of a whole number
        number = math.inf
    if not math.isfinite(number) or not least <= number <= most:
        raise ValueError(
            f"{name}={reprlib.repr(value)} must be a finite number from {least:g} to {most:g}."
        )
    return number


def check_flag(name: str, value: Any) -> None:
    """True or False: what is merely taken for it may be an argument in the wrong place."""
    if type(value).__name__ not in ("bool", "bool_"):  # Python's and numpy's
        raise TypeError(f"{name}={reprlib.repr(value)} must be True or False.")


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """One of some words."""
    known = list(choices)
    if not isinstance(value, str | None) or value not in known:
        words = f"one of {', '.join(map(str, known))}"
        if len(known) == 2:
            words = f"{known[0]!r} or {known[1]!r}"
        raise ValueError(f"{name}={reprlib.repr(value)} is not known; choose {words}.")


def check_device(name: str, value: Any) -> torch.device:
    """A device that there is.

    Raises
    ------
    TypeError, ValueError
        If it is none, or cannot be had here.
    """
    if not isinstance(value, (str, torch.device)):
        raise TypeError(
            f"{name}={reprlib.repr(value)} must be a device, such as 'cpu' or 'cuda:0'."
        )
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch says it
        raise ValueError(
            f"{name}={str(value)!r} cannot be had here ({str(error).splitlines()[0]}); give 'cpu', "
            "or a device that torch sees."
        ) from error
    return device


def check_adata(adata: Any) -> None:
    """An AnnData, and not what may be read as one."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"expected an anndata.AnnData of cells x peaks, got {type(adata).__name__}; read "
            "a file with anndata.read_h5ad(path) first."
        )


def check_sound(matrix: Any, where: str) -> None:
    """A matrix of real numbers; if sparse, its indices stay within it, which scipy takes on trust.

    Raises
    ------
    DataError
        If it is not: reading it may crash.
    """
    if hasattr(matrix, "dtype") and matrix.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {matrix.dtype}; expected real numbers.")
    try:
        check_indices(matrix)
    except ValueError as error:
        raise DataError(
            f"{where} is a broken sparse matrix ({error}); build it anew from rows, columns and "
            "values."
        ) from error


def named_layers(adata: AnnData) -> dict[str, Any]:
    """The layers, without the one named None: from anndata 0.13 on, that is X once more."""
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def check_indices(matrix: Any) -> None:
    """What scipy takes on trust of a sparse matrix, and a damaged file may break.

    ``check_format`` looks at nothing where the last row claims to end at no entry at all.

    Raises
    ------
    ValueError
        If rows overlap, or an index lies outside the matrix.
    """
    if hasattr(matrix, "indptr") and (np.diff(matrix.indptr) < 0).any():
        raise ValueError("a row ends before it begins")
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)


def check_array(name: str, value: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """An array, of this type if one is asked for.

    Raises
    ------
    TypeError
        If it cannot be read as one.
    """
    try:
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{name}={reprlib.repr(value)} cannot be read as an array"
            f"{'' if dtype is None else ' of numbers'}: {error}."
        ) from error


def check_path(name: str, value: Any) -> Path:
    """A path.

    Raises
    ------
    TypeError, ValueError
        If it is none, or can be none.
    """
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a path.")
    try:
        Path(value).exists()
    except (OSError, ValueError) as error:  # a name too long, a null character
        raise ValueError(f"{name}={reprlib.repr(value)} can be no path: {error}.") from error
    return Path(value)


def check_labels(name: str, labels: Any) -> pd.Series:
    """One label per cell, as a Series.

    Raises
    ------
    TypeError
        If it is no list, array or Series of labels.
    """
    if isinstance(labels, (str, bytes, dict, set)) or not isinstance(labels, Iterable):
        raise TypeError(f"{name}={reprlib.repr(labels)} must have one label for each cell.")
    try:
        series = pd.Series(labels if hasattr(labels, "__array__") else list(labels))
        hash(tuple(series))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must have one label for each cell: {error}.") from error
    return series
