"""Latency: how long one call takes, as a median with its interval, alone on the device."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fpn_bench.errors import InputError
from fpn_bench.profiling.device import check_device
from fpn_bench.profiling.device_lock import exclusive_device
from fpn_bench.profiling.telemetry import Monitor, Telemetry

CONFIDENCE = 0.95
PRECISION = 0.01
"""Half-width of the interval, relative to the median, at which sampling ends."""

MIN_SAMPLES = 6
"""The fewest for which a 95 % interval of the median exists: 1 - 2^(1 - 6) = 0.97."""

_SETTLED = 0.98
"""Warm-up ends when a window's median is no longer below this share of the one before."""

_WINDOW = 3

BLOCKS = 12
"""Number of time blocks that samples are cut into to detect drift of the device: the fewest whose interval of the
median leaves out two at either end."""

_SAMPLES_A_BLOCK = 4

Timer = Callable[[], float]
"""Runs one call and returns its milliseconds."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes, in milliseconds.

    The interval of the median covers the noise of single samples, how far the device drifted during the measurement
    (the medians of blocks of time are samples too) and, where `spread` is known, what changes from one process to the
    next.

    Attributes:
        median_ms: median of the samples.
        p90_ms: the sample that 90 % do not exceed.
        low_ms, high_ms: 95 % interval of the median: from order statistics, which assume no distribution, and widened
            by `spread`.
        samples: how many calls were timed.
        converged: the interval's half-width, without `spread`, is below 1 % of the median.
        device: what it was measured on, e.g. ``"cuda:0"``.
        threads: CPU threads torch could use.
        clock_ms: median by the clock, where the figures above are stated at the device's reference speed (see
            `fpn_bench.latency.yardstick`); else the same as `median_ms`.
        speed: of the device meanwhile, as a share of its reference speed; None where the two were not compared.
        spread: relative half-width by which the interval was widened for what changes from one measurement to the next
            on this device; None where that is not known.
        telemetry: what the device reported meanwhile.
        energy_j: of one image, by calls made one after the other; None where the device does not report energy, or it
            was not measured.
    """

    median_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    samples: int
    converged: bool
    device: str
    threads: int
    clock_ms: float
    speed: float | None = None
    spread: float | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    energy_j: float | None = None


def measure_latency(
    fn: Callable[[], object],
    *,
    device: str | torch.device = "cpu",
    budget_s: float = 1.0,
    warmup_s: float | None = None,
    threads: int | None = None,
    before: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time `fn` until the median is known to 1 % or the budget is spent.

    On a CUDA device each call starts on an idle device and is timed by CUDA events, launch gaps included. Garbage
    collection is off meanwhile. A lock in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``) keeps
    every other process with that folder from measuring or training on the same device.

    Args:
        fn: the call; it turns gradients off itself where it should.
        device: ``"cpu"`` or a CUDA device.
        budget_s: seconds of sampling; at least `MIN_SAMPLES` calls are timed whatever they take.
        warmup_s: at most so many seconds of untimed calls, fewer once the times have settled; a quarter of the budget
            when None. One call at least.
        threads: CPU threads torch may use meanwhile; None leaves the setting.
        before: called before each timed call, untimed (`Execution.between_calls`).
        clock: seconds, monotonic.

    Raises:
        InputError: no such device, or a budget or thread count that is not positive.
    """
    place = check_device(device)
    check_budget(budget_s)
    if threads is not None and threads < 1:
        raise InputError(f"expected threads to be 1 or more, got {threads}")
    timer = timer_of(fn, place, before, clock)
    with exclusive_device(place), _threads(threads), no_garbage_collection():
        warm_up(timer, budget_s / 4 if warmup_s is None else warmup_s, clock)
        monitor = Monitor(place)
        samples = _sample(timer, budget_s, clock, monitor)
        return summarise(samples, device=str(place), threads=torch.get_num_threads(), telemetry=monitor.result())


def check_budget(budget_s: float) -> None:
    """Raises InputError unless it is a number of seconds above 0."""
    if not (budget_s > 0 and math.isfinite(budget_s)):
        raise InputError(f"expected budget_s to be seconds above 0, e.g. budget_s=1.0, got {budget_s}")


def summarise(
    samples_ms: Sequence[float],
    blocks_ms: Sequence[float] = (),
    *,
    device: str = "cpu",
    threads: int = 1,
    telemetry: Telemetry | None = None,
) -> Latency:
    """The figures of samples in milliseconds, at least one.

    Args:
        samples_ms: in the order they were taken.
        blocks_ms: medians of blocks of samples at different times; by default the samples are cut into `BLOCKS`, if
            there are enough.
        device, threads, telemetry: of the measurement.
    """
    ordered = sorted(samples_ms)
    median = statistics.median(ordered)
    low, high = median_interval(ordered)
    blocks = blocks_ms or _blocks(samples_ms)
    if len(blocks) >= MIN_SAMPLES:
        # Samples near in time are correlated, and then carry less information than their number suggests.
        block_low, block_high = median_interval(sorted(blocks))
        low, high = min(low, block_low), max(high, block_high)
    return Latency(
        median_ms=median,
        p90_ms=ordered[math.ceil(0.9 * len(ordered)) - 1],
        low_ms=low,
        high_ms=high,
        samples=len(ordered),
        converged=(high - low) / 2 < PRECISION * median,
        device=device,
        threads=threads,
        clock_ms=median,
        telemetry=telemetry or Telemetry(),
    )


def _blocks(samples_ms: Sequence[float]) -> list[float]:
    """Medians of `BLOCKS` stretches of samples; none where there are too few."""
    n = len(samples_ms)
    if n < BLOCKS * _SAMPLES_A_BLOCK:
        return []
    edges = [round(i * n / BLOCKS) for i in range(BLOCKS + 1)]
    return [statistics.median(samples_ms[a:b]) for a, b in itertools.pairwise(edges)]


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


def _sample(timer: Timer, budget_s: float, clock: Callable[[], float], monitor: Monitor) -> list[float]:
    samples: list[float] = []
    end = clock() + budget_s
    check_at = MIN_SAMPLES
    while len(samples) < MIN_SAMPLES or clock() < end:
        samples.append(timer())
        monitor.after_samples()
        if len(samples) >= check_at:
            if summarise(samples).converged:
                break
            # Checking after every sample would cost more than it saves, and would stop on a lucky one.
            check_at = math.ceil(1.25 * len(samples))
    return samples


def warm_up(timer: Timer, limit_s: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Call until the times no longer fall, or the limit is reached; once at least. Returns the last median."""
    end = clock() + limit_s
    before = math.inf
    while True:
        window = []
        for _ in range(_WINDOW):
            window.append(timer())
            if clock() >= end:
                return statistics.median(window)
        now = statistics.median(window)
        if now >= _SETTLED * before:
            return now
        before = now


def timer_of(
    fn: Callable[[], object],
    device: torch.device,
    before: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timer:
    """A function that runs `before`, then `fn`, and returns the milliseconds of `fn`: by CUDA events on a GPU."""

    def on_cpu() -> float:
        if before is not None:
            before()
        start = clock()
        fn()
        return (clock() - start) * 1e3

    def on_cuda() -> float:
        with torch.cuda.device(device):
            if before is not None:
                before()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            fn()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end))

    return on_cuda if device.type == "cuda" else on_cpu


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
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
