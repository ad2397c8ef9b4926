"""Training that was killed ends as if it had not been; what cannot be gone on from is refused."""

import os

import anndata
import pytest
import torch
from helpers import small_scale
from helpers.command_line import call
from lightning import Callback

import pyro_scale as ps
from pyro_scale.training.module import TrainingModule


class Killed(Exception):  # noqa: N818
    """Stands for a signal."""


class Kill(Callback):
    def __init__(self, epoch, step):
        self.epoch, self.step = epoch, step

    def on_train_batch_end(self, trainer, module, outputs, batch, step):
        if (trainer.current_epoch, step) == (self.epoch, self.step):
            raise Killed


@pytest.fixture(scope="module")
def cells():
    return ps.simulate(n_cells=120, n_peaks=150, n_clusters=3, density=0.12, seed=0)


def trained(cells, n_components=3, *, preset="default", kill=None, **settings):
    model = ps.SCALE(cells, n_components, n_latent=3, hidden=(16,), preset=preset)
    given = {"batch_size": 32, "progress_bar": False, "checkpoint_seconds": 0, "newton_sweeps": 0}
    kwargs = {"callbacks": [Kill(*kill)]} if kill else {}
    try:
        model.train(10, trainer_kwargs=kwargs, **given | settings)
    except Killed:
        assert kill
    return model


def same_weights(a, b):
    a, b = a.vae.state_dict(), b.vae.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("preset", ["plain", "default"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"validation_size": 0.2, "early_stopping": True, "patience": 2}, {"n_components": None}],
    ids=["all epochs", "early stopping", "K chosen"],
)
def test_a_resumed_run_is_bit_identical(cells, tmp_path, preset, settings):
    """Killed in the warm-up, in the mixture, and twice; and once more after it is finished."""
    whole = trained(cells, preset=preset, **settings)
    for kills in ([(1, 2)], [(2, 0), (6, 1)]):
        path = tmp_path / f"{len(kills)}.checkpoint"
        for kill in kills:
            killed = trained(cells, preset=preset, checkpoint=path, kill=kill, **settings)
            assert not same_weights(killed, whole)
        for _ in range(2):
            resumed = trained(cells, preset=preset, checkpoint=path, **settings)
            assert same_weights(resumed, whole)
            assert resumed.history.equals(whole.history)
            assert resumed.config == whole.config
    assert not list(tmp_path.glob("*.new"))


def test_on_disk_cells_resume_too(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        whole = trained(backed)
        trained(backed, checkpoint=tmp_path / "c", kill=(4, 1))
        assert same_weights(trained(backed, checkpoint=tmp_path / "c"), whole)
    finally:
        backed.file.close()


def test_other_settings_other_cells_and_other_files_are_refused(cells, tmp_path):
    path = tmp_path / "c"
    trained(cells, checkpoint=path, kill=(3, 0))
    before = path.read_bytes()
    with pytest.raises(ps.CheckpointError, match=r"batch_size \(32 in the checkpoint, 16 now\)"):
        trained(cells, checkpoint=path, batch_size=16)
    with pytest.raises(ps.CheckpointError, match="the cells"):
        trained(cells[::-1].copy(), checkpoint=path)
    with pytest.raises(ps.CheckpointError, match="networks"):
        trained(cells, 4, checkpoint=path)
    assert path.read_bytes() == before
    for content in (b"", b"not a checkpoint", before[: len(before) // 2]):
        path.write_bytes(content)
        with pytest.raises(ps.CheckpointError, match="not a checkpoint"):
            trained(cells, checkpoint=path)
        assert path.read_bytes() == content
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ps.CheckpointError, match="not a checkpoint"):
        trained(cells, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        trained(cells, checkpoint=tmp_path / "nowhere" / "c")


def test_a_checkpoint_runs_no_code(cells, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"pyro_scale": Malicious()}, tmp_path / "c")
    with pytest.raises(ps.CheckpointError, match="not a checkpoint"):
        trained(cells, checkpoint=tmp_path / "c")
    assert not (tmp_path / "it ran").exists()
    torch.load(tmp_path / "c", weights_only=False)
    assert (tmp_path / "it ran").exists()  # so the test would have noticed


def test_checkpoints_are_written_by_the_clock_and_after_the_last_epoch(cells, tmp_path):
    trained(cells, checkpoint=tmp_path / "c", checkpoint_seconds=1e6, kill=(8, 0))
    assert not (tmp_path / "c").exists()
    trained(cells, checkpoint=tmp_path / "c", checkpoint_seconds=1e6)
    assert (tmp_path / "c").exists()


def test_the_command_line_goes_on_or_starts_anew(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "out"
    command = ["run", tmp_path / "cells.h5ad", "-k", 3, "--embed", "none", "-o", out]
    out.mkdir()
    small = small_scale(cells)
    small.train(2, checkpoint=out / "training.checkpoint", progress_bar=False)
    found = call(*command, "--max-epochs", 2)
    assert found.exit_code
    assert "--overwrite" in found.output
    assert (out / "training.checkpoint").exists()
    found = call(*command, "--max-epochs", 2, "--overwrite")
    assert found.exit_code == 0, found.output
    assert "starting over" in found.output
    assert not (out / "training.checkpoint").exists()
    assert (out / "model").is_dir()


@pytest.mark.parametrize("where", ["loss", "gradient", "parameter"])
def test_what_is_not_finite_is_named_and_training_goes_back_if_asked(cells, monkeypatch, where):
    step, seen = TrainingModule.training_step, []

    def poisoned(self, batch, index):
        seen.append(index)
        if len(seen) == 12:
            with torch.no_grad():
                if where == "parameter":
                    self.vae.encoder.loc.weight[0, 0] = torch.nan
                if where == "loss":
                    batch = batch._replace(depth_n=batch.depth_n * torch.inf)
        if len(seen) == 12 and where == "gradient":
            handle = self.vae.encoder.loc.bias.register_hook(lambda g: g * torch.nan)
            step(self, batch, index)
            handle.remove()
            return
        step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", poisoned)
    names = {"loss": "site", "gradient": "the gradient", "parameter": "encoder.loc.weight"}
    with pytest.raises(
        ps.NonFiniteError, match=rf"epoch 2 \(step 12\).*{names[where]}.*max_nan_retries=3"
    ):
        trained(cells)
    seen.clear()
    model = trained(cells, max_nan_retries=1)
    assert model.history["n_nan_retries"].tolist() == [0, 0, *[1] * 8]
    assert all(p.isfinite().all() for p in model.vae.parameters())
    assert model.history["elbo_train"].notna().all()
    with pytest.raises(ValueError, match="max_nan_retries"):
        trained(cells, max_nan_retries=-1)
