"""Matrix Market: a matrix, the names of its peaks and those of its cells, in three files."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import io, sparse

from pyro_scale.data.containers import only_peaks
from pyro_scale.data.paths import OPEN, holds, readable, stem_and_kind, warn_of_cut
from pyro_scale.errors import DataError

__all__ = ["read_matrix_market"]

logger = logging.getLogger(__name__)

_BLOCK = 2**24  # bytes read at a time
_MATRIX = re.compile(r"^(.*?)(matrix|counts?|data)?$", re.IGNORECASE)
_CELLS = re.compile(r"^(.*?)(barcodes?)$", re.IGNORECASE)
_PEAKS = re.compile(r"^(.*?)(peaks?|features?|genes?)$", re.IGNORECASE)


class _File(NamedTuple):
    path: Path
    prefix: str  # of its name, before the word that says what it is


def read_matrix_market(path: Path, *, peaks: str | None = None) -> AnnData:
    """A folder of three files, or its ``.mtx`` file.

    Parameters
    ----------
    path
        Folder or matrix. Names are looked up beside the matrix: of the cells in a file whose name
        ends in ``barcodes``, of the peaks in ``peaks``, ``features`` or ``genes``.
    peaks
        Which side of the matrix the peaks are; only a square one needs it.

    Raises
    ------
    DataError
        If a file is missing, there are several, or the sizes do not fit.
    """
    folder = path if path.is_dir() else path.parent
    files = [
        inside for inside in sorted(folder.iterdir()) if inside.is_file() and inside.name[0] != "."
    ]
    matrices = [path] if path.is_file() else files
    matrix = _one(_find(matrices, _MATRIX, {".mtx"}), "matrix (*.mtx or *.mtx.gz)", folder)
    cells, features = (
        _one(_beside(matrix, _find(files, pattern, kinds)), what, folder)
        for pattern, kinds, what in (
            (_CELLS, {".tsv", ".txt"}, "file of cell names (barcodes.tsv)"),
            (_PEAKS, {".bed", ".tsv", ".txt"}, "file of peak names (peaks.bed, features.tsv)"),
        )
    )
    with readable(cells.path, "names of cells"):
        obs = _cell_names(cells.path)
    with readable(features.path, "names of peaks"):
        var = _peak_names(features.path)
    with readable(matrix.path, "a Matrix Market file"):
        # What its first lines claim, before that is made room for.
        n_rows, n_columns, n_entries, layout, field, _ = io.mminfo(str(matrix.path))
        turned = _peaks_are_rows((n_rows, n_columns), len(var), len(obs), peaks, matrix.path)
        if n_entries > n_rows * n_columns:
            raise DataError(
                f"{matrix.path} claims {n_entries} entries in a matrix of {n_rows} x {n_columns}: "
                "it is damaged, copy it again."
            )
        _check_body(matrix.path, n_entries, layout, field)
        x = _matrix(matrix.path)
    if turned:
        x = x.T.tocsr()
    return only_peaks(AnnData(x, obs=obs, var=var), features.path)


def _find(files: list[Path], pattern: re.Pattern[str], kinds: set[str]) -> list[_File]:
    """The files that have the name and kind, which a folder's name says nothing about."""
    found = []
    for path in files:
        stem, kind = stem_and_kind(path)
        match = pattern.match(stem)
        if kind in kinds and match is not None:
            found.append(_File(path, match[1].rstrip("_.-")))
    return found


def _beside(matrix: _File, candidates: list[_File]) -> list[_File]:
    """Those of the matrix's own prefix, where a folder holds several samples."""
    own = [file for file in candidates if file.prefix == matrix.prefix]
    return own or candidates


def _one(candidates: list[_File], what: str, folder: Path) -> _File:
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise DataError(f"there is no {what}: {holds(folder)}")
    names = ", ".join(file.path.name for file in candidates)
    raise DataError(
        f"{folder} has {len(candidates)} files that could be the {what}: {names}. Give the path of "
        "one .mtx file, whose names are then those of its own prefix, or move the others away."
    )


def _cell_names(path: Path) -> pd.DataFrame:
    """The first column."""
    return pd.DataFrame(index=_columns(path)[0].rename(None))


def _peak_names(path: Path) -> pd.DataFrame:
    """Regions of a BED file, Cell Ranger's ids with their feature types, or the first column."""
    table = _columns(path, comment="#")
    if table.shape[1] < 3:
        return pd.DataFrame(index=table[0].rename(None))
    chromosome, start, end = (table[column] for column in range(3))
    if start.str.isdigit().all() and end.str.isdigit().all():
        return pd.DataFrame(index=(chromosome + "_" + start + "_" + end).rename(None))
    return pd.DataFrame({"feature_types": table[2].to_numpy()}, index=table[0].rename(None))


def _columns(path: Path, comment: str | None = None) -> pd.DataFrame:
    warn_of_cut(path)
    return pd.read_csv(path, sep="\t", header=None, dtype=str, na_filter=False, comment=comment)


def _check_body(path: Path, n_entries: int, layout: str, field: str) -> None:
    """As many lines as it says, each of as many numbers: of others scipy's reader may crash."""
    from pyro_scale.kernels.lines import count_lines

    n_fields = {"pattern": 2, "complex": 4}.get(field, 3) if layout == "coordinate" else 1
    with OPEN.get(path.suffix.lower(), open)(path, "rb") as file:
        line = file.readline(_BLOCK)
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline(_BLOCK)
        try:
            n_lines = count_lines(iter(lambda: file.read(_BLOCK), b""), n_fields)
        except ValueError as error:
            raise DataError(f"{path} is damaged, copy it again: {error}.") from error
    if layout == "coordinate" and n_lines != n_entries:
        raise DataError(
            f"{path} claims {n_entries} entries and has {n_lines}: it is damaged, copy it again."
        )


def _matrix(path: Path) -> sparse.csr_matrix:
    warn_of_cut(path)
    x = io.mmread(str(path), spmatrix=True)
    if np.iscomplexobj(x):
        raise DataError(f"{path} holds complex numbers; expected counts or 0/1.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, refused later
        return sparse.csr_matrix(x, dtype=np.float32)


def _peaks_are_rows(
    shape: tuple[int, int], n_peaks: int, n_cells: int, peaks: str | None, path: Path
) -> bool:
    sizes = {"rows": (n_peaks, n_cells), "columns": (n_cells, n_peaks)}
    fits = [side for side, size in sizes.items() if size == shape]
    if not fits or peaks not in (None, *fits):
        asked = "" if peaks is None else f" with peaks={peaks!r}"
        raise DataError(
            f"{path} is a matrix of {shape[0]} x {shape[1]}, which{asked} does not fit the "
            f"{n_peaks} names of peaks and {n_cells} names of cells beside it. The files are of "
            "different data, or a file of names has a header: remove its first line."
        )
    if len(fits) == 2 and peaks is None:
        logger.warning(
            "%s is square (%d peaks and as many cells): its rows are taken for the peaks, as 10x "
            'writes them; otherwise give peaks="columns".',
            path,
            n_peaks,
        )
    return (peaks or fits[0]) == "rows"
