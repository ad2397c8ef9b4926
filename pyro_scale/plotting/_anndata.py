"""Access to an AnnData for plotting: groups, coordinates and small blocks of a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from pyro_scale._validation import listed, named_layers
from pyro_scale.exceptions import DataError
from pyro_scale.plotting._style import MISSING, colour

__all__ = [
    "Groups",
    "check_cells",
    "chunks",
    "column_groups",
    "dense",
    "groups_of",
    "is_sparse",
    "matrix_of",
    "number_of_cells",
    "obs_column",
    "obsm_array",
    "peak_positions",
    "stratified",
]


_CHUNK = 1024  # cells
_MAX_GROUPS = 100


@dataclass(frozen=True)
class Groups:
    """The category of each cell.

    Attributes
    ----------
    names
        Names of the categories; "missing" is the last one if some cells have no category.
    codes_n
        Position of each cell's category in ``names``, shape ``(n,)``.
    colours
        Colour of each category; grey for "missing".
    """

    names: tuple[str, ...]
    codes_n: NDArray[np.intp]
    colours: tuple[str, ...]

    def present(self, codes: NDArray[np.intp] | None = None) -> list[int]:
        """Return the codes of the categories that have cells, among ``codes`` if they are given."""
        return [int(code) for code in np.unique(self.codes_n if codes is None else codes)]


def groups_of(values: pd.Series | pd.Categorical | Sequence[Any] | ArrayLike) -> Groups:
    """Group cells by their value.

    Categories keep their order. Other values are sorted, by number if all are numbers, otherwise as
    text.
    """
    series = pd.Series(values)
    if not isinstance(series.dtype, pd.CategoricalDtype):
        found = list(series.dropna().unique())
        try:
            found.sort(key=float)
        except (TypeError, ValueError):
            found.sort(key=str)
        series = series.astype(pd.CategoricalDtype(found))
    names = [str(name) for name in series.cat.categories]
    colours = [colour(k) for k in range(len(names))]
    codes_n = series.cat.codes.to_numpy().astype(np.intp)
    if (codes_n < 0).any():
        codes_n[codes_n < 0] = len(names)
        names.append("missing")
        colours.append(MISSING)
    return Groups(tuple(names), codes_n, tuple(colours))


def check_cells(adata: AnnData) -> None:
    """Raise unless ``adata`` is an AnnData that has cells."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"adata is a {type(adata).__name__}; expected an AnnData, such as model.to_anndata()."
        )
    if adata.n_obs == 0:
        raise DataError("adata has no cells to draw.")


def obs_column(adata: AnnData, key: str, argument: str) -> pd.Series:
    """Return ``adata.obs[key]``, or raise an error that lists the columns."""
    if key not in adata.obs:
        raise DataError(
            f"{argument}={key!r} is not a column of adata.obs; it has {listed(adata.obs.columns)}."
        )
    column: pd.Series = adata.obs[key]
    return column


def column_groups(adata: AnnData, key: str, argument: str) -> Groups:
    """Return the groups of cells in ``adata.obs[key]``."""
    column = obs_column(adata, key, argument)
    if pd.api.types.is_float_dtype(column.dtype):
        raise DataError(f"{argument}={key!r} holds {column.dtype} numbers; expected categories.")
    groups = groups_of(column)
    if len(groups.names) > _MAX_GROUPS:
        raise DataError(
            f"{argument}={key!r} has {len(groups.names)} categories; at most {_MAX_GROUPS} can be "
            "told apart in a figure."
        )
    return groups


def obsm_array(adata: AnnData, key: str, argument: str, hint: str = "") -> NDArray[np.float64]:
    """Return ``adata.obsm[key]`` as a dense matrix of finite numbers."""
    if key not in adata.obsm:
        raise DataError(
            f"{argument}={key!r} is not in adata.obsm; it has {listed(list(adata.obsm))}.{hint}"
        )
    value = adata.obsm[key]
    value = value.toarray() if is_sparse(value) else value
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(f"obsm[{key!r}] has shape {array.shape}; expected cells x dimensions.")
    if not np.isfinite(array).all():
        raise DataError(f"obsm[{key!r}] has {int((~np.isfinite(array)).sum())} NaN or infinities.")
    return array


def matrix_of(adata: AnnData, layer: str | None, hint: str = "") -> Any:
    """Return ``adata.X`` or a layer, which may be dense, sparse, or on disk."""
    if layer is None:
        if adata.X is None:
            raise DataError("adata.X is empty: give an AnnData with accessibility, or a layer.")
        return adata.X
    if layer not in adata.layers:
        raise DataError(
            f"layer={layer!r} is not in adata.layers; it has "
            f"{listed(list(named_layers(adata)))}.{hint}"
        )
    return adata.layers[layer]


def is_sparse(matrix: Any) -> bool:
    """Return whether ``matrix`` is a scipy sparse matrix or sparse array."""
    return bool(sparse.issparse(matrix))


def dense(
    matrix: Any, rows: NDArray[np.intp] | slice, columns: NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """Return some rows, and optionally only some columns, of a matrix as a dense array.

    The rest of the matrix is not made dense.
    """
    back = None
    if not (isinstance(rows, slice) or is_sparse(matrix) or isinstance(matrix, np.ndarray)):
        # On disk, indices must be unique and sorted.
        rows, back = np.unique(rows, return_inverse=True)
    block = matrix[rows]
    if columns is not None:
        block = block[:, columns]
    block = block.toarray() if is_sparse(block) else block
    array = np.asarray(block, dtype=np.float32)
    return array if back is None else array[back]


def chunks(n_cells: int) -> Iterator[slice]:
    """Yield slices that cover all cells in chunks."""
    for start in range(0, n_cells, _CHUNK):
        yield slice(start, min(start + _CHUNK, n_cells))


def peak_positions(adata: AnnData, peaks: Sequence[str], argument: str) -> NDArray[np.intp]:
    """Return the column indices of the named peaks."""
    named = isinstance(peaks, Iterable) and all(isinstance(name, str) for name in peaks)
    if isinstance(peaks, str) or not named:
        raise TypeError(f"{argument}={peaks!r}: expected a list of peak names.")
    if len(peaks) == 0:
        raise ValueError(f"{argument} is empty; give at least one peak name.")
    if not adata.var_names.is_unique:
        raise DataError("peak names repeat; make them unique (adata.var_names_make_unique()).")
    at: NDArray[np.intp] = adata.var_names.get_indexer(pd.Index(list(peaks)))
    missing = [name for name, index in zip(peaks, at, strict=True) if index < 0]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(peaks)} {argument} are not in adata.var_names (the first is "
            f"{missing[0]!r}); it has {adata.n_vars} names like {adata.var_names[0]!r}."
        )
    return at


def number_of_cells(rows: NDArray[np.intp], adata: AnnData) -> str:
    """Return a text such as ``300 of 1043 cells``, or ``1043 cells`` if all cells are shown."""
    of = "" if len(rows) == adata.n_obs else f" of {adata.n_obs}"
    return f"{len(rows)}{of} cells"


def stratified(codes_n: NDArray[np.intp], n_cells: int, seed: int) -> NDArray[np.intp]:
    """Return the positions of at most ``n_cells`` randomly drawn cells, sorted by group.

    Every group keeps its fraction of the cells, and at least one cell.
    """
    _, codes_n, size_g = np.unique(codes_n, return_inverse=True, return_counts=True)
    if n_cells < len(size_g):
        raise ValueError(
            f"n_cells={n_cells} is less than the {len(size_g)} groups; expected at least one cell "
            "per group."
        )
    if n_cells >= len(codes_n):
        return np.argsort(codes_n, kind="stable")
    # One cell per group; the rest by the largest remainder method, which never draws more cells
    # than a group has.
    share_g = (n_cells - len(size_g)) * (size_g - 1) / max(int((size_g - 1).sum()), 1)
    taken_g = np.floor(share_g).astype(np.intp)
    left = n_cells - len(size_g) - int(taken_g.sum())
    taken_g[np.argsort(taken_g - share_g, kind="stable")[:left]] += 1
    rng = np.random.default_rng(seed)
    parts = [
        np.sort(rng.permutation(np.flatnonzero(codes_n == g))[: 1 + taken])
        for g, taken in enumerate(taken_g)
    ]
    return np.concatenate(parts)
