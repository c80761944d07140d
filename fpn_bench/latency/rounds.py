"""Latencies of several calls, side by side: each is timed in every round, so that drift of the device affects all
alike.

The yardstick, a small network that never changes, is timed with them (`fpn_bench.latency.yardstick`). Latencies are
stated at the speed that the device had when the yardstick was first timed on it, so that two processes agree.

Two latencies taken one after the other may differ because the device changed in between. In a round the calls follow
each other within a fraction of a second, in random order, and they are compared by the ratios of their times within
rounds.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fpn_bench.errors import InputError, MeasurementError
from fpn_bench.latency.single import (
    BLOCKS,
    MIN_SAMPLES,
    PRECISION,
    Latency,
    Timer,
    check_budget,
    median_interval,
    no_garbage_collection,
    summarise,
    timer_of,
    warm_up,
)
from fpn_bench.latency.yardstick import Reference, add_measurement, standards
from fpn_bench.profiling.device_lock import exclusive_device
from fpn_bench.profiling.execution import Execution
from fpn_bench.profiling.failure import ANY_ERROR, translate_torch_errors
from fpn_bench.profiling.telemetry import Monitor, energy_j

Verdict = Literal["same", "faster", "slower", "unclear"]

TOLERANCE = 0.02
"""Relative difference of two latencies below which they count as the same."""

_TURN_MS = 2.0
_TURN_CALLS = 100
"""A turn times one call, or several very short ones, up to these two bounds. The speed of a device
may change within a tenth of a second: the shorter the turns, the closer in time is what is compared."""

_LONG_MS = 20.0
"""A shorter call is run once untimed at the beginning of its turn, because the caches hold another call's data then."""

_STANDARDS_EVERY_S = 0.1
_STANDARD_ERRORS = (RuntimeError, MemoryError, MeasurementError)

_ENERGY_S = 0.5
"""Devices update their energy counters every few hundredths of a second."""

_WARM_UP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the time of one call relates to another's.

    Attributes:
        verdict: ``"same"``: the whole interval lies within the tolerance around 1; ``"faster"``, ``"slower"``: the
            whole interval lies beyond it; ``"unclear"``: neither.
        ratio: median over the rounds of its time divided by the other's.
        low, high: 95 % interval of that median, which holds whenever sampling is ended (`sequential_interval`).
        rounds: how many there were.
        tolerance: see `TOLERANCE`.
    """

    verdict: Verdict
    ratio: float
    low: float
    high: float
    rounds: int
    tolerance: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """What `measure_rounds` found.

    Attributes:
        latencies: name -> latency of its call.
        failures: name -> why its call could not be timed.
        turns_ms: name -> its median time in each round.
    """

    latencies: Mapping[str, Latency]
    failures: Mapping[str, MeasurementError]
    turns_ms: Mapping[str, Sequence[float]] = field(repr=False)

    def compare(self, name: str, baseline: str, tolerance: float = TOLERANCE) -> Comparison:
        """How `name` relates to `baseline`, both among `latencies`."""
        return compare_turns(self.turns_ms[name], self.turns_ms[baseline], tolerance)


def compare_turns(times: Sequence[float], baseline: Sequence[float], tolerance: float = TOLERANCE) -> Comparison:
    """The verdict on times that were taken pair by pair.

    Args:
        times, baseline: of round 0, 1, 2 ...; at least one.
        tolerance: relative difference that does not matter, above 0.

    Raises:
        InputError: a tolerance that is not above 0.
    """
    check_tolerance(tolerance)
    ratios = sorted(a / b for a, b in zip(times, baseline, strict=True))
    low, high = sequential_interval(ratios)
    low = max(low, 0.0)
    verdict: Verdict = "unclear"
    if 1 / (1 + tolerance) <= low and high <= 1 + tolerance:
        verdict = "same"
    elif low > 1 + tolerance:
        verdict = "slower"
    elif high < 1 / (1 + tolerance):
        verdict = "faster"
    return Comparison(verdict, statistics.median(ratios), low, high, len(ratios), tolerance)


def sequential_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Interval of the median that holds with 95 % however often one looked, and whenever one ended for what was seen.

    Sampling goes on until the verdict stands: an interval made for one look (`median_interval`) is then asked again and
    again, and errs in 11 % at the tolerance. Here the numbers of samples on either side of a median are a bet against
    it: how likely they are by shares of all sizes (uniform), as a multiple of how likely they are by halves. By Ville's
    inequality that ever exceeds 20 with a chance of 5 % at most (Robbins 1970; Howard and Ramdas 2022, Sequential
    estimation of quantiles).

    Args:
        ordered: samples, ascending.

    Returns:
        The pair from the k-th smallest to the k-th largest; infinite below 8 samples, where there is none.
    """
    k = _sequential_rank(len(ordered))
    return (ordered[k - 1], ordered[-k]) if k else (-math.inf, math.inf)


@functools.lru_cache(maxsize=4096)
def _sequential_rank(n: int) -> int:
    """The largest k such that k - 1 samples on one side are refuted: 2^n / ((n + 1) C(n, k - 1)) >= 20."""
    term, k = 1, 0  # C(n, k)
    while 2 * k < n and 2**n >= 20 * (n + 1) * term:
        k += 1
        term = term * (n - k + 1) // k
    return k


def latency_of(call: Callable[[], object], execution: Execution, *, budget_s: float = 1.0) -> Latency:
    """Latency of one call from `Execution.call`, run as that execution says, at the device's reference speed.

    Raises:
        InputError: a budget that is not positive.
        MeasurementError: it cannot be run.
    """
    found = measure_rounds({"": call}, execution=execution, budget_s=budget_s)
    if failure := found.failures.get(""):
        raise failure
    return found.latencies[""]


def check_tolerance(tolerance: float) -> None:
    """Raises InputError unless it is a share above 0."""
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"expected tolerance to be a share above 0, e.g. tolerance=0.02, got {tolerance}")


def measure_rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    execution: Execution | None = None,
    budget_s: float = 1.0,
    baseline: str | None = None,
    tolerance: float = TOLERANCE,
    at_reference_speed: bool = True,
    on_round: Callable[[int, float], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Rounds:
    """Time calls in interleaved rounds until all medians are known to 1 % and all verdicts stand, or time is up.

    A call that fails is dropped, with its reason; the others continue. The device is locked exclusively meanwhile.

    Args:
        calls: name -> call; each turns gradients off itself. At least one.
        execution: device, threads, precision and caches of all calls; by default those of `Execution`.
        budget_s: seconds for each of the calls, warm-up apart; at least `MIN_SAMPLES` rounds are run.
        baseline: name that the others are compared with; sampling then continues until all verdicts are decided. None:
            no verdicts.
        tolerance: see `TOLERANCE`.
        at_reference_speed: state latencies at the device's reference speed, else as measured by the clock.
        on_round: called after each round with its number and the share of the budget that is spent.
        clock: seconds, monotonic.
        seed: of the order within the rounds.

    Raises:
        InputError: no calls, no such baseline, or a budget or tolerance that is not positive.
    """
    run = execution or Execution()
    place = run.torch_device
    check_budget(budget_s)
    check_tolerance(tolerance)
    if not calls:
        raise InputError("expected at least one call to time, name -> function, got none")
    if baseline is not None and baseline not in calls:
        raise InputError(f"expected one of the calls {', '.join(calls)} as baseline, got {baseline!r}")
    order = random.Random(seed)
    before = run.between_calls()
    subjects = _Subjects({name: timer_of(call, place, before, clock) for name, call in calls.items()})
    speed = _Standards(clock)
    with exclusive_device(place), run.settings(), no_garbage_collection():
        subjects.warm_up(place, _WARM_UP_SHARE * budget_s, clock)
        if at_reference_speed and subjects.timers:
            speed.warm_up(run, before, _WARM_UP_SHARE * budget_s)
        begun, budget = clock(), budget_s * max(1, len(subjects.timers))
        round_number, look_at = 0, MIN_SAMPLES
        while subjects.timers and (round_number < MIN_SAMPLES or clock() - begun < budget):
            subjects.take_turns(order)
            if subjects.timers:
                speed.after_round()
            round_number += 1
            if on_round is not None:
                on_round(round_number, min(1.0, (clock() - begun) / budget))
            if round_number >= look_at:
                if speed.seen_enough and _settled(subjects, baseline, tolerance, speed.times_ms):
                    break
                look_at = math.ceil(1.25 * look_at)
        latencies = subjects.latencies(place)
        for name, timer in subjects.timers.items():
            with contextlib.suppress(MeasurementError), translate_torch_errors(ANY_ERROR):  # a latency needs no energy
                if (energy := _energy_j(timer, place, budget_s, clock)) is not None:
                    latencies[name] = replace(latencies[name], energy_j=energy / run.batch)
    if latencies and (reference := speed.reference(run)) is not None:
        latencies = {
            name: _at_speed(latency, subjects.turns[name], speed.times_ms["yardstick"], reference)
            for name, latency in latencies.items()
        }
    return Rounds(latencies, subjects.failures, {name: subjects.turns[name] for name in subjects.timers})


class _Subjects:
    """The calls that are timed.

    Attributes:
        timers: name -> timer of each call that has not failed.
        failures: name -> why a call was dropped.
        turns: name -> median milliseconds of each turn; equally many for all of `timers` after a round.
    """

    def __init__(self, timers: Mapping[str, Timer]) -> None:
        self.timers = dict(timers)
        self.failures: dict[str, MeasurementError] = {}
        self.turns: dict[str, list[float]] = {name: [] for name in timers}
        self._samples: dict[str, list[float]] = {name: [] for name in timers}
        self._is_long: dict[str, bool] = {}
        self._monitors: dict[str, Monitor] = {}

    def warm_up(self, place: torch.device, limit_s: float, clock: Callable[[], float]) -> None:
        for name in list(self.timers):
            if name in self.timers:
                with self._dropped_on_failure(name):
                    self._is_long[name] = warm_up(self.timers[name], limit_s, clock) >= _LONG_MS
                    self._monitors[name] = Monitor(place)

    def take_turns(self, order: random.Random) -> None:
        """One round: a turn of each, in random order."""
        for name in order.sample(list(self.timers), len(self.timers)):
            if name in self.timers:
                with self._dropped_on_failure(name):
                    taken = _turn(self.timers[name], self._is_long[name])
                    self._monitors[name].after_samples(len(taken))
                    self._samples[name] += taken
                    self.turns[name].append(statistics.median(taken))

    def latencies(self, place: torch.device) -> dict[str, Latency]:
        """Latency of each call that has not failed, by the clock."""
        return {
            name: summarise(
                self._samples[name],
                self.turns[name],
                device=str(place),
                threads=torch.get_num_threads(),
                telemetry=self._monitors[name].result(),
            )
            for name in self.timers
        }

    @contextlib.contextmanager
    def _dropped_on_failure(self, name: str) -> Iterator[None]:
        try:
            with translate_torch_errors(ANY_ERROR):
                yield
        except MeasurementError as failure:
            self.failures[name] = failure
            lost = [n for n in self.timers if failure.status == "device_lost" or n == name]
            for other in lost:  # nothing runs on a lost device
                del self.timers[other]
                self.failures.setdefault(other, failure)


class _Standards:
    """The yardstick and the check standard, timed beside the calls.

    Attributes:
        times_ms: ``"yardstick"``, ``"check"`` -> milliseconds in each round; empty where they cannot be run: latencies
            are then by the clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.times_ms: dict[str, list[float]] = {}
        self._clock = clock
        self._timers: dict[str, Timer] = {}
        self._latest: dict[str, float] = {}
        self._looked_at = -math.inf
        self._looks = 0

    def warm_up(self, run: Execution, before: Callable[[], object] | None, limit_s: float) -> None:
        with contextlib.suppress(*_STANDARD_ERRORS):
            calls = standards(run)
            self._timers = {n: timer_of(call, run.torch_device, before, self._clock) for n, call in calls.items()}
            for timer in self._timers.values():
                warm_up(timer, limit_s, self._clock)
            self.times_ms = {name: [] for name in self._timers}

    def after_round(self) -> None:
        if self.times_ms and self._clock() - self._looked_at >= _STANDARDS_EVERY_S:
            self._looked_at = self._clock()
            self._looks += 1
            try:
                self._latest = {name: statistics.median(_turn(timer, False)) for name, timer in self._timers.items()}
            except _STANDARD_ERRORS:
                self.times_ms = {}
        for name, times in self.times_ms.items():
            times.append(self._latest[name])

    @property
    def seen_enough(self) -> bool:
        """Whether sampling may end: they were timed often enough, or are not timed at all."""
        return not self.times_ms or self._looks >= MIN_SAMPLES

    def reference(self, run: Execution) -> Reference | None:
        """What is known of the device with this measurement; None where they were not timed, or nothing can be kept."""
        if not self.times_ms:
            return None
        return add_measurement(run, *(statistics.median(self.times_ms[name]) for name in ("yardstick", "check")))


def _at_speed(latency: Latency, turns: Sequence[float], yardstick_ms: Sequence[float], reference: Reference) -> Latency:
    """The latency at the device's reference speed, round by round, with an interval that holds for other processes."""
    speed = reference.yardstick_ms / statistics.median(yardstick_ms)
    shares = _shares(turns, yardstick_ms)
    median = reference.yardstick_ms * statistics.median(shares)
    below, above = (abs(math.log(share / statistics.median(shares))) for share in median_interval(shares))
    return replace(
        latency,
        median_ms=median,
        p90_ms=latency.p90_ms * speed,
        low_ms=median * math.exp(-math.hypot(below, reference.spread)),
        high_ms=median * math.exp(math.hypot(above, reference.spread)),
        converged=_known(shares),
        speed=speed,
        spread=reference.spread or None,
    )


def _shares(turns: Sequence[float], yardstick_ms: Sequence[float]) -> list[float]:
    """Times relative to the yardstick, ascending: of rounds, or of `BLOCKS` blocks of them where there are many."""
    blocks = min(BLOCKS, len(turns))
    edges = [round(i * len(turns) / blocks) for i in range(blocks + 1)]
    return sorted(
        statistics.median(turns[a:b]) / statistics.median(yardstick_ms[a:b]) for a, b in itertools.pairwise(edges)
    )


def _known(ordered: Sequence[float]) -> bool:
    """Whether the median of these is known to `PRECISION`."""
    low, high = median_interval(list(ordered))
    return (high - low) / 2 < PRECISION * statistics.median(ordered)


def _energy_j(timer: Timer, place: torch.device, budget_s: float, clock: Callable[[], float]) -> float | None:
    """Energy of one call, over calls one after the other for a while; None where the device does not report it."""
    before = energy_j(place)
    if before is None:
        return None
    calls, end = 0, clock() + max(_ENERGY_S, budget_s / 4)
    while clock() < end:
        timer()
        calls += 1
    after = energy_j(place)
    # A counter that wrapped or did not move gives no energy.
    return (after - before) / calls if after is not None and after > before else None


def _turn(timer: Timer, long: bool) -> list[float]:
    """Times of one turn."""
    if long:
        return [timer()]
    timer()
    taken = [timer()]
    spent = taken[0]
    while spent < _TURN_MS and len(taken) < _TURN_CALLS:
        taken.append(timer())
        spent += taken[-1]
    return taken


def _settled(
    subjects: _Subjects, baseline: str | None, tolerance: float, fixed_ms: Mapping[str, Sequence[float]]
) -> bool:
    """Whether all medians are known well enough, and how each relates to the baseline."""
    turns = {name: subjects.turns[name] for name in subjects.timers}
    for times in turns.values():
        if not _known(_shares(times, fixed_ms["yardstick"]) if fixed_ms else sorted(times)):
            return False
    against = turns.pop(baseline, None) if baseline is not None else None
    if against is None:
        return True
    return all(compare_turns(times, against, tolerance).verdict != "unclear" for times in turns.values())
