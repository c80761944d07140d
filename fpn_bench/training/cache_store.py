"""What the feature cache keeps on disk: entries under one root, checked, locked, and evicted to keep a bound.

Under one root shared by all studies::

    <root>/.lock                         held for moments: opening, reserving space, evicting
    <root>/<key>/entry.json              what the key was made of, for people; its mtime is the entry's last use
    <root>/<key>/P3.npy, P4.npy ...      one float16 (float32 where float16 overflows) array [N, C, H, W] per level
    <root>/<key>/P3.json, P4.json ...    how many bytes the array has, and their CRC-32
    <root>/<key>.lock                    held by the process that builds the entry
    <root>/<key>.use                     read by the processes that use the entry, which keeps it from eviction
    <root>/<key>.building/               an unfinished pass; worthless unless its builder lives

A level's file is renamed into place when it is whole and never written again. Disks and people damage files all the
same, so each is checked when it is opened: its size and header always, its CRC-32 once a process and again whenever its
time or size has changed (half a second to two seconds a GiB; a CRC is ten times as fast as a SHA-256 here, and damage
is no adversary). What is damaged counts as missing, and is computed anew. A file from before there were sums gets its
own when it is first opened. An entry holds the images of one split or their mirrors, and levels can be added to it by a
later pass.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tokenize
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, ReadWriteLock, Timeout

from fpn_bench.errors import CacheError
from fpn_bench.json_text import parse_json
from fpn_bench.paths import write_text_atomic

_log = logging.getLogger(__name__)

MIB: Final = 2**20


class CacheBoundError(CacheError):
    """The features do not fit into the bound on the cache."""


def cache_bytes(root: Path) -> int:
    """Bytes of all features kept in a folder, those that are being written included."""
    folders = root.iterdir() if root.is_dir() else ()
    kept = (path for path in folders if path.suffix == ".building" or (path / "entry.json").exists())
    return sum(map(_size, kept))


def digest(data: object) -> str:
    """Of what an entry is made of: sha256 of it as JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


class CacheStore:
    """The cache's root: its size, its bound, its lock."""

    def __init__(self, root: Path, max_gib: float) -> None:
        self.root = root
        self.max_bytes = int(max_gib * 2**30)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"cannot make the feature cache {root}: {error.strerror}; set FPN_BENCH_CACHE to another folder"
            ) from error
        self.lock = FileLock(root / ".lock")

    def reserve(self, needed: int, keep: Sequence[CacheEntry]) -> None:
        """Make room for ``needed`` more bytes within the bound and on the disk.

        Entries go least recently used first; ones in use and ``keep`` stay.
        """
        with self.lock:
            kept = {entry.path for entry in keep}
            sizes = {path: _size(path) for path in self.root.iterdir() if path.is_dir()}
            total = sum(sizes.values())
            for path in [path for path in sizes if path.suffix == ".building"]:
                with contextlib.suppress(TimeoutError), FileLock(path.with_suffix(".lock"), timeout=0):
                    if path.with_suffix("") not in kept:  # its builder died
                        shutil.rmtree(path, ignore_errors=True)
                        total -= sizes[path]
            entries = [path for path in sizes if (path / "entry.json").exists() and path not in kept]
            for path in sorted(entries, key=_last_use):
                if total + needed <= self.max_bytes and needed <= self.free():
                    return
                if _evict(path):
                    total -= sizes[path]
            if total + needed > self.max_bytes:
                wanted_gib = (total + needed) / 2**30 + 0.01
                raise CacheBoundError(
                    f"the feature cache {self.root} needs {_mib(needed)} MiB more, but {_mib(total)} MiB of its bound "
                    f"of {_mib(self.max_bytes)} MiB are in use; give it --cache-gib {wanted_gib:.2f} or more, "
                    "or 0 to do without a cache"
                )
            if needed > self.free():
                raise self.disk_full(needed)

    @contextlib.contextmanager
    def disk_errors(self, needed: Callable[[], int] = int) -> Iterator[None]:
        """Turn a failed write into a `CacheError`; ``needed`` says how many bytes were to be written."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self.disk_full(needed()) from error
            raise CacheError(f"cannot write the feature cache {self.root}: {error.strerror}") from error

    def free(self) -> int:
        """Bytes free on the root's disk."""
        return shutil.disk_usage(self.root).free

    def disk_full(self, needed: int) -> CacheError:
        """The error of a disk that cannot take ``needed`` bytes."""
        return CacheError(
            f"the feature cache needs {_mib(needed)} MiB, but the disk of {self.root} has {self.free() // MIB} MiB "
            "free; free some, or set FPN_BENCH_CACHE to a folder on another disk"
        )


class _Damaged(Exception):
    """A level's file is not what was written; says why."""


# numpy reads a header as Python text, and lets through what tokenize, ast and dtype raise of what is none.
_HEADER_ERRORS: Final = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError),
    tokenize.TokenError,
)

_CHECKED: Final[dict[Path, tuple[int, int, int]]] = {}
"""Files whose sums this process has compared -> their (inode, bytes, time of the last change) then."""


def _crc32(file: IO[bytes]) -> int:
    """Of the whole file."""
    file.seek(0)
    crc = 0
    while block := file.read(1 << 22):
        crc = zlib.crc32(block, crc)
    return crc


class CacheEntry:
    """One split's images (or their mirrors) under one key; hashable by identity."""

    def __init__(self, store: CacheStore, description: Mapping[str, Any]) -> None:
        self.store = store
        self.description = description
        self.path = store.root / digest(description)[:32]
        self.lock_path = self.path.with_suffix(".lock")
        self._in_use: ReadWriteLock | None = None  # a reader of it, until this object goes

    def use(self) -> None:
        """Make the entry's folder, mark it as used now, and keep it from eviction while this object lives."""
        with self.store.lock:
            self.path.mkdir(exist_ok=True)
            meta = self.path / "entry.json"
            if meta.exists():
                os.utime(meta)
            else:
                write_text_atomic(meta, json.dumps(self.description, indent=1))
            if self._in_use is None:
                self._in_use = ReadWriteLock(self.path.with_suffix(".use"), is_singleton=False)
                self._in_use.acquire_read()

    def file(self, level: int) -> Path:
        return self.path / f"P{level}.npy"

    def sum_file(self, level: int) -> Path:
        return self.path / f"P{level}.json"

    def missing(self, levels: Sequence[int], images: int, *, log: bool = False) -> list[int]:
        """The levels that are not there or damaged; the latter are logged where they are about to be built."""
        missing = []
        for level in levels:
            try:
                self._check(level, images)
            except FileNotFoundError:
                missing.append(level)
            except (_Damaged, OSError) as error:
                missing.append(level)
                if log:
                    _log.warning("cached features %s are damaged (%s): they are computed anew", self.file(level), error)
        return missing

    def _check(self, level: int, images: int) -> None:
        """Compare a level's file with what it was when it was written.

        Raises:
            _Damaged: says how they differ.
            OSError: it cannot be read, or is not there.
        """
        path = self.file(level)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            state = (status.st_ino, status.st_size, status.st_mtime_ns)
            if _CHECKED.get(path) == state:
                return
            try:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                needed = file.tell() + dtype.itemsize * math.prod(shape)
            except _HEADER_ERRORS:
                raise _Damaged("its header is none") from None
            if shape[:1] != (images,) or needed != status.st_size:
                raise _Damaged(f"expected {needed} bytes of {images} images, got {status.st_size} of {shape[0]}")
            crc = _crc32(file)
        wanted = self._sum(level)
        if wanted is None:
            with contextlib.suppress(OSError):  # a folder that is only read
                self.write_sum(level, status.st_size, crc)
        elif wanted != (status.st_size, crc):
            raise _Damaged("its checksum is another than when it was written")
        _CHECKED[path] = state

    def _sum(self, level: int) -> tuple[int, int] | None:
        """(bytes, CRC-32) as they were written; None where that is not known."""
        try:
            kept = parse_json(self.sum_file(level).read_text(encoding="utf-8"))
            return int(kept["bytes"]), int(kept["crc32"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise _Damaged("its checksum cannot be read") from error

    def write_sum(self, level: int, size: int, crc: int) -> None:
        """Keep how many bytes a level's file has, and their CRC-32."""
        write_text_atomic(self.sum_file(level), json.dumps({"bytes": size, "crc32": crc}) + "\n")

    def open(self, level: int) -> npt.NDArray[np.floating[Any]]:
        maps: npt.NDArray[np.floating[Any]] = np.load(self.file(level), mmap_mode="r")
        return maps


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):  # the folder went since the listing
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # renamed by its builder since the listing
                size += path.stat().st_size
    return size


def _last_use(entry: Path) -> float:
    """When an entry was last used; 0 where it went since the listing."""
    try:
        return (entry / "entry.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _mib(size: int) -> int:
    return -(-size // MIB)


def _evict(folder: Path) -> bool:
    """Delete an entry unless a process uses it; whether it was deleted. The store's lock is held."""
    in_use = folder.with_suffix(".use")
    lock = ReadWriteLock(in_use, is_singleton=False)
    try:
        with lock.acquire_write(timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    finally:
        lock.close()
    if folder.exists():
        return False
    with contextlib.suppress(OSError):
        in_use.unlink()
    return True
