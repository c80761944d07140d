"""Who may use a device when: any number of trainings, or one measurement, in all threads and processes."""

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
    """For a measurement: waits until nobody of ours works or measures there, and keeps all others waiting.

    Whoever waits goes before work that has not begun. A dead process holds nothing.
    """
    with _lock(lock_path(device)).acquire_write():
        yield


@contextlib.contextmanager
def shared_device(device: torch.device) -> Iterator[None]:
    """For a piece of work, such as one batch: shared with other work, but not with a measurement.

    A measurement waits for the piece, so pieces should be short.
    """
    with _lock(lock_path(device)).acquire_read():
        yield


def lock_path(device: torch.device) -> Path:
    """The lock's file, in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``).

    Each machine has its own, by the id of its running kernel: a home folder may be shared by many, whose processors are
    not. A job's temporary folder would be no place for it: clusters give every job another.
    A GPU is known by its UUID: its index is another one in a process that sees other GPUs (CUDA_VISIBLE_DEVICES).
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
    """This thread's own: one shared by threads would not make them wait for each other."""
    known: dict[Path, ReadWriteLock] = vars(_locks).setdefault("by_path", {})
    if path not in known:
        known[path] = ReadWriteLock(path, is_singleton=False)
    return known[path]
