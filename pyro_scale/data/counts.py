"""Counts of an AnnData, which are validated here, once."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale._validation import (
    check_adata,
    check_bool,
    check_labels,
    check_matrix,
    listed,
    named_layers,
    with_scipy_dtype,
)
from pyro_scale.data.backed import BackedMatrix, as_csr, find_on_disk
from pyro_scale.data.peak_names import NOT_PEAKS, looks_like_genes, looks_like_peaks
from pyro_scale.exceptions import DataError

__all__ = ["CountMatrix", "batch_names", "iter_chunks", "select_matrix", "to_csr", "warn_of_reads"]

logger = logging.getLogger(__name__)

_FEW = 100  # entries, from which nothing can be said of the counts


@dataclass(frozen=True)
class CountMatrix:
    """Validated sparse counts of cells x peaks, with the names of cells and peaks.

    Attributes
    ----------
    x
        Cells x peaks, float32: a CSR matrix in memory or on disk. Its values are 0/1 if binary,
        otherwise non-negative whole numbers.
    depth
        Sum of each row of ``x``, shape ``(n_cells,)``, float32.
    obs_names, var_names
        Names of the cells and of the peaks.
    batch
        Index of each cell's batch, shape ``(n_cells,)``, int64; None without batches.

    Examples
    --------
    >>> counts.n_cells, counts.n_peaks, counts.is_backed
    (40, 60, False)
    >>> counts.read().shape, [part.shape for _, part in counts.chunks()], counts[:5].n_cells
    ((40, 60), [(40, 60)], 5)
    """

    x: sparse.csr_matrix | BackedMatrix
    depth: NDArray[np.float32]
    obs_names: pd.Index
    var_names: pd.Index
    batch: NDArray[np.int64] | None = None

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        binary: bool = True,
        batch_key: str | None = None,
        batches: Sequence[str] | None = None,
    ) -> Self:
        """Check an AnnData and return its counts; the AnnData is not modified.

        Parameters
        ----------
        adata
            Cells x peaks, sparse or dense, counts or binary. A CSR matrix of an AnnData that was
            opened with ``backed="r"`` stays on disk.
        layer
            Layer to read, ``adata.layers[layer]``; None reads ``adata.X``.
        binary
            Set every positive count to one in the result, for the Bernoulli likelihood. The
            percentage of open peaks that this changes is logged.
        batch_key
            Column of ``adata.obs`` with the cell's batch; None ignores batches.
        batches
            Names of the batches in the order of their indices, such as those that a model was
            trained on; None takes those that occur in the column (:func:`batch_names`).

        Raises
        ------
        TypeError
            If ``adata`` is not an AnnData.
        DataError
            If the layer is missing, there are no cells or no peaks, names repeat, counts are NaN,
            infinite, negative or not whole numbers, a cell has no open peak, or a cell's batch is
            missing or unknown.

        Examples
        --------
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, density=0.2, counts=True, seed=0)
        >>> counts = CountMatrix.from_anndata(adata, binary=False)
        >>> float(CountMatrix.from_anndata(adata).x.max()), bool(counts.x.max() > 1)
        (1.0, True)
        """
        check_adata(adata)
        check_bool("binary", binary)
        x = to_csr(select_matrix(adata, layer))
        _check_names(adata)
        _check_sides(adata)
        _check_features(adata)
        depth, open_p = (
            np.zeros(adata.n_obs, dtype=np.float32),
            np.zeros(adata.n_vars, dtype=np.int64),
        )
        n_above = 0
        for cells, part in iter_chunks(x):
            names = adata.obs_names[cells]
            _check_values(part, names, "X" if layer is None else f"layers[{layer!r}]")
            n_above += int((part.data > 1).sum())
            if binary:
                part.data[:] = 1  # changes x in memory; x on disk sets ones as it is read, below
            depth[cells] = np.asarray(part.sum(1)).ravel()
            open_p += np.bincount(part.indices, minlength=adata.n_vars)
        if binary and n_above:
            percent = 100 * n_above / open_p.sum()
            logger.info("%.1f %% of the open peaks have counts above one; set to one.", percent)
        if isinstance(x, BackedMatrix):
            logger.info("the matrix stays on disk and is read in blocks of consecutive cells.")
            x.binary = binary
        empty = np.flatnonzero(depth == 0)
        if empty.size:
            raise DataError(
                f"{empty.size} of {adata.n_obs} cells have no open peak (the first is "
                f"{adata.obs_names[empty[0]]!r}); remove them with "
                "pyro_scale.preprocessing.filter_cells(adata, min_peaks=1)."
            )
        n_closed = int((open_p == 0).sum())
        if n_closed:
            logger.info(
                "%d of %d peaks are open in no cell; they are kept.", n_closed, adata.n_vars
            )
        batch = None if batch_key is None else _batch_codes(adata, batch_key, batches)
        return cls(x, depth, adata.obs_names, adata.var_names, batch)

    @property
    def n_cells(self) -> int:
        """Number of cells N."""
        return int(self.x.shape[0])

    @property
    def n_peaks(self) -> int:
        """Number of peaks P."""
        return int(self.x.shape[1])

    @property
    def is_backed(self) -> bool:
        """Whether the matrix is on disk and read on demand."""
        return isinstance(self.x, BackedMatrix)

    def read(self) -> sparse.csr_matrix:
        """Return the matrix in memory."""
        return self.x.read() if isinstance(self.x, BackedMatrix) else self.x

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield the matrix in blocks of cells in memory, as ``(slice of cells, CSR matrix)``."""
        return iter_chunks(self.x)

    def __getitem__(self, cells: NDArray[np.intp] | slice) -> CountMatrix:
        """Return the counts of the cells at some positions, without reading them from disk."""
        batch = None if self.batch is None else self.batch[cells]
        return CountMatrix(
            self.x[cells], self.depth[cells], self.obs_names[cells], self.var_names, batch
        )


def batch_names(adata: AnnData, batch_key: str) -> tuple[str, ...]:
    """Return the sorted names of the batches in the column ``batch_key`` of ``adata.obs``.

    Raises
    ------
    DataError
        If ``adata.obs`` has no such column, or a cell has no batch.

    Examples
    --------
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
            f"{listed(adata.obs.columns)}."
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
            f"batch {unknown[0]!r} of adata.obs[{batch_key!r}] is unknown to the model, which was "
            f"trained on {listed(known)}."
        )
    return pd.Index(known).get_indexer(adata.obs[batch_key].astype(str)).astype(np.int64)


def select_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X``, or the layer of the given name; a CSR matrix on disk stays there.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData, or ``layer`` is neither a name nor None.
    DataError
        If there are no cells or no peaks, or the matrix is missing.
    """
    check_adata(adata)
    if not isinstance(layer, str | None):
        raise TypeError(f"layer={reprlib.repr(layer)} must be the name of a layer, or None for X.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(
            f"the AnnData has {adata.n_obs} cells and {adata.n_vars} peaks; at least one of "
            "each is needed."
        )
    if (on_disk := find_on_disk(adata, layer)) is not None:
        return on_disk
    if layer is None:
        if adata.X is None:
            raise DataError(
                "adata.X is empty; give the name of the layer with the counts as layer=. "
                f"The layers are: {listed(named_layers(adata))}."
            )
        return adata.X
    if layer not in adata.layers:
        raise DataError(
            f"layer={layer!r} is not in adata.layers; the layers are: "
            f"{listed(named_layers(adata))} (leave layer out to use adata.X)."
        )
    return adata.layers[layer]


def iter_chunks(x: sparse.csr_matrix | BackedMatrix) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Yield the matrix in blocks of rows in memory, as ``(slice of rows, CSR matrix)``.

    A matrix that is in memory already is yielded as one block.
    """
    return x.chunks() if isinstance(x, BackedMatrix) else iter([(slice(0, x.shape[0]), x)])


def to_csr(x: Any) -> sparse.csr_matrix | BackedMatrix:
    """Return a matrix as a float32 CSR copy without explicit zeros.

    A CSR matrix on disk stays on disk; any other matrix on disk is read. The conversion of a dense
    matrix is logged.

    Raises
    ------
    DataError
        If the values are not real numbers, or the indices are inconsistent.
    """
    if isinstance(x, BackedMatrix):
        return x
    if hasattr(x, "to_memory"):
        x = x.to_memory()
    check_matrix(x, "the matrix")
    if not sparse.issparse(x):
        logger.info("the matrix is dense; it is converted to a sparse copy.")
    matrix: Any = x if sparse.issparse(x) else np.asarray(x)
    return as_csr(with_scipy_dtype(matrix))


def _check_names(adata: AnnData) -> None:
    for what, names, mend in (
        ("cell", adata.obs_names, "obs_names_make_unique"),
        ("peak", adata.var_names, "var_names_make_unique"),
    ):
        # Not is_unique, which would keep a hash table of all names in memory.
        repeated = names[names.duplicated()]
        if len(repeated):
            if what == "peak" and len(names) - len(repeated) < len(names) / 10:
                raise DataError(
                    f"{len(names)} peaks have {len(names) - len(repeated)} names (the first is "
                    f"{repeated[0]!r}); expected a name for each peak, such as chr1:100-200."
                )
            raise DataError(
                f"{len(repeated)} {what} names are repeated (the first is {repeated[0]!r}); "
                f"call adata.{mend}() first."
            )


def _check_sides(adata: AnnData) -> None:
    """Raise an error if the data look transposed.

    They do if the cells, but not the peaks, are named like regions of a genome.
    """
    cells, peaks = adata.obs_names[:100].astype(str), adata.var_names[:100].astype(str)
    titles = set(cells[:20].str.lower())
    if {"start", "end"} <= titles:
        raise DataError(
            "two cells are named Start and End: these are the coordinates of the peaks, in columns "
            "of a table. Remove them, and name the peaks by them (pyro_scale.read does)."
        )
    if looks_like_peaks(cells) and not looks_like_peaks(peaks):
        raise DataError(
            f"the cells are named like regions of a genome (the first is {cells[0]!r}) and the "
            f"peaks are not ({peaks[0]!r}): transpose the AnnData with adata.T."
        )


def _check_features(adata: AnnData) -> None:
    """Raise an error if features are known not to be peaks; warn if they are named like genes."""
    peaks = adata.var_names[:100].astype(str)
    if "feature_types" in adata.var:
        types = adata.var["feature_types"].astype(str)
        others = types.isin(NOT_PEAKS).to_numpy()
        if others.any() and not looks_like_peaks(adata.var_names[others][:100].astype(str)):
            raise DataError(
                f"{int(others.sum())} of {adata.n_vars} features are not peaks: "
                f"{listed(sorted(set(types[others])))} (the first is "
                f"{adata.var_names[others.argmax()]!r}). Keep the peaks with "
                "adata[:, adata.var['feature_types'] == 'Peaks'], or delete "
                "var['feature_types'] if these are counts of accessibility."
            )
    if looks_like_genes(peaks):
        logger.warning(
            "the peaks are named like genes (the first is %r): the models of this package are for "
            "the peaks of single-cell ATAC-seq.",
            peaks[0],
        )


def warn_of_reads(counts: CountMatrix) -> None:
    """Warn of counts that a Poisson likelihood does not fit: all even, as of reads, or all 0/1."""
    n_entries = n_above = n_odd = 0
    for _, x in counts.chunks():
        n_entries += x.nnz
        n_above += int((x.data > 1).sum())
        n_odd += int((x.data % 2 == 1).sum())
    if n_entries < _FEW:
        return
    if not n_above:
        logger.warning(
            'all counts are 0 or 1, so a Poisson likelihood does not fit; use "bernoulli", or give '
            "the counts before they were set to one."
        )
    elif not n_odd:
        logger.warning(
            "all counts are even, as counts of reads are, two per fragment; a Poisson likelihood "
            "fits counts of fragments: pyro_scale.pp.reads_to_fragments(adata)."
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
                "normalized one."
            )
