"""``pyro-scale compare``: every ELBO twice, on a file's cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import pyro_scale as ps
from pyro_scale import pp
from pyro_scale.cli.inputs import read_cells
from pyro_scale.cli.options import Files, Layer, Likelihood, Peaks, Seed
from pyro_scale.cli.terminal import console, progress, say, show, told

__all__ = ["compare", "compare_model"]


def _refuse_unwritable(json: Path | None, plot: Path | None) -> None:
    """Before the work, not after it."""
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {plot.name}: expected a name that ends in .png, .pdf or .svg.")


def compare_model(
    model: ps.SCALE, n_cells: int, n_samples: int, seed: int, json: Path | None, plot: Path | None
) -> None:
    """Show the table and write it where asked."""
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


def compare(
    files: Files = None,
    n_components: Annotated[
        int, typer.Option("-k", "--n-components", help="Number of mixture components.")
    ] = 8,
    seed: Seed = 0,
    n_cells: Annotated[int, typer.Option(help="Cells to compare on.")] = 48,
    n_samples: Annotated[int, typer.Option(help="Draws per row.")] = 24,
    layer: Layer = None,
    peaks: Peaks = None,
    likelihood: Likelihood = "bernoulli",
    json: Annotated[Path | None, typer.Option(help="Write rows and reasons here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the figure here (.png, .pdf).")] = None,
) -> None:
    """Compute every ELBO twice on FILES' cells, by Pyro and by closed form; show the table.

    The model is the plain one of the paper, after a short warm-up, in float64. The exit code
    is 2 if a row fails.
    """
    with told():
        console.print(f"seed {seed}")
        _refuse_unwritable(json, plot)
        adata = read_cells(files or [], peaks=peaks, batch_key=None)
        model = ps.SCALE(
            pp.filter_cells(adata, min_peaks=1, layer=layer),
            n_components,
            preset="plain",
            likelihood=likelihood,  # type: ignore[arg-type]  # checked there
            layer=layer,
            seed=seed,
        )
        compare_model(model, n_cells, n_samples, seed, json, plot)
