"""What a trained model says of peaks: expected accessibility, and where two groups differ in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale.checks import check_choice
from pyro_scale.data import Counts, sparse_cells
from pyro_scale.programs import Cells, MixtureVAE, PoissonLikelihood

__all__ = [
    "Depth",
    "Mode",
    "cells_at_once",
    "compare_groups",
    "expected",
    "false_discoveries",
    "is_rate",
    "table_of",
]

_AT_ONCE = 2**24  # cells x peaks held at a time

Depth = Literal["observed", "typical"]
"""Accessibility at the depth of the cell, or at that of a typical one."""

Mode = Literal["change", "vanilla"]
"""Whether a peak differs by at least delta, or is more accessible in the first group."""


def _with_depth(vae: MixtureVAE, cells: Cells, depth: Depth, typical: float) -> Cells:
    if depth == "observed":
        return cells
    mean_log = getattr(vae.likelihood, "mean_log_depth", None)
    value = typical if mean_log is None else float(mean_log.exp())
    return cells._replace(depth_n=torch.full_like(cells.depth_n, value))


def _decoded(vae: MixtureVAE, z_nd: Tensor, cells: Cells, depth: Depth, typical: float) -> Tensor:
    """E[x|z], shape ``(n, p)``; the likelihood's mean reads depth and batch alone."""
    return vae.likelihood.mean(z_nd, _with_depth(vae, cells, depth, typical))


def cells_at_once(n_peaks: int) -> int:
    """How many cells x peaks fit what is held at a time."""
    return max(1, _AT_ONCE // n_peaks)


def expected(vae: MixtureVAE, counts: Counts, depth: Depth) -> Iterator[NDArray[np.float32]]:
    """E[x|z] at the mean of q(z|x), some cells at a time, each part ``(n, p)``, in order."""
    check_choice("depth", depth, get_args(Depth))
    head, typical = vae.encoder.loc.weight, float(counts.depth.mean())
    size = cells_at_once(counts.n_peaks)
    vae.eval()
    for start in range(0, counts.n_cells, size):
        with torch.inference_mode():
            here = sparse_cells(counts[start : start + size]).to(head)
            part_np = _decoded(vae, vae.encoder(here)[0], here, depth, typical)
        yield part_np.cpu().numpy()


def compare_groups(
    vae: MixtureVAE,
    first: Counts,
    second: Counts,
    *,
    mode: Mode,
    delta: float,
    n_samples: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Differential accessibility of every peak by draws of pairs of cells.

    Each draw takes a cell of either group and a z of its q(z|x), at typical depth. Returns
    ``prob_da``, ``est_prob1`` and ``est_prob2``, shape ``(p,)``.
    """
    head = vae.encoder.loc.weight
    rng = np.random.default_rng(seed)
    generator = torch.Generator(head.device).manual_seed(seed)
    typical = float(np.concatenate([first.depth, second.depth]).mean())
    total = {name: np.zeros(first.n_peaks) for name in ("prob_da", "est_prob1", "est_prob2")}
    vae.eval()

    def draw(group: Counts, n: int) -> Tensor:
        chosen = np.sort(rng.integers(group.n_cells, size=n))
        # Every cell is read once, however often it is drawn.
        unique, place = np.unique(chosen, return_inverse=True)
        here = sparse_cells(group[unique]).to(head)
        # In random order, so that pairs are random.
        at = torch.from_numpy(rng.permutation(place)).to(head.device)
        loc_nd, var_nd = (part[at] for part in vae.encoder(here))
        noise_nd = torch.empty_like(loc_nd).normal_(generator=generator)
        batch_n = None if here.batch_n is None else here.batch_n[at]
        drawn = Cells(loc_nd, here.depth_n[at], batch_n=batch_n)  # the decoder asks no more of it
        return _decoded(vae, loc_nd + var_nd.sqrt() * noise_nd, drawn, "typical", typical)

    at_once = min(n_samples, max(1, cells_at_once(first.n_peaks) // 4))
    with torch.inference_mode():
        for start in range(0, n_samples, at_once):
            n = min(at_once, n_samples - start)
            first_np, second_np = draw(first, n), draw(second, n)
            differs = (
                (second_np - first_np).abs() >= delta if mode == "change" else first_np > second_np
            )
            for name, part in (
                ("prob_da", differs.to(first_np)),
                ("est_prob1", first_np),
                ("est_prob2", second_np),
            ):
                total[name] += part.sum(0).cpu().double().numpy()
    return {name: value / n_samples for name, value in total.items()}


def false_discoveries(prob_p: NDArray[np.float64], target: float) -> NDArray[np.bool_]:
    """The largest set of peaks whose expected share of false discoveries is at most ``target``.

    References
    ----------
    Newton et al. 2004, doi:10.1093/biostatistics/5.2.155, as in scvi-tools.
    """
    order = np.argsort(-prob_p, kind="stable")
    rate = np.cumsum(1 - prob_p[order]) / np.arange(1, len(prob_p) + 1)
    chosen = np.zeros(len(prob_p), dtype=bool)
    chosen[order[: int(np.searchsorted(rate, target, side="right"))]] = True
    return chosen


def table_of(
    found: dict[str, NDArray[np.float64]],
    first: Counts,
    second: Counts,
    fdr_target: float,
) -> pd.DataFrame:
    """The columns of PeakVI's differential accessibility."""
    prob_p = found["prob_da"]
    open_1, open_2 = (_share_open(group) for group in (first, second))
    return pd.DataFrame(
        {
            "prob_da": prob_p,
            "is_da_fdr": false_discoveries(prob_p, fdr_target),
            "bayes_factor": np.log(prob_p + 1e-8) - np.log(1 - prob_p + 1e-8),
            "effect_size": found["est_prob2"] - found["est_prob1"],
            "emp_effect": open_2 - open_1,
            "est_prob1": found["est_prob1"],
            "est_prob2": found["est_prob2"],
            "emp_prob1": open_1,
            "emp_prob2": open_2,
        },
        index=first.var_names,
    )


def _share_open(group: Counts) -> NDArray[np.float64]:
    """Share of the cells that have each peak open."""
    open_p = np.sum([x.getnnz(0) for _, x in group.chunks()], axis=0)
    return np.asarray(open_p / group.n_cells, dtype=np.float64)


def is_rate(vae: MixtureVAE) -> bool:
    """Whether expected accessibility is a rate and not a probability."""
    return isinstance(vae.likelihood, PoissonLikelihood)
