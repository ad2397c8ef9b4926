"""Tables of text, csv and tsv: read a block of rows at a time, and never held dense."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale.data.paths import OPEN, readable, stem_and_kind, warn_of_cut
from pyro_scale.errors import DataError

__all__ = ["looks_like_peaks", "read_table"]

logger = logging.getLogger(__name__)

_BLOCK = 2**22  # numbers that are dense at a time
_LONGEST = 2**28  # characters of a line: ten million columns
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_REGION = re.compile(
    r"\S+:\d+-\d+"  # of any chromosome, as 10x writes it
    r"|chr[\w.]+?[:_-]\d+[-_]\d+\b"
    # Ensembl's and scaffolds; three digits, for 1_12_34 may be a well of a plate
    r"|(\d{1,2}[LR]?|[XYMWZ]|MT|[A-Z]{2}_?\d{6,}(\.\d+)?)[:_-]\d{3,}[-_]\d{3,}\b",
    re.IGNORECASE,
)


def looks_like_peaks(names: pd.Index) -> bool:
    """Whether most names are regions of a genome.

    Examples
    --------
    >>> looks_like_peaks(pd.Index(["chr1:100-200", "chrX_5_9", "KI270726.1-1000-1500"]))
    True
    >>> looks_like_peaks(pd.Index(["AAACGAAAGC-1", "plate_1_12", "A1"]))
    False
    """
    return bool(np.mean([_REGION.match(name) is not None for name in names]) > 0.5)


def read_table(path: Path, *, peaks: str | None = None) -> AnnData:
    """A table whose first column and first line are names, ``.csv``, ``.tsv`` or ``.txt``.

    Parameters
    ----------
    path
        Columns are parted by commas in ``.csv`` and tabs in ``.tsv``; in ``.txt`` by what its
        first line has of tab, comma and space. ``.gz``, ``.bz2`` and ``.xz`` are read too. The
        first line may leave out its first field, as R writes it.
    peaks
        Which side the peaks are, ``"rows"`` or ``"columns"``; None: the names that look like
        regions, and rows where this does not tell.

    Raises
    ------
    DataError
        If there is no row or column of numbers, rows differ in length, or an entry is no number;
        the message has its row and column.
    """
    with readable(path, "a table of text"), _open_text(path) as lines:
        separator, columns, rest = _header(path, lines)
        names, parts = [], []
        for block in _blocks(rest, max(1, _BLOCK // len(columns))):
            block_names, x = _parse(path, block, columns, separator)
            names.extend(block_names)
            parts.append(x)
    row_names, column_names = pd.Index(names, dtype=object), pd.Index(columns, dtype=object)
    x = sparse.vstack(parts, format="csr")
    if _peaks_are_rows(row_names, column_names, peaks, path):
        x, row_names, column_names = x.T.tocsr(), column_names, row_names
    return AnnData(x, obs=pd.DataFrame(index=row_names), var=pd.DataFrame(index=column_names))


def _open_text(path: Path) -> IO[str]:
    warn_of_cut(path)
    opened: IO[str] = OPEN.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig")
    return opened


def _header(path: Path, lines: IO[str]) -> tuple[str, list[str], Iterator[str]]:
    """The separator, the names of the columns, and the lines after them."""
    head, first = next(_lines(path, lines), ""), next(_lines(path, lines), "")
    if not first.strip():
        raise DataError(
            f"{path} has {'only one line' if head.strip() else 'no lines'}; expected a line of "
            "names, then one for each row: its name and its numbers."
        )
    present = (mark for mark in "\t, " if mark in head.rstrip("\n"))
    separator = _SEPARATORS.get(stem_and_kind(path)[1]) or next(present, "\t")
    columns, row = csv.reader([head, first], delimiter=separator)
    if len(row) == len(columns) + 1 and columns[0]:
        logger.info("%s: the first line has no field above the names, as R writes it.", path)
    else:
        columns = columns[1:]
    if not columns:
        raise DataError(
            f"{path} has one column when it is parted by {separator!r}; expected names and at "
            "least one column of numbers (csv is parted by commas, tsv by tabs)."
        )
    return separator, columns, chain([first], _lines(path, lines))


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Line by line, none longer than what can be one."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise DataError(
                f"{path} has a line of more than {_LONGEST} characters: it is no table, or damaged."
            )
        yield line


def _blocks(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(islice(lines, size)):
        if filled := [line for line in block if line.strip()]:
            yield filled


def _parse(
    path: Path, lines: list[str], columns: list[str], separator: str
) -> tuple[list[str], sparse.csr_matrix]:
    """Names and numbers of some rows.

    By numpy, as pandas needs a hundred times longer, and far more memory, for a row of 10^5
    numbers, and drops what is too many in the first row of a chunk.
    """
    row_type = np.dtype([("name", object), ("x_p", np.float32, (len(columns),))])
    try:
        rows = np.loadtxt(
            lines,
            dtype=row_type,
            delimiter=separator,
            quotechar='"',
            comments=None,
            encoding=None,
            ndmin=1,
        )
    except ValueError as error:
        raise _explain(path, lines, columns, separator) or error from error
    return rows["name"].tolist(), sparse.csr_matrix(rows["x_p"])


def _explain(path: Path, lines: list[str], columns: list[str], separator: str) -> DataError | None:
    """Which row and column is wrong."""
    for name, *entries in csv.reader(lines, delimiter=separator):
        if len(entries) != len(columns):
            return DataError(
                f"row {name!r} of {path} has {len(entries)} entries and the first line names "
                f"{len(columns)}; every row needs as many (is the file cut short?)."
            )
        for column, entry in zip(columns, entries, strict=True):
            try:
                float(entry)
            except ValueError:
                return DataError(
                    f"row {name!r}, column {column!r} of {path} is {entry!r}; expected a number "
                    "(0 where nothing was seen)."
                )
    return None


def _peaks_are_rows(rows: pd.Index, columns: pd.Index, peaks: str | None, path: Path) -> bool:
    if peaks is not None:
        return peaks == "rows"
    of_rows, of_columns = looks_like_peaks(rows), looks_like_peaks(columns)
    if of_rows == of_columns:
        logger.warning(
            "%s: %s rows (the first is %r) %s columns (%r) are named as regions of a genome; rows "
            'are taken for peaks, as in SCALE. If they are cells, give peaks="columns".',
            path,
            "both" if of_rows else "neither",
            rows[0],
            "and" if of_rows else "nor",
            columns[0],
        )
        return True
    return of_rows
