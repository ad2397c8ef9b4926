"""Options shared by several commands, and the spelling of options in the original SCALE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pyro_scale._validation import check_path
from pyro_scale.data.peak_names import PEAK_STYLES

__all__ = [
    "INPUT",
    "MODEL",
    "OUTPUT",
    "TRAINING",
    "BatchKey",
    "Files",
    "K",
    "Layer",
    "Likelihood",
    "Out",
    "Overwrite",
    "PeakStyleOption",
    "Peaks",
    "Seed",
    "expand_home",
    "join_width_options",
    "parse_widths",
]

INPUT, MODEL, TRAINING, OUTPUT = "Input", "Model", "Training", "Output"
"""Titles of the panels that group the options in a command's ``--help``."""

_FORMATS = (
    ".h5ad, .zarr, 10x .h5, a folder with an .mtx, .csv/.tsv/.txt(.gz), file.h5mu/atac (a modality)"
)

Files = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"Cells x peaks matrices ({_FORMATS}). Several files are concatenated.",
        metavar="FILES...",
    ),
]
K = Annotated[
    int | None,
    typer.Option(
        "-k",
        "--n-components",
        "--n-centroids",
        help="Number of mixture components (clusters). Default: the number of clusters that are "
        "separated in the latent space.",
        rich_help_panel=MODEL,
    ),
]


def expand_home(path: Path | None) -> Path | None:
    """Replace ``~``, which a shell leaves within quotes and in ``--output=~/result``."""
    return None if path is None else check_path("path", path)


Out = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        "--outdir",
        help="Folder for the results.",
        callback=expand_home,
        rich_help_panel=OUTPUT,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of all random numbers.", rich_help_panel=TRAINING)
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace existing results in the output folder.", rich_help_panel=OUTPUT
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        "--layer", help="Layer of the AnnData to read instead of X.", rich_help_panel=INPUT
    ),
]
Likelihood = Annotated[
    str,
    typer.Option(
        "--likelihood",
        help="bernoulli (counts are set to 0/1) or poisson (counts).",
        rich_help_panel=MODEL,
    ),
]
Peaks = Annotated[
    str | None,
    typer.Option(
        "--peaks",
        help="'rows' or 'columns': where the peaks are in text tables and .mtx files. Default: "
        "inferred from names or sizes.",
        rich_help_panel=INPUT,
    ),
]
PeakStyleOption = Annotated[
    str | None,
    typer.Option(
        "--peak-style",
        help=f"Notation to bring the names of all peaks to: {', '.join(PEAK_STYLES)}. Default: "
        "names as they are.",
        rich_help_panel=INPUT,
    ),
]
BatchKey = Annotated[
    str | None,
    typer.Option(
        "--batch-key",
        help="Column of obs that names each cell's batch; the decoder is conditioned on it. With "
        "several files, the column is created and holds the file names.",
        rich_help_panel=INPUT,
    ),
]

_WIDTH_OPTIONS = ("--encode-dim", "--decode-dim", "--hidden", "--decoder-hidden")


def join_width_options(arguments: Sequence[str]) -> list[str]:
    """Join the values of ``--encode_dim 1024 128`` (the original SCALE's syntax) by commas.

    Examples
    --------
    >>> join_width_options(["a.h5ad", "--encode_dim", "1024", "128", "-k", "8"])
    ['a.h5ad', '--encode_dim', '1024,128', '-k', '8']
    """
    result: list[str] = []
    for argument in arguments:
        joins = len(result) > 1 and result[-2].replace("_", "-") in _WIDTH_OPTIONS
        if joins and argument.isdecimal() and result[-1].replace(",", "").isdecimal():
            result[-1] += f",{argument}"
        else:
            result.append(argument)
    return result


def parse_widths(text: str | None, option: str) -> tuple[int, ...] | None:
    """Parse layer widths such as ``"1024,128"``; ``""`` and ``"0"`` mean no hidden layers."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["0"]:
        return ()
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} {text!r}: expected widths such as 1024,128.")
    return tuple(map(int, parts))
