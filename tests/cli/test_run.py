"""Every flag of the original's command line, under its own name, takes effect."""

import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import call

import pyro_scale as ps
from pyro_scale.cli._options import join_width_options


@pytest.fixture(scope="module")
def cells():
    return ps.simulate(60, 80, 3, density=0.2, counts=True, seed=1)


@pytest.fixture(scope="module")
def file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture
def trained_with(monkeypatch):
    """What `train` is called with; it then trains for two epochs."""
    seen = {}
    train = ps.SCALE.train

    def two_epochs(self, **kwargs):
        seen.update(kwargs)
        train(self, 2, progress_bar=False)

    monkeypatch.setattr(ps.SCALE, "train", two_epochs)
    return seen


def run(file, folder, *flags):
    told = call(
        "run", *join_width_options([str(file), "-o", str(folder / "out"), *map(str, flags)])
    )
    assert told.exit_code == 0, told.output
    return told.stdout, anndata.read_h5ad(folder / "out" / "adata.h5ad")


def configured(result):
    return result.uns["scale"]["config"]


QUICK = ("--n_centroids", 3, "--embed", "none")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--latent", 4), "n_latent", 4),
        (("-l", 4), "n_latent", 4),
        (("--encode_dim", 24, 16), "hidden", [24, 16]),
        (("--hidden", "24,16"), "hidden", [24, 16]),
        (("--decode_dim", 12), "decoder_hidden", [12]),
        (("--seed", 7), "seed", 7),
        (("--likelihood", "poisson"), "likelihood", "poisson"),
        (("--preset", "plain", "--hidden", 8), "preset", "plain"),
    ],
)
@pytest.mark.usefixtures("trained_with")
def test_flags_of_the_model(file, tmp_path, flags, name, value):
    _, result = run(file, tmp_path, *QUICK, *flags)
    found = configured(result)[name]
    assert (list(found) if isinstance(value, list) else found) == value
    assert configured(result)["n_components"] == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lr", 0.01), {"lr": 0.01}),
        (("-b", 16), {"batch_size": 16}),
        (("--max_iter", 7, "--batch_size", 32), {"max_epochs": 4}),  # of two steps each
        (("-i", 1), {"max_epochs": 1}),
        (("--weight_decay", 0.5), {"decoder_precision": 0.5 * 60}),
        (("--gpu", -1), {"accelerator": "cpu", "devices": 1}),
        (("-g", 2), {"accelerator": "gpu", "devices": "2,"}),
        (("--early-stopping",), {"early_stopping": True}),
        ((), {"max_epochs": None, "batch_size": None, "early_stopping": False}),
    ],
)
def test_flags_of_training(file, tmp_path, trained_with, flags, expected, monkeypatch):
    monkeypatch.setattr(sys.modules["pyro_scale.cli.run"], "_n_gpus", lambda: 3)
    run(file, tmp_path, *QUICK, *flags)
    assert {name: trained_with[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "keep"),
    [
        (("--min_peaks", 20), lambda x: x[x.sum(1) >= 20]),
        (("--min_peaks", 0.25), lambda x: x[x.sum(1) >= 20]),
        (("--max_peaks", 20), lambda x: x[x.sum(1) <= 20]),
        (("--min_cells", 10), lambda x: x[:, x.sum(0) >= 10]),
        (("--low", 0.25), lambda x: x[:, x.sum(0) >= 15]),
        (("-x", 0.25), lambda x: x[:, x.sum(0) >= 15]),
        (("--high", 0.25), lambda x: x[:, x.sum(0) <= 15]),
        (("--n_feature", 30), lambda x: x[:, :30]),
        (("--n_feature", -1), lambda x: x),
    ],
)
@pytest.mark.usefixtures("trained_with")
def test_flags_of_the_filters(file, tmp_path, cells, flags, keep):
    x = cells.X.toarray() > 0
    _, result = run(file, tmp_path, *QUICK, "--min-cells", 0, *flags)
    assert result.shape == keep(x).shape


@pytest.mark.usefixtures("trained_with")
def test_flags_of_the_outputs(file, tmp_path, cells):
    labels = pd.DataFrame({"cell": cells.obs_names[::-1], "label": cells.obs["cell_type"][::-1]})
    labels.to_csv(tmp_path / "labels.tsv", sep="\t", header=False, index=False)
    flags = ("--impute", "--binary", "--cluster_method", "kmeans", "--embed", "tSNE")
    told, result = run(
        file, tmp_path, "-k", 3, *flags, "--reference", tmp_path / "labels.tsv", "--verbose"
    )
    assert set(result.obs["scale_kmeans"]) == {"0", "1", "2"}
    assert "X_tsne" in result.obsm
    assert list(result.obs["label"]) == list(cells.obs["cell_type"])
    for words in ("against obs['label']", "clusters (kmeans)", "training settings", "warm-up"):
        assert words in told
    out = tmp_path / "out"
    model = ps.SCALE.load(out / "model", result)
    imputed = anndata.read_h5ad(out / "imputed.h5ad")
    expected = model.get_normalized_accessibility(depth="observed")
    np.testing.assert_allclose(imputed.X, expected, atol=2**-11)
    binary = anndata.read_h5ad(out / "imputed_binary.h5ad")
    assert (model.get_binary_accessibility() != binary.X).nnz == 0
    peaks = pd.read_csv(out / "specific_peaks.tsv", sep="\t", dtype=str)
    assert set(peaks["peak"]) <= set(result.var_names)
    assert set(peaks["cluster"]) <= {"0", "1", "2"}


@pytest.mark.usefixtures("trained_with")
def test_several_files_and_a_batch_that_is_used(file, tmp_path, cells):
    cells[:, 10:].write_h5ad(tmp_path / "other.h5ad")
    told, result = run(
        file, tmp_path, *QUICK, "-d", tmp_path / "other.h5ad", "--batch_key", "sample"
    )
    assert result.n_obs == 120
    assert set(result.obs["sample"]) == {"cells", "other"}
    assert sorted(configured(result)["batches"]) == ["cells", "other"]
    assert "70 peaks" in told


def test_a_trained_model_is_used_on_new_cells_without_training(file, tmp_path, cells, monkeypatch):
    _, first = run(file, tmp_path, *QUICK, "--max-epochs", 2, "--min-cells", 0)
    monkeypatch.setattr(ps.SCALE, "train", None)  # it would fail
    new = cells[::-1, 5:].copy()
    new.write_h5ad(tmp_path / "new.h5ad")
    (tmp_path / "again").mkdir()
    told, result = run(
        tmp_path / "new.h5ad", tmp_path / "again", "--pretrain", tmp_path / "out" / "model"
    )
    assert "5 of the model's 80 peaks" in told
    assert "not trained" in told
    assert list(result.var_names) == list(first.var_names)
    assert not (tmp_path / "again" / "out" / "model").exists()


def test_k_is_chosen_and_another_k_is_picked_from_the_table(file, tmp_path):
    told, _ = run(file, tmp_path, "--embed", "none", "--max-epochs", 2, "--min-cells", 0)
    assert "valley" in told
    assert "silhouette" in told
    assert "stability" in told
    (tmp_path / "more").mkdir()
    model = tmp_path / "out" / "model"
    told, result = run(file, tmp_path / "more", "--pretrain", model, "-k", 4, "--embed", "none")
    assert f"going on from {model} with 4 components" in told
    assert result.obs["scale_cluster"].cat.categories.tolist() == ["0", "1", "2", "3"]
    saved = ps.SCALE.load(tmp_path / "more" / "out" / "model", result)
    assert saved.config.n_components == 4
    assert len(saved.n_components_table) > 1  # the table from which it was picked


def test_a_model_of_scale_goes_on(published, file, tmp_path, cells):
    model = published.SCALE([80, 4, [8], []], n_centroids=3).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    told, result = run(file, tmp_path, "--pretrain", tmp_path / "model.pt", "--embed", "none")
    x = torch.from_numpy(cells.X.toarray()).float().clamp(max=1)
    with torch.inference_mode():
        mean = model.encoder(x)[1]
    np.testing.assert_allclose(result.obsm["X_scale"], mean, atol=1e-5)
    assert "K=3, D=4" in told


@pytest.mark.usefixtures("trained_with")
def test_cells_without_a_label_are_not_scored(cells, tmp_path):
    some = cells.copy()
    some.obs["cell_type"] = some.obs["cell_type"].where(np.arange(60) >= 7)
    some.write_h5ad(tmp_path / "cells.h5ad")
    told, _ = run(tmp_path / "cells.h5ad", tmp_path, *QUICK, "--label", "cell_type")
    assert "7 cells without a label are left out" in told
    assert "nan" not in told


@pytest.mark.usefixtures("trained_with")
def test_a_model_with_batches_says_what_it_needs(file, tmp_path, cells):
    some = cells.copy()
    some.obs["donor"] = ["a", "b"] * 30
    some.write_h5ad(tmp_path / "cells.h5ad")
    run(tmp_path / "cells.h5ad", tmp_path, *QUICK, "--batch-key", "donor")
    told = call("run", file, "-o", tmp_path / "new", "--pretrain", tmp_path / "out" / "model")
    assert told.exit_code == 1
    assert "the cells need a column obs['donor'] with one of a, b" in told.stderr


@pytest.mark.usefixtures("trained_with")
def test_one_run_leaves_nothing_of_another(file, tmp_path):
    run(file, tmp_path, *QUICK, "--impute")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    told, _ = run(file, tmp_path, *QUICK, "--overwrite")
    assert "removed files of an earlier run: imputed.h5ad" in told
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"adata.h5ad", "specific_peaks.tsv", "model", "notes.txt"}


@pytest.mark.usefixtures("trained_with")
def test_an_input_is_never_replaced(file, tmp_path):
    run(file, tmp_path, *QUICK)
    out = tmp_path / "out"
    before = (out / "adata.h5ad").read_bytes()
    told = call("run", out / "adata.h5ad", "-o", out, "--overwrite")
    assert told.exit_code == 1
    assert "is an input and would be replaced; choose another -o" in told.stderr
    assert (out / "adata.h5ad").read_bytes() == before


def test_what_is_trained_is_not_trained_or_filtered_otherwise(file, tmp_path):
    told = call("run", file, "-o", tmp_path / "out", "--pretrain", "m", "--lr", 4, "--min_cells", 3)
    assert told.exit_code == 1
    words = "nothing is trained or filtered: leave out --lr, --min-cells"
    assert words in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--embed", "umap"), ("--cluster_method", "leiden")])
def test_what_is_not_installed_is_told_before_the_work(file, tmp_path, monkeypatch, flags):
    monkeypatch.setattr("pyro_scale.cli._files.find_spec", lambda _: None)
    told = call("run", file, "-o", tmp_path / "out", "--embed", "none", *flags)
    assert told.exit_code == 1
    assert told.stderr.startswith("error: ")
    assert 'pip install "pyro-scale[scanpy]"' in told.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told_before_the_work(file, tmp_path):
    (tmp_path / "taken").write_text("a file")
    told = call("run", file, "-o", tmp_path / "taken" / "out")
    assert told.exit_code == 1
    assert "cannot be written to" in told.stderr
    assert "read 60 cells" not in told.stdout


MISTAKES = {
    "gpu": (["--gpu", "99"], "--gpu 99: torch sees"),
    "no file": ([], "no file is given; for example: pyro-scale run cells.h5ad -k 8"),
    "embed": (["--embed", "PCA"], "--embed 'pca' is not known; choose one of umap, tsne, none"),
    "clusters": (["--cluster_method", "louvain"], "--cluster-method 'louvain' is not known"),
    "resolution": (["--resolution", "0"], "--resolution 0.0 must be above zero"),
    "both": (["--max-epochs", "2", "--max_iter", "3"], "--max-epochs and --max-iter both set"),
    "iterations": (["--max_iter", "0"], "--max-iter 0 must be at least one"),
    "parse_widths": (["--encode_dim", "wide"], "--hidden 'wide': expected widths such as 1024,128"),
    "join": (["--join", "left"], "join='left' is not known; choose 'inner' or 'outer'"),
    "pretrain": (["--pretrain", "none"], "none does not hold a saved model"),
    "batch": (["--batch_key", "donor"], "batch_key='donor' is not a column of adata.obs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_not_known_is_refused(file, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    flags, words = MISTAKES[name]
    told = call("run", *([] if name == "no file" else [file]), "-o", "out", *flags)
    assert told.exit_code == 1
    assert words in told.stderr
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch):
    """The shell leaves it in --output=~/result and within quotes."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    cells = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    cells.write_h5ad(home / "cells.h5ad")
    labels = "".join(f"{name}\ta\n" for name in cells.obs_names)
    (home / "labels.tsv").write_text(labels)
    fast = ["-k", 2, "--max-epochs", 2]
    told = call("run", "~/cells.h5ad", "--output=~/out", "--label=~/labels.tsv", *fast)
    assert told.exit_code == 0, told.output
    told = call("run", "~/cells.h5ad", "--output=~/more", "--pretrain=~/out/model", "--embed=none")
    assert told.exit_code == 0, told.output
    told = call("compare", "~/cells.h5ad", "-k", 2, "--json=~/a.json", "--plot=~/a.png",
                "--n-cells", 2, "--n-samples", 4)  # fmt: skip
    assert told.exit_code in (0, 2), told.output
    model = ps.SCALE.load("~/out/model", cells)
    model.save("~/again")
    model.impute("~/imputed.h5ad")
    ps.pl.occupancy(model.to_anndata(), save="~/figure.png")
    ps.SCALE(cells, 2, hidden=(4,)).train(1, checkpoint="~/kept", progress_bar=False)
    assert not list(here.iterdir())
    expected = {"out", "more", "again", "imputed.h5ad", "figure.png", "kept", "a.json", "a.png"}
    assert expected <= {path.name for path in home.iterdir()}
    assert ps.read("~/imputed.h5ad").shape == (40, model.counts().n_peaks)
    with pytest.raises(FileNotFoundError, match="home"):
        ps.read("~/none.h5ad")


def test_nullable_strings_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    cells.obs["barcode"] = pd.array([f"cell {n}" for n in range(39)] + [None], dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        cells.write_h5ad("cells.h5ad")
    told = call("run", "cells.h5ad", "-k", 2, "--max-epochs", 2, "--embed", "none", "--impute")
    assert told.exit_code == 0, told.output
    for name in ("adata", "imputed"):
        written = ps.read(f"scale_output/{name}.h5ad")
        assert written.obs["barcode"].isna().sum() == 1
        assert written.obs["barcode"].iloc[1] == "cell 1"
    assert not anndata.settings.allow_write_nullable_strings


def test_what_cannot_be_written_is_said_before_training(tmp_path, monkeypatch):
    """A file of h5ad cannot hold it, but other formats can, and a cell of another package."""
    monkeypatch.chdir(tmp_path)
    cells = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    cells.write_h5ad("cells.h5ad")

    def read(*args, **kwargs):
        cells.uns["mine"] = {"handle": object()}
        return cells

    monkeypatch.setattr("pyro_scale.cli._files.read", read)
    monkeypatch.setattr(ps.SCALE, "train", None)
    told = call("run", "cells.h5ad", "-k", 2)
    assert told.exit_code == 1
    assert told.stderr.startswith("error: the cells cannot be written to an h5ad file")
    assert "handle" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
