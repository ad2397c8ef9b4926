"""What is written appears whole: beside its place first, then moved there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["place"]


def place(new: Path, target: Path, scratch: Path) -> None:
    """Move a file or folder to its place; what was there goes to ``scratch``, or stays.

    All three on one file system. If the move fails, what was there is put back.
    """
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
