"""Several files as one AnnData: whose cells they are, and what is lost."""

import logging

import numpy as np
import pytest
from helpers.file_formats import a_dozen_cells, write_h5ad, write_table
from scipy import sparse

from pyro_scale.data import CountMatrix, read
from pyro_scale.exceptions import DataError


@pytest.fixture(scope="module")
def small():
    return a_dozen_cells()


def test_cells_of_several_files_are_named_by_file(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, part in (("monday", small[:5]), ("tuesday", small[5:])):
        write_h5ad(part.copy(), tmp_path / f"{name}.h5ad")
    for given in (tmp_path / "*.h5ad", [tmp_path / "monday.h5ad", str(tmp_path / "t*.h5ad")]):
        both = read(given, batch_key="day")
        assert list(both.obs["day"]) == ["monday"] * 5 + ["tuesday"] * 7
        assert list(both.obs_names) == list(small.obs_names)
        assert (both.X != small.X).nnz == 0
        assert CountMatrix.from_anndata(both, batch_key="day").batch.tolist() == [0] * 5 + [1] * 7
    assert "left out" not in caplog.text
    twice = read([tmp_path / "monday.h5ad"] * 2)
    assert list(twice.obs["batch"].unique()) == ["monday-1", "monday-2"]
    assert twice.obs_names[5] == "cell_1-monday-2"
    assert "5 cell names occur in several files" in caplog.text


# C14: peaks that a file lacks were dropped and nothing was said.
def test_peaks_that_files_do_not_share_are_reported(small, tmp_path, caplog):
    paths = [
        write_table(small[:5, :20].copy(), tmp_path / "a.csv"),
        write_h5ad(small[5:, 10:].copy(), tmp_path / "b.h5ad"),
    ]
    inner = read(paths)
    assert list(inner.var_names) == list(small.var_names[10:20])
    assert (small.X[:, 10:20] != inner.X).nnz == 0
    assert "a: 10 of 20 peaks (50.0 %) are not in every file and are left out" in caplog.text
    assert "b: 10 of 20 peaks (50.0 %)" in caplog.text
    caplog.clear()
    outer = read(paths, join="outer")[:, small.var_names]
    expected = small.X.toarray()
    expected[:5, 20:] = expected[5:, :10] = 0
    np.testing.assert_array_equal(outer.X.toarray(), expected)
    assert isinstance(outer.X, sparse.csr_matrix)
    assert "10 of 30 peaks (33.3 %) are not in this file and are filled" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b.var_names.str.replace("chr1_", "chr2_"), "no peak in common .* in a, .* in b"),
        (lambda b: b.var_names.str.replace("_", "."), r"different notations .*give peak_style="),
        (lambda b: ["chr1_1_2", "chr1_1_2", *b.var_names[2:]], "b has peak 'chr1_1_2' more than"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_files_that_cannot_be_joined(spoil, words, small, tmp_path):
    other = small.copy()
    other.var_names = spoil(other)
    paths = [write_h5ad(small, tmp_path / "a.h5ad"), write_h5ad(other, tmp_path / "b.h5ad")]
    assert list(read(paths[1]).var_names) == list(other.var_names)
    with pytest.raises(DataError, match=words):
        read(paths)


def test_peaks_in_two_notations_are_brought_to_one(small, tmp_path, caplog):
    other = small[:5].copy()
    other.var_names = [name.replace("_", "-") for name in other.var_names]
    paths = [write_h5ad(small, tmp_path / "a.h5ad"), write_h5ad(other, tmp_path / "b.h5ad")]
    with pytest.raises(DataError, match="different notations"):
        read(paths, join="outer")  # which would give two blocks
    both = read(paths, peak_style="chr:start-end")
    assert both.shape == (17, 30)
    assert both.var_names[0] == "chr1:1000000-1000500"
    assert "left out" not in caplog.text
    other.var_names = [f"chr7_{peak}_{peak + 1}" for peak in range(30)]
    other.write_h5ad(paths[1])
    assert read(paths, join="outer").shape == (17, 60)
    assert "clusters will tell the files apart" in caplog.text


def test_what_not_every_file_has_is_told(small, tmp_path, caplog):
    more = small.copy()
    more.obs["age"], more.obsm["X_pca"], more.uns["log"] = 1, np.zeros((12, 2)), {"base": None}
    more.layers["counts"], more.raw = more.X.copy(), more
    more.write_h5ad(tmp_path / "a.h5ad")
    paths = [tmp_path / "a.h5ad", write_h5ad(small, tmp_path / "b.h5ad")]
    assert not read(paths).layers
    assert (
        "a: left out, as not every file has it, its values differ, or it is of one file's cells "
        "alone (obsp): obs (age), obsm (X_pca), uns (log), layers (counts), raw (raw)"
        in caplog.text
    )
    assert "b: left out" not in caplog.text


def test_peaks_that_are_numbers_are_matched_with_a_warning(small, tmp_path, caplog):
    numbered = small.copy()
    numbered.var_names = [str(peak) for peak in range(30)]
    paths = [write_h5ad(numbered, tmp_path / f"{name}.h5ad") for name in "ab"]
    assert read(paths).shape == (24, 30)
    assert "named by numbers (the first is '0')" in caplog.text
