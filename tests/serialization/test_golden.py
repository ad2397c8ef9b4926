"""Models of this schema that earlier releases saved load, and give the same results."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import pyro_scale as ps

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/expected.json"))


def cells_of(expected, peak_names):
    """The three cells, from the names of their open peaks."""
    names = pd.Index(peak_names)
    x = sparse.lil_matrix((len(expected["cells"]), len(names)), dtype=np.float32)
    for row, peaks in enumerate(expected["cells"].values()):
        x[row, names.get_indexer(peaks)] = 1
    obs, var = pd.DataFrame(index=list(expected["cells"])), pd.DataFrame(index=names)
    return AnnData(x.tocsr(), obs=obs, var=var)


def test_this_release_has_one():
    assert ps.__version__ in [folder.name for folder in GOLDEN]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_model_of_every_release_says_what_it_said(folder):
    expected = json.loads((folder / "expected.json").read_text())
    peak_names = json.loads((folder / "model" / "model.json").read_text())["peak_names"]
    model = ps.SCALE.load(folder / "model", cells_of(expected, peak_names))
    for name, got in {
        "latent": model.get_latent_representation(),
        "responsibilities": model.get_responsibilities(kind="at_mean"),
        "collapsed": model.get_elbo(bound="collapsed"),
    }.items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 60_000
