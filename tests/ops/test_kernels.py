"""What Numba compiles says what torch says: Adam on open peaks, sums over all peaks."""

import numba.core.caching
import numpy as np
import pytest
import torch
from scipy import sparse as sp
from scipy import stats

from pyro_scale.ops import _lazy_adam_kernels as peak_rows
from pyro_scale.ops import _numba as parallel
from pyro_scale.ops import peak_sums
from pyro_scale.ops import sparse as ops
from pyro_scale.ops._normal_kernels import keyed_normals
from pyro_scale.ops._numba import compiled
from pyro_scale.programs.networks import PeakLinear
from pyro_scale.training.lazy_adam import LazyAdam


@pytest.mark.parametrize("clip", [1e6, 0.5])
@pytest.mark.parametrize("density", [0.3, 0.02])
@pytest.mark.parametrize("settled", [None, 7])
@pytest.mark.parametrize("kept", [4096, 100, 50])
def test_adam_on_open_peaks_alone_is_adam(density, clip, settled, kept, monkeypatch):
    """Two uses in one step, as in SCALE's auxiliary program; clipped by its norm or not.

    At 2 % most rows are closed for many steps; where epsilon is nothing, nothing differs. Where the
    gradients of 50 or 100 cells are kept, those of the last one or two steps stay when it is full.
    """
    monkeypatch.setattr("pyro_scale.training.lazy_adam._MAX_PENDING_CELLS", kept)
    few, whole = PeakLinear(40, 4).double(), PeakLinear(40, 4).double()
    whole.load_state_dict(few.state_dict())
    ours = LazyAdam(few, lr=0.1, eps=1e-30)
    theirs = torch.optim.Adam([whole.weight_ph], lr=0.1, eps=1e-30)
    for step in range(30):
        x, y = (
            ops.from_scipy(sp.random_array((6, 40), density=density, format="csr", rng=step + seed))
            for seed in (0, 100)
        )
        torch.testing.assert_close(few(x), whole(x), rtol=1e-9, atol=1e-12)
        ours.zero_grad()
        theirs.zero_grad()
        for layer in (few, whole):
            (layer(x).square().sum() + layer(y).pow(3).sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_([whole.weight_ph], clip)
        assert few.weight_ph.grad is None
        torch.testing.assert_close(ours.norm(), norm, check_dtype=False)
        ours.scale_gradient_(min(1.0, float(clip / (norm + 1e-6))))
        ours.step()
        theirs.step()
        if settled and step % settled == 0:
            ours.flush()
            torch.testing.assert_close(few.weight_ph, whole.weight_ph, rtol=1e-9, atol=1e-12)
    assert density > 0.1 or not torch.allclose(few.weight_ph, whole.weight_ph)  # still owed
    state = few.state_dict()  # which pays
    torch.testing.assert_close(state["weight_ph"], whole.weight_ph.detach(), rtol=1e-9, atol=1e-12)
    saved, theirs_saved = ours.state_dict()["state"][0], theirs.state[whole.weight_ph]
    assert float(saved["step"]) == 30
    for moment in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(saved[moment], theirs_saved[moment], rtol=1e-9, atol=1e-25)
    ours.close()
    assert few.product is None
    few.state_dict()


def test_a_step_on_cells_that_were_read_before_another_step():
    """Rows that are behind when their gradient comes are brought up to date first."""
    few, whole = PeakLinear(40, 4).double(), PeakLinear(40, 4).double()
    whole.load_state_dict(few.state_dict())
    ours = LazyAdam(few, lr=0.1, eps=1e-30)
    theirs = torch.optim.Adam([whole.weight_ph], lr=0.1, eps=1e-30)
    x, y = (
        ops.from_scipy(sp.random_array((6, 40), density=0.2, format="csr", rng=seed))
        for seed in (0, 1)
    )
    for layer, adam in ((few, ours), (whole, theirs)):
        early = layer(x).sum()  # linear: its gradient does not hang on the weights
        layer(y).sum().backward()
        adam.step()
        adam.zero_grad()
        early.backward()
        adam.step()
    ours.flush()
    torch.testing.assert_close(few.weight_ph, whole.weight_ph, rtol=1e-9, atol=1e-12)


def test_adam_on_open_peaks_keeps_to_adam_in_single_precision_for_many_steps():
    """With the usual epsilon; and a learning rate that is changed on the way."""
    few, whole = PeakLinear(60, 8), PeakLinear(60, 8)
    whole.load_state_dict(few.state_dict())
    ours, theirs = LazyAdam(few, lr=1e-2), torch.optim.Adam([whole.weight_ph], lr=1e-2)
    for step in range(600):
        if step == 300:
            for each in (ours, theirs):
                each.param_groups[0]["lr"] = 3e-3
        x = sp.random_array((4, 60), density=0.02, format="csr", rng=step, dtype=np.float32)
        for layer, adam in ((few, ours), (whole, theirs)):
            adam.zero_grad()
            (layer(ops.from_scipy(x)) - 1).square().mean().backward()
            adam.step()
    ours.flush()
    torch.testing.assert_close(few.weight_ph, whole.weight_ph, rtol=1e-3, atol=1e-4)


def test_a_step_without_a_use_changes_nothing_and_dense_cells_are_refused():
    layer = PeakLinear(5, 3)
    before = layer.weight_ph.detach().clone()
    adam = LazyAdam(layer)
    adam.step()
    assert float(adam.norm()) == 0
    assert torch.equal(layer.weight_ph, before)
    with pytest.raises(TypeError, match="sparse"):
        layer(torch.ones(2, 5))


@pytest.mark.parametrize(("n_peaks", "density"), [(3, 0.7), (500, 0.05), (500, 0.0)])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_open_peaks_of_cells_are_the_transposed_matrix(n_peaks, density, ordered):
    rng = np.random.default_rng(0)
    x = sp.random(40, n_peaks, density, "csr", np.float32, rng)
    x.data[::3] = 0  # stored, and hidden
    wanted = x.T.tocsr()
    wanted.eliminate_zeros()
    wanted.sort_indices()
    if not ordered:
        for n in range(40):
            turned = slice(x.indptr[n], x.indptr[n + 1])
            x.indices[turned], x.data[turned] = x.indices[turned][::-1], x.data[turned][::-1]
        x.has_sorted_indices = False  # scipy caches it
    before = x.copy()
    found = peak_rows.OpenPeaks.from_csr(x)
    sizes = np.diff(wanted.indptr)
    np.testing.assert_array_equal(found.peak, np.flatnonzero(sizes))
    np.testing.assert_array_equal(np.diff(found.start), sizes[found.peak])
    np.testing.assert_array_equal(found.cell, wanted.indices)
    np.testing.assert_array_equal(found.value, wanted.data)
    np.testing.assert_array_equal(x.indices, before.indices)


def test_what_kernels_do_does_not_depend_on_the_number_of_threads(cells):
    weights = []
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            layer = PeakLinear(cells.n_vars, 16)
            torch.manual_seed(0)
            torch.nn.init.normal_(layer.weight_ph)
            adam = LazyAdam(layer)
            x = ops.from_scipy(cells.X[:20].astype(np.float32))
            layer(x).square().sum().backward()
            adam.step()
            weights.append(layer.weight_ph.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*weights)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 700, 3), (7, 1300, 10)])
@pytest.mark.parametrize(
    "function", [peak_sums.softplus_over_peaks, peak_sums.logsumexp_over_peaks]
)
def test_sums_over_peaks_in_single_precision(shape, function):
    """Kernels against torch in double precision, for logits from -90 to 90."""
    n, p, r = shape
    torch.manual_seed(0)
    parts = [torch.randn(n, r), torch.randn(p, r), 30 * torch.randn(p), 5 * torch.randn(n)]
    largest = float(peak_sums.Logits(*parts).dense().abs().max())
    grad_n, found = torch.randn(n), {}
    for dtype in (torch.float32, torch.float64):
        given = [part.clone().to(dtype).requires_grad_() for part in parts]
        total_n = function(peak_sums.Logits(*given))
        total_n.backward(grad_n.to(dtype))
        found[dtype] = [total_n.detach(), *(part.grad for part in given)]
    for single, double in zip(*found.values(), strict=True):
        error, scale = 2**-23 * largest, float(double.abs().max())  # of a rounded logit, in exp
        torch.testing.assert_close(single.double(), double, rtol=error, atol=error * scale)


def test_logsumexp_of_what_is_not_finite():
    for bad in (torch.nan, torch.inf, -torch.inf):
        eta = peak_sums.Logits(torch.ones(1, 1), torch.zeros(3, 1), torch.full((3,), bad))
        got = peak_sums.logsumexp_over_peaks(eta)
        torch.testing.assert_close(got, torch.tensor([bad]), equal_nan=True)


def test_softplus_of_what_is_not_finite():
    for bad, expected in ((torch.nan, torch.nan), (torch.inf, torch.inf), (-torch.inf, 0.0)):
        eta = peak_sums.Logits(torch.ones(1, 1), torch.zeros(3, 1), torch.full((3,), bad))
        got = peak_sums.softplus_over_peaks(eta)
        torch.testing.assert_close(
            got, torch.tensor([expected]), equal_nan=True, atol=1e-30, rtol=0
        )


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    def double(x):
        return 2 * x

    assert compiled(set())(double)(3) == 6
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled(set())(double)(3) == 6


def test_what_a_kernel_raises_is_raised_and_threads_come_back():
    def fails(i):
        if i == 5:
            raise ZeroDivisionError("in part 5")

    before = torch.get_num_threads()
    with parallel.reserve_threads_for_kernels():
        assert torch.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError, match="part 5"):
            parallel.in_parallel(fails, [(i,) for i in range(8)])
    assert torch.get_num_threads() == before
    assert parallel._kernel_threads == 0


def test_normals_of_a_key_are_normal_and_its_own():
    keys = np.arange(2000, dtype=np.uint64) * np.uint64(2**40)
    normals = keyed_normals(keys, 0, 250, 3)
    assert normals.dtype == np.float32
    assert np.isfinite(normals).all()
    assert stats.kstest(normals.ravel(), "norm").pvalue > 1e-4
    # Neither neighbors in a stream, nor streams of other keys or seeds, go together.
    others = keyed_normals(keys, 1, 250, 3)
    for one, other in (
        (normals[:-1], normals[1:]),
        (normals[:, :-1], normals[:, 1:]),
        (normals[..., 0], normals[..., 1]),
        (normals[..., 0], normals[..., 1] ** 2),
        (normals, others),
    ):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.size)
    some = keys[[5, 1999]]
    np.testing.assert_array_equal(keyed_normals(some, 0, 7, 3), normals[:7, [5, 1999]])
    assert keyed_normals(keys[:0], 0, 2, 3).shape == (2, 0, 3)
    assert keyed_normals(keys[:1], 2**32 - 1, 1, 1).shape == (1, 1, 1)
