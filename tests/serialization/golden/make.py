"""Save a model of this release, which later releases of the same schema must load.

``python tests/serialization/golden/make.py`` writes ``tests/serialization/golden/<version>/``: a
model of simulated cells, and its results for three of them.
"""

import json
import shutil
from pathlib import Path

from anndata import AnnData

import pyro_scale as ps

HERE = Path(__file__).parent


def cells() -> AnnData:
    """Those it is trained on."""
    return ps.simulate(n_cells=60, n_peaks=80, n_clusters=2, density=0.2, seed=0)


def make() -> None:
    """Train, save, and note the latent means and bounds of three cells."""
    folder = HERE / ps.__version__
    shutil.rmtree(folder, ignore_errors=True)
    adata = cells()
    model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,), n_lsi=8)
    model.train(max_epochs=10, batch_size=16, progress_bar=False)
    model.save(folder / "model")
    three = adata[:3]
    expected = {
        "cells": {
            name: adata.var_names[row.nonzero()[1]].tolist()
            for name, row in zip(three.obs_names, three.X, strict=True)
        },
        "latent": model.get_latent_representation(three).tolist(),
        "responsibilities": model.get_responsibilities(three, kind="at_mean").tolist(),
        "collapsed": model.get_elbo(three, bound="collapsed").tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make()
