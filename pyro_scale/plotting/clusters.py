"""The figure that `run` writes: where the cells lie, and what the mixture makes of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_scale.plotting.style import CATEGORIES, PALETTE, style

__all__ = ["embed", "plot_run"]

_MOST_CELLS = 5000


def embed(latent_nd: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Two dimensions for the eye: t-SNE of the latent means, started from their PCA."""
    if len(latent_nd) < 5:  # too few neighbours for t-SNE
        padded = np.pad(latent_nd, ((0, 0), (0, 2)))
        return padded[:, :2].astype(np.float32)
    from sklearn.manifold import TSNE  # here, because it takes long to import

    perplexity = min(30.0, (len(latent_nd) - 1) / 3)
    init = "pca" if min(latent_nd.shape) >= 2 else "random"
    tsne = TSNE(perplexity=perplexity, init=init, random_state=seed)
    return tsne.fit_transform(latent_nd).astype(np.float32)


def plot_run(
    latent_nd: NDArray[np.float32],
    responsibilities_nk: NDArray[np.float32],
    clusters_n: pd.Series,
    weights_k: NDArray[np.float32],
    history: pd.DataFrame,
    *,
    seed: int = 0,
) -> Figure:
    """Cells by cluster and by certainty, the components' sizes, and the course of training.

    Parameters
    ----------
    latent_nd
        Posterior means, shape ``(n, d)``.
    responsibilities_nk
        q(c|x), shape ``(n, k)``.
    clusters_n
        Most probable component of each cell, categorical.
    weights_k
        The mixture's weights, shape ``(k,)``.
    history
        ``SCALE.history``.
    seed
        Of the embedding, and of the choice of 5,000 cells where there are more.
    """
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.permutation(len(latent_nd))[:_MOST_CELLS])
    xy = embed(latent_nd[shown], seed=seed)
    codes = clusters_n.cat.codes.to_numpy()
    with style():
        figure = Figure(figsize=(10.5, 8.2), layout="constrained")
        axes = figure.subplots(2, 2, height_ratios=(3, 2))
        _by_cluster(axes[0, 0], xy, codes[shown], len(latent_nd))
        _by_certainty(axes[0, 1], xy, responsibilities_nk[shown].max(1))
        _sizes(axes[1, 0], codes, weights_k)
        _history(axes[1, 1], history)
    return figure


def _scatter_size(n: int) -> float:
    return float(np.clip(8000 / n, 2, 25))


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axes.spines[:].set_visible(False)


def _colour(code: int) -> str:
    return CATEGORIES[code % len(CATEGORIES)]


def _by_cluster(
    axes: Axes, xy: NDArray[np.float32], codes: NDArray[np.integer], n_cells: int
) -> None:
    for code in np.unique(codes):
        at = codes == code
        x, y = xy[at].T
        axes.scatter(x, y, s=_scatter_size(len(xy)), color=_colour(code), lw=0, alpha=0.8)
        axes.annotate(
            str(code),
            np.median(xy[at], 0),
            ha="center",
            va="center",
            weight="bold",
            bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": _colour(code), "alpha": 0.85},
        )
    subset = "" if len(xy) == n_cells else f", {len(xy)} shown"
    axes.set_title(f"Mixture clusters of {n_cells} cells{subset}", loc="left")
    _bare(axes)


def _by_certainty(axes: Axes, xy: NDArray[np.float32], certainty: NDArray[np.float32]) -> None:
    order = np.argsort(-certainty)  # the uncertain on top
    x, y = xy[order].T
    points = axes.scatter(
        x,
        y,
        c=certainty[order],
        s=_scatter_size(len(xy)),
        cmap="viridis",
        vmin=0,
        vmax=1,
        lw=0,
    )
    axes.figure.colorbar(points, ax=axes, shrink=0.7, label="largest responsibility")
    axes.set_title(f"Certainty (median {np.median(certainty):.2f})", loc="left")
    _bare(axes)


def _sizes(axes: Axes, codes: NDArray[np.integer], weights_k: NDArray[np.float32]) -> None:
    k = np.arange(len(weights_k))
    share_k = np.bincount(codes, minlength=len(k)) / len(codes)
    axes.bar(k, share_k, color=[_colour(int(code)) for code in k], label="share of cells")
    axes.plot(k, weights_k, "k_", ms=14, mew=2, label="weight π in the prior")
    axes.set(xlabel="component", ylabel="share", xticks=k)
    axes.set_title("Components", loc="left")
    axes.legend(loc="upper right")


def _history(axes: Axes, history: pd.DataFrame) -> None:
    axes.plot(history.index, history["elbo_train"], color=PALETTE[0], label="training cells")
    shown = [history["elbo_train"]]
    if "elbo_validation" in history:
        axes.plot(
            history.index, history["elbo_validation"], color=PALETTE[3], label="held-out cells"
        )
        shown.append(history["elbo_validation"])
    started = history.index[history["phase"] == "mixture"]
    if len(started):
        axes.axvline(started[0], color="0.6", lw=1, ls="--", label="mixture starts")
    values = pd.concat(shown).to_numpy()
    low, high = np.quantile(values, [0.08, 1.0])  # the first epochs would flatten the rest
    margin = 0.05 * max(high - low, 1e-6)
    axes.set(xlabel="epoch", ylabel="ELBO, nats per cell", ylim=(low - margin, high + margin))
    axes.set_title("Training", loc="left")
    axes.legend(loc="lower right")
