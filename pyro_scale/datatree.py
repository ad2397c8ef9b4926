"""What a trained model says, as draws: an ArviZ DataTree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale.accessibility import cells_at_once, is_rate
from pyro_scale.configuration import Configuration
from pyro_scale.data import Counts, sparse_cells
from pyro_scale.errors import NotTrainedError
from pyro_scale.inference import log_weights
from pyro_scale.one_at_a_time import refuse_while_trained
from pyro_scale.programs import Cells, MixtureVAE

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["Exportable", "draws_of_q", "to_datatree"]


class Exportable(Protocol):
    """What :func:`to_datatree` needs of a model; :class:`pyro_scale.SCALE` has it."""

    vae: MixtureVAE
    configuration: Configuration

    @property
    def is_trained(self) -> bool:
        """Whether its parameters mean something."""

    def counts(self, adata: AnnData | None = None) -> Counts:
        """Checked cells in the model's order of peaks."""


class Draws(NamedTuple):
    """Draws of q(z,c|x).

    Attributes
    ----------
    z_snd
        Draws of q(z|x), shape ``(s, n, d)``.
    q_c_snk
        The probabilities that c was drawn from, shape ``(s, n, k)``.
    c_sn
        Components, shape ``(s, n)``.
    """

    z_snd: Tensor
    q_c_snk: Tensor
    c_sn: Tensor


def _normal(loc_nd: Tensor, var_nd: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    noise_snd = loc_nd.new_empty((n_samples, *loc_nd.shape)).normal_(generator=generator)
    return loc_nd + var_nd.sqrt() * noise_snd


def draws_of_q(
    vae: MixtureVAE, cells: Cells, formulation: str, n_samples: int, generator: torch.Generator
) -> Draws:
    r"""Draw from the guide of a formulation.

    z is of q(z|x) in all of them. c is of p(c|z) (``"collapsed"``, ``"model_enumerated"``,
    ``"structured"``); of g*(c|x) (``"mean_field"``) or the classifier's q(c|x)
    (``"amortized"``), independent of z; or of p(c|z=u), u another draw of q(z|x) (``"scale"``).
    """
    loc_nd, var_nd = vae.encoder(cells)
    z_snd = _normal(loc_nd, var_nd, n_samples, generator)
    if formulation == "amortized":
        log_q_c = vae.log_q_c(cells).expand(n_samples, -1, -1)
    elif formulation == "mean_field":
        log_q_c = vae.prior.log_optimal_q_c(loc_nd, var_nd).expand(n_samples, -1, -1)
    elif formulation == "scale":
        u_snd = _normal(loc_nd, var_nd, n_samples, generator)
        log_q_c = vae.prior.log_responsibilities(u_snd)
    else:
        log_q_c = vae.prior.log_responsibilities(z_snd)
    q_c_snk = log_q_c.exp()
    c = torch.multinomial(q_c_snk.reshape(-1, q_c_snk.shape[-1]), 1, generator=generator)
    return Draws(z_snd, q_c_snk, c.view(n_samples, -1))


def _predict(
    vae: MixtureVAE,
    counts: Counts,
    z_snd: Tensor,
    peaks: NDArray[np.intp],
    generator: torch.Generator,
) -> dict[str, NDArray[np.generic]]:
    """Draws of x at draws of z, summed over peaks and over cells; a block is held at a time."""
    n_samples, n_cells, _ = z_snd.shape
    n_open_sn = np.zeros((n_samples, n_cells), dtype=np.int64)
    total_sp = torch.zeros(n_samples, len(peaks), dtype=torch.float64)
    at = torch.from_numpy(peaks).to(z_snd.device)
    size = min(cells_at_once(counts.n_peaks), n_cells)
    draws = max(1, cells_at_once(counts.n_peaks) // size)
    draw = torch.poisson if is_rate(vae) else torch.bernoulli
    for start in range(0, n_cells, size):
        part = slice(start, start + size)
        cells = sparse_cells(counts[part]).to(z_snd)
        for first in range(0, n_samples, draws):
            some = slice(first, first + draws)
            x_snp = draw(vae.likelihood.mean(z_snd[some, part], cells), generator=generator)
            n_open_sn[some, part] = (x_snp > 0).sum(-1).cpu().numpy()
            total_sp[some] += x_snp[..., at].sum(1).cpu()
    return {"n_open": n_open_sn, "accessibility": (total_sp / n_cells).numpy()}


def _observed(counts: Counts, peaks: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
    """The same of the cells as they are."""
    x_np = counts.read()
    total_p = np.asarray(x_np[:, peaks].sum(0, dtype=np.float64)).ravel()
    return {
        "n_open": x_np.getnnz(1).astype(np.int64),
        "accessibility": total_p / counts.n_cells,
    }


def _some(n: int, of: int | None, name: str, rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of ``of`` among n, at random and in order; all if there are no more."""
    if of is not None and of < 1:
        raise ValueError(f"{name}={of} must be at least one, or None for all.")
    if of is None or of >= n:
        return np.arange(n)
    return np.sort(rng.choice(n, of, replace=False))


def to_datatree(
    model: Exportable,
    adata: AnnData | None = None,
    *,
    n_cells: int | None = 200,
    n_samples: int = 100,
    n_peaks: int | None = 1000,
    predictive: bool = True,
    seed: int = 0,
) -> DataTree:
    """Draws of the posterior and of the data it predicts, as an ArviZ DataTree.

    Its dimensions ``cell`` and ``peak`` carry the names of obs and var, ``latent`` and
    ``component`` count from zero. Draws of q are independent: r-hat and effective sample size,
    which are for Markov chains, say nothing of them; k-hat of ``log_weight`` does.

    Parameters
    ----------
    model
        A trained :class:`pyro_scale.SCALE`, of which this is the verb ``to_datatree``.
    adata
        Other cells; None: the training cells.
    n_cells, n_peaks
        At most so many cells, and peaks of ``accessibility``, drawn at random and kept in order;
        None: all. What was left out stands in ``attrs``.
    n_samples
        Draws per cell.
    predictive
        Whether to draw data too (``n_samples`` x cells x peaks random numbers, a block at a
        time, none kept).
    seed
        Of cells, peaks and draws.

    Returns
    -------
    DataTree
        ``posterior``: ``z`` (chain, draw, cell, latent) of q(z|x); ``c`` (chain, draw, cell) and
        ``q_c`` (chain, draw, cell, component), the component and the probabilities it was drawn
        from, as the formulation has q(c|.): see :func:`draws_of_q`.
        ``sample_stats``: ``log_weight`` = log p(x, z) - log q(z|x) (chain, draw, cell), in nats,
        c summed out.
        ``posterior_predictive``: ``n_open`` (chain, draw, cell), the open peaks of a cell, and
        ``accessibility`` (chain, draw, peak), the mean of x over the cells, at the cells'
        own depth and batch. ``observed_data``: the same of the data.

    Raises
    ------
    NotTrainedError
        Before ``train()``.
    ValueError
        If a number is below one.

    References
    ----------
    The groups follow the InferenceData schema, https://python.arviz.org.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=60, n_peaks=200, n_clusters=2, density=0.1, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(16,))
    >>> model.train(max_epochs=4, progress_bar=False)
    >>> tree = model.to_datatree(n_cells=20, n_samples=50)
    >>> dict(tree["posterior"].sizes)
    {'chain': 1, 'draw': 50, 'cell': 20, 'latent': 2, 'component': 2}
    """
    if not model.is_trained:
        raise NotTrainedError("the model is not trained: call model.train() first.")
    refuse_while_trained(model.vae)
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least one.")
    counts = model.counts(adata)
    rng = np.random.default_rng(seed)
    chosen = _some(counts.n_cells, n_cells, "n_cells", rng)
    peaks = _some(counts.n_peaks, n_peaks, "n_peaks", rng)
    attrs = {
        "inference_library": "pyro_scale",
        "formulation": model.configuration.formulation,
        "seed": seed,
        "subsampled": f"{len(chosen)} of {counts.n_cells} cells, accessibility of {len(peaks)} of "
        f"{counts.n_peaks} peaks; n_open counts all peaks",
    }
    counts = counts[chosen]
    vae = model.vae.eval()
    head = vae.encoder.loc.weight
    generator = torch.Generator(head.device).manual_seed(seed)
    with torch.inference_mode():
        cells = sparse_cells(counts).to(head)
        z_snd, q_c_snk, c_sn = draws_of_q(
            vae, cells, model.configuration.formulation, n_samples, generator
        )
        log_weight_sn = log_weights(vae, cells, z_snd, vae.encoder(cells))
        predicted = _predict(vae, counts, z_snd, peaks, generator) if predictive else {}
    data: dict[str, dict[str, Any]] = {
        "posterior": {"z": z_snd, "c": c_sn, "q_c": q_c_snk},
        "sample_stats": {"log_weight": log_weight_sn},
        "posterior_predictive": predicted,
    }
    from arviz_base import from_dict  # here, because it takes long to import

    one_chain = {
        group: {name: np.asarray(torch.as_tensor(x).cpu())[None] for name, x in values.items()}
        for group, values in data.items()
        if values
    }
    return from_dict(
        {**one_chain, "observed_data": _observed(counts, peaks)},
        coords={
            "cell": counts.obs_names.to_numpy(),
            "peak": counts.var_names[peaks].to_numpy(),
            "latent": np.arange(vae.n_latent),
            "component": np.arange(vae.n_components),
        },
        dims={
            "z": ["cell", "latent"],
            "c": ["cell"],
            "q_c": ["cell", "component"],
            "log_weight": ["cell"],
            "n_open": ["cell"],
            "accessibility": ["peak"],
        },
        attrs={"/": attrs},
    )
