"""Everything that is done on a GPU, without one: on a device that refuses tensors of another."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import small_scale
from helpers.fake_device import THERE, Elsewhere, There
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

import pyro_scale as ps
from pyro_scale.config import ModelConfig
from pyro_scale.data import CountMatrix
from pyro_scale.training import TrainingModule, initialization
from pyro_scale.training.clustering import components_from_means
from pyro_scale.training.initialization import build_vae


@pytest.fixture
def there(monkeypatch):
    fused = [*_get_fused_kernels_supported_devices(), THERE.type]
    name = _get_fused_kernels_supported_devices.__name__
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], name, lambda: fused)
    # In inference mode a dispatch mode sees whole operations, and not what they are made of.
    monkeypatch.setattr(
        torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext()
    )
    unmoved = torch.no_grad()(initialization.moments.__wrapped__)
    for module in (initialization, sys.modules[TrainingModule.__module__]):
        monkeypatch.setattr(module, "moments", unmoved)
    with Elsewhere() as device:
        yield device


class Accelerator(CPUAccelerator):
    """Lightning's, which does not mind where it is."""

    def setup_device(self, device):
        pass


class Devices(Callback):
    """Where the weights and the optimiser's moments are while it trains."""

    def __init__(self):
        self.seen = set()

    def on_train_batch_end(self, trainer, pl_module, *_):
        parts = [*pl_module.vae.parameters(), *pl_module.vae.buffers()]
        for optimizer in trainer.optimizers:
            parts += [s["exp_avg"] for s in optimizer.state.values()]
        self.seen |= {isinstance(part, There) for part in parts}


def train_there(model, epochs=4, **options):
    devices = Devices()
    strategy = SingleDeviceStrategy(THERE, accelerator=Accelerator())
    kwargs = {"strategy": strategy, "callbacks": devices, **options.pop("trainer_kwargs", {})}
    given = {"batch_size": 32, "progress_bar": False, "trainer_kwargs": kwargs, **options}
    model.train(epochs, **given)
    assert devices.seen == {True}
    return model


def test_the_device_refuses_what_a_gpu_refuses(there):
    """The power of all below."""
    layer = torch.nn.Linear(3, 2).to(THERE)
    x = torch.ones(4, 3)
    assert isinstance(layer(x.to(THERE)), There)
    with pytest.raises(RuntimeError, match="same device"):
        layer(x)
    with pytest.raises(RuntimeError, match="same device"):
        layer(x.to(THERE)) + torch.zeros(2)
    with pytest.raises((RuntimeError, TypeError)):
        layer(x.to(THERE)).detach().numpy()
    assert there.operations["addmm"] == 3  # and not those that were refused


@pytest.mark.parametrize("preset", ["default", "plain"])
def test_initialising(cells, preset, there):
    counts = CountMatrix.from_anndata(cells)
    vae = build_vae(counts, ModelConfig(3, 2, hidden=(8,), preset=preset)).to(THERE)
    loc_nd, var_nd = initialization.moments(vae, counts)
    vae.prior.set_components(*components_from_means(loc_nd, var_nd, 3, 0))
    vae.prior.resize(2)
    vae.add_classifier()
    assert all(isinstance(part, There) for part in [*vae.parameters(), *vae.buffers()])


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.parametrize("formulation", ["collapsed", "mean_field", "amortized"])
def test_training_inference_and_files(counts, tmp_path, there, formulation, preset, likelihood):
    options = {"formulation": formulation, "preset": preset, "likelihood": likelihood}
    model = train_there(small_scale(counts, **options), validation_size=0.2, early_stopping=True)
    assert np.isfinite(model.history["elbo_train"]).all()
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", counts, map_location=THERE)
    assert all(isinstance(p, There) for p in loaded.vae.parameters())
    loaded.save(tmp_path / "again")
    here = ps.SCALE.load(tmp_path / "again", counts)
    close = {"rtol": 1e-4, "atol": 1e-4}
    for ask in (
        lambda m: m.get_latent_representation(),
        lambda m: m.get_latent_representation(give_mean=False),
        lambda m: m.get_responsibilities(n_samples=5),
        lambda m: m.get_elbo(n_mc_samples=3),
        lambda m: m.get_marginal_ll(n_mc_samples=3),
        lambda m: m.get_normalized_accessibility(),
        lambda m: m.get_decoder_weights(),
    ):
        np.testing.assert_allclose(ask(loaded), ask(here), **close)
    compared = ps.compare(loaded, n_cells=4, n_samples=3, formulations=[formulation])
    assert compared.rows


def test_k_is_chosen_there(cells, there):
    model = train_there(small_scale(cells, None), 4)
    assert model.config.n_components == model.vae.n_components


def test_loggers_callbacks_and_the_rest_reach_lightning(cells, tmp_path):
    class Ends(Callback):
        def on_train_end(self, trainer, pl_module):
            self.epochs = trainer.current_epoch

    ends, logger = Ends(), CSVLogger(tmp_path, name="log", flush_logs_every_n_steps=1)
    kwargs = {"logger": logger, "callbacks": [ends], "log_every_n_steps": 1, "max_epochs": 3}
    small_scale(cells).train(9, progress_bar=False, trainer_kwargs=kwargs)
    assert ends.epochs == 3
    (written,) = tmp_path.rglob("metrics.csv")
    assert "elbo_train" in written.read_text().splitlines()[0]
