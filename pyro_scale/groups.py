"""Two groups of cells to compare, by name or by position."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_scale.checks import check_array, check_labels
from pyro_scale.data import Counts
from pyro_scale.errors import DataError

__all__ = ["Pair", "by_name", "by_position"]


class Pair(NamedTuple):
    """Masks of two groups, and their names if they have any."""

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    names: tuple[str, str] | None = None


def by_name(
    counts: Counts,
    adata: AnnData | None,
    groupby: str | Sequence[object],
    group1: str | Sequence[str] | None,
    group2: str | None,
) -> list[Pair]:
    """Each of ``group1`` (None: every group) with ``group2`` (None: all other cells)."""
    values = _values(counts, adata, groupby)
    known = sorted(set(values.tolist()))
    if not isinstance(group2, str | None):
        raise TypeError(f"group2={reprlib.repr(group2)} must be the name of a group.")
    if group1 is not None and not isinstance(group1, str):
        group1 = check_labels("group1", group1).tolist()
    firsts = known if group1 is None else [group1] if isinstance(group1, str) else list(group1)
    for name in [*firsts, *([] if group2 is None else [group2])]:
        if name not in known:
            raise DataError(f"group {name!r} has no cells; the groups are {', '.join(known)}.")
    if len(known) < 2:
        raise DataError(f"all cells are in group {known[0]!r}: there are no others to compare.")
    if not firsts:
        raise DataError(f"group1 names no group; the groups are {', '.join(known)}.")
    if group2 is None:
        return [Pair(values == name, values != name, (name, "rest")) for name in firsts]
    if set(firsts) == {group2}:
        raise DataError(f"group1 and group2 are both {group2!r}: choose two groups.")
    return [
        Pair(values == name, values == group2, (name, group2)) for name in firsts if name != group2
    ]


def _values(
    counts: Counts, adata: AnnData | None, groupby: str | Sequence[object]
) -> NDArray[np.str_]:
    if isinstance(groupby, str):
        if adata is None or groupby not in adata.obs:
            columns = "" if adata is None else ", ".join(map(str, adata.obs.columns))
            raise DataError(
                f"groupby={groupby!r} is not a column of adata.obs (the columns are: "
                f"{columns or 'none'}); give adata, or one entry per cell."
            )
        groupby = adata.obs[groupby].to_numpy()
    values = check_labels("groupby", groupby).astype(str).to_numpy(dtype=str)
    if len(values) != counts.n_cells:
        raise DataError(f"{len(values)} groups for {counts.n_cells} cells: expected one each.")
    return values


def by_position(counts: Counts, idx1: ArrayLike, idx2: ArrayLike | None) -> Pair:
    """The cells of two masks or lists of positions; ``idx2=None``: all others."""
    first = _mask(counts, idx1, "idx1")
    second = ~first if idx2 is None else _mask(counts, idx2, "idx2")
    if not second.any():
        raise DataError("idx1 chooses every cell: there are no others to compare.")
    return Pair(first, second)


def _mask(counts: Counts, which: ArrayLike, name: str) -> NDArray[np.bool_]:
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
