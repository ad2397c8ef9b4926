"""A model on disk comes back exactly, or not at all and with a reason; so does the AnnData."""

import json
import re
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_scale, train
from helpers.corrupt_files import fix_checksums
from safetensors.torch import load_file, save_file

import pyro_scale as ps
from pyro_scale.serialization.model_dir import SCHEMA_VERSION


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(n_cells=40, n_peaks=60, n_clusters=3, density=0.2, counts=True, seed=1)


@pytest.fixture(scope="module")
def model(adata):
    """A trained model that no test changes."""
    return train(small_scale(adata))


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


OPTIONS = {
    "default": {},
    "plain": {"preset": "plain"},
    "poisson": {"likelihood": "poisson"},
    "plain, poisson": {"preset": "plain", "likelihood": "poisson"},
    "amortized": {"formulation": "amortized"},
    "deep decoder": {"hidden": (), "decoder_hidden": (8, 4)},
    "estimator": {"formulation": "structured", "estimator": "TraceEnumMeanField_ELBO"},
    "layer, seed": {"layer": "raw", "seed": 5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_was_saved_is_what_is_loaded(adata, tmp_path, options):
    adata = adata.copy()
    adata.layers["raw"] = adata.X.copy()
    model = train(small_scale(adata, **options))
    model.save(tmp_path / "new" / "model")
    loaded = ps.SCALE.load(tmp_path / "new" / "model", adata)
    assert loaded.config == model.config
    assert loaded.history.equals(model.history)
    assert list(loaded.peak_names) == list(model.peak_names)
    assert repr(loaded) == repr(model)
    assert not loaded.vae.training
    weights = loaded.vae.state_dict()
    assert weights.keys() == model.vae.state_dict().keys()
    for name, value in model.vae.state_dict().items():
        assert torch.equal(weights[name], value), name
    for verb in ("get_latent_representation", "get_responsibilities"):
        np.testing.assert_array_equal(getattr(loaded, verb)(), getattr(model, verb)())
    assert loaded.get_elbo().equals(model.get_elbo())
    train(loaded, 1)  # and it can go on


def test_the_table_of_the_choice_of_k_comes_back(adata, tmp_path):
    model = train(small_scale(adata, n_components=None), 2, warmup_epochs=1)
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", adata)
    assert len(loaded.n_components_table) == 2  # forty cells allow no more clusters
    pd.testing.assert_frame_equal(loaded.n_components_table, model.n_components_table)


def test_batch_offsets_of_an_older_schema_are_converted(adata, tmp_path):
    """In schema 5 a cell's batch was encoded by a one, and is by a seven."""
    adata = adata.copy()
    adata.obs["donor"] = ["a", "b"] * 20
    for decoder_hidden in ((), (8,)):
        folder = tmp_path / f"model{len(decoder_hidden)}"
        model = train(small_scale(adata, batch_key="donor", decoder_hidden=decoder_hidden))
        model.save(folder)
        weights = load_file(folder / "weights.safetensors")
        name = "likelihood.hidden.0.weight" if decoder_hidden else "likelihood.peaks.weight"
        weights[name][:, -2:] *= 7
        save_file(weights, folder / "weights.safetensors")
        content = json.loads((folder / "model.json").read_text())
        del content["n_components_table"]
        (folder / "model.json").write_text(json.dumps(content | {"schema_version": 5}))
        fix_checksums(folder)
        loaded = ps.SCALE.load(folder, adata)
        torch.testing.assert_close(loaded.vae.state_dict()[name], model.vae.state_dict()[name])
        np.testing.assert_allclose(
            loaded.get_normalized_accessibility(), model.get_normalized_accessibility(), rtol=1e-5
        )


def test_an_untrained_model_comes_back_untrained(adata, tmp_path):
    small_scale(adata).save(tmp_path / "model")
    assert not ps.SCALE.load(tmp_path / "model", adata).is_trained


def test_a_loaded_model_matches_peaks_by_name(adata, model, folder):
    loaded = ps.SCALE.load(str(folder), adata[:, ::-1])
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    with pytest.raises(ps.DataError, match="2 of the model's 60 peaks are not in the AnnData"):
        ps.SCALE.load(folder, adata[:, 2:])


def test_nothing_saved_can_execute(folder):
    assert {path.name for path in folder.iterdir()} == {"model.json", "weights.safetensors"}
    model = json.loads((folder / "model.json").read_text(), parse_constant=pytest.fail)
    assert model["schema_version"] == SCHEMA_VERSION
    assert model["versions"]["pyro-scale"] == ps.__version__


def rewrite(change):
    """A damage: model.json after ``change``, with checksums as if it had been saved so."""

    def damage(folder):
        content = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(change(content)))
        fix_checksums(folder)

    return damage


def write(name, content):
    """A damage: the file ``name`` has other content."""
    return lambda folder: (folder / name).write_bytes(content)


def unchecked(**changes):
    """A damage: other values in model.json, with its old checksum."""

    def damage(folder):
        content = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(content | changes))

    return damage


def cut(name):
    """A damage: the file ``name`` ends half-way."""

    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def other_weights(change):
    """A damage: the weights after ``change``."""

    def damage(folder):
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")
        fix_checksums(folder)

    return damage


def peaks(change):
    """A damage: other names of peaks."""
    return rewrite(lambda m: m | {"peak_names": change(m["peak_names"])})


def configured(**options):
    """A damage: other options in the configuration."""
    return rewrite(lambda m: m | {"config": m["config"] | options})


DAMAGES = {
    "no folder": (shutil.rmtree, "does not hold a saved model"),
    "no weights": (remove("weights.safetensors"), "weights.safetensors is missing"),
    "no description": (remove("model.json"), "model.json is missing"),
    "JSON cut": (cut("model.json"), "holds a damaged model"),
    "not text": (write("model.json", b"\xff\xfe\x00"), "holds a damaged model"),
    "not an object": (write("model.json", b"[]"), "holds a damaged model"),
    "no schema": (write("model.json", b'{"config": {}}'), "schema_version"),
    "weights cut": (cut("weights.safetensors"), "holds a damaged model"),
    "weights empty": (write("weights.safetensors", b""), "holds a damaged model"),
    "a later schema": (
        rewrite(lambda m: m | {"schema_version": SCHEMA_VERSION + 1}),
        f"has schema version {SCHEMA_VERSION + 1}; this version reads 5 and {SCHEMA_VERSION}",
    ),
    "one more digit": (
        lambda folder: (folder / "model.json").write_text(
            (folder / "model.json").read_text().replace('"seed": 0', '"seed": 10')
        ),
        "damaged model: model.json changed after it was saved",
    ),
    "no checksums": (
        lambda folder: (folder / "model.json").write_text('{"schema_version": 5}'),
        r"has the keys \['schema_version'\]; expected",
    ),
    "a checksum of another kind": (unchecked(sha256=[1]), "model.json changed after it was saved"),
    "history changed": (unchecked(history=[]), "model.json changed after it was saved"),
    "peak renamed": (unchecked(peak_names=["a"] * 60), "model.json changed after it was saved"),
    "history of nothing": (rewrite(lambda m: m | {"history": 5}), "not a list of rows"),
    "history of one epoch": (
        rewrite(lambda m: m | {"history": {"epoch": 1}}),
        "not a list of rows",
    ),
    "history of uneven epochs": (
        rewrite(lambda m: m | {"history": [{"epoch": 0}, {"epoch": 1, "lr": 1}]}),
        "rows that differ",
    ),
    "history of lists": (rewrite(lambda m: m | {"history": [{"epoch": [0]}]}), "differ"),
    "a table of nothing": (rewrite(lambda m: m | {"n_components_table": 5}), "not a list of rows"),
    "trained in words": (rewrite(lambda m: m | {"is_trained": "yes"}), "is_trained is not true"),
    "peaks of numbers": (peaks(lambda p: [*p[1:], 1]), "not a list of names"),
    "peaks repeated": (peaks(lambda p: [*p[1:], p[1]]), "repeats 1 names"),
    "fewer peaks": (peaks(lambda p: p[1:]), r"shape \(60.*ask for \(59"),
    "another K": (configured(n_components=4), r"prior.loc_kd has shape \(3, 3\)|\(4,"),
    "another width": (configured(hidden=[17]), r"shape \(3, 16\), .*ask for \(3, 17"),
    "a width": (configured(hidden=16), "hidden=16"),
    "unknown option": (configured(colour="red"), "colour.*not known"),
    "configuration of a list": (
        rewrite(lambda m: m | {"config": []}),
        "config is not an object",
    ),
    "unknown formulation": (configured(formulation="vade"), "formulation='vade'.* is not known"),
    "a word that is a number": (configured(layer=3), "layer=3 must be a string, or None"),
    "a layer of the size of a disk": (configured(hidden=[10**12]), "hidden=.*at most 1048576"),
    "layers without end": (configured(hidden=[1] * 10**5), "has 100000 layers"),
    "batches of none": (configured(batches=["a", "b"]), "without batch_key"),
    "a weight less": (other_weights(lambda w: w.pop("prior.loc_kd")), "prior.loc_kd is missing"),
    "a weight more": (
        other_weights(lambda w: w.update(more=torch.zeros(1))),
        "more is not one of this model",
    ),
    "a weight of NaN": (
        other_weights(lambda w: w["prior.loc_kd"].fill_(torch.nan)),
        "prior.loc_kd has values that are not finite",
    ),
    "weights of whole numbers": (
        other_weights(lambda w: w.update({"prior.loc_kd": torch.ones(3, 3, dtype=torch.int64)})),
        "prior.loc_kd is of dtype I64; expected real numbers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_not_loaded(adata, folder, damage):
    do, words = DAMAGES[damage]
    do(folder)
    with pytest.raises(ps.ModelFileError, match=words) as caught:
        ps.SCALE.load(folder, adata)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_byte_that_changed_is_noticed_wherever_it_is(adata, folder, name):
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ps.ModelFileError, match=re.escape(str(folder))):
            ps.SCALE.load(folder, adata)


def test_a_model_that_failed_to_train_is_not_saved(adata, tmp_path):
    model = small_scale(adata)
    with torch.no_grad():
        model.vae.prior.loc_kd[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"prior\.loc_kd has values that are not finite"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_is_overwritten_only_when_asked_for(adata, folder):
    before = content(folder.parent)
    other = train(small_scale(adata, seed=9))
    with pytest.raises(FileExistsError, match=r"not empty; choose another folder or overwrite"):
        other.save(folder)
    assert content(folder.parent) == before
    other.save(folder, overwrite=True)
    loaded = ps.SCALE.load(folder, adata)
    assert torch.equal(loaded.vae.prior.loc_kd, other.vae.prior.loc_kd)
    assert content(folder.parent).keys() == before.keys()  # nothing beside it is left


@pytest.mark.parametrize("overwrite", [False, True])
def test_saving_destroys_nothing_but_a_model(model, folder, overwrite):
    (folder / "thesis.txt").write_text("years of work")
    (folder.parent / "file").write_text("more")
    before = content(folder.parent)
    with pytest.raises(FileExistsError, match=r"choose another folder"):
        model.save(folder, overwrite=overwrite)
    with pytest.raises(NotADirectoryError, match="is a file; choose a folder"):
        model.save(folder.parent / "file", overwrite=overwrite)
    assert content(folder.parent) == before


def test_results_survive_an_h5ad(adata, model, tmp_path):
    result = model.to_anndata(adata)
    result.write_h5ad(tmp_path / "result.h5ad")
    read = anndata.read_h5ad(tmp_path / "result.h5ad")
    np.testing.assert_array_equal(read.obsm["X_scale"], model.get_latent_representation())
    np.testing.assert_array_equal(read.obsm["scale_responsibilities"], model.get_responsibilities())
    assert list(read.obs["scale_cluster"]) == list(model.get_cluster_assignments())
    assert list(read.obs["scale_cluster"].cat.categories) == ["0", "1", "2"]
    assert list(read.obs["cell_type"]) == list(adata.obs["cell_type"])
    assert (read.X != adata.X).nnz == 0
    config = dict(read.uns["scale"]["config"])
    assert config["formulation"] == "collapsed"
    assert list(config["hidden"]) == [16]
    assert read.uns["scale"]["versions"]["pyro-scale"] == ps.__version__


def test_without_an_anndata_the_results_have_the_names_and_the_counts(adata, model):
    result = model.to_anndata()
    assert list(result.obs_names) == list(adata.obs_names)
    assert list(result.var_names) == list(adata.var_names)
    np.testing.assert_array_equal(result.X.toarray(), adata.X.toarray() > 0)
    assert set(result.obsm) == {"X_scale", "scale_responsibilities"}
    result.X.data[:] = 7  # a copy
    np.testing.assert_array_equal(model.counts().x.toarray(), adata.X.toarray() > 0)
