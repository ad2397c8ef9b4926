"""Reader of the names of cells and peaks, in the text files beside a Matrix Market file."""

from __future__ import annotations

import csv
import logging
import math
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pyro_scale.data.readers.paths import open_text, warn_of_cut
from pyro_scale.exceptions import DataError

__all__ = ["CHROMOSOME", "coordinates", "read_cell_names", "read_peak_names", "region_names"]

logger = logging.getLogger(__name__)

CHROMOSOME = ("chr", "#chr", "chrom", "#chrom", "chromosome", "seqnames", "seqname", "seqid")
"""Titles, in lower case, of the column with a peak's chromosome."""

_HEAD = 1000  # lines, or rows, from which the layout of a file is inferred
_NOT_A_ROW = ("#", "track", "browser")  # how lines of a BED file begin that are no regions
_MOST_TYPES = 50  # a third column with more values has no types of features
_TITLES = {
    *("", "x", "v1", "index", "name", "names", "id", "barcode", "barcodes", "cell", "cells"),
    *("cell_id", "cellid", "cell_name", "peak", "peaks", "peak_id", "region", "regions"),
    *("feature", "features", "gene", "genes", "gene_id", *CHROMOSOME),
}
_WHOLE_NUMBER = re.compile(r"\d+(\.\d*)?(e\+?\d+)?", re.IGNORECASE)


def read_cell_names(path: Path, shape: tuple[int, int]) -> pd.DataFrame:
    """Read the names of the cells, the first column of a file, as the index of a table.

    Row numbers, as R writes them, are no names. A header is skipped: a first line that is one more
    than ``shape``, the numbers of rows and columns of the matrix, leaves room for.
    """
    table = _without_row_numbers(_without_header(_columns(path, ()), shape, path), path)
    return pd.DataFrame(index=table[0].rename(None))


def read_peak_names(path: Path, shape: tuple[int, int]) -> pd.DataFrame:
    """Read the names of the peaks as the index of a table.

    The names are the regions of a BED file, the ids of Cell Ranger's ``features.tsv``, whose types
    of features are read too, or the first column of any other file. Row numbers and a header are
    treated as in :func:`read_cell_names`; comments and track lines of a BED file are skipped.

    Raises
    ------
    DataError
        If a start or an end in a BED file is not a whole number; the message names the line.
    """
    table = _without_header(_columns(path, _NOT_A_ROW), shape, path)
    first = _first_of_region(table.head(_HEAD))
    if first is None:
        table = _without_row_numbers(table, path)
        if table.shape[1] < 3 or table[2].nunique() > _MOST_TYPES:
            return pd.DataFrame(index=table[0].rename(None))
        return pd.DataFrame({"feature_types": table[2].to_numpy()}, index=table[0].rename(None))
    chromosomes, *sides = (table[first + column] for column in range(3))
    starts, ends = map(coordinates, sides)
    for what, texts, side in zip(("start", "end"), sides, (starts, ends), strict=True):
        if side.isna().any():
            row = int(side.isna().to_numpy().argmax())
            raise DataError(
                f"{path}: the {what} of the peak in row {row + 1}, on {chromosomes.iloc[row]!r}, "
                f"is {texts.iloc[row]!r}; expected a whole number."
            )
    if first:
        logger.info("%s: the first column is left out; regions are in the next three.", path)
    return pd.DataFrame(index=pd.Index(region_names(chromosomes, starts, ends)))


def _first_of_region(table: pd.DataFrame) -> int | None:
    """Return the column of the chromosome, 0 or 1, that start and end follow, or None.

    Column 1 follows ids or row numbers. Where both fit, as with chromosomes that are called 1 to
    22, the first column has ids if they all differ.
    """

    def share(first: int) -> float:
        if table.shape[1] < first + 3:
            return 0.0
        starts, ends = (
            pd.to_numeric(coordinates(table[first + column]), errors="coerce") for column in (1, 2)
        )
        return float((ends >= starts).mean())

    shares = [share(first) for first in (0, 1)]
    if max(shares) <= 0.5:
        return None
    has_ids = len(table) > 1 and bool(table[0].is_unique)
    return 1 if shares[1] > shares[0] or (shares[1] == shares[0] and has_ids) else 0


def coordinates(texts: pd.Series) -> pd.Series:
    """Return coordinates as digits; those in another notation of whole numbers are converted.

    R writes 100000 as 1e+05. A text that is no whole number becomes missing.

    Examples
    --------
    >>> coordinates(pd.Series(["100", "1e+05", "2.0", "chr1"])).tolist()
    ['100', '100000', '2', nan]
    """
    texts = texts.fillna("")
    others = ~texts.str.isdigit()
    if not others.any():
        return texts

    def digits(text: str) -> str | float:
        number = float(text) if _WHOLE_NUMBER.fullmatch(text.strip()) else math.nan
        return str(int(number)) if number.is_integer() and number < 2**53 else math.nan

    return texts.astype(object).mask(others, texts[others].map(digits))


def region_names(chromosomes: pd.Series, starts: pd.Series, ends: pd.Series) -> list[str]:
    """Return the names of regions, such as ``chr1_100_200``.

    Examples
    --------
    >>> region_names(*(pd.Series([part]) for part in ("chr1", "100", "200")))
    ['chr1_100_200']
    """
    return [f"{c}_{s}_{e}" for c, s, e in zip(chromosomes, starts, ends, strict=True)]


class _Layout(NamedTuple):
    """How a file of names is laid out: what precedes its rows, and how they are split."""

    n_skipped: int  # lines before the first row
    separator: str
    n_columns: int


def _columns(path: Path, not_a_row: tuple[str, ...]) -> pd.DataFrame:
    """Read the columns of a file as strings; missing fields at the end of a row are NaN."""
    warn_of_cut(path)
    layout = _layout(path, not_a_row)
    with open_text(path) as file:
        for _ in range(layout.n_skipped):
            file.readline()
        table = pd.read_csv(
            file,
            sep=layout.separator,
            header=None,
            names=range(layout.n_columns),
            dtype=str,
            keep_default_na=False,
            index_col=False,
        )
    if not_a_row:
        comment = table[0].str.startswith("#").to_numpy(dtype=bool)
        table = table[~comment].reset_index(drop=True)
    return table


def _layout(path: Path, not_a_row: tuple[str, ...]) -> _Layout:
    """Infer the layout from the first lines; the separator is a tab, or white space in BED."""
    with open_text(path) as file:
        lines = list(islice(file, _HEAD))
    n_skipped = 0
    for line in lines:
        if line.strip() and not (not_a_row and line.lstrip().startswith(not_a_row)):
            break
        n_skipped += 1
    rows = [line for line in lines[n_skipped:] if line.strip()]
    if not rows:
        raise DataError(f"{path} has no names; expected one per line.")
    separator = "\t"
    if not_a_row and not any("\t" in row for row in rows):
        separator = r"\s+" if all(len(row.split()) >= 3 for row in rows) else "\t"
    if separator == "\t":
        widths = [len(row) for row in csv.reader(rows, delimiter="\t")]
    else:
        widths = [len(row.split()) for row in rows]
    return _Layout(n_skipped, separator, max(widths))


def _without_header(table: pd.DataFrame, shape: tuple[int, int], path: Path) -> pd.DataFrame:
    """Leave out a first row that looks like a header if the matrix has one row or column less."""
    if len(table) in shape or len(table) - 1 not in shape or len(table) < 2:
        return table
    first, second = table.iloc[0], table.iloc[1]
    is_shorter = first.notna().sum() < second.notna().sum()  # R's write.table
    is_title = str(first[0]).strip().lower() in _TITLES
    if not is_shorter and not is_title:
        return table
    logger.info("%s: the first line, %r, is a header.", path, first[0])
    return table.iloc[1:].reset_index(drop=True)


def _without_row_numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Leave out a first column that numbers the rows from 1 if there are others."""
    numbers = pd.Series(np.arange(1, len(table) + 1).astype(str), index=table.index)
    if not table[0].equals(numbers.astype(table[0].dtype)):
        return table
    if table.shape[1] == 1:
        logger.warning("%s: the names are the numbers 1 to %d.", path, len(table))
        return table
    if not table[1].is_unique:  # these are names, and what follows describes them
        return table
    logger.info("%s: the first column numbers the rows, as R writes it; it is left out.", path)
    return table.drop(columns=0).set_axis(range(table.shape[1] - 1), axis=1)
