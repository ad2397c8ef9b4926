"""Cells in and out: what is refused, what works and is said, and that the caller's stay his."""

import logging
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import pyro_scale as ps
from pyro_scale._validation import named_layers
from pyro_scale.data import CountMatrix, dense_cells, loader


def with_value(value):
    """A mistake: one entry of X is ``value``, in the cell named cell_3."""

    def mutate(adata):
        x = adata.X.toarray().astype(float)
        x[2, 5] = value
        adata.X = sparse.csr_matrix(x)
        return adata

    return mutate


def with_x(make):
    """A mistake: X is what ``make`` makes of the dense one."""
    return lambda adata: anndata.AnnData(make(adata.X.toarray()))


def with_names(axis, names):
    """A mistake: the first two names of an axis are ``names``."""

    def mutate(adata):
        index = getattr(adata, f"{axis}_names")
        setattr(adata, f"{axis}_names", [*names, *index[2:]])
        return adata

    return mutate


def with_empty_cell(adata):
    x = adata.X.toarray()
    x[4] = 0
    adata.X = sparse.csr_matrix(x)
    return adata


def only_a_layer(adata):
    return anndata.AnnData(obs=adata.obs, var=adata.var, layers={"raw": adata.X})


MISTAKES = {
    "negative": (with_value(-1), {}, "1 values of X are negative", "cell_3", "raw matrix"),
    "NaN": (with_value(np.nan), {}, "NaN or infinite", "cell_3", "expected counts"),
    "infinite": (with_value(np.inf), {}, "NaN or infinite", "cell_3"),
    "beyond float32": (with_value(1e300), {}, "NaN or infinite", "cell_3"),
    "not whole": (with_value(0.5), {}, "not whole numbers", "0.5", "cell_3"),
    "in a layer": (
        lambda a: anndata.AnnData(np.abs(a.X), layers={"raw": -a.X.astype(float)}),
        {"layer": "raw"},
        "values of layers['raw'] are negative",
    ),
    "empty cell": (with_empty_cell, {}, "1 of 80 cells", "cell_5", "filter_cells"),
    "missing layer": (lambda a: a, {"layer": "raw"}, "layer='raw'", "none"),
    "another layer": (only_a_layer, {"layer": "counts"}, "layer='counts'", "raw"),
    "X is None": (only_a_layer, {}, "adata.X is empty", "layer=", "raw"),
    "cell twice": (with_names("obs", "aa"), {}, "1 cell names", "'a'", "obs_names_make_unique"),
    "peak twice": (with_names("var", "aa"), {}, "1 peak names", "'a'", "var_names_make_unique"),
    "no cells": (lambda a: a[:0], {}, "0 cells and 120 peaks"),
    "no peaks": (lambda a: a[:, :0], {}, "80 cells and 0 peaks"),
    "text": (with_x(lambda x: x.astype(str)), {}, "dtype <U", "real numbers"),
    "complex": (with_x(lambda x: x.astype(complex)), {}, "dtype complex128", "real numbers"),
    "objects": (with_x(lambda x: x.astype(object)), {}, "dtype object", "real numbers"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_its_remedy(counts, mistake):
    mutate, options, *words = MISTAKES[mistake]
    wrong = mutate(counts.copy())
    with pytest.raises(ps.DataError) as caught:
        CountMatrix.from_anndata(wrong, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("thing", [None, np.ones((3, 4)), pd.DataFrame([[1]]), "cells.h5ad"])
def test_only_an_anndata_will_do(thing):
    with pytest.raises(TypeError, match=rf"AnnData.*got {type(thing).__name__}.*read_h5ad"):
        CountMatrix.from_anndata(thing)


def unsorted(x):
    """The same CSR matrix with each row's entries backwards."""
    rows = [slice(a, b) for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)]
    order = np.concatenate([np.arange(row.start, row.stop)[::-1] for row in rows])
    return sparse.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)


def duplicated(x):
    """The same CSR matrix, every entry stored as 1 and as what is left (zero, for a one)."""
    data = np.stack([np.ones_like(x.data), x.data - 1], axis=1).ravel()
    return sparse.csr_matrix((data, np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)


def with_zeros(x):
    """The same matrix with every entry stored, the zeros too."""
    n, p = x.shape
    indices, indptr = np.tile(np.arange(p), n), np.arange(0, n * p + 1, p)
    return sparse.csr_matrix((x.toarray().ravel(), indices, indptr), shape=x.shape)


FORMS = {
    "dense": lambda x: x.toarray(),
    "CSC": sparse.csc_matrix,
    "CSR array": sparse.csr_array,
    "int64": lambda x: x.astype(np.int64),
    "float64": lambda x: x.astype(np.float64),
    "bool": lambda x: x.astype(bool),
    "zeros stored": with_zeros,
    "unsorted": unsorted,
    "duplicates": duplicated,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_matrix_gives_the_same_counts(counts, form):
    x = FORMS[form](counts.X)
    expected = (counts.X > 0 if form == "bool" else counts.X).toarray()
    given = CountMatrix.from_anndata(anndata.AnnData(x, counts.obs, counts.var), binary=False)
    assert given.x.dtype == given.depth.dtype == np.float32
    assert given.x.has_canonical_format
    assert (given.x.data > 0).all()
    np.testing.assert_array_equal(given.x.toarray(), expected)
    np.testing.assert_array_equal(given.depth, expected.sum(1))


def test_what_is_changed_on_the_copy_is_said(counts, caplog):
    x = counts.X.toarray()
    x[:, (x > 0).sum(0) == 0] = 1
    x[:, [3, 7]] = 0
    counts.X = x
    caplog.set_level(logging.INFO, logger="pyro_scale")
    given = CountMatrix.from_anndata(counts)
    np.testing.assert_array_equal(given.x.toarray(), counts.X > 0)
    share = 100 * (counts.X[counts.X > 0] > 1).mean()
    said = "\n".join(caplog.messages)
    assert "dense" in said
    assert f"{share:.1f} % of the open peaks have counts above one" in said
    assert "2 of 120 peaks are open in no cell" in said


def test_nothing_is_said_of_sparse_binary_cells(cells, caplog):
    caplog.set_level(logging.INFO, logger="pyro_scale")
    CountMatrix.from_anndata(cells[:, cells.X.getnnz(0) > 0])
    assert not caplog.messages


def fingerprint(adata):
    """Every byte of an AnnData, the order of the sparse entries too."""

    def of(x):
        if sparse.issparse(x):
            return type(x), [(a.dtype, a.tobytes()) for a in (x.data, x.indices, x.indptr)]
        return x.dtype, x.tobytes()

    return (
        of(adata.X),
        {name: of(layer) for name, layer in named_layers(adata).items()},
        adata.obs.to_csv(),
        adata.var.to_csv(),
        pickle.dumps(dict(adata.uns)),
        sorted([*adata.obsm, *adata.varm, *adata.obsp]),
    )


def small(adata, **options):
    return ps.SCALE(adata, 3, 2, hidden=(8,), **options)


def trained(adata):
    model = small(adata)
    model.train(max_epochs=2, progress_bar=False)
    return model


VERBS = {
    "counts": CountMatrix.from_anndata,
    "counts of a layer": lambda a: CountMatrix.from_anndata(a, layer="raw"),
    "filter_cells": lambda a: ps.pp.filter_cells(a, min_peaks=3),
    "filter_peaks": lambda a: ps.pp.filter_peaks(a, min_cells=2),
    "SCALE": small,
    "SCALE, poisson": lambda a: small(a, likelihood="poisson"),
    "train": trained,
    "results": lambda a: trained(a).get_latent_representation(a[:, ::-1]),
    "compare": lambda a: ps.compare(small(a), a, n_cells=3, n_samples=2),
    "to_anndata": lambda a: trained(a).to_anndata(a),
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_the_callers_anndata_is_unchanged_to_the_byte(counts, verb, dense):
    counts.layers["raw"] = duplicated(unsorted(counts.X))
    counts.X = counts.X.toarray() if dense else unsorted(counts.X)
    counts.uns["note"] = {"a": [1, 2]}
    before = fingerprint(counts)
    VERBS[verb](counts)
    assert fingerprint(counts) == before


def test_filters_keep_what_they_say_and_say_what_they_keep(counts, caplog):
    caplog.set_level(logging.INFO, logger="pyro_scale")
    is_open = counts.X.toarray() > 0
    some_cells = ps.pp.filter_cells(counts, min_peaks=20)
    some_peaks = ps.pp.filter_peaks(counts, min_cells=10)
    tenth = ps.pp.filter_peaks(counts, min_cells=0.1)
    assert list(some_cells.obs_names) == list(counts.obs_names[is_open.sum(1) >= 20])
    assert list(some_peaks.var_names) == list(counts.var_names[is_open.sum(0) >= 10])
    assert list(tenth.var_names) == list(counts.var_names[is_open.sum(0) >= 8])
    assert 0 < some_cells.n_obs < 80
    assert 0 < some_peaks.n_vars < tenth.n_vars < 120

    def said(n, of, kept, bound):
        share = 100 * (kept.X > 0).sum() / is_open.sum()
        return f"kept {n} of {of}, with {share:.1f} % of the open entries ({bound})"

    assert caplog.messages == [
        said(some_cells.n_obs, "80 cells", some_cells, "min_peaks=20"),
        said(some_peaks.n_vars, "120 peaks", some_peaks, "min_cells=10"),
        said(tenth.n_vars, "120 peaks", tenth, "min_cells=0.1"),
    ]


@pytest.mark.parametrize("density", [0.003, 0.02, 0.2])
def test_the_filters_of_their_own_serve_sparse_and_dense_data(density, caplog):
    cells = ps.simulate(n_cells=600, n_peaks=3000, n_clusters=3, density=density, seed=0)
    n_open, n_cells = cells.X.getnnz(1), cells.X.getnnz(0)
    kept = ps.pp.filter_peaks(cells)
    assert kept.X.nnz >= 0.9 * cells.X.nnz
    dropped = n_cells[~cells.var_names.isin(kept.var_names)]
    assert dropped.max(initial=0) < 6  # never a peak that 1 % of the cells have
    # A bound that is one larger would lose more than a tenth, or is above 1 % of the cells.
    bound = n_cells[cells.var_names.isin(kept.var_names)].min()
    assert bound >= 6 or n_cells[n_cells > bound].sum() < 0.9 * cells.X.nnz
    kept = ps.pp.filter_cells(cells)
    assert list(kept.obs_names) == list(cells.obs_names[n_open >= 0.1 * np.median(n_open)])
    few = ps.pp.filter_peaks(cells, min_cells=int(np.sort(n_cells)[-1000]) + 1)
    assert few.n_vars < 1500
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"kept {few.n_vars} of 3000 peaks" in caplog.text


def test_cells_of_a_handful_of_peaks_are_dropped_by_default():
    cells = ps.simulate(n_cells=100, n_peaks=500, n_clusters=2, density=0.2, seed=0)
    x = cells.X.tolil()
    x[:5] = 0
    x[:5, 3] = 1
    cells.X = x.tocsr()
    assert list(ps.pp.filter_cells(cells).obs_names) == list(cells.obs_names[5:])
    assert ps.pp.filter_cells(cells, min_peaks=1).n_obs == 100


def test_filters_look_at_the_layer_they_are_given(counts):
    counts.layers["raw"] = counts.X.copy()
    counts.X = sparse.csr_matrix(counts.shape)
    assert ps.pp.filter_cells(counts, layer="raw").n_obs == 80
    with pytest.raises(ps.DataError, match=r"at least 1 open peaks \(they have 0 to 0\); change"):
        ps.pp.filter_cells(counts)
    with pytest.raises(ps.DataError, match="none of the 120 peaks is open in at least 1 of 80"):
        ps.pp.filter_peaks(counts)


def numbered(n):
    """As many cells; the only count of each is its number, from one."""
    x = np.arange(1, n + 1, dtype=np.float32)[:, None]
    return CountMatrix.from_anndata(anndata.AnnData(sparse.csr_matrix(x)), binary=False)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 400),
    seed=st.none() | st.integers(0, 2**32 - 1),
)
def test_no_cell_is_lost_repeated_or_torn_from_its_depth(n, batch_size, seed):
    batches = list(loader(numbered(n), batch_size, seed=seed))
    sizes = [batch.n_cells for batch in batches]
    assert len(batches) == -(-n // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    seen = torch.cat([batch.depth_n for batch in batches])
    assert torch.equal(torch.cat([batch.x_np.to_dense() for batch in batches])[:, 0], seen)
    in_order = torch.arange(1.0, n + 1)
    assert torch.equal(seen if seed is None else torch.msort(seen), in_order)


def test_a_seed_gives_an_order_and_each_epoch_its_own():
    counts = numbered(200)
    a, b = (loader(counts, 32, seed=5) for _ in range(2))
    epochs = [[torch.cat([batch.depth_n for batch in it]) for _ in range(2)] for it in (a, b)]
    other = torch.cat([batch.depth_n for batch in loader(counts, 32, seed=6)])
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0][0], other)


def test_a_pass_draws_nothing_from_the_callers_generator(cells):
    before = torch.get_rng_state()
    list(loader(CountMatrix.from_anndata(cells), 16))
    list(loader(CountMatrix.from_anndata(cells), 16, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_has_cells(cells, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least one"):
        loader(CountMatrix.from_anndata(cells), batch_size)


def test_all_cells_as_one_minibatch(counts):
    given = dense_cells(CountMatrix.from_anndata(counts, binary=False), dtype=torch.float64)
    assert given.x_np.dtype == given.depth_n.dtype == torch.float64
    np.testing.assert_array_equal(given.x_np.numpy(), counts.X.toarray())
    np.testing.assert_array_equal(given.depth_n.numpy(), counts.X.toarray().sum(1))
