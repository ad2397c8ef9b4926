"""log p(x) and averages under p(z|x), on grids that do not depend on q(z|x).

If both sides of an identity shared one quadrature, its errors could cancel, and the identity would
be no evidence about log p(x).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from oracle import DOUBLING, Array, At, Models, log_normal, standard_grid
from scipy import special

# D -> nodes per dimension. p(z|x) may be much narrower than the prior, which sets the grid's width.
POSTERIOR_NODES = {1: 401, 2: 161}


@functools.cache
def posterior_mode(models: Models, c: int) -> Array:
    """Return the mode of p(z|c) p(x|z), ``(n, d)``, by Newton's method.

    The function is log-concave in z, so it has one mode.
    """
    w_npd, depth_n1 = models.w_npd, models.x_np.sum(-1, keepdims=True)
    precision_nd = 1 / models.var_nkd[:, c]
    z_nd = models.mu_nkd[:, c]
    for _ in range(30):
        eta_np = models.at(z_nd[None]).eta_snp[0]
        if models.likelihood == "bernoulli":
            mean_np = special.expit(eta_np)
            cov_npp = np.stack([np.diag(s * (1 - s)) for s in mean_np])
        else:
            mean_np = depth_n1 * special.softmax(eta_np, -1)
            outer_npp = mean_np[:, :, None] * mean_np[:, None, :] / depth_n1[..., None]
            cov_npp = np.stack([np.diag(s) for s in mean_np]) - outer_npp
        slope_nd = np.einsum("npd,np->nd", w_npd, models.x_np - mean_np)
        slope_nd = slope_nd - (z_nd - models.mu_nkd[:, c]) * precision_nd
        curvature_ndd = np.einsum("npd,npq,nqe->nde", w_npd, cov_npp, w_npd)
        curvature_ndd = curvature_ndd + np.stack([np.diag(v) for v in precision_nd])
        step_nd = np.linalg.solve(curvature_ndd, slope_nd[..., None])[..., 0]
        z_nd = z_nd + step_nd / np.maximum(1, np.abs(step_nd).max(-1, keepdims=True))
    assert np.abs(slope_nd).max() < 1e-9, "Newton did not converge"
    return z_nd


@functools.lru_cache(maxsize=64)
def grid_under_posterior(models: Models, c: int, nodes: int) -> tuple[At, Array, Array]:
    """Return a grid around the mode of p(z|c) p(x|z), its weights for p(z|x,c), and log p(x,c).

    The integrand is at most exp(-t^2/2) of its peak at t prior standard deviations, because
    log p(x|z) is concave in z.
    """
    t_sd, w_s = standard_grid(models.d, nodes)
    mode_nd, sd_nd = posterior_mode(models, c), np.sqrt(models.var_nkd[:, c])
    at = models.at(mode_nd + sd_nd * t_sd[:, None, :])
    log_f = np.log(models.pi_nk[:, c]) + at.log_p_z_given_c[..., c] + at.log_lik
    log_f = log_f - log_normal(at.z_snd, mode_nd, sd_nd).sum(-1)
    peak_n = log_f.max(0)
    w_sn = w_s[:, None] * np.exp(log_f - peak_n)
    return at, w_sn / w_sn.sum(0), peak_n + np.log(w_sn.sum(0))


def under_posterior(models: Models, f: Callable[[At], Array], nodes: int) -> tuple[Array, Array]:
    """Return log p(x), ``(n,)``, and E_p(z|x)[f], ``(n, ...)``, as sums over c of one grid each."""
    grids = [grid_under_posterior(models, c, nodes) for c in range(models.k)]
    log_p_x_c = np.stack([log_piece for _, _, log_piece in grids])
    p_c_x = special.softmax(log_p_x_c, 0)
    values = np.stack([np.einsum("sn,sn...->n...", w_sn, f(at)) for at, w_sn, _ in grids])
    return np.logaddexp.reduce(log_p_x_c), np.einsum("cn,cn...->n...", p_c_x, values)


def mean_under_posterior(models: Models, f: Callable[[At], Array]) -> Array:
    """Return E_p(z|x)[f] without q(z|x); checked by halving the step."""
    return _checked_under_posterior(models, f)[1]


@functools.cache
def log_p_x(models: Models) -> Array:
    """Return log p(x), ``(n,)``, without q(z|x); checked by halving the step."""
    return _checked_under_posterior(models, lambda at: at.log_lik)[0]


def _checked_under_posterior(models: Models, f: Callable[[At], Array]) -> tuple[Array, Array]:
    nodes = POSTERIOR_NODES[models.d]
    coarse, fine = under_posterior(models, f, nodes), under_posterior(models, f, 2 * nodes - 1)
    for a, b in zip(coarse, fine, strict=True):
        assert np.all(np.abs(a - b) <= DOUBLING * np.maximum(np.abs(b), 1)), "grid too coarse"
    return fine
