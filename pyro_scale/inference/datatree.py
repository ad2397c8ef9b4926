"""Draws from the guide and posterior predictive draws, as an ArviZ DataTree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale._validation import check_int
from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.inference.accessibility import cells_at_once
from pyro_scale.inference.posterior import Posterior, log_weights
from pyro_scale.programs import CellBatch, Formulation, MixtureVAE, rsample

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["Draws", "sample_guide", "to_datatree"]


class Draws(NamedTuple):
    """Draws of q(z,c|x).

    Attributes
    ----------
    z_snd
        Draws of q(z|x), shape ``(s, n, d)``.
    q_c_snk
        Probabilities of the categorical from which c is drawn, shape ``(s, n, k)``.
    c_sn
        Draws of the component c, shape ``(s, n)``.
    """

    z_snd: Tensor
    q_c_snk: Tensor
    c_sn: Tensor


def sample_guide(
    vae: MixtureVAE,
    cells: CellBatch,
    formulation: Formulation,
    n_samples: int,
    generator: torch.Generator,
) -> Draws:
    r"""Draw z and the mixture component c from the guide of a formulation.

    The formulation is a choice of q(z,c|x). z is drawn from q(z|x), and c from the formulation's
    q(c|.), which is conditioned on the same z (``c_given="z"``), on x alone (``"x"``), or on an
    auxiliary draw u from q(z|x) (``"u"``).
    """
    loc_nd, var_nd = vae.encoder(cells)

    def draw() -> Tensor:
        noise_snd = loc_nd.new_empty((n_samples, *loc_nd.shape)).normal_(generator=generator)
        return rsample(loc_nd, var_nd, noise_snd)

    z_snd = draw()
    q_c_snk = formulation.log_q(vae, cells, draw() if formulation.c_given == "u" else z_snd).exp()
    c = torch.multinomial(q_c_snk.reshape(-1, q_c_snk.shape[-1]), 1, generator=generator)
    return Draws(z_snd, q_c_snk, c.view(n_samples, -1))


def _predict(
    vae: MixtureVAE,
    counts: CountMatrix,
    z_snd: Tensor,
    peaks: NDArray[np.intp],
    generator: torch.Generator,
) -> dict[str, NDArray[np.generic]]:
    """Draw x from p(x|z) at each draw of z, and return summaries of the draws.

    The summaries are ``n_open``, the number of open peaks per cell, shape ``(s, n)``, and
    ``accessibility``, the mean over cells of each of the chosen ``peaks``, shape ``(s, p)``. Only a
    block of cells and draws is held in memory at a time.
    """
    n_samples, n_cells, _ = z_snd.shape
    n_open_sn = np.zeros((n_samples, n_cells), dtype=np.int64)
    total_sp = torch.zeros(n_samples, len(peaks), dtype=torch.float64)
    at = torch.from_numpy(peaks).to(z_snd.device)
    size = min(cells_at_once(counts.n_peaks), n_cells)
    draws = max(1, cells_at_once(counts.n_peaks) // size)
    for start in range(0, n_cells, size):
        part = slice(start, start + size)
        cells = sparse_cells(counts[part]).to(z_snd)
        for first in range(0, n_samples, draws):
            some = slice(first, first + draws)
            x_snp = vae.likelihood.draw(z_snd[some, part], cells, generator)
            n_open_sn[some, part] = (x_snp > 0).sum(-1).cpu().numpy()
            total_sp[some] += x_snp[..., at].sum(1).cpu()
    return {"n_open": n_open_sn, "accessibility": (total_sp / n_cells).numpy()}


def _observed(counts: CountMatrix, peaks: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
    """Return ``n_open`` and ``accessibility`` (see :func:`_predict`) of the observed counts."""
    x_np = counts.read()
    total_p = np.asarray(x_np[:, peaks].sum(0, dtype=np.float64)).ravel()
    return {
        "n_open": x_np.getnnz(1).astype(np.int64),
        "accessibility": total_p / counts.n_cells,
    }


def _subsample(n: int, size: int | None, name: str, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return ``size`` random indices below n, sorted; all indices if ``size`` is None or >= n."""
    if size is None or check_int(name, size) >= n:
        return np.arange(n)
    return np.sort(rng.choice(n, size, replace=False))


def to_datatree(
    posterior: Posterior,
    *,
    n_cells: int | None = 200,
    n_samples: int = 100,
    n_peaks: int | None = 1000,
    predictive: bool = True,
) -> DataTree:
    """Return draws from the guide, q(z,c|x), and from p(x|z) as an ArviZ DataTree.

    The arguments and groups are those of :meth:`pyro_scale.SCALE.to_datatree`.
    """
    check_int("n_samples", n_samples)
    vae, counts, seed = posterior.vae, posterior.counts, posterior.seed
    rng = np.random.default_rng(seed)
    chosen = _subsample(counts.n_cells, n_cells, "n_cells", rng)
    peaks = _subsample(counts.n_peaks, n_peaks, "n_peaks", rng)
    attrs = {
        "inference_library": "pyro_scale",
        "formulation": posterior.formulation.name,
        "seed": seed,
        "subsampled": f"{len(chosen)} of {counts.n_cells} cells, accessibility of {len(peaks)} of "
        f"{counts.n_peaks} peaks; n_open counts all peaks",
    }
    counts = counts[chosen]
    vae.eval()
    head = vae.encoder.loc.weight
    generator = torch.Generator(head.device).manual_seed(seed)
    with torch.inference_mode():
        cells = sparse_cells(counts).to(head)
        z_snd, q_c_snk, c_sn = sample_guide(vae, cells, posterior.formulation, n_samples, generator)
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
