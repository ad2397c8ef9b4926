"""The same on a GPU; skipped, visibly, without one."""

import pytest
import torch

import pyro_scale as ps
from pyro_scale.data import CountMatrix, loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_trains_on_a_gpu_and_loads_on_a_cpu(cells, tmp_path):
    model = ps.SCALE(cells, n_components=3, n_latent=2, hidden=(16,))
    model.train(max_epochs=6, accelerator="gpu", progress_bar=False)
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", cells)
    assert loaded.vae.prior.loc_kd.device.type == "cpu"
    torch.testing.assert_close(
        torch.from_numpy(loaded.get_latent_representation()),
        torch.from_numpy(model.get_latent_representation()),
        rtol=1e-4,
        atol=1e-4,
    )
    assert ps.compare(model, n_cells=5, n_samples=3).rows


def test_minibatches_are_fetched_from_pinned_memory(cells):
    counts = CountMatrix.from_anndata(cells)
    one = next(iter(loader(counts, 16, seed=0, pin_memory=True)))
    assert one.x_np.values().is_pinned()
    assert one.depth_n.is_pinned()
    there = one.to(torch.device("cuda"), non_blocking=True)
    torch.cuda.synchronize()
    torch.testing.assert_close(there.x_np.to_dense().cpu(), one.x_np.to_dense())
