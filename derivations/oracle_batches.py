"""Random models, and the ladder of bounds (chapter 5) by brute force."""

from __future__ import annotations

import functools

import numpy as np
from oracle import Array, Models, five_terms, g_bar, g_star
from oracle_posterior import log_p_x


def random_models(n: int, k: int, d: int, *, seed: int, likelihood: str = "bernoulli") -> Models:
    """Draw n models with overlapping components and a q(z|x) that may lie between them."""
    rng, p = np.random.default_rng(seed), 6
    x_np = rng.integers(0, 2, (n, p)) if likelihood == "bernoulli" else 1 + rng.poisson(2, (n, p))
    return Models(
        pi_nk=rng.dirichlet(np.full(k, 2.0), n),
        mu_nkd=rng.normal(0, 1.5, (n, k, d)),
        var_nkd=rng.uniform(0.5, 2.0, (n, k, d)),
        w_npd=rng.normal(0, 1.0 / d, (n, p, d)),
        b_np=rng.normal(0, 1.0, (n, p)),
        x_np=x_np.astype(float),
        m_nd=rng.normal(0, 1.0, (n, d)),
        s2_nd=rng.uniform(0.1, 1.0, (n, d)),
        likelihood=likelihood,
    )


def ladder(models: Models) -> Array:
    """Return log p(x), L_str, L_mf(g*), L_mf(gbar) and E[L_scale], ``(5, n)``."""
    rungs = [
        five_terms(models, "structured"),
        five_terms(models, "mean_field", g_star(models)),
        five_terms(models, "mean_field", g_bar(models)),
        five_terms(models, "scale"),
    ]
    return np.stack([log_p_x(models), *(rung.sum(0) for rung in rungs)])


@functools.cache
def batch(k: int, d: int, likelihood: str = "bernoulli") -> Models:
    """Draw random models and keep those whose four gaps all exceed 0.01 nat."""
    raw = random_models(250 if d == 1 else 8, k, d, seed=10 * k + d, likelihood=likelihood)
    return raw.select((-np.diff(ladder(raw), axis=0) > 0.01).all(0))


BATCHES = [(2, 1), (3, 1), (4, 1), (3, 2)]
