"""What is computed of the latent means: two dimensions, clusters, F tests."""

import builtins
import random
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway, ttest_ind
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from pyro_scale.analysis import embed, kmeans_clusters, latent_specificity, leiden_clusters


@pytest.fixture(scope="module")
def blobs():
    """Three well-separated clusters in five dimensions."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [50, 40, 30])
    return (rng.normal(size=(120, 5)) + 12 * np.eye(3, 5)[codes]).astype(np.float32), codes


@pytest.fixture
def callers_state():
    """Random numbers, warnings and rcParams stay the caller's."""

    def state():
        return random.getstate(), str(np.random.get_state()), list(warnings.filters)  # noqa: NPY002

    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures("callers_state")
@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_neighbours_in_the_embedding_are_of_one_cluster(blobs, method):
    z, codes = blobs
    xy = embed(z, method=method, seed=1)
    assert xy.shape == (120, 2)
    assert xy.dtype == np.float32
    near = NearestNeighbors(n_neighbors=6).fit(xy).kneighbors(return_distance=False)
    assert (codes[near] == codes[:, None]).all()
    np.testing.assert_array_equal(embed(z, method=method, seed=1), xy)
    if method == "umap":  # t-SNE starts from the principal components
        assert (embed(z, method=method, seed=2) != xy).any()


@pytest.mark.parametrize("method", ["umap", "tsne"])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 29])
@pytest.mark.parametrize("d", [1, 3])
def test_few_cells_and_few_dimensions_are_embedded(method, n, d):
    z = np.random.default_rng(0).normal(size=(n, d))
    xy = embed(z, method=method)
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()
    if n < 5:
        np.testing.assert_array_equal(xy, np.c_[z, np.zeros(n)][:, :2].astype(np.float32))


@pytest.mark.usefixtures("callers_state")
def test_clusters_are_found_and_named(blobs):
    z, codes = blobs
    for clusters in (kmeans_clusters(z, 3), leiden_clusters(z, resolution=0.1)):
        assert isinstance(clusters, pd.Categorical)
        assert list(clusters.categories) == ["0", "1", "2"]
        assert adjusted_rand_score(codes, clusters) == 1
    assert list(leiden_clusters(z, resolution=0.1)) == [str(code) for code in codes]  # by size
    assert len(leiden_clusters(z, resolution=3).categories) > 3
    assert leiden_clusters(z, seed=4).equals(leiden_clusters(z, seed=4))


def test_clusters_of_few_or_equal_cells():
    z = np.arange(4.0)[:, None]
    assert sorted(kmeans_clusters(z, 4)) == ["0", "1", "2", "3"]
    assert len(leiden_clusters(z[:3])) == 3
    assert list(kmeans_clusters(np.zeros((3, 2)), 2).categories) == ["0", "1"]
    assert list(kmeans_clusters(z, 1)) == ["0"] * 4


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda z: embed(z, method="pca"), "method='pca' is not known; choose 'umap' or 'tsne'"),
        (lambda z: embed(z[:, 0]), r"shape \(120,\); expected cells x dimensions"),
        (lambda z: embed(z * np.nan), "has 600 NaN or infinities"),
        (lambda z: embed(z, n_neighbors=1), "n_neighbors=1 must be at least two"),
        (lambda z: kmeans_clusters(z, 121), "n_clusters=121 for 120 cells; expected 1 to 120"),
        (lambda z: kmeans_clusters(z, 0), "n_clusters=0"),
        (lambda z: leiden_clusters(z[:2]), "2 cells are too few"),
        (lambda z: leiden_clusters(z, resolution=0), "resolution=0 must be positive"),
        (lambda z: latent_specificity(z, ["a"]), "1 clusters for 120 cells"),
        (lambda z: latent_specificity(z[:, 0], ["a"]), r"shape \(120,\)"),
        (lambda z: latent_specificity(z / 0, np.zeros(120)), "has 600 NaN or infinities"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_cannot_be_used_is_refused(blobs, act, words):
    with pytest.raises(ValueError, match=words):
        act(blobs[0])


@pytest.mark.parametrize("missing", ["scanpy", "igraph"])
def test_a_missing_extra_is_named(blobs, monkeypatch, missing):
    found = builtins.__import__

    def imports(name, *args, **kwargs):
        if name == missing:
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imports)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "pyro-scale\[scanpy\]"'):
        leiden_clusters(blobs[0])
    if missing == "scanpy":
        with pytest.raises(ImportError, match=r'pip install "pyro-scale\[scanpy\]"'):
            embed(blobs[0])
        assert embed(blobs[0][:20], method="tsne").shape == (20, 2)


@pytest.mark.parametrize(("n", "d", "k"), [(3, 1, 2), (40, 8, 3), (200, 12, 15), (500, 1, 2)])
def test_f_tests_equal_scipys(n, d, k):
    rng = np.random.default_rng(n)
    z = rng.normal(3, 2, size=(n, d))
    codes = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    z[:, 0] += codes
    p = latent_specificity(z, codes)
    assert p.shape == (d, k)
    for name in p.columns:
        at = codes == int(name)
        np.testing.assert_allclose(p[name], f_oneway(z[at], z[~at]).pvalue, rtol=1e-8)


def test_f_tests_of_tight_clusters_far_apart_do_not_cancel():
    """Within is 1e-16 of between: f_oneway subtracts there; the t test, F = t^2, does not."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [3, 4, 5])
    z = 1e6 * (codes == 0)[:, None] + 1e-2 * rng.normal(size=(12, 2))
    expected = ttest_ind(z[codes == 0], z[codes != 0]).pvalue
    np.testing.assert_allclose(latent_specificity(z, codes)["0"], expected, rtol=1e-6)


def test_f_tests_where_nothing_can_be_told():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, 3))
    z[:, 1] = 0.1  # constant, and not exact in binary
    clusters = pd.Categorical(list("ab" * 8) + [None] * 4, categories=list("bca"))
    p = latent_specificity(z, clusters)
    assert list(p.columns) == ["b", "a"]  # c has no cells
    assert (p.loc[1] == 1).all()
    at = np.arange(16) % 2 == 0
    np.testing.assert_allclose(p["a"][0], f_oneway(z[:16][at, 0], z[:16][~at, 0]).pvalue)
    assert (latent_specificity(z, ["a"] * 20) == 1).all(axis=None)  # no other cells
    assert (latent_specificity(z[:2], ["a", "b"]) == 1).all(axis=None)
    apart = latent_specificity(np.repeat([[0.0], [1.0]], 5, axis=0), list("aaaaabbbbb"))
    assert (apart == 0).all(axis=None)  # constant inside both, but not the same


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_cells_that_lie_in_one_point_have_an_embedding(method):
    """scikit-learn's t-SNE would end the interpreter."""
    if method == "umap":
        pytest.importorskip("scanpy")
    xy = embed(np.ones((12, 2)), method=method)
    assert xy.shape == (12, 2)
    assert len(np.unique(xy, axis=0)) == 1
