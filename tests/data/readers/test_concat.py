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
        (lambda b: b.var_names.str.replace("chr1_", "chr1:"), "no peak in common .* in a, .* in b"),
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
