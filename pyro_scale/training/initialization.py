"""Initialization of the networks from the data, and the posterior means of all cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pyro_scale.config import ModelConfig
from pyro_scale.data import CountMatrix, loader, sparse_cells
from pyro_scale.programs import BernoulliLikelihood, Lsi, MixturePrior, MixtureVAE

__all__ = [
    "build_vae",
    "fit_lsi",
    "half_means",
    "moments",
    "seeded",
    "standard_normal_prior",
    "subsample_indices",
]

_CHUNK = 1024  # cells whose TF-IDF is computed at a time


def build_vae(counts: CountMatrix, config: ModelConfig) -> MixtureVAE:
    """Build the networks of a configuration and initialize them from the cells.

    With the default preset the encoder reads the latent semantic indexing (LSI) of the cells, and
    the Bernoulli likelihood has a term for sequencing depth. With either preset the decoder's bias
    starts at each peak's mean accessibility, on the scale of the decoder's output; this changes
    where training starts, not the model.

    Parameters
    ----------
    counts
        The training cells.
    config
        The configuration; ``n_components=None`` gives a mixture of one component.

    Examples
    --------
    >>> from pyro_scale.config import ModelConfig
    >>> vae = build_vae(counts, ModelConfig(3, 2, hidden=(8,), preset="plain"))
    >>> vae.n_peaks, vae.n_components, vae.n_latent
    (60, 3, 2)
    """
    lsi = None
    if not config.plain:
        lsi = fit_lsi(counts, config.n_lsi, config.seed, n_batches=config.n_batches)
    mean_log_depth = float(np.log(counts.depth).mean()) if config.has_depth_term else None
    vae = config.build_vae(counts.n_peaks, lsi=lsi, mean_log_depth=mean_log_depth)
    with torch.no_grad():
        vae.likelihood.peaks.bias.copy_(torch.from_numpy(_peak_bias(vae, counts)).float())
    return vae


def subsample_indices(max_cells: int, n_cells: int, seed: int) -> NDArray[np.intp]:
    """Return the sorted indices of at most ``max_cells`` of ``n_cells`` cells, chosen at random."""
    return np.sort(np.random.default_rng(seed).permutation(n_cells)[:max_cells])


def fit_lsi(
    counts: CountMatrix,
    n_directions: int,
    seed: int,
    *,
    n_batches: int = 1,
    max_cells: int = 20_000,
) -> Lsi:
    """Fit the latent semantic indexing (LSI) that the encoder reads: singular vectors of TF-IDF.

    The first singular vector, which correlates with sequencing depth, is left out. The result has
    fewer than ``n_directions`` directions if there are too few cells or peaks.

    Parameters
    ----------
    counts
        The cells.
    n_directions
        Number of directions, R.
    seed
        Seed of the randomized SVD and of the random choice of cells.
    n_batches
        Number of batches; the mean of each batch is subtracted from its cells.
    max_cells
        Largest number of cells that are decomposed. If there are more, as many are chosen at
        random, so that time and memory do not grow with the number of cells on disk.

    Examples
    --------
    >>> lsi = fit_lsi(counts, n_directions=5, seed=0)
    >>> lsi.directions_pr.shape
    torch.Size([60, 5])
    """
    from sklearn.preprocessing import normalize  # here, because it takes long to import
    from sklearn.utils.extmath import randomized_svd

    chosen = subsample_indices(max_cells, counts.n_cells, seed)
    rank = min(n_directions + 1, len(chosen), counts.n_peaks)
    lsi = Lsi(counts.n_peaks, max(1, rank - 1), n_batches)
    y = normalize(_tf_idf(lsi, counts[chosen]), copy=False)
    _, _, directions_rp = randomized_svd(y, rank, n_iter=7, random_state=seed)
    lsi.directions_pr.copy_(torch.from_numpy(directions_rp[min(1, rank - 1) :].T.copy()))
    for batch in range(n_batches if counts.batch is not None else 0):
        members = np.flatnonzero(counts.batch == batch)
        some = members[subsample_indices(max_cells, len(members), seed)]
        lsi.centre(sparse_cells(counts[some]))
    return lsi


def _tf_idf(lsi: Lsi, counts: CountMatrix) -> sparse.csr_matrix:
    """Return the TF-IDF, shape ``(n, p)``, and store the inverse document frequencies in ``lsi``.

    The matrix of ``counts`` is overwritten if it is in memory; pass a copy.
    """
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


def _peak_bias(vae: MixtureVAE, counts: CountMatrix) -> NDArray[np.float64]:
    """Return the decoder bias that fits each peak's mean over cells, shape ``(p,)``.

    It is the logit of the fraction of cells with the peak open (Bernoulli likelihood), or the log
    of the peak's fraction of all counts (Poisson likelihood), with a pseudocount of one half.
    """
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
    """Return the prior of the warm-up: N(0, I) as a mixture of one component, without gradients."""
    prior = MixturePrior(1, n_latent)
    prior.set_components(torch.ones(1), torch.zeros(1, n_latent), torch.ones(1, n_latent))
    return prior.requires_grad_(False)


@torch.inference_mode()
def moments(vae: MixtureVAE, counts: CountMatrix, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(z|x) of every cell, each ``(n, d)``, in the cells' order.

    Parameters
    ----------
    vae
        The model.
    counts
        The cells.
    batch_size
        Number of cells that are encoded at a time.

    Examples
    --------
    >>> loc_nd, var_nd = moments(model.vae, counts)
    >>> loc_nd.shape, var_nd.shape
    (torch.Size([40, 3]), torch.Size([40, 3]))
    """
    was_training = vae.training
    vae.eval()
    head = vae.encoder.loc.weight
    pairs = [vae.encoder(cells.to(head)) for cells in loader(counts, batch_size)]
    vae.train(was_training)
    return torch.cat([loc for loc, _ in pairs]), torch.cat([var for _, var in pairs])


@torch.no_grad()
def half_means(vae: MixtureVAE, counts: CountMatrix, seed: int) -> tuple[Tensor, Tensor]:
    """Return the means of q(z|x) of every cell from either half of its peaks, each ``(n, d)``.

    The halves are drawn at random for each cell, and no peak is in both.

    Parameters
    ----------
    vae
        The model.
    counts
        The cells.
    seed
        Seed of the halves.

    Examples
    --------
    >>> one_nd, other_nd = half_means(model.vae, counts, seed=0)
    >>> one_nd.shape, other_nd.shape
    (torch.Size([40, 3]), torch.Size([40, 3]))
    """
    was_training = vae.training
    vae.eval()
    head = vae.encoder.loc.weight
    with seeded(seed, head.device):
        pairs = [
            [vae.encoder(half)[0] for half in cells.to(head).split_peaks(vae.encoder.lsi is None)]
            for cells in loader(counts, 512)
        ]
    vae.train(was_training)
    return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the block, and restore their states.

    What is drawn then does not depend on what was drawn before, such as in another process.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
