"""Validation of arguments: each check raises an error that names the argument and its value."""

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

from pyro_scale.exceptions import DataError

__all__ = [
    "check_adata",
    "check_array",
    "check_bool",
    "check_choice",
    "check_device",
    "check_indices",
    "check_int",
    "check_labels",
    "check_matrix",
    "check_number",
    "check_path",
    "check_seed",
    "listed",
    "named_layers",
    "with_scipy_dtype",
]


def check_int(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` as a Python int; it must be an integer from ``least`` to ``most``.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer, or is out of bounds.
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
    """Return a seed as a Python int in the range that numpy accepts, 0 to 2**32 - 1."""
    return check_int("seed", value, least=0, most=2**32 - 1)


def check_number(
    name: str, value: Any, *, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return ``value`` as a float; it must be a finite number from ``least`` to ``most``.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, not finite, or out of bounds.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a number.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of floats
        number = math.inf
    if not math.isfinite(number) or not least <= number <= most:
        raise ValueError(
            f"{name}={reprlib.repr(value)} must be a finite number from {least:g} to {most:g}."
        )
    return number


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a bool.

    Other values that Python takes as true usually are misplaced positional arguments.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={reprlib.repr(value)} must be True or False.")


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """Check that ``value`` is one of ``choices``.

    Raises
    ------
    ValueError
        If it is not. The message lists the choices.
    """
    known = list(choices)
    if not isinstance(value, str | None) or value not in known:
        expected = f"one of {', '.join(map(str, known))}"
        if len(known) == 2:
            expected = f"{known[0]!r} or {known[1]!r}"
        raise ValueError(f"{name}={reprlib.repr(value)} is not known; choose {expected}.")


def check_device(name: str, value: Any) -> torch.device:
    """Return ``value`` as a torch device that is available.

    Raises
    ------
    TypeError, ValueError
        If it is not a device, or the device is not available.
    """
    if not isinstance(value, (str, torch.device)):
        raise TypeError(
            f"{name}={reprlib.repr(value)} must be a device, such as 'cpu' or 'cuda:0'."
        )
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # depends on the build of torch
        raise ValueError(
            f"{name}={str(value)!r} is not available ({str(error).splitlines()[0]}); give 'cpu', "
            "or a device that torch sees."
        ) from error
    return device


def check_adata(adata: Any) -> None:
    """Raise TypeError unless ``adata`` is an AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"expected an anndata.AnnData of cells x peaks, got {type(adata).__name__}; read "
            "a file with anndata.read_h5ad(path) first."
        )


def check_matrix(matrix: Any, where: str) -> None:
    """Check that a matrix has real numbers and, if it is sparse, valid indices.

    ``where`` is the name of the matrix in the message. scipy does not check the indices, and an
    operation on invalid ones may crash the interpreter.

    Raises
    ------
    DataError
        If the dtype is not one of real numbers, or an index is invalid.
    """
    if hasattr(matrix, "dtype") and matrix.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {matrix.dtype}; expected real numbers.")
    try:
        check_indices(matrix)
    except ValueError as error:
        raise DataError(
            f"{where} is a broken sparse matrix ({error}); build it again from rows, columns and "
            "values."
        ) from error


def listed(names: Iterable[object], at_most: int = 10) -> str:
    """Return the first names in one line, and how many more there are, for a message.

    Examples
    --------
    >>> listed(["a", "b"]), listed(range(12), at_most=3), listed([])
    ('a, b', '0, 1, 2 and 9 more', 'none')
    """
    shown = [str(name) for name in names]
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return (", ".join(shown[:at_most]) or "none") + more


def with_scipy_dtype(x: Any) -> Any:
    """Return a matrix of real numbers in a dtype that scipy.sparse has.

    It has neither float16, which becomes float32, nor another byte order than the machine's.
    """
    if x.dtype == np.float16:
        return x.astype(np.float32)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def named_layers(adata: AnnData) -> dict[str, Any]:
    """Return the layers by name, without ``X``, which since anndata 0.13 is the layer None."""
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def check_indices(matrix: Any) -> None:
    """Check the row pointers and indices of a sparse matrix; a damaged file may have wrong ones.

    scipy's ``check_format`` checks nothing if the last row pointer is zero, so the row pointers
    are checked here first.

    Raises
    ------
    ValueError
        If row pointers decrease, or an index lies outside the matrix.
    """
    if hasattr(matrix, "indptr") and (np.diff(matrix.indptr) < 0).any():
        raise ValueError("a row ends before it begins")
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)


def check_array(name: str, value: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return ``value`` as an array, of ``dtype`` if it is given.

    Raises
    ------
    TypeError
        If it cannot be converted.
    """
    try:
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{name}={reprlib.repr(value)} cannot be converted to an array"
            f"{'' if dtype is None else ' of numbers'}: {error}."
        ) from error


def check_path(name: str, value: Any) -> Path:
    """Return ``value`` as a path, with ``~`` replaced by the home folder.

    All paths that a user gives come through here.

    Raises
    ------
    TypeError, ValueError
        If it is not a string or a Path, or not a valid path on this system.
    """
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a path.")
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        # A name too long, a null character, or ~name of nobody.
        raise ValueError(f"{name}={reprlib.repr(value)} is not a valid path: {error}.") from error
    return path


def check_labels(name: str, labels: Any) -> pd.Series:
    """Return ``labels``, one per cell, as a Series; ``name`` is the argument's name in the message.

    Raises
    ------
    TypeError
        If ``labels`` is not a list, array or Series of hashable labels.
    """
    if isinstance(labels, (str, bytes, dict, set)) or not isinstance(labels, Iterable):
        raise TypeError(f"{name}={reprlib.repr(labels)} must have one label for each cell.")
    try:
        series = pd.Series(labels if hasattr(labels, "__array__") else list(labels))
        hash(tuple(series))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must have one label for each cell: {error}.") from error
    return series
