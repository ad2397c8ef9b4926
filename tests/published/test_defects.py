"""Defects of the published SCALE (PyPI 1.1.2), each shown on it, and what happens here instead.

The numbers are those of the project's inventory of them (C1 to C27). Shown elsewhere: C3, C16, C18
(test_specificity, test_peak_results), C19 (test_original), C9 to C12 and C14 (test_read), C5 and C7
(test_data), C22 and C24 (test_cli_run); the rest in test_defects_interface.
"""

import subprocess
import sys
import warnings

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import pyro_scale as ps
from pyro_scale.inference import accessibility


@pytest.fixture
def quiet():
    """Theirs warns, and scanpy sets the number of threads."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def file(counts, tmp_path):
    counts.obs["batch"] = "a"
    counts.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def prepared(published, file, **options):
    """Read and filtered as SCALE does; genes are peaks there."""
    options = {"min_genes": 0, "min_cells": 0, "n_top_genes": -1} | options
    return published.dataset.load_dataset([str(file)], **options)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("min_peaks", "min_cells"), [(0, 0), (20, 3), (15, 0.1), (22, 12)])
def test_the_same_filters_keep_the_same_cells_and_peaks(published, file, min_peaks, min_cells):
    theirs, _, _ = prepared(published, file, min_genes=min_peaks, min_cells=min_cells)
    ours = ps.pp.filter_cells(ps.read(file), min_peaks=min_peaks)
    ours = ps.pp.binarize(ps.pp.filter_peaks(ours, min_cells=min_cells))
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var_names) == list(theirs.var_names)
    assert (ours.X != theirs.X).nnz == 0


def test_c1_it_cannot_be_imported():
    code = "import warnings; warnings.simplefilter('ignore'); import scale"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "AttributeError: module 'numpy' has no attribute 'warnings'" in told.stderr


def test_c2_its_stopping_needs_a_name_that_numpy_dropped(published, tmp_path):
    with pytest.raises(AttributeError, match=r"np\.Inf"):
        published.model.EarlyStopping(outdir=str(tmp_path))


def test_c5_it_takes_no_anndata(published, counts):
    with pytest.raises((AttributeError, TypeError)):
        published.dataset.load_dataset([counts])


@pytest.mark.usefixtures("quiet")
def test_c6_the_number_of_variable_peaks_is_not_what_was_asked(published, file):
    theirs, _, _ = prepared(published, file, n_top_genes=30)
    assert theirs.n_vars == 120
    assert ps.pp.select_variable_peaks(ps.read(file), 30).n_vars == 30


@pytest.mark.usefixtures("quiet")
def test_c7_the_users_cells_are_changed(published, counts):
    before = counts.copy()
    published.dataset.preprocessing_atac(counts, min_genes=20, min_cells=3, n_top_genes=-1)
    assert counts.shape != before.shape
    assert counts.X.max() == 1 < before.X.max()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("n_cells", [1, 5])
def test_c8_fewer_cells_than_a_minibatch(published, counts, n_cells, monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    x = torch.from_numpy(counts.X[:n_cells].toarray()).float()
    data = torch.utils.data.DataLoader(x, batch_size=32, drop_last=True)
    model = published.SCALE([120, 4, [8], []], n_centroids=1)
    with pytest.raises(ZeroDivisionError):
        model.fit(data, max_iter=1)
    ours = ps.SCALE(counts[:n_cells], 1, 2, hidden=(8,))
    ours.train(2, batch_size=32, progress_bar=False)
    assert ours.get_latent_representation().shape == (n_cells, 2)


@pytest.mark.usefixtures("quiet")
@pytest.mark.skipif(
    not hasattr(anndata.AnnData, "concatenate"),
    reason="the original joins files by AnnData.concatenate, which this anndata has no more",
)
def test_c14_peaks_are_lost_in_silence(published, counts, tmp_path, caplog):
    caplog.set_level("INFO", logger="pyro_scale")
    files = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    counts[:40, :100].write_h5ad(files[0])
    counts[40:, 20:].write_h5ad(files[1])
    theirs = published.dataset.concat_data([str(file) for file in files])
    ours = ps.read(files)
    assert theirs.n_vars == ours.n_vars == 80
    assert any("20" in message and "100" in message for message in caplog.messages)


def test_c15_the_peak_selection_needs_what_pandas_dropped(published):
    import pandas as pd

    with pytest.raises(AttributeError, match="mad"):
        published.utils.sort_by_mad(pd.DataFrame(np.eye(3)))


def test_c23_imputation_is_dense_in_memory(counts):
    """There cells x peaks in obsm; here it is asked for, and refused where it is large."""
    wide = sparse.csr_matrix((np.ones(4), np.arange(4), np.arange(5)), (4, 200_000_000))
    with pytest.raises(ValueError, match=r"would take .* GiB of memory"):
        accessibility.check_size(*wide.shape, "the imputed layer")
    model = ps.SCALE(counts, 2, 2, hidden=(8,))
    model.train(2, progress_bar=False)
    result = model.to_anndata(counts)
    assert set(result.obsm) == {"X_scale", "scale_responsibilities"}
    assert "scale_imputed" not in result.layers


def test_s7_every_call_gives_other_results(published, counts):
    """Latent space, imputation and gamma of a sampled z; here of the mean."""
    x = torch.from_numpy(counts.X.toarray()).float().clamp(max=1)
    model = published.SCALE([120, 4, [8], []], n_centroids=2).eval()
    with torch.inference_mode():
        one, two = (model.encoder(x)[0] for _ in range(2))
    assert not torch.equal(one, two)
    ours = ps.SCALE(anndata.AnnData(counts.X), 2, 2, hidden=(8,))
    ours.train(2, progress_bar=False)
    np.testing.assert_array_equal(
        ours.get_latent_representation(), ours.get_latent_representation()
    )


@pytest.mark.usefixtures("quiet")
def test_s14_its_estimate_of_k_is_at_most_six(published):
    import pandas as pd

    adata = ps.simulate(300, 300, 10, density=0.15, marker_fraction=0.9, fold=20, seed=1)
    assert published.utils.estimate_k(pd.DataFrame(adata.X.toarray().T.astype(float))) <= 6
    model = ps.SCALE(adata, None, hidden=(32,))
    model.train(30, progress_bar=False)
    assert abs(model.config.n_components - 10) <= 2
