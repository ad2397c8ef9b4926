"""What the tests of the figures draw, and how they read a drawing."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import to_hex
from scipy import sparse

N, P, K = 60, 40, 3
_COLUMNS = ["formulation", "c", "estimator", "closed_form", "value_agreement", "value",
           "value_standard_error", "closed_form_value", "gradient_variance", "status"]  # fmt: skip
_EXACT, _AVERAGE = "exact", "in expectation"
# Rows of a comparison, by hand.
ROWS = pd.DataFrame(
    [
        (
            "collapsed",
            "marginalized",
            "Trace_ELBO",
            "collapsed",
            _EXACT,
            -20.0,
            0.2,
            -20.0,
            30.0,
            0,
        ),
        (
            "collapsed",
            "marginalized",
            "TraceEnum_ELBO",
            "",
            "unsupported",
            None,
            None,
            None,
            None,
            3,
        ),
        ("structured", "enumerated", "Trace_ELBO", "", "unsupported", None, None, None, None, 3),
        ("structured", "enumerated", "TraceEnum_ELBO", "scale", _EXACT, -20.5, 0.2, -20.5, 8.0, 1),
        ("scale", "sampled", "Trace_ELBO", "scale", _AVERAGE, -21.5, 0.5, -20.6, 900.0, 2),
        ("scale", "sampled", "TraceEnum_ELBO", "scale", _AVERAGE, -21.0, 0.4, -20.9, 200.0, 0),
    ],
    columns=_COLUMNS,
).assign(status=lambda rows: np.array(["holds", "no power", "FAILS", "unsupported"])[rows.status])


def a_result():
    """What ``model.to_anndata()`` gives, without a model."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(K), [30, 20, 10])
    x = rng.random((N, P)) < 0.1 + 0.6 * (np.arange(P) % K == codes[:, None])
    q = rng.dirichlet([0.3] * K, N)
    adata = AnnData(sparse.csr_matrix(x.astype(np.float32)))
    adata.obs_names, adata.var_names = (
        [f"cell{n}" for n in range(N)],
        [f"peak{p}" for p in range(P)],
    )
    adata.obs["scale_cluster"] = pd.Categorical(codes.astype(str), categories=list("012"))
    adata.obs["cell_type"] = pd.Categorical(np.array(["glia", "neuron", "other"])[codes])
    adata.obs["depth"] = x.sum(1)
    adata.obsm["scale_responsibilities"] = q
    adata.obsm["X_scale"] = rng.normal(size=(N, 7)) + codes[:, None]
    adata.obsm["X_umap"] = rng.normal(size=(N, 2)) + 5 * np.eye(K, 2)[codes]
    adata.layers["scale_imputed"] = rng.random((N, P))
    return adata


def state_of_matplotlib():
    return dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()


def points(axes):
    """Places and colours of all dots, by place."""
    places = np.concatenate([dots.get_offsets() for dots in axes.collections])
    for dots in axes.collections:
        dots.update_scalarmappable()
    shades = [
        np.broadcast_to(dots.get_facecolors(), (len(dots.get_offsets()), 4))
        for dots in axes.collections
    ]
    return {tuple(xy): to_hex(c) for xy, c in zip(places, np.concatenate(shades), strict=True)}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]
