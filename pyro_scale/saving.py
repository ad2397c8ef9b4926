"""Models on disk: safetensors for the weights, JSON for the rest; nothing that can execute."""

from __future__ import annotations

import reprlib
import tempfile
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from pyro_scale.configuration import Configuration
from pyro_scale.errors import ModelFileError
from pyro_scale.placing import place
from pyro_scale.programs import FORMULATIONS, Lsi, MixtureVAE, build
from pyro_scale.saved_files import (
    FILES,
    check_files,
    check_seals,
    read_json,
    seals,
    shapes_of,
    write_json,
)

__all__ = ["SCHEMA_VERSION", "Saved", "description", "load", "save"]

SCHEMA_VERSION = 4
_DIRECTIONS = "encoder.lsi.directions_pr"
_KEYS = {"schema_version", "versions", "configuration", "sha256"}


class Saved(NamedTuple):
    """What a folder holds."""

    vae: MixtureVAE
    configuration: Configuration
    peak_names: pd.Index
    history: pd.DataFrame


def description(configuration: Configuration) -> dict[str, Any]:
    """Configuration and versions, as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in ("pyro-scale", "torch", "pyro-ppl")},
        # None has no place in an h5ad: what is not set is left out.
        "configuration": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in configuration.to_dict().items()
            if value is not None
        },
    }


def save(
    directory: Path,
    vae: MixtureVAE,
    configuration: Configuration,
    peak_names: pd.Index,
    history: pd.DataFrame,
    *,
    overwrite: bool,
) -> None:
    """Write a model's folder: beside its place first, then moved there whole."""
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
    build(vae, configuration.formulation)  # parameters of its own, if it has any
    weights = {name: tensor.cpu().contiguous() for name, tensor in vae.state_dict().items()}
    if name := _not_finite(weights):
        raise ValueError(
            f"{name} has values that are not finite, so the model is of no use and is not saved; "
            "train it again, with a smaller lr."
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        write_json(new / "peaks.json", [str(name) for name in peak_names])
        records = history.reset_index().to_dict("records")  # to_json would round
        write_json(new / "history.json", records)
        (new / "weights.safetensors").write_bytes(serialized(weights))
        model = description(configuration)
        write_json(new / "model.json", {**model, "sha256": seals(new, model)}, indent=2)
        place(new, directory, Path(temporary))


def _not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """The first weight that has NaN or an infinity."""
    return next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)


def load(directory: Path) -> Saved:
    """Read a model's folder, refusing what is not understood.

    Nothing of the size that a file asks for is made before all files have been found to agree.
    """
    check_files(directory)
    try:
        return _load(directory)
    except RecursionError as error:
        raise ModelFileError(
            f"{directory} holds a damaged model: its JSON is nested without end."
        ) from error


def _load(directory: Path) -> Saved:
    model = read_json(directory / "model.json")
    if not isinstance(model, dict) or "schema_version" not in model:
        raise ModelFileError(
            f"{directory} holds a damaged model: model.json has no schema_version."
        )
    schema = model["schema_version"]
    if type(schema) is not int or schema != SCHEMA_VERSION:
        raise ModelFileError(
            f"{directory} has schema version {reprlib.repr(schema)}; this version reads "
            f"{SCHEMA_VERSION}. Load it with the version of pyro_scale that saved it."
        )
    if set(model) != _KEYS:
        raise ModelFileError(
            f"{directory} holds a damaged model: model.json has the keys "
            f"{reprlib.repr(sorted(model))}; expected {sorted(_KEYS)}."
        )
    check_seals(directory, model)
    try:
        configuration = _configuration(model["configuration"])
        peak_names = _peak_names(read_json(directory / "peaks.json"))
        history = _history(read_json(directory / "history.json"))
        shapes = shapes_of(directory / "weights.safetensors")
        with torch.device("meta"):  # shapes alone: nothing is allocated
            vae = _empty_vae(configuration, len(peak_names), shapes)
        _check_shapes({name: tuple(w.shape) for name, w in vae.state_dict().items()}, shapes)
    except ModelFileError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{directory}: the files do not fit each other: {error}") from error
    weights = {n: w.float() for n, w in load_file(directory / "weights.safetensors").items()}
    if name := _not_finite(weights):
        raise ModelFileError(f"{directory}: {name} has values that are not finite.")
    vae.load_state_dict(weights, assign=True)
    return Saved(vae, configuration, peak_names, history)


def _configuration(options: Any) -> Configuration:
    if not isinstance(options, dict):
        raise TypeError("the configuration is not an object.")
    known = {field.name for field in fields(Configuration)}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"the configuration has {reprlib.repr(unknown)}, not known here.")
    if (name := options.get("formulation", "collapsed")) not in FORMULATIONS:
        raise ValueError(
            f"the model has formulation={reprlib.repr(name)}, which is not known here: import the "
            "file that registers it (pyro_scale.register) before you load it."
        )
    return Configuration(**options)


def _peak_names(names: Any) -> pd.Index:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise TypeError("peaks.json is not a list of names.")
    if len(set(names)) < len(names):
        raise ValueError(f"peaks.json repeats {len(names) - len(set(names))} names.")
    return pd.Index(names, dtype=object)


def _history(records: Any) -> pd.DataFrame:
    """A row per epoch, all with the same columns of numbers and words."""
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise TypeError("history.json is not a list of epochs.")
    if not records:
        return pd.DataFrame()
    columns = list(records[0])
    plain = all(
        list(row) == columns
        and type(row.get("epoch")) is int
        and all(value is None or isinstance(value, (str, float, int)) for value in row.values())
        for row in records
    )
    if not plain:
        raise TypeError("history.json has epochs that differ in what they record.")
    return pd.DataFrame.from_records(records).set_index("epoch")


def _check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """The weights that the configuration and the peaks ask for, and no others."""
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


def _empty_vae(
    configuration: Configuration, n_peaks: int, shapes: dict[str, tuple[int, ...]]
) -> MixtureVAE:
    """Networks of the right shapes, to be overwritten."""
    lsi = None
    if not configuration.plain:
        if len(shapes.get(_DIRECTIONS, ())) != 2:
            raise ValueError(f"the weight {_DIRECTIONS} is missing, or no matrix.")
        lsi = Lsi(n_peaks, shapes[_DIRECTIONS][1], configuration.n_batches)
    vae = MixtureVAE(
        n_peaks,
        configuration.n_components or 1,
        configuration.n_latent,
        hidden=configuration.hidden or (),
        decoder_hidden=configuration.decoder_hidden,
        likelihood=configuration.likelihood,
        layer_norm=not configuration.plain,
        lsi=lsi,
        mean_log_depth=None if configuration.plain or not configuration.binary else 0.0,
        n_batches=configuration.n_batches,
        classifier=configuration.formulation == "amortized",
        posterior_variance=configuration.posterior_variance,
    )
    build(vae, configuration.formulation)  # parameters of its own, if it has any
    return vae
