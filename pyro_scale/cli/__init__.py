"""The command line: run, compare and demo."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from pyro_scale.cli.compare import compare
from pyro_scale.cli.demo import demo
from pyro_scale.cli.options import spread
from pyro_scale.cli.run import run

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="SCALE for single-cell ATAC-seq as Pyro programs.",
    # --max_iter is --max-iter, as in the original SCALE.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
for command in (run, compare, demo):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pyro-scale {version('pyro-scale')}")
        raise typer.Exit


@app.callback()
def about(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """SCALE for single-cell ATAC-seq as Pyro programs."""


def main() -> None:
    """Entry point of ``pyro-scale``."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore", category=FutureWarning)
    app(args=spread(sys.argv[1:]))
