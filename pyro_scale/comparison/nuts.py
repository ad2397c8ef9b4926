"""Estimates of p(z|x) and p(c|x) of some cells by NUTS, with which q(z,c|x) is compared.

The decoder and the prior are held fixed, so that the comparison tests inference and not the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_scale._locking import exclusive
from pyro_scale._validation import check_int
from pyro_scale.config import ModelLike
from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.exceptions import DataError, NotTrainedError
from pyro_scale.objectives import evaluate
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

__all__ = ["NutsResult", "compare_to_nuts", "sample_latent_nuts"]

_DENSE = 2**20  # cells x peaks; below it, gradients of dense cells are faster


class NutsResult(NamedTuple):
    """NUTS draws of p(z|x) for some cells, with convergence diagnostics.

    Attributes
    ----------
    z
        Draws of z after warm-up, shape ``(chain, draw, cell, latent)``, float64.
    gamma
        p(c|x) = E_p(z|x)[p(c|z)], averaged over all draws, cells x components.
    gamma_error
        Monte Carlo standard error of ``gamma``, based on the effective sample size.
    rhat
        Rank-normalized split r-hat of each cell, the largest over the dimensions of z and over
        log p(c|z). It is near one if the chains have mixed. Because it is the largest of several
        values, it may reach 1.02 by chance; the draws of a cell above 1.05 are not reliable.
    ess
        Bulk effective sample size of each cell, the smallest over the dimensions of z.
    n_divergent
        Number of divergent transitions after warm-up; it should be zero.

    Examples
    --------
    >>> result = sample_latent_nuts(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> result.z.shape, result.gamma.shape, len(result.cells)
    ((2, 10, 2, 3), (2, 2), 2)
    """

    z: NDArray[np.float64]
    gamma: pd.DataFrame
    gamma_error: pd.DataFrame
    rhat: pd.Series
    ess: pd.Series
    n_divergent: int

    @property
    def cells(self) -> pd.Index:
        """Names of the sampled cells."""
        return self.gamma.index


def _choose(
    counts: CountMatrix, cells: Sequence[str] | None, n_cells: int, seed: int
) -> CountMatrix:
    """Select cells by name, in the order given, or a random subset, in the order of the data."""
    if cells is None:
        check_int("n_cells", n_cells)
        rng = np.random.default_rng(seed)
        return counts[np.sort(rng.permutation(counts.n_cells)[:n_cells])]
    names = pd.Index([cells] if isinstance(cells, str) else list(cells))
    at = counts.obs_names.get_indexer(names)
    if not len(names) or (at < 0).any() or names.has_duplicates:
        unknown = names[at < 0]
        raise DataError(
            f"cells={list(names[:3])} (of {len(names)}): expected distinct names of cells such as "
            f"{counts.obs_names[0]!r}"
            + (
                f"; {len(unknown)} are not in the data, such as {unknown[0]!r}."
                if len(unknown)
                else "."
            )
        )
    return counts[at]


def _fixed(model: ModelLike, counts: CountMatrix) -> tuple[MixtureVAE, CellBatch]:
    """Return a float64 copy of the MixtureVAE that requires no gradients, and the cells."""
    vae = copy.deepcopy(model.vae).cpu().double().eval().requires_grad_(False)
    cells = sparse_cells(counts).to(torch.float64)
    return vae, cells.dense() if counts.n_cells * counts.n_peaks <= _DENSE else cells


def _log_joint(vae: MixtureVAE, cells: CellBatch, z_nd: Tensor, moments: Any) -> Tensor:
    """Return log p(x, z) with c summed out, shape ``(n,)``."""
    at = evaluate(vae, cells, z_nd, moments=moments)
    return at.log_lik_n + (at.log_pi_k + at.log_p_z_given_c_nk).logsumexp(-1)


@exclusive()
def sample_latent_nuts(
    model: ModelLike,
    adata: AnnData | None = None,
    *,
    cells: Sequence[str] | None = None,
    n_cells: int = 20,
    n_draws: int = 500,
    n_warmup: int = 500,
    n_chains: int = 2,
    seed: int = 0,
) -> NutsResult:
    r"""Draw z of some cells from p(z|x) by NUTS, with decoder and prior held fixed.

    .. math:: p(z|x) \propto p(x|z) \sum_c \pi_c N(z; \mu_c, \mathrm{var}_c)

    c is summed out; p(c|x) is the mean of the exact p(c|z) over the draws. Chains start at draws
    from the *prior*, which do not depend on q. If the posterior has several modes and the chains do
    not move between them, ``rhat`` is large. The cells are independent but sampled jointly: they
    share the step size and the number of leapfrog steps, and the diagonal mass matrix adapts to
    each cell. This is valid for any number of cells, and fast for a few tens of cells.

    Parameters
    ----------
    model
        A trained :class:`pyro_scale.SCALE`. It is not changed: a float64 copy is sampled.
    adata
        AnnData that holds the cells; if None, the training data.
    cells
        Names of the cells; if None, ``n_cells`` random cells.
    n_cells
        Number of random cells if ``cells`` is None; all cells if there are fewer.
    n_draws
        Number of draws that are kept per chain.
    n_warmup
        Number of warm-up draws per chain, which are discarded.
    n_chains
        Number of chains.
    seed
        Seed of the random number generators that choose the cells and run the chains.

    Returns
    -------
    NutsResult
        Draws of z, estimates of p(c|x) with standard errors, and convergence diagnostics.

    Raises
    ------
    NotTrainedError
        If the model is not trained.
    DataError
        If ``cells`` is empty, or holds an unknown or a repeated name.
    ValueError
        If ``n_cells``, ``n_draws``, ``n_warmup`` or ``n_chains`` is too small. R-hat needs at
        least two chains and four draws.

    References
    ----------
    Hoffman and Gelman 2014, *The No-U-Turn sampler*, arXiv:1111.4246; Vehtari et al. 2021,
    *Rank-normalization, folding, and localization: an improved R-hat*, arXiv:1903.08008.

    Examples
    --------
    >>> result = sample_latent_nuts(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> result.z.shape
    (2, 10, 2, 3)
    >>> compare_to_nuts(result, model).columns.tolist()
    ['tv', 'tv_error', 'z_difference', 'sd_ratio', 'rhat', 'ess']
    """
    if not model.is_trained:
        raise NotTrainedError("the model is not trained: call model.train() first.")
    check_int("n_draws", n_draws, least=4)
    check_int("n_warmup", n_warmup)
    check_int("n_chains", n_chains, least=2)
    counts = _choose(model.counts(adata), cells, n_cells, seed)
    vae, batch = _fixed(model, counts)
    moments = vae.encoder(batch)

    def potential(sites: dict[str, Tensor]) -> Tensor:
        return -_log_joint(vae, batch, sites["z"], moments).sum()

    chains, n_divergent = [], 0
    for chain in range(n_chains):
        # Pyro's kernels draw from torch's global generator; its state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed * n_chains + chain)
            start = {"z": vae.prior.mixture().sample((batch.n_cells,))}
            kernel = NUTS(potential_fn=potential)
            mcmc = MCMC(kernel, n_draws, n_warmup, initial_params=start, disable_progbar=True)
            mcmc.run()
        chains.append(mcmc.get_samples()["z"].detach())
        n_divergent += sum(map(len, mcmc.diagnostics()["divergences"].values()))
    return _summary(vae, torch.stack(chains), counts.obs_names, n_divergent)


def _summary(vae: MixtureVAE, z_csnd: Tensor, names: pd.Index, n_divergent: int) -> NutsResult:
    """Summarize the draws, shape ``(chain, draw, cell, latent)``, with convergence diagnostics."""
    from arviz_stats.base import array_stats  # imported here because the import is slow

    log_gamma = vae.prior.log_responsibilities(z_csnd).numpy()
    z, gamma = z_csnd.numpy(), np.exp(log_gamma)
    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(all="ignore"):  # 0 / 0 for a responsibility that is equal in every draw
        rhats = [array_stats.rhat(values, **axes) for values in (z, log_gamma)]
        error_nk = np.nan_to_num(array_stats.mcse(gamma, **axes, method="mean"))
    components = [str(k) for k in range(gamma.shape[-1])]
    return NutsResult(
        z,
        pd.DataFrame(gamma.mean((0, 1)), index=names, columns=components),
        pd.DataFrame(error_nk, index=names, columns=components),
        pd.Series(np.nanmax(np.concatenate(rhats, -1), -1), index=names, name="rhat"),
        pd.Series(array_stats.ess(z, **axes).min(-1), index=names, name="ess"),
        n_divergent,
    )


def compare_to_nuts(
    result: NutsResult,
    model: ModelLike,
    adata: AnnData | None = None,
    *,
    n_samples: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare q(z|x), and gbar(c|x) = E_q(z|x)[p(c|z)], with the NUTS estimates of each cell.

    Parameters
    ----------
    result
        Result of :func:`sample_latent_nuts`.
    model, adata
        The arguments that were given to :func:`sample_latent_nuts`.
    n_samples
        Number of draws of z from q(z|x) over which p(c|z) is averaged to estimate gbar.
    seed
        Seed of the random number generator that draws z.

    Returns
    -------
    DataFrame
        One row per cell. p(c|x) and p(z|x) stand for their NUTS estimates. The columns are:

        * ``tv``: the total variation distance :math:`\tfrac12 \sum_c |\bar g_c - p(c|x)|`, from 0
          to 1.
        * ``tv_error``: half the sum over c of the standard errors of :math:`\bar g_c - p(c|x)`.
          Monte Carlo noise may explain a ``tv`` of this size.
        * ``z_difference``: the absolute difference between the means of q(z|x) and p(z|x), in
          standard deviations of p(z|x), largest over the latent dimensions.
        * ``sd_ratio``: the standard deviation of q(z|x) divided by that of p(z|x), geometric mean
          over the latent dimensions. If it is below one, q(z|x) is too narrow.
        * ``rhat``: the r-hat of the NUTS chains, largest over the dimensions of z and over
          log p(c|z), as in :class:`NutsResult`.
        * ``ess``: the bulk effective sample size of the NUTS draws of z, smallest over the
          dimensions of z.

    Raises
    ------
    DataError
        If the cells of ``result`` are not in the data.
    ValueError
        If ``n_samples`` is below two.

    Examples
    --------
    >>> result = sample_latent_nuts(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> compare_to_nuts(result, model).shape
    (2, 6)
    """
    check_int("n_samples", n_samples, least=2)
    vae, batch = _fixed(model, _choose(model.counts(adata), list(result.cells), 0, seed))
    loc_nd, var_nd = vae.encoder(batch)
    generator = torch.Generator().manual_seed(seed)
    noise_snd = loc_nd.new_empty((n_samples, *loc_nd.shape)).normal_(generator=generator)
    gamma_snk = vae.prior.log_responsibilities(rsample(loc_nd, var_nd, noise_snd)).exp().numpy()
    difference_nk = gamma_snk.mean(0) - result.gamma.to_numpy()
    error_nk = np.hypot(gamma_snk.std(0, ddof=1) / np.sqrt(n_samples), result.gamma_error)
    mean_nd, sd_nd = result.z.mean((0, 1)), result.z.std((0, 1))
    return pd.DataFrame(
        {
            "tv": 0.5 * np.abs(difference_nk).sum(1),
            "tv_error": 0.5 * np.asarray(error_nk).sum(1),
            "z_difference": np.abs((loc_nd.numpy() - mean_nd) / sd_nd).max(1),
            "sd_ratio": np.exp(np.log(var_nd.sqrt().numpy() / sd_nd).mean(1)),
            "rhat": result.rhat,
            "ess": result.ess,
        },
        index=result.cells,
    )
