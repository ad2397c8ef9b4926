"""The start of training: Newton sweeps, then the mixture and the encoder from their posteriors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.ops.sparse import matmul
from pyro_scale.programs import (
    BernoulliLikelihood,
    CellBatch,
    MixturePrior,
    MixtureVAE,
    PeakLinear,
)
from pyro_scale.programs.networks import linear
from pyro_scale.training.clustering import (
    ComponentChoice,
    Start,
    choose_n_components,
    components_from_means,
)
from pyro_scale.training.config import TrainingConfig
from pyro_scale.training.initialization import (
    fit_lsi,
    half_means,
    seeded,
    standard_normal_prior,
    subsample_indices,
)
from pyro_scale.training.newton import GaussianPosterior, NewtonSweeps

__all__ = ["components_from_posteriors", "fit_encoder", "newton_start", "reason_against_sweeps"]

logger = logging.getLogger(__name__)

_MAX_CELLS, _MAX_PEAKS, _MAX_CELLS_X_PEAKS = 20_000, 20_000, 30_000_000  # in the sweeps
_MIN_CELLS = 3_000  # in the sweeps, if there are as many
_MAX_BATCHES = 20  # the curvature of a peak has a row for each
_FEWEST_CELLS, _CELLS_PER_DIMENSION = 200, 20
_MIXTURE_SWEEPS = 4  # of all sweeps, with the mixture as the prior
_AVERAGED = 4  # sweeps before them, whose draws differ
# The sweeps keep z at unit variance and Adam does not: after 180 epochs of warm-up z had a variance
# of 5.4 on the forebrain and 6.0 on the 12 cell lines. The same prior on the logits then has a
# fifth of the precision here.
_VARIANCE_RATIO = 5.0
_PLAIN_PRECISION = 2.0  # where training itself has no prior on the decoder's weights


def reason_against_sweeps(vae: MixtureVAE, n_cells: int | None = None) -> str | None:
    """Return why the sweeps cannot start a model's training, or None.

    With ``n_cells``, the reason can also be that there are too few cells: with fewer than 20 per
    latent dimension, the posterior means are mostly the noise that was fitted, and with fewer than
    200 a warm-up takes seconds.

    Parameters
    ----------
    vae
        The model.
    n_cells
        Number of training cells, or None.

    Examples
    --------
    >>> reason_against_sweeps(vae) is None
    True
    >>> reason_against_sweeps(vae, n_cells=30)
    'there are fewer than 200 cells'
    """
    if len(vae.likelihood.hidden):
        return "the decoder has hidden layers"
    if vae.likelihood.n_batches > _MAX_BATCHES:
        return f"there are more than {_MAX_BATCHES} batches"
    fewest = max(_FEWEST_CELLS, _CELLS_PER_DIMENSION * vae.n_latent)
    if n_cells is not None and n_cells < fewest:
        return f"there are fewer than {fewest} cells"
    return None


def newton_start(
    vae: MixtureVAE, counts: CountMatrix, config: TrainingConfig, *, choose_k: bool = False
) -> ComponentChoice | None:
    """Initialize decoder, mixture and encoder, in place, by Newton sweeps.

    1. Sweeps (:class:`NewtonSweeps`) with the N(0, I) prior, from the cells' LSI coordinates, fit
       the decoder, the depth slope and the posteriors of the cells.
    2. The posterior means, averaged over four sweeps, are clustered, which initializes the
       mixture; the last four sweeps have the mixture as the prior. They are left out if a warm-up
       follows (``config.n_warmup``).
    3. The encoder is fitted to the posteriors (:func:`fit_encoder`).

    Large data take part in the sweeps in part, so that time and memory are bounded. If cells times
    peaks exceeds 30 million, first the peaks are reduced to no fewer than the 20,000 that are open
    in most cells, then the cells to no fewer than 3,000, chosen at random. The other peaks are
    fitted at the end, and the encoder generalizes to the other cells.

    Parameters
    ----------
    vae
        The model, with a linear decoder.
    counts
        The training cells.
    config
        The training settings, of which ``newton_sweeps``, ``n_warmup``, ``decoder_precision``,
        ``mask_rate`` and ``seed`` are used.
    choose_k
        Whether to choose the number of components, and to replace the parameters of the prior
        accordingly. It is chosen from the means of an encoder that is fitted to the posteriors,
        which are less noisy than the posterior means themselves.

    Returns
    -------
    ComponentChoice
        The number of components, and the table from which it was chosen; None if it was not.

    Examples
    --------
    >>> newton_start(model.vae, counts, TrainingConfig(newton_sweeps=5))
    """
    began = time.monotonic()
    n_cells, n_peaks = _limits(counts)
    some = counts[subsample_indices(n_cells, counts.n_cells, config.seed)]
    cells = sparse_cells(some).to(vae.encoder.loc.weight)
    sweeps = NewtonSweeps(
        vae,
        some,
        _first_coordinates(vae, some, cells, config.seed),
        decoder_precision=config.decoder_precision / _VARIANCE_RATIO or _PLAIN_PRECISION,
        seed=config.seed,
        max_peaks=n_peaks,
    )

    def fit() -> None:
        sweeps.write_decoder(vae)
        fit_encoder(vae, cells, sweeps.posterior, mask_rate=config.mask_rate, seed=config.seed)

    n_mixture = 0 if config.n_warmup else min(_MIXTURE_SWEEPS, config.newton_sweeps - 1)
    prior = standard_normal_prior(vae.n_latent).to(vae.prior.loc_kd)
    choice: ComponentChoice | None = None
    means: list[Tensor] = []
    for _ in range(config.newton_sweeps - n_mixture):
        sweeps.sweep(prior)
        sweeps.standardize()
        means = [*means[1 - _AVERAGED :], sweeps.posterior.loc_nd]
    if not config.n_warmup:
        prior = vae.prior
        loc_nd, var_nd = torch.stack(means).mean(0), sweeps.posterior.var_nd
        if choose_k:
            fit()
            with torch.no_grad():
                smooth_nd, _ = vae.encoder(cells)
            choice = choose_n_components(
                smooth_nd,
                config.seed,
                depth_n=some.depth,
                half_means=half_means(vae, some, config.seed),
            )
            prior.resize(choice.n_components)
        prior.set_components(
            *components_from_means(loc_nd, var_nd, prior.n_components, config.seed)
        )
    for _ in range(n_mixture):
        sweeps.sweep(prior)
        prior.set_components(*components_from_posteriors(prior, sweeps.posterior))
    if n_peaks < counts.n_peaks:
        sweeps.include_all_peaks()
        sweeps.sweep(prior)
    swept = time.monotonic()
    fit()
    logger.info(
        "started from %d Newton sweeps over %d cells x %d peaks in %.1f s; the encoder was fitted "
        "to them in %.1f s",
        config.newton_sweeps,
        n_cells,
        n_peaks,
        swept - began,
        time.monotonic() - swept,
    )
    return choice


def _limits(counts: CountMatrix) -> tuple[int, int]:
    """Return the numbers of cells and of peaks that take part in the sweeps."""
    n_cells = min(counts.n_cells, _MAX_CELLS)
    n_peaks = min(counts.n_peaks, max(_MAX_PEAKS, _MAX_CELLS_X_PEAKS // n_cells))
    return min(n_cells, max(_MIN_CELLS, _MAX_CELLS_X_PEAKS // n_peaks)), n_peaks


def _first_coordinates(vae: MixtureVAE, counts: CountMatrix, cells: CellBatch, seed: int) -> Tensor:
    """Return coordinates to start from, the cells' LSI with unit variance, shape ``(n, d)``.

    The first coordinate is the logarithm of sequencing depth in a model that has neither a depth
    term nor an exposure, where z has to encode depth.
    """
    lsi = vae.encoder.lsi
    if lsi is None:
        n_batches = vae.likelihood.n_batches
        lsi = fit_lsi(counts, vae.n_latent, seed, n_batches=n_batches).to(cells.depth_n)
    parts = [lsi(cells.x_np, cells.depth_n, cells.batch_n)]
    likelihood = vae.likelihood
    if isinstance(likelihood, BernoulliLikelihood) and likelihood.depth_slope is None:
        parts.insert(0, cells.depth_n.clamp_min(1).log()[:, None])
    z_nd = torch.cat(parts, 1)[:, : vae.n_latent]
    missing = vae.n_latent - z_nd.shape[1]  # if there are few cells or peaks
    noise = torch.randn(len(z_nd), missing, generator=torch.Generator().manual_seed(seed))
    z_nd = torch.cat([z_nd, noise.to(z_nd)], 1)
    z_nd = z_nd - z_nd.mean(0)
    return z_nd / z_nd.square().mean(0).sqrt().clamp_min(1e-6)


def components_from_posteriors(prior: MixturePrior, posterior: GaussianPosterior) -> Start:
    """Return the mixture with pooled variances that maximizes the expected log prior density.

    This is the M step of expectation maximization, in which q(c|x) is
    :meth:`MixturePrior.log_optimal_q_c`. All components have the same variances: in sweeps with
    variances of its own, one component took the cells of the others on the leukemia (316 cells).

    Parameters
    ----------
    prior
        The mixture, from which q(c|x) is computed; it is not changed.
    posterior
        The posteriors of the cells.

    Examples
    --------
    >>> posterior = GaussianPosterior(torch.randn(9, 2), torch.eye(2).expand(9, 2, 2))
    >>> start = components_from_posteriors(vae.prior, posterior)
    >>> start.pi_k.shape, start.loc_kd.shape, start.var_kd.shape
    (torch.Size([3]), torch.Size([3, 2]), torch.Size([3, 2]))
    """
    loc_nd, var_nd = posterior.loc_nd, posterior.var_nd
    with torch.no_grad():
        q_c_nk = prior.log_optimal_q_c(loc_nd, var_nd).exp()
    size_k = q_c_nk.sum(0)
    mean_kd = q_c_nk.T @ loc_nd / size_k.clamp_min(1e-6)[:, None]
    square_nkd = (loc_nd.unsqueeze(1) - mean_kd).square()
    within_d = torch.einsum("nk,nkd->d", q_c_nk, square_nkd) / len(loc_nd)
    return Start(size_k / len(loc_nd), mean_kd, (within_d + var_nd.mean(0)).expand_as(mean_kd))


_N_STEPS, _BATCH_SIZE, _LR = 300, 128, 5e-3
_N_COPIES = 16  # of the encoder's input, each with other peaks masked
_MAX_GRADIENT = 10.0


def fit_encoder(
    vae: MixtureVAE,
    cells: CellBatch,
    posterior: GaussianPosterior,
    *,
    mask_rate: float,
    seed: int,
) -> None:
    r"""Fit the encoder, in place, to the Gaussian posteriors of some cells.

    The objective is the Kullback-Leibler divergence of q(z|x) from the posterior N(m, H^{-1}). If
    the posterior is the Laplace approximation of p(z|x), this is the negative ELBO with log p(x, z)
    expanded to second order around m, up to a constant. No decoder is evaluated.

    .. math:: \tfrac12 \Big[ (\mu - m)^T H (\mu - m)
        + \sum_d \big( H_{dd}\, \sigma_d^2 - \log \sigma_d^2 \big) \Big] + \mathrm{const}

    A classifier q(c|x) is fitted, by cross-entropy, to :meth:`MixturePrior.log_optimal_q_c`.

    Of the peaks that training leaves unmasked, half are masked too. The fit reads each cell many
    times, and with more masking it generalizes better to other cells.

    An encoder that reads the peaks, as that of the SCALE paper, starts from the cells' sufficient
    statistics, which are the products of accessibility with the decoder's weights, and depth. Its
    first layer reads these while it is fitted, and becomes a layer that reads the peaks at the end.

    Parameters
    ----------
    vae
        The model; the decoder is fitted already.
    cells
        The cells.
    posterior
        Their posteriors.
    mask_rate
        Fraction of the peaks that training masks in the encoder's input.
    seed
        Seed of everything that is drawn: masks, order of the cells, first weights.

    Examples
    --------
    >>> posterior = GaussianPosterior(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2))
    >>> fit_encoder(vae, cells, posterior, mask_rate=0.5, seed=0)
    """
    with seeded(seed, cells.depth_n.device):
        peaks = vae.encoder.peaks
        if peaks is None:
            _fit(vae, vae.encoder.trunk, lambda x_np: x_np, cells, posterior, mask_rate)
        else:
            statistics = _PeakStatistics(vae, len(peaks.bias_h), cells)
            trunk = nn.Sequential(statistics.layer, *list(vae.encoder.trunk)[1:])
            _fit(vae, trunk, statistics.of, cells, posterior, mask_rate)
            statistics.write_to(peaks)


def _fit(
    vae: MixtureVAE,
    trunk: nn.Module,
    transform: Callable[[Tensor], Tensor],
    cells: CellBatch,
    posterior: GaussianPosterior,
    mask_rate: float,
) -> None:
    """Fit the encoder with the hidden layers ``trunk``, which read its transformed inputs."""
    encoder, classifier = vae.encoder, vae.classifier
    masked = (1 + mask_rate) / 2 if mask_rate else 0.0
    with torch.no_grad():
        copies = [
            transform(encoder.inputs(cells.mask_peaks(masked, rescale=encoder.lsi is None)))
            for _ in range(_N_COPIES if masked else 1)
        ]
        q_c_nk = vae.prior.log_optimal_q_c(posterior.loc_nd, posterior.var_nd).exp()
    parameters = [*trunk.parameters(), *encoder.loc.parameters(), *encoder.raw_var.parameters()]
    if classifier is not None:
        parameters += classifier.parameters()
    optimizer = torch.optim.Adam(parameters, lr=_LR)
    n_batches = -(-cells.n_cells // _BATCH_SIZE)
    n_epochs = max(10, -(-_N_STEPS // n_batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    for epoch in range(n_epochs):
        input_nr = copies[epoch % len(copies)]
        for part in torch.randperm(cells.n_cells).to(input_nr.device).tensor_split(n_batches):
            h_nr = trunk(input_nr[part])
            loss = _divergence(*encoder.moments(h_nr), posterior.take(part)).mean()
            if classifier is not None:
                loss = loss - (q_c_nk[part] * classifier(h_nr)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT)
            optimizer.step()
        schedule.step()
    vae.zero_grad(set_to_none=True)


def _divergence(loc_nd: Tensor, var_nd: Tensor, posterior: GaussianPosterior) -> Tensor:
    """Return KL(N(loc, diag(var)) || posterior) without terms of the posterior alone, ``(n,)``."""
    from_mode_nd = loc_nd - posterior.loc_nd
    pull_nd = (posterior.precision_ndd @ from_mode_nd.unsqueeze(-1)).squeeze(-1)
    diagonal_nd = posterior.precision_ndd.diagonal(dim1=-2, dim2=-1)
    return (from_mode_nd * pull_nd + diagonal_nd * var_nd - var_nd.log()).sum(-1) / 2


class _PeakStatistics:
    """A dense layer of an encoder that reads cells' sufficient statistics instead of their peaks.

    The statistics, x W and the cell's depth, are standardized over ``cells``.
    """

    @torch.no_grad()
    def __init__(self, vae: MixtureVAE, n_hidden: int, cells: CellBatch) -> None:
        weight_pd = vae.likelihood.peaks.weight[:, : vae.n_latent]
        self.w_pr = torch.cat([weight_pd, torch.ones_like(weight_pd[:, :1])], 1)
        t_nr = matmul(cells.x_np, self.w_pr)
        self.mean_r = t_nr.mean(0)
        self.sd_r = (t_nr - self.mean_r).square().mean(0).sqrt().clamp_min(1e-6)
        self.layer = linear(len(self.mean_r), n_hidden).to(weight_pd)

    def of(self, x_np: Tensor) -> Tensor:
        """Return the standardized statistics of accessibility, shape ``(n, r)``."""
        return (matmul(x_np, self.w_pr) - self.mean_r) / self.sd_r

    @torch.no_grad()
    def write_to(self, layer: PeakLinear) -> None:
        """Set the weights of a layer that reads the peaks, so that it computes the same."""
        weight_hr = self.layer.weight / self.sd_r
        layer.weight_ph.copy_(self.w_pr @ weight_hr.T)
        layer.bias_h.copy_(self.layer.bias - weight_hr @ self.mean_r)
