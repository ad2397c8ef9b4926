"""Readers of HDF5 and Zarr formats: h5ad, zarr, Cell Ranger's h5, and h5mu."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import anndata
import h5py
import zarr
from anndata import AnnData
from anndata.abc import CSRDataset

from pyro_scale._validation import check_indices, listed
from pyro_scale.data.peak_names import NOT_PEAKS, looks_like_peaks
from pyro_scale.data.readers._file_checks import check_arrays, check_heaps
from pyro_scale.exceptions import DataError

__all__ = ["hdf5_kind", "only_peaks", "read_10x_h5", "read_h5ad", "read_h5mu", "read_zarr"]

logger = logging.getLogger(__name__)

_BESIDE_X = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def hdf5_kind(path: Path, named: str) -> str:
    """Return the extension that belongs to the content of an HDF5 file: .h5ad, .h5mu or .h5.

    ``named`` is the extension of its name, which is returned if the content does not decide.
    """
    try:
        with h5py.File(path, "r") as file:
            keys = set(file)
    except (OSError, RuntimeError, KeyError, ValueError):  # the reader says what is wrong
        return named
    if "mod" in keys:
        return ".h5mu"
    if {"obs", "var"} <= keys:
        return ".h5ad"
    return ".h5" if "matrix" in keys else named


def read_h5ad(path: Path, *, backed: bool) -> AnnData:
    """Read an ``.h5ad`` file; with ``backed``, leave its ``X`` on disk."""
    _check_hdf5(path)
    if not backed:
        return anndata.read_h5ad(path)
    adata = anndata.read_h5ad(path, backed="r")
    _check_csr_on_disk(adata.X if "X" in adata.file else None, path)
    return adata


def read_zarr(path: Path, *, backed: bool) -> AnnData:
    """Read a ``.zarr`` folder; with ``backed``, leave its ``X`` and its sparse layers on disk."""
    _check_blosc(path)
    group = zarr.open_group(path, mode="r")
    check_arrays(group, path)
    if not backed:
        return anndata.read_zarr(path)
    x = _on_disk(group["X"]) if "X" in group else None
    _check_csr_on_disk(x, path)
    layers: Any = group.get("layers", {})
    others = {key: anndata.io.read_elem(group[key]) for key in _BESIDE_X if key in group}
    return AnnData(x, layers={key: _on_disk(layers[key]) for key in layers}, **others)


def read_10x_h5(path: Path) -> AnnData:
    """Read an HDF5 file of Cell Ranger (version 2 or 3).

    Features are named by their ids, as in the Matrix Market files of Cell Ranger.
    """
    scanpy = _import_extra("scanpy", path)
    _check_hdf5(path)
    with warnings.catch_warnings():  # about gene names, which are replaced by ids below
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        adata = scanpy.read_10x_h5(path, gex_only=False)
    check_indices(adata.X)  # scanpy does not check them
    adata.var_names = adata.var["gene_ids"].rename(None)
    return adata


def read_h5mu(path: Path, modality: str | None) -> AnnData:
    """Read one modality of a MuData file.

    With ``modality=None`` it is the only modality, or else the one named atac, or else peaks.
    """
    mudata = _import_extra("mudata", path)
    _check_hdf5(path)
    with h5py.File(path, "r") as file:
        present = list(file["mod"])
    if modality is None:
        chosen = present if len(present) == 1 else [m for m in ("atac", "peaks") if m in present]
    else:
        chosen = [modality] if modality in present else []
    if not chosen:
        wanted = "none is named atac or peaks" if modality is None else f"none is {modality!r}"
        raise DataError(
            f"{path} has the modalities {listed(present)}, and {wanted}; append one "
            f"to the path, as in {path}/{present[0] if present else 'atac'}."
        )
    return mudata.read_h5ad(path, chosen[0])


def only_peaks(adata: AnnData, path: Path) -> AnnData:
    """Keep the features of type Peaks; the types are in ``var["feature_types"]``, if anywhere.

    Raises
    ------
    DataError
        If no feature is a peak: there are several types without Peaks among them, or one that is
        known not to be peaks, and the names are not regions of a genome.
    """
    if "feature_types" not in adata.var:
        return adata
    types = adata.var["feature_types"].astype(str)
    is_peak = (types == "Peaks").to_numpy()
    if is_peak.all():
        return adata
    present = sorted(set(types))
    if not is_peak.any():
        if len(present) == 1 and (
            present[0] not in NOT_PEAKS or looks_like_peaks(adata.var_names[:100].astype(str))
        ):
            return adata
        raise DataError(
            f"{path} has features of the types {listed(present)}, none of them Peaks; expected the "
            "peaks of single-cell ATAC-seq. If these are peaks nevertheless, read the file "
            "yourself, delete var['feature_types'], and pass the AnnData."
        )
    logger.warning(
        "%s: kept the %d Peaks; %d other features are left out (%s).",
        path,
        is_peak.sum(),
        (~is_peak).sum(),
        listed(sorted(set(types[~is_peak]))),
    )
    return adata[:, is_peak].copy()


def _check_hdf5(path: Path) -> None:
    if not h5py.is_hdf5(path):
        size = path.stat().st_size
        fault = "is not an HDF5 file, whatever its name says" if size else "is empty (0 bytes)"
        raise DataError(f"{path} {fault}; copy or download it again, or give the right file.")
    check_heaps(path)
    with h5py.File(path, "r") as file:
        check_arrays(file, path)


def _import_extra(name: str, path: Path) -> Any:
    """Import an optional dependency that is needed to read the file at ``path``."""
    try:
        with warnings.catch_warnings():  # undoes the filters that its import adds
            return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'reading {path.name} needs {name}: pip install "pyro-scale[{name}]".'
        ) from error


def _on_disk(element: Any) -> Any:
    """Open a sparse matrix without reading it; read anything else."""
    if element.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix"):
        return anndata.io.sparse_dataset(element)
    return anndata.io.read_elem(element)


def _check_blosc(folder: Path) -> None:
    """Check that each Blosc-compressed chunk is as long as its header says.

    Upstream fault: numcodecs does not compare these lengths, reads beyond the end of a chunk that
    is cut short, and may return wrong numbers
    (https://github.com/zarr-developers/numcodecs/issues/228).
    """
    for array in _blosc_arrays(folder):
        for chunk in array.rglob("*"):
            if chunk.is_dir() or chunk.name.startswith(".z") or chunk.name == "zarr.json":
                continue
            with chunk.open("rb") as file:
                expected = int.from_bytes(file.read(16)[12:], "little")
            if chunk.stat().st_size != expected:
                raise DataError(
                    f"{chunk} has {chunk.stat().st_size} bytes and its header says {expected}: it "
                    "is damaged or cut short; copy or download the folder again."
                )


def _blosc_arrays(folder: Path) -> Iterator[Path]:
    for file in folder.rglob(".zarray"):  # zarr 2
        compressor = json.loads(file.read_bytes()).get("compressor") or {}
        if compressor.get("id") == "blosc":
            yield file.parent
    for file in folder.rglob("zarr.json"):  # zarr 3
        codecs = json.loads(file.read_bytes()).get("codecs", [])
        if "blosc" in [codec["name"] for codec in codecs]:
            yield file.parent


def _check_csr_on_disk(x: Any, path: Path) -> None:
    if not isinstance(x, CSRDataset):
        actual = "missing" if x is None else getattr(x, "format", "dense")
        raise DataError(
            f"backed=True needs a CSR matrix, whose rows can be read one by one, and X of {path} "
            f"is {actual}; leave out backed=True, or write the matrix once as CSR: "
            "pyro_scale.read(path).write_h5ad(new_path)."
        )
