"""Atomic writes: write to a temporary path on the same file system, then rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "fsync", "replace"]


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path, whose content is renamed to ``target`` when the block ends.

    The block writes a file or a folder to the temporary path, which is on the file system of
    ``target``. After an error, or if the process is killed, ``target`` is unchanged.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        new = Path(scratch) / target.name
        yield new
        replace(new, target, Path(scratch))


def replace(new: Path, target: Path, scratch: Path) -> None:
    """Flush a file or folder to disk and rename it to ``target``.

    An existing folder at ``target`` is moved to ``scratch`` first, and moved back if the rename
    fails. All three paths must be on one file system.
    """
    for path in (new, *new.rglob("*")):
        fsync(path)
    if not target.is_dir() and not new.is_dir():  # one step, so that a file always exists
        os.replace(new, target)
        fsync(target.parent)
        return
    old = scratch / f"old-{target.name}"
    existed = target.exists()
    if existed:
        shutil.move(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if existed:
            shutil.move(old, target)
        raise
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # pragma: no cover  (Windows cannot open folders)
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
