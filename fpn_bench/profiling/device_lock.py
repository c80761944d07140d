"""Locks on a device, over all threads and processes: any number of trainings at a time, or one measurement."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import ReadWriteLock

from fpn_bench.host import running_system
from fpn_bench.paths import cache_home


@contextlib.contextmanager
def exclusive_device(device: torch.device) -> Iterator[None]:
    """For a measurement: waits until no fpn_bench process uses the device, and makes all others wait.

    A waiting measurement goes before work that has not started. A dead process holds no lock.
    """
    with _lock(lock_path(device)).acquire_write():
        yield


@contextlib.contextmanager
def shared_device(device: torch.device) -> Iterator[None]:
    """For a piece of work, such as one batch: other work may use the device too, a measurement may not.

    A measurement waits for the piece, so pieces should be short.
    """
    with _lock(lock_path(device)).acquire_read():
        yield


def lock_path(device: torch.device) -> Path:
    """The lock file, in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``).

    Its name holds the id of the running kernel, because several machines may share a home folder. It is not in a job's
        temporary folder, because clusters give each job its own. A GPU is identified by its UUID, because its index
        depends on CUDA_VISIBLE_DEVICES.
    """
    which = f"cuda-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type
    home = cache_home()
    folder = home / "locks" / running_system()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder / f"{which}.db"
    except OSError:
        pass
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"fpn_bench-{user}-{running_system()}-{which}.db"


_locks = threading.local()


def _lock(path: Path) -> ReadWriteLock:
    """One lock object per thread: threads that share one would not wait for each other."""
    known: dict[Path, ReadWriteLock] = vars(_locks).setdefault("by_path", {})
    if path not in known:
        known[path] = ReadWriteLock(path, is_singleton=False)
    return known[path]
