"""Options that commands share, and the spellings of the original SCALE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchKey",
    "Files",
    "K",
    "Layer",
    "Likelihood",
    "Out",
    "Overwrite",
    "Peaks",
    "Seed",
    "spread",
    "widths",
]

KINDS = ".h5ad, .zarr, 10x .h5, an mtx folder, .csv/.tsv/.txt(.gz) or file.h5mu/atac"

Files = Annotated[
    list[str] | None,
    typer.Argument(help=f"Cells x peaks: {KINDS}; several files are joined.", metavar="FILES..."),
]
K = Annotated[
    int | None,
    typer.Option(
        "-k",
        "--n-components",
        "--n-centroids",
        help="Number of mixture components; default: chosen by modularity.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--output", "--outdir", help="Folder to write to.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Layer = Annotated[str | None, typer.Option("--layer", help="Read this layer instead of X.")]
Likelihood = Annotated[str, typer.Option("--likelihood", help="bernoulli or poisson (counts).")]
Peaks = Annotated[
    str | None,
    typer.Option(
        "--peaks",
        help="rows or columns: where peaks are, if a file does not say.",
    ),
]
BatchKey = Annotated[
    str | None,
    typer.Option(
        "--batch-key",
        help="Column of obs with the batch, which the decoder is conditioned on; for several "
        "files it is made, from their names.",
    ),
]

_SEVERAL = ("--encode-dim", "--decode-dim", "--hidden", "--decoder-hidden")


def spread(arguments: Sequence[str]) -> list[str]:
    """``--encode_dim 1024 128``, as the original takes it, for an option of one value.

    Examples
    --------
    >>> spread(["a.h5ad", "--encode_dim", "1024", "128", "-k", "8"])
    ['a.h5ad', '--encode_dim', '1024,128', '-k', '8']
    """
    result: list[str] = []
    for argument in arguments:
        joins = len(result) > 1 and result[-2].replace("_", "-") in _SEVERAL
        if joins and argument.isdecimal() and result[-1].replace(",", "").isdecimal():
            result[-1] += f",{argument}"
        else:
            result.append(argument)
    return result


def widths(text: str | None, option: str) -> tuple[int, ...] | None:
    """``"1024,128"`` as numbers; ``""`` and ``"0"`` are no hidden layers."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["0"]:
        return ()
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} {text!r}: expected widths such as 1024,128.")
    return tuple(map(int, parts))
