"""`SCALE`: what it refuses, how it trains, and that the caller's process stays as it was."""

import logging
import random
import re
import signal
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_scale, train
from lightning.pytorch.callbacks import Callback

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores
from pyro_scale.programs import FORMULATIONS


@pytest.fixture(scope="module")
def adata():
    return ps.simulate(n_cells=80, n_peaks=120, n_clusters=3, density=0.1, counts=True, seed=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": 0}, "n_components=0 must be at least one"),
        ({"n_components": 2.5}, "n_components=2.5"),
        ({"n_components": True}, "n_components=True"),
        ({"n_components": "3"}, "n_components='3'"),
        ({"n_components": 81}, "n_components=81 is more than the 80 cells"),
        ({"n_latent": 0}, "n_latent=0"),
        ({"hidden": 64}, "hidden=64 must be a tuple of widths"),
        ({"hidden": (64, 0)}, "hidden=(64, 0)"),
        ({"hidden": (), "preset": "plain"}, "hidden=() is an encoder without a layer that reads"),
        ({"decoder_hidden": (1.5,)}, "decoder_hidden=(1.5,)"),
        ({"formulation": "vade"}, "formulation='vade' is not known; choose one of collapsed"),
        ({"estimator": "ELBO"}, "estimator='ELBO'"),
        (
            {"formulation": "scale", "estimator": "RenyiELBO"},
            "formulation='scale' cannot be trained by estimator='RenyiELBO'",
        ),
        ({"c": "sampled"}, "c='sampled'"),
        ({"likelihood": "gaussian"}, "likelihood='gaussian' is not known; choose 'bernoulli'"),
        ({"preset": "paper"}, "preset='paper' is not known; choose 'default' or 'plain'"),
        ({"layer": "raw"}, "layer='raw' is not in adata.layers"),
        ({"seed": -1}, "seed=-1 must be at least zero"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_an_argument_that_cannot_be_meant(adata, options, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        small_scale(adata, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_epochs": 0}, "max_epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0 must be above zero"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"validation_size": 1.0}, "validation_size=1.0"),
        ({"warmup_epochs": 4}, "warmup_epochs=4 must be below max_epochs=4"),
        ({"lr": np.inf}, "lr=inf must be a finite number"),
        ({"kl_warmup_epochs": -1}, "kl_warmup_epochs=-1 must be at least zero"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_setting_of_training_that_cannot_be_meant(adata, options, words):
    model = small_scale(adata)
    with pytest.raises(ValueError, match=re.escape(words)):
        train(model, **options)
    assert not model.is_trained


def test_numpy_integers_are_integers(adata, tmp_path):
    model = small_scale(adata, np.int64(3), hidden=[np.int32(16)], seed=np.uint8(0))
    model.save(tmp_path / "model")  # and JSON has them
    assert model.config == small_scale(adata).config


@pytest.mark.parametrize(
    "verb",
    [
        "get_latent_representation",
        "get_responsibilities",
        "get_cluster_assignments",
        "get_elbo",
        "get_marginal_ll",
        "to_anndata",
    ],
)
def test_no_result_before_training(adata, verb):
    with pytest.raises(ps.NotTrainedError, match=r"call model.train\(\) first"):
        getattr(small_scale(adata), verb)()


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_clusters_that_are_there_are_found(likelihood):
    adata = ps.simulate(400, 600, 3, density=0.1, fold=6, counts=True, seed=1)
    model = ps.SCALE(adata, 3, n_latent=5, hidden=(64,), likelihood=likelihood)
    train(model, 15, lr=2e-3)
    assert cluster_scores(adata.obs["cell_type"], model.get_cluster_assignments())["ari"] > 0.9


@pytest.mark.parametrize("preset", ["plain", "default"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_every_formulation_rises_and_moves_every_parameter(adata, formulation, preset):
    model = small_scale(adata, formulation=formulation, preset=preset)
    before = {name: p.clone() for name, p in model.vae.named_parameters()}
    settings = {"mask_rate": 0, "decoder_precision": 50.0, "lr": 3e-3, "n_particles": 20}
    train(model, 5, warmup_epochs=0, kl_warmup_epochs=0, **settings)
    still = [name for name, p in model.vae.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert (model.history["phase"] == "mixture").all()
    assert model.history["elbo_train"].is_monotonic_increasing  # by chance: 1 in 5!


def test_history_has_a_row_for_every_epoch(adata):
    history = train(small_scale(adata), 10, kl_warmup_epochs=4, validation_size=0.1).history
    assert list(history.columns) == [
        "phase",
        "kl_weight",
        "elbo_train",
        "objective",
        "elbo_validation",
    ]
    assert history.index.name == "epoch"
    assert list(history.index) == list(range(10))
    assert list(history["phase"]) == ["warm-up"] * 6 + ["mixture"] * 4
    assert list(history["kl_weight"]) == [0.25, 0.5, 0.75] + [1.0] * 7
    assert (history[["elbo_train", "elbo_validation"]] < 0).all(axis=None)


def test_without_held_out_cells_training_runs_to_the_end(adata, caplog):
    caplog.set_level(logging.INFO, logger="pyro_scale")
    history = train(small_scale(adata), 9, patience=1).history
    assert "elbo_validation" not in history
    assert len(history) == 9
    assert "no cells are held out: training runs for all 9 epochs." in caplog.messages


@pytest.mark.parametrize(("n_cells", "n_components"), [(5, 2), (5, 5), (1, 1), (30, 30)])
def test_a_handful_of_cells_is_enough(adata, n_cells, n_components):
    model = train(small_scale(adata[:n_cells], n_components), batch_size=128)
    assert np.isfinite(model.history["elbo_train"]).all()
    assert model.get_responsibilities().shape == (n_cells, n_components)


class Weights(Callback):
    """The weights at the end of every epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({k: v.clone() for k, v in pl_module.vae.state_dict().items()})


@pytest.mark.parametrize(("warmup_epochs", "more"), [(3, {"num_sanity_val_steps": 2}), (25, {})])
def test_early_stopping_goes_back_to_the_best_epoch_after_the_warm_up(adata, warmup_epochs, more):
    """Within 25 epochs of warm-up the held-out bound falls for longer than the patience."""
    weights = Weights()
    model = small_scale(adata, preset="plain", hidden=(64,))
    options = {"warmup_epochs": warmup_epochs, "kl_warmup_epochs": 5, "patience": 2, "lr": 3e-2}
    options |= {"early_stopping": True, "decoder_precision": 0}
    train(model, 100, **options, trainer_kwargs={"callbacks": [weights], **more})
    held_out = model.history["elbo_validation"]
    best = held_out.loc[max(5, warmup_epochs) :].idxmax()
    assert len(held_out) == len(weights.epochs) == best + 1 + 2 < 100
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, weights.epochs[best][name]), name
    assert not torch.equal(weights.epochs[best]["prior.loc_kd"], weights.epochs[-1]["prior.loc_kd"])


def test_arguments_of_the_trainer_are_passed_on(adata):
    class Steps(Callback):
        def on_train_end(self, trainer, pl_module):
            self.n = trainer.global_step

    steps = Steps()
    train(small_scale(adata), 4, trainer_kwargs={"limit_train_batches": 1, "callbacks": steps})
    assert steps.n == 4
    seldom = train(
        small_scale(adata), 4, validation_size=0.1, trainer_kwargs={"check_val_every_n_epoch": 2}
    )
    assert list(seldom.history["elbo_validation"].isna()) == [True, False, True, False]


@pytest.mark.parametrize("formulation", ["collapsed", "amortized"])
def test_a_seed_fixes_every_weight_whatever_the_callers_random_state(adata, formulation):
    weights = []
    for seed, callers_seed in ((7, 1), (7, 2), (8, 1)):
        torch.manual_seed(callers_seed)
        np.random.seed(callers_seed)  # noqa: NPY002
        model = train(small_scale(adata, formulation=formulation, seed=seed))
        weights.append(model.vae.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["encoder.loc.weight"], weights[2]["encoder.loc.weight"])


def process_state():
    """What belongs to the caller, beside what conftest.py looks at after every test."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "matplotlib": dict(mpl.rcParams),
        "warnings": list(warnings.filters),
        "levels": [
            logging.getLogger(name).level for name in ("", "lightning.pytorch", "pyro_scale")
        ],
        "pandas": pd.get_option("display.width"),
        "grad": torch.is_grad_enabled(),
    }


def test_the_callers_process_is_left_alone(adata, tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    random.random()
    before = process_state()
    model = train(small_scale(adata, formulation="amortized"))
    for verb in ("get_latent_representation", "get_responsibilities", "get_elbo"):
        getattr(model, verb)()
    model.get_latent_representation(give_mean=False)
    model.get_marginal_ll(n_mc_samples=2)
    ps.pl.summary(model.to_anndata(), history=model.history, save=tmp_path / "figure.png")
    model.save(tmp_path / "model")
    ps.SCALE.load(tmp_path / "model", adata)
    assert process_state() == before


def test_a_failed_training_leaves_the_callers_process_alone_too(adata):
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("stop here")

    before = process_state()
    with pytest.raises(RuntimeError, match="stop here"):
        train(small_scale(adata), trainer_kwargs={"callbacks": Fails()})
    assert process_state() == before


class CtrlC(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("epoch", "is_trained"), [(0, False), (3, False), (8, True)])
@pytest.mark.parametrize("n_components", [3, None])
def test_ctrl_c_leaves_a_model_with_its_history(adata, tmp_path, epoch, is_trained, n_components):
    """And Ctrl-C: Lightning would end the process, and be deaf to the next."""
    model, handler = small_scale(adata, n_components), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model, 10, trainer_kwargs={"callbacks": [CtrlC(epoch)]})
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(model.history) == epoch
    assert model.is_trained == is_trained
    assert not model.vae.training
    if is_trained:
        model.save(tmp_path / "model")
        again = ps.SCALE.load(tmp_path / "model", adata)
        assert len(again.history) == epoch
        np.testing.assert_array_equal(again.get_responsibilities(), model.get_responsibilities())
    train(model, 5)
    assert len(model.history) == 5
    assert model.config.n_components == model.vae.n_components


def test_another_k_keeps_the_latent_space_and_goes_on(cells):
    """The mixture alone is replaced; training then starts from it, without sweeps or a warm-up."""
    model = train(small_scale(cells), 4)
    z_nd = model.get_latent_representation()
    model.set_n_components(5)
    assert model.config.n_components == model.vae.n_components == 5
    np.testing.assert_array_equal(model.get_latent_representation(), z_nd)
    assert model.get_responsibilities().shape == (cells.n_obs, 5)
    start = model.vae.prior.loc_kd.detach().clone()
    model.train(max_epochs=2, progress_bar=False, lr=1e-4)
    assert model.history["phase"].tolist() == ["mixture", "mixture"]
    assert (model.vae.prior.loc_kd - start).abs().max() < 0.1


def test_a_k_that_is_picked_is_not_chosen_again(cells):
    model = train(small_scale(cells, n_components=None), 3, warmup_epochs=1)
    table = model.n_components_table
    assert list(table.columns) == ["valley", "silhouette", "stability"]
    assert table.index[0] == 1
    model.set_n_components(4)
    model.train(max_epochs=3, warmup_epochs=1, progress_bar=False)
    assert model.config.n_components == 4
    pd.testing.assert_frame_equal(model.n_components_table, table)


def test_a_classifier_follows_another_k(cells):
    model = train(small_scale(cells, formulation="amortized"), 2)
    model.set_n_components(4)
    model.train(max_epochs=2, progress_bar=False)
    assert model.get_responsibilities().shape == (cells.n_obs, 4)


def test_k_is_picked_after_training_and_at_most_the_number_of_cells(cells):
    with pytest.raises(ps.NotTrainedError, match=r"call model\.train"):
        small_scale(cells).set_n_components(4)
    model = train(small_scale(cells))
    with pytest.raises(ValueError, match="n_components=0"):
        model.set_n_components(0)
    with pytest.raises(ValueError, match=f"n_components=1000 is more than the {cells.n_obs} cells"):
        model.set_n_components(1000)
