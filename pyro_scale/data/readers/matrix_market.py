"""Reader of Matrix Market folders, which hold matrix, cell names and peak names in three files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import numpy as np
from anndata import AnnData
from scipy import io, sparse

from pyro_scale.data.readers.names_files import read_cell_names, read_peak_names
from pyro_scale.data.readers.paths import holds, open_bytes, readable, stem_and_kind, warn_of_cut
from pyro_scale.exceptions import DataError

__all__ = [
    "read_matrix_market",
]

logger = logging.getLogger(__name__)

_BLOCK = 2**24  # bytes read at a time
_MATRIX = re.compile(r"^(.*?)(matrix|counts?|data)?$", re.IGNORECASE)
_CELLS = re.compile(r"^(.*?)(barcodes?)$", re.IGNORECASE)
_PEAKS = re.compile(r"^(.*?)(peaks?|features?|genes?)$", re.IGNORECASE)


class _File(NamedTuple):
    path: Path
    prefix: str  # what precedes "matrix", "barcodes", "peaks" ... in its name


def read_matrix_market(path: Path, *, peaks: str | None = None) -> AnnData:
    """Read a Matrix Market file (``.mtx``) and the files of cell and peak names in its folder.

    Parameters
    ----------
    path
        Path of the folder or of the ``.mtx`` file. The names are read from the same folder: those
        of the cells from a file whose name ends in ``barcodes``, those of the peaks from one whose
        name ends in ``peaks``, ``features`` or ``genes``.
    peaks
        Whether the peaks are the ``"rows"`` or the ``"columns"`` of the matrix. This is needed only
        if the matrix is square; otherwise its shape decides.

    Raises
    ------
    DataError
        If a file is missing or ambiguous, the matrix is damaged, or its shape does not fit the
        numbers of names.
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
    # Check the header's numbers first: mmread allocates memory for them before it reads.
    with readable(matrix.path, "a Matrix Market file"), _positioned(matrix.path) as file:
        n_rows, n_columns, n_entries, layout, field, _ = io.mminfo(_read_only(file))
    shape = (n_rows, n_columns)
    with readable(cells.path, "cell names"):
        obs = read_cell_names(cells.path, shape)
    with readable(features.path, "peak names"):
        var = read_peak_names(features.path, shape)
    with readable(matrix.path, "a Matrix Market file"):
        transposed = _peaks_are_rows(shape, len(var), len(obs), peaks, matrix.path)
        if n_entries > n_rows * n_columns:
            raise DataError(
                f"{matrix.path} claims {n_entries} entries in a matrix of {n_rows} x {n_columns}: "
                "it is damaged; copy it again."
            )
        _check_body(matrix.path, n_entries, layout, field)
        x = _matrix(matrix.path)
    if transposed:
        x = x.T.tocsr()
    return AnnData(x, obs=obs, var=var)


def _find(files: list[Path], pattern: re.Pattern[str], kinds: set[str]) -> list[_File]:
    """Return the files whose name matches the pattern and whose extension is among ``kinds``."""
    found = []
    for path in files:
        stem, kind = stem_and_kind(path)
        match = pattern.match(stem)
        if kind in kinds and match is not None:
            found.append(_File(path, match[1].rstrip("_.-")))
    return found


def _beside(matrix: _File, candidates: list[_File]) -> list[_File]:
    """Return the candidates whose prefix is that of the matrix, or all if none has it.

    Files with the same prefix belong to the same sample.
    """
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
        "one .mtx file, to which the files with the same prefix belong, or move the others away."
    )


def _read_only(file: IO[bytes]) -> Any:
    """Return a file that scipy can only read, and whose last line ends.

    Upstream faults: scipy.io.mmread crashes the interpreter where it seeks in a file that it was
    given open, and on a last line that ends with a blank instead of a line break.
    """
    end = [b"\n"]

    def read(n: int = -1) -> bytes:
        return file.read(n) or (end.pop() if end else b"")

    return SimpleNamespace(read=read)


@contextmanager
def _positioned(path: Path) -> Iterator[IO[bytes]]:
    """Open a Matrix Market file at its first line, which some programs indent."""
    with open_bytes(path) as file:
        start = file.read(_BLOCK)
        file.seek(max(start.find(b"%%MatrixMarket"), 0))
        yield file


def _check_body(path: Path, n_entries: int, layout: str, field: str) -> None:
    """Check that an ``.mtx`` file has as many lines of numbers as its header says.

    Each line must also have the number of fields that ``layout`` and ``field`` of the header imply.
    scipy.io.mmread crashes the interpreter on a line with too many fields, and hangs or crashes on
    bytes that belong to no number.
    """
    from pyro_scale.ops._text_kernels import count_lines  # Numba takes long to import

    n_fields = {"pattern": 2, "complex": 4}.get(field, 3) if layout == "coordinate" else 1
    with _positioned(path) as file:
        line = file.readline(_BLOCK)
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline(_BLOCK)
        try:
            n_lines = count_lines(iter(lambda: file.read(_BLOCK), b""), n_fields)
        except ValueError as error:
            raise DataError(f"{path} is damaged; copy it again: {error}.") from error
    if layout == "coordinate" and n_lines != n_entries:
        raise DataError(
            f"{path} claims {n_entries} entries and has {n_lines}: it is damaged; copy it again."
        )


def _matrix(path: Path) -> sparse.csr_matrix:
    warn_of_cut(path)
    with _positioned(path) as file:
        x = io.mmread(_read_only(file), spmatrix=True)
    if np.iscomplexobj(x):
        raise DataError(f"{path} holds complex numbers; expected counts or 0/1.")
    with np.errstate(over="ignore"):  # overflow becomes infinite, which CountMatrix refuses
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
            f"{n_peaks} peak names and {n_cells} cell names beside it. The files belong to "
            "different data, or a file of names has a header: remove its first line."
        )
    if len(fits) == 2 and peaks is None:
        logger.warning(
            "%s is square (%d peaks and as many cells): its rows are taken as the peaks, as 10x "
            'writes them; if they are the cells, give peaks="columns".',
            path,
            n_peaks,
        )
    return (peaks or fits[0]) == "rows"
