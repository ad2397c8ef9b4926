"""Where training starts: LSI, the mixture's first components, the decoder's prior."""

import numpy as np
import pytest
import torch
from helpers import small_cells, small_lsi, small_scale, small_vae, train
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import gaussian_kde
from sklearn.datasets import make_moons
from sklearn.neighbors import kneighbors_graph

import pyro_scale as ps
from pyro_scale.data import CountMatrix, dense_cells
from pyro_scale.objectives import Objective, resolve_objective
from pyro_scale.programs import CellBatch, Encoder
from pyro_scale.training import (
    TrainingConfig,
    TrainingModule,
    choose_n_components,
    components_from_means,
    fit_lsi,
)
from pyro_scale.training.clustering import _joined, _mixing, _valley


def dense_tfidf(counts):
    """TF-IDF of unit length, by its definition."""
    x = counts.x.toarray().astype(float)
    idf = np.log1p(len(x) / np.maximum((x > 0).sum(0), 1))
    y = np.log1p(1e4 * x / x.sum(1, keepdims=True) * idf)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def test_lsi_is_the_svd_of_tfidf_without_its_first_component(cells):
    counts = CountMatrix.from_anndata(cells)
    lsi = fit_lsi(counts, 3, seed=0).eval()
    y = dense_tfidf(counts)
    _, _, directions = np.linalg.svd(y, full_matrices=False)
    overlap = np.abs(directions[1:4] @ lsi.directions_pr.numpy())
    np.testing.assert_allclose(overlap, np.eye(3), atol=0.02)
    scores = y @ lsi.directions_pr.numpy()
    expected = scores / np.linalg.norm(scores, axis=1, keepdims=True) * np.sqrt(3)
    np.testing.assert_allclose(lsi(*dense_cells(counts)[:2]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n_cells", "n_directions"), [(80, 50), (4, 3), (2, 1), (1, 1)])
def test_lsi_has_the_directions_that_the_cells_allow(cells, n_cells, n_directions):
    lsi = fit_lsi(CountMatrix.from_anndata(cells[:n_cells]), 50, seed=0)
    assert lsi.n_directions == n_directions
    assert torch.isfinite(lsi(*dense_cells(CountMatrix.from_anndata(cells))[:2])).all()


def test_lsi_of_many_cells_decomposes_a_sample(cells):
    counts = CountMatrix.from_anndata(cells)
    some = np.sort(np.random.default_rng(5).permutation(80)[:30])
    expected = fit_lsi(counts[some], 4, seed=5)
    assert torch.equal(
        fit_lsi(counts, 4, seed=5, max_cells=30).directions_pr, expected.directions_pr
    )


@pytest.mark.parametrize("lsi", [True, False])
def test_hidden_peaks_are_hidden_from_the_encoder_alone(lsi):
    vae = small_vae(lsi=small_lsi() if lsi else None)
    cells = small_cells(n_cells=400)
    torch.manual_seed(0)
    some = cells.mask_peaks(0.3)
    assert torch.equal(some.x_np, cells.x_np)
    assert torch.equal(some.depth_n, cells.depth_n)
    kept = some.encoder_input_np[cells.x_np > 0]
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.7, abs=0.05)
    assert not some.encoder_input_np[cells.x_np == 0].any()
    read = cells._replace(x_np=some.encoder_input_np)
    for part, expected in zip(vae.encoder(some), vae.encoder(read), strict=True):
        assert torch.equal(part, expected)
    assert not torch.equal(vae.encoder(some)[0], vae.encoder(cells)[0])
    torch.testing.assert_close(vae.encoder(cells.mask_peaks(0.0))[0], vae.encoder(cells)[0])


def test_an_encoder_that_adds_up_what_it_reads_reads_as_much_on_average():
    cells = CellBatch.from_counts(torch.ones(50, 400))
    for share, rescale, total in ((0.5, True, 400), (0.25, True, 400), (0.25, False, 300)):
        seen = cells.mask_peaks(share, rescale=rescale).encoder_input_np.sum(1).mean()
        assert seen == pytest.approx(total, rel=0.02)


def test_every_program_of_a_step_sees_the_same_peaks(monkeypatch):
    """SCALE's auxiliary program asks the encoder in the model and in the guide: q(u|x) cancels."""
    vae, answers = small_vae(lsi=small_lsi()), []
    features = Encoder.features
    monkeypatch.setattr(
        Encoder,
        "features",
        lambda self, cells: answers.append(features(self, cells)) or answers[-1],
    )
    vae.train()
    Objective(vae, "scale", "TraceEnum_ELBO", "enumerated").loss(small_cells().mask_peaks(0.5))
    assert len(answers) == 2
    assert torch.equal(*answers)


def test_training_masks_peaks_for_the_encoder(cells, monkeypatch):
    rates = []
    mask_peaks = CellBatch.mask_peaks
    monkeypatch.setattr(
        CellBatch,
        "mask_peaks",
        lambda self, rate, **how: rates.append(rate) or mask_peaks(self, rate, **how),
    )
    train(small_scale(cells), 1, mask_rate=0.25, warmup_epochs=0, batch_size=40)
    assert rates == [0.25, 0.25]
    train(small_scale(cells), 1, mask_rate=0, warmup_epochs=0)
    assert len(rates) == 2
    with pytest.raises(ValueError, match="mask_rate=1 is a fraction of the peaks"):
        train(small_scale(cells), 1, mask_rate=1)


def test_lsi_does_not_see_depth():
    lsi, cells = small_lsi().double().eval(), small_cells()
    deeper = cells._replace(depth_n=3 * cells.depth_n)
    cosine = torch.cosine_similarity(lsi(*cells[:2]), lsi(*deeper[:2]))
    assert (cosine > 0.99).all()
    length = lsi(*cells[:2]).norm(dim=-1)
    torch.testing.assert_close(length, torch.full_like(length, 5**0.5))


def test_components_start_at_the_clusters_of_the_neighbour_graph():
    """Two moons: k-means cuts them across, the graph does not; outliers get no component."""
    moons, labels = make_moons(400, noise=0.05, random_state=0)
    outliers = np.array([[9.0, 9.0], [-9.0, 9.0]])
    means = torch.from_numpy(np.concatenate([moons, outliers]))
    var = torch.full_like(means, 0.01)
    start = components_from_means(means, var, 2, seed=0)
    expected = np.stack([moons[labels == c].mean(0) for c in (0, 1)])
    found = start.loc_kd[start.loc_kd[:, 0].argsort()].numpy()
    np.testing.assert_allclose(found, expected[np.argsort(expected[:, 0])], atol=0.1)
    np.testing.assert_allclose(start.pi_k, [0.5, 0.5], atol=0.01)


def test_the_pooled_variance_is_within_clusters_plus_within_cells():
    rng = np.random.default_rng(0)
    centre = np.repeat([[-20.0, 0.0], [20.0, 0.0], [0.0, 30.0]], [50, 100, 150], axis=0)
    means = centre + rng.normal(size=centre.shape) * [1.0, 2.0]
    start = components_from_means(
        torch.from_numpy(means), torch.full((300, 2), 0.5).double(), 3, seed=0
    )
    order = torch.argsort(start.pi_k)
    np.testing.assert_allclose(start.pi_k[order], [1 / 6, 1 / 3, 1 / 2])
    np.testing.assert_allclose(start.loc_kd[order], [[-20, 0], [20, 0], [0, 30]], atol=1.0)
    np.testing.assert_allclose(start.var_kd, np.tile([1.5, 4.5], (3, 1)), rtol=0.2)


@pytest.mark.parametrize(("n_cells", "k"), [(3, 3), (9, 2), (20, 1), (30, 30)])
def test_too_few_cells_for_a_graph_still_start_a_mixture(n_cells, k):
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(n_cells, 2)))
    start = components_from_means(means, torch.ones_like(means), k, seed=0)
    assert start.loc_kd.shape == (k, 2)
    assert float(start.pi_k.sum()) == pytest.approx(1)


def test_identical_cells_start_a_finite_mixture():
    means = torch.zeros(40, 2).double()
    start = components_from_means(means, torch.ones_like(means), 3, seed=0)
    assert all(torch.isfinite(part).all() for part in start)


def test_minibatches_are_larger_where_cells_are_many_and_what_is_given_counts():
    def of(n_cells, **settings):
        return TrainingConfig.for_dataset(
            n_cells, plain=False, max_epochs=None, early_stopping=False, **settings
        ).batch_size

    assert (of(9_999), of(10_000), of(500_000)) == (128, 512, 512)
    assert (of(20_000, batch_size=None), of(20_000, batch_size=64)) == (512, 64)


def test_the_decoders_weights_alone_have_a_prior(cells):
    """The optimiser's decay is the gradient of precision / (2 n) * ||W||^2 per cell."""
    model = small_scale(cells, decoder_hidden=(8,))
    plan = TrainingConfig(decoder_precision=40.0)
    counts = CountMatrix.from_anndata(cells)
    module = TrainingModule(model.vae, resolve_objective("collapsed"), plan, counts)
    decay = {
        id(p): group["weight_decay"]
        for group in module.configure_optimizers().param_groups
        for p in group["params"]
    }
    decayed = {name for name, p in model.vae.named_parameters() if decay[id(p)] > 0}
    assert decayed == {"likelihood.peaks.weight", "likelihood.hidden.0.weight"}
    assert {value for value in decay.values() if value > 0} == {40.0 / 80}


def test_a_stronger_prior_gives_smaller_weights(cells):
    sizes = []
    for precision in (0.0, 100.0, 10_000.0):
        model = train(small_scale(cells), 20, decoder_precision=precision)
        sizes.append(model.vae.likelihood.peaks.weight.detach().norm().item())
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    ("n_cells", "preset", "epochs", "with_warmup"),
    [
        (250, "default", 20, 300),
        (250, "plain", 30, 300),
        (5_000, "default", 15, 200),
        (50_000, "plain", 5, 50),
    ],
)
def test_epochs_follow_the_number_of_cells(
    monkeypatch, cells, n_cells, preset, epochs, with_warmup
):
    model, asked = small_scale(cells, preset=preset), []
    monkeypatch.setattr(type(model._counts), "n_cells", n_cells)
    monkeypatch.setattr(
        "pyro_scale.training.trainer.fit", lambda vae, counts, row, plan, **_: asked.append(plan)
    )
    model.train()
    model.train(newton_sweeps=0)
    assert [plan.max_epochs for plan in asked] == [epochs, with_warmup]
    assert [plan.n_warmup for plan in asked] == [0, 3 * with_warmup // 5]


def test_the_plain_preset_has_the_papers_widths_and_reads_the_peaks(cells):
    plain, default = ps.SCALE(cells, 3, preset="plain"), ps.SCALE(cells, 3)
    assert plain.config.hidden == (1024, 128)
    assert default.config.hidden == (128,)
    assert plain.vae.encoder.lsi is None
    assert len(plain.vae.encoder.trunk[0].weight_ph) == cells.n_vars
    assert default.vae.encoder.trunk[0].in_features == default.vae.encoder.lsi.n_directions == 50


@pytest.mark.parametrize("k", [1, 3, 7, 15])
def test_k_is_the_number_of_separated_groups(k):
    rng = np.random.default_rng(k)
    means = np.repeat(rng.normal(size=(k, 10), scale=5.0), 60, axis=0) + rng.normal(
        size=(60 * k, 10)
    )
    assert choose_n_components(torch.from_numpy(means), seed=0).n_components == k


def test_two_small_clusters_are_two():
    """Each has fewer cells than fifteen neighbors and their neighbors."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(46, 10)) + 6 * np.eye(10)[np.arange(46) % 2]
    assert choose_n_components(torch.from_numpy(means), seed=0).n_components == 2


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_types_that_vary_continuously_are_not_cut(n_components, length):
    """Each type is a cloud that is longer in one direction, by which modularity cuts it."""
    rng = np.random.default_rng(n_components)
    type_n = np.arange(900) % n_components
    means = rng.normal(size=(900, 10))
    means += 12 * np.eye(10)[type_n]
    means[np.arange(900), 5 + type_n] *= length
    assert choose_n_components(torch.from_numpy(means), seed=0).n_components == n_components


def test_cells_of_little_depth_do_not_join_the_types():
    """They lie between the types, because little is known of them."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(600, 6)) + 7 * np.eye(6)[np.arange(600) % 3]
    shallow = np.arange(600) % 5 == 0
    means[shallow] = means.mean(0) + rng.normal(size=(120, 6)) * 2
    depth = np.where(shallow, 10.0, 500.0)
    choice = choose_n_components(torch.from_numpy(means), seed=0, depth_n=depth)
    assert choice.n_components == 3


def test_a_valley_is_the_lowest_density_over_that_of_the_lower_peak():
    """Two normals that differ in one of five dimensions, beside the density in that dimension."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [6_000, 3_000])
    means = rng.normal(size=(9_000, 5))
    means[:, 0] += 3.2 * label
    halves = rng.random((4, 9_000)) < 0.5
    at = np.linspace(0, 3.2, 400)
    density = gaussian_kde(means[:, 0], 3_000**-0.2 / means[:, 0].std())(at)
    lowest = density.argmin()
    expected = density[lowest] / min(density[:lowest].max(), density[lowest:].max())
    assert 0.3 < expected < 0.9
    found = _valley(means, label == 0, label == 1, halves)
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("n_cells", [40, 400])
def test_a_cloud_that_is_cut_has_no_valley(n_cells):
    rng = np.random.default_rng(n_cells)
    means = rng.normal(size=(n_cells, 10)) * np.linspace(1, 3, 10)
    one = means[:, -1] > 0
    halves = rng.random((6, n_cells)) < 0.5
    assert _valley(means, one, ~one, halves) > 0.9


def test_cells_in_one_place_are_one_component():
    assert choose_n_components(torch.zeros(90, 3), seed=0).n_components == 1


def test_two_cells_are_too_few_for_a_valley():
    means = np.array([[0.0, 0.0], [9.0, 9.0]])
    one = np.array([True, False])
    assert _valley(means, one, ~one, np.array([[True, False]])) == 1.0


def test_the_table_has_every_number_and_the_stability_of_halves():
    rng = np.random.default_rng(0)
    types = 6 * np.eye(5)[np.arange(300) % 4]
    means, *halves = (torch.from_numpy(types + rng.normal(size=(300, 5))) for _ in range(3))
    choice = choose_n_components(means, seed=0, half_means=(halves[0], halves[1]))
    assert choice.n_components == 4
    assert choice.table.index.tolist() == list(range(1, 21))
    assert choice.table["valley"].between(0, 1).all()
    assert choice.table.loc[4, "stability"] > 0.95
    assert choice.table.loc[20, "stability"] < 0.5
    noise = torch.from_numpy(rng.normal(size=(300, 5)))
    unstable = choose_n_components(means, seed=0, half_means=(halves[0], noise))  # valleys are deep
    assert unstable.n_components == 4
    assert unstable.table.loc[4, "stability"] < 0.1
    assert choose_n_components(means, seed=0).table["stability"].isna().all()


def test_where_little_is_known_of_each_cell_the_silhouette_decides():
    """Six types overlap too much for a valley; one type has none either, and stays one."""
    rng = np.random.default_rng(0)
    types = 2.6 * np.eye(6)[np.arange(900) % 6]
    uncertain = [torch.from_numpy(types + 1.2 * rng.normal(size=(900, 6))) for _ in range(2)]
    means = torch.from_numpy(types + rng.normal(size=(900, 6)))
    choice = choose_n_components(means, 0, half_means=(uncertain[0], uncertain[1]))
    assert (choice.table["valley"][2:] > 0.85).all()
    assert choice.n_components == choice.table["silhouette"].idxmax() == 6
    one_type = torch.from_numpy(rng.normal(size=(900, 6)))
    halves = [one_type + torch.from_numpy(rng.normal(size=(900, 6))) for _ in range(2)]
    assert choose_n_components(one_type, 0, half_means=(halves[0], halves[1])).n_components == 1


def test_mixing_is_the_share_of_edges_between_clusters_over_that_of_shuffled_labels():
    rng = np.random.default_rng(0)
    dense = rng.random((30, 30)) < 0.3
    graph = csr_matrix((dense | dense.T).astype(float))
    labels = np.repeat([0, 1, 2], [12, 10, 8])
    mixing_kk = _mixing(graph, labels)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        members = np.isin(labels, [i, j])
        edges, is_i = graph[members][:, members].toarray(), labels[members] == i
        joining = edges[np.not_equal.outer(is_i, is_i)].sum() / edges.sum()
        expected = joining / (2 * is_i.mean() * (1 - is_i.mean()))
        assert mixing_kk[i, j] == mixing_kk[j, i] == pytest.approx(expected)
    blocks = csr_matrix(np.kron(np.eye(2), np.ones((20, 20))))
    assert _mixing(blocks, np.repeat([0, 1], 20))[0, 1] == 0.0
    cut = _mixing(blocks, np.repeat([0, 1, 2, 3], 10))  # each block is cut in two
    assert cut[0, 1] == cut[2, 3] == pytest.approx(1.0)
    assert cut[0, 2] == 0.0


def test_pieces_of_the_neighbour_graph_are_joined_by_single_edges():
    """Else eigenvectors of an eigenvalue that comes several times are missed by some scipy."""
    rng = np.random.default_rng(0)
    means = np.repeat(30.0 * np.arange(5)[:, None], 40, axis=0) + rng.normal(size=(200, 2))
    graph = kneighbors_graph(means, 15, include_self=True)
    graph = (graph + graph.T) / 2
    joined = _joined(graph, means)
    added = (joined - graph).tocoo()
    assert connected_components(graph)[0] == 5
    assert connected_components(joined)[0] == 1
    assert (joined - joined.T).nnz == 0
    np.testing.assert_array_equal(added.data, 1.0)
    between = sorted((row // 40, column // 40) for row, column in zip(*added.coords, strict=True))
    assert between == sorted(
        (i, i + step) for i in range(5) for step in (-1, 1) if i + step in range(5)
    )
    assert (_joined(joined, means) - joined).nnz == 0
    copies = csr_matrix(np.kron(np.eye(3), np.ones((20, 20))))  # in one place, in three pieces
    assert connected_components(_joined(copies, np.zeros((60, 2))))[0] == 1


@pytest.mark.parametrize("n_cells", [1, 2, 6])
def test_k_of_a_handful_of_cells_is_one(n_cells):
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(n_cells, 3)))
    assert choose_n_components(means, seed=0).n_components == 1


@pytest.mark.parametrize(("n_clusters", "seed"), [(3, 0), (5, 1), (10, 2), (15, 3)])
def test_training_chooses_k(tmp_path, n_clusters, seed):
    """Within two of the truth, where the clusters can be told apart; the whole model follows.

    Fifteen clusters whose means are independent span fourteen dimensions.
    """
    adata = ps.simulate(
        n_cells=60 * n_clusters,
        n_peaks=2000,
        n_clusters=n_clusters,
        density=0.1,
        fold=8.0,
        seed=seed,
    )
    model = ps.SCALE(adata, n_latent=max(10, n_clusters), seed=seed)
    assert "K=to be chosen" in repr(model)
    model.train(progress_bar=False)
    chosen = model.config.n_components
    assert abs(chosen - n_clusters) <= 2
    assert model.vae.n_components == chosen == model.get_responsibilities().shape[1]
    start = model.vae.prior.loc_kd.detach().clone()
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", adata)
    assert torch.equal(loaded.vae.prior.loc_kd, start)
    model.train(2, progress_bar=False)
    assert model.vae.n_components == chosen


def test_the_chosen_components_are_trained(cells):
    """Parameters that are made after the optimiser still move."""
    weights = {}
    for epochs in (7, 12):
        model = train(small_scale(cells, None), epochs, warmup_epochs=6, kl_warmup_epochs=2)
        weights[epochs] = model.vae.prior.loc_kd.detach()
    assert not torch.allclose(weights[7], weights[12])


def test_k_cannot_be_chosen_without_a_warm_up_or_for_a_classifier(cells):
    with pytest.raises(ValueError, match="chosen after Newton sweeps or a warm-up"):
        train(small_scale(cells, None), warmup_epochs=0)
    with pytest.raises(ValueError, match="give n_components"):
        small_scale(cells, None, formulation="amortized")
