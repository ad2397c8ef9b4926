"""The command ``pyro-scale compare``: check every objective against its closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import pyro_scale as ps
from pyro_scale import preprocessing as pp
from pyro_scale.cli._console import cli_errors, console, echo, progress, show
from pyro_scale.cli._files import read_cells
from pyro_scale.cli._options import (
    MODEL,
    OUTPUT,
    Files,
    Layer,
    Likelihood,
    Peaks,
    PeakStyleOption,
    expand_home,
)

__all__ = ["compare", "compare_model"]

_PANEL = "Comparison"


def _check_writable(json: Path | None, plot: Path | None) -> None:
    """Check that both output files can be written, before the computation starts."""
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {plot.name}: expected a name that ends in .png, .pdf or .svg.")


def compare_model(
    model: ps.SCALE, n_cells: int, n_samples: int, seed: int, json: Path | None, plot: Path | None
) -> None:
    """Compare, print the table, and write it to ``json`` and ``plot`` if they are given."""
    table = ps.compare(model, n_cells=n_cells, n_samples=n_samples, seed=seed, progress=progress)
    show(table)
    if json is not None:
        table.to_json(json)
        echo(f"wrote {json}")
    if plot is not None:
        table.plot().savefig(plot)
        echo(f"wrote {plot}")
    if any(row.holds is False for row in table.rows):
        raise typer.Exit(2)


def compare(
    files: Files = None,
    layer: Layer = None,
    peaks: Peaks = None,
    peak_style: PeakStyleOption = None,
    n_components: Annotated[
        int,
        typer.Option(
            "-k",
            "--n-components",
            help="Number of mixture components.",
            rich_help_panel=MODEL,
        ),
    ] = 8,
    likelihood: Likelihood = "bernoulli",
    n_cells: Annotated[
        int,
        typer.Option(help="Number of cells to evaluate the objectives on.", rich_help_panel=_PANEL),
    ] = 48,
    n_samples: Annotated[
        int,
        typer.Option(help="Number of draws per objective.", rich_help_panel=_PANEL),
    ] = 24,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of all random numbers.", rich_help_panel=_PANEL)
    ] = 0,
    json: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for the table, with the reason for each status.",
            callback=expand_home,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="File for the figure (.png, .pdf or .svg).",
            callback=expand_home,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Compute every ELBO by Pyro and by its closed form, and print whether the two agree.

    The model is the plain one of the paper, on cells of FILES, in float64, after a short warm-up.

    The exit code is 2 if an objective fails.
    """
    with cli_errors():
        console.print(f"seed {seed}")
        _check_writable(json, plot)
        adata = read_cells(files or [], peaks=peaks, batch_key=None, peak_style=peak_style)
        model = ps.SCALE(
            pp.filter_cells(adata, min_peaks=1, layer=layer),
            n_components,
            preset="plain",
            likelihood=likelihood,  # type: ignore[arg-type]  # SCALE checks it
            layer=layer,
            seed=seed,
        )
        compare_model(model, n_cells, n_samples, seed, json, plot)
