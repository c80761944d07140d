"""Latency: how long one call takes, as a median with its interval, alone on the device."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from fpn_bench.errors import InputError

CONFIDENCE = 0.95
PRECISION = 0.01
"""Half-width of the interval, relative to the median, at which sampling ends."""

MIN_SAMPLES = 6
"""The fewest for which a 95 % interval of the median exists: 1 - 2^(1 - 6) = 0.97."""

_SETTLED = 0.98
"""Warm-up ends when a window's median is no longer below this share of the one before."""

_WINDOW = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes, in milliseconds.

    The interval of the median takes the samples for independent: it covers the noise within this measurement, not
    a clock rate that drifts between two of them.

    Attributes:
        median_ms: median of the samples.
        p90_ms: the sample that 90 % do not exceed.
        low_ms, high_ms: 95 % interval of the median, from order statistics; no distribution is assumed.
        samples: how many calls were timed.
        converged: the interval's half-width is below 1 % of the median.
        device: what it was measured on, e.g. ``"cuda:0"``.
        threads: CPU threads torch could use.
    """

    median_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    samples: int
    converged: bool
    device: str
    threads: int


def measure_latency(
    fn: Callable[[], object],
    *,
    device: str | torch.device = "cpu",
    budget_s: float = 1.0,
    warmup_s: float | None = None,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time `fn` until the median is known to 1 % or the budget is spent.

    On a CUDA device each call starts on an idle device and is timed by CUDA events, launch gaps included. Garbage
    collection is off meanwhile. A lock file in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``)
    keeps any other process with that folder from measuring on the same device.

    Args:
        fn: the call; it turns gradients off itself where it should.
        device: ``"cpu"`` or a CUDA device.
        budget_s: seconds of sampling; at least `MIN_SAMPLES` calls are timed whatever they take.
        warmup_s: at most so many seconds of untimed calls, fewer once the times have settled; a quarter of the budget
            when None. One call at least.
        threads: CPU threads torch may use meanwhile; None leaves the setting.
        clock: seconds, monotonic.

    Raises:
        InputError: no such device, or a budget or thread count that is not positive.
    """
    place = check_device(device)
    if not (budget_s > 0 and math.isfinite(budget_s)):
        raise InputError(f"budget_s={budget_s} came: seconds above 0 are wanted, e.g. budget_s=1.0")
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads} came: 1 or more is wanted")
    timer = (
        functools.partial(_time_cuda, fn, place) if place.type == "cuda" else functools.partial(_time_cpu, fn, clock)
    )
    with _alone_on(place), _threads(threads), _no_garbage_collection():
        _warm_up(timer, budget_s / 4 if warmup_s is None else warmup_s, clock)
        samples = _sample(timer, budget_s, clock)
        return summarise(samples, device=str(place), threads=torch.get_num_threads())


def summarise(samples_ms: list[float], *, device: str = "cpu", threads: int = 1) -> Latency:
    """The figures of a list of samples in milliseconds, at least one."""
    ordered = sorted(samples_ms)
    median = statistics.median(ordered)
    low, high = median_interval(ordered)
    return Latency(
        median_ms=median,
        p90_ms=ordered[math.ceil(0.9 * len(ordered)) - 1],
        low_ms=low,
        high_ms=high,
        samples=len(ordered),
        converged=(high - low) / 2 < PRECISION * median,
        device=device,
        threads=threads,
    )


def median_interval(ordered: list[float]) -> tuple[float, float]:
    """Distribution-free interval of the median with at least 95 % confidence.

    The number of samples below the median is binomial(n, 1/2), so the interval from the k-th smallest to the k-th
    largest sample misses the median with probability 2 P(B < k) (David and Nagaraja, Order Statistics, section 7.1).

    Args:
        ordered: samples, ascending.

    Returns:
        The narrowest such symmetric pair; infinite below `MIN_SAMPLES` samples, where there is none.
    """
    k = _interval_rank(len(ordered))
    return (ordered[k - 1], ordered[-k]) if k else (-math.inf, math.inf)


@functools.lru_cache(maxsize=4096)
def _interval_rank(n: int) -> int:
    """The largest k with 2 P(B(n, 1/2) < k) <= 5 %; 0 when there is none. Exact, in whole numbers."""
    # 2 * sum_{i<k} C(n, i) <= 2^n / 20
    bound, term, total, k = 2**n, 1, 0, 0
    while 40 * (total + term) <= bound:
        total += term
        k += 1
        term = term * (n - k + 1) // k
    return k


def _sample(timer: Callable[[], float], budget_s: float, clock: Callable[[], float]) -> list[float]:
    samples: list[float] = []
    end = clock() + budget_s
    check_at = MIN_SAMPLES
    while len(samples) < MIN_SAMPLES or clock() < end:
        samples.append(timer())
        if len(samples) >= check_at:
            if summarise(samples).converged:
                break
            # Looking after every sample would cost more than it saves, and end on a lucky one.
            check_at = math.ceil(1.25 * len(samples))
    return samples


def _warm_up(timer: Callable[[], float], limit_s: float, clock: Callable[[], float]) -> None:
    end = clock() + limit_s
    before = math.inf
    while True:
        window = []
        for _ in range(_WINDOW):
            window.append(timer())
            if clock() >= end:
                return
        now = statistics.median(window)
        if now >= _SETTLED * before:
            return
        before = now


def _time_cpu(fn: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    fn()
    return (clock() - start) * 1e3


def _time_cuda(fn: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))


def check_device(device: str | torch.device) -> torch.device:
    """The CPU or a CUDA device that is there, with its index.

    Raises:
        InputError: it is neither, or torch does not see it.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {str(device)!r} came: 'cpu', 'cuda' or 'cuda:N' is wanted") from error
    if place.type == "cpu":
        return torch.device("cpu")
    if place.type != "cuda":
        raise InputError(f"device {str(place)!r} came: 'cpu', 'cuda' or 'cuda:N' is wanted")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = place.index if place.index is not None else (torch.cuda.current_device() if count else 0)
    if index >= count:
        raise InputError(f"device {str(place)!r} came, but torch sees {count} CUDA devices: take cpu")
    return torch.device("cuda", index)


@contextlib.contextmanager
def _alone_on(device: torch.device) -> Iterator[None]:
    """Hold the lock of the device; wait for it while another process measures. A dead process holds none.

    A GPU is known by its UUID: its index is another one in a process that sees other GPUs (CUDA_VISIBLE_DEVICES).
    """
    which = f"cuda-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type
    name = f"latency-{which}.lock"
    home = Path(os.environ.get("FPN_BENCH_CACHE") or Path.home() / ".cache" / "fpn_bench")
    folder = home / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.gettempdir())
        name = f"fpn_bench-{os.getuid() if hasattr(os, 'getuid') else 0}-{name}"
    with FileLock(folder / name):
        yield


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
