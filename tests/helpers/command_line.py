"""The command line, called in this process."""

from typer.testing import CliRunner

from pyro_scale.cli import app
from pyro_scale.cli._console import console

__all__ = ["call"]


def call(*arguments, columns=200):
    """What the command prints on a terminal of so many columns, and its exit code."""
    console.width = columns  # it would keep that of its first use
    return CliRunner().invoke(
        app,
        [str(argument) for argument in arguments],
        env={"COLUMNS": str(columns), "TERM": "dumb"},
    )
