"""Input and output files of the commands: cells, labels, and the folder of results."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from pyro_scale import _atomic
from pyro_scale import preprocessing as pp
from pyro_scale._validation import check_path, listed
from pyro_scale.analysis import (
    cluster_report,
    embed,
    kmeans_clusters,
    leiden_clusters,
    peak_specificity,
    specific_peaks,
)
from pyro_scale.analysis.embedding import default_embedding
from pyro_scale.cli._console import console, echo
from pyro_scale.data import read
from pyro_scale.data.readers.paths import expand
from pyro_scale.data.writers import any_strings
from pyro_scale.exceptions import DataError
from pyro_scale.scale import SCALE

__all__ = [
    "CHECKPOINT",
    "CLUSTER_METHODS",
    "EMBEDDINGS",
    "Outputs",
    "add_labels",
    "filtered",
    "output_folder",
    "read_cells",
]


def check_inputs(files: Sequence[str]) -> None:
    """Raise an error if no file is given, or if one does not exist."""
    if not files:
        raise ValueError("no file is given; for example: pyro-scale run cells.h5ad -k 8")
    for file in files:
        expand(check_path("FILES", file))


def read_cells(
    files: Sequence[str],
    *,
    peaks: str | None,
    batch_key: str | None,
    join: str = "inner",
    peak_style: str | None = None,
) -> AnnData:
    """Read one or several files as one AnnData, and print its size."""
    check_inputs(files)
    adata = read(
        files[0] if len(files) == 1 else list(files),
        peaks=peaks,  # type: ignore[arg-type]  # read checks it
        batch_key=batch_key or "batch",
        join=join,  # type: ignore[arg-type]
        peak_style=peak_style,  # type: ignore[arg-type]
    )
    console.print(
        f"read {adata.n_obs} cells x {adata.n_vars} peaks from {', '.join(map(str, files))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return adata


def filtered(
    adata: AnnData,
    *,
    layer: str | None,
    min_peaks: float | None,
    max_peaks: float | None,
    min_cells: float | None,
    max_cells: float | None,
    n_peaks: int | None,
) -> AnnData:
    """Filter cells, then peaks, then keep variable peaks, then drop cells left without a peak."""
    least = 1 if min_peaks == 0 else min_peaks  # the model refuses cells without an open peak
    adata = pp.filter_cells(adata, min_peaks=least, max_peaks=max_peaks, layer=layer)
    adata = pp.filter_peaks(adata, min_cells=min_cells, max_cells=max_cells, layer=layer)
    if n_peaks is not None and n_peaks != -1:
        adata = pp.select_variable_peaks(adata, n_peaks, layer=layer)
    return pp.filter_cells(adata, min_peaks=1, layer=layer)


def add_labels(adata: AnnData, label: str | None) -> str | None:
    """Return the name of the column of obs with the known labels, or None without labels.

    If ``label`` is the path of a file, its labels are added to obs. The file has the name of a cell
    and its label in every line.
    """
    if label is None or label in adata.obs:
        return label
    path = check_path("--label", label)
    if not path.is_file():
        raise DataError(
            f"--label {label!r} is not in obs; it has {listed(adata.obs)}. "
            "There is no file of this name either; expected a column of obs, or a file with a "
            "cell's name and its label in every line."
        )
    table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t", header=None, dtype=str)
    if table.shape[1] < 2:
        raise DataError(f"{path} has one column; expected a cell's name and its label.")
    label_of = table.drop_duplicates(0).set_index(0)[1]
    found = adata.obs_names.isin(label_of.index)
    if not found.all():
        raise DataError(
            f"{path} has no label for {int((~found).sum())} of {adata.n_obs} cells (the first is "
            f"{adata.obs_names[~found][0]!r}); every cell that the filters keep needs one."
        )
    key = "label" if "label" not in adata.obs else "scale_label"
    adata.obs[key] = pd.Categorical(label_of[adata.obs_names].to_numpy())
    return key


CLUSTER_METHODS = ("mixture", "kmeans", "leiden")
EMBEDDINGS = ("umap", "tsne", "none")
_DESCRIPTIONS = {
    "adata.h5ad": 'obsm["X_scale"], obsm["scale_responsibilities"], obs["scale_cluster"], '
    'uns["scale"]',
    "specific_peaks.tsv": "the peaks most specific to each cluster",
    "scale.pdf": "the summary figure (also scale.png)",
    "imputed.h5ad": "expected accessibility in X",
    "imputed_binary.h5ad": "expected accessibility as 0/1 in X, sparse",
    "model": "the model, read by pyro_scale.SCALE.load",
}
RESULTS = (*_DESCRIPTIONS, "scale.png")
CHECKPOINT = "training.checkpoint"  # exists until a run is finished


@dataclass(frozen=True)
class Outputs:
    """The outputs of a run besides the latent representation and the clusters of the mixture."""

    cluster_method: str = "mixture"
    resolution: float = 1.0
    embedding: str = field(default_factory=default_embedding)
    impute: bool = False
    binary: bool = False
    label: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the fields."""
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
        """Column of obs that holds the clusters."""
        method = self.cluster_method
        return "scale_cluster" if method == "mixture" else f"scale_{method}"

    def result(self, model: SCALE, adata: AnnData) -> AnnData:
        """Return a copy of ``adata`` with the results that are written to ``adata.h5ad``."""
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
            method: Any = self.embedding  # checked in __post_init__
            result.obsm[f"X_{method}"] = embed(z_nd, method=method, seed=self.seed)
        return result

    def write(
        self, model: SCALE, adata: AnnData, output: Path, *, pretrain: Path | None = None
    ) -> None:
        """Write all results to a temporary folder, move them to ``output``, and list them.

        ``pretrain`` is the path that the model was read from, if it was not trained in this run.
        The model is not written again then, and this path is not removed.
        """
        result = self.result(model, adata)
        with tempfile.TemporaryDirectory(dir=output, prefix=".scale-") as temporary:
            new, old = Path(temporary) / "new", Path(temporary)
            new.mkdir()
            if pretrain is None:
                model.save(new / "model")
            with any_strings():
                result.write_h5ad(new / "adata.h5ad", compression="gzip")
            x = model.counts(adata).read()
            scores = peak_specificity(x, result.obs[self.cluster_key], list(model.peak_names))
            specific_peaks(scores).to_csv(new / "specific_peaks.tsv", sep="\t", index=False)
            if self.embedding != "none":
                from pyro_scale import plotting as pl  # matplotlib takes long to import

                weights_k = model.vae.prior.log_pi_k.detach().exp().cpu().numpy()
                figure = pl.summary(
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
                _atomic.replace(new / name, output / name, old)
            used = None if pretrain is None else pretrain.resolve()
            stale = [
                n
                for n in _existing_results(output)
                if n not in written and (output / n).resolve() != used
            ]
            for name in stale:  # of an earlier run
                shutil.move(output / name, old / f"stale-{name}")
        if stale:
            echo(f"removed files of an earlier run: {', '.join(stale)}")
        self._report(result)
        echo(f"in {output}/:")
        for name, description in _DESCRIPTIONS.items():
            if name in written:
                echo(f"  {name + ('/' if name == 'model' else ''):20} {description}")

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
            echo(f"no cell has a label in obs[{self.label!r}]: the clusters are not scored.")
            return
        if not known.all():
            echo(f"{int((~known).sum())} cells without a label are left out of the scores.")
        report = cluster_report(result.obs[self.label][known], clusters[known])
        scores = ", ".join(f"{name.upper()} {value:.3f}" for name, value in report.scores.items())
        console.print(f"against obs[{self.label!r}] (not used in training): {scores}", markup=False)
        cluster_of = {label: cluster for cluster, label in report.matching.items()}
        echo(
            report.confusion.rename(
                columns=lambda name: f"{name} (={cluster_of[name]})"
            ).to_string()
        )


def _existing_results(output: Path) -> list[str]:
    return [name for name in RESULTS if (output / name).exists()]


@contextmanager
def output_folder(
    output: Path, *, overwrite: bool, inputs: Sequence[str] | None = None
) -> Iterator[None]:
    """Create the output folder, check that it can be written to, and run the ``with`` block.

    The input files of the command, if it has any, are checked first.

    After an error, folders that this call created are removed if they are empty. When the block
    ends without an error, the training checkpoint in the folder is removed. A folder with a
    checkpoint belongs to an unfinished run, which may be resumed without ``overwrite``.

    Raises
    ------
    OSError
        If ``output`` is a file, holds results although ``overwrite`` is false, or cannot be
        written to.
    FileNotFoundError
        If an input does not exist.
    ValueError
        If no input is given, or one is among the files that would be replaced.
    """
    if inputs is not None:
        check_inputs(inputs)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; choose a folder with -o.")
    unfinished = (output / CHECKPOINT).exists()
    if (found := _existing_results(output)) and not overwrite and not unfinished:
        raise FileExistsError(
            f"{output} already holds a result ({', '.join(found)}); choose another folder with "
            "-o, or give --overwrite."
        )
    for path in inputs or ():
        if check_path("FILES", path).resolve() in {(output / name).resolve() for name in RESULTS}:
            raise ValueError(f"{path} is an input and would be replaced; choose another -o.")
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    leftover = list(output.glob(".scale-*"))  # temporary folders of processes that were killed
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".scale-"):
            pass
    except OSError as error:
        _remove_empty(created)
        raise OSError(
            f"{output} cannot be written to ({error.strerror}); choose another folder with -o."
        ) from error
    try:
        yield
    except BaseException:
        _remove_empty(created)
        raise
    for folder in leftover:
        shutil.rmtree(folder, ignore_errors=True)
    _atomic.fsync(output)
    (output / CHECKPOINT).unlink(missing_ok=True)  # last, because it marks an unfinished run


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
