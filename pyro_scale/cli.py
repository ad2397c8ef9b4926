"""The command line: run, compare and demo."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated

import anndata
import typer
from anndata import AnnData

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores
from pyro_scale.data import filter_cells, filter_peaks
from pyro_scale.plotting import plot_run
from pyro_scale.programs import FORMULATIONS
from pyro_scale.terminal import console, progress, say, show, told

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="SCALE for single-cell ATAC-seq as Pyro programs.",
)

File = Annotated[Path, typer.Argument(help="Cells x peaks, an AnnData .h5ad file.")]
K = Annotated[int, typer.Option("-k", "--n-components", help="Number of mixture components.")]
Out = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Layer = Annotated[str | None, typer.Option("--layer", help="Read this layer instead of X.")]
Likelihood = Annotated[str, typer.Option("--likelihood", help="bernoulli or poisson (counts).")]


def _read(path: Path) -> AnnData:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of an .h5ad file.")
    if path.suffix != ".h5ad":
        raise ValueError(f"{path.name} is not an .h5ad file, the only kind that is read so far.")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an AnnData .h5ad file: {error}") from error


def _run(
    adata: AnnData,
    model: ps.SCALE,
    output: Path,
    overwrite: bool,
    label: str | None,
    epochs: int | None,
) -> None:
    """Train, then write the whole result beside its place and move it there."""
    started = time.perf_counter()
    console.print(f"training {model}", highlight=False)
    model.train(max_epochs=epochs)
    result = model.to_anndata(adata)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".scale-") as temporary:
        new = Path(temporary) / "new"
        model.save(new / "model")
        result.write_h5ad(new / "adata.h5ad", compression="gzip")
        figure = plot_run(
            result.obsm["X_scale"],
            result.obsm["scale_responsibilities"],
            result.obs["scale_cluster"],
            model.vae.prior.log_pi_k.detach().exp().numpy(),
            model.history,
        )
        figure.savefig(new / "scale.png")
        figure.savefig(new / "scale.pdf")
        _move(new, output, overwrite)
    sizes = result.obs["scale_cluster"].value_counts(sort=False)
    console.print(f"clusters: {', '.join(f'{name}: {size}' for name, size in sizes.items())}")
    if label is not None:
        scores = cluster_scores(result.obs[label], result.obs["scale_cluster"])
        told = ", ".join(f"{name.upper()} {value:.3f}" for name, value in scores.items())
        console.print(f"against obs[{label!r}] (not used in training): {told}", markup=False)
    say(f"done in {time.perf_counter() - started:.0f} s; in {output}/:")
    console.print('  adata.h5ad  obsm["X_scale"], obsm["scale_responsibilities"],', markup=False)
    console.print('              obs["scale_cluster"], uns["scale"]', markup=False)
    console.print("  scale.png, scale.pdf  the figure")
    console.print("  model/  for pyro_scale.SCALE.load")


def _results(output: Path) -> list[str]:
    names = ("adata.h5ad", "scale.png", "scale.pdf", "model")
    return [name for name in names if (output / name).exists()]


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; choose a folder with -o.")
    found = _results(output)
    if found and not overwrite:
        raise FileExistsError(
            f"{output} already holds a result ({', '.join(found)}); choose another folder with "
            "-o, or give --overwrite."
        )


def _move(new: Path, output: Path, overwrite: bool) -> None:
    """Put each result in its place; whatever else is in the folder stays."""
    _refuse_existing(output, overwrite)
    output.mkdir(exist_ok=True)
    for result in new.iterdir():
        target = output / result.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(result, target)


@app.command()
def run(
    file: File,
    n_components: Annotated[
        int | None,
        typer.Option(
            "-k", "--n-components", help="Number of components; default: chosen by modularity."
        ),
    ] = None,
    output: Out = Path("scale_output"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    layer: Layer = None,
    min_peaks: Annotated[
        int, typer.Option(help="Leave out cells with fewer open peaks; empty cells always go.")
    ] = 1,
    min_cells: Annotated[
        float, typer.Option(help="Leave out peaks open in fewer cells; below 1, a fraction.")
    ] = 0.01,
    formulation: Annotated[
        str, typer.Option(help=f"q(z,c|x): {', '.join(FORMULATIONS)}.")
    ] = "collapsed",
    likelihood: Likelihood = "bernoulli",
    preset: Annotated[
        str, typer.Option(help="default, or plain: the model of the paper, without extras.")
    ] = "default",
    max_epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the cells; default: a million / cells, in 50 to 300."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="A column of obs to score the clusters against, afterwards.")
    ] = None,
) -> None:
    """Train on FILE without labels; write clusters, latent space, a figure and the model.

    Example: pyro-scale run cells.h5ad -k 8 -o result
    """
    with told():
        say(f"output folder {output}, seed {seed}")
        _refuse_existing(output, overwrite)
        adata = _read(file)
        if label is not None and label not in adata.obs:
            raise ValueError(f"--label {label!r} is not in obs; it has {', '.join(adata.obs)}.")
        adata = filter_cells(adata, min_peaks=max(1, min_peaks), layer=layer)
        adata = filter_peaks(adata, min_cells=min_cells, layer=layer)
        adata = filter_cells(adata, min_peaks=1, layer=layer)
        model = ps.SCALE(
            adata,
            n_components,
            formulation=formulation,
            likelihood=likelihood,  # type: ignore[arg-type]  # checked there
            preset=preset,  # type: ignore[arg-type]
            layer=layer,
            seed=seed,
        )
        _run(adata, model, output, overwrite, label, max_epochs)


def _refuse_unwritable(json: Path | None, plot: Path | None) -> None:
    """Before the work, not after it."""
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {plot.name}: expected a name that ends in .png, .pdf or .svg.")


def _compare(
    model: ps.SCALE, n_cells: int, n_samples: int, seed: int, json: Path | None, plot: Path | None
) -> None:
    table = ps.compare(model, n_cells=n_cells, n_samples=n_samples, seed=seed, progress=progress)
    show(table)
    if json is not None:
        table.to_json(json)
        say(f"wrote {json}")
    if plot is not None:
        table.plot().savefig(plot)
        say(f"wrote {plot}")
    if any(row.holds is False for row in table.rows):
        raise typer.Exit(2)


@app.command()
def compare(
    file: File,
    n_components: K = 8,
    seed: Seed = 0,
    n_cells: Annotated[int, typer.Option(help="Cells to compare on.")] = 48,
    n_samples: Annotated[int, typer.Option(help="Draws per row.")] = 24,
    layer: Layer = None,
    likelihood: Likelihood = "bernoulli",
    json: Annotated[Path | None, typer.Option(help="Write rows and reasons here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the figure here (.png, .pdf).")] = None,
) -> None:
    """Compute every ELBO twice on FILE's cells, by Pyro and by closed form; show the table.

    The model is the plain one of the paper, after a short warm-up, in float64. The exit code
    is 2 if a row fails.
    """
    with told():
        console.print(f"seed {seed}")
        _refuse_unwritable(json, plot)
        adata = filter_cells(_read(file), min_peaks=1, layer=layer)
        model = ps.SCALE(
            adata,
            n_components,
            preset="plain",
            likelihood=likelihood,  # type: ignore[arg-type]
            layer=layer,
            seed=seed,
        )
        _compare(model, n_cells, n_samples, seed, json, plot)


@app.command()
def demo(output: Out = Path("scale_output"), seed: Seed = 0, overwrite: Overwrite = False) -> None:
    """Simulate cells, train on them, and compare the objectives: about two minutes."""
    with told():
        say(f"output folder {output}, seed {seed}")
        _refuse_existing(output, overwrite)
        adata = ps.simulate(n_cells=1000, n_peaks=3000, n_clusters=5, seed=seed)
        console.print(f"simulated {adata.n_obs} cells x {adata.n_vars} peaks in 5 clusters")
        model = ps.SCALE(adata, 5, seed=seed)
        _run(adata, model, output, overwrite, "cell_type", epochs=80)
        plain = ps.SCALE(adata, 5, hidden=(256, 128), preset="plain", seed=seed)
        _compare(plain, 48, 24, seed, output / "comparison.json", output / "comparison.png")


def main() -> None:
    """Entry point of ``pyro-scale``."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore", category=FutureWarning)
    app()
