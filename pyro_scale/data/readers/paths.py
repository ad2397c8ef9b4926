"""Paths, patterns and names of files, and conversion of errors of readers to DataError."""

from __future__ import annotations

import bz2
import codecs
import difflib
import glob
import gzip
import logging
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pyro_scale.exceptions import DataError, OutOfMemoryError

__all__ = [
    "expand",
    "holds",
    "modality_of",
    "open_bytes",
    "open_text",
    "readable",
    "stem_and_kind",
    "warn_of_cut",
]

logger = logging.getLogger(__name__)

_TEXT = {".bed", ".csv", ".mtx", ".tsv", ".txt"}  # text formats, which may be compressed
_COMPRESSED = (".gz", ".bz2", ".xz")
_MAGIC: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def stem_and_kind(path: Path) -> tuple[str, str]:
    """Split a file's name into stem and extension, both without a suffix such as ``.gz``.

    Examples
    --------
    >>> stem_and_kind(Path("folder/cells.csv.gz")), stem_and_kind(Path("cells.H5AD"))
    (('cells', '.csv'), ('cells', '.h5ad'))
    """
    inner = Path(path.stem)
    if path.suffix.lower() in _COMPRESSED and inner.suffix.lower() in _TEXT:
        path = inner
    return path.stem, path.suffix.lower()


def _opener(path: Path) -> Any:
    """Return the function that opens a file: its first bytes say how it is compressed, if at all.

    The name does not: downloads lose or keep the suffix ``.gz`` whatever the content is.
    """
    with path.open("rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _MAGIC.items() if start.startswith(magic)), open)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, compressed or not, for reading its bytes."""
    opened: IO[bytes] = _opener(path)(path, "rb")
    return opened


def open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not, in UTF-8 or in UTF-16 with a byte order mark."""
    with open_bytes(path) as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    opened: IO[str] = _opener(path)(path, "rt", encoding=encoding)
    return opened


def modality_of(path: Path) -> tuple[Path, str | None]:
    """Split ``file.h5mu/atac`` into file and modality; any other path has the modality None."""
    kind = path.parent.suffix.lower()
    if kind == ".h5mu" or (kind in (".h5", ".hdf5", ".h5ad") and path.parent.is_file()):
        return path.parent, path.name
    return path, None


def expand(path: Path) -> list[Path]:
    """Return the file or folder at ``path`` or, if ``path`` is a pattern, all that match, sorted.

    Raises
    ------
    FileNotFoundError
        If there are none; the message suggests the nearest names.
    """
    file, modality = modality_of(path)
    names = [file] if file.exists() else glob.glob(str(file), recursive=True)
    found = sorted(map(Path, names))
    if not found:
        raise FileNotFoundError(_missing(file))
    return [match if modality is None else match / modality for match in found]


def holds(folder: Path, at_most: int = 20) -> str:
    """Return a sentence that lists the content of a folder, for an error message."""
    names = sorted(f"{inside.name}{'/' * inside.is_dir()}" for inside in folder.iterdir())
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"{folder} holds {', '.join(names[:at_most]) or 'nothing'}{more}."


def _missing(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    wrong = path.absolute().relative_to(folder).parts[0]
    near = difflib.get_close_matches(wrong, [inside.name for inside in folder.iterdir()])
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    if glob.has_magic(str(path)):
        return f"no file matches {path}: {hint}{holds(folder)}"
    return f"{path} does not exist: {hint}{holds(folder)}"


def warn_of_cut(path: Path) -> None:
    """Log a warning if a text file does not end with a line break, as it may be cut short."""
    if not path.stat().st_size or _opener(path) is not open:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() not in b"\r\n":
            logger.warning(
                "%s does not end with a line break: if it was cut short, its last entry is wrong.",
                path,
            )


@contextmanager
def readable(what: Path | str, kind: str) -> Iterator[None]:
    """Turn any exception that a library raises while it reads a file into a DataError.

    A file that cannot be read may raise zlib.error, EOFError, OSError, KeyError, RuntimeError or
    others. The DataError names the file, ``what``, the format that it was read as, ``kind``, and
    the library's own error. It says that the file is damaged only if the error means that.
    """
    try:
        yield
    except (DataError, ImportError, PermissionError):
        raise
    except MemoryError as error:
        raise OutOfMemoryError(
            f"{what} needs more memory than there is ({_cause(error)}). If it is truly that large, "
            "leave it on disk (backed=True, for .h5ad and .zarr); otherwise it is damaged."
        ) from error
    except Exception as error:
        is_cut = isinstance(error, OSError) and "truncated file" in str(error)
        damaged = isinstance(error, _DAMAGED) or is_cut
        advice = " It is damaged or cut short: copy or download it again." if damaged else ""
        raise DataError(
            f"{what} cannot be read as {kind} ({type(error).__name__}: {_cause(error)}).{advice}"
        ) from error


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no message"
