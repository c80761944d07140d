"""Telemetry of a device while it is measured: clocks, temperature, power, throttling, energy.

NVIDIA GPUs are read through NVML, CPUs through Linux' sysfs. A value that a device does not report is None, never zero.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

_POLL_S = 0.02
"""Shortest time between two readings: one takes up to a millisecond between two samples, and more of them would let the
device cool."""

_RAPL = Path("/sys/class/powercap")
_CPU_THROTTLE = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the device reported from the first to the last sample; None where it reports nothing.

    Attributes:
        clock_mhz, clock_low_mhz: of the processor, median and lowest.
        temperature_c: highest.
        power_w: median.
        throttle_reasons: why the device held its clock back, sorted; empty when it did not.
        throttled_samples: samples during which it did.
        energy_j: of everything that ran from the first sample to the last.
    """

    clock_mhz: float | None = None
    clock_low_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    throttled_samples: int | None = None
    energy_j: float | None = None


@dataclass(slots=True)
class _Reading:
    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle: frozenset[str] | None = None


def energy_j(device: torch.device) -> float | None:
    """Energy counter of the device, in joules since some moment in the past; None where it has none."""
    return (_Gpu(device) if device.type == "cuda" else _Cpu()).energy_j()


class Monitor:
    """Collects readings while a measurement runs.

    Args:
        device: what is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._source: _Gpu | _Cpu = _Gpu(device) if device.type == "cuda" else _Cpu()
        self._readings: list[_Reading] = []
        self._throttled = 0
        self._since_poll = 0
        self._last = -1.0
        self._energy = self._source.energy_j()

    def after_samples(self, count: int = 1) -> None:
        """Reads the device, unless it was read a moment ago."""
        self._since_poll += count
        now = time.perf_counter()
        if now - self._last >= _POLL_S:
            self._read()
            self._last = now

    def _read(self) -> None:
        reading = self._source.read()
        self._readings.append(reading)
        # The present state is assumed for all samples since the last reading.
        self._throttled += self._since_poll if reading.throttle else 0
        self._since_poll = 0

    def result(self) -> Telemetry:
        """What was seen so far."""
        if self._since_poll:
            self._read()
        before, after = self._energy, self._source.energy_j()

        def seen(name: str) -> list[Any]:
            return [v for r in self._readings if (v := getattr(r, name)) is not None]

        clocks, temperatures, powers = seen("clock_mhz"), seen("temperature_c"), seen("power_w")
        throttle: list[frozenset[str]] = seen("throttle")
        return Telemetry(
            clock_mhz=statistics.median(clocks) if clocks else None,
            clock_low_mhz=min(clocks, default=None),
            temperature_c=max(temperatures, default=None),
            power_w=statistics.median(powers) if powers else None,
            throttle_reasons=tuple(sorted(frozenset().union(*throttle))) if throttle else None,
            throttled_samples=self._throttled if throttle else None,
            # A counter that wrapped or did not move gives no energy.
            energy_j=after - before if before is not None and after is not None and after > before else None,
        )


class _Cpu:
    """The CPU as Linux shows it: clock, energy of the packages, how often they were throttled."""

    def __init__(self) -> None:
        self._counters = sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj")) if _RAPL.is_dir() else []
        self._counters = [p for p in self._counters if p.parent.name.count(":") == 1]  # packages, not their parts
        self._throttles = sorted(_CPU_THROTTLE.glob("cpu*/thermal_throttle/*_throttle_count"))
        self._throttled_before = self._throttle_count()

    def read(self) -> _Reading:
        with contextlib.suppress(NotImplementedError, OSError, AttributeError):
            frequency = psutil.cpu_freq()
            throttle = None
            if self._throttles:
                count = self._throttle_count()
                throttle = frozenset({"thermal"} if count > self._throttled_before else ())
                self._throttled_before = count
            return _Reading(clock_mhz=frequency.current if frequency else None, throttle=throttle)
        return _Reading()

    def energy_j(self) -> float | None:
        try:
            values = [int(path.read_text()) for path in self._counters]
        except (OSError, ValueError):
            return None  # root's alone on many machines
        return sum(values) / 1e6 if values else None

    def _throttle_count(self) -> int:
        total = 0
        for path in self._throttles:
            with contextlib.suppress(OSError, ValueError):
                total += int(path.read_text())
        return total


class _Gpu:
    """An NVIDIA GPU by NVML; silent where there is none (AMD's, a driver without it)."""

    _REASONS = (
        ("power cap", "nvmlClocksEventReasonSwPowerCap"),
        ("hardware slowdown", "nvmlClocksThrottleReasonHwSlowdown"),
        ("thermal (software)", "nvmlClocksEventReasonSwThermalSlowdown"),
        ("thermal (hardware)", "nvmlClocksThrottleReasonHwThermalSlowdown"),
        ("power brake", "nvmlClocksThrottleReasonHwPowerBrakeSlowdown"),
        ("sync boost", "nvmlClocksEventReasonSyncBoost"),
    )

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        with contextlib.suppress(pynvml.NVMLError, AttributeError):  # AttributeError: AMD's devices name no UUID
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

    def read(self) -> _Reading:
        return _Reading(
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
            temperature_c=self._ask("nvmlDeviceGetTemperature", 0),  # NVML_TEMPERATURE_GPU
            power_w=None if (mw := self._ask("nvmlDeviceGetPowerUsage")) is None else mw / 1e3,
            throttle=self._throttle(),
        )

    def energy_j(self) -> float | None:
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def _throttle(self) -> frozenset[str] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if bits is None:
            return None
        known = ((word, getattr(pynvml, name, 0)) for word, name in self._REASONS)
        return frozenset(word for word, bit in known if bits & bit)

    def _ask(self, name: str, *arguments: int) -> Any:
        """NVML's answer; None where this device, driver or library has none."""
        if self._handle is None:
            return None
        try:
            return getattr(pynvml, name)(self._handle, *arguments)
        except (pynvml.NVMLError, AttributeError):  # AttributeError: an older library has no such question
            return None
