"""Where a comparison is made: a float64 copy of the parameters, and a few cells."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale.data import Counts, as_counts, dense_cells
from pyro_scale.errors import NonFiniteError
from pyro_scale.objectives import Objective
from pyro_scale.programs import FORMULATIONS, Cells, MixtureVAE, build

__all__ = ["Comparable", "copied", "prepare"]


class Comparable(Protocol):
    """What ``compare`` and ``ladder`` need of a model; :class:`pyro_scale.SCALE` has it.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model: Comparable = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.is_trained, model.counts().n_cells
    (False, 40)
    """

    vae: MixtureVAE

    @property
    def is_trained(self) -> bool:
        """Whether its parameters are worth keeping."""

    def counts(self, adata: AnnData | None = None) -> Counts:
        """Checked cells of ``adata`` (None: its own) in the model's order of peaks."""


def prepare(
    model: Comparable | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None,
    *,
    n_cells: int,
    seed: int,
    warmup_steps: int | None,
) -> tuple[MixtureVAE, Cells, int]:
    """A float64 copy of the parameters and a seeded subset of cells, warmed up if untrained.

    Returns
    -------
    tuple
        The copy (in eval mode, with a classifier), the cells, and the warm-up steps taken.
    """
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells} must be at least one.")
    counts = _counts(model, adata_or_x)
    chosen = np.sort(np.random.default_rng(seed).permutation(counts.n_cells)[:n_cells])
    cells = dense_cells(counts[chosen], dtype=torch.float64)
    vae = copied(model if isinstance(model, MixtureVAE) else model.vae)
    vae = vae.cpu().double().requires_grad_(True)
    if warmup_steps is None:
        warmup_steps = 0 if isinstance(model, MixtureVAE) or model.is_trained else 30
    _warm_up(vae, cells, warmup_steps)
    if vae.classifier is None:
        _add_classifier(vae, cells)
    for formulation in FORMULATIONS:
        build(vae, formulation)  # parameters of its own, if it has any, are there from now on
    return vae.eval(), cells, warmup_steps


def copied(vae: MixtureVAE) -> MixtureVAE:
    """A copy of the parameters, of those of a model in training (in a callback) too."""
    vae.state_dict()  # brings the layer that reads the peaks up to date
    copy_of = copy.deepcopy(vae)
    if copy_of.encoder.peaks is not None:
        copy_of.encoder.peaks.product = None
    return copy_of


def _counts(model: Comparable | MixtureVAE, adata_or_x: AnnData | NDArray[Any] | None) -> Counts:
    """The cells: a model's own or an AnnData read as it reads them, or a matrix of its peaks."""
    if not isinstance(model, MixtureVAE):
        if adata_or_x is None or isinstance(adata_or_x, AnnData):
            return model.counts(adata_or_x)
        model = model.vae
    if adata_or_x is None:
        raise ValueError("a MixtureVAE has no cells of its own: give an AnnData or a matrix.")
    x = adata_or_x if isinstance(adata_or_x, AnnData) else AnnData(np.asarray(adata_or_x))
    if x.n_vars != model.n_peaks:
        raise ValueError(
            f"the matrix has {x.n_vars} peaks, the model {model.n_peaks}; give the "
            "model's peaks in the model's order, or an AnnData."
        )
    return as_counts(x, binary=not hasattr(model.likelihood, "log_rate"))


def _warm_up(vae: MixtureVAE, cells: Cells, steps: int) -> None:
    """A few steps of Adam, then components that overlap, so that the formulations differ.

    The components are put at draws of z for as many cells, all with a quarter of the
    variance of z over the cells: then p(c|z) changes over q(z|x), which is where the bounds
    part.
    """
    objective = Objective(vae, "collapsed", "Trace_ELBO")
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|.*inf)")  # told below
        for _ in range(steps):
            optimizer.zero_grad()
            objective.backward(cells)
            optimizer.step()
    if steps == 0:
        return
    if not all(parameter.isfinite().all() for parameter in vae.parameters()):
        raise NonFiniteError(
            f"{steps} steps of Adam on {cells.n_cells} of these cells left weights that are not "
            "finite (counts too large for an untrained model): train the model first, or give "
            "warmup_steps=0."
        )
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        k = vae.n_components
        chosen = torch.arange(k) % cells.n_cells
        draws_kd = loc_nd[chosen] + var_nd[chosen].sqrt() * torch.randn_like(loc_nd[chosen])
        variance_d = loc_nd.var(0, correction=0) + var_nd.mean(0)
        weights_k = torch.linspace(1.0, 2.0, k, dtype=loc_nd.dtype)
        vae.prior.set_components(
            weights_k / weights_k.sum(), draws_kd, 0.25 * variance_d.expand(k, -1)
        )


def _add_classifier(vae: MixtureVAE, cells: Cells) -> None:
    """A fresh q(c|x) that is far from g* and from certainty: logits of unit spread."""
    vae.add_classifier()
    with torch.no_grad():
        logits_nk = vae.required_classifier.logits(vae.encoder.features(cells))
        spread = logits_nk.std(correction=0).clamp_min(1e-6)
        vae.required_classifier.logits.weight.div_(spread)
