"""Models on disk: safetensors for the weights, JSON for the rest; nothing that can execute."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from pyro_scale.configuration import Configuration
from pyro_scale.errors import ModelFileError
from pyro_scale.placing import place
from pyro_scale.programs import Lsi, MixtureVAE

__all__ = ["SCHEMA_VERSION", "Saved", "description", "load", "save"]

SCHEMA_VERSION = 3
_FILES = ("model.json", "peaks.json", "history.json", "weights.safetensors")


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
    if others := sorted(found.difference(_FILES)):
        raise FileExistsError(
            f"{directory} holds {others[0]!r}, which is not part of a model and would be lost; "
            "choose another folder."
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / "model.json").write_text(json.dumps(description(configuration), indent=2))
        (new / "peaks.json").write_text(json.dumps([str(name) for name in peak_names]))
        records = history.reset_index().to_dict("records")  # to_json would round
        (new / "history.json").write_text(json.dumps(records))
        weights = {name: tensor.cpu().contiguous() for name, tensor in vae.state_dict().items()}
        (new / "weights.safetensors").write_bytes(serialized(weights))
        place(new, directory, Path(temporary))


def load(directory: Path) -> Saved:
    """Read a model's folder, refusing what is not understood."""
    missing = [name for name in _FILES if not (directory / name).is_file()]
    if missing:
        raise ModelFileError(
            f"{directory} does not hold a saved model: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    try:
        model = json.loads((directory / "model.json").read_text())
        peaks = json.loads((directory / "peaks.json").read_text())
        history = json.loads((directory / "history.json").read_text())
        weights = load_file(directory / "weights.safetensors")
        schema = model["schema_version"]
        options = dict(model["configuration"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelFileError(f"{directory} holds a damaged model: {error}") from error
    if schema != SCHEMA_VERSION:
        raise ModelFileError(
            f"{directory} has schema version {schema!r}; this version reads {SCHEMA_VERSION}."
        )
    try:
        configuration = Configuration(**options)
        vae = _empty_vae(configuration, len(peaks), weights)
        vae.load_state_dict(weights)
        frame = pd.DataFrame.from_records(history)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{directory}: the files do not fit each other: {error}") from error
    return Saved(
        vae,
        configuration,
        pd.Index(peaks, dtype=object),
        frame.set_index("epoch") if "epoch" in frame else pd.DataFrame(),
    )


def _empty_vae(
    configuration: Configuration, n_peaks: int, weights: dict[str, torch.Tensor]
) -> MixtureVAE:
    """Networks of the right shapes, to be overwritten."""
    directions = weights.get("encoder.lsi.directions_pr", torch.empty(n_peaks, 0))
    with torch.random.fork_rng(devices=[]):
        return MixtureVAE(
            n_peaks,
            configuration.n_components or 1,
            configuration.n_latent,
            hidden=configuration.hidden or (),
            decoder_hidden=configuration.decoder_hidden,
            likelihood=configuration.likelihood,
            layer_norm=not configuration.plain,
            lsi=None
            if configuration.plain
            else Lsi(n_peaks, directions.shape[-1], configuration.n_batches),
            mean_log_depth=None if configuration.plain or not configuration.binary else 0.0,
            n_batches=configuration.n_batches,
            classifier=configuration.formulation == "amortized",
            posterior_variance=configuration.posterior_variance,
        )
