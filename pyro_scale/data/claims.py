"""What a file claims to hold, looked at before a library takes its word for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyro_scale.errors import DataError

__all__ = ["check_arrays", "check_heaps"]

_HEAP = b"GCOL\x01\x00\x00\x00"
_BLOCK = 2**24  # bytes read at a time
_LARGE = 2**26  # bytes of a file that takes long to read
_MOST = 2**30  # bytes of an array that need no reason
_DEEPEST = 20  # groups within groups
_MOST_PACKED = 1100  # times that deflate makes less of what it is given: it can no more


def check_heaps(path: Path) -> None:
    """Refuse an HDF5 file whose heap of strings has no end: the library would read it for ever.

    Each heap is a list of entries, 16 bytes and the string's own, and an entry of no length at all
    (where free space is said to begin) leads nowhere. In a large file the bytes of its arrays of
    numbers, which are nearly all of it, are passed over.
    """
    size = path.stat().st_size
    passed = _numbers(path) if size > _LARGE else []
    with path.open("rb") as file:
        for start in _heaps(file, size, passed):
            file.seek(start)
            heap = file.read(16)
            heap += file.read(min(int.from_bytes(heap[8:], "little"), size) - 16)
            at = 16
            while at + 16 <= len(heap):
                length = int.from_bytes(heap[at + 8 : at + 16], "little")
                is_string = heap[at : at + 2] != b"\x00\x00"
                step = 16 + -(-length // 8) * 8 if is_string else length
                if step % 2**64 == 0:
                    raise DataError(
                        f"{path} is damaged: its strings at byte {start + at} have no end; copy or "
                        "download it again."
                    )
                at += step


def _heaps(file: Any, size: int, passed: list[tuple[int, int]]) -> Iterator[int]:
    """Where the heaps begin."""
    found, begin = [], 0
    for start_passed, end_passed in [*sorted(passed), (size, size)]:
        for start in range(begin, start_passed, _BLOCK):
            file.seek(start)
            block = file.read(min(_BLOCK + len(_HEAP) - 1, start_passed - start))
            at = block.find(_HEAP)
            while at >= 0:
                found.append(start + at)
                at = block.find(_HEAP, at + 1)
        begin = max(begin, end_passed)
    yield from found


def _numbers(path: Path) -> list[tuple[int, int]]:
    """Where the bytes of arrays of numbers start and end; no string is read on the way."""
    found: list[tuple[int, int]] = []

    def chunk(info: Any) -> None:
        found.append((info.byte_offset, info.byte_offset + info.size))

    with h5py.File(path, "r") as file:
        for _, group in _groups(file, path.name):
            for key in group:
                if isinstance(array := group[key], h5py.Dataset) and array.dtype.kind in "biuf":
                    if array.chunks:
                        array.id.chunk_iter(chunk)
                    elif (start := array.id.get_offset()) is not None:
                        found.append((start, start + array.id.get_storage_size()))
    return found


def check_arrays(root: Any, path: Path) -> None:
    """Arrays no larger than their file can hold, and sparse matrices whose rows follow each other.

    Parameters
    ----------
    root
        An open group of h5py or zarr.
    path
        The file or folder, for the message and its size.

    Raises
    ------
    DataError
        If an array would swell beyond what compression explains, rows of a sparse matrix overlap
        or end elsewhere than its numbers do, or something is a link to elsewhere.
    """
    n_bytes = _size(path)
    for name, group in _groups(root, path.name):
        _check_types(group, name)
        for key, array in _arrays(group, name):
            claimed = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
            if claimed > max(_MOST, _MOST_PACKED * n_bytes):
                raise DataError(
                    f"{path} has {n_bytes} bytes and claims that {name}/{key} has {claimed}; it is "
                    "damaged, or made to fill the memory."
                )
        kind = str(group.attrs.get("encoding-type", ""))
        if kind in ("csr_matrix", "csc_matrix"):
            _check_rows(group, name, kind, path)


def _check_rows(group: Any, name: str, kind: str, path: Path) -> None:
    indptr = np.asarray(group["indptr"][...])
    shape = [int(side) for side in group.attrs["shape"]]
    n_rows = shape[kind == "csc_matrix"]
    n_values = group["indices"].shape
    if (
        indptr.dtype.kind not in "iu"
        or indptr.shape != (n_rows + 1,)
        or n_values != group["data"].shape
        or indptr[0] != 0
        or (indptr[-1],) != n_values
        or (indptr[1:] < indptr[:-1]).any()
    ):
        raise DataError(
            f"{path} is damaged: the rows of its sparse matrix {name} do not follow each other, or "
            "do not end where its numbers do; copy or download it again."
        )


def _groups(group: Any, name: str, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Every group below this one, by name; in HDF5 a group may be its own grandchild."""
    seen = set() if seen is None else seen
    if isinstance(group, h5py.Group):
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise DataError(f"its group {name} is in two places, or in itself.")
        seen.add(address)
    elif name.count("/") > _DEEPEST:
        raise DataError(f"it has groups within groups without end: {name}.")
    for key in group if isinstance(group, h5py.Group) else ():
        link = group.get(key, getlink=True)
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
            raise DataError(
                f"{name}/{key} is a link to {getattr(link, 'filename', '')}{link.path}; expected "
                "a file that holds its own data."
            )
    yield name, group
    for key in group:
        if hasattr(group[key], "keys"):
            yield from _groups(group[key], f"{name}/{key}", seen)


def _arrays(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key in group:
        array = group[key]
        _check_types(array, f"{name}/{key}")
        if isinstance(array, h5py.Dataset) and (array.external or array.is_virtual):
            raise DataError(
                f"the numbers of {name}/{key} are in other files; expected a file that holds its "
                "own data."
            )
        if hasattr(array, "dtype"):
            yield key, array


def _check_types(member: Any, name: str) -> None:
    """Strings and numbers, the types that AnnData has: of ragged ones HDF5 may crash when read."""
    if isinstance(member, h5py.Dataset):
        _refuse_ragged(member.id.get_type(), name)
    if isinstance(member, (h5py.Dataset, h5py.Group)):
        for number in range(h5py.h5a.get_num_attrs(member.id)):
            attribute = h5py.h5a.open(member.id, index=number)
            _refuse_ragged(attribute.get_type(), f"an attribute of {name}")


def _refuse_ragged(kind: Any, where: str) -> None:
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for number in range(kind.get_nmembers()):
            _refuse_ragged(kind.get_member_type(number), where)
    if isinstance(kind, h5py.h5t.TypeArrayID):
        _refuse_ragged(kind.get_super(), where)
    if isinstance(kind, h5py.h5t.TypeVlenID):
        raise DataError(f"{where} is ragged, which is nothing that AnnData holds.")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
