"""What `run` writes, whole or not at all, and what it says of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anndata import AnnData

from pyro_scale import plotting as pl
from pyro_scale.analysis import (
    cluster_report,
    embed,
    kmeans_clusters,
    leiden_clusters,
    peak_specificity,
    specific_peaks,
)
from pyro_scale.cli.terminal import console, say
from pyro_scale.scale import SCALE

__all__ = ["CLUSTER_METHODS", "EMBEDDINGS", "Outputs", "refuse_existing"]

CLUSTER_METHODS = ("mixture", "kmeans", "leiden")
EMBEDDINGS = ("umap", "tsne", "none")
_SAID = {
    "adata.h5ad": 'obsm["X_scale"], obsm["scale_responsibilities"], obs["scale_cluster"], '
    'uns["scale"]',
    "specific_peaks.tsv": "the peaks most specific to each cluster",
    "scale.pdf": "the figure (also scale.png)",
    "imputed.h5ad": "expected accessibility in X",
    "imputed_binary.h5ad": "the same as 0/1, sparse",
    "model": "for pyro_scale.SCALE.load",
}
RESULTS = (*_SAID, "scale.png")


@dataclass(frozen=True)
class Outputs:
    """What is asked for beside clusters and latent space."""

    cluster_method: str = "mixture"
    resolution: float = 1.0
    embedding: str = "tsne"
    impute: bool = False
    binary: bool = False
    label: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not known, before the work."""
        if self.cluster_method not in CLUSTER_METHODS:
            raise ValueError(
                f"--cluster-method {self.cluster_method!r} is not known; choose one of "
                f"{', '.join(CLUSTER_METHODS)}."
            )
        if self.embedding not in EMBEDDINGS:
            raise ValueError(
                f"--embed {self.embedding!r} is not known; choose one of {', '.join(EMBEDDINGS)}."
            )
        if not self.resolution > 0:
            raise ValueError(f"--resolution {self.resolution} must be above zero.")

    @property
    def cluster_key(self) -> str:
        """Where in obs the clusters are."""
        method = self.cluster_method
        return "scale_cluster" if method == "mixture" else f"scale_{method}"

    def result(self, model: SCALE, adata: AnnData) -> AnnData:
        """The cells with everything that goes into adata.h5ad."""
        result = model.to_anndata(adata)
        z_nd = result.obsm["X_scale"]
        if self.cluster_method == "kmeans":
            result.obs[self.cluster_key] = kmeans_clusters(
                z_nd, model.vae.n_components, seed=self.seed
            )
        elif self.cluster_method == "leiden":
            result.obs[self.cluster_key] = leiden_clusters(
                z_nd, resolution=self.resolution, seed=self.seed
            )
        if self.embedding != "none":
            method: Any = self.embedding  # one of the two, which is checked
            result.obsm[f"X_{method}"] = embed(z_nd, method=method, seed=self.seed)
        return result

    def write(
        self, model: SCALE, adata: AnnData, output: Path, *, overwrite: bool, save_model: bool
    ) -> None:
        """Everything beside its place, and then moved there; then say what there is."""
        result = self.result(model, adata)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".scale-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            if save_model:
                model.save(new / "model")
            result.write_h5ad(new / "adata.h5ad", compression="gzip")
            x = model.counts(adata).read()
            scores = peak_specificity(x, result.obs[self.cluster_key], list(model.peak_names))
            specific_peaks(scores).to_csv(new / "specific_peaks.tsv", sep="\t", index=False)
            if self.embedding != "none":
                weights_k = model.vae.prior.log_pi_k.detach().exp().cpu().numpy()
                figure = pl.run(
                    result,
                    history=model.history,
                    weights=weights_k,
                    cluster=self.cluster_key,
                    seed=self.seed,
                    save=new / "scale.pdf",
                )
                figure.savefig(new / "scale.png", dpi=300)
            if self.impute:
                model.impute(new / "imputed.h5ad", adata)
            if self.binary:
                model.impute(new / "imputed_binary.h5ad", adata, binary=True)
            written = {path.name for path in new.iterdir()}
            _move(new, output, overwrite=overwrite)
        self._report(result)
        say(f"in {output}/:")
        for name, said in _SAID.items():
            if name in written:
                say(f"  {name + ('/' if name == 'model' else ''):20} {said}")

    def _report(self, result: AnnData) -> None:
        clusters = result.obs[self.cluster_key]
        sizes = clusters.value_counts(sort=False)
        how = "" if self.cluster_method == "mixture" else f" ({self.cluster_method})"
        console.print(
            f"clusters{how}: {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )
        if self.label is None:
            return
        report = cluster_report(result.obs[self.label], clusters)
        scores = ", ".join(f"{name.upper()} {value:.3f}" for name, value in report.scores.items())
        console.print(f"against obs[{self.label!r}] (not used in training): {scores}", markup=False)
        say(report.confusion.to_string())


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Before the work, and once more after it."""
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; choose a folder with -o.")
    found = [name for name in RESULTS if (output / name).exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"{output} already holds a result ({', '.join(found)}); choose another folder with "
            "-o, or give --overwrite."
        )


def _move(new: Path, output: Path, *, overwrite: bool) -> None:
    """Put each result in its place; whatever else is in the folder stays."""
    refuse_existing(output, overwrite=overwrite)
    output.mkdir(exist_ok=True)
    for result in new.iterdir():
        target = output / result.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(result, target)
