"""Training that something stops before its end: what the model says of itself, and what goes on."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import small_scale, train
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

import pyro_scale as ps


class StopAfter(Callback):
    """As a callback of the user's may, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


STOPS = {
    "max_time": {"max_time": {"microseconds": 1}},
    "max_steps": {"max_steps": 2},
    "max_epochs": {"max_epochs": 2},
    "should_stop": {"callbacks": [StopAfter(1)]},
}


@pytest.mark.parametrize("n_components", [3, None])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_stopped_within_the_warm_up_the_mixture_is_started_with_a_word(
    cells, stop, n_components, caplog
):
    caplog.set_level(logging.INFO)
    model = small_scale(cells, n_components)
    train(model, 40, trainer_kwargs=stop)
    assert set(model.history["phase"]) == {"warm-up"}
    assert f"training was stopped after {len(model.history)} of 40 epochs" in caplog.text
    assert "stopped within the warm-up of 24 epochs: the mixture is initialized" in caplog.text
    assert model.is_trained
    assert model.config.n_components == model.vae.n_components
    fresh = small_scale(cells, model.vae.n_components)
    assert not torch.equal(model.vae.prior.loc_kd, fresh.vae.prior.loc_kd)
    at_means = model.get_responsibilities(kind="at_mean").argmax(1)
    assert len(np.unique(at_means)) > 1 or model.vae.n_components == 1


@pytest.mark.parametrize("n_components", [3, None])
@pytest.mark.parametrize("same_object", [True, False])
def test_a_limit_of_time_is_gone_on_from_until_the_end(cells, n_components, same_object, tmp_path):
    """Each call trains one epoch: what is left equals a run that nothing stopped, bit by bit."""
    whole = small_scale(cells, n_components)
    train(whole, 6)
    model, n_epochs = small_scale(cells, n_components), []
    for _ in range(8):
        model = model if same_object else small_scale(cells, n_components)
        kwargs = {"trainer_kwargs": STOPS["max_time"], "checkpoint": tmp_path / "kept"}
        train(model, 6, **kwargs)
        n_epochs.append(len(model.history))
    assert n_epochs == [1, 2, 3, 4, 5, 6, 6, 6]
    assert model.config.n_components == whole.config.n_components
    for name, tensor in whole.vae.state_dict().items():
        assert torch.equal(model.vae.state_dict()[name], tensor), name


@pytest.mark.parametrize("stop", [{"max_epochs": 0}, {"max_time": {"seconds": 0}}])
def test_a_limit_before_the_first_epoch_changes_nothing(cells, stop, caplog):
    model = small_scale(cells)
    before = model.vae.prior.loc_kd.clone()
    train(model, 5, trainer_kwargs=stop)
    assert model.history.empty
    assert not model.is_trained
    assert torch.equal(model.vae.prior.loc_kd, before)
    assert "training was stopped before its first epoch" in caplog.text


def test_a_k_that_has_been_trained_is_kept(cells):
    """By a run that was stopped in the mixture; one that was stopped before it chooses anew."""
    model = small_scale(cells, None)
    train(model, 6, warmup_epochs=2, trainer_kwargs={"max_epochs": 4})
    k = model.vae.n_components
    train(model, 3, warmup_epochs=0)
    assert model.vae.n_components == model.config.n_components == k
    model = small_scale(cells, None)
    train(model, 6, trainer_kwargs={"max_epochs": 1})
    train(model, 2, warmup_epochs=0)  # there is a K, for the time being
    train(model, 3, warmup_epochs=1)
    assert model.config.n_components == model.vae.n_components


def test_a_users_early_stopping_ends_training(cells, tmp_path):
    def stop():
        return EarlyStopping("elbo_train", mode="min", patience=1, check_on_train_epoch_end=True)

    model = small_scale(cells)
    for _ in range(2):
        kwargs = {"trainer_kwargs": {"callbacks": [stop()]}, "checkpoint": tmp_path / "kept"}
        train(model, 40, warmup_epochs=0, **kwargs)
        assert 1 < len(model.history) < 40
    assert torch.load(tmp_path / "kept", weights_only=True)["pyro_scale"]["finished"]


def test_an_interrupted_warm_up_is_said_when_the_model_is_asked(cells, tmp_path):
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    model = small_scale(cells)
    with pytest.raises(KeyboardInterrupt):
        train(model, 10, trainer_kwargs={"callbacks": Interrupt()})
    words = r"stopped after 2 epochs, within its warm-up, .*call model.train\(\) again"
    with pytest.raises(ps.NotTrainedError, match=words):
        model.get_cluster_assignments()
    model.save(tmp_path / "model")
    assert not ps.SCALE.load(tmp_path / "model", cells).is_trained


def test_a_line_at_the_start_of_the_mixture_and_one_at_the_end(cells, caplog):
    caplog.set_level(logging.INFO)
    train(small_scale(cells), 5)
    started = [r for r in caplog.messages if "the mixture is initialized from clusters of" in r]
    ended = [r for r in caplog.messages if r.startswith("trained 5 epochs in ")]
    assert len(started) == len(ended) == 1
    sizes = [int(size) for size in ended[0].split("[")[1].split("]")[0].split(",")]
    assert len(sizes) == 3
    assert sum(sizes) == cells.n_obs
    caplog.clear()
    train(small_scale(cells, 40), 3)
    assert "components with fewer than 3 cells: " in caplog.text


def test_a_users_own_checkpoints_are_written(cells, tmp_path):
    kwargs = {"callbacks": [ModelCheckpoint(dirpath=tmp_path / "own")]}
    train(small_scale(cells), 2, trainer_kwargs=kwargs)
    assert list((tmp_path / "own").glob("*.ckpt"))


SCRIPT = """
import sys
import pyro_scale as ps
cells = ps.simulate(n_cells=200, n_peaks=100, n_clusters=3, density=0.15, seed=0)
ps.SCALE(cells, 3, n_latent=2, hidden=(16,)).train(
    100_000, devices=2, accelerator="cpu", progress_bar=False, checkpoint=sys.argv[1],
    checkpoint_seconds=float(sys.argv[2]), batch_size=50,
)
"""


def started(tmp_path, seconds):
    """Two processes that train, after their first checkpoint."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "kept"), str(seconds)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    end = time.monotonic() + 120
    while not (tmp_path / "kept").exists() and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes")
@pytest.mark.parametrize("to_all", [True, False])
def test_sigterm_ends_two_processes(to_all, tmp_path):
    """The signal reaches both at once, as a scheduler sends it, or the first alone."""
    process = started(tmp_path, 0.05)
    try:
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in said
    finally:
        with_all = process.poll() is None
        if with_all:
            os.killpg(process.pid, signal.SIGKILL)
    assert not torch.load(tmp_path / "kept", weights_only=True)["pyro_scale"]["finished"]
