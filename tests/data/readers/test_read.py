"""Readers: every format gives the same cells, and what is wrong with a file is said by name."""

import re
import shutil
import sys

import numpy as np
import pytest
from anndata.abc import CSRDataset
from helpers.file_formats import (
    BED,
    FORMATS,
    V3,
    a_dozen_cells,
    write_10x_h5,
    write_h5ad,
    write_h5mu,
    write_mtx,
    write_table,
    write_text,
    write_zarr,
)
from scipy import io, sparse

from pyro_scale.data import CountMatrix, read
from pyro_scale.exceptions import DataError


@pytest.fixture(scope="module")
def small():
    return a_dozen_cells()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_cells(kind, small, tmp_path):
    path = FORMATS[kind](small, tmp_path)
    for given in (path, str(path), [path]):
        adata = read(given)
        assert isinstance(adata.X, sparse.csr_matrix)
        assert adata.X.has_sorted_indices
        assert (adata.X.astype(np.float32) != small.X.astype(np.float32)).nnz == 0
        assert list(adata.obs_names) == list(small.obs_names)
        assert list(adata.var_names) == list(small.var_names)
        assert "batch" not in adata.obs
    assert CountMatrix.from_anndata(adata).n_cells == 12


def test_an_anndata_is_returned_and_numbers_keep_the_type_of_the_file(small, tmp_path):
    assert read(small) is small
    for dtype in (np.uint8, np.int64, np.float64, bool):
        path = write_h5ad(small, tmp_path / "a.h5ad", lambda x, dtype=dtype: x.astype(dtype))
        assert read(path).X.dtype == dtype
    assert read(write_table(small, tmp_path / "a.csv")).X.dtype == np.float32


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_backed_stays_on_disk(kind, small, tmp_path):
    cells = small.copy()
    cells.layers["counts"] = small.X.copy()
    path = tmp_path / f"a.{kind}"
    cells.write_h5ad(path) if kind == "h5ad" else write_zarr(cells, path)
    adata = read(path, backed=True)
    assert isinstance(adata.X, CSRDataset)
    for layer in (None, "counts"):
        counts = CountMatrix.from_anndata(adata, layer=layer, binary=False)
        assert (counts.read() != small.X.astype(np.float32)).nnz == 0
    assert list(adata.var_names) == list(small.var_names)


def test_backed_refuses_what_it_cannot_leave_on_disk(small, tmp_path):
    csc, table = FORMATS["h5ad csc"](small, tmp_path), FORMATS["csv"](small, tmp_path)
    with pytest.raises(DataError, match="is csc; leave out backed=True"):
        read(csc, backed=True)
    with pytest.raises(DataError, match=r"needs \.h5ad or \.zarr, which .*a\.csv is not"):
        read(table, backed=True)
    with pytest.raises(DataError, match="there are 2; read them together"):
        read([csc, csc], backed=True)


# The original's C9: the name of the folder, or of another file, chose the matrix.
def test_a_folders_name_says_nothing(small, tmp_path):
    folder = write_mtx(small, tmp_path / "data_mtx_barcodes.tsv", V3)
    (folder / "summary.csv").write_text("nothing of interest\n")
    assert read(folder).shape == (12, 30)


# C10: names of peak.txt were numbers, and those of a BED file its ends.
def test_comments_of_a_bed_file_are_no_peaks(small, tmp_path):
    folder = write_mtx(small, tmp_path, BED, bed=True)
    bed = folder / "peaks.bed"
    bed.write_text("# id=forebrain\n# genome=mm10\n" + bed.read_text())
    assert list(read(folder).var_names) == list(small.var_names)


# C11: a square matrix was never turned, and two turns could cancel.
def test_a_square_matrix_is_peaks_by_cells_unless_told(small, tmp_path, caplog):
    square = small[:, :12].copy()
    folder = write_mtx(square, tmp_path / "rows", BED, bed=True)
    turned = write_mtx(square, tmp_path / "columns", BED, bed=True, transposed=True)
    assert (read(folder).X != square.X).nnz == 0
    assert "is square (12 peaks and as many cells): its rows are taken" in caplog.text
    caplog.clear()
    assert (read(folder, peaks="rows").X != square.X).nnz == 0
    assert (read(turned, peaks="columns").X != square.X).nnz == 0
    assert not caplog.text
    whole = write_mtx(small, tmp_path / "whole", BED)
    with pytest.raises(DataError, match="30 x 12, which with peaks='columns' does not fit"):
        read(whole, peaks="columns")


def without(name):
    return lambda folder: (folder / name).unlink()


def another(name, new):
    return lambda folder: shutil.copy(folder / name, folder / new)


def rewritten(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("matrix.mtx"), r"no matrix \(\*.mtx or .*holds barcodes.tsv, peaks.bed\."),
        (without("barcodes.tsv"), "no file of cell names .* holds matrix.mtx, peaks.bed"),
        (without("peaks.bed"), "no file of peak names .* holds barcodes.tsv, matrix.mtx"),
        (another("matrix.mtx", "b.mtx"), "2 files that could be the matrix .*b.mtx, matrix.mtx"),
        (another("peaks.bed", "genes.tsv"), "2 files .* peak names .*genes.tsv, peaks.bed"),
        (
            rewritten("peaks.bed", lambda text: "chr9\t7\t8\n" + text),
            "matrix of 30 x 12, .* the 31 peak names and 12 cell names .* header",
        ),
        (rewritten("matrix.mtx", lambda _: "not one"), r"matrix.mtx cannot be read as .*ValueErr"),
        (rewritten("barcodes.tsv", lambda _: ""), r"barcodes.tsv has no names"),
        (
            rewritten("matrix.mtx", lambda _: "%%MatrixMarket matrix coordinate complex general\n"
                      "30 12 1\n1 1 1.0 2.0\n"),
            "holds complex numbers",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused(spoil, words, small, tmp_path):
    folder = write_mtx(small, tmp_path, BED, bed=True)
    spoil(folder)
    with pytest.raises(DataError, match=words):
        read(folder)


def test_pattern_is_ones_and_negative_numbers_are_kept_to_be_refused(small, tmp_path):
    pattern = write_mtx(small, tmp_path / "pattern", BED, field="pattern")
    np.testing.assert_array_equal(read(pattern).X.toarray(), small.X.toarray() > 0)
    folder = write_mtx(small, tmp_path / "negative", BED)
    io.mmwrite(folder / "matrix.mtx", -small.X.T.astype(np.int32))
    with pytest.raises(DataError, match="negative"):
        CountMatrix.from_anndata(read(folder))


def test_two_samples_in_a_folder_are_told_apart_by_prefix(small, tmp_path):
    for name, cells in (("GSM1", small[:5]), ("GSM2", small[5:])):
        names = (f"{name}_matrix.mtx.gz", f"{name}_barcodes.tsv.gz", f"{name}_peaks.bed.gz")
        write_mtx(cells.copy(), tmp_path, names, bed=True)
    assert list(read(tmp_path / "GSM2_matrix.mtx.gz").obs_names) == list(small.obs_names[5:])
    with pytest.raises(DataError, match="2 files that could be the matrix"):
        read(tmp_path)
    both = read(tmp_path / "*.mtx.gz")
    assert list(both.obs["batch"].unique()) == ["GSM1_matrix", "GSM2_matrix"]
    assert (both.X != small.X).nnz == 0


@pytest.mark.parametrize("kind", ["h5", "mtx"])
def test_of_a_multiome_the_peaks_are_kept(kind, small, tmp_path, caplog):
    types = ["Peaks"] * 25 + ["Gene Expression"] * 5

    def write(types):
        if kind == "h5":  # with a gene's name twice
            return write_10x_h5(small, tmp_path / "a.h5", types, ["same"] * 30)
        folder = write_mtx(small, tmp_path / "m", V3)
        rows = zip(small.var_names, types, strict=True)
        write_text(folder / V3[2], "".join(f"{name}\tsame\t{of}\n" for name, of in rows))
        return folder

    adata = read(write(types))
    assert list(adata.var_names) == list(small.var_names[:25])
    assert "kept the 25 Peaks; 5 other features are left out (Gene Expression)" in caplog.text
    with pytest.raises(DataError, match="types Antibody Capture, Gene Expression, none of them"):
        read(write(["Antibody Capture"] * 25 + types[25:]))


def test_the_modality_is_named_or_plain(small, tmp_path):
    for modalities in (["counts"], ["rna", "peaks"]):
        assert read(write_h5mu(small, tmp_path / "a.h5mu", modalities)).shape == (12, 30)
    path = write_h5mu(small, tmp_path / "b.h5mu", ["one", "two"])
    assert read(path / "two").shape == (12, 30)
    with pytest.raises(DataError, match=r"modalities one, two, and none is named .*/b.h5mu/one"):
        read(path)
    with pytest.raises(DataError, match="none is 'atac'"):
        read(path / "atac")


@pytest.mark.parametrize(("library", "kind"), [("scanpy", "10x h5"), ("mudata", "h5mu/atac")])
def test_a_missing_extra_is_named(library, kind, small, tmp_path, monkeypatch):
    path = FORMATS[kind](small, tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=re.escape(f'pip install "pyro-scale[{library}]"')):
        read(path)


def test_a_path_that_is_not_there_is_told_from_those_that_are(small, tmp_path):
    path = write_h5ad(small, tmp_path / "forebrain.h5ad")
    for wrong, words in (
        ("forebrian.h5ad", r"forebrian.h5ad does not exist: did you mean forebrain.h5ad\? "),
        ("nowhere/a.csv", "nowhere/a.csv does not exist: .* holds forebrain.h5ad"),
        ("*.zarr", r"no file matches .*/\*.zarr: .* holds forebrain.h5ad"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            read(tmp_path / wrong)
    bracket = path.rename(tmp_path / "cells[1].h5ad")
    assert read(bracket).n_obs == 12


# C12: an unknown extension was an UnboundLocalError.
def test_what_is_asked_must_be_known(small, tmp_path):
    path = write_h5ad(small, tmp_path / "a.h5ad")
    path.with_suffix(".xlsx").touch()
    for given, options, words in (
        (
            path.with_suffix(".xlsx"),
            {},
            r"a.xlsx has no known format; these are: .h5ad \(AnnData\)",
        ),
        ([], {}, "no path was given"),
        (path, {"peaks": "left"}, "peaks='left' is not known; choose one of rows, columns, None"),
        (path, {"join": "both"}, "join='both' is not known; choose 'inner' or 'outer'"),
        (path, {"peaks": "rows"}, "peaks='rows' is only for tables and .mtx files"),
    ):
        with pytest.raises(ValueError, match=words):  # a DataError is one
            read(given, **options)
    for given in (None, 3, [path, small]):
        with pytest.raises(TypeError, match="expected a path, several paths, or one AnnData; got"):
            read(given)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused_by_name(kind, small, tmp_path):
    """Or is a table cut at the end of a row, or a file whose last byte nobody needs."""
    path = FORMATS[kind](small, tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    messages = []
    for file in files:
        whole = file.read_bytes()
        for share in np.linspace(0, 1, max(3, 10 // len(files))):
            file.write_bytes(whole[: int(share * (len(whole) - 1))])
            try:
                adata = read(path)
            except DataError as error:
                messages.append(str(error))
            else:
                x = small[adata.obs_names, adata.var_names].X
                assert (adata.X.astype(np.float32) != x.astype(np.float32)).nnz == 0
        file.write_bytes(whole)
    assert len(messages) >= len(files)
    assert all(str(tmp_path) in message for message in messages)
