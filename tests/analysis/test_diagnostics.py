"""k-hat, evidence, calibration and predictive p-values, on weights and draws that are known."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import small_scale, train
from scipy.stats import norm

import pyro_scale as ps
from pyro_scale.analysis.diagnostics import (
    K_HAT_LIMIT,
    calibration,
    importance_log_evidence,
    pareto_k,
    posterior_predictive_pvalues,
)

CRITICAL = norm.isf(1e-6)


def linear_gaussian(mean_shift, scale, *, n_samples=4000, n_cells=30, seed=0):
    """Log weights of z ~ N(0, 1), x | z ~ N(z, 1) under a q that is the posterior, moved.

    log p(x) is exact; ``scale`` multiplies the posterior's standard deviation.
    """
    rng = np.random.default_rng(seed)
    x_n = rng.normal(0, np.sqrt(2), n_cells)
    loc_n, sd = x_n / 2 + mean_shift, scale * np.sqrt(0.5)
    z_sn = loc_n + sd * rng.normal(size=(n_samples, n_cells))
    log_joint_sn = norm.logpdf(z_sn) + norm.logpdf(x_n, z_sn)
    return log_joint_sn - norm.logpdf(z_sn, loc_n, sd), norm.logpdf(x_n, 0, np.sqrt(2))


@pytest.mark.parametrize("k", [0.2, 0.9, 1.3])
def test_k_hat_is_the_shape_of_a_pareto_tail(k):
    """w = u^-k has shape k; the mean over cells is held to its error."""
    n_samples, n_cells = 4000, 60
    log_w = -k * np.log(np.random.default_rng(0).uniform(size=(n_samples, n_cells)))
    k_n = pareto_k(log_w - 12345.0)
    tail = 3 * np.sqrt(n_samples)
    shrunk = (tail * k + 10 * 0.5) / (tail + 10)  # the fit's weak prior at 0.5
    error = k_n.std(ddof=1) / np.sqrt(n_cells)
    assert abs(k_n.mean() - shrunk) < CRITICAL * error + 0.02
    # Power: the other tail of the same weights, which a wrong sign would fit.
    assert abs(pareto_k(-log_w).mean() - shrunk) > 0.5


def test_k_hat_tells_a_bad_q_from_the_posterior():
    exact, _ = linear_gaussian(0.0, 1.0)
    np.testing.assert_array_equal(pareto_k(exact), -np.inf)
    wide, _ = linear_gaussian(0.0, 1.3)
    assert (pareto_k(wide) < 0.5).all()
    narrow, _ = linear_gaussian(0.0, 0.2)
    assert (pareto_k(narrow) > K_HAT_LIMIT).mean() > 0.7
    assert np.median(pareto_k(narrow)) > K_HAT_LIMIT
    assert pareto_k(narrow).mean() > pareto_k(linear_gaussian(0.0, 0.9)[0]).mean()
    # A narrow q has a tail of shape 1 - scale^2, reached slowly.
    assert abs(np.median(pareto_k(narrow)) - (1 - 0.2**2)) < 0.15


@pytest.mark.parametrize("smoothed", [True, False])
def test_the_evidence_is_that_of_a_linear_gaussian(smoothed):
    """Exact where q is the posterior; else within its error over cells, paired."""
    exact, log_px = linear_gaussian(0.0, 1.0)
    np.testing.assert_allclose(importance_log_evidence(exact, smoothed=smoothed), log_px, atol=1e-9)
    off, log_px = linear_gaussian(0.3, 1.2, n_cells=200)
    difference = importance_log_evidence(off, smoothed=smoothed) - log_px
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert abs(difference.mean()) < CRITICAL * error + 1e-3  # the logarithm's bias is O(1 / S)
    # Power: without the 1 / S, or as the mean of the log weights (the ELBO), it fails.
    assert abs((off.mean(0) - log_px).mean()) > 10 * error + 1e-3


def test_smoothing_shortens_the_tail_and_changes_nothing_else():
    log_w, log_px = linear_gaussian(0.0, 0.6, n_samples=300, n_cells=200)
    plain, smooth = (importance_log_evidence(log_w, smoothed=s) for s in (False, True))
    moved = importance_log_evidence(log_w - 1e4) + 1e4
    np.testing.assert_allclose(moved, smooth, atol=1e-8)
    assert (smooth - log_px).std() < (plain - log_px).std()
    assert (smooth <= log_w.max(0)).all()


def test_weights_that_underflow_have_an_infinite_tail():
    """One draw that is everything, and weights that are all the same but for rounding."""
    rng = np.random.default_rng(0)
    log_w = np.stack([-2000 * rng.exponential(size=200), 1e-12 * rng.normal(size=200)], 1)
    k_n = pareto_k(log_w)
    assert k_n[0] > 10
    assert k_n[1] == -np.inf
    np.testing.assert_allclose(importance_log_evidence(log_w)[1], 0, atol=1e-9)
    some_zero = np.where(rng.uniform(size=(200, 1)) < 0.3, -np.inf, rng.normal(size=(200, 1)))
    assert np.isfinite(importance_log_evidence(some_zero)).all()


@pytest.mark.parametrize(
    ("log_w", "words"),
    [
        (np.zeros(50), "shape (50,): expected (draws, cells)"),
        (np.zeros((24, 2)), "24 draws per cell: the Pareto fit needs at least 25"),
        (np.full((50, 2), np.nan), "100 of 100 log weights are NaN or infinite"),
        (np.full((50, 2), -np.inf), "(or all weights of a cell are -inf)"),
    ],
)
def test_weights_that_are_none(log_w, words):
    for function in (pareto_k, importance_log_evidence):
        with pytest.raises(ValueError, match=re.escape(words)):
            function(log_w)


def test_calibration_of_probabilities_that_are_right():
    """Clusters drawn from the responsibilities are observed as often as they are expected."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.full(4, 0.5), 20_000)
    of = (rng.uniform(size=(len(q), 1)) > q.cumsum(1)).sum(1)
    table = calibration(q, of)
    assert table["n_cells"].sum() == len(q)
    z = (table["observed"] - table["confidence"]) / table["error"]
    assert (z.abs() < CRITICAL).all()
    # Power: q that is too sure.
    sure = q**3 / (q**3).sum(1, keepdims=True)
    table = calibration(sure, of)
    assert ((table["confidence"] - table["observed"]) / table["error"]).max() > 10
    # Cells of no component are never right.
    assert (calibration(q, np.full(len(q), -1))["observed"] == 0).all()
    certain = calibration(pd.DataFrame(np.eye(3)), [0, 1, 2], n_bins=5)
    assert list(certain.index) == ["[0.867, 1]"]
    assert certain["confidence"].item() == certain["observed"].item() == 1


@pytest.mark.parametrize(
    ("q", "clusters", "n_bins", "words"),
    [
        ([[0.5, 0.5]], [0, 1], 10, "shape (1, 2) and clusters of shape (2,)"),
        ([[0.5, 0.4]], [0], 10, "rows sum to one"),
        ([[0.5, 0.5]], [2], 10, "whole numbers from 0 to 1"),
        ([[0.5, 0.5]], ["a"], 10, "match labels to components"),
        ([[0.5, 0.5]], [1], 0, "n_bins=0 must be at least one"),
    ],
)
def test_a_calibration_that_there_is_not(q, clusters, n_bins, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        calibration(q, clusters, n_bins=n_bins)


def test_predictive_p_values_of_data_from_the_model():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.5, 5, 3000)
    draws, observed = rng.poisson(rate, (400, 3000)), rng.poisson(rate)
    p = posterior_predictive_pvalues(draws, observed)
    assert abs(p.mean() - 0.5) < CRITICAL * p.std() / np.sqrt(len(p))
    assert posterior_predictive_pvalues(draws, 2 * observed + 3).mean() < 0.2
    # Ties counted whole would not be 1/2 on average.
    assert abs((draws >= observed).mean() - 0.5) > 0.05
    with pytest.raises(ValueError, match=r"\(400, 3000\) and observations of shape \(2999,\)"):
        posterior_predictive_pvalues(draws, observed[1:])


def test_the_verb_is_aligned_reproducible_and_sees_a_narrow_q():
    adata = ps.simulate(n_cells=60, n_peaks=120, n_clusters=3, density=0.1, seed=1)
    model = small_scale(adata)
    with pytest.raises(ps.NotTrainedError, match=r"call model.train\(\)"):
        model.get_pareto_k()
    train(model, max_epochs=20)
    k = model.get_pareto_k(n_samples=200)
    assert k.name == "pareto_k"
    assert list(k.index) == list(adata.obs_names)
    assert k.equals(model.get_pareto_k(n_samples=200))
    assert not k.equals(model.get_pareto_k(n_samples=200, seed=1))
    some = adata[[5, 3, 40]]
    assert list(model.get_pareto_k(some, n_samples=30, batch_size=2).index) == list(some.obs_names)
    with pytest.raises(ValueError, match="24 draws"):
        model.get_pareto_k(n_samples=24)
    model.vae.encoder.forward = lambda cells, encode=model.vae.encoder.forward: (
        encode(cells)[0],
        encode(cells)[1] / 100,
    )
    narrow = model.get_pareto_k(n_samples=200)
    assert narrow.median() > K_HAT_LIMIT > k.median()
    assert (narrow > k).mean() > 0.9


@pytest.mark.parametrize("nats", [500, 1000, 10_000])
def test_weights_too_far_apart_for_a_tail_are_not_called_reliable(nats):
    """ArviZ has k-hat 0.05, which is good, and no number for the weights, once they underflow."""
    log_w = nats * np.random.default_rng(0).normal(size=(1000, 2))
    log_w[:, 1] /= nats
    k_n = pareto_k(log_w)
    assert k_n[0] == np.inf
    assert k_n[1] < 0.7
    estimated = importance_log_evidence(log_w)
    np.testing.assert_allclose(estimated[0], importance_log_evidence(log_w, smoothed=False)[0])
    assert np.isfinite(estimated).all()


def test_one_draw_that_is_not_minus_infinity():
    log_w = np.full((100, 1), -np.inf)
    log_w[3] = -7.0
    assert pareto_k(log_w) == np.inf
    np.testing.assert_allclose(importance_log_evidence(log_w), -7.0 - np.log(100))
