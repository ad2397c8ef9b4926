r"""Brute-force evaluation of the definitions, without any of the code under test.

:class:`Models` is a batch of ``n`` toy models of one cell each, in NumPy. Expectations over z are
sums over a grid, expectations over c are Python loops. Nothing here uses ``pyro_scale``, except
:meth:`Models.point`, which converts the models to the input of the closed forms.

The trapezoid rule converges geometrically for analytic integrands that vanish at both ends.
Every expectation is computed twice, the second time with half the step, and the two must agree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats

from pyro_scale.objectives import EvaluationPoint, terms

Array = NDArray[np.float64]
REACH = 9.0  # half width of a grid in standard deviations; the tail beyond it is below 1e-18
# Largest change when the step is halved, times the mean absolute integrand where that exceeds 1.
DOUBLING = 1e-11
NODES = {1: 301, 2: 121}  # D -> nodes per dimension of the coarser grid under q(z|x)


def log_normal(x: Array, loc: Array, sd: Array) -> Array:
    """Return log N(x; loc, sd^2), elementwise (D01.1 compares it with scipy's)."""
    return -0.5 * ((x - loc) / sd) ** 2 - np.log(sd) - np.log(2 * np.pi) / 2


@dataclass(frozen=True, eq=False)
class Models:
    """Prior, decoder, cell x and q(z|x) = N(m, diag(s2)) of n models of one cell each."""

    pi_nk: Array
    mu_nkd: Array
    var_nkd: Array
    w_npd: Array
    b_np: Array
    x_np: Array
    m_nd: Array
    s2_nd: Array
    likelihood: str = "bernoulli"

    def __post_init__(self) -> None:
        assert self.likelihood in ("bernoulli", "poisson"), "the oracle has no other likelihood"

    def __len__(self) -> int:
        return len(self.x_np)

    @property
    def k(self) -> int:
        """Number of components K."""
        return self.pi_nk.shape[1]

    @property
    def d(self) -> int:
        """Number of latent dimensions D."""
        return self.m_nd.shape[1]

    def change(self, **fields: Array) -> Models:
        """Return the same models with some fields replaced."""
        return Models(**(self.__dict__ | fields))

    def select(self, keep_n: NDArray[np.bool_]) -> Models:
        """Return the models for which ``keep_n`` is True."""
        arrays = {key: value[keep_n] for key, value in vars(self).items() if key != "likelihood"}
        return Models(**arrays, likelihood=self.likelihood)

    def at(self, z_snd: Array) -> At:
        """Return the densities at z, ``(s, n, d)``."""
        return At(self, z_snd)

    def point(self, z_snd: Array) -> EvaluationPoint:
        """Return the input of the closed forms at z; they broadcast over a prior per cell."""
        fields = [self.m_nd, self.s2_nd, np.log(self.pi_nk), self.mu_nkd, self.var_nkd]
        eta_snp, x_np = torch.tensor(self.at(z_snd).eta_snp), torch.tensor(self.x_np)
        if self.likelihood == "bernoulli":
            log_lik_sn = terms.bernoulli_log_lik(eta_snp, x_np)
        else:
            log_rate_snp = eta_snp.log_softmax(-1) + x_np.sum(-1, keepdim=True).log()
            log_lik_sn = terms.poisson_log_lik(log_rate_snp, x_np)
        return EvaluationPoint(torch.tensor(z_snd), *map(torch.tensor, fields), log_lik_sn)


@dataclass(frozen=True, eq=False)
class At:
    """All densities of the models at z, ``(s, n, d)``; each is computed on first use and cached."""

    models: Models
    z_snd: Array

    @cached_property
    def eta_snp(self) -> Array:
        """Output of the decoder, ``(s, n, p)``."""
        return np.einsum("npd,snd->snp", self.models.w_npd, self.z_snd) + self.models.b_np

    @cached_property
    def log_lik(self) -> Array:
        """log p(x|z), ``(s, n)``: a sum over peaks."""
        x_np = self.models.x_np
        if self.models.likelihood == "bernoulli":
            # log sigmoid(eta) where x = 1, log sigmoid(-eta) where x = 0
            return -np.logaddexp(0, (1 - 2 * x_np) * self.eta_snp).sum(-1)
        rate_snp = x_np.sum(-1, keepdims=True) * special.softmax(self.eta_snp, -1)
        return stats.poisson.logpmf(x_np, rate_snp).sum(-1)

    @cached_property
    def log_p_z_given_c(self) -> Array:
        """log p(z|c), ``(s, n, k)``."""
        sd_nkd = np.sqrt(self.models.var_nkd)
        per_c = [
            log_normal(self.z_snd, self.models.mu_nkd[:, c], sd_nkd[:, c]).sum(-1)
            for c in range(self.models.k)
        ]
        return np.stack(per_c, -1)

    @cached_property
    def log_p_z(self) -> Array:
        """log p(z), ``(s, n)``: the log of the sum over c."""
        total = -np.inf
        for c in range(self.models.k):
            joint = np.log(self.models.pi_nk[:, c]) + self.log_p_z_given_c[..., c]
            total = np.logaddexp(total, joint)
        return total

    @cached_property
    def log_gamma(self) -> Array:
        """log p(c|z) by Bayes' rule, ``(s, n, k)``."""
        return np.log(self.models.pi_nk) + self.log_p_z_given_c - self.log_p_z[..., None]

    @cached_property
    def gamma(self) -> Array:
        """p(c|z), ``(s, n, k)``."""
        return np.exp(self.log_gamma)

    @cached_property
    def log_q_z(self) -> Array:
        """log q(z|x), ``(s, n)``."""
        return log_normal(self.z_snd, self.models.m_nd, np.sqrt(self.models.s2_nd)).sum(-1)


def standard_grid(d: int, nodes: int) -> tuple[Array, Array]:
    """Return trapezoid nodes ``(s, d)`` and weights ``(s,)`` of a d-dimensional standard normal."""
    t, step = np.linspace(-REACH, REACH, nodes, retstep=True)
    t_sd = np.stack(np.meshgrid(*[t] * d), -1).reshape(-1, d)
    return t_sd, (step * stats.norm.pdf(t_sd)).prod(-1)


@functools.lru_cache(maxsize=16)
def grid_under_q(models: Models, nodes: int) -> tuple[At, Array]:
    """Return a grid for q(z|x) and its weights; cached, because every expectation uses it."""
    t_sd, w_s = standard_grid(models.d, nodes)
    return models.at(models.m_nd + np.sqrt(models.s2_nd) * t_sd[:, None, :]), w_s


def mean_under_q(models: Models, f: Callable[[At], Array]) -> Array:
    """Return E_q(z|x)[f] for an f that returns ``(s, n, ...)``; checked by halving the step."""
    at, w_s = grid_under_q(models, NODES[models.d])
    coarse = np.tensordot(w_s, f(at), 1)
    at, w_s = grid_under_q(models, 2 * NODES[models.d] - 1)
    values = f(at)
    fine, size = np.tensordot(w_s, values, 1), np.tensordot(w_s, np.abs(values), 1)
    assert np.all(np.abs(coarse - fine) <= DOUBLING * np.maximum(size, 1)), "the grid is too coarse"
    return fine


@functools.cache
def g_bar(models: Models) -> Array:
    """Return the averaged responsibilities E_q(z|x)[p(c|z)], ``(n, k)``."""
    return mean_under_q(models, lambda at: at.gamma)


@functools.cache
def g_star(models: Models) -> Array:
    """Return the normalized geometric mean of p(c|z) under q(z|x), ``(n, k)``."""
    return special.softmax(mean_under_q(models, lambda at: at.log_gamma), -1)


def kl(p_k: Array, q_k: Array) -> Array:
    """Return KL(p || q) over the last axis, with 0 log 0 = 0."""
    return special.rel_entr(p_k, q_k).sum(-1)


def five_terms(models: Models, reading: str, g_nk: Array | None = None) -> Array:
    """Return the expectations of the five terms of ``ElboTerms``, in its order, ``(5, n)``.

    Parameters
    ----------
    models
        The models.
    reading
        ``"structured"`` is q(z|x) p(c|z); ``"mean_field"`` is q(z|x) g(c); ``"scale"`` is
        SCALE's objective: as structured, but log p(z|c) is averaged over an independent z.
    g_nk
        g(c), ``(n, k)``, for ``"mean_field"``; None takes the averaged responsibilities.
    """
    rows = np.zeros((5, len(models)))
    rows[0] = mean_under_q(models, lambda at: at.log_lik)
    rows[3] = mean_under_q(models, lambda at: -at.log_q_z)
    for c in range(models.k):
        weight_n = g_bar(models)[:, c] if g_nk is None else g_nk[:, c]
        if reading == "structured":
            rows[1] += mean_under_q(
                models, lambda at, c=c: at.gamma[..., c] * at.log_p_z_given_c[..., c]
            )
        else:
            rows[1] += weight_n * mean_under_q(models, lambda at, c=c: at.log_p_z_given_c[..., c])
        rows[2] += weight_n * np.log(models.pi_nk[:, c])
        if reading == "mean_field":
            rows[4] -= weight_n * np.log(weight_n)
        else:
            rows[4] -= mean_under_q(models, lambda at, c=c: at.gamma[..., c] * at.log_gamma[..., c])
    return rows
