"""Measures, by two small networks that never change, how fast a device is now and how well latencies repeat on it.

A laptop's clock rate depends on its temperature, and a virtual machine's speed on its neighbours: two latencies taken
an hour apart may differ by a tenth and mean the same. So a *yardstick*, with layers like a neck's, is timed beside
every measurement. Its time at the first measurement of a device is kept, and latencies are stated at that speed. A
*check standard*, with layers as wide as a backbone's, is timed too: how its time relative to the yardstick varies
between measurements shows what the yardstick does not correct, and widens every interval. (Check standards:
NIST/SEMATECH e-Handbook of Statistical Methods, section 2.1.2.)
"""

from __future__ import annotations

import json
import math
import statistics
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from fpn_bench.host import host_id
from fpn_bench.json_text import parse_json
from fpn_bench.paths import cache_home, write_text_atomic
from fpn_bench.profiling.execution import Execution
from fpn_bench.profiling.machine import machine

VERSION = 1
"""Version of the two networks; times of different versions do not compare."""

FEWEST = 3
"""Number of processes from which on a spread is computed."""

_KEPT = 100
_CUDA_IMAGES = 32
_PROCESS = uuid.uuid4().hex[:12]


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of a device.

    Attributes:
        yardstick_ms: what the yardstick took when the device was first measured.
        spread: relative half-width of a 95 % interval for what one more process will find, by the check standard; 0
            below `FEWEST` processes, where it is not known. Networks that the check does not resemble may differ more.
        processes: how many have measured, at most 100 of them kept.
    """

    yardstick_ms: float
    spread: float
    processes: int


class _Yardstick(nn.Module):
    """What necks are made of: 1x1 and 3x3 convolutions, norm, activation, depthwise, resampling, sums."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(256, 64, 1)
        self.mixed = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.light = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1), nn.ReLU())

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        x = self.lateral(coarse)  # [N, 64, 16, 16]
        x = F.interpolate(x, size=fine.shape[-2:], mode="nearest") + fine  # [N, 64, 32, 32]
        x = self.light(self.mixed(x))
        return F.max_pool2d(x, 2)


def _check_standard() -> nn.Module:
    """Three stages as a backbone has them: the deeper, the more the weights weigh and the less the maps."""
    stages = []
    for width, stride in ((64, 1), (128, 2), (256, 2)):
        narrow = 64 if width == 64 else width // 2
        conv = nn.Conv2d(narrow, width, 3, stride=stride, padding=1, bias=False)
        stages.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
    return nn.Sequential(*stages)


def standards(execution: Execution) -> dict[str, Callable[[], object]]:
    """``"yardstick"`` and ``"check"``: one run of each on a device, in a precision and a memory format.

    The number of images is fixed, whatever the execution says. On CUDA there are many, in a captured graph, so that the
    device is timed and not the host.
    """
    on_cuda = execution.torch_device.type == "cuda"
    how = replace(execution, batch=_CUDA_IMAGES if on_cuda else 1, mode="cuda_graph" if on_cuda else "eager")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yardstick, check = how.place(_Yardstick()), how.place(_check_standard())
    return {
        "yardstick": how.call(yardstick, *how.inputs([(256, 16, 16), (64, 32, 32)])),
        "check": how.call(check, *how.inputs([(64, 32, 32)])),
    }


def add_measurement(execution: Execution, yardstick_ms: float, check_ms: float) -> Reference | None:
    """Store the times of the two standards, and return what is known of the device.

    In ``latency/yardstick.json`` in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``); delete the file
    to start over. Machines that share the folder have an entry each. None if the file can neither be read nor written.

    Args:
        execution: how the measurement was run.
        yardstick_ms, check_ms: medians over it.
    """
    home = cache_home()
    path = home / "latency" / "yardstick.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known = _read(path)
            key = _key(execution)
            # An entry without a host, as older versions wrote it, belongs to the first host that uses it.
            if known.get(key, {}).get("host", host_id()) != host_id():
                key = f"{key}, host {host_id()}"
            device = known.setdefault(key, {"yardstick_ms": yardstick_ms, "checks": {}})
            device["host"] = host_id()
            checks = device["checks"]
            checks[_PROCESS] = check_ms / yardstick_ms  # one value a process: the spread is between processes
            for process in list(checks)[:-_KEPT]:
                del checks[process]
            write_text_atomic(path, json.dumps(known, indent=1) + "\n")
    except OSError:
        return None
    return Reference(device["yardstick_ms"], _spread([math.log(check) for check in checks.values()]), len(checks))


def _spread(logarithms: Sequence[float]) -> float:
    """Half-width of the prediction interval of one more value, 95 %, by Student's t."""
    n = len(logarithms)
    if n < FEWEST:
        return 0.0
    from scipy.special import stdtrit  # takes a while to import

    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(logarithms)


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; empty if it is missing or broken, as for any cache."""
    try:
        known = parse_json(path.read_text(encoding="utf-8"))
        devices: dict[str, dict[str, Any]] = {
            key: {
                "yardstick_ms": float(device["yardstick_ms"]),
                "checks": {process: float(check) for process, check in device["checks"].items()},
                **({"host": str(device["host"])} if "host" in device else {}),
            }
            for key, device in known.items()
        }
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    figures = [x for d in devices.values() for x in (d["yardstick_ms"], *d["checks"].values())]
    return devices if all(0 < x < math.inf for x in figures) else {}


def _key(execution: Execution) -> str:
    """What the yardstick's time depends on, beside the speed of the device."""
    threads = execution.threads or torch.get_num_threads()
    device = execution.torch_device
    which = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else f"cpu, {threads} threads"
    how = [execution.precision, execution.memory_format, execution.cache]
    return ", ".join([machine().id, which, *how, torch.__version__, f"v{VERSION}"])
