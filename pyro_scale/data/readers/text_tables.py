"""Reader of text tables (csv, tsv, txt) in blocks of rows, so that the table is never dense."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale.data.peak_names import looks_like_peaks
from pyro_scale.data.readers.names_files import CHROMOSOME, coordinates, region_names
from pyro_scale.data.readers.paths import open_text, readable, stem_and_kind, warn_of_cut
from pyro_scale.exceptions import DataError

__all__ = ["read_table"]

logger = logging.getLogger(__name__)

_BLOCK = 2**22  # most dense entries at a time
_LONGEST = 2**28  # most characters of a line, enough for ten million columns
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_START = ("start", "chromstart", "chrom_start", "start_position", "begin")
_END = ("end", "stop", "chromend", "chrom_end", "end_position")
_ANNOTATION = (
    *CHROMOSOME, *_START, *_END, "strand", "width", "length", "score",
    *("name", "id", "geneid", "gene_id", "peak", "peakid", "peak_id", "peakname", "peak_name"),
)  # fmt: skip


def read_table(path: Path, *, peaks: str | None = None) -> AnnData:
    """Read a ``.csv``, ``.tsv`` or ``.txt`` table whose first line and first column are names.

    Parameters
    ----------
    path
        Path of the table. The separator is a comma in ``.csv`` and a tab in ``.tsv``; in ``.txt``
        it is the first of tab, comma and space that occurs in the first line. Files compressed
        as ``.gz``, ``.bz2`` or ``.xz`` are read too. The first line may lack the field above the
        row names, as in tables written by R. Instead of one column of names there may be columns
        with chromosome, start and end of the peaks, and annotations such as a strand; the peaks are
        then named ``chr1_100_200``.
    peaks
        Whether the peaks are the ``"rows"`` or the ``"columns"``. With None, the peaks are those
        whose names look like regions of a genome. If this does not decide, the rows are taken as
        the peaks, with a warning.

    Raises
    ------
    DataError
        If there is no row or column of numbers, rows differ in length, or an entry is not a number.
        The message names the row and, for such an entry, the column.
    """
    warn_of_cut(path)
    with readable(path, "a table of text"), open_text(path) as lines:
        header = _header(path, lines)
        names, parts = [], []
        for block in _blocks(header.lines, max(1, _BLOCK // len(header.columns))):
            block_names, x = _parse(path, block, header)
            names.extend(block_names)
            parts.append(x)
    row_names, column_names = pd.Index(names, dtype=object), pd.Index(header.columns, dtype=object)
    x = sparse.vstack(parts, format="csr")
    if _peaks_are_rows(row_names, column_names, peaks, path):
        x, row_names, column_names = x.T.tocsr(), column_names, row_names
    return AnnData(x, obs=pd.DataFrame(index=row_names), var=pd.DataFrame(index=column_names))


class _Header(NamedTuple):
    """The layout of a table.

    Attributes
    ----------
    separator
        Separator of the fields.
    n_leading
        Number of fields at the start of each row that are no counts: the name of the row, or the
        coordinates and annotations of a peak.
    region
        Positions of chromosome, start and end among these fields, or None.
    columns
        Names of the columns with counts.
    lines
        The lines after the header.
    """

    separator: str
    n_leading: int
    region: tuple[int, int, int] | None
    columns: list[str]
    lines: Iterator[str]


def _header(path: Path, lines: IO[str]) -> _Header:
    """Read the first line, and find out how the rows are laid out."""
    head, first = next(_lines(path, lines), ""), next(_lines(path, lines), "")
    while head.startswith("#") and not _fits(head, first, path):
        logger.info("%s: the line %r is taken as a comment.", path, head.strip()[:80])
        head, first = first, next(_lines(path, lines), "")
    if not first.strip():
        raise DataError(
            f"{path} has {'only one line' if head.strip() else 'no lines'}; expected a line of "
            "column names, then one line per row: its name and its numbers."
        )
    separator = _separator(head, path)
    columns, row = csv.reader([head, first], delimiter=separator)
    if len(row) == len(columns) + 1 and columns[0]:
        logger.info("%s: the first line has no field above the names, as R writes it.", path)
        columns = ["", *columns]
    titles = [column.strip().lower() for column in columns]
    n_leading = 1
    while n_leading < len(titles) and titles[n_leading] in _ANNOTATION:
        n_leading += 1
    region = _region(titles[:n_leading])
    if region is None:  # then these titles may be names of cells
        n_leading = 1
    else:
        logger.info("%s: peaks are named by the columns %s.", path, [columns[at] for at in region])
    if len(columns) <= n_leading:
        raise DataError(
            f"{path} has no column of numbers when it is split at {separator!r}; expected names "
            "and at least one column of numbers (the separator of .csv is a comma, of .tsv a tab)."
        )
    rest = chain([first], _lines(path, lines))
    return _Header(separator, n_leading, region, columns[n_leading:], rest)


def _separator(head: str, path: Path) -> str:
    present = (mark for mark in "\t, " if mark in head.rstrip("\n"))
    return _SEPARATORS.get(stem_and_kind(path)[1]) or next(present, "\t")


def _fits(head: str, first: str, path: Path) -> bool:
    """Return whether a line that begins with # has as many fields as a header of the next line."""
    head_row, row = csv.reader([head, first], delimiter=_separator(head, path))
    return len(row) > 1 and len(head_row) in (len(row), len(row) - 1)


def _region(titles: list[str]) -> tuple[int, int, int] | None:
    """Return the positions of chromosome, start and end among the titles, or None."""
    found = [
        next((at for at, title in enumerate(titles) if title in known), None)
        for known in (CHROMOSOME, _START, _END)
    ]
    chromosome, start, end = found
    if chromosome is None or start is None or end is None:
        return None
    return chromosome, start, end


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file.

    Raise DataError at a line longer than a table can have, before it fills the memory.
    """
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise DataError(
                f"{path} has a line of more than {_LONGEST} characters: it is not a table, or it "
                "is damaged."
            )
        yield line


def _blocks(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(islice(lines, size)):
        if filled := [line for line in block if line.strip()]:
            yield filled


def _parse(path: Path, lines: list[str], header: _Header) -> tuple[list[str], sparse.csr_matrix]:
    """Parse some rows, and return their names and a CSR matrix of their numbers.

    numpy parses them, because for rows of 10^5 numbers pandas is a hundred times slower, needs far
    more memory, and silently drops surplus entries in the first row of a chunk.
    """
    row_type = np.dtype(
        [*((f"field_{at}", object) for at in range(header.n_leading)),
         ("x_p", np.float32, (len(header.columns),))]
    )  # fmt: skip
    try:
        rows = np.loadtxt(
            lines,
            dtype=row_type,
            delimiter=header.separator,
            quotechar='"',
            comments=None,
            encoding=None,
            ndmin=1,
        )
    except ValueError as error:
        raise _explain(path, lines, header) or error from error
    x = sparse.csr_matrix(rows["x_p"])
    if header.region is None:
        return rows["field_0"].tolist(), x
    chromosome, start, end = (rows[f"field_{at}"].tolist() for at in header.region)
    sides = [coordinates(pd.Series(texts, dtype=object)) for texts in (start, end)]
    for texts, side in zip((start, end), sides, strict=True):
        if side.isna().any():
            row = int(side.isna().to_numpy().argmax())
            raise DataError(
                f"{path}: a peak on {chromosome[row]!r} has the coordinate {texts[row]!r}; "
                "expected a whole number."
            )
    return region_names(pd.Series(chromosome, dtype=object), *sides), x


def _explain(path: Path, lines: list[str], header: _Header) -> DataError | None:
    """Return an error that names the row, and the column if one cannot be parsed, or None."""
    columns = header.columns
    for row in csv.reader(lines, delimiter=header.separator):
        name, entries = row[0], row[header.n_leading :]
        if len(entries) != len(columns):
            return DataError(
                f"row {name!r} of {path} has {len(entries)} entries and the first line names "
                f"{len(columns)} columns; the numbers must be equal (is the file cut short?)."
            )
        for column, entry in zip(columns, entries, strict=True):
            try:
                float(entry)
            except ValueError:
                return DataError(
                    f"row {name!r}, column {column!r} of {path} is {entry!r}; expected a number "
                    "(0 for no count)."
                )
    return None


def _peaks_are_rows(rows: pd.Index, columns: pd.Index, peaks: str | None, path: Path) -> bool:
    if peaks is not None:
        return peaks == "rows"
    rows_are_regions, columns_are_regions = looks_like_peaks(rows), looks_like_peaks(columns)
    if rows_are_regions == columns_are_regions:
        logger.warning(
            "%s: %s rows (the first is %r) %s columns (%r) are named like regions of a genome; the "
            'rows are taken as the peaks, as in SCALE. If they are cells, give peaks="columns".',
            path,
            "both" if rows_are_regions else "neither",
            rows[0],
            "and" if rows_are_regions else "nor",
            columns[0],
        )
        return True
    return rows_are_regions
