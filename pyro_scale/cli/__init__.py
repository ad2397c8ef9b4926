"""The command line ``pyro-scale`` with its commands run, compare and demo."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from pyro_scale._streams import tolerant_output
from pyro_scale.cli._options import join_width_options
from pyro_scale.cli.compare import compare
from pyro_scale.cli.demo import demo
from pyro_scale.cli.run import run

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="SCALE for single-cell ATAC-seq as Pyro programs.",
    # The original SCALE spells options with underscores: --max_iter means --max-iter.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
for command in (run, compare, demo):
    app.command()(command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"pyro-scale {version('pyro-scale')}")
        raise typer.Exit


@app.callback()
def about(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """SCALE for single-cell ATAC-seq as Pyro programs."""


def main() -> None:
    """Run the command ``pyro-scale`` with the arguments of this process."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore", category=FutureWarning)
    with tolerant_output(to_end=True):  # a log that is closed must not end a run of hours
        app(args=join_width_options(sys.argv[1:]))
