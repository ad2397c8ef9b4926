"""What `run` writes, whole or not at all, and what it says of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
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
from pyro_scale.placing import flushed, place
from pyro_scale.scale import SCALE

__all__ = ["CHECKPOINT", "CLUSTER_METHODS", "EMBEDDINGS", "Outputs", "claimed"]

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
CHECKPOINT = "training.checkpoint"  # there as long as a run is not finished


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
        needs = {"umap": ["scanpy"], "leiden": ["scanpy", "igraph"]}
        for chosen in (self.cluster_method, self.embedding):
            if not all(map(find_spec, needs.get(chosen, []))):
                raise ImportError(f'{chosen} needs scanpy: pip install "pyro-scale[scanpy]".')
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
        self, model: SCALE, adata: AnnData, output: Path, *, pretrain: Path | None = None
    ) -> None:
        """Everything beside its place, and then moved there; then say what there is."""
        result = self.result(model, adata)
        with tempfile.TemporaryDirectory(dir=output, prefix=".scale-") as temporary:
            new, old = Path(temporary) / "new", Path(temporary)
            new.mkdir()
            if pretrain is None:
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
            for name in written:
                place(new / name, output / name, old)
            used = None if pretrain is None else pretrain.resolve()
            stale = [
                n for n in _found(output) if n not in written and (output / n).resolve() != used
            ]
            for name in stale:  # of an earlier run, which this one replaces
                shutil.move(output / name, old / f"stale-{name}")
        if stale:
            say(f"removed what an earlier run left: {', '.join(stale)}")
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
        known = result.obs[self.label].notna().to_numpy()
        if not known.any():
            say(f"no cell has a label in obs[{self.label!r}]: there is nothing to score.")
            return
        if not known.all():
            say(f"{int((~known).sum())} cells without a label are left out of the scores.")
        report = cluster_report(result.obs[self.label][known], clusters[known])
        scores = ", ".join(f"{name.upper()} {value:.3f}" for name, value in report.scores.items())
        console.print(f"against obs[{self.label!r}] (not used in training): {scores}", markup=False)
        of = {label: cluster for cluster, label in report.matching.items()}
        say(report.confusion.rename(columns=lambda name: f"{name} (={of[name]})").to_string())


def _found(output: Path) -> list[str]:
    return [name for name in RESULTS if (output / name).exists()]


@contextmanager
def claimed(output: Path, *, overwrite: bool, inputs: Sequence[str] = ()) -> Iterator[None]:
    """A folder that can be written to, refused before the work; gone again if it fails.

    One that holds the checkpoint of a run that was killed is that run's to finish.

    Raises
    ------
    OSError
        If the folder is a file, holds a result that may not be replaced, or cannot be written to.
    ValueError
        If an input is one of the files that would be replaced.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; choose a folder with -o.")
    unfinished = (output / CHECKPOINT).exists()
    if (found := _found(output)) and not overwrite and not unfinished:
        raise FileExistsError(
            f"{output} already holds a result ({', '.join(found)}); choose another folder with "
            "-o, or give --overwrite."
        )
    for path in inputs:
        if Path(path).resolve() in {(output / name).resolve() for name in RESULTS}:
            raise ValueError(f"{path} is an input and would be replaced; choose another -o.")
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    left = list(output.glob(".scale-*"))  # by processes that were killed
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".scale-"):
            pass
    except OSError as error:
        _remove(made)
        raise OSError(
            f"{output} cannot be written to ({error.strerror}); choose another folder with -o."
        ) from error
    try:
        yield
    except BaseException:
        _remove(made)
        raise
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    flushed(output)
    (output / CHECKPOINT).unlink(missing_ok=True)  # last: until here the run is unfinished


def _remove(folders: list[Path]) -> None:
    """Those that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
