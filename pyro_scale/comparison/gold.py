"""The gold standard for a few cells: p(z|x) and p(c|x) by Markov chains, beside q.

The decoder and the prior are held fixed, so that only inference is judged and not the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_scale.comparison.prepare import Comparable, copied
from pyro_scale.data import Counts, sparse_cells
from pyro_scale.errors import DataError, NotTrainedError
from pyro_scale.objectives import evaluate
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["NutsResult", "agreement", "nuts_latent"]

_DENSE = 2**20  # cells x peaks: up to here, dense gradients are faster than sparse ones


class NutsResult(NamedTuple):
    """Draws of p(z|x) for some cells, and how far they can be trusted.

    Attributes
    ----------
    z
        Draws after warm-up, shape ``(chain, draw, cell, latent)``, float64.
    gamma
        p(c|x) = E_p(z|x)[p(c|z)], averaged over all draws: cells x components.
    gamma_error
        Monte Carlo standard error of ``gamma``, by the effective number of draws.
    rhat
        Rank-normalised split r-hat of each cell, the worst of z's dimensions and of p(c|z): near
        one where the chains have met. The worst of so many reaches 1.02 by chance; above 1.05 do
        not rely on the cell.
    ess
        Bulk effective sample size of each cell, the smallest of z's dimensions.
    n_divergent
        Divergent transitions after warm-up; there should be none.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.train(max_epochs=2, progress_bar=False)
    >>> result = nuts_latent(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> result.z.shape, result.gamma.shape, len(result.cells)
    ((2, 10, 2, 2), (2, 2), 2)
    """

    z: NDArray[np.float64]
    gamma: pd.DataFrame
    gamma_error: pd.DataFrame
    rhat: pd.Series
    ess: pd.Series
    n_divergent: int

    @property
    def cells(self) -> pd.Index:
        """Names of the cells."""
        return self.gamma.index


def _choose(counts: Counts, cells: Sequence[str] | None, n_cells: int, seed: int) -> Counts:
    """The cells of these names, in the order given; or some at random, in their own order."""
    if cells is None:
        if n_cells < 1:
            raise ValueError(f"n_cells={n_cells} must be at least one.")
        rng = np.random.default_rng(seed)
        return counts[np.sort(rng.permutation(counts.n_cells)[:n_cells])]
    names = pd.Index([cells] if isinstance(cells, str) else list(cells))
    at = counts.obs_names.get_indexer(names)
    if not len(names) or (at < 0).any() or names.has_duplicates:
        unknown = names[at < 0]
        raise DataError(
            f"cells={list(names[:3])} (of {len(names)}): expected different names of cells like "
            f"{counts.obs_names[0]!r}"
            + (f"; {len(unknown)} are not there, such as {unknown[0]!r}." if len(unknown) else ".")
        )
    return counts[at]


def _fixed(model: Comparable, counts: Counts) -> tuple[MixtureVAE, Cells]:
    """A float64 copy of the parameters that asks for no gradient, and the cells."""
    vae = copied(model.vae).cpu().double().eval().requires_grad_(False)
    cells = sparse_cells(counts).to(torch.float64)
    return vae, cells.dense() if counts.n_cells * counts.n_peaks <= _DENSE else cells


def _log_joint(vae: MixtureVAE, cells: Cells, z_nd: Tensor, moments: Any) -> Tensor:
    """log p(x, z), c summed out, shape ``(n,)``."""
    at = evaluate(vae, cells, z_nd, moments=moments)
    return at.log_lik_n + (at.log_pi_k + at.log_p_z_given_c_nk).logsumexp(-1)


@one_at_a_time()
def nuts_latent(
    model: Comparable,
    adata: AnnData | None = None,
    *,
    cells: Sequence[str] | None = None,
    n_cells: int = 20,
    n_draws: int = 500,
    n_warmup: int = 500,
    n_chains: int = 2,
    seed: int = 0,
) -> NutsResult:
    r"""Draw z of a few cells from their exact posterior by NUTS, decoder and prior held fixed.

    .. math:: p(z|x) \propto p(x|z) \sum_c \pi_c N(z; \mu_c, \mathrm{var}_c)

    c is summed out, and comes back exactly given z: p(c|x) is the mean of p(c|z) over the draws.
    Chains start at draws of the *prior*, which know nothing of q: where the posterior has modes
    that chains do not cross, ``rhat`` says so. Cells are independent, and are sampled together:
    one step size and one number of steps fit all of them, and a diagonal mass matrix each of
    them, which is sound for any number and fast for some tens.

    Parameters
    ----------
    model
        A trained :class:`pyro_scale.SCALE`; it is copied to float64 and left as it is.
    adata
        Other cells; None: the training cells.
    cells
        Names of the cells; None: ``n_cells`` of them at random.
    n_cells
        How many, where none are named; at most as many as there are.
    n_draws, n_warmup, n_chains
        Draws kept and draws thrown away, per chain.
    seed
        Of the choice of cells and of the chains.

    Returns
    -------
    NutsResult
        Draws, p(c|x), r-hat and effective sample sizes.

    Raises
    ------
    NotTrainedError
        Before ``train()``.
    DataError
        If a name is no cell.
    ValueError
        If a number is too small: r-hat needs two chains and four draws.

    References
    ----------
    Hoffman and Gelman 2014, *The No-U-Turn sampler*, arXiv:1111.4246; Vehtari et al. 2021,
    *Rank-normalization, folding, and localization: an improved R-hat*, arXiv:1903.08008.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.train(max_epochs=2, progress_bar=False)
    >>> result = nuts_latent(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> result.z.shape
    (2, 10, 2, 2)
    >>> agreement(result, model).columns.tolist()
    ['tv', 'tv_error', 'z_difference', 'sd_ratio', 'rhat', 'ess']
    """
    if not model.is_trained:
        raise NotTrainedError("the model is not trained: call model.train() first.")
    if n_draws < 4 or n_warmup < 1 or n_chains < 2:
        raise ValueError(
            f"n_draws={n_draws}, n_warmup={n_warmup}, n_chains={n_chains}: expected at least 4, "
            "1 and 2."
        )
    counts = _choose(model.counts(adata), cells, n_cells, seed)
    vae, batch = _fixed(model, counts)
    moments = vae.encoder(batch)

    def potential(sites: dict[str, Tensor]) -> Tensor:
        return -_log_joint(vae, batch, sites["z"], moments).sum()

    chains, n_divergent = [], 0
    for chain in range(n_chains):
        # Pyro's kernels draw from torch's global generator; the caller's is put back.
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
    """What the draws say, shape ``(chain, draw, cell, latent)``."""
    from arviz_stats.base import array_stats  # here, because it takes long to import

    log_gamma = vae.prior.log_responsibilities(z_csnd).numpy()
    z, gamma = z_csnd.numpy(), np.exp(log_gamma)
    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(all="ignore"):  # a responsibility that is the same in every draw
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


def agreement(
    result: NutsResult,
    model: Comparable,
    adata: AnnData | None = None,
    *,
    n_samples: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""q(z|x) and the q(c|x) that follows from it, held against NUTS, cell by cell.

    Parameters
    ----------
    result
        Of :func:`nuts_latent`.
    model, adata
        As given to it.
    n_samples
        Draws of q(z|x) behind gbar = E_q[p(c|z)].
    seed
        Of these draws.

    Returns
    -------
    DataFrame
        A row per cell: ``tv``, the total variation distance
        :math:`\tfrac12 \sum_c |\bar g_c - p(c|x)|` (0 to 1); ``tv_error``, what it may owe to
        Monte Carlo noise, half the sum of the standard errors of both sides; ``z_difference``,
        the largest over dimensions of \|mean of q - mean of p\| in standard deviations of p(z|x);
        ``sd_ratio``, the standard deviation of q over that of p(z|x), geometric mean over
        dimensions (below one: q is too sure); ``rhat`` and ``ess`` of the chains.

    Raises
    ------
    DataError
        If the cells of ``result`` are not among the model's.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.train(max_epochs=2, progress_bar=False)
    >>> result = nuts_latent(model, n_cells=2, n_draws=10, n_warmup=10)
    >>> agreement(result, model).shape
    (2, 6)
    """
    if n_samples < 2:
        raise ValueError(f"n_samples={n_samples} must be at least two.")
    vae, batch = _fixed(model, _choose(model.counts(adata), list(result.cells), 0, seed))
    loc_nd, var_nd = vae.encoder(batch)
    generator = torch.Generator().manual_seed(seed)
    noise_snd = loc_nd.new_empty((n_samples, *loc_nd.shape)).normal_(generator=generator)
    gamma_snk = vae.prior.log_responsibilities(loc_nd + var_nd.sqrt() * noise_snd).exp().numpy()
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
