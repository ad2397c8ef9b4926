"""The files of a saved model: that they are files, of a sensible size, unchanged, and JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pyro_scale.errors import ModelFileError

__all__ = ["FILES", "check_files", "check_seals", "read_json", "seals", "shapes_of", "write_json"]

FILES = ("model.json", "peaks.json", "history.json", "weights.safetensors")

# Far above what is ever saved, and small enough to be read.
_MOST_BYTES = {"model.json": 2**24, "peaks.json": 2**27, "history.json": 2**26}
_MOST_HEADER = 2**20  # bytes of the names and shapes in the weights' file


def check_files(directory: Path) -> None:
    """Look at the four files before any is read.

    Raises
    ------
    ModelFileError
        If one is missing, is a link or a device, or is too large to be what it says.
    """
    missing = [name for name in FILES if not os.path.lexists(directory / name)]
    if missing:
        raise ModelFileError(
            f"{directory} does not hold a saved model: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    for name in FILES:
        state = (directory / name).lstat()
        if not stat.S_ISREG(state.st_mode):
            raise ModelFileError(
                f"{directory / name} is a link, a folder or a device; a saved model is four plain "
                "files: copy the folder again, with what its links point to."
            )
        most = _MOST_BYTES.get(name, math.inf)
        if state.st_size > most:
            raise ModelFileError(
                f"{directory / name} has {state.st_size} bytes; no saved model has more than "
                f"{most} there."
            )


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises
    ------
    ModelFileError
        If it is not JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path.parent} holds a damaged model: {path.name} is not JSON ({error}); copy the "
            "folder again."
        ) from error


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """As UTF-8, wherever it is written."""
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")


def seals(directory: Path, model: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each file; of model.json, without the seals themselves."""
    rest = {key: value for key, value in model.items() if key != "sha256"}
    found = {"model.json": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
    for name in FILES[1:]:
        with (directory / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_seals(directory: Path, model: dict[str, Any]) -> None:
    """Compare the files with their SHA-256 in model.json.

    Raises
    ------
    ModelFileError
        If a byte of one has changed since it was saved.
    """
    found = seals(directory, model)
    if model["sha256"] == found:
        return
    given = model["sha256"] if isinstance(model["sha256"], dict) else {}
    changed = [name for name, seal in found.items() if given.get(name) != seal]
    raise ModelFileError(
        f"{directory} holds a damaged model: {', '.join(changed) or 'model.json'} changed after it "
        "was saved (its SHA-256 is another); copy the folder again."
    )


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, from the header of their file; nothing more is read.

    Raises
    ------
    ModelFileError
        If the header is damaged, or a weight is not of real numbers.
    """
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
    if n_header > _MOST_HEADER:
        raise ModelFileError(
            f"{path.parent} holds a damaged model: {path.name} says that its header has {n_header} "
            f"bytes; expected at most {_MOST_HEADER}."
        )
    try:
        with safe_open(path, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ModelFileError(
            f"{path.parent} holds a damaged model: {path.name} cannot be read ({error})."
        ) from error
    for name, dtype in dtypes.items():
        if 0 in shapes[name]:
            raise ModelFileError(f"{path.parent} holds a damaged model: {name} is empty.")
        if dtype not in ("F16", "BF16", "F32", "F64"):
            raise ModelFileError(
                f"{path.parent} holds a damaged model: {name} is of dtype {dtype}; expected real "
                "numbers."
            )
    return shapes
