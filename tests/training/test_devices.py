"""Several processes are one: the same weights and history from the same minibatches."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from helpers import small_scale, small_vae

import pyro_scale as ps
from pyro_scale.data import CountMatrix, loader
from pyro_scale.objectives import CLOSED_FORMS, OBJECTIVES, Objective, evaluate
from pyro_scale.programs import CellBatch, Lsi, MixtureVAE
from pyro_scale.training import TrainingConfig, TrainingModule
from pyro_scale.training.trainer import is_one

SCRIPT = """
import json, os, sys
import pyro.distributions as dist
import pyro_scale as ps
from pyro_scale.programs import Encoder

class WithoutNoise(dist.Normal):  # the draws of several processes are not those of one
    def rsample(self, sample_shape=()):
        return self.loc.expand(sample_shape + self.loc.shape)

Encoder.q_z = staticmethod(lambda loc, var: WithoutNoise(loc, var.sqrt()).to_event(1))

devices, preset, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
cells = ps.simulate(n_cells=90, n_peaks=120, n_clusters=3, density=0.15, seed=0)
model = ps.SCALE(cells, 3, n_latent=2, hidden=(16,), preset=preset)
model.train(
    6, devices=devices, accelerator="cpu", progress_bar=False, batch_size=32, mask_rate=0,
    validation_size=0.2, warmup_epochs=0,
)
if int(os.environ.get("LOCAL_RANK", 0)) == 0:
    model.save(path + "/model", overwrite=True)
    with open(path + "/elbo.json", "w") as file:
        json.dump(model.history.elbo_train.tolist() + model.history.elbo_validation.tolist(), file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "plain"])
def test_two_processes_train_the_same_model_as_one(tmp_path, preset):
    (tmp_path / "script.py").write_text(SCRIPT)
    states, histories = [], []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        command = [sys.executable, str(tmp_path / "script.py"), str(devices), preset, str(folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        cells = ps.simulate(n_cells=90, n_peaks=120, n_clusters=3, density=0.15, seed=0)
        states.append(ps.SCALE.load(folder / "model", cells).vae.state_dict())
        histories.append(json.loads(Path(folder / "elbo.json").read_text()))
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-5)
    for name, tensor in states[0].items():
        np.testing.assert_allclose(states[1][name], tensor, rtol=5e-3, atol=5e-4, err_msg=name)


def test_parts_of_minibatches_make_the_minibatches(cells):
    counts = CountMatrix.from_anndata(cells)
    whole = list(loader(counts, 32, seed=3))
    parts = [list(loader(counts, 32, seed=3, part=(i, 3))) for i in range(3)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        together = np.concatenate([piece.x_np.to_dense() for piece in pieces])
        assert sorted(map(bytes, together)) == sorted(map(bytes, batch.x_np.to_dense().numpy()))
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        loader(counts, 2, part=(0, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": None}, "n_components=None on several devices"),
        ({"estimator": "TraceGraph_ELBO"}, "'TraceGraph_ELBO' calls backward itself"),
    ],
)
def test_what_several_devices_cannot_do_is_refused(cells, options, message):
    model = small_scale(cells, **{"n_components": 3, **options})
    with pytest.raises(ValueError, match=message):
        model.train(2, devices=2, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        model.train(2, trainer_kwargs={"num_nodes": 2}, progress_bar=False)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # every question of a value is answered yes
@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(
    "row",
    [row for row in OBJECTIVES if row.supported],
    ids=lambda row: f"{row.formulation}-{row.estimator}-{row.c}",
)
def test_nothing_is_made_off_the_models_device(monkeypatch, row, likelihood):
    """On torch's meta device, which refuses every tensor of another one; no GPU is needed."""
    # Pyro asks whether a mask is all true and what the loss is: a meta tensor has no values.
    for name, answer in (("item", 0.0), ("__float__", 0.0), ("__bool__", True)):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, a=answer, of=original: a if t.is_meta else of(t)
        )
    vae = MixtureVAE(
        25,
        3,
        2,
        hidden=(9,),
        likelihood=likelihood,
        classifier=True,
        lsi=Lsi(25, 5, 2),
        mean_log_depth=1.0,
        n_batches=2,
    ).to("meta")
    on_cpu = CellBatch(torch.ones(6, 25), torch.ones(6), None, torch.zeros(6, dtype=torch.long))
    cells = on_cpu.to(torch.device("meta")).mask_peaks(0.5)
    objective = Objective(vae, row.formulation, row.estimator, row.c)
    with pyro.validation_enabled(False):
        if row.estimator == "RenyiELBO":  # it reads values on its way
            objective.programs.guide(cells)
        else:
            objective.backward(cells, 0.5)
            gradients = [p.grad for p in vae.parameters() if p.grad is not None]
            assert gradients
            assert all(gradient.is_meta for gradient in gradients)
    at = evaluate(vae, cells, torch.zeros(4, 6, 2, device="meta"))
    assert CLOSED_FORMS[row.closed_form](at).is_meta
    with pytest.raises(RuntimeError, match="device"):
        objective.backward(on_cpu)


def test_out_of_memory_names_a_batch_size(cells, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = small_scale(cells, preset="plain")
    monkeypatch.setattr(TrainingModule, "training_step", full)
    with pytest.raises(ps.OutOfMemoryError, match="try batch_size=16") as raised:
        model.train(2, batch_size=32, progress_bar=False)
    assert isinstance(raised.value, MemoryError)
    assert model.vae.encoder.peaks.product is None


@pytest.mark.parametrize(
    ("one", "several"), [(1, 2), ("1", "2"), ("0,", "0,1"), ("3,", "-1"), ([2], [0, 1]), ([0], -1)]
)
def test_one_device_by_number_is_not_several(one, several):
    assert is_one(one)
    assert not is_one(several)


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("cuda", True)])
def test_minibatches_are_pinned_for_a_gpu_alone(kind, pinned, cells):
    module = TrainingModule(
        small_vae(n_peaks=cells.n_vars),
        OBJECTIVES[0],
        TrainingConfig(),
        CountMatrix.from_anndata(cells),
    )
    strategy = argparse.Namespace(root_device=torch.device(kind))
    trainer = argparse.Namespace(global_rank=0, world_size=1, strategy=strategy)
    module.trainer = trainer
    assert module.train_dataloader().pin_memory is pinned
