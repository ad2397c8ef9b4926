"""Files that hold names and matrix together: h5ad, zarr, Cell Ranger's h5, and h5mu."""

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

from pyro_scale.checks import check_indices
from pyro_scale.data.claims import check_arrays, check_heaps
from pyro_scale.errors import DataError

__all__ = ["only_peaks", "read_10x_h5", "read_h5ad", "read_h5mu", "read_zarr"]

logger = logging.getLogger(__name__)

_BESIDE_X = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def read_h5ad(path: Path, *, backed: bool) -> AnnData:
    """An AnnData file; ``backed``: its matrix stays there."""
    _check_hdf5(path)
    if not backed:
        return anndata.read_h5ad(path)
    adata = anndata.read_h5ad(path, backed="r")
    _check_csr_on_disk(adata.X if "X" in adata.file else None, path)
    return adata


def read_zarr(path: Path, *, backed: bool) -> AnnData:
    """An AnnData zarr folder; ``backed``: its matrix and its sparse layers stay there."""
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
    """Cell Ranger's HDF5 file, versions 2 and 3; features are named by their ids, as in its mtx."""
    scanpy = _extra("scanpy", path)
    _check_hdf5(path)
    with warnings.catch_warnings():  # of genes' names, which are not used
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        adata = scanpy.read_10x_h5(path, gex_only=False)
    check_indices(adata.X)  # which scanpy does not
    adata.var_names = adata.var["gene_ids"].rename(None)
    return only_peaks(adata, path)


def read_h5mu(path: Path, modality: str | None) -> AnnData:
    """One modality of a MuData file: the one named, else the only one, else atac or peaks."""
    mudata = _extra("mudata", path)
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
            f"{path} has the modalities {', '.join(present) or '(none)'}, and {wanted}; give one "
            f"after the file's name, as {path}/{present[0] if present else 'atac'}."
        )
    return mudata.read_h5ad(path, chosen[0])


def only_peaks(adata: AnnData, path: Path) -> AnnData:
    """The features of type Peaks, where Cell Ranger measured several types.

    Raises
    ------
    DataError
        If there are several types and none is Peaks.
    """
    if "feature_types" not in adata.var or adata.var["feature_types"].nunique() <= 1:
        return adata
    types = adata.var["feature_types"]
    is_peak = (types == "Peaks").to_numpy()
    if not is_peak.any():
        raise DataError(
            f"{path} has features of the types {', '.join(sorted(set(types)))}, none of them "
            "Peaks; read the file yourself and choose, then give the AnnData."
        )
    others = ", ".join(sorted(set(types[~is_peak])))
    logger.warning(
        "%s: kept the %d Peaks; %d other features are left out (%s).",
        path,
        is_peak.sum(),
        (~is_peak).sum(),
        others,
    )
    return adata[:, is_peak].copy()


def _check_hdf5(path: Path) -> None:
    check_heaps(path)
    with h5py.File(path, "r") as file:
        check_arrays(file, path)


def _extra(name: str, path: Path) -> Any:
    """A library that only this format needs."""
    try:
        with warnings.catch_warnings():  # which its imports add filters to
            return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{path.name} is read by {name}: pip install "pyro-scale[{name}]".'
        ) from error


def _on_disk(element: Any) -> Any:
    """A sparse matrix as rows or columns to be read later; anything else, read."""
    if element.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix"):
        return anndata.io.sparse_dataset(element)
    return anndata.io.read_elem(element)


def _check_blosc(folder: Path) -> None:
    """Compare each chunk's length with the one in its header, which numcodecs does not.

    It reads on behind a chunk that is cut short, and may return other numbers:
    https://github.com/zarr-developers/numcodecs/issues/228.
    """
    for array in _blosc_arrays(folder):
        for chunk in array.rglob("*"):
            if chunk.is_dir() or chunk.name.startswith(".z") or chunk.name == "zarr.json":
                continue
            with chunk.open("rb") as file:
                expected = int.from_bytes(file.read(16)[12:], "little")
            if chunk.stat().st_size != expected:
                raise DataError(
                    f"{chunk} has {chunk.stat().st_size} bytes where its header says {expected}: "
                    "it is damaged or cut short; copy or download the folder again."
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
            f"backed=True reads cells by the rows of a CSR matrix, and X of {path} is "
            f"{actual}; leave out backed=True, or write it once as CSR: "
            "pyro_scale.read(path).write_h5ad(new_path)."
        )
