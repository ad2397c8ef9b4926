"""Models that the published SCALE wrote (``model.pt``), read without running anything in them."""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pyro_scale.configuration import Configuration
from pyro_scale.errors import ModelFileError
from pyro_scale.programs import MixtureVAE

__all__ = ["read_original"]

logger = logging.getLogger(__name__)

_HIDDEN = re.compile(r"(encoder|decoder)\.hidden\.(\d+)\.(weight|bias)")
_HEADS = {
    "encoder.sample.mu": "encoder.loc",
    "encoder.sample.log_var": "encoder.raw_var",
    "decoder.reconstruction": "likelihood.peaks",
}


def read_original(path: Path) -> tuple[Configuration, MixtureVAE]:
    """The plain model with the weights of a ``model.pt`` of SCALE 1.0.4 to 1.1.2.

    q(z|x) and the decoder are the same functions. The mixture's weights are put on the simplex,
    where SCALE leaves them free, and its variances above the floor.

    Raises
    ------
    ModelFileError
        If the file is not a SCALE model: it cannot be read, keys are missing or not known, shapes
        do not fit, or a number is not finite.
    """
    state = _read(path)
    linear = _layers(state, path)
    means_kd, var_kd, pi_k = state["mu_c"].T, state["var_c"].T, state["pi"]
    encoder, decoder = linear["encoder"], linear["decoder"]
    first_weight = encoder[0][0] if encoder else state["encoder.sample.mu.weight"]
    try:
        configuration = Configuration(
            n_components=len(pi_k),
            n_latent=means_kd.shape[1],
            preset="plain",
            hidden=tuple(weight.shape[0] for weight, _ in encoder),
            decoder_hidden=tuple(weight.shape[0] for weight, _ in decoder),
            posterior_variance="exp",
        )
        with torch.device("meta"):  # shapes alone: what they ask for is made when they fit
            vae = MixtureVAE(
                first_weight.shape[1],
                len(pi_k),
                configuration.n_latent,
                hidden=configuration.hidden or (),
                decoder_hidden=configuration.decoder_hidden,
                posterior_variance="exp",
            )
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: the shapes are no model's: {error}") from error
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
    return configuration, vae


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a model.pt that SCALE wrote.")
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is then refused, or is in order
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file brings about
        raise ModelFileError(
            f"{path} cannot be read as weights alone, without running code; expected a folder that "
            "save wrote, or a model.pt of SCALE."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)
        for key, value in state.items()
    ):
        raise ModelFileError(f"{path} holds no dictionary of named tensors, as SCALE writes.")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > path.stat().st_size:
        raise ModelFileError(
            f"{path} claims weights of {claimed} bytes and has {path.stat().st_size}; it is "
            "damaged, copy it again."
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
        raise ModelFileError(f"{path}: the weights of {', '.join(_HEADS)} are no linear layers'.")
    for key, value in state.items():
        if not value.is_floating_point() or not torch.isfinite(value.float()).all():
            raise ModelFileError(
                f"{path}: {key} has values that are not finite: its training failed."
            )
    return {key: value.detach().float() for key, value in state.items()}


def _refuse_compressed(path: Path) -> None:
    """SCALE's files are zip archives that hold numbers as they are; small ones cannot swell."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return  # torch's older format, or a damaged file, which torch refuses
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelFileError(f"{path} is compressed inside, as SCALE writes no model.")


def _is_plain(value: Tensor) -> bool:
    """Whether it has numbers, side by side in memory."""
    return (
        value.numel() > 0
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _layers(state: dict[str, Tensor], path: Path) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Weight and bias of the hidden layers, in order."""
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
        raise ModelFileError(f"{path}: its encoder has no hidden layer, which is not read here.")
    return {
        part: [(layers[i]["weight"], layers[i]["bias"]) for i in sorted(layers)]
        for part, layers in found.items()
    }


@torch.no_grad()
def _set_prior(vae: MixtureVAE, pi_k: Tensor, loc_kd: Tensor, var_kd: Tensor) -> None:
    total, lowest = float(pi_k.sum()), float(pi_k.min())
    if abs(total - 1) > 1e-3 or lowest <= 0:
        logger.warning(
            "the mixture's weights add up to %.3g and the smallest is %.3g: SCALE trains them as "
            "free numbers. They are divided by their sum here; its loss counted log of the sum as "
            "if it were evidence.",
            total,
            lowest,
        )
    n_low = int((var_kd < 2 * vae.prior.min_var).sum())
    if n_low:
        logger.warning("%d variances of components are raised to the floor.", n_low)
    vae.prior.set_components(pi_k, loc_kd, var_kd)
    vae.prior.logits_k.copy_(pi_k.clamp_min(1e-10).log())
