"""Consistency checks of HDF5 and Zarr files before h5py, anndata or scanpy read them.

These libraries do not check the sizes, types and pointers in a file. A damaged or malicious file
can therefore crash the interpreter, make it hang, or exhaust the memory, and no ``except`` clause
can catch this. The docstring of each check names the upstream fault that it guards against; the
files in ``tests/security`` provoke these faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyro_scale.exceptions import DataError

__all__ = ["check_arrays", "check_heaps"]

_HEAP = b"GCOL\x01\x00\x00\x00"  # signature of a global heap collection, version 1
_BLOCK = 2**24  # bytes read at a time
_LARGE = 2**26  # bytes above which a file is not scanned as a whole
_MOST = 2**30  # bytes of an array that are allowed in a file of any size
_DEEPEST = 20  # most nested groups in Zarr
_MOST_PACKED = 1100  # above deflate's largest compression ratio, 1032


def check_heaps(path: Path) -> None:
    """Raise an error if an HDF5 global heap of the file has an entry of length zero.

    Global heaps are the parts of an HDF5 file that hold the strings of variable length, such as
    the names of cells. Upstream fault: HDF5 2.0 walks through the entries of a heap by adding their
    lengths. At an entry of free space of length zero (modulo 2**64) it does not advance, and hangs.
    This function walks through the entries, each a header of 16 bytes and a string, in the same
    way. It finds the heaps by a scan of the file's bytes, which in a large file skips those of
    numeric arrays, because they are most of the file and contain no heap.

    Raises
    ------
    DataError
        If a heap has such an entry; the message gives its position in the file.
    """
    size = path.stat().st_size
    skipped = _numbers(path) if size > _LARGE else []
    with path.open("rb") as file:
        for start in _heaps(file, size, skipped):
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
                        f"{path} is damaged: its strings at byte {start + at} have no end (their "
                        "heap has an entry of length zero); copy or download it again."
                    )
                at += step


def _heaps(file: Any, size: int, skipped: list[tuple[int, int]]) -> list[int]:
    """Return the offset, in bytes, of each HDF5 global heap in a file of ``size`` bytes.

    Heaps are found by their signature. The ranges ``skipped`` are not searched; they are the bytes
    of numeric arrays, which contain no heap.
    """
    found: list[int] = []
    begin = 0
    for start_skipped, end_skipped in [*sorted(skipped), (size, size)]:
        for start in range(begin, start_skipped, _BLOCK):
            file.seek(start)
            block = file.read(min(_BLOCK + len(_HEAP) - 1, start_skipped - start))
            at = block.find(_HEAP)
            while at >= 0:
                found.append(start + at)
                at = block.find(_HEAP, at + 1)
        begin = max(begin, end_skipped)
    return found


def _numbers(path: Path) -> list[tuple[int, int]]:
    """Return the ranges of bytes, ``(start, stop)``, that hold the numeric arrays of an HDF5 file.

    This function must not read strings of variable length. These are stored in global heaps, which
    are not checked yet when it runs, and HDF5 may hang on a damaged heap.
    """
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
    """Check groups, array sizes, types and row pointers of an open file before entries are read.

    Upstream faults:

    - h5py, zarr and anndata allocate an array of the size that its header claims, even if no entry
      is stored, so that a file of a few kilobytes exhausts the memory. An array above 1 GiB is
      refused if it is more than 1100 times as large as the file.
    - SciPy and anndata do not check the row pointers of a sparse matrix (:func:`_check_rows`).
    - h5py follows links and cycles of groups (:func:`_groups`), reads entries from other files
      (:func:`_arrays`), and crashes on ragged types (:func:`_check_not_ragged`).

    Parameters
    ----------
    root
        Open group of h5py or zarr.
    path
        Path of the file or folder, for its size and the message.

    Raises
    ------
    DataError
        If an array is too large for the file, the row pointers of a sparse matrix are inconsistent,
        a group contains itself, data are in another file, or a type is ragged.
    """
    n_bytes = _size(path)
    for name, group in _groups(root, path.name):
        _check_types(group, name)
        for key, array in _arrays(group, name):
            if array.shape is None:  # a null dataspace, which stands for None
                continue
            claimed = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
            if claimed > max(_MOST, _MOST_PACKED * n_bytes):
                raise DataError(
                    f"{path} has {n_bytes} bytes and claims that {name}/{key} has {claimed}; it is "
                    "damaged, or made to exhaust the memory."
                )
        kind = str(group.attrs.get("encoding-type", ""))
        if kind in ("csr_matrix", "csc_matrix"):
            _check_rows(group, name, kind, path)


def _check_rows(group: Any, name: str, kind: str, path: Path) -> None:
    """Check the row pointers (column pointers in CSC) of a sparse matrix.

    Upstream fault: SciPy and anndata do not check ``indptr``. Where it decreases, or does not run
    from zero to the number of entries, their compiled loops read outside the arrays and crash.
    SciPy's ``check_format`` misses a last pointer of zero.
    """
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
            f"{path} is damaged: the rows of its sparse matrix {name} overlap, or do not end where "
            "its entries end; copy or download it again."
        )


def _groups(group: Any, name: str, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the name of this group and the group, and those of all groups below it.

    The links of a group are checked before it is yielded.

    Upstream faults: an HDF5 group may contain itself, and a recursive reader such as anndata then
    never ends; Zarr groups may be nested to any depth. h5py silently follows a soft link, and an
    external link into any other file that the user can read.
    """
    seen = set() if seen is None else seen
    if isinstance(group, h5py.Group):
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise DataError(
                f"group {name} is in two places, or in itself; expected a tree of groups."
            )
        seen.add(address)
    elif name.count("/") > _DEEPEST:
        raise DataError(
            f"groups are nested more than {_DEEPEST} deep: {name}; expected the layout of AnnData."
        )
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
    """Yield the key of each array of a group and the array, after a check of the array.

    The check is that its type is supported and that its entries are in this file.

    Upstream fault: h5py silently reads the entries of an external or virtual dataset from any other
    file that the user can read.
    """
    for key in group:
        array = group[key]
        _check_types(array, f"{name}/{key}")
        if isinstance(array, h5py.Dataset) and (array.external or array.is_virtual):
            raise DataError(
                f"the entries of {name}/{key} are in other files; expected a file that holds its "
                "own data."
            )
        if hasattr(array, "dtype"):
            yield key, array


def _check_types(member: Any, name: str) -> None:
    """Raise an error if the type of a dataset, or of an attribute of it, is ragged.

    A ragged type has sequences of variable length. For a group, only the attributes are checked.
    No value is read.
    """
    if isinstance(member, h5py.Dataset):
        _check_not_ragged(member.id.get_type(), name)
    if isinstance(member, (h5py.Dataset, h5py.Group)):
        for number in range(h5py.h5a.get_num_attrs(member.id)):
            attribute = h5py.h5a.open(member.id, index=number)
            _check_not_ragged(attribute.get_type(), f"an attribute of {name}")


def _check_not_ragged(kind: Any, where: str) -> None:
    """Raise an error if a type is ragged, that is, has sequences of variable length.

    Compound and array types are searched too. Upstream fault: if one byte of the type of a string
    is damaged, HDF5 reports a ragged type, and h5py crashes when it reads the value. AnnData itself
    stores only strings and numbers.
    """
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for number in range(kind.get_nmembers()):
            _check_not_ragged(kind.get_member_type(number), where)
    if isinstance(kind, h5py.h5t.TypeArrayID):
        _check_not_ragged(kind.get_super(), where)
    if isinstance(kind, h5py.h5t.TypeVlenID):
        raise DataError(
            f"{where} is ragged (sequences of variable length); AnnData stores strings and numbers."
        )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
