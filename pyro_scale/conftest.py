"""Names that every docstring's example may use; pytest loads this file, not the package."""

import copy
import functools
from typing import Any

import pytest
import torch

import pyro_scale as ps
from pyro_scale.programs import CellBatch, MixtureVAE


@functools.cache
def _trained() -> tuple[Any, Any]:
    adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
    model.train(max_epochs=2, progress_bar=False)
    return adata, model


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> None:
    """Define ``ps``, ``torch``, 40 cells, a trained model of them, and a small vae with 5 cells."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    adata, model = copy.deepcopy(_trained())
    torch.manual_seed(0)
    request.getfixturevalue("doctest_namespace").update(
        ps=ps,
        torch=torch,
        adata=adata,
        counts=model.counts(),
        model=model,
        vae=MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,)),
        cells=CellBatch.from_counts((torch.rand(5, 30) < 0.2).float()),
    )
