"""Tables of text: how they are parted and turned, and which entry is wrong."""

import gzip
import re
import tracemalloc

import numpy as np
import pytest
from helpers.file_formats import a_dozen_cells, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_scale.data import read
from pyro_scale.data.readers import text_tables
from pyro_scale.exceptions import DataError

ROWS = "peak,c1,c2,c3\nchr1_1_2,0,1,2\nchr1_3_4,3,0,0\n"
X = [[0, 3], [1, 0], [2, 0]]


def write(tmp_path, text, name="a.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ROWS),
        ("a.tsv", ROWS.replace(",", "\t")),
        ("a.txt", ROWS.replace(",", "\t")),
        ("a.txt", ROWS.replace(",", " ")),
        ("a.txt", ROWS),
        ("A.CSV", ROWS),
        ("R.txt", ROWS.replace("peak,", "").replace(",", "\t")),
        ("quoted.csv", ROWS.replace("chr1_1_2", '"chr1_1_2"').replace("c1", '"c1"')),
        ("windows.csv", ROWS.replace("\n", "\r\n")),
        ("excel.csv", "\ufeff" + ROWS),
        ("no_last_break.csv", ROWS.rstrip("\n")),
        ("blank_lines.csv", ROWS.replace("chr1_3", "\nchr1_3") + "\n\n"),
        ("floats.csv", ROWS.replace("3,0,0", "3.0,0.,0e0")),
    ],
)
def test_how_a_table_is_parted(name, text, tmp_path):
    adata = read(write(tmp_path, text, name))
    np.testing.assert_array_equal(adata.X.toarray(), X)
    assert list(adata.obs_names) == ["c1", "c2", "c3"]
    assert list(adata.var_names) == ["chr1_1_2", "chr1_3_4"]


def test_a_name_may_hold_the_separator_and_look_like_a_number_or_nothing(tmp_path):
    adata = read(write(tmp_path, 'x,chr1:1-2,chr1:3-4\n"a,b",0,1\n007,1,0\nNA,1,1\n'))
    assert list(adata.obs_names) == ["a,b", "007", "NA"]


@pytest.mark.parametrize(
    ("rows", "columns", "cells", "warned"),
    [
        (["chr1_1_2", "chr2_1_2"], ["c1", "c2"], "columns", None),
        (["c1", "c2"], ["chr1:1-2", "chr2:1-2"], "rows", None),
        (["1:100-200", "KI270726.1:1-2"], ["c1-1", "c2-1"], "columns", None),
        (["plate_1_2", "1_12_34"], ["X-5000-5500", "GL000194.1-1000-1500"], "rows", None),
        (["peak1", "peak2"], ["c1", "c2"], "columns", "neither rows .* nor columns"),
        (["chr1_1_2", "chr1_3_4"], ["chr2_1_2", "chr2_3_4"], "columns", "both rows .* and columns"),
    ],
)
def test_names_tell_which_side_the_peaks_are(rows, columns, cells, warned, tmp_path, caplog):
    lines = [",".join([name, *map(str, x)]) for name, x in zip(rows, [[0, 1], [2, 3]], strict=True)]
    path = write(tmp_path, "\n".join(["," + ",".join(columns), *lines, ""]))
    adata = read(path)
    assert list(adata.obs_names) == (rows if cells == "rows" else columns)
    assert adata.X.toarray().tolist() == ([[0, 1], [2, 3]] if cells == "rows" else [[0, 2], [1, 3]])
    if warned is None:
        assert not caplog.text
    else:
        assert re.search(warned, caplog.text)
        assert 'give peaks="columns"' in caplog.text
    caplog.clear()
    assert list(read(path, peaks="columns").obs_names) == rows
    assert list(read(path, peaks="rows").obs_names) == columns
    assert not caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a.csv has no lines; expected a line of column names"),
        ("\n", "has no lines"),
        ("peak,c1,c2\n", "has only one line"),
        ("peak\nchr1_1_2\n", "has no column of numbers when it is split at ','"),
        (ROWS.replace(",", ";"), "has no column of numbers when it is split at ','"),
        (ROWS.replace("0,1,2", "0,one,2"), "row 'chr1_1_2', column 'c2' of .*a.csv is 'one'"),
        (ROWS.replace("0,1,2", "0,,2"), "row 'chr1_1_2', column 'c2' of .* is ''; expected a num"),
        (ROWS.replace("0,1,2", "0,NA,2"), "column 'c2' of .* is 'NA'"),
        (ROWS.replace("3,0,0", "3,0"), "row 'chr1_3_4' of .* has 2 entries and .* names 3"),
        (ROWS.replace("3,0,0", "3,0,0,0"), "row 'chr1_3_4' of .* has 4 entries and .* names 3"),
        (ROWS.replace("peak", "").replace("2\n", "2,5\n"), "has 4 entries and .* names 3"),
        (ROWS.replace("2\n", "2,5\n"), "row 'chr1_3_4' of .* has 3 entries and .* names 4"),
        (ROWS.replace("0,1,2", "0,1,2,3,4"), "row 'chr1_1_2' of .* has 5 entries and .* names 3"),
        (ROWS + '"chr1', "row 'chr1.*' of .* has 0 entries"),
        (ROWS + "\x00\x00", "a.csv"),
    ],
)
@pytest.mark.parametrize("block", [1, 6, 2**22])
def test_what_is_wrong_with_a_table_is_said_by_row_and_column(
    text, words, block, tmp_path, monkeypatch
):
    """Wherever the blocks begin that it is read in."""
    monkeypatch.setattr(text_tables, "_BLOCK", block)
    with pytest.raises(DataError, match=words):
        read(write(tmp_path, text))


def test_text_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n\xff\xfe\n")
    with pytest.raises(
        DataError, match=r"a.csv cannot be read as a table of text \(UnicodeDecodeError"
    ):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(ROWS.encode())[:-12] + b"damaged here")
    with pytest.raises(DataError, match=r"a.csv.gz cannot be read"):
        read(tmp_path / "a.csv.gz")


def test_a_table_that_stops_within_a_line_is_suspected(tmp_path, caplog):
    assert read(write(tmp_path, ROWS)).n_obs == 3
    assert not caplog.text
    assert read(write(tmp_path, ROWS.rstrip("\n"))).n_obs == 3
    assert "does not end with a line break: if it was cut short" in caplog.text


# The original's C12: tables were held dense.
def test_a_table_is_never_held_dense(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "_BLOCK", 20_000)
    n_cells, n_peaks = 800, 2_000
    line = "cell_{}" + ",0" * (n_peaks - 1) + ",1\n"
    header = "".join(f",chr1_{peak}_{peak + 1}" for peak in range(n_peaks))
    path = write(tmp_path, header + "\n" + "".join(map(line.format, range(n_cells))))
    tracemalloc.start()
    adata = read(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert adata.X.nnz == n_cells
    assert peak_bytes < 4 * n_cells * n_peaks / 4


@settings(max_examples=25, deadline=None)
@given(
    counts=hnp.arrays(np.int64, st.tuples(*[st.integers(1, 7)] * 2), elements=st.integers(0, 999)),
    block=st.integers(1, 30),
)
def test_any_table_comes_back(counts, block, tmp_path_factory):
    cells = a_dozen_cells()[: counts.shape[0], : counts.shape[1]].copy()
    cells.X = counts
    path = tmp_path_factory.mktemp("table") / "a.tsv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tables, "_BLOCK", block)
        np.testing.assert_array_equal(read(write_table(cells, path, "\t")).X.toarray(), counts)
