"""Imputed accessibility, binarized or written to a file in blocks of cells."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale._atomic import atomic_write
from pyro_scale._validation import check_choice
from pyro_scale.data import CountMatrix
from pyro_scale.data.writers import any_strings
from pyro_scale.inference.accessibility import Depth, cells_at_once, expected
from pyro_scale.programs import MixtureVAE

__all__ = ["StoredDtype", "binary_accessibility", "write_imputed"]

logger = logging.getLogger(__name__)

StoredDtype = Literal["float32", "float16", "uint8"]
"""Data type of stored probabilities; ``"uint8"`` stores 255 times the probability, rounded."""

_CHUNK_PEAKS = 4096


def _binary_parts(
    vae: MixtureVAE, counts: CountMatrix, depth: Depth
) -> Iterator[sparse.csr_matrix]:
    """Yield binarized E[x|z] for consecutive blocks of cells, as CSR matrices of int8.

    As in SCALE, an entry is one if E[x|z] is above both the observed mean of the cell and that of
    the peak.
    """
    mean_n = counts.depth / counts.n_peaks
    total_p = np.sum([np.asarray(x.sum(0)).ravel() for _, x in counts.chunks()], axis=0)
    mean_p, start = total_p / counts.n_cells, 0
    for part_np in expected(vae, counts, depth):
        cells = slice(start, start + len(part_np))
        above = (part_np > mean_n[cells, None]) & (part_np > mean_p)
        yield sparse.csr_matrix(above, dtype=np.int8)
        start = cells.stop


def binary_accessibility(vae: MixtureVAE, counts: CountMatrix, depth: Depth) -> sparse.csr_matrix:
    """Return imputed accessibility as 0/1, a CSR matrix of int8 of shape ``(n, p)``.

    As in SCALE, an entry is one if E[x|z] is above both the observed mean of the cell and that of
    the peak.
    """
    parts = list(_binary_parts(vae, counts, depth))
    binary: sparse.csr_matrix = sparse.vstack(parts, format="csr")
    return binary


def write_imputed(
    path: Path,
    vae: MixtureVAE,
    counts: CountMatrix,
    *,
    obs: pd.DataFrame | None,
    uns: dict[str, Any],
    binary: bool,
    dtype: StoredDtype,
    depth: Depth,
    overwrite: bool,
) -> None:
    """Write an AnnData whose X is expected or binary accessibility, in blocks and atomically.

    The arguments are those of :meth:`pyro_scale.SCALE.impute`.
    """
    kind = path.suffix
    if kind not in (".zarr", ".h5ad"):
        raise ValueError(f"{path.name}: expected a name that ends in .zarr or .h5ad.")
    check_choice("dtype", dtype, get_args(StoredDtype))
    if dtype == "uint8" and not vae.likelihood.binary and not binary:
        raise ValueError(
            "dtype='uint8' stores probabilities, and a Poisson model has rates; choose 'float32' "
            "or 'float16'."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or overwrite=True.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    _check_space(path, counts, 1 if binary else np.dtype(dtype).itemsize, binary)
    with atomic_write(path) as new:
        store = _create_store(new, kind)
        try:
            store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            divide_by = 255 if dtype == "uint8" and not binary else 1
            imputed = {"binary": binary, "depth": depth, "divide_by": divide_by}
            elements: dict[str, Any] = {
                "obs": pd.DataFrame(index=counts.obs_names) if obs is None else obs,
                "var": pd.DataFrame(index=counts.var_names),
                "uns": {**uns, "scale_imputed": imputed},
            }
            with any_strings():
                for name, element in elements.items():
                    write_elem(store, name, element)
            if binary:
                _write_sparse(store, _binary_parts(vae, counts, depth), counts.n_peaks)
            else:
                _write_dense(store, expected(vae, counts, depth), counts, np.dtype(dtype), kind)
        finally:
            if kind == ".h5ad":
                store.close()


def _check_space(path: Path, counts: CountMatrix, itemsize: int, binary: bool) -> None:
    """Log the disk space that the file needs; raise OSError if a dense file does not fit.

    A sparse file (``binary``) usually needs far less than its largest possible size, so it is not
    refused.
    """
    needed = counts.n_cells * counts.n_peaks * itemsize
    free = shutil.disk_usage(path.parent).free
    most = "at most " if binary else ""
    logger.info(
        "imputing %d cells x %d peaks to %s: %s%.2f GiB before compression; %.1f GiB are free.",
        counts.n_cells,
        counts.n_peaks,
        path.name,
        most,
        needed / 2**30,
        free / 2**30,
    )
    if needed > free and not binary:
        raise OSError(
            f"{path}: imputed accessibility takes {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} "
            "GiB are free; choose another disk, dtype='uint8', binary=True, or fewer cells."
        )


def _create_store(path: Path, kind: str) -> Any:
    if kind == ".zarr":
        import zarr

        return zarr.open_group(path, mode="w", zarr_format=2)  # every version of zarr reads it
    import h5py

    return h5py.File(path, "w")


def _write_dense(
    store: Any,
    parts: Iterator[NDArray[np.float32]],
    counts: CountMatrix,
    dtype: np.dtype[Any],
    kind: str,
) -> None:
    """Write the blocks as a dense, chunked array X."""
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
    """Write the blocks as a sparse matrix X, by appending rows."""
    write_elem(store, "X", sparse.csr_matrix(np.zeros((0, n_peaks), dtype=np.int8)))
    x = sparse_dataset(store["X"])
    for part in parts:
        x.append(part)
