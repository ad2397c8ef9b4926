"""Files as users have them: written by R, renamed by a browser, with a header or in scientific
notation. What is valid is read, and what is something else is refused by its name.
"""

import gzip
import logging

import h5py
import numpy as np
import pytest
from helpers.file_formats import (
    BED,
    V2,
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

import pyro_scale as ps
from pyro_scale.data import CountMatrix, read
from pyro_scale.exceptions import DataError


@pytest.fixture(scope="module")
def small():
    return a_dozen_cells()


def same(adata, cells):
    assert list(adata.obs_names) == list(cells.obs_names)
    assert list(adata.var_names) == list(cells.var_names)
    return not (adata.X.astype(np.float32) != cells.X.astype(np.float32)).nnz


def numbered(names):
    """As R's write.table writes them."""
    return "".join(f'"{row}"\t"{name}"\n' for row, name in enumerate(names, start=1))


def bed(cells):
    return "".join(name.replace("_", "\t") + "\n" for name in cells.var_names)


@pytest.mark.parametrize("header", ["", '"x"\n'])
def test_row_numbers_are_no_names(header, small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = write_mtx(small, tmp_path, ("matrix.mtx", "barcodes.tsv", "peaks.tsv"))
    (folder / "barcodes.tsv").write_text(header + numbered(small.obs_names))
    (folder / "peaks.tsv").write_text(header + numbered(small.var_names))
    assert same(read(folder), small)
    assert "barcodes.tsv: the first column numbers the rows" in caplog.text
    (folder / "barcodes.tsv").write_text("".join(f"{row}\n" for row in range(1, 13)))
    assert read(folder).obs_names[0] == "1"
    assert "the names are the numbers 1 to 12" in caplog.text


BED_FILES = {
    "row numbers": lambda c: "".join(
        f"{row}\t{line}\n" for row, line in enumerate(bed(c).splitlines(), start=1)
    ),
    "header": lambda c: "seqnames\tstart\tend\n" + bed(c),
    "R's header": lambda c: (
        "chr start end\n"
        + "".join(
            f'"{row}" {line}\n'
            for row, line in enumerate(bed(c).replace("\t", " ").splitlines(), start=1)
        )
    ),
    "track line": lambda c: "track name=peaks\n" + bed(c),
    "browser line": lambda c: "browser position chr1:1-9\n# made today\ntrack\n" + bed(c),
    "comment within": lambda c: bed(c).replace("\n", "\n# half\n", 1),
    "spaces": lambda c: bed(c).replace("\t", " "),
    "scientific": lambda c: bed(c).replace("\t1000000\t", "\t1e+06\t"),
    "with decimals": lambda c: bed(c).replace("\t1000000\t", "\t1000000.0\t"),
    "name and score": lambda c: bed(c).replace("\n", "\tpeak\t13.5\n"),
    "line ends of Windows": lambda c: bed(c).replace("\n", "\r\n"),
    "byte order mark": lambda c: "\ufeff" + bed(c),
    "empty lines at the end": lambda c: bed(c) + "\n\n",
}


@pytest.mark.parametrize("kind", BED_FILES)
def test_every_way_to_write_a_bed_file(kind, small, tmp_path):
    folder = write_mtx(small, tmp_path, BED)
    (folder / "peaks.bed").write_bytes(BED_FILES[kind](small).encode())
    assert same(read(folder), small)


def test_a_wrong_coordinate_is_named_in_a_short_message(small, tmp_path):
    folder = write_mtx(small, tmp_path, BED)
    (folder / "peaks.bed").write_text(bed(small).replace("\t1000000\t", "\t12e-1\t"))
    with pytest.raises(DataError, match=r"the start of the peak in row 1, on 'chr1', is '12e-1'"):
        read(folder)


@pytest.mark.parametrize("change", [gzip.compress, lambda content: b" " + content])
def test_the_content_says_how_a_file_is_read(change, small, tmp_path):
    folder = write_mtx(small, tmp_path, BED, bed=True)
    packed = [folder / "matrix.mtx"] if b" " in change(b"a")[:1] else list(folder.iterdir())
    for file in packed:
        file.write_bytes(change(file.read_bytes()))
    assert same(read(folder), small)


def test_gz_in_the_name_alone_is_no_compression(small, tmp_path):
    folder = write_mtx(small, tmp_path / "m", V2)
    for name in V2:
        (folder / name).rename(folder / f"{name}.gz")
    assert same(read(folder), small)
    table = write_table(small, tmp_path / "a.csv").rename(tmp_path / "a.csv.gz")
    assert same(read(table), small)


def test_names_in_utf_16_are_read(small, tmp_path):
    folder = write_mtx(small, tmp_path, BED, bed=True)
    names = (folder / "barcodes.tsv").read_text()
    (folder / "barcodes.tsv").write_bytes(names.encode("utf-16"))
    assert same(read(folder), small)


def test_an_hdf5_file_is_what_it_holds_and_not_its_name(small, tmp_path):
    for path in (
        write_h5ad(small, tmp_path / "a.h5ad").rename(tmp_path / "a.h5"),
        write_10x_h5(small, tmp_path / "b.h5").rename(tmp_path / "b.h5ad"),
        write_h5mu(small, tmp_path / "c.h5mu").rename(tmp_path / "c.hdf5"),
        write_zarr(small, tmp_path / "d.zarr").rename(tmp_path / "d"),
    ):
        assert same(read(path), small)
    assert read(tmp_path / "a.h5", backed=True).isbacked


def test_compressed_binary_files_and_archives_are_told_what_to_do(small, tmp_path):
    (tmp_path / "a.h5ad.gz").write_bytes(
        gzip.compress(write_h5ad(small, tmp_path / "a.h5ad").read_bytes())
    )
    (tmp_path / "a.tar.gz").touch()
    for name, words in (("a.h5ad.gz", "Decompress it first, to a.h5ad"), ("a.tar.gz", "Unpack")):
        with pytest.raises(DataError, match=words):
            read(tmp_path / name)


def test_uns_may_hold_none_and_x_may_be_float16(small, tmp_path):
    cells = small.copy()
    cells.uns["log1p"] = {"base": None}
    cells.X = cells.X.toarray().astype(np.float16)
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        cells.write_h5ad(path) if path.suffix == ".h5ad" else write_zarr(cells, path)
        adata = read(path)
        assert same(adata, small)
        assert adata.uns["log1p"] == {"base": None}
    assert CountMatrix.from_anndata(cells, binary=False).x.sum() == small.X.sum()


def test_only_what_is_damaged_is_called_damaged(small, tmp_path):
    path = write_h5ad(small, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["encoding-version"] = "9.9.9"
    with pytest.raises(DataError, match=r"cannot be read as AnnData .*9\.9\.9") as told:
        read(path)
    assert "It is damaged" not in str(told.value)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"truncated file.* It is damaged or cut short"):
        read(path)


# The table of GSE74310, and of featureCounts.
@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("Chr\tStart\tEnd", lambda c, s, e, i: f"{c}\t{s}\t{e}"),
        ("#chrom\tchromStart\tchromEnd\tname", lambda c, s, e, i: f"{c}\t{s}\t{e}\tpeak {i}"),
        (
            "# Program:featureCounts v2\nGeneid\tChr\tStart\tEnd\tStrand\tLength",
            lambda c, s, e, i: f"peak{i}\t{c}\t{s}\t{e}\t+\t500",
        ),
        ("seqnames\tstart\tend\twidth\tstrand", lambda c, s, e, i: f"{c}\t{s}\t{e}\t500\t*"),
    ],
)
def test_coordinates_in_columns_name_the_peaks(head, rows, small, tmp_path):
    lines = [
        rows(*name.split("_"), at) + "".join(f"\t{int(count)}" for count in counts)
        for at, (name, counts) in enumerate(zip(small.var_names, small.X.toarray().T, strict=True))
    ]
    path = tmp_path / "geo.txt"
    path.write_text("\t".join([head, *small.obs_names]) + "\n" + "\n".join(lines) + "\n")
    assert same(read(path), small)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_cells_named_start_and_end_are_refused(small):
    cells = small.copy()
    cells.obs_names = ["Start", "End", *small.obs_names[2:]]
    with pytest.raises(DataError, match="named Start and End: these are the coordinates"):
        CountMatrix.from_anndata(cells)
    cells = small.copy()
    cells.var_names = ["chr1"] * 29 + ["chr2"]
    with pytest.raises(DataError, match=r"30 peaks have 2 names .* such as chr1:100-200") as told:
        CountMatrix.from_anndata(cells)
    assert "make_unique" not in str(told.value)


@pytest.mark.parametrize("kind", ["h5", "mtx", "h5ad"])
def test_gene_expression_alone_is_refused(kind, small, tmp_path):
    genes = small.copy()
    genes.var_names = [f"ENSG{gene:011d}" for gene in range(30)]
    if kind == "h5":
        path = write_10x_h5(genes, tmp_path / "a.h5", ["Gene Expression"] * 30)
    elif kind == "mtx":
        path = write_mtx(genes, tmp_path / "m", V3, kind="\tname\tGene Expression")
    else:
        genes.var["feature_types"] = "Gene Expression"
        path = write_h5ad(genes, tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="types Gene Expression, none of them Peaks"):
        read(path)


def test_genes_among_the_peaks_of_an_anndata_are_refused_or_warned_of(small, caplog):
    mixed = small.copy()
    mixed.var_names = [*small.var_names[:20], *(f"ENSG{gene:011d}" for gene in range(10))]
    mixed.var["feature_types"] = ["Peaks"] * 20 + ["Gene Expression"] * 10
    with pytest.raises(DataError, match="10 of 30 features are not peaks: Gene Expression"):
        ps.SCALE(mixed, 2)
    del mixed.var["feature_types"]
    ps.SCALE(mixed, 2)
    assert not caplog.text
    mixed.var_names = [f"ENSMUSG{gene:011d}" for gene in range(30)]
    ps.SCALE(mixed, 2)
    assert "named like genes (the first is 'ENSMUSG00000000000')" in caplog.text
    # Regions are peaks whatever their type is called.
    peaks = small.copy()
    peaks.var["feature_types"] = "Custom"
    assert CountMatrix.from_anndata(peaks).n_peaks == 30


def test_every_type_of_a_third_column_is_no_message_of_a_million_characters(small, tmp_path):
    folder = write_mtx(small, tmp_path / "m", V3)
    names = "".join(f"{name}\tsame\ttype {at}\n" for at, name in enumerate(small.var_names))
    write_text(folder / V3[2], names)
    with pytest.raises(DataError, match=r"types type 0, .* and 20 more, none of them") as told:
        read(folder)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("end", ["", "\n", " ", "\t", " \r\n", "\n\n", "\n ", " \n \n"])
def test_the_end_of_the_last_line_of_a_matrix_does_not_matter(end, small, tmp_path):
    """scipy 1.17 crashes the interpreter where the last line ends with a blank."""
    folder = write_mtx(small, tmp_path, BED, bed=True)
    text = (folder / "matrix.mtx").read_text().rstrip()
    (folder / "matrix.mtx").write_bytes((text + end).encode())
    assert same(read(folder), small)


def test_numbers_that_are_names_stay_names(small, tmp_path):
    """Cells that are called 1 to 12, and what they are beside it; labels are no names."""
    folder = write_mtx(small, tmp_path, BED, bed=True)
    (folder / "barcodes.tsv").write_text("".join(f"{n}\t{'TB'[n % 2]}\n" for n in range(1, 13)))
    assert list(read(folder).obs_names) == [str(n) for n in range(1, 13)]


@pytest.mark.parametrize("chromosome", ["chr1", "1", "X"])
@pytest.mark.parametrize("ids", [lambda at: f"peak{at}", lambda at: str(at + 1)])
def test_ids_before_the_regions_are_left_out(chromosome, ids, small, tmp_path):
    folder = write_mtx(small, tmp_path, ("matrix.mtx", "barcodes.tsv", "peaks.tsv"))
    rows = [f"{ids(at)}\t{chromosome}\t{10 * at}\t{10 * at + 5}\n" for at in range(30)]
    (folder / "peaks.tsv").write_text("".join(rows))
    expected = [f"{chromosome}_{10 * at}_{10 * at + 5}" for at in range(30)]
    assert list(read(folder).var_names) == expected


@pytest.mark.parametrize("score", ["", "\t0", "\t950"])
def test_chromosomes_that_are_numbers_are_chromosomes(score, small, tmp_path):
    folder = write_mtx(small, tmp_path, BED)
    rows = [f"{at // 2 + 1}\t{100 * at + 1000}\t{100 * at + 1050}{score}\n" for at in range(30)]
    (folder / "peaks.bed").write_text("".join(rows))
    assert read(folder).var_names[3] == "2_1300_1350"


@pytest.mark.parametrize("rows", ["peaks", "cells"])
def test_a_header_may_begin_with_the_sign_of_a_comment(rows, small, tmp_path):
    path = write_table(small, tmp_path / "a.tsv", sep="\t", rows=rows)
    path.write_text("# made by a tool\n#name" + path.read_text())
    assert same(read(path), small)


def test_the_modality_of_a_mudata_by_another_name(small, tmp_path):
    path = write_h5mu(small, tmp_path / "a.h5mu", ["one", "two"]).rename(tmp_path / "a.h5")
    assert read(path / "two").shape == (12, 30)


def test_a_notation_that_makes_two_names_one_is_refused(small, tmp_path):
    cells = small[:, :2].copy()
    cells.var_names = ["chr1:1-2", "chr1-1-2"]
    path = write_h5ad(cells, tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="two peaks would be named 'chr1_1_2'"):
        read(path, peak_style="chr_start_end")
