"""Preprocessing: on a copy unless asked, what it keeps is what it says, and peaks go by name."""

import logging
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import binom

import pyro_scale as ps


def is_open(adata):
    return adata.X.toarray() > 0


def test_filters_take_numbers_fractions_and_an_upper_bound(counts):
    open_np = is_open(counts)
    n, p = open_np.sum(1), open_np.sum(0)
    kept = ps.pp.filter_cells(counts, min_peaks=20, max_peaks=0.25)
    assert list(kept.obs_names) == list(counts.obs_names[(n >= 20) & (n <= 0.25 * 120)])
    kept = ps.pp.filter_peaks(counts, min_cells=0.1, max_cells=30)
    assert list(kept.var_names) == list(counts.var_names[(p >= 8) & (p <= 30)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda a: ps.pp.filter_cells(a, min_peaks=500),
            "none of the 80 cells has at least 500 open",
        ),
        (lambda a: ps.pp.filter_cells(a, min_peaks=-1), "min_peaks=-1: expected a number of peaks"),
        (
            lambda a: ps.pp.filter_peaks(a, min_cells=2, max_cells=1),
            "at least 2 and at most 1 of 80",
        ),
        (lambda a: ps.pp.filter_peaks(a, min_cells=np.nan), "min_cells=nan: expected a number"),
        (lambda a: ps.pp.select_variable_peaks(a, 0), "n_peaks=0 must be at least one"),
        (lambda a: ps.pp.match_peaks(a, ["other"]), "none of the model's 1 peaks"),
        (lambda a: ps.pp.match_peaks(a, ["x", "x"]), "the model have peak 'x' more than once"),
    ],
)
def test_what_cannot_be_meant_is_refused(counts, call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(counts)


def test_a_number_of_peaks_is_whole(counts):
    with pytest.raises(TypeError, match=r"n_peaks=2.5 must be a whole number"):
        ps.pp.select_variable_peaks(counts, 2.5)


STEPS = {
    "filter_cells": lambda a, **k: ps.pp.filter_cells(a, min_peaks=20, **k),
    "filter_peaks": lambda a, **k: ps.pp.filter_peaks(a, min_cells=10, **k),
    "select_variable_peaks": lambda a, **k: ps.pp.select_variable_peaks(a, 30, **k),
    "binarize": ps.pp.binarize,
    "log_transform": ps.pp.log_transform,
    "tf_idf": ps.pp.tf_idf,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_copy_unless_asked(counts, name):
    before = counts.copy()
    result = STEPS[name](counts)
    assert result is not counts
    assert counts.shape == before.shape
    assert (counts.X != before.X).nnz == 0
    assert result.shape != counts.shape or (result.X != counts.X).nnz > 0
    changed = STEPS[name](counts, inplace=True)
    assert changed is counts
    assert list(counts.obs_names) == list(result.obs_names)
    assert list(counts.var_names) == list(result.var_names)
    assert (counts.X != result.X).nnz == 0


def test_the_layer_is_what_is_changed(counts):
    counts.layers["raw"] = counts.X.copy()
    result = ps.pp.binarize(counts, layer="raw")
    assert result.layers["raw"].max() == 1
    assert (result.X != counts.X).nnz == 0
    assert counts.X.max() > 1


def test_transforms_equal_their_formulas(counts):
    x = counts.X.toarray().astype(float)
    np.testing.assert_allclose(ps.pp.log_transform(counts).X.toarray(), np.log1p(x), rtol=1e-6)
    depth, n_open = x.sum(1, keepdims=True), (x > 0).sum(0)
    expected = np.log1p(1e4 * x / depth * np.log1p(len(x) / np.maximum(n_open, 1)))
    np.testing.assert_allclose(ps.pp.tf_idf(counts).X.toarray(), expected, rtol=1e-5)


def test_the_deviance_is_twice_the_log_ratio_of_binomials(counts):
    """Of each peak's counts under its own proportions and under one proportion for all cells."""
    result = ps.pp.select_variable_peaks(counts, 10_000)
    x = counts.X.toarray().astype(float)
    depth = x.sum(1, keepdims=True)
    saturated, null = binom.logpmf(x, depth, x / depth), binom.logpmf(x, depth, x.sum(0) / x.sum())
    np.testing.assert_allclose(result.var["deviance"], 2 * (saturated - null).sum(0), atol=1e-6)


def test_variable_peaks_are_as_many_as_asked_and_are_the_markers():
    """SCALE's own selection keeps every peak on a present scanpy (C6)."""
    adata = ps.simulate(400, 1000, 3, density=0.1, marker_fraction=0.2, fold=6, seed=0)
    result = ps.pp.select_variable_peaks(adata, 200)
    assert result.n_vars == 200
    assert list(result.var_names) == [p for p in adata.var_names if p in set(result.var_names)]
    marks = adata.var["marker_of"].astype(str) != ""
    assert 0.15 < marks.mean() < 0.25
    assert (result.var["marker_of"].astype(str) != "").mean() > 2 * marks.mean()


def test_peaks_are_matched_by_name_and_what_is_missing_is_told(counts, caplog):
    caplog.set_level(logging.INFO, logger="pyro_scale")
    names = [*counts.var_names[40:][::-1], "chrX_1_2", "chrX_3_4"]
    counts.layers["raw"] = counts.X.copy()
    result = ps.pp.match_peaks(counts, names)
    assert list(result.var_names) == names
    for x in (result.X, result.layers["raw"]):
        np.testing.assert_array_equal(x.toarray()[:, :80], counts.X.toarray()[:, 40:][:, ::-1])
        assert x[:, 80:].nnz == 0
    assert caplog.messages == [
        "2 of the model's 82 peaks (2.4 %) are missing and filled with zeros.",
        "40 of 120 peaks are not in the model and are left out.",
    ]
    assert result.obs.equals(counts.obs)


def test_new_cells_land_where_the_same_cells_lie(counts):
    """A model asked about its own cells with a tenth of the peaks gone places them nearby."""
    model = ps.SCALE(counts, 3, 2, hidden=(16,))
    model.train(30, progress_bar=False)
    with pytest.raises(ps.DataError, match=r"12 of the model's 120 peaks.*match_peaks\(adata"):
        model.get_latent_representation(counts[:, 12:])
    other = ps.pp.match_peaks(counts[:, 12:], model.peak_names)
    z, new = model.get_latent_representation(), model.get_latent_representation(other)
    away = np.linalg.norm(new - z, axis=1).mean()
    shuffled = np.linalg.norm(new[::-1] - z, axis=1).mean()
    assert away < 0.5 * shuffled


def test_on_disk_is_read_and_never_changed(counts, tmp_path):
    counts.write_h5ad(tmp_path / "x.h5ad")
    disk = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    for step in STEPS.values():
        with pytest.raises(ValueError, match="on disk"):
            step(disk, inplace=True)
    kept = ps.pp.select_variable_peaks(disk, 30)
    assert isinstance(kept.X, sparse.csr_matrix)
    assert pd.Index(kept.var_names).equals(ps.pp.select_variable_peaks(counts, 30).var_names)
    disk.file.close()


def test_cells_and_peaks_in_each_others_place_are_refused(counts):
    with pytest.raises(ps.DataError, match=r"named like regions of a genome.*adata\.T"):
        ps.SCALE(counts.T.copy(), 3)


def test_reads_become_fragments(counts):
    fragments = ps.pp.reads_to_fragments(counts)
    np.testing.assert_array_equal(fragments.X.toarray(), np.ceil(counts.X.toarray() / 2))
    assert (fragments.X > 0).nnz == (counts.X > 0).nnz


def test_a_poisson_model_of_reads_or_of_ones_is_warned_of(counts, caplog):
    reads = counts.copy()
    reads.X = counts.X * 2
    ps.SCALE(reads, 3, likelihood="poisson", hidden=(4,))
    assert "all counts are even, as counts of reads are" in caplog.text
    caplog.clear()
    ps.SCALE(ps.pp.binarize(counts), 3, likelihood="poisson", hidden=(4,))
    assert "all counts are 0 or 1, so a Poisson likelihood does not fit" in caplog.text
    caplog.clear()
    ps.SCALE(counts, 3, likelihood="poisson", hidden=(4,))
    ps.SCALE(reads, 3, hidden=(4,))  # set to one in any case
    model = ps.SCALE(ps.pp.reads_to_fragments(reads), 3, likelihood="poisson", hidden=(4,))
    model.counts(ps.pp.binarize(counts)[:3])  # a few cells that the model is asked about
    assert not caplog.text


STYLES = ["chr:start-end", "chr-start-end", "chr_start_end", "chr.start.end"]


@pytest.mark.parametrize("style", STYLES)
def test_peak_names_are_brought_to_one_notation(style):
    cells = ps.simulate(n_cells=10, n_peaks=4, density=0.9, seed=0)
    cells.var_names = ["chr1:1-2", "GL000194.1-3-4", "chrUn_KI270742v1_5_6", "not_a_region"]
    named = ps.pp.format_peak_names(cells, style)
    first, second = style[3], style[9]
    assert list(named.var_names) == [
        f"chr1{first}1{second}2",
        f"GL000194.1{first}3{second}4",
        f"chrUn_KI270742v1{first}5{second}6",
        "not_a_region",
    ]
    assert cells.var_names[0] == "chr1:1-2"
    assert ps.pp.format_peak_names(cells, style, inplace=True) is cells
    assert list(cells.var_names) == list(named.var_names)


def test_names_that_cannot_be_formatted(counts):
    cells = counts[:, :2].copy()
    cells.var_names = ["a", "b"]
    with pytest.raises(ps.DataError, match="no peak is named like a region of a genome"):
        ps.pp.format_peak_names(cells)
    cells.var_names = ["chr1:1-2", "chr1_1_2"]
    with pytest.raises(ps.DataError, match="two peaks would be named 'chr1:1-2'"):
        ps.pp.format_peak_names(cells)


def test_another_notation_is_offered_where_peaks_do_not_match(counts):
    model = ps.SCALE(counts, 3, hidden=(4,))
    other = ps.pp.format_peak_names(counts, "chr:start-end")
    words = r'pyro_scale.pp.format_peak_names\(adata, "chr_start_end"\)'
    with pytest.raises(ps.DataError, match=words):
        model.counts(other)
    with pytest.raises(ps.DataError, match=words):
        ps.pp.match_peaks(other, model.peak_names)
    assert model.counts(ps.pp.format_peak_names(other, "chr_start_end")).n_cells == counts.n_obs


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">i4"])
def test_dtypes_that_scipy_lacks_are_matched(counts, dtype):
    dense = anndata.AnnData(counts.X.toarray().astype(dtype), var=counts.var[[]])
    matched = ps.pp.match_peaks(dense, counts.var_names[::-1])
    np.testing.assert_array_equal(matched.X.toarray(), counts.X.toarray()[:, ::-1])
