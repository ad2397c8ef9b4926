"""From an AnnData to checked counts: one place that looks before anything is computed."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.abc import CSRDataset
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.checks import check_adata, check_flag, check_labels, check_sound, named_layers
from pyro_scale.data.on_disk import OnDisk, as_csr
from pyro_scale.data.tables import looks_like_peaks
from pyro_scale.errors import DataError

__all__ = ["Counts", "as_counts", "batch_names"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """Checked accessibility, sparse, with its names.

    Attributes
    ----------
    x
        CSR matrix, cells x peaks, float32: 0/1 if binary, else non-negative whole numbers. Or such
        a matrix on disk.
    depth
        Total of each row of ``x``, shape ``(n_cells,)``, float32.
    obs_names, var_names
        Names of the cells and of the peaks.
    batch
        Number of each cell's batch, shape ``(n_cells,)``, int64; None: no batches are told apart.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> counts = ps.data.as_counts(adata)
    >>> counts.n_cells, counts.n_peaks, counts.on_disk
    (40, 60, False)
    >>> counts.read().shape, [part.shape for _, part in counts.chunks()], counts[:5].n_cells
    ((40, 60), [(40, 60)], 5)
    """

    x: sparse.csr_matrix | OnDisk
    depth: NDArray[np.float32]
    obs_names: pd.Index
    var_names: pd.Index
    batch: NDArray[np.int64] | None = None

    @property
    def n_cells(self) -> int:
        """N."""
        return int(self.x.shape[0])

    @property
    def n_peaks(self) -> int:
        """P."""
        return int(self.x.shape[1])

    @property
    def on_disk(self) -> bool:
        """Whether the matrix is read when it is needed."""
        return isinstance(self.x, OnDisk)

    def read(self) -> sparse.csr_matrix:
        """The matrix, in memory."""
        return self.x.read() if isinstance(self.x, OnDisk) else self.x

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """The matrix in memory a part at a time, each with the place of its cells."""
        return _chunks(self.x)

    def __getitem__(self, cells: NDArray[np.intp] | slice) -> Counts:
        """The counts of some cells, by position."""
        batch = None if self.batch is None else self.batch[cells]
        return Counts(
            self.x[cells], self.depth[cells], self.obs_names[cells], self.var_names, batch
        )


def as_counts(
    adata: AnnData,
    *,
    layer: str | None = None,
    binary: bool = True,
    batch_key: str | None = None,
    batches: Sequence[str] | None = None,
) -> Counts:
    """Check an AnnData and return its accessibility; the AnnData is left as it is.

    Parameters
    ----------
    adata
        Cells x peaks; ``X`` (or the layer) sparse or dense, counts or binary. A CSR matrix of an
        AnnData that was opened ``backed="r"`` stays on disk.
    layer
        Read ``adata.layers[layer]`` instead of ``adata.X``.
    binary
        Set every positive count to one, on a copy (the Bernoulli likelihood); it is logged.
    batch_key, batches
        Column of ``adata.obs`` with the cell's batch, and the names that are known, in order
        (:func:`batch_names`).

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    DataError
        If the layer is missing, there are no cells or peaks, names repeat, or counts are
        NaN, infinite, negative or not whole numbers, a cell has no open peak, or a batch is
        missing or not known.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, density=0.2, counts=True, seed=0)
    >>> float(as_counts(adata).x.max()), bool(as_counts(adata, binary=False).x.max() > 1)
    (1.0, True)
    """
    check_adata(adata)
    check_flag("binary", binary)
    x = _to_csr(_choose(adata, layer))
    _check_names(adata)
    _check_sides(adata)
    depth, open_p = np.zeros(adata.n_obs, dtype=np.float32), np.zeros(adata.n_vars, dtype=np.int64)
    n_above = 0
    for cells, part in _chunks(x):
        names = adata.obs_names[cells]
        _check_values(part, names, "X" if layer is None else f"layers[{layer!r}]")
        n_above += int((part.data > 1).sum())
        if binary:
            part.data[:] = 1
        depth[cells] = np.asarray(part.sum(1)).ravel()
        open_p += np.bincount(part.indices, minlength=adata.n_vars)
    if binary and n_above:
        share = 100 * n_above / open_p.sum()
        logger.info("%.1f %% of the open peaks have counts above one; set to one.", share)
    if isinstance(x, OnDisk):
        logger.info("the matrix stays on disk and is read in blocks of neighbouring cells.")
        x.binary = binary
    empty = np.flatnonzero(depth == 0)
    if empty.size:
        raise DataError(
            f"{empty.size} of {adata.n_obs} cells have no open peak (the first is "
            f"{adata.obs_names[empty[0]]!r}); remove them with "
            "pyro_scale.pp.filter_cells(adata, min_peaks=1)."
        )
    silent = int((open_p == 0).sum())
    if silent:
        logger.info("%d of %d peaks are open in no cell; they are kept.", silent, adata.n_vars)
    batch = None if batch_key is None else _batch_codes(adata, batch_key, batches)
    return Counts(x, depth, adata.obs_names, adata.var_names, batch)


def batch_names(adata: AnnData, batch_key: str) -> tuple[str, ...]:
    """The batches of the cells, by name, sorted: what the column ``batch_key`` of obs holds.

    Raises
    ------
    DataError
        If there is no such column of ``adata.obs``, or a cell has no batch.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> adata.obs["donor"] = ["b", "a"] * 20
    >>> batch_names(adata, "donor")
    ('a', 'b')
    """
    check_adata(adata)
    if not isinstance(batch_key, str):
        raise TypeError(f"batch_key={reprlib.repr(batch_key)} must be the name of a column of obs.")
    if batch_key not in adata.obs:
        raise DataError(
            f"batch_key={batch_key!r} is not a column of adata.obs; the columns are: "
            f"{', '.join(map(str, adata.obs.columns)) or 'none'}."
        )
    missing = adata.obs[batch_key].isna().to_numpy()
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} cells have no batch in adata.obs[{batch_key!r}] (the first is "
            f"{adata.obs_names[missing.argmax()]!r}); every cell needs one."
        )
    return tuple(sorted(set(adata.obs[batch_key].astype(str))))


def _batch_codes(
    adata: AnnData, batch_key: str, batches: Sequence[str] | None
) -> NDArray[np.int64]:
    present = batch_names(adata, batch_key)
    known = present if batches is None else tuple(check_labels("batches", batches).astype(str))
    if unknown := sorted(set(present) - set(known)):
        raise DataError(
            f"batch {unknown[0]!r} of adata.obs[{batch_key!r}] is not one that the model knows; "
            f"it was trained on {', '.join(known)}."
        )
    return pd.Index(known).get_indexer(adata.obs[batch_key].astype(str)).astype(np.int64)


def _choose(adata: AnnData, layer: str | None) -> Any:
    check_adata(adata)
    if not isinstance(layer, str | None):
        raise TypeError(f"layer={reprlib.repr(layer)} must be the name of a layer, or None for X.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(
            f"the AnnData has {adata.n_obs} cells and {adata.n_vars} peaks; at least one of "
            "each is needed."
        )
    if layer is None:
        if adata.X is None:
            raise DataError(
                "adata.X is empty; name the layer that holds the accessibility with layer=. "
                f"The layers are: {', '.join(named_layers(adata)) or 'none'}."
            )
        return adata.X
    if layer not in adata.layers:
        raise DataError(
            f"layer={layer!r} is not in adata.layers; the layers are: "
            f"{', '.join(named_layers(adata)) or 'none'} (leave layer out to use adata.X)."
        )
    return adata.layers[layer]


def _chunks(x: sparse.csr_matrix | OnDisk) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    return x.chunks() if isinstance(x, OnDisk) else iter([(slice(0, x.shape[0]), x)])


def _to_csr(x: Any) -> sparse.csr_matrix | OnDisk:
    """A float32 CSR copy without explicit zeros; a dense matrix is converted and logged.

    A CSR matrix on disk stays there; others are read.
    """
    if isinstance(x, CSRDataset) and x.dtype.kind in "biuf":
        return OnDisk(x)
    if hasattr(x, "to_memory"):
        x = x.to_memory()
    check_sound(x, "the matrix")
    if not sparse.issparse(x):
        logger.info("the matrix is dense; it is converted to a sparse copy.")
    matrix: Any = x if sparse.issparse(x) else np.asarray(x)
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"the matrix has dtype {matrix.dtype}; expected real numbers.")
    return as_csr(matrix)


def _check_names(adata: AnnData) -> None:
    for what, names, mend in (
        ("cell", adata.obs_names, "obs_names_make_unique"),
        ("peak", adata.var_names, "var_names_make_unique"),
    ):
        repeated = names[names.duplicated()]  # is_unique would leave a table of all names behind
        if len(repeated):
            raise DataError(
                f"{len(repeated)} {what} names are repeated (the first is {repeated[0]!r}); "
                f"call adata.{mend}() first."
            )


def _check_sides(adata: AnnData) -> None:
    """Regions of a genome name peaks, and not cells."""
    cells, peaks = adata.obs_names[:100].astype(str), adata.var_names[:100].astype(str)
    if looks_like_peaks(cells) and not looks_like_peaks(peaks):
        raise DataError(
            f"the cells are named like regions of a genome (the first is {cells[0]!r}) and the "
            f"peaks are not ({peaks[0]!r}): turn cells and peaks round with adata.T."
        )


def _check_values(x: sparse.csr_matrix, obs_names: pd.Index, where: str) -> None:
    for wrong, what in (
        (~np.isfinite(x.data), "NaN or infinite"),
        (x.data < 0, "negative"),
        (x.data != np.rint(x.data), "not whole numbers"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            cell = int(np.searchsorted(x.indptr, first, side="right") - 1)
            raise DataError(
                f"{int(wrong.sum())} values of {where} are {what} (the first is {x.data[first]} in "
                f"cell {obs_names[cell]!r}); expected counts or 0/1. Give the raw matrix, not a "
                "normalised one."
            )
