"""Differential accessibility between two groups of cells, as in PeakVI."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_scale._validation import (
    check_array,
    check_choice,
    check_int,
    check_labels,
    check_number,
    check_seed,
    listed,
)
from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.exceptions import DataError
from pyro_scale.inference.accessibility import cells_at_once, decoded
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

__all__ = ["Mode", "differential_accessibility", "false_discoveries"]

logger = logging.getLogger(__name__)

Mode = Literal["change", "vanilla"]
"""Event whose probability is reported.

With ``"change"`` it is that the accessibility of the groups differs by at least delta, and with
``"vanilla"`` that it is higher in the first group.
"""


def differential_accessibility(
    vae: MixtureVAE,
    counts: CountMatrix,
    *,
    obs: pd.DataFrame | None,
    groupby: str | Sequence[object] | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
    idx1: ArrayLike | None,
    idx2: ArrayLike | None,
    mode: Mode,
    delta: float,
    fdr_target: float,
    n_samples: int,
    seed: int,
) -> pd.DataFrame:
    """Test every peak for a difference in accessibility between two groups of cells.

    The arguments and columns are those of :meth:`pyro_scale.SCALE.differential_accessibility`.
    """
    if idx1 is None and idx2 is not None:
        raise ValueError("idx2 is given without idx1; give idx1, the first group, too.")
    if idx1 is not None and not all(by is None for by in (groupby, group1, group2)):
        raise ValueError(
            "the groups are given twice, by idx1 and by groupby, group1 or group2; give one of the "
            "two."
        )
    check_choice("mode", mode, get_args(Mode))
    check_number("delta", delta, least=0)
    check_number("fdr_target", fdr_target, least=0, most=1)
    check_int("n_samples", n_samples, most=10**6)
    check_seed(seed)
    if idx1 is not None:
        pairs = [_pair_by_position(counts, idx1, idx2)]
    else:
        pairs = _pairs_by_name(counts, obs, groupby, group1, group2)
    tables = []
    for pair in pairs:
        first, second = (counts[np.flatnonzero(part)] for part in (pair.first, pair.second))
        found = _compare_groups(
            vae, first, second, mode=mode, delta=delta, n_samples=n_samples, seed=seed
        )
        table = _to_frame(found, first, second, fdr_target)
        if pair.names is not None:
            one, other = pair.names
            table = table.assign(comparison=f"{one} vs {other}", group1=one, group2=other)
        tables.append(table)
    return pd.concat(tables)


def _compare_groups(
    vae: MixtureVAE,
    first: CountMatrix,
    second: CountMatrix,
    *,
    mode: Mode,
    delta: float,
    n_samples: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Estimate the differential accessibility of every peak from random pairs of cells.

    A pair is one random cell of each group, each with a draw of z from its q(z|x). Accessibility is
    E[x|z] at the same, typical depth for all cells. The results have shape ``(p,)``: ``prob_da``,
    the fraction of pairs in which the event of ``mode`` occurs, and ``est_prob1`` and
    ``est_prob2``, the mean accessibility of the first and the second cells.
    """
    head = vae.encoder.loc.weight
    rng = np.random.default_rng(seed)
    generator = torch.Generator(head.device).manual_seed(seed)
    typical = float(np.concatenate([first.depth, second.depth]).mean())
    total = {name: np.zeros(first.n_peaks) for name in ("prob_da", "est_prob1", "est_prob2")}
    vae.eval()

    def draw(group: CountMatrix, n: int) -> Tensor:
        """Return the accessibility of n random cells of a group, shape ``(n, p)``."""
        chosen = rng.integers(group.n_cells, size=n)
        # Each cell is read once, however often it is drawn.
        unique, inverse = np.unique(chosen, return_inverse=True)
        here = sparse_cells(group[unique]).to(head)
        at = torch.from_numpy(inverse).to(head.device)
        loc_nd, var_nd = (part[at] for part in vae.encoder(here))
        noise_nd = torch.empty_like(loc_nd).normal_(generator=generator)
        batch_n = None if here.batch_n is None else here.batch_n[at]
        # The decoder reads depth and batch only, so loc_nd can stand in for the accessibility.
        drawn = CellBatch(loc_nd, here.depth_n[at], batch_n=batch_n)
        return decoded(vae, rsample(loc_nd, var_nd, noise_nd), drawn, "typical", typical)

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
    """Select the largest set of peaks whose expected false discovery rate is at most ``target``.

    ``prob_p`` is each peak's probability of being differentially accessible. The result is a mask
    of the selected peaks. Both have shape ``(p,)``.

    References
    ----------
    Newton et al. 2004, doi:10.1093/biostatistics/5.2.155, as in scvi-tools.
    """
    order = np.argsort(-prob_p, kind="stable")
    rate = np.cumsum(1 - prob_p[order]) / np.arange(1, len(prob_p) + 1)
    chosen = np.zeros(len(prob_p), dtype=bool)
    chosen[order[: int(np.searchsorted(rate, target, side="right"))]] = True
    return chosen


def _to_frame(
    found: dict[str, NDArray[np.float64]],
    first: CountMatrix,
    second: CountMatrix,
    fdr_target: float,
) -> pd.DataFrame:
    """Build the table with the columns of PeakVI's ``differential_accessibility``."""
    prob_p = found["prob_da"]
    open_1, open_2 = (_fraction_open(group) for group in (first, second))
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


def _fraction_open(group: CountMatrix) -> NDArray[np.float64]:
    """Return, for each peak, the fraction of cells in which it is open, shape ``(p,)``."""
    open_p = np.sum([x.getnnz(0) for _, x in group.chunks()], axis=0)
    return np.asarray(open_p / group.n_cells, dtype=np.float64)


class _Pair(NamedTuple):
    """Masks of two groups of cells, and the groups' names if they have any."""

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    names: tuple[str, str] | None = None


def _pairs_by_name(
    counts: CountMatrix,
    obs: pd.DataFrame | None,
    groupby: str | Sequence[object] | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
) -> list[_Pair]:
    """Return the pairs of groups to compare: each of ``group1`` with ``group2``.

    With ``group1=None`` each group is compared, and with ``group2=None`` each is compared with all
    other cells that have a group.
    """
    values, has_group = _values(counts, obs, groupby)
    known = sorted(set(values[has_group].tolist()))
    if not known:
        raise DataError("no cell has a group; every entry of groupby is missing.")
    if not isinstance(group2, str | None):
        raise TypeError(f"group2={reprlib.repr(group2)} must be the name of a group.")
    if group1 is not None and not isinstance(group1, str):
        group1 = check_labels("group1", group1).tolist()
    firsts = known if group1 is None else [group1] if isinstance(group1, str) else list(group1)
    for name in [*firsts, *([] if group2 is None else [group2])]:
        if name not in known:
            raise DataError(f"group {name!r} has no cells; the groups are {listed(known)}.")
    if len(known) < 2:
        raise DataError(f"all cells are in group {known[0]!r}: there are no others to compare.")
    if not firsts:
        raise DataError(f"group1 names no group; the groups are {listed(known)}.")
    if group2 is None:
        return [
            _Pair(values == name, (values != name) & has_group, (name, "rest")) for name in firsts
        ]
    if set(firsts) == {group2}:
        raise DataError(f"group1 and group2 are both {group2!r}: choose two groups.")
    return [
        _Pair(values == name, values == group2, (name, group2)) for name in firsts if name != group2
    ]


def _values(
    counts: CountMatrix, obs: pd.DataFrame | None, groupby: str | Sequence[object] | None
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Return the name of each cell's group, and whether it has one, both of shape ``(n,)``.

    ``groupby`` is a column of ``obs``, or a sequence with one group per cell. Cells whose entry is
    missing (None or NaN) have no group; their name is None.
    """
    if isinstance(groupby, str):
        if obs is None or groupby not in obs:
            columns = listed(() if obs is None else obs.columns)
            raise DataError(
                f"groupby={groupby!r} is not a column of adata.obs (the columns are: {columns}); "
                "give adata, or one entry per cell."
            )
        groupby = obs[groupby]  # type: ignore[assignment]
    groups = check_labels("groupby", groupby).reset_index(drop=True)
    if len(groups) != counts.n_cells:
        raise DataError(f"{len(groups)} groups for {counts.n_cells} cells: expected one each.")
    has_group = groups.notna().to_numpy()
    if not has_group.all():
        logger.info("%d cells without a group are left out.", (~has_group).sum())
    names = groups.astype(str).astype(object).where(has_group, None).to_numpy()
    return names, has_group


def _pair_by_position(counts: CountMatrix, idx1: ArrayLike, idx2: ArrayLike | None) -> _Pair:
    """Return the pair of groups given by two masks or lists of positions of cells.

    With ``idx2=None`` the second group is all other cells.
    """
    first = _mask(counts, idx1, "idx1")
    second = ~first if idx2 is None else _mask(counts, idx2, "idx2")
    if not second.any():
        raise DataError("idx1 chooses every cell: there are no others to compare.")
    return _Pair(first, second)


def _mask(counts: CountMatrix, which: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Return the mask of cells, shape ``(n,)``, given as a mask or as positions."""
    array = check_array(name, which)
    mask = np.zeros(counts.n_cells, dtype=bool)
    if array.dtype == bool and array.shape == mask.shape:
        mask = array.copy()
    elif array.dtype.kind in "iu" and array.ndim == 1:
        if array.size and not (array.min() >= 0 and array.max() < counts.n_cells):
            raise DataError(
                f"{name} has positions from {array.min()} to {array.max()}; there are "
                f"{counts.n_cells} cells, numbered from 0."
            )
        mask[array] = True
    else:
        raise DataError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected a mask of "
            f"{counts.n_cells} cells, or their positions."
        )
    if not mask.any():
        raise DataError(f"{name} chooses no cell.")
    return mask
