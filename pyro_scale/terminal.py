"""What the command line prints: one console, clear errors, the comparison's table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from pyro_scale.comparison import Comparison
from pyro_scale.objectives import Row

__all__ = ["console", "progress", "say", "show", "told"]

console = Console()


@contextmanager
def told() -> Iterator[None]:
    """Log to the terminal, and turn a user's mistake into one clear message."""
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    logger = logging.getLogger("pyro_scale")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def say(line: str) -> None:
    """Print a line that holds a path: whole, and as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def show(table: Comparison) -> None:
    """The supported rows in the terminal, the refused ones counted."""
    settings = ", ".join(f"{key} {value}" for key, value in table.settings.items())
    console.print(f"compared with {settings}", highlight=False)
    gaps = ", ".join(f"{key}: {value:.3g}" for key, value in table.gaps.items())
    console.print(f"gaps between the bounds here, nats per cell: {gaps}", highlight=False)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("formulation", "c", "estimator", "closed form"):
        shown.add_column(name)
    for name in ("value", "difference", "gradient", "variance", "ms"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    colours = {"holds": "green", "FAILS": "bold red", "no power": "yellow"}
    supported = [row for row in table.rows if row.supported]
    for row in supported:
        gradient = (
            f"z {row.max_gradient_z:.1f}"
            if row.max_gradient_z is not None
            else f"{row.max_relative_gradient_difference:.0e}"
        )
        shown.add_row(
            row.formulation,
            row.c,
            row.estimator,
            row.twin,
            f"{row.value:.2f}",
            f"{row.difference:.1e}",
            gradient,
            f"{row.gradient_variance:.3g}",
            f"{1000 * (row.seconds or 0):.0f}",
            f"[{colours[row.verdict]}]{row.verdict}[/]",
        )
    console.print(shown)
    hold = sum(row.holds is True for row in supported)
    console.print(
        f"{hold} of {len(supported)} supported rows hold; {len(table.rows) - len(supported)} "
        "combinations are refused (--json has the reasons)."
    )


def progress(rows: Iterable[Row]) -> Iterable[Row]:
    """The rows, with a bar on the way."""
    return track(list(rows), "comparing", console=Console(stderr=True), transient=True)
