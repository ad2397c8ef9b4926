"""Atomic writes."""

import errno
import os

import pytest

from pyro_scale import _atomic


@pytest.mark.parametrize("there", [False, True])
def test_a_move_that_fails_puts_back_what_was_there(there, tmp_path, monkeypatch):
    new, target, scratch = (tmp_path / name for name in ("new", "target", "scratch"))
    new.mkdir()
    scratch.mkdir()
    if there:
        target.mkdir()
        (target / "old").touch()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        _atomic.replace(new, target, scratch)
    assert target.exists() == there
    assert not there or [path.name for path in target.iterdir()] == ["old"]
    monkeypatch.undo()
    _atomic.replace(new, target, scratch)
    assert not list(target.iterdir())
