"""Expected accessibility E[x|z], and the weights of a linear decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_scale._validation import check_choice, check_labels, check_number
from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.exceptions import DataError
from pyro_scale.programs import CellBatch, MixtureVAE

__all__ = [
    "Depth",
    "cells_at_once",
    "check_size",
    "decoded",
    "decoder_weights",
    "expected",
    "normalized_accessibility",
    "peaks_by_dimension",
]

_AT_ONCE = 2**24  # cells x peaks that are decoded at a time
_MAX_BYTES = 2 * 2**30  # of a dense result

Depth = Literal["observed", "typical"]
"""Depth at which accessibility is computed: each cell's own, or the same for all cells."""


def _with_depth(vae: MixtureVAE, cells: CellBatch, depth: Depth, typical: float) -> CellBatch:
    """Return the cells with their own depth (``"observed"``) or with the typical depth.

    The typical depth is the model's mean depth, or ``typical`` if the model has none.
    """
    if depth == "observed":
        return cells
    mean_log = getattr(vae.likelihood, "mean_log_depth", None)
    value = typical if mean_log is None else float(mean_log.exp())
    return cells._replace(depth_n=torch.full_like(cells.depth_n, value))


def decoded(
    vae: MixtureVAE, z_nd: Tensor, cells: CellBatch, depth: Depth, typical: float
) -> Tensor:
    """Return E[x|z] at ``z_nd``, shape ``(n, p)``, for the batches of ``cells``.

    ``depth`` is ``"observed"`` for the depth of ``cells``, or ``"typical"`` for the model's mean
    depth (``typical`` if the model has none).
    """
    return vae.likelihood.mean(z_nd, _with_depth(vae, cells, depth, typical))


def cells_at_once(n_peaks: int) -> int:
    """Return the number of cells whose dense accessibility is held in memory at a time."""
    return max(1, _AT_ONCE // n_peaks)


def expected(vae: MixtureVAE, counts: CountMatrix, depth: Depth) -> Iterator[NDArray[np.float32]]:
    """Yield E[x|z] at the mean of q(z|x), shape ``(n, p)``, for consecutive blocks of cells."""
    check_choice("depth", depth, get_args(Depth))
    head, typical = vae.encoder.loc.weight, float(counts.depth.mean())
    size = cells_at_once(counts.n_peaks)
    vae.eval()
    for start in range(0, counts.n_cells, size):
        with torch.inference_mode():
            here = sparse_cells(counts[start : start + size]).to(head)
            part_np = decoded(vae, vae.encoder(here)[0], here, depth, typical)
        yield part_np.cpu().numpy()


def check_size(n_cells: int, n_peaks: int, what: str) -> None:
    """Raise ValueError if a dense float32 array of cells x peaks would take more than 2 GiB.

    ``what`` is the array's name in the message.
    """
    n_bytes = 4 * n_cells * n_peaks
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"{what} of {n_cells} cells x {n_peaks} peaks would take {n_bytes / 2**30:.1f} GiB of "
            "memory; write it to a file with model.impute(path), or choose peaks."
        )


def normalized_accessibility(
    vae: MixtureVAE, counts: CountMatrix, *, peaks: Sequence[str] | None, depth: Depth
) -> pd.DataFrame:
    """Return E[x|z] at the mean of q(z|x), cells x peaks; ``peaks=None`` stands for all peaks."""
    at = slice(None) if peaks is None else _positions(peaks, counts.var_names)
    names = counts.var_names[at]
    check_size(counts.n_cells, len(names), "the accessibility")
    parts = [part_np[:, at] for part_np in expected(vae, counts, depth)]
    return pd.DataFrame(np.concatenate(parts), index=counts.obs_names, columns=names)


def _positions(peaks: Sequence[str], peak_names: pd.Index) -> NDArray[np.intp]:
    """Return the positions of the named peaks; raise if one is not in ``peak_names``."""
    names = [peaks] if isinstance(peaks, str) else check_labels("peaks", peaks).tolist()
    at = peak_names.get_indexer(pd.Index(names))
    unknown = [name for name, place in zip(names, at, strict=True) if place < 0]
    if unknown or not names:
        raise DataError(
            f"{len(unknown)} of {len(names)} peaks are not the model's"
            + (f" (the first is {unknown[0]!r})" if unknown else "")
            + f"; its peaks are named like {peak_names[0]!r} (model.peak_names)."
        )
    return at


def decoder_weights(vae: MixtureVAE, peak_names: pd.Index) -> pd.DataFrame:
    """Return the decoder's weight of each peak in each latent dimension, shape ``(p, d)``.

    The decoder must be linear. A weight is the change of the decoder's output for the peak (the
    logit of the peak's accessibility in a Bernoulli model) per unit of the latent dimension.
    """
    linear = [m for m in vae.likelihood.hidden.modules() if isinstance(m, nn.Linear)]
    if linear:
        widths = tuple(layer.out_features for layer in linear)
        raise ValueError(
            f"the decoder has hidden layers {widths}: only a linear decoder (the default) has one "
            "weight per peak and dimension."
        )
    weights = vae.likelihood.peaks.weight.detach().cpu().numpy()
    names = [str(d) for d in range(vae.n_latent)]
    return pd.DataFrame(weights[:, : len(names)], index=peak_names, columns=names)


def peaks_by_dimension(
    weights: pd.DataFrame, *, kind: Literal["both", "pos", "neg"], cutoff: float
) -> dict[str, pd.Index]:
    """Return, for each latent dimension, the peaks whose decoder weight is an outlier, as in SCALE.

    A peak is selected if its weight lies more than ``cutoff`` standard deviations from the mean
    weight of the dimension; ``kind`` selects deviations above the mean (``"pos"``), below it
    (``"neg"``) or either (``"both"``). ``weights`` has shape ``(p, d)``.
    """
    check_choice("kind", kind, ("both", "pos", "neg"))
    check_number("cutoff", cutoff)
    scores = (weights - weights.mean()) / weights.std(ddof=0)
    far = scores.abs() if kind == "both" else scores if kind == "pos" else -scores
    return {str(name): weights.index[(far[name] > cutoff).to_numpy()] for name in far}
