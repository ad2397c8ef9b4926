"""What is written appears whole: beside its place first, then moved there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["flushed", "place"]


def place(new: Path, target: Path, scratch: Path) -> None:
    """Move a file or folder to its place; what was there goes to ``scratch``, or stays.

    All three on one file system. If the move fails, what was there is put back.
    """
    for each in (new, *new.rglob("*")):
        flushed(each)
    if new.is_file() and target.is_file():  # in one step: there is no moment without a file
        os.replace(new, target)
        return
    old = scratch / f"old-{target.name}"
    there = target.exists()
    if there:
        shutil.move(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if there:
            shutil.move(old, target)
        raise


def flushed(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # pragma: no cover  (Windows does not open folders)
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
