"""Reading models of the published SCALE (``model.pt``) without executing code in them."""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyro_scale._validation import check_adata
from pyro_scale.config import ModelConfig
from pyro_scale.exceptions import DataError, ModelFileError
from pyro_scale.programs import MixtureVAE
from pyro_scale.serialization.model_dir import ModelState

__all__ = ["load_original"]

logger = logging.getLogger(__name__)

_HIDDEN = re.compile(r"(encoder|decoder)\.hidden\.(\d+)\.(weight|bias)")
_HEADS = {
    "encoder.sample.mu": "encoder.loc",
    "encoder.sample.log_var": "encoder.raw_var",
    "decoder.reconstruction": "likelihood.peaks",
}


def load_original(path: Path, adata: AnnData, *, layer: str | None) -> ModelState:
    """Load a ``model.pt`` of SCALE 1.0.4 to 1.1.2 as a model with ``preset="plain"``.

    The file has no peak names, so the model takes those of ``adata``, in the same order.

    q(z|x) and the decoder are the same functions as in SCALE. The mixture's weights are normalized
    to sum to one, which SCALE does not ensure, and its variances are raised to the minimum that
    :meth:`pyro_scale.programs.MixturePrior.set_components` sets.

    Raises
    ------
    ModelFileError
        If the file is not a SCALE model, that is, if it cannot be read, names of weights are
        missing or not known, shapes do not fit each other, or a value is not finite.
    DataError
        If ``adata`` has another number of peaks than the model.
    """
    check_adata(adata)
    state = _read(path)
    linear = _layers(state, path)
    means_kd, var_kd, pi_k = state["mu_c"].T, state["var_c"].T, state["pi"]
    encoder, decoder = linear["encoder"], linear["decoder"]
    try:
        config = ModelConfig(
            n_components=len(pi_k),
            n_latent=means_kd.shape[1],
            preset="plain",
            hidden=tuple(weight.shape[0] for weight, _ in encoder),
            decoder_hidden=tuple(weight.shape[0] for weight, _ in decoder),
            posterior_variance="exp",
            layer=layer,
        )
        with torch.device("meta"):  # shapes only: weights are allocated after the check
            vae = config.build_vae(encoder[0][0].shape[1])
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: no model has weights of these shapes: {error}") from error
    ours = {f"prior.{name}": torch.empty(w.shape) for name, w in vae.prior.state_dict().items()}
    layers = {"encoder": "encoder.trunk", "decoder": "likelihood.hidden"}
    for part, pairs in linear.items():
        for i, (weight, bias) in enumerate(pairs):
            first = part == "encoder" and i == 0
            place = f"{layers[part]}.{2 * i}"
            ours[f"{place}.weight_ph" if first else f"{place}.weight"] = (
                weight.T.contiguous() if first else weight
            )
            ours[f"{place}.bias_h" if first else f"{place}.bias"] = bias
    for theirs, name in _HEADS.items():
        for kind in ("weight", "bias"):
            ours[f"{name}.{kind}"] = state[f"{theirs}.{kind}"]
    try:
        vae.load_state_dict(ours, assign=True)
        _set_prior(vae, pi_k, means_kd, var_kd)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: the shapes do not fit each other: {error}") from error
    if adata.n_vars != vae.n_peaks:
        raise DataError(
            f"{path} was trained on {vae.n_peaks} peaks and the cells have {adata.n_vars}; "
            "give the adata.h5ad that SCALE wrote beside the model, with the peaks that it kept."
        )
    empty = pd.DataFrame()
    return ModelState(config, vae, adata.var_names, empty, True, empty)


def _read(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a ``model.pt``, and check names, layout, sizes and values."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a model.pt that SCALE wrote.")
    _check_uncompressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file is checked below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file can raise anything
        raise ModelFileError(
            f"{path} cannot be read as weights alone, without running code; expected a folder that "
            "save() wrote, or a model.pt of SCALE."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)
        for key, value in state.items()
    ):
        raise ModelFileError(
            f"{path} holds no dictionary of named tensors; expected a model.pt that SCALE wrote."
        )
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > path.stat().st_size:
        raise ModelFileError(
            f"{path} claims weights of {claimed} bytes and has {path.stat().st_size} bytes; it is "
            "damaged: copy it again."
        )
    heads = [f"{name}.{kind}" for name in _HEADS for kind in ("weight", "bias")]
    missing = [key for key in ("pi", "mu_c", "var_c", *heads) if key not in state]
    unknown = [
        key
        for key in state
        if key not in {"pi", "mu_c", "var_c", *heads} and not _HIDDEN.fullmatch(key)
    ]
    if missing or unknown:
        raise ModelFileError(
            f"{path} is not a model of SCALE: "
            + (f"{', '.join(missing)} missing" if missing else "")
            + (" and " if missing and unknown else "")
            + (f"{', '.join(key[:50] for key in unknown[:3])} not known" if unknown else "")
            + "."
        )
    if any(state[f"{head}.weight"].ndim != 2 for head in _HEADS):
        raise ModelFileError(
            f"{path}: the weights of {', '.join(_HEADS)} are not those of linear layers."
        )
    for key, value in state.items():
        if not value.is_floating_point() or not torch.isfinite(value.float()).all():
            raise ModelFileError(
                f"{path}: {key} has values that are not finite: its training failed."
            )
    return {key: value.detach().float() for key, value in state.items()}


def _check_uncompressed(path: Path) -> None:
    """Raise ModelFileError if the zip archive is compressed.

    SCALE's files are not compressed, and a small compressed file could fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return  # torch's older format, or a damaged file, which torch.load refuses
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelFileError(f"{path} is compressed inside; models that SCALE writes are not.")


def _is_plain(value: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU, not quantized and not empty."""
    return (
        value.numel() > 0
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _layers(state: dict[str, Tensor], path: Path) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return weight and bias of each hidden layer of the encoder and the decoder, in order."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {"encoder": {}, "decoder": {}}
    for key, value in state.items():
        if match := _HIDDEN.fullmatch(key):
            part, i, kind = match.groups()
            found[part].setdefault(int(i), {})[kind] = value
    for part, layers in found.items():
        for i, layer in layers.items():
            if set(layer) != {"weight", "bias"} or layer["weight"].ndim != 2:
                raise ModelFileError(f"{path}: {part}.hidden.{i} is not a whole linear layer.")
    shapes = {key: state[key].ndim for key in ("pi", "mu_c", "var_c")}
    if shapes != {"pi": 1, "mu_c": 2, "var_c": 2} or state["mu_c"].shape != state["var_c"].shape:
        raise ModelFileError(f"{path}: pi, mu_c and var_c do not have the shapes of a mixture.")
    if state["mu_c"].shape[1] != len(state["pi"]):
        raise ModelFileError(
            f"{path}: {len(state['pi'])} weights for {state['mu_c'].shape[1]} components."
        )
    if not found["encoder"]:
        raise ModelFileError(
            f"{path}: its encoder has no hidden layer; such models cannot be read."
        )
    return {
        part: [(layers[i]["weight"], layers[i]["bias"]) for i in sorted(layers)]
        for part, layers in found.items()
    }


@torch.no_grad()
def _set_prior(vae: MixtureVAE, pi_k: Tensor, loc_kd: Tensor, var_kd: Tensor) -> None:
    """Set the mixture to that of SCALE, with normalized weights and a minimum variance."""
    total, lowest = float(pi_k.sum()), float(pi_k.min())
    if abs(total - 1) > 1e-3 or lowest <= 0:
        logger.warning(
            "the mixture's weights add up to %.3g and the smallest is %.3g, because SCALE does not "
            "constrain them. They are divided by their sum here; in SCALE's loss the log of the "
            "sum counts as if it were evidence.",
            total,
            lowest,
        )
    n_low = int((var_kd < 2 * vae.prior.min_var).sum())
    if n_low:
        logger.warning("%d variances of components are raised to the minimum.", n_low)
    vae.prior.set_components(pi_k, loc_kd, var_kd)
    vae.prior.logits_k.copy_(pi_k.clamp_min(1e-10).log())
