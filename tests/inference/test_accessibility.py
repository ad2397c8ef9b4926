"""What a model says of peaks: imputation to memory and to disk, and where groups differ."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_scale, train
from scipy import sparse

import pyro_scale as ps
from pyro_scale.data import dense_cells
from pyro_scale.inference import accessibility, differential, imputation


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(150, 120, 3, density=0.2, counts=True, fold=8, marker_fraction=0.5, seed=1)


@pytest.fixture(scope="module", params=["bernoulli", "poisson", "plain"])
def model(request, adata):
    """A trained model that no test changes."""
    plain = request.param == "plain"
    options = {"preset": "plain"} if plain else {"likelihood": request.param}
    return train(small_scale(adata, **options), max_epochs=30, decoder_precision=1.0)


@pytest.fixture(scope="module")
def bernoulli(adata):
    return train(small_scale(adata), max_epochs=40, decoder_precision=1.0)


@pytest.fixture
def small_parts(monkeypatch):
    """Seven cells at a time."""
    monkeypatch.setattr(accessibility, "_AT_ONCE", 7 * 120)


def likelihood_mean(model):
    cells = dense_cells(model.counts())
    with torch.inference_mode():
        return model.vae.likelihood.mean(model.vae.encoder(cells)[0], cells).numpy()


@pytest.mark.usefixtures("small_parts")
def test_imputed_is_the_likelihoods_mean_at_the_mean_of_q(model, adata):
    result = model.to_anndata(adata, imputed=True)
    np.testing.assert_allclose(
        result.layers["scale_imputed"], likelihood_mean(model), rtol=1e-5, atol=1e-7
    )
    frame = model.get_normalized_accessibility(depth="observed")
    np.testing.assert_array_equal(frame.to_numpy(), result.layers["scale_imputed"])
    assert list(frame.index) == list(adata.obs_names)
    some = list(adata.var_names[[5, 2]])
    assert model.get_normalized_accessibility(peaks=some, depth="observed").equals(frame[some])


def test_typical_depth_takes_sequencing_depth_out(bernoulli, adata):
    """Of cells with the same z, the deeper has more observed accessibility and equal typical."""
    depth = np.log(np.asarray((adata.X > 0).sum(1)).ravel())
    slopes = {}
    for kind in ("typical", "observed"):
        mean = np.log(bernoulli.get_normalized_accessibility(depth=kind).mean(axis=1))
        slopes[kind] = np.polyfit(depth, mean, 1)[0]
    assert slopes["observed"] > 0.5
    assert abs(slopes["typical"]) < 0.3


@pytest.mark.usefixtures("small_parts")
def test_binary_is_above_the_mean_of_the_cell_and_of_the_peak(published, model, adata):
    """SCALE's rule, computed by SCALE."""
    raw = sparse.csr_matrix(model.counts().read())
    theirs = published.utils.binarization(likelihood_mean(model), np.asarray(raw.todense()))
    ours = model.get_binary_accessibility()
    # A probability at a threshold to the last digit may fall on either side.
    assert (ours != theirs).nnz <= 1e-3 * np.prod(ours.shape)
    assert 0.02 < ours.nnz / np.prod(ours.shape) < 0.6
    assert ours.dtype == np.int8
    layer = model.to_anndata(adata, binary=True).layers["scale_imputed_binary"]
    assert (layer != ours).nnz == 0


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "float32"}, {"dtype": "uint8"}, {"binary": True}]
)
def test_a_file_holds_the_same_as_memory(bernoulli, adata, tmp_path, suffix, options):
    path = tmp_path / f"imputed{suffix}"
    bernoulli.impute(path, adata, **options)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    file = (anndata.read_zarr if suffix == ".zarr" else anndata.read_h5ad)(path)
    assert list(file.obs_names) == list(adata.obs_names)
    assert list(file.var_names) == list(adata.var_names)
    assert list(file.obs["cell_type"]) == list(adata.obs["cell_type"])
    expected = bernoulli.to_anndata(imputed=True, binary=True).layers
    if "binary" in options:
        assert (expected["scale_imputed_binary"] != file.X).nnz == 0
        return
    divide_by = file.uns["scale_imputed"]["divide_by"]
    step = {"float32": 0, "uint8": 0.5 / 255}.get(options.get("dtype"), 2**-11)
    away = np.abs(file.X / divide_by - expected["scale_imputed"])
    assert away.max() <= step + 1e-7
    assert str(file.X.dtype) == options.get("dtype", "float16")


def test_impute_refuses_and_loses_nothing(bernoulli, adata, tmp_path, monkeypatch):
    path = tmp_path / "imputed.h5ad"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        bernoulli.impute(path)
    with pytest.raises(ValueError, match=r"ends in \.zarr or \.h5ad"):
        bernoulli.impute(tmp_path / "imputed.csv")
    with pytest.raises(ValueError, match="dtype='int' is not known"):
        bernoulli.impute(tmp_path / "a.zarr", dtype="int")
    with pytest.raises(FileNotFoundError, match="make it"):
        bernoulli.impute(tmp_path / "none" / "a.zarr")
    with pytest.raises(ValueError, match="depth='deep'"):
        bernoulli.impute(tmp_path / "a.zarr", depth="deep")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(imputation.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="GiB are free; choose another disk"):
        bernoulli.impute(path, overwrite=True)
    monkeypatch.undo()
    monkeypatch.setattr(imputation, "write_elem", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        bernoulli.impute(path, overwrite=True)
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["imputed.h5ad"]
    monkeypatch.undo()
    bernoulli.impute(path, overwrite=True)
    assert anndata.read_h5ad(path).shape == adata.shape


def test_a_dense_array_is_not_made_by_accident(bernoulli, monkeypatch):
    monkeypatch.setattr(accessibility, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"GiB of memory; write it to a file with model\.impute"):
        bernoulli.get_normalized_accessibility()
    with pytest.raises(ValueError, match="the imputed layer of 150 cells"):
        bernoulli.to_anndata(imputed=True)
    assert bernoulli.get_normalized_accessibility(peaks=bernoulli.peak_names[:1]).shape == (150, 1)


def test_differential_accessibility_finds_the_markers(bernoulli, adata):
    table = bernoulli.differential_accessibility(adata, "cell_type", n_samples=400)
    assert list(table.columns) == [
        *("prob_da", "is_da_fdr", "bayes_factor", "effect_size", "emp_effect"),
        *("est_prob1", "est_prob2", "emp_prob1", "emp_prob2"),
        *("comparison", "group1", "group2"),
    ]
    assert list(table["comparison"].unique()) == [f"type_{i} vs rest" for i in (1, 2, 3)]
    markers = []  # of every peak called for a type: whether it is one of that type's
    for name, part in table.groupby("group1"):
        assert list(part.index) == list(adata.var_names)
        called = part[part["is_da_fdr"]]
        up = called[called["effect_size"] < 0]  # est_prob2 - est_prob1
        of = adata.var.loc[up.index, "marker_of"].astype(str)
        assert len(up) > 5
        markers.extend(of == name)
        one = (adata.obs["cell_type"] == name).to_numpy()
        is_open = (adata.X > 0).toarray()
        np.testing.assert_allclose(part["emp_prob1"], is_open[one].mean(0))
        np.testing.assert_allclose(part["emp_effect"], is_open[~one].mean(0) - is_open[one].mean(0))
        estimated = part["est_prob1"].to_numpy()
        assert np.corrcoef(estimated, part["emp_prob1"])[0, 1] > 0.8
        np.testing.assert_allclose(part["effect_size"], part["est_prob2"] - estimated)
    assert np.mean(markers) > 0.8  # chance: a sixth


def test_groups_that_do_not_differ_have_no_discoveries(bernoulli):
    """Even and odd cells; and a difference that no peak reaches."""
    table = bernoulli.differential_accessibility(
        idx1=np.arange(0, 150, 2), delta=0.9, n_samples=200
    )
    assert not table["is_da_fdr"].any()
    assert "comparison" not in table
    even = bernoulli.differential_accessibility(idx1=np.arange(0, 150, 2), n_samples=2000)
    assert even["effect_size"].abs().max() < 0.15
    vanilla = bernoulli.differential_accessibility(
        idx1=np.arange(0, 150, 2), mode="vanilla", n_samples=2000
    )
    assert abs(vanilla["prob_da"].mean() - 0.5) < 0.1


def test_groups_by_name_by_mask_and_by_position_are_the_same(bernoulli, adata):
    of = adata.obs["cell_type"].astype(str).to_numpy()
    one, two = of == "type_1", of == "type_2"
    options = {"n_samples": 50, "seed": 3}
    tables = [
        bernoulli.differential_accessibility(adata, "cell_type", "type_1", "type_2", **options),
        bernoulli.differential_accessibility(None, list(of), ["type_1"], "type_2", **options),
        bernoulli.differential_accessibility(idx1=one, idx2=two, **options),
        bernoulli.differential_accessibility(
            idx1=np.flatnonzero(one), idx2=np.flatnonzero(two), **options
        ),
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table[tables[2].columns], tables[0][tables[2].columns])
    clusters = bernoulli.differential_accessibility(n_samples=20)
    assert set(clusters["group1"]) == set(bernoulli.get_cluster_assignments())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groupby": "tissue"}, "groupby='tissue' is not a column of adata.obs"),
        ({"groupby": ["a", "b"]}, "2 groups for 150 cells"),
        ({"groupby": "cell_type", "group1": "type_9"}, "group 'type_9' has no cells"),
        ({"groupby": "cell_type", "group1": "type_1", "group2": "type_1"}, "choose two groups"),
        ({"groupby": ["a"] * 150}, "all cells are in group 'a'"),
        ({"idx2": [0]}, "idx2 is given without idx1"),
        ({"idx1": [0], "groupby": "cell_type"}, "the groups are given twice"),
        ({"idx1": [150]}, "positions from 150 to 150; there are 150 cells"),
        ({"idx1": [-1]}, "positions from -1"),
        ({"idx1": np.ones(150, bool)}, "idx1 chooses every cell"),
        ({"idx1": np.zeros(150, bool)}, "idx1 chooses no cell"),
        ({"idx1": np.ones(3, bool)}, "expected a mask of 150 cells"),
        ({"idx1": [1], "idx2": ["a"]}, "idx2 has shape"),
        ({"mode": "both"}, "mode='both' is not known"),
        ({"n_samples": 0}, "n_samples=0 must be"),
        ({"n_samples": 10**7}, "n_samples=10000000 must be at most 1000000"),
    ],
)
def test_groups_that_cannot_be_compared(bernoulli, adata, options, words):
    with pytest.raises(ValueError, match=words):
        bernoulli.differential_accessibility(adata, **options)


def test_the_false_discovery_rate_is_that_of_the_chosen_set():
    rng = np.random.default_rng(0)
    prob = rng.random(300)
    chosen = differential.false_discoveries(prob, 0.2)
    assert (1 - prob[chosen]).mean() <= 0.2
    assert prob[chosen].min() > prob[~chosen].max()
    one_more = np.append(prob[chosen], prob[~chosen].max())
    assert (1 - one_more).mean() > 0.2
    assert not differential.false_discoveries(np.full(5, 0.5), 0.05).any()


@pytest.mark.parametrize("n_latent", [2, 10, 12])
@pytest.mark.parametrize("kind", ["both", "pos", "neg"])
def test_peaks_by_dimension_for_any_number_of_them(published, adata, n_latent, kind):
    """SCALE's loop has ten (C16)."""
    model = train(small_scale(adata, n_latent=n_latent), max_epochs=2)
    found = model.get_peaks_by_dimension(kind=kind, cutoff=1.5)
    assert list(found) == [str(d) for d in range(n_latent)]
    weights = model.get_decoder_weights()
    if n_latent == 10:
        theirs = published.utils.peak_selection(
            weights.to_numpy(), np.asarray(adata.var_names), kind, 1.5
        )
        assert [list(peaks) for peaks in found.values()] == [list(peaks) for peaks in theirs]
    assert sum(map(len, found.values())) > 0


def test_a_deep_decoder_has_no_weight_per_peak(adata):
    model = small_scale(adata, decoder_hidden=(8,))
    with pytest.raises(ValueError, match="only a linear decoder"):
        model.get_decoder_weights()
    with pytest.raises(ValueError, match="kind='all' is not known"):
        small_scale(adata).get_peaks_by_dimension(kind="all")


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_cells_without_a_group_are_in_none(adata, bernoulli, missing, caplog):
    caplog.set_level("INFO")
    groups = [("a", "b", missing)[cell % 3] for cell in range(adata.n_obs)]
    found = bernoulli.differential_accessibility(adata, groups, n_samples=20)
    assert found["comparison"].unique().tolist() == ["a vs rest", "b vs rest"]
    without = np.array([cell % 3 != 2 for cell in range(adata.n_obs)])
    assert f"{(~without).sum()} cells without a group are left out" in caplog.text
    expected = bernoulli.differential_accessibility(
        adata[without].copy(), [g for g, kept in zip(groups, without, strict=True) if kept],
        n_samples=20,
    )  # fmt: skip
    pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(ps.DataError, match="no cell has a group"):
        bernoulli.differential_accessibility(adata, [missing] * adata.n_obs)


def test_groups_of_a_column_keep_their_names(adata, bernoulli):
    cells = adata.copy()
    numbers = [None if cell == 0 else cell % 2 + 1 for cell in range(adata.n_obs)]
    for column in (pd.Categorical(numbers), pd.array(numbers, dtype="Int64")):
        cells.obs["group"] = column
        found = bernoulli.differential_accessibility(cells, "group", group1="1", n_samples=20)
        assert found["comparison"].unique().tolist() == ["1 vs rest"]
