"""Imputed accessibility on its way to a file, a few cells at a time."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.accessibility import Depth, cells_at_once, expected, is_rate
from pyro_scale.data import Counts
from pyro_scale.placing import place
from pyro_scale.programs import MixtureVAE

__all__ = ["StoredAs", "binary_parts", "check_size", "imputed_file"]

logger = logging.getLogger(__name__)

StoredAs = Literal["float32", "float16", "uint8"]
"""How a probability is stored; ``"uint8"`` holds 255 times it, rounded."""

_MOST = 2 * 2**30  # bytes that a dense array may take unasked
_CHUNK_PEAKS = 4096


def check_size(n_cells: int, n_peaks: int, what: str) -> None:
    """Refuse to make a dense array that the user may not have meant."""
    n_bytes = 4 * n_cells * n_peaks
    if n_bytes > _MOST:
        raise ValueError(
            f"{what} of {n_cells} cells x {n_peaks} peaks would take {n_bytes / 2**30:.1f} GiB of "
            "memory; write it to a file with model.impute(path), or choose peaks."
        )


def binary_parts(vae: MixtureVAE, counts: Counts, depth: Depth) -> Iterator[sparse.csr_matrix]:
    """One where E[x|z] is above the cell's and above the peak's observed mean, as SCALE has it.

    Some cells at a time, int8.
    """
    mean_n = counts.depth / counts.n_peaks
    total_p = np.sum([np.asarray(x.sum(0)).ravel() for _, x in counts.chunks()], axis=0)
    mean_p, start = total_p / counts.n_cells, 0
    for part_np in expected(vae, counts, depth):
        cells = slice(start, start + len(part_np))
        above = (part_np > mean_n[cells, None]) & (part_np > mean_p)
        yield sparse.csr_matrix(above, dtype=np.int8)
        start = cells.stop


def imputed_file(
    path: Path,
    vae: MixtureVAE,
    counts: Counts,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: dict[str, Any],
    *,
    binary: bool,
    dtype: StoredAs,
    depth: Depth,
    overwrite: bool,
) -> None:
    """Write an AnnData whose X is imputed; beside its place first, then moved there whole."""
    kind = path.suffix
    if kind not in (".zarr", ".h5ad"):
        raise ValueError(f"{path.name}: expected a name that ends in .zarr or .h5ad.")
    if dtype not in get_args(StoredAs):
        raise ValueError(
            f"dtype={dtype!r} is not known; choose one of {', '.join(get_args(StoredAs))}."
        )
    if dtype == "uint8" and is_rate(vae) and not binary:
        raise ValueError("dtype='uint8' holds probabilities, and a Poisson model has rates.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or overwrite=True.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    _check_space(path, counts, 1 if binary else np.dtype(dtype).itemsize, binary)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".imputing-") as temporary:
        new = Path(temporary) / f"new{kind}"
        store = _new(new, kind)
        try:
            store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for name, part in (("obs", obs), ("var", var), ("uns", uns)):
                write_elem(store, name, part)
            if binary:
                _write_sparse(store, binary_parts(vae, counts, depth), counts.n_peaks)
            else:
                _write_dense(store, expected(vae, counts, depth), counts, np.dtype(dtype), kind)
        finally:
            if kind == ".h5ad":
                store.close()
        place(new, path, Path(temporary))


def _check_space(path: Path, counts: Counts, itemsize: int, binary: bool) -> None:
    needed = counts.n_cells * counts.n_peaks * itemsize
    free = shutil.disk_usage(path.parent).free
    most = "at most " if binary else ""
    logger.info(
        "imputing %d cells x %d peaks to %s: %s%.2f GiB before compression, %.1f GiB are free.",
        counts.n_cells,
        counts.n_peaks,
        path.name,
        most,
        needed / 2**30,
        free / 2**30,
    )
    if needed > free and not binary:
        raise OSError(
            f"{path}: imputed accessibility takes {needed / 2**30:.2f} GiB and {free / 2**30:.2f} "
            "GiB are free; choose another disk, dtype='uint8', binary=True, or fewer cells."
        )


def _new(path: Path, kind: str) -> Any:
    if kind == ".zarr":
        import zarr

        return zarr.open_group(path, mode="w", zarr_format=2)  # which every reader knows
    import h5py

    return h5py.File(path, "w")


def _write_dense(
    store: Any,
    parts: Iterator[NDArray[np.float32]],
    counts: Counts,
    dtype: np.dtype[Any],
    kind: str,
) -> None:
    """A chunk is as many cells as are decoded at a time, and some thousand peaks."""
    shape = (counts.n_cells, counts.n_peaks)
    chunks = (min(shape[0], cells_at_once(shape[1]), 256), min(shape[1], _CHUNK_PEAKS))
    if kind == ".zarr":
        x = store.create_array("X", shape=shape, chunks=chunks, dtype=dtype)
    else:
        x = store.create_dataset("X", shape, dtype, chunks=chunks, compression="lzf")
    x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for part_np in parts:
        stored = np.rint(255 * part_np) if dtype.kind == "u" else part_np
        x[start : start + len(part_np)] = stored.astype(dtype)
        start += len(part_np)


def _write_sparse(store: Any, parts: Iterator[sparse.csr_matrix], n_peaks: int) -> None:
    write_elem(store, "X", sparse.csr_matrix(np.zeros((0, n_peaks), dtype=np.int8)))
    x = sparse_dataset(store["X"])
    for part in parts:
        x.append(part)
