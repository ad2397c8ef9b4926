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


def _first_time(message: str, said: set[str]) -> bool:
    """Every verb checks the cells it is given, and would say the same of them."""
    new = message not in said
    said.add(message)
    return new


@contextmanager
def told() -> Iterator[None]:
    """Log to the terminal, and turn a user's mistake into one clear message."""
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    said: set[str] = set()
    handler.addFilter(lambda record: _first_time(record.getMessage(), said))
    logger = logging.getLogger("pyro_scale")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
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
    wide = console.width >= 120
    shown = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 2 if wide else 1, 0, 0)
    )
    names = ["formulation", "c", "estimator", *(["closed form", "value"] if wide else [])]
    names += ["difference", "gradient", "variance", *(["ms"] if wide else []), ""]
    for name in names:
        text = name in ("formulation", "c", "estimator", "closed form", "")
        header = "differs" if name == "difference" and not wide else name
        shown.add_column(header, no_wrap=True, justify="left" if text else "right")
    colours = {"holds": "green", "FAILS": "bold red", "no power": "yellow"}
    supported = [row for row in table.rows if row.supported]
    for row in supported:
        gradient = (
            f"z {row.max_gradient_z:.1f}"
            if row.max_gradient_z is not None
            else f"{row.max_relative_gradient_difference:.0e}"
        )
        cells = {
            "formulation": row.formulation,
            "c": row.c,
            "estimator": row.estimator.removesuffix("_ELBO"),
            "closed form": row.twin,
            "value": f"{row.value:.2f}",
            "difference": f"{row.difference:.1e}",
            "gradient": gradient,
            "variance": f"{row.gradient_variance:.1e}",
            "ms": f"{1000 * (row.seconds or 0):.0f}",
            "": f"[{colours[row.verdict]}]{row.verdict}[/]",
        }
        shown.add_row(*(cells[name] for name in names))
    console.print(shown)
    hold = sum(row.holds is True for row in supported)
    console.print(
        f"{hold} of {len(supported)} supported rows hold; {len(table.rows) - len(supported)} "
        "combinations are refused (--json has the reasons)."
    )


def progress(rows: Iterable[Row]) -> Iterable[Row]:
    """The rows, with a bar on the way."""
    return track(list(rows), "comparing", console=Console(stderr=True), transient=True)
