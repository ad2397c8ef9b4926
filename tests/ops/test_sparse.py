"""The ones alone: the same numbers as from dense cells, in value and in every gradient."""

import anndata
import numpy as np
import pytest
import torch
from helpers import (
    gradients,
    objective_gradients,
    small_cells,
    small_lsi,
    small_scale,
    small_vae,
    train,
)
from scipy import sparse as sp
from torch.autograd import gradcheck

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores
from pyro_scale.data import CountMatrix, loader, sparse_cells
from pyro_scale.objectives import OBJECTIVES, Objective, collapsed, evaluate
from pyro_scale.ops import peak_sums
from pyro_scale.ops import sparse as ops
from pyro_scale.programs import CellBatch
from pyro_scale.programs.networks import PeakLinear
from pyro_scale.training import fit_lsi


def to_sparse(cells: CellBatch) -> CellBatch:
    return cells._replace(x_np=ops.from_scipy(sp.csr_matrix(cells.x_np.numpy())))


@pytest.fixture(params=[2**18, 7], ids=["one block", "blocks"])
def blocks(request, monkeypatch):
    """The same arithmetic when everything fits at once and when nothing does."""
    monkeypatch.setattr(peak_sums, "_MAX_CELLS_X_PEAKS", {"cpu": request.param})
    monkeypatch.setattr(ops, "_LARGE", 2**23 if request.param > 7 else 0)
    monkeypatch.setattr(ops, "_ROWS", 2048 if request.param > 7 else 4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(
    "row",
    [row for row in OBJECTIVES if row.supported],
    ids=lambda row: f"{row.formulation}-{row.estimator}-{row.c}",
)
@pytest.mark.usefixtures("blocks")
def test_every_row_of_the_table_is_the_same_on_sparse_cells(row, likelihood):
    """In float64: the loss and the gradient of every parameter, by Pyro's own estimator."""
    vae = small_vae(likelihood=likelihood, classifier=True)
    cells = small_cells(likelihood=likelihood)
    answers = []
    for given in (cells, to_sparse(cells)):
        torch.manual_seed(0)
        objective = Objective(vae, row.formulation, row.estimator, row.c, n_particles=2)
        answers.append(objective_gradients(vae, objective, given, kl_weight=0.7))
    (dense, dense_gradients), (sparse, sparse_gradients) = answers
    assert sparse == pytest.approx(dense, rel=1e-12)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(sparse_gradients[name], gradient, rtol=1e-9, atol=1e-11)
    assert sum(bool(g.any()) for g in dense_gradients.values()) > 5


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(
    "options",
    [{"decoder_hidden": (4,)}, {"n_batches": 3}, {"mean_log_depth": 1.0}],
    ids=["decoder", "batches", "depth"],
)
def test_every_part_of_a_likelihood_is_the_same_on_sparse_cells(likelihood, options):
    if likelihood == "poisson":
        options.pop("mean_log_depth", None)
    vae = small_vae(likelihood=likelihood, **options)
    cells = small_cells(likelihood=likelihood)._replace(batch_n=torch.tensor([0, 1, 2, 0, 1, 2]))
    z = torch.randn(4, 6, 2).double()
    values, found = [], []
    for given in (cells, to_sparse(cells)):
        log_lik = vae.likelihood(z, given).log_prob(given.x_np)
        assert log_lik.shape == (4, 6)
        values.append(log_lik.detach())
        found.append(gradients(vae, (log_lik * torch.arange(6)).sum()))
        torch.testing.assert_close(
            collapsed(evaluate(vae, given, z)).total(), collapsed(evaluate(vae, cells, z)).total()
        )
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_the_distribution_of_sparse_cells_is_the_dense_one(likelihood):
    vae, cells = small_vae(likelihood=likelihood), small_cells(likelihood=likelihood)
    z = torch.randn(6, 2).double()
    dense, sparse = (vae.likelihood(z, given) for given in (cells, to_sparse(cells)))
    assert sparse.batch_shape == dense.batch_shape == (6,)
    assert sparse.event_shape == dense.event_shape == (25,)
    torch.testing.assert_close(sparse.mean, dense.mean)
    torch.testing.assert_close(sparse.log_prob(cells.x_np), dense.log_prob(cells.x_np))
    draws = sparse.sample((20_000,))
    assert draws.shape == (20_000, 6, 25)
    torch.testing.assert_close(draws.mean(0), dense.mean, atol=0.1, rtol=0.05)


@pytest.mark.usefixtures("blocks")
def test_products_and_sums_have_the_right_gradients():
    x = ops.from_scipy(sp.random_array((5, 11), density=0.3, format="csr", rng=0))
    weight = torch.randn(11, 3).double().requires_grad_()
    torch.testing.assert_close(ops.matmul(x, weight), x.to_dense() @ weight)
    assert gradcheck(lambda w: ops.matmul(x, w), weight)
    parts = [torch.randn(5, 3), weight, torch.randn(11), torch.randn(5)]
    parts = [part.double().detach().requires_grad_() for part in parts]
    for shifted in (parts, parts[:3]):
        eta = peak_sums.Logits(*shifted)
        softplus = torch.nn.functional.softplus(eta.dense()).sum(-1)
        torch.testing.assert_close(peak_sums.softplus_over_peaks(eta), softplus)
        torch.testing.assert_close(peak_sums.logsumexp_over_peaks(eta), eta.dense().logsumexp(-1))
        torch.testing.assert_close(eta.weighted_sum(x), (x.to_dense() * eta.dense()).sum(-1))
        assert gradcheck(
            lambda *given: peak_sums.softplus_over_peaks(peak_sums.Logits(*given)), shifted
        )
        assert gradcheck(
            lambda *given: peak_sums.logsumexp_over_peaks(peak_sums.Logits(*given)), shifted
        )


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The branches of a device without the CPU's kernels, on the CPU."""
    monkeypatch.setattr(ops, "_has_kernels", lambda _: False)
    monkeypatch.setattr(peak_sums, "_implementation", lambda _: peak_sums._Blockwise)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_products_of_a_gpu_are_those_of_dense_cells():
    """With a cell and a peak that have no entry, in any order of a row's entries."""
    dense = sp.random_array((7, 13), density=0.3, rng=1).toarray()
    dense[3], dense[:, 5] = 0, 0
    x = sp.csr_matrix(dense)
    row = slice(x.indptr[1], x.indptr[2])
    x.indices[row], x.data[row] = x.indices[row][::-1].copy(), x.data[row][::-1].copy()
    x_np, weight = ops.from_scipy(x), torch.randn(13, 3).double().requires_grad_()
    torch.testing.assert_close(ops._transposed(x_np).to_dense(), x_np.to_dense().T)
    torch.testing.assert_close(ops.matmul(x_np, weight), x_np.to_dense() @ weight)
    assert gradcheck(lambda w: ops.matmul(x_np, w), weight)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("preset", ["default", "plain"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_model_trains_answers_and_is_compared_by_the_branches_of_a_gpu(
    cells, likelihood, preset, monkeypatch
):
    """One step from the same start as by the kernels, to single precision."""
    by_torch = train(small_scale(cells, likelihood=likelihood, preset=preset), 1)
    assert by_torch.get_responsibilities().shape == (80, 3)
    assert all(row.status != "FAILS" for row in ps.compare(by_torch, n_cells=5, n_samples=3).rows)
    monkeypatch.undo()
    by_kernels = train(small_scale(cells, likelihood=likelihood, preset=preset), 1)
    for name, value in by_kernels.vae.state_dict().items():
        torch.testing.assert_close(
            by_torch.vae.state_dict()[name], value, rtol=1e-2, atol=2e-3, msg=name
        )


def test_an_empty_cell_and_a_silent_peak_are_zeros():
    x = sp.csr_matrix((np.ones(2), ([0, 2], [1, 3])), shape=(3, 5))
    layer = PeakLinear(5, 4).double()
    out = layer(ops.from_scipy(x))
    assert not out[1].any()
    out.sum().backward()
    expected = torch.zeros(5, 4).double()
    expected[[1, 3]] = 1
    torch.testing.assert_close(layer.weight_ph.grad, expected)


def test_training_leaves_the_layer_that_reads_the_peaks_as_it_was(cells):
    model = small_scale(cells, preset="plain")
    before = model.vae.encoder.peaks.weight_ph.detach().clone()
    model.train(2, progress_bar=False)
    assert not torch.equal(model.vae.encoder.peaks.weight_ph, before)
    assert model.vae.encoder.peaks.product is None


def test_minibatches_are_sparse_and_hold_nothing_of_peaks_times_cells(cells):
    counts = CountMatrix.from_anndata(cells)
    batch = next(iter(loader(counts, 16, seed=0)))
    assert batch.is_sparse
    assert batch.x_np.values().numel() == int(batch.depth_n.sum())
    hidden = batch.mask_peaks(0.5)
    assert hidden.encoder_input_np.values().numel() == batch.x_np.values().numel()
    kept = hidden.encoder_input_np.values().mean()
    assert 0.4 < kept < 0.6
    assert torch.equal(hidden.dense().x_np, batch.x_np.to_dense())


def test_lsi_of_sparse_cells():
    lsi, cells = small_lsi().double(), small_cells()
    given = to_sparse(cells)
    torch.testing.assert_close(lsi(given.x_np, given.depth_n), lsi(cells.x_np, cells.depth_n))


def test_double_differentiation_is_refused():
    h = torch.randn(3, 2, requires_grad=True)
    eta = peak_sums.Logits(h, torch.randn(4, 2), torch.zeros(4))
    (slope,) = torch.autograd.grad(
        (peak_sums.softplus_over_peaks(eta) * h.sum(-1)).sum(), h, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def two_batches(seed=0):
    """The same clusters measured twice, half of the peaks more open in the second batch."""
    parts = [
        ps.simulate(n_cells=150, n_peaks=600, n_clusters=3, density=0.15, seed=seed)
        for _ in range(2)
    ]
    rng = np.random.default_rng(seed)
    x = parts[1].X.toarray()
    x[:, :150] = np.maximum(x[:, :150], rng.random((150, 150)) < 0.5)
    parts[1].X = sp.csr_matrix(x)
    parts[1].obs_names = [f"second_{name}" for name in parts[1].obs_names]
    joined = anndata.concat(dict(zip(("a", "b"), parts, strict=True)), label="site")
    joined.var_names = parts[0].var_names
    return joined


def test_a_batch_covariate_takes_the_batch_out_of_z():
    """What is left of the batch in z, as the share of variance between batches."""
    adata, left = two_batches(), {}
    for key in (None, "site"):
        model = ps.SCALE(adata, 3, n_latent=4, batch_key=key)
        model.train(60, progress_bar=False)
        z = model.get_latent_representation()
        second = (adata.obs["site"] == "b").to_numpy()
        between = (z[second].mean(0) - z[~second].mean(0)) ** 2 / 4 / z.var(0)
        scores = cluster_scores(adata.obs["cell_type"], model.get_cluster_assignments())
        left[key] = between.max(), scores["ari"]
    assert left[None][0] > 0.5
    assert left["site"][0] < 0.1
    assert left["site"][1] > left[None][1] + 0.5


def test_a_batch_that_no_sampled_cell_is_of_has_a_centre_too():
    counts = CountMatrix.from_anndata(
        two_batches()[:160], batch_key="site"
    )  # ten cells of the second
    lsi = fit_lsi(counts, 5, 0, n_batches=2, max_cells=8)
    assert lsi.centre_br.any(1).all()
    z = lsi(*sparse_cells(counts[np.flatnonzero(counts.batch == 1)[:8]])[:2])
    assert (z.mean(0) - lsi.centre_br[1]).norm() < (z.mean(0) - lsi.centre_br[0]).norm()


def test_batches_are_saved_and_unknown_ones_refused(tmp_path):
    adata = two_batches()
    model = small_scale(adata, batch_key="site")
    model.train(2, progress_bar=False)
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", adata)
    assert loaded.config.batches == ("a", "b")
    some = adata[adata.obs["site"] == "b"][:5].copy()
    np.testing.assert_array_equal(
        loaded.get_latent_representation(some), model.get_latent_representation(some)
    )
    np.testing.assert_allclose(loaded.get_elbo(some), model.get_elbo(some))
    relabelled = some.copy()
    relabelled.obs["site"] = "a"
    assert (model.get_elbo(relabelled) < model.get_elbo(some)).all()
    some.obs["site"] = "c"
    with pytest.raises(ps.DataError, match=r"batch 'c' .* is unknown to the model, which was"):
        loaded.get_elbo(some)
    some.obs["site"] = [None, "a", "a", "a", "a"]
    with pytest.raises(ps.DataError, match="1 cells have no batch"):
        loaded.get_elbo(some)
    with pytest.raises(ps.DataError, match="batch_key='donor' is not a column"):
        small_scale(adata, batch_key="donor")


def test_a_decoder_that_knows_batches_asks_for_them():
    vae = small_vae(n_batches=2)
    with pytest.raises(ValueError, match="conditioned on 2 batches"):
        vae.likelihood(torch.zeros(6, 2).double(), small_cells())


def test_compare_and_ladder_take_a_model_with_batches():
    adata = two_batches()
    model = small_scale(adata, batch_key="site", preset="plain", n_latent=2)
    table = ps.compare(model, n_cells=12, n_samples=8)
    assert not [row for row in table.rows if row.holds is False]
    model.train(2, progress_bar=False)
    assert ps.ladder(model, n_cells=2).max_discrepancy <= 1e-8
