"""The function ``ps.read``, which reads and checks a file of any supported format."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale._validation import (
    check_bool,
    check_choice,
    check_indices,
    check_path,
    named_layers,
    with_scipy_dtype,
)
from pyro_scale.data.peak_names import PEAK_STYLES, PeakStyle, in_style
from pyro_scale.data.readers.concat import concatenate, names_of_files
from pyro_scale.data.readers.hdf5_zarr import (
    hdf5_kind,
    only_peaks,
    read_10x_h5,
    read_h5ad,
    read_h5mu,
    read_zarr,
)
from pyro_scale.data.readers.matrix_market import read_matrix_market
from pyro_scale.data.readers.paths import expand, modality_of, readable, stem_and_kind
from pyro_scale.data.readers.text_tables import read_table
from pyro_scale.exceptions import DataError

__all__ = ["Join", "PeaksSide", "read"]

logger = logging.getLogger(__name__)

PeaksSide = Literal["rows", "columns"]
Join = Literal["inner", "outer"]

_ZARR_FILES = (".zgroup", "zarr.json", ".zattrs")
_HDF5 = (".h5ad", ".h5", ".h5mu", ".hdf5")
_TABLES = (".csv", ".tsv", ".txt")
_KINDS = {
    ".h5ad": "AnnData",
    ".zarr": "AnnData",
    ".h5": "Cell Ranger's HDF5",
    ".hdf5": "HDF5",
    ".h5mu": "MuData",
    ".mtx": "Matrix Market",
    **dict.fromkeys(_TABLES, "a table of text"),
}


def read(
    path: str | Path | Sequence[str | Path] | AnnData,
    *,
    peaks: PeaksSide | None = None,
    batch_key: str = "batch",
    join: Join = "inner",
    peak_style: PeakStyle | None = None,
    backed: bool = False,
) -> AnnData:
    """Read an AnnData of cells x peaks from a file, a folder, or several of them.

    ======================= ========================================================================
    ``.h5ad``, ``.zarr``    AnnData; ``backed=True`` leaves the matrix on disk.
    ``.h5``                 Cell Ranger; only Peaks are kept of several types. Needs scanpy.
    folder or ``.mtx``      ``matrix.mtx``, ``barcodes.tsv`` and ``peaks.bed``, ``peaks.tsv``,
                            ``features.tsv`` or ``genes.tsv``, also with a prefix or as ``.gz``.
    ``.csv .tsv .txt``      Names in the first line and column; also ``.gz``, ``.bz2``, ``.xz``.
    ``.h5mu/atac``          One modality of a MuData file, as ``file.h5mu/atac``. Needs mudata.
    ======================= ========================================================================

    Peaks of a BED file are named ``chr1_100_200``. All other names are kept as they are in the
    file. Repeated names are kept too, but training refuses them.

    Parameters
    ----------
    path
        One path, several paths, or a pattern such as ``"folder/*.h5ad"``. An AnnData is returned
        as it is.
    peaks
        Whether the peaks are the ``"rows"`` or the ``"columns"`` of a table or ``.mtx`` file. With
        None, an ``.mtx`` file is decided by its shape, unless the matrix is square, and a table by
        which names look like regions of a genome. If this does not decide, the rows are taken as
        the peaks, with a warning.
    batch_key
        Column of ``obs`` to which the name of each cell's file is written if there are several
        files.
    join
        For several files: keep the peaks that all files have (``"inner"``) or that any file has
        (``"outer"``, with zeros where they are missing). The numbers of peaks that are dropped or
        filled are logged.
    peak_style
        Notation to which the names of all peaks are brought before files are joined:
        ``"chr:start-end"``, ``"chr-start-end"``, ``"chr_start_end"`` or ``"chr.start.end"``. If
        None, names are kept as they are.
    backed
        Leave the matrix of one ``.h5ad`` file or ``.zarr`` folder on disk.

    Returns
    -------
    AnnData
        Cells x peaks; ``X`` is CSR with sorted indices and the file's dtype (float32 from text).

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message suggests the nearest names.
    DataError
        If a file is damaged or of an unknown format, its parts do not fit each other, or ``peaks``,
        ``join`` or ``backed`` does not apply.
    ValueError
        If ``peaks``, ``join`` or ``peak_style`` is not one of the values above.
    TypeError
        If an argument has the wrong type.
    ImportError
        If an optional dependency is missing; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> cells = ps.simulate(n_cells=20, n_peaks=50, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cells.write_h5ad(f"{folder}/monday.h5ad")
    ...     cells.to_df().T.to_csv(f"{folder}/tuesday.csv")
    ...     adata = read(f"{folder}/*day.*")
    >>> adata.shape, adata.obs["batch"].unique().tolist(), adata.obs_names[0]
    ((40, 50), ['monday', 'tuesday'], 'cell_1-monday')
    """
    if isinstance(path, AnnData):
        return path
    check_choice("peaks", peaks, (*get_args(PeaksSide), None))
    check_choice("join", join, get_args(Join))
    check_choice("peak_style", peak_style, (*PEAK_STYLES, None))
    check_bool("backed", backed)
    if not isinstance(batch_key, str):
        raise TypeError(f"batch_key={reprlib.repr(batch_key)} must be the name of a column of obs.")
    given = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
    for each in given:
        if not isinstance(each, (str, Path)):
            raise TypeError(
                f"expected a path, several paths, or one AnnData; got {type(each).__name__}."
            )
    if not given:
        raise DataError("no path was given; expected one or more.")
    files = [file for each in given for file in expand(check_path("path", each))]
    if len(files) == 1:
        return _styled(_read_one(files[0], peaks, backed=backed), peak_style)
    if backed:
        raise DataError(
            f"backed=True needs a single file, and there are {len(files)}; read them together "
            "and write them to one file first."
        )
    parts = [_styled(_read_one(file, peaks, backed=False), peak_style) for file in files]
    return concatenate(parts, names_of_files(files), join=join, batch_key=batch_key)


def _styled(adata: AnnData, peak_style: PeakStyle | None) -> AnnData:
    """Bring the names of the peaks to a notation, in place."""
    if peak_style is not None:
        adata.var_names = in_style(adata.var_names, peak_style)
    return adata


def _read_one(path: Path, peaks: PeaksSide | None, *, backed: bool) -> AnnData:
    file, modality = modality_of(path)
    kind = stem_and_kind(file)[1]
    if file.is_dir() and any((file / name).is_file() for name in _ZARR_FILES):
        kind = ".zarr"
    elif kind in _HDF5 and file.is_file():
        kind = hdf5_kind(file, kind)
    folder = file.is_dir() and kind != ".zarr"
    sides = folder or kind in (".mtx", *_TABLES)
    if backed and kind not in (".h5ad", ".zarr"):
        raise DataError(
            f"backed=True needs .h5ad or .zarr, which {path} is not; read it and write it with "
            "adata.write_h5ad(new_path) first."
        )
    if peaks is not None and not sides:
        raise DataError(
            f"peaks={peaks!r} is only for tables and .mtx files; the format of {path} fixes which "
            "side the peaks are. If the result is wrong, transpose it with adata.T."
        )
    if not folder and kind not in _KINDS:
        known = ", ".join(f"{each} ({what})" for each, what in _KINDS.items())
        raise DataError(
            f"{path} has no known format; these are: {known}, a folder with an .mtx file, and "
            f"the text formats as .gz. {_unpacked(file)}"
        )
    with readable(path, _KINDS.get(kind, "a folder of Matrix Market")):
        if folder or kind == ".mtx":
            adata = read_matrix_market(file, peaks=peaks)
        elif kind in _TABLES:
            adata = read_table(file, peaks=peaks)
        elif kind == ".h5ad":
            adata = read_h5ad(file, backed=backed)
        elif kind == ".zarr":
            adata = read_zarr(file, backed=backed)
        elif kind in (".h5", ".hdf5"):
            adata = read_10x_h5(file)
        else:
            adata = read_h5mu(file, modality)
        if not backed:
            adata = only_peaks(adata, path)
            _tidy(adata, path)
    logger.info("%s: %d cells x %d peaks", path, adata.n_obs, adata.n_vars)
    return adata


def _unpacked(file: Path) -> str:
    """Return advice for archives and for compressed files of other formats than text."""
    name = file.name.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz", ".zip")):
        return "Unpack the archive first, and give the file or folder in it."
    if name.endswith((".gz", ".bz2", ".xz")):
        return f"Decompress it first, to {file.stem}."
    return ""


def _tidy(adata: AnnData, path: Path) -> None:
    """Convert ``X`` to CSR with sorted indices and no explicit zeros, and all names to str.

    ``adata`` is changed in place; ``path`` is for messages.
    """
    adata.obs_names, adata.var_names = (
        pd.Index(names.astype(str), dtype=object) for names in (adata.obs_names, adata.var_names)
    )
    x: Any = adata.X
    for matrix in (x, *named_layers(adata).values()):
        check_indices(matrix)
    if x is None:
        return
    if x.dtype.kind not in "biuf":
        raise DataError(f"X of {path} has dtype {x.dtype}; expected real numbers.")
    if not sparse.issparse(x):
        logger.info("X of %s is dense; it is converted to CSR.", path)
    csr = sparse.csr_matrix(with_scipy_dtype(x))
    csr.sum_duplicates()
    csr.eliminate_zeros()
    adata.X = csr
