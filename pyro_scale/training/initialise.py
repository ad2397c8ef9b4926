"""Where training starts: networks from the data's margins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale.data import Counts, sparse_cells
from pyro_scale.programs import (
    BernoulliLikelihood,
    LikelihoodName,
    Lsi,
    MixturePrior,
    MixtureVAE,
)

__all__ = [
    "at_most",
    "build_vae",
    "lsi_of",
    "standard_normal_prior",
]

_CHUNK = 1024  # cells whose TF-IDF is taken at a time


def build_vae(
    counts: Counts,
    n_components: int,
    n_latent: int,
    *,
    hidden: tuple[int, ...],
    decoder_hidden: tuple[int, ...],
    likelihood: LikelihoodName,
    plain: bool,
    classifier: bool,
    n_batches: int = 1,
    n_lsi: int = 50,
    seed: int = 0,
) -> MixtureVAE:
    """The networks for these cells; the default ones start from the data's margins.

    Parameters
    ----------
    counts
        The training cells.
    n_components, n_latent, hidden, decoder_hidden, likelihood, classifier, n_batches
        As in :class:`~pyro_scale.programs.MixtureVAE`.
    plain
        The networks of SCALE as published. Otherwise: the encoder reads LSI, layer
        normalisation, and a depth term in the Bernoulli likelihood. The decoder's bias starts at
        each peak's accessibility in both: a start is not part of the model.
    n_lsi, seed
        As in :func:`lsi_of`.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> counts = ps.data.as_counts(adata)
    >>> networks = {"hidden": (8,), "decoder_hidden": (), "likelihood": "bernoulli"}
    >>> vae = build_vae(counts, 3, 2, **networks, plain=True, classifier=False)
    >>> vae.n_peaks, vae.n_components, vae.n_latent
    (60, 3, 2)
    """
    vae = MixtureVAE(
        counts.n_peaks,
        n_components,
        n_latent,
        hidden=hidden,
        decoder_hidden=decoder_hidden,
        likelihood=likelihood,
        classifier=classifier,
        n_batches=n_batches,
        layer_norm=not plain,
        lsi=None if plain else lsi_of(counts, n_lsi, seed, n_batches=n_batches),
        mean_log_depth=None
        if plain or likelihood == "poisson"
        else float(np.log(counts.depth).mean()),
    )
    with torch.no_grad():
        vae.likelihood.peaks.bias.copy_(torch.from_numpy(_peak_bias(vae, counts)).float())
    return vae


def at_most(max_cells: int, n_cells: int, seed: int) -> NDArray[np.intp]:
    """Positions of so many cells, in order: all of them, or a random choice."""
    return np.sort(np.random.default_rng(seed).permutation(n_cells)[:max_cells])


def lsi_of(
    counts: Counts, n_directions: int, seed: int, *, n_batches: int = 1, max_cells: int = 20_000
) -> Lsi:
    """The directions that the encoder reads: singular vectors of the cells' TF-IDF.

    The first one, which follows depth, is left out; ``n_directions`` shrinks to what the cells
    and peaks allow. Beyond ``max_cells`` cells a random choice of so many is decomposed.

    Parameters
    ----------
    counts
        The cells.
    n_directions
        R.
    n_batches
        Number of batches, whose means are taken off.
    seed
        Of the randomised SVD and of the choice of cells.
    max_cells
        Bounds time and memory (which should not grow with the cells on disk).

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> counts = ps.data.as_counts(adata)
    >>> lsi = lsi_of(counts, n_directions=5, seed=0)
    >>> lsi.directions_pr.shape
    torch.Size([60, 5])
    """
    from sklearn.preprocessing import normalize  # here, because it takes long to import
    from sklearn.utils.extmath import randomized_svd

    chosen = at_most(max_cells, counts.n_cells, seed)
    rank = min(n_directions + 1, len(chosen), counts.n_peaks)
    lsi = Lsi(counts.n_peaks, max(1, rank - 1), n_batches)
    y = normalize(_tf_idf(lsi, counts[chosen]), copy=False)
    _, _, directions_rp = randomized_svd(y, rank, n_iter=7, random_state=seed)
    lsi.directions_pr.copy_(torch.from_numpy(directions_rp[min(1, rank - 1) :].T.copy()))
    for batch in range(n_batches if counts.batch is not None else 0):
        members = np.flatnonzero(counts.batch == batch)
        some = members[at_most(max_cells, len(members), seed)]
        lsi.centre(sparse_cells(counts[some]))
    return lsi


def _tf_idf(lsi: Lsi, counts: Counts) -> sparse.csr_matrix:
    """Writes over the matrix of ``counts``: give a copy. The peaks' share of it goes to ``lsi``."""
    x = counts.read()
    idf_p = np.log1p(counts.n_cells / np.maximum(x.getnnz(0), 1))
    lsi.idf_p.copy_(torch.from_numpy(idf_p))
    counts = replace(counts, x=x)
    for start in range(0, counts.n_cells, _CHUNK):
        part = slice(start, min(start + _CHUNK, counts.n_cells))
        cells = sparse_cells(counts[part])
        entries = slice(x.indptr[part.start], x.indptr[part.stop])
        x.data[entries] = lsi.tf_idf(cells.x_np, cells.depth_n).values().numpy()
    return x


def _peak_bias(vae: MixtureVAE, counts: Counts) -> NDArray[np.float64]:
    """What the decoder would say of a peak if every cell were alike, half a count smoothed in."""
    total_p = np.full(counts.n_peaks, 0.5)
    for _, x in counts.chunks():
        total_p += np.asarray(x.sum(0), dtype=np.float64).ravel()
    if isinstance(vae.likelihood, BernoulliLikelihood):
        open_p = total_p / (counts.n_cells + 1)
        logit_p: NDArray[np.float64] = np.log(open_p) - np.log1p(-open_p)
        return logit_p
    log_p: NDArray[np.float64] = np.log(total_p / total_p.sum())
    return log_p


def standard_normal_prior(n_latent: int) -> MixturePrior:
    """N(0, I) as a mixture of one component, its parameters fixed: the warm-up's prior."""
    prior = MixturePrior(1, n_latent)
    prior.set_components(torch.ones(1), torch.zeros(1, n_latent), torch.ones(1, n_latent))
    return prior.requires_grad_(False)
