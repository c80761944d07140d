"""Which machine this is, and how much of it this process may use. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path


def usable_cores() -> int:
    """Hardware threads that this process may run on, where the system says so; else all there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return (len(affinity(0)) if affinity is not None else os.cpu_count()) or 1


@lru_cache(maxsize=1)
def host_id() -> str:
    """8 hex digits that tell this machine from others of the same hardware, which may share a home folder.

    Of the installation where it has an id, else of the machine's name in the network.
    """
    try:
        name = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        name = ""
    return hashlib.sha256((name or platform.node()).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def running_system() -> str:
    """8 hex digits of the running kernel: alike in all containers of one machine, other on every other machine.

    Where the kernel has no id of its boot, that of the machine.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        boot = ""
    return hashlib.sha256((boot or host_id()).encode()).hexdigest()[:8]
