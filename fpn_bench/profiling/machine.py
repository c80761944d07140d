"""The machine a figure was taken on: its hardware under a short id, and the versions that ran."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("fpn-bench", "torch", "torchvision", "timm")


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """Hardware and software that figures depend on.

    Attributes:
        cpu: model name.
        cores: physical cores.
        logical_cores: hardware threads.
        memory_gib: main memory, rounded.
        gpu: names of the CUDA devices, e.g. ``"2x NVIDIA H100"``; empty without one.
        os: system and release.
        python: version.
        versions: package -> version, the CUDA runtime included where there is one.
    """

    cpu: str
    cores: int
    logical_cores: int
    memory_gib: int
    gpu: str
    os: str
    python: str
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        """8 hex digits over the hardware; the versions are no part of it."""
        hardware = [self.cpu, self.cores, self.logical_cores, self.memory_gib, self.gpu]
        return hashlib.sha256(json.dumps(hardware).encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """One line for people, e.g. ``"Intel Xeon, 2 cores, 23 GiB"``."""
        parts = [self.cpu, f"{self.cores} core{'s' if self.cores != 1 else ''}", f"{self.memory_gib} GiB", self.gpu]
        return ", ".join(p for p in parts if p)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, `id` and `label` included."""
        return {"id": self.id, "label": self.label, **asdict(self)}


@lru_cache(maxsize=1)
def machine() -> MachineRecord:
    """The machine this process runs on."""
    logical = psutil.cpu_count(logical=True) or 1
    return MachineRecord(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        gpu=_gpu_names(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=_versions(),
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def _gpu_names() -> str:
    if not torch.cuda.is_available():
        return ""
    names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return ", ".join(name if n == 1 else f"{n}x {name}" for name, n in names.items())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package.replace("-", "_")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package.replace("-", "_")] = "unknown"
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return versions
