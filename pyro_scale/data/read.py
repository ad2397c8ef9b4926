"""Read cells from the files they come in, each checked and told what is wrong with it."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale.checks import check_flag, check_indices, check_path, named_layers
from pyro_scale.data.containers import read_10x_h5, read_h5ad, read_h5mu, read_zarr
from pyro_scale.data.join import concatenate, names_of_files
from pyro_scale.data.matrix_market import read_matrix_market
from pyro_scale.data.paths import expand, modality_of, readable, stem_and_kind
from pyro_scale.data.tables import read_table
from pyro_scale.errors import DataError

__all__ = ["Join", "PeaksSide", "read"]

logger = logging.getLogger(__name__)

PeaksSide = Literal["rows", "columns"]
Join = Literal["inner", "outer"]

_TABLES = (".csv", ".tsv", ".txt")
_KINDS = {
    ".h5ad": "AnnData",
    ".zarr": "AnnData",
    ".h5": "Cell Ranger's HDF5",
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
    backed: bool = False,
) -> AnnData:
    """Read cells x peaks from a file, a folder, or several of them.

    ======================= ========================================================================
    ``.h5ad``, ``.zarr``    AnnData; ``backed=True`` leaves the matrix on disk.
    ``.h5``                 Cell Ranger; of several feature types the Peaks. Needs scanpy.
    folder or ``.mtx``      ``matrix.mtx``, ``barcodes.tsv`` and ``peaks.bed``, ``peaks.tsv``,
                            ``features.tsv`` or ``genes.tsv``, plain or ``.gz``, also with a prefix.
    ``.csv .tsv .txt``      First line and first column are names; also ``.gz``, ``.bz2``, ``.xz``.
    ``.h5mu/atac``          One modality of MuData, named after the file. Needs mudata.
    ======================= ========================================================================

    Peaks of a BED file are named ``chr1_100_200``; all other names are kept as they are written,
    repeated ones too, which training refuses.

    Parameters
    ----------
    path
        One path, several, or a pattern such as ``"folder/*.h5ad"``. An AnnData is returned as it
        is.
    peaks
        Which side of a table or ``.mtx`` file the peaks are, ``"rows"`` or ``"columns"``. Asked
        only where it is not plain: sizes tell the side in ``.mtx`` unless it is square, names that
        look like regions of a genome tell it in a table. Otherwise rows are taken, with a warning.
    batch_key
        Column of ``obs`` for the name of the file a cell is from, where there are several.
    join
        The peaks of several files: those of all (``"inner"``) or of any (``"outer"``, the missing
        ones zero); what is lost or filled is logged.
    backed
        Leave the matrix of one ``.h5ad`` file or ``.zarr`` folder on disk.

    Returns
    -------
    AnnData
        Cells x peaks, ``X`` CSR of the numbers' type in the file (float32 from text), its indices
        sorted.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message has the names nearest to it.
    DataError
        If a file is damaged, of an unknown kind, or its parts do not fit each other.
    TypeError
        If ``path`` is none of what is named above.
    ImportError
        If an extra is missing; the message has its name.

    Examples
    --------
    >>> import tempfile
    >>> import pyro_scale as ps
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
    for name, value, allowed in (
        ("peaks", peaks, (*get_args(PeaksSide), None)),
        ("join", join, get_args(Join)),
    ):
        if not isinstance(value, str | None) or value not in allowed:
            raise DataError(
                f"{name}={reprlib.repr(value)}; expected {' or '.join(map(repr, allowed))}."
            )
    check_flag("backed", backed)
    if not isinstance(batch_key, str):
        raise TypeError(f"batch_key={reprlib.repr(batch_key)} must be the name of a column of obs.")
    given = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
    for each in given:
        if not isinstance(each, (str, Path)):
            raise TypeError(f"expected a path, several, or one AnnData; got {type(each).__name__}.")
        check_path("path", each)
    if not given:
        raise DataError("no path was given; expected one or more.")
    files = [file for each in given for file in expand(Path(each))]
    if len(files) == 1:
        return _read_one(files[0], peaks, backed=backed)
    if backed:
        raise DataError(
            f"backed=True leaves one file on disk, and there are {len(files)}; read and write "
            "them as one first."
        )
    parts = [_read_one(file, peaks, backed=False) for file in files]
    return concatenate(parts, names_of_files(files), join=join, batch_key=batch_key)


def _read_one(path: Path, peaks: PeaksSide | None, *, backed: bool) -> AnnData:
    file, modality = modality_of(path)
    kind = stem_and_kind(file)[1]
    folder = file.is_dir() and kind != ".zarr"
    sides = folder or kind in (".mtx", *_TABLES)
    if backed and kind not in (".h5ad", ".zarr"):
        raise DataError(
            f"backed=True leaves .h5ad and .zarr on disk, which {path} is not; read it and write "
            "it with adata.write_h5ad(new_path) first."
        )
    if peaks is not None and not sides:
        raise DataError(
            f"peaks={peaks!r} is for tables and .mtx files; {path} itself says which side the "
            "peaks are. If it is wrong, transpose it with adata.T."
        )
    if not folder and kind not in _KINDS:
        known = ", ".join(f"{each} ({what})" for each, what in _KINDS.items())
        raise DataError(
            f"{path} is of no known kind; these are: {known}, a folder that holds .mtx, and .gz of "
            "what is text."
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
        elif kind == ".h5":
            adata = read_10x_h5(file)
        else:
            adata = read_h5mu(file, modality)
        if not backed:
            _tidy(adata, path)
    logger.info("%s: %d cells x %d peaks", path, adata.n_obs, adata.n_vars)
    return adata


def _tidy(adata: AnnData, path: Path) -> None:
    """Make X CSR with sorted indices and no zeros that are stored, and names str."""
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
    csr = sparse.csr_matrix(x)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    adata.X = csr
