"""What training refuses before it touches anything, and how it leaves a model that it could not."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import small_scale, train
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision

import pyro_scale as ps
from pyro_scale.training import TrainingModule


class Began(Callback):
    def __init__(self, fails=False):
        self.began, self.fails, self.dtype = False, fails, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.began, self.dtype = True, pl_module.vae.prior.loc_kd.dtype
        if self.fails:
            raise RuntimeError("stop here")


def weights(model):
    return {name: tensor.clone() for name, tensor in model.vae.state_dict().items()}


def refused(model, words, *args, **kwargs):
    """With a message of these words, before a step, the model as it was."""
    before, seen = weights(model), Began()
    given = {**kwargs.pop("trainer_kwargs", {}), "callbacks": [seen]}
    with pytest.raises(ValueError, match=re.escape(words)):
        model.train(*args, progress_bar=False, trainer_kwargs=given, **kwargs)
    assert not seen.began
    assert not model.is_trained
    assert not model.vae.training
    after = weights(model)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.parametrize(
    "precision", ["16-true", "bf16-true", "16-mixed", "bf16-mixed", "16", "bf16", 16, "half"]
)
def test_less_than_32_bits_are_refused(cells, precision, preset):
    words = f"precision={precision!r}: the bound is a sum over all peaks"
    refused(small_scale(cells, preset=preset), words, 2, trainer_kwargs={"precision": precision})


@pytest.mark.parametrize(
    "plugin",
    [HalfPrecision("bf16-true"), MixedPrecision("bf16-mixed", "cpu")],
    ids=["half", "mixed"],  # not an address, which differs between pytest's workers
)
def test_a_plugin_does_not_get_past_it(cells, plugin):
    words = f"precision={plugin.precision!r}: "
    refused(small_scale(cells), words, 2, trainer_kwargs={"plugins": plugin})


@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.parametrize("precision", ["64-true", 64, "32-true", "32", 32, None])
def test_32_and_64_bits_train_and_leave_the_dtype(cells, precision, preset):
    model, seen = small_scale(cells, preset=preset), Began()
    train(model, 4, trainer_kwargs={"precision": precision, "callbacks": seen})
    wide = str(precision).startswith("64")
    assert seen.dtype == (torch.float64 if wide else torch.float32)
    assert {w.dtype for w in model.vae.state_dict().values()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    assert model.get_latent_representation().shape == (80, 3)


def test_a_failed_run_in_64_bits_leaves_the_dtype_too(cells):
    model = small_scale(cells)
    kwargs = {"precision": "64-true", "callbacks": Began(fails=True)}
    with pytest.raises(RuntimeError, match="stop here"):
        train(model, trainer_kwargs=kwargs)
    assert {w.dtype for w in model.vae.state_dict().values()} == {torch.float32}
    assert not model.vae.training
    assert torch.get_default_dtype() == torch.float32
    train(model, 2)


def test_precision_as_an_argument_says_where_it_goes(cells):
    with pytest.raises(TypeError, match=r"no setting 'precision'.*go in trainer_kwargs"):
        train(small_scale(cells), precision="64-true")


def test_several_devices_come_before_the_warm_up(cells):
    """Which is what has to change: with more epochs it would be refused all the same."""
    refused(small_scale(cells, None), "n_components=None on several devices", 1, devices=2)
    refused(small_scale(cells, None), "chosen after Newton sweeps or a warm-up", 1)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_keep_what_they_learnt_are_refused(cells, strategy):
    model = small_scale(cells)
    options = {"devices": 2, "accelerator": "cpu", "trainer_kwargs": {"strategy": strategy}}
    refused(model, "processes that are forked or spawned", 2, **options)


def test_a_device_that_there_is_not_leaves_the_model_to_be_asked(cells):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, so it is not refused")
    refused(small_scale(cells), "accelerator='gpu'", 2, accelerator="gpu")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"gradient_clip_val": 1.0}, "has gradient_clip_val=1.0; give train() gradient_clip"),
        ({"gradient_clip_algorithm": "norm"}, "give train() gradient_clip"),
        ({"accumulate_grad_batches": 4}, "give train() batch_size: a step is one minibatch"),
        ({"strategy": "fsdp", "accelerator": "cpu"}, "strategy"),
        ({"limit_train_batches": 2.5}, "with trainer_kwargs=['callbacks', 'limit_train_batches']"),
    ],
)
def test_arguments_of_the_trainer_are_refused_by_their_own_name(cells, kwargs, words):
    refused(small_scale(cells), words, 2, trainer_kwargs=kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gradient_clip_val": None},
        {"accumulate_grad_batches": 1},
        {"strategy": "ddp"},
        {"strategy": "auto"},
        {"plugins": []},
        {"max_epochs": -1},
    ],
)
def test_what_changes_nothing_is_not_refused(cells, kwargs):
    model = small_scale(cells)
    train(model, 3, trainer_kwargs=kwargs)
    assert len(model.history) == 3
    assert not torch.distributed.is_initialized()


def model_built_in(mode, cells, tmp_path):
    with mode:
        built = small_scale(cells)
        built.save(tmp_path / "model")
        return built, ps.SCALE.load(tmp_path / "model", cells)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_around_it_everything_is_the_same(cells, mode, tmp_path):
    expected = small_scale(cells)
    train(expected, 3)
    for model in model_built_in(mode(), cells, tmp_path):
        train(model, 3)
        with mode():
            inside = small_scale(cells)
            train(inside, 3)
            assert ps.compare(inside, cells, n_samples=20, n_cells=2, warmup_steps=1).rows
            assert ps.ladder(inside, cells, n_samples=100, n_cells=2, warmup_steps=0).frame.size
        for name, tensor in expected.vae.state_dict().items():
            assert torch.equal(model.vae.state_dict()[name], tensor)
            assert torch.equal(inside.vae.state_dict()[name], tensor)


SCRIPT = """
import pyro_scale as ps
cells = ps.simulate(n_cells=90, n_peaks=120, n_clusters=3, density=0.15, seed=0)
model = ps.SCALE(cells, 3, n_latent=2, hidden=(16,))
model.train(5, devices=2, accelerator="cpu", progress_bar=False, batch_size=32,
            checkpoint="kept", checkpoint_seconds=0)
"""


@pytest.mark.slow
def test_two_processes_train_quietly(tmp_path):
    """Nothing of Lightning's or torch's that a user could do nothing about; what ours is stays."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "default", "script.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "WARNING"},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not said, said
    kept = torch.load(tmp_path / "kept", weights_only=True)
    assert not [name for name in kept["state_dict"] if "never_used" in name]


def test_a_checkpoint_of_several_devices_is_not_gone_on_from_by_one(cells, tmp_path, monkeypatch):
    path = tmp_path / "kept"
    train(small_scale(cells), 2, checkpoint=path)
    kept = torch.load(path, weights_only=True)
    kept["pyro_scale"]["fingerprint"]["several devices"] = True
    torch.save(kept, path)
    monkeypatch.setattr(TrainingModule, "training_step", None)
    words = "several devices (True in the checkpoint, False now)"
    refused(small_scale(cells), words, 2, checkpoint=path, batch_size=32, lr=1e-2)
