"""Output to the terminal: the console, error messages, and the table of a comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import track
from rich.text import Text

from pyro_scale.comparison import ComparedRow, Comparison
from pyro_scale.objectives import ObjectiveSpec

__all__ = ["cli_errors", "console", "echo", "progress", "show"]

console = Console()


def _is_new(message: str, logged: set[str]) -> bool:
    """Return whether a message is logged for the first time.

    Each method of SCALE checks the same cells again and would repeat its messages.
    """
    new = message not in logged
    logged.add(message)
    return new


@contextmanager
def cli_errors() -> Iterator[None]:
    """Show log messages in the terminal, and print errors that users can correct to stderr."""
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    logged: set[str] = set()
    handler.addFilter(lambda record: _is_new(record.getMessage(), logged))
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


def echo(line: str) -> None:
    """Print a line as it is: without markup, highlighting or line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


_COLORS = {"holds": "green", "FAILS": "bold red", "no power": "yellow"}


def _columns(rows: Sequence[ComparedRow]) -> dict[str, list[str]]:
    """Return the entries of each column of the table, in the order of ``rows``."""

    def gradient(row: ComparedRow) -> str:
        if row.max_gradient_z is not None:
            return f"z {row.max_gradient_z:.1f}"
        return f"{row.max_relative_gradient_difference:.0e}"

    return {
        "estimator": [row.estimator.removesuffix("_ELBO") for row in rows],
        "closed form": [row.closed_form for row in rows],
        "value": [f"{row.value:.2f}" for row in rows],
        "difference": [f"{row.difference:.1e}" for row in rows],
        "gradient": [gradient(row) for row in rows],
        "variance": [f"{row.gradient_variance:.1e}" for row in rows],
        "ms": [f"{1000 * (row.seconds or 0):.0f}" for row in rows],
        "status": [row.status for row in rows],
    }


def show(table: Comparison) -> None:
    """Print a comparison as a table of the supported objectives.

    The objectives are grouped by formulation and by how the mixture component c is treated. Below
    the table, the number of unsupported combinations is printed. If the terminal is too narrow for
    all columns, ``value`` and ``ms`` are left out; no entry or header is shortened.
    """
    settings = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in table.settings.items()
    )
    console.print(f"compared with {settings}", highlight=False)
    gaps = ", ".join(f"{key}: {value:.3g}" for key, value in table.gaps.items())
    console.print(f"gaps between the bounds, in nats per cell: {gaps}", highlight=False)

    supported = [row for row in table.rows if row.supported]
    columns = _columns(supported)
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    if sum(widths.values()) + len(widths) - 1 > console.width:
        widths = {name: width for name, width in widths.items() if name not in ("value", "ms")}

    def line(cells: Mapping[str, str], style: str = "") -> None:
        text = Text()
        for name, width in widths.items():
            left = name in ("estimator", "closed form", "status")
            cell = cells[name].ljust(width) if left else cells[name].rjust(width)
            text.append(cell, style or (_COLORS[cells[name]] if name == "status" else ""))
            text.append(" ")
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)

    line({name: name for name in widths}, style="bold")
    group = None
    for at, row in enumerate(supported):
        if group != (group := (row.formulation, row.c)):
            echo(f"--- {row.formulation}, c {row.c}")
        line({name: columns[name][at] for name in widths})
    n_holding = sum(row.holds is True for row in supported)
    console.print(
        f"{n_holding} of {len(supported)} supported objectives hold; "
        f"{len(table.rows) - len(supported)} combinations are unsupported and not shown "
        "(the JSON output gives the reasons).",
        highlight=False,
    )
    if any(row.status == "no power" for row in supported):
        console.print(
            "no power: these draws cannot tell the bound from another one, or did not visit every "
            "component; more draws (--n-samples) may help (the JSON output gives the reasons).",
            highlight=False,
        )


def progress(rows: Iterable[ObjectiveSpec]) -> Iterable[ObjectiveSpec]:
    """Iterate over the objectives with a progress bar on stderr."""
    return track(list(rows), "comparing", console=Console(stderr=True), transient=True)
