"""Cells larger than memory: read from disk by blocks, and otherwise like any others."""

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
import zarr
from scipy import sparse as sp

import pyro_scale as ps
from pyro_scale.data import CountMatrix, loader
from pyro_scale.data.backed import BackedMatrix
from pyro_scale.exceptions import DataError


@pytest.fixture(params=["h5ad", "zarr"])
def is_backed(request, tmp_path):
    """The same cells in memory and on disk, counts with zeros that are stored."""
    cells = ps.simulate(n_cells=150, n_peaks=300, n_clusters=3, density=0.1, counts=True, seed=0)
    cells.X = sp.csr_matrix(cells.X)
    cells.X.data[::50] = 0
    if request.param == "h5ad":
        cells.write_h5ad(tmp_path / "cells.h5ad")
        return cells, ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    group = zarr.open_group(tmp_path / "cells.zarr", mode="w")
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(group, "X", cells.X)
    return cells, ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=cells.obs, var=cells.var)


@pytest.mark.parametrize("binary", [True, False])
def test_cells_on_disk_are_the_cells_in_memory(monkeypatch, is_backed, binary):
    monkeypatch.setattr("pyro_scale.data.backed._CHUNK", 40)
    memory, disk = (CountMatrix.from_anndata(cells, binary=binary) for cells in is_backed)
    assert disk.is_backed
    assert not memory.is_backed
    np.testing.assert_array_equal(disk.depth, memory.depth)
    some = np.array([149, 3, 4, 5, 90, 0])
    for cells in (np.arange(150), some, some[:0]):
        theirs, ours = memory[cells].read(), disk[cells].read()
        np.testing.assert_array_equal(ours.toarray(), theirs.toarray())
        assert ours.dtype == np.float32
    np.testing.assert_array_equal(
        disk[some][np.array([1, 0])].read().toarray(), memory[some[[1, 0]]].read().toarray()
    )


@pytest.mark.parametrize("gap", [0, 60, 10**6])
@pytest.mark.parametrize("span", [1, 100, 10**6])
def test_however_rows_are_read_together_they_are_the_same(monkeypatch, is_backed, gap, span):
    monkeypatch.setattr("pyro_scale.data.backed._GAP", gap)
    monkeypatch.setattr("pyro_scale.data.backed._SPAN", span)
    memory, disk = (CountMatrix.from_anndata(cells) for cells in is_backed)
    some = np.random.default_rng(0).permutation(150)[:70]
    theirs, ours = memory[some].read(), disk[some].read()
    np.testing.assert_array_equal(ours.toarray(), theirs.toarray())


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("indptr", [0, 5, 3, 9]),  # backwards
        ("indptr", [0, 3, 5, 10]),  # beyond the entries
        ("indptr", [0, 3, 9]),  # a row short
        ("indptr", [1, 3, 5, 9]),
        ("indptr", [0.0, 3.0, 5.0, 9.0]),
        ("indices", [0, 1, 2, 3, 0, 1, 0, 1, 7]),  # no such column
        ("indices", [0, 1, 2, 3, 0, 1, 0, 1]),  # one short
        ("indices", [0, 1, 2, 3, 0, 1, 0, 1, 2**32]),
        ("indices", [0.0, 1, 2, 0, 1, 0, 1, 2, 3]),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused_by_name(part, values, tmp_path):
    indptr, indices = np.array([0, 3, 5, 9]), np.array([0, 1, 2, 0, 1, 0, 1, 2, 3])
    cells = ad.AnnData(sp.csr_matrix((np.ones(9, np.float32), indices, indptr), (3, 4)))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["X"][part]
        file["X"][part] = np.array(values)
    with pytest.raises(DataError, match="the matrix on disk cannot be read"):
        CountMatrix.from_anndata(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))


def test_every_cell_on_disk_is_seen_once_in_an_order_of_its_own(is_backed):
    counts = CountMatrix.from_anndata(is_backed[1])
    whole = counts.read().toarray()
    orders = []
    for seed in (0, 0, 1):
        batches = list(loader(counts, 16, seed=seed))
        assert max(batch.n_cells for batch in batches) == 16
        rows = torch.cat([batch.x_np.to_dense() for batch in batches]).numpy()
        assert sorted(map(bytes, rows)) == sorted(map(bytes, whole))
        orders.append(rows)
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], whole)
    in_order = torch.cat([batch.x_np.to_dense() for batch in loader(counts, 16)]).numpy()
    np.testing.assert_array_equal(in_order, whole)
    passes = loader(counts, 16, seed=0)
    first, second = (torch.cat([b.x_np.to_dense() for b in passes]) for _ in range(2))
    assert not torch.equal(first, second)


def test_training_from_disk(is_backed, monkeypatch):
    """The same start, the same kind of model, and never the whole matrix at once."""
    memory, disk = (ps.SCALE(cells, 3, n_latent=3, hidden=(16,)) for cells in is_backed)
    for name, tensor in memory.vae.state_dict().items():
        assert torch.equal(tensor, disk.vae.state_dict()[name])
    largest = []
    read = BackedMatrix.read
    monkeypatch.setattr(
        BackedMatrix, "read", lambda self: largest.append(len(self.rows)) or read(self)
    )
    monkeypatch.setattr("pyro_scale.data.dataloader._BLOCK", 4)
    for model in (memory, disk):
        model.train(30, progress_bar=False, batch_size=16, lr=1e-2, warmup_epochs=0)
    assert 0 < max(largest) <= 64
    memory_elbo, disk_elbo = (model.get_elbo().mean() for model in (memory, disk))
    assert disk_elbo == pytest.approx(memory_elbo, rel=0.02)
    result = disk.to_anndata()
    assert result.X is None
    assert list(result.obs_names) == list(is_backed[0].obs_names)
    assert result.obsm["X_scale"].shape == (150, 3)


@pytest.mark.parametrize(
    ("value", "message"), [(-1.0, "negative"), (np.nan, "NaN"), (0.5, "not whole")]
)
def test_cells_on_disk_are_checked_as_those_in_memory(is_backed, tmp_path, value, message):
    cells = is_backed[0].copy()
    cells.X = cells.X.astype(np.float32)
    cells.X.data[7] = value
    cells.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match=message):
        CountMatrix.from_anndata(ad.read_h5ad(tmp_path / "bad.h5ad", backed="r"))


FILTERS = {
    "peaks": lambda a: ps.pp.filter_peaks(a, min_cells=15),
    "cells": lambda a: ps.pp.filter_cells(a, min_peaks=30),
    "variable peaks": lambda a: ps.pp.select_variable_peaks(a, 50),
    "matched peaks": lambda a: ps.pp.match_peaks(a, list(a.var_names[:3:-1])),
    "twice": lambda a: ps.pp.filter_peaks(ps.pp.filter_cells(a, min_peaks=30), min_cells=15),
}


@pytest.mark.parametrize("step", FILTERS.values(), ids=FILTERS)
def test_filters_leave_cells_on_disk_and_the_file_open(step, is_backed, caplog):
    memory, disk = is_backed
    model = ps.SCALE(disk, 3, n_latent=3, hidden=(16,))
    model.train(1, progress_bar=False)
    one, other = step(disk), step(memory)
    assert one.var_names.equals(other.var_names)
    assert one.obs_names.equals(other.obs_names)
    counts, expected = (CountMatrix.from_anndata(a, binary=False) for a in (one, other))
    assert counts.is_backed
    assert not expected.is_backed
    for cells in (slice(None), [5, 0, 30]):
        assert not (counts[cells].read() != expected[cells].read()).nnz
    if disk.isbacked:
        assert disk.file.is_open
    assert model.get_latent_representation().shape == (150, 3)
    assert ps.SCALE(one, 3, hidden=(4,)).counts().is_backed


def test_an_annotated_copy_and_new_peaks_leave_the_file_open(is_backed):
    memory, disk = is_backed
    model = ps.SCALE(disk, 3, n_latent=3, hidden=(16,))
    model.train(1, progress_bar=False)
    for cells in (disk, disk[10:60]):
        result = model.to_anndata(cells)
        assert not result.isbacked
        assert isinstance(result.X, sp.csr_matrix)
        assert not (result.X != memory[cells.obs_names].X).nnz
        assert result.obs["scale_cluster"].notna().all()
    filled = ps.pp.match_peaks(disk[:, 5:], model.peak_names)
    assert filled.X[:, :5].nnz == 0
    assert not (filled.X[:, 5:] != memory.X[:, 5:]).nnz
    assert model.get_latent_representation(disk[::2]).shape == (75, 3)
    assert model.get_latent_representation().shape == (150, 3)


def test_a_file_that_the_user_closes_is_named(tmp_path):
    ps.simulate(n_cells=150, n_peaks=300, density=0.1).write_h5ad(tmp_path / "cells.h5ad")
    disk = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    model = ps.SCALE(disk, 3, n_latent=3, hidden=(16,))
    model.train(1, progress_bar=False)
    disk.file.close()
    with pytest.raises(DataError, match="has been closed: open it again") as told:
        model.get_latent_representation()
    assert "damaged" not in str(told.value)
    assert model.get_latent_representation(disk).shape == (150, 3)  # anndata opens it again


def test_every_cell_is_read_in_a_process_that_has_trained_with_others(is_backed, monkeypatch):
    """torch.distributed stays initialized after training on several devices."""
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    counts = CountMatrix.from_anndata(is_backed[1])
    for batch_size in (16, 150):
        assert sum(cells.n_cells for cells in loader(counts, batch_size)) == 150
        assert sum(cells.n_cells for cells in loader(counts, batch_size, seed=0)) == 150
