"""A batch covariate: what the decoder takes up, z does not have to encode."""

import numpy as np
import pytest
import torch
from helpers import small_scale, train
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

import pyro_scale as ps


def accuracy(z_nd, batch_n):
    """Cross-validated accuracy with which a linear classifier tells the batch from z."""
    scaled = StandardScaler().fit_transform(z_nd)
    return cross_val_score(LogisticRegression(max_iter=1000), scaled, batch_n, cv=5).mean()


@pytest.mark.parametrize("options", [{}, {"preset": "plain"}, {"likelihood": "poisson"}], ids=str)
def test_with_a_batch_key_the_batch_is_hardly_read_from_z(options):
    """No more than halfway from chance to what is read without; the types stay apart."""
    adata = ps.simulate(
        600, 3_000, 3, density=0.05, n_batches=2, batch_sd=0.5, concentration=5.0, seed=0
    )
    batch_n, chance = adata.obs["batch"].to_numpy(), 0.5
    found = {}
    for batch_key in (None, "batch"):
        model = ps.SCALE(adata, 3, batch_key=batch_key, seed=0, **options)
        model.train(progress_bar=False)
        index = adjusted_rand_score(adata.obs["cell_type"], model.get_cluster_assignments())
        found[batch_key] = (accuracy(model.get_latent_representation(), batch_n), index)
    assert found[None][0] > 0.95
    assert found["batch"][0] < (chance + found[None][0]) / 2
    assert found["batch"][1] >= found[None][1]
    assert found["batch"][1] > 0.9


@pytest.mark.parametrize("decoder_hidden", [(), (6,)])
def test_the_decoder_reads_seven_for_a_cells_batch(cells, decoder_hidden):
    """A prior of precision 50 on the weights is one of 50/49 on the offsets of the logits."""
    cells = cells.copy()
    cells.obs["donor"] = np.resize(["a", "b", "c"], cells.n_obs)
    model = train(small_scale(cells, batch_key="donor", decoder_hidden=decoder_hidden))
    likelihood = model.vae.likelihood
    inputs_nb = likelihood.batch_inputs(torch.tensor([2, 0]))
    assert inputs_nb.tolist() == [[0, 0, 7], [7, 0, 0]]
    z_nd = torch.randn(2, model.vae.n_latent)
    if not decoder_hidden:
        eta_np = likelihood.eta(z_nd, torch.tensor([2, 0]))
        layer, n_latent = likelihood.peaks, model.vae.n_latent
        offset_np = 7 * layer.weight[:, [n_latent + 2, n_latent]].T
        expected_np = z_nd @ layer.weight[:, :n_latent].T + offset_np + layer.bias
        torch.testing.assert_close(eta_np, expected_np)
