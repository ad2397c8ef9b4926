"""The folder of a saved model: ``model.json`` and ``weights.safetensors``.

Neither file can execute code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import stat
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from pyro_scale._atomic import atomic_write
from pyro_scale.config import ModelConfig
from pyro_scale.exceptions import ModelFileError
from pyro_scale.objectives import REGISTRY
from pyro_scale.programs import Lsi, MixtureVAE

__all__ = ["FILES", "SCHEMA_VERSION", "ModelState", "checksum", "description", "load", "save"]

SCHEMA_VERSION = 6
_READABLE = (5, SCHEMA_VERSION)
FILES = ("model.json", "weights.safetensors")

_DIRECTIONS = "encoder.lsi.directions_pr"
_KEYS = {
    *("schema_version", "versions", "config", "is_trained", "peak_names", "history"),
    *("n_components_table", "sha256", "weights_sha256"),
}
_MAX_JSON_BYTES = 2**28  # far more than any saved model has, and small enough to be read
_MAX_HEADER_BYTES = 2**20  # of weights.safetensors, with names and shapes


class ModelState(NamedTuple):
    """The content of a saved model.

    Attributes
    ----------
    config
        The model's configuration.
    vae
        The model with its parameters.
    peak_names
        Names of the peaks, in the model's order.
    history
        History of training, one row per epoch.
    is_trained
        Whether the parameters come from training.
    n_components_table
        What the number of components was chosen from; empty if it was given.
    """

    config: ModelConfig
    vae: MixtureVAE
    peak_names: pd.Index
    history: pd.DataFrame
    is_trained: bool
    n_components_table: pd.DataFrame


def description(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration and the versions of packages as plain values.

    They can be stored as JSON and in an AnnData's ``uns``.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in ("pyro-scale", "torch", "pyro-ppl")},
        # h5ad cannot hold None: fields that are not set are left out.
        "config": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in config.to_dict().items()
            if value is not None
        },
    }


def save(directory: Path, state: ModelState, *, overwrite: bool) -> None:
    """Write the folder of a model, atomically."""
    directory = directory.resolve()
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; choose a folder to save the model in.")
    found = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if found and not overwrite:
        raise FileExistsError(f"{directory} is not empty; choose another folder or overwrite=True.")
    if others := sorted(found.difference(FILES)):
        raise FileExistsError(
            f"{directory} holds {others[0]!r}, which is not part of a model and would be lost; "
            "choose another folder."
        )
    weights = {n: tensor.cpu().contiguous() for n, tensor in state.vae.state_dict().items()}
    if name := _not_finite(weights):
        raise ValueError(
            f"{name} has values that are not finite, so the model is not saved; train it again "
            "with a smaller lr."
        )
    weights_bytes = serialized(weights)
    model = description(state.config) | {
        "is_trained": state.is_trained,
        "peak_names": [str(name) for name in state.peak_names],
        "history": _records(state.history),
        "n_components_table": _records(state.n_components_table),
        "weights_sha256": hashlib.sha256(weights_bytes).hexdigest(),
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory) as new:
        new.mkdir()
        (new / "weights.safetensors").write_bytes(weights_bytes)
        text = json.dumps({**model, "sha256": checksum(model)}, indent=1)
        (new / "model.json").write_text(text, encoding="utf-8")


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of a table with its index; NaN, which JSON lacks, becomes None."""
    if frame.empty:
        return []
    rows = frame.reset_index().to_dict("records")  # to_json would round
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]


def checksum(model: dict[str, Any]) -> str:
    """Return the SHA-256 of the content of model.json, without the entry ``sha256``."""
    rest = {key: value for key, value in model.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """Return the name of the first weight that has NaN or infinite values, or None."""
    return next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)


def load(directory: Path) -> ModelState:
    """Read a model from its folder.

    The sizes stated in the files are compared with each other before memory is allocated for them.

    Raises
    ------
    ModelFileError
        If the folder does not hold a model that this version can read, or the model is damaged.
    """
    _check_files(directory)
    try:
        return _load(directory)
    except RecursionError as error:
        raise ModelFileError(
            f"{directory} holds a damaged model: its JSON is nested too deeply."
        ) from error


def _check_files(directory: Path) -> None:
    """Check that both files of a model exist, are plain files and are not too large.

    This runs before either is read.
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
                f"{directory / name} is a link, a folder or a device; a saved model is two plain "
                "files: copy the folder again, with what its links point to."
            )
        most = _MAX_JSON_BYTES if name == "model.json" else math.inf
        if state.st_size > most:
            raise ModelFileError(
                f"{directory / name} has {state.st_size} bytes; no saved model has more than "
                f"{most}."
            )


def _load(directory: Path) -> ModelState:
    """Read the files, check their content, and build the model."""
    try:
        model = json.loads((directory / "model.json").read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ModelFileError(
            f"{directory} holds a damaged model: model.json is not JSON ({error}); copy the folder "
            "again."
        ) from error
    if not isinstance(model, dict) or "schema_version" not in model:
        raise ModelFileError(
            f"{directory} holds a damaged model: model.json has no schema_version."
        )
    schema = model["schema_version"]
    if type(schema) is not int or schema not in _READABLE:
        raise ModelFileError(
            f"{directory} has schema version {reprlib.repr(schema)}; this version reads "
            f"{' and '.join(map(str, _READABLE))}. Load it with the version of pyro_scale that "
            "saved it."
        )
    keys = _KEYS if schema > 5 else _KEYS - {"n_components_table"}
    if set(model) != keys:
        raise ModelFileError(
            f"{directory} holds a damaged model: model.json has the keys "
            f"{reprlib.repr(sorted(model))}; expected {sorted(keys)}."
        )
    weights_path = directory / "weights.safetensors"
    with weights_path.open("rb") as file:
        weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for name, given, found in (
        ("model.json", model["sha256"], checksum(model)),
        ("weights.safetensors", model["weights_sha256"], weights_sha256),
    ):
        if given != found:
            raise ModelFileError(
                f"{directory} holds a damaged model: {name} changed after it was saved (its "
                "SHA-256 differs); copy the folder again."
            )
    try:
        config = _config(model["config"])
        peak_names = _peak_names(model["peak_names"])
        history = _rows("history", "epoch", model["history"])
        table = _rows("n_components_table", "n_components", model.get("n_components_table", []))
        if not isinstance(model["is_trained"], bool):
            raise TypeError("is_trained is not true or false.")
        shapes = _shapes_of(weights_path)
        with torch.device("meta"):  # shapes only: nothing is allocated
            vae = _empty_vae(config, len(peak_names), shapes)
        _check_shapes({name: tuple(w.shape) for name, w in vae.state_dict().items()}, shapes)
    except ModelFileError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{directory}: the files do not fit each other: {error}") from error
    weights = {n: w.float() for n, w in load_file(weights_path).items()}
    if wrong := _not_finite(weights):
        raise ModelFileError(f"{directory}: {wrong} has values that are not finite.")
    vae.load_state_dict(weights, assign=True)
    if schema == 5:
        vae.likelihood.rescale_batch_offsets()
    return ModelState(config, vae, peak_names, history, model["is_trained"], table)


def _config(options: Any) -> ModelConfig:
    """Build the configuration from model.json, which may have been changed."""
    if not isinstance(options, dict):
        raise TypeError("config is not an object.")
    known = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"the options {reprlib.repr(unknown)} of the configuration are not known here."
        )
    if (name := options.get("formulation", "collapsed")) not in REGISTRY.formulations:
        raise ValueError(
            f"the model has formulation={reprlib.repr(name)}, which is not known here: import the "
            "module that registers it (pyro_scale.register) before you load the model."
        )
    return ModelConfig(**options)


def _peak_names(names: Any) -> pd.Index:
    """Return the peak names from model.json; raise unless they are distinct strings."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise TypeError("peak_names is not a list of names.")
    if len(set(names)) < len(names):
        raise ValueError(f"peak_names repeats {len(names) - len(set(names))} names.")
    return pd.Index(names, dtype=object)


def _rows(name: str, index: str, records: Any) -> pd.DataFrame:
    """Return a table of model.json, one row per value of the integer column ``index``.

    Raise TypeError unless all rows have the same columns, whose values are numbers, strings or
    None.
    """
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise TypeError(f"{name} is not a list of rows.")
    if not records:
        return pd.DataFrame()
    columns = list(records[0])
    plain = all(
        list(row) == columns
        and type(row.get(index)) is int
        and all(value is None or isinstance(value, (str, float, int)) for value in row.values())
        for row in records
    )
    if not plain:
        raise TypeError(
            f"{name} has rows that differ in their columns, or whose values are not numbers or "
            "strings."
        )
    return pd.DataFrame.from_records(records).set_index(index)


def _check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Check that the file has all weights of the model, with the same shapes, and no others.

    ``expected`` are the shapes of the model's weights by name, ``found`` those in the file.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"the weight {name} is missing.")
        if name not in expected:
            raise ValueError(f"the weight {name} is not one of this model.")
        if expected[name] != found[name]:
            raise ValueError(
                f"{name} has shape {found[name]}, and the configuration and peaks ask for "
                f"{expected[name]}."
            )


def _empty_vae(config: ModelConfig, n_peaks: int, shapes: dict[str, tuple[int, ...]]) -> MixtureVAE:
    """Build the model that the file's weights are loaded into; ``shapes`` are their shapes."""
    lsi = None
    if not config.plain:
        if len(shapes.get(_DIRECTIONS, ())) != 2:
            raise ValueError(f"the weight {_DIRECTIONS} is missing, or not a matrix.")
        lsi = Lsi(n_peaks, shapes[_DIRECTIONS][1], config.n_batches)
    mean_log_depth = 0.0 if config.has_depth_term else None
    vae = config.build_vae(n_peaks, lsi=lsi, mean_log_depth=mean_log_depth)
    REGISTRY.build(vae, config.formulation)  # adds the parameters of a registered formulation
    return vae


def _shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of the weights from the header of their file.

    Raises
    ------
    ModelFileError
        If the header is damaged, or a weight is empty or not of real numbers.
    """
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
    if n_header > _MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path.parent} holds a damaged model: {path.name} states a header of {n_header} "
            f"bytes; expected at most {_MAX_HEADER_BYTES}."
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
