"""Predicted latency: what an unseen neck will take, from timings of its steps, before it is measured.

    table = LatencyTable(device="cpu", threads=1)
    predicted = table.predict(graph, input_sizes)           # times the steps that the table lacks, adds all up
    table.learn(graph, input_sizes, measured.median_ms)     # every measured candidate improves the next prediction
    table.error()                                           # what the predictions are worth

A *unit* is one node of a neck with its edges, on maps of given sizes: its key holds nothing else, so that units alike
are timed once, in whatever neck and at whatever level they stand. Units are timed side by side, each once a round: a
round is a neck made of them, and finds the caches as cold as a neck does. With them runs a yardstick, one small neck
that never changes. Each time is kept relative to it, for the clock rate of a shared machine may halve between two
timings; neck and yardstick slow down together.

Necks take longer than the sum of their units, or shorter, by what their units share. Measured candidates correct that:

    measured = a * (sum of its units) + b * (number of its units) + d * (what was measured of the rest)

by robust least squares on relative errors (Huber 1964), no term below zero, drawn towards a = 1, b = 0, d = 1, the
plain sum, with the weight of one candidate. A unit that was never timed can be estimated from those that were, by its
MACs and by the operations and elements of each kind that it has; then nothing is built.

On disk a table is one JSON file a machine (host), device, thread count, version of torch and `settings_id`:
``<cache home>/latency/<machine>-<device>-<hash>.json``. Several processes may add to it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from filelock import FileLock

from fpn_bench.analysis import PredictionError, prediction_error
from fpn_bench.errors import CacheError, FormatVersionError, InputError
from fpn_bench.graph import NeckGraph
from fpn_bench.host import host_id
from fpn_bench.json_text import parse_json
from fpn_bench.latency import measure_latency
from fpn_bench.latency.estimates import PRIOR, Estimator, Fit, miss_ratio
from fpn_bench.latency.units import Unit, neck_units, short_hash, unit_calls
from fpn_bench.nn.neck import build_neck
from fpn_bench.paths import cache_home, write_text_atomic
from fpn_bench.profiling import check_device, machine
from fpn_bench.pyramid import FeatureSpec, ImageSize
from fpn_bench.zoo import create_graph

SCHEMA_VERSION: Final = 1

_YARDSTICK: Final = "yardstick"
_YARDSTICK_SIZES: Final = {3: (32, 32), 4: (16, 16), 5: (8, 8)}

Calls = Mapping[str, Callable[[], object]]
Timer = Callable[[Calls], Mapping[str, float]]
"""Calls by name -> milliseconds of each, all of them taken side by side."""


@dataclass(frozen=True, slots=True)
class PredictedLatency:
    """A prediction, never a measurement.

    Attributes:
        median_ms: the latency a measurement is expected to find; NaN where the table has nothing to estimate from.
        low_ms, high_ms: where it lies in 95 of 100 cases, judged by the table's own misses on measured candidates;
                infinite below 19 of them.
        sum_ms: the units' times added up, and the base: the prediction without the correction.
        units: steps of the neck that take time.
        timed: those whose like was timed on the device.
        estimated: those that were not.
        measured_candidates: candidates that the correction was learned from.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    sum_ms: float
    units: int
    timed: int
    estimated: int
    measured_candidates: int


class LatencyTable:
    """Timings of units on one device, and the necks measured there.

    Args:
        device: ``"cpu"`` or a CUDA device.
        threads: CPU threads torch may use while units are timed; None is its present setting.
        settings_id: what else the measurements to be predicted were taken under, in a word. Units are timed eagerly, in
            float32, on one image: what differs from that, the correction has to learn.
        root: folder of the table; ``latency`` in the cache folder (``$FPN_BENCH_CACHE`` or ``~/.cache/fpn_bench``)
            when None.
        unit_budget_s: seconds spent on timing a unit, about.
        timer: how calls are timed; None is `time_side_by_side`.

    A file that is no table is replaced, as in any cache.

    Raises:
        InputError: no such device.
        FormatVersionError: the file was written by a newer fpn_bench.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        threads: int | None = None,
        settings_id: str = "",
        root: str | Path | None = None,
        unit_budget_s: float = 0.05,
        timer: Timer | None = None,
    ) -> None:
        self.device = str(check_device(device))
        self.threads = torch.get_num_threads() if threads is None else threads
        self._timer = timer or functools.partial(
            time_side_by_side, device=self.device, threads=self.threads, unit_budget_s=unit_budget_s
        )
        self._head = {
            "machine": machine().label,
            "host": host_id(),
            "device": self.device,
            "threads": self.threads,
            "torch": machine().versions["torch"],
            "settings": settings_id,
            "yardstick": _yardstick().id,
        }
        folder = cache_home() / "latency" if root is None else Path(root)
        name = f"{machine().id}-{self.device.replace(':', '')}-{short_hash(json.dumps(self._head))[:8]}"
        self.path = folder / f"{name}.json"
        self._units: dict[str, _TimedUnit] = {}
        self._candidates: dict[str, _Measured] = {}
        self._adopt(*self._read())

    def predict(
        self,
        graph: NeckGraph,
        input_sizes: Mapping[int, ImageSize],
        *,
        base_ms: float = 0.0,
        time_missing: bool = True,
    ) -> PredictedLatency:
        """Predicted latency of a neck with the backbone before it and the head behind it.

        Args:
            graph: the neck.
            input_sizes: level -> (height, width) of each of its inputs.
            base_ms: measured latency of the rest, such as backbone and head.
            time_missing: units that the table lacks are built and timed now, else they are estimated.

        Raises:
            InputError: the sizes are not those of the graph's inputs; `base_ms` is negative or no number.
            CacheError: the new timings cannot be kept.
        """
        _check_ms("base_ms", base_ms, zero=True)
        units = neck_units(graph, input_sizes)
        missing = {name: unit for name, unit in units.items() if not self._is_timed(unit.id)}
        if time_missing and missing:
            self._time(graph, input_sizes, missing)
        wanted = Counter(unit.id for unit in units.values())
        timed = sum(count for unit, count in wanted.items() if self._is_timed(unit))
        total, spread = self._total(wanted, {unit.id: unit for unit in units.values()})
        row = np.array([total, len(units), base_ms / self._reference_ms])
        median_ms = float(row @ self._fit.terms) * self._reference_ms
        # The error of estimates is that of estimates made before the units were timed.
        ratio = max(self._fit.ratio * math.exp(1.96 * spread), self._unseen_ratio if timed < len(units) else 1.0)
        certain = math.isfinite(ratio)
        return PredictedLatency(
            median_ms=median_ms,
            low_ms=median_ms / ratio if certain else -math.inf,
            high_ms=median_ms * ratio if certain else math.inf,
            sum_ms=float(row @ PRIOR) * self._reference_ms,
            units=len(units),
            timed=timed,
            estimated=len(units) - timed,
            measured_candidates=len(self._fit.measured),
        )

    def learn(
        self,
        graph: NeckGraph,
        input_sizes: Mapping[int, ImageSize],
        measured_ms: float,
        *,
        base_ms: float = 0.0,
        base_id: str = "",
        speed: float | None = None,
    ) -> None:
        """Correct later predictions by a measurement; of one neck, sizes and base the last measurement counts.

        Call it soon after the measurement, because the yardstick is timed now to find how fast the machine was.

        Args:
            graph: the neck.
            input_sizes: level -> (height, width) of each of its inputs.
            measured_ms: median latency of the whole, base included.
            base_ms: as in `predict`.
            base_id: tells what it is of.
            speed: of the device when it was measured, as a share of the speed at which predictions shall be stated, and
                `base_ms` is (`Latency.speed`). None: they are stated at the usual one.

        Raises:
            InputError: the sizes are not those of the graph's inputs, or a latency or the speed is no number above 0.
            CacheError: it cannot be kept.
        """
        _check_ms("measured_ms", measured_ms)
        _check_ms("base_ms", base_ms, zero=True)
        units = neck_units(graph, input_sizes)
        if speed is not None:
            _check_ms("speed", speed)
        counts = Counter(unit.id for unit in units.values())
        before = self.predict(graph, input_sizes, base_ms=base_ms, time_missing=False)
        unseen = before.median_ms / self._reference_ms if before.estimated and before.median_ms > 0 else None
        yardstick_ms = self._timed({})[_YARDSTICK]
        entry = _Measured(dict(counts), measured_ms, base_ms, yardstick_ms, speed, unseen)
        name = short_hash(json.dumps([graph.id, sorted(input_sizes.items()), base_id]))
        self._keep({unit.id: _TimedUnit(unit) for unit in units.values()}, {name: entry})

    def slowness(self) -> float:
        """How long the yardstick takes now, over what it usually takes: 1.5 is a machine at two thirds of its speed."""
        now = self._timed({})[_YARDSTICK]
        return now / self._reference_ms if self._yardstick_times else 1.0

    def error(self) -> PredictionError:
        """How well the table predicts its measured candidates, each from all the others (leave-one-out)."""
        return prediction_error(self._fit.predicted.tolist(), self._fit.measured.tolist())

    # -- timing --------------------------------------------------------------------------------------------------

    def _time(self, graph: NeckGraph, input_sizes: Mapping[int, ImageSize], missing: Mapping[str, Unit]) -> None:
        """Time units of a neck, given by node, those alike once."""
        place = torch.device(self.device)
        nodes = {unit.id: name for name, unit in missing.items()}
        times = self._timed(unit_calls(graph, input_sizes, nodes, place))
        units = {unit.id: unit for unit in missing.values()}
        yardstick_ms = times[_YARDSTICK]
        self._keep({unit: _TimedUnit(units[unit], times[unit], yardstick_ms) for unit in nodes}, {})

    def _timed(self, calls: Calls) -> Mapping[str, float]:
        """Milliseconds of each call and of the yardstick beside them."""
        with torch.inference_mode():
            return self._timer({_YARDSTICK: self._yardstick_call, **calls})

    @functools.cached_property
    def _yardstick_call(self) -> Callable[[], object]:
        place = torch.device(self.device)
        with torch.random.fork_rng(devices=[]):
            neck = build_neck(_yardstick()).eval().to(place)
            maps = [torch.randn(1, s.channels, *_YARDSTICK_SIZES[s.level]).to(place) for s in neck.graph.inputs]
        return functools.partial(neck, maps)

    # -- what follows from the timings ---------------------------------------------------------------------------

    def _is_timed(self, unit: str) -> bool:
        return unit in self._units and self._units[unit].share is not None

    @functools.cached_property
    def _reference_ms(self) -> float:
        """What the yardstick takes at the speed that predictions are stated at; 1 before it was ever timed.

        That is the usual speed, as long as no candidate has another.
        """
        stated = [entry.yardstick_ms * entry.speed for entry in self._candidates.values() if entry.speed]
        times = stated or self._yardstick_times
        return statistics.median(times) if times else 1.0

    @property
    def _yardstick_times(self) -> list[float]:
        times = [entry.yardstick_ms for entry in self._units.values() if entry.yardstick_ms]
        return times + [entry.yardstick_ms for entry in self._candidates.values()]

    def _total(self, counts: Mapping[str, int], units: Mapping[str, Unit]) -> tuple[float, float]:
        """Sum of units, in yardsticks, and the relative standard deviation that estimates leave it with."""
        shares = {unit: self._units[unit].share or 0.0 for unit in counts if self._is_timed(unit)}
        missing = [unit for unit in counts if unit not in shares]
        if missing:
            shares |= {unit: self._estimator.share(units[unit]) for unit in missing}
        total = sum(count * shares[unit] for unit, count in counts.items())
        if not missing:
            return total, 0.0
        squares = sum((counts[unit] * shares[unit]) ** 2 for unit in missing)
        return total, self._estimator.spread * math.sqrt(squares) / total if total > 0 else math.inf

    @functools.cached_property
    def _unseen_ratio(self) -> float:
        known = [(entry.unseen, entry.share) for entry in self._candidates.values() if entry.unseen]
        return miss_ratio(np.log(np.array([unseen / share for unseen, share in known])))

    @functools.cached_property
    def _estimator(self) -> Estimator:
        return Estimator.of([(entry.unit, entry.share) for entry in self._units.values() if entry.share])

    @functools.cached_property
    def _fit(self) -> Fit:
        units = {name: entry.unit for name, entry in self._units.items()}
        rows, measured = [], []
        for candidate in self._candidates.values():
            total, _ = self._total(candidate.units, units)
            rows.append([total, sum(candidate.units.values()), candidate.base_ms / self._reference_ms])
            measured.append(candidate.share)
        known = [i for i, row in enumerate(rows) if math.isfinite(row[0])]
        return Fit.of(np.array(rows).reshape(-1, 3)[known], np.array(measured)[known])

    # -- on disk -------------------------------------------------------------------------------------------------

    def _keep(self, units: dict[str, _TimedUnit], candidates: dict[str, _Measured]) -> None:
        """Add to the table and to its file, in which other processes may have written since."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")):
                written = self._read()
                self._adopt(_merged(self._units, written[0], units), self._candidates | written[1] | candidates)
                data = {
                    "schema_version": SCHEMA_VERSION,
                    "head": self._head,
                    "units": {name: entry.to_dict() for name, entry in self._units.items()},
                    "candidates": {name: asdict(entry) for name, entry in self._candidates.items()},
                }
                write_text_atomic(self.path, json.dumps(data, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise CacheError(f"the latency table {self.path} cannot be written: {error}") from error

    def _adopt(self, units: dict[str, _TimedUnit], candidates: dict[str, _Measured]) -> None:
        self._units, self._candidates = units, candidates
        for name in ("_reference_ms", "_estimator", "_fit", "_unseen_ratio"):
            self.__dict__.pop(name, None)

    def _read(self) -> tuple[dict[str, _TimedUnit], dict[str, _Measured]]:
        """Content of the file; empty if there is none, or it is no table."""
        try:
            data = parse_json(self.path.read_text(encoding="utf-8"))
            if data["schema_version"] > SCHEMA_VERSION:
                raise FormatVersionError(
                    f"{self.path} has schema_version {data['schema_version']}, this fpn_bench reads up to "
                    f"{SCHEMA_VERSION}: upgrade fpn-bench, or delete the file"
                )
            units = {name: _TimedUnit.from_dict(entry) for name, entry in data["units"].items()}
            return units, {name: _Measured(**entry) for name, entry in data["candidates"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}, {}


def time_side_by_side(
    calls: Calls,
    *,
    device: str,
    threads: int | None = None,
    unit_budget_s: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds of each call, timed in rounds of one call each, with the device locked (see `measure_latency`).

    A call's time is its median share of a round, times the median round: what slows a whole round slows all alike.

    On a CUDA device the events stand between the calls of a round, and nothing waits for the device within it: as in a
    neck, a call's kernels are launched while those before it run.

    Args:
        calls: by name.
        device: ``"cpu"`` or a CUDA device.
        threads: CPU threads torch may use meanwhile; None leaves the setting.
        unit_budget_s: seconds spent on each, about.
        clock: seconds, of the CPU; `time.thread_time` leaves out what a thread waits for other processes.
    """
    place = check_device(device)
    rounds: list[list[float]] = []
    measure_latency(
        lambda: rounds.append(_durations_ms(list(calls.values()), place, clock)),
        device=place,
        budget_s=unit_budget_s * len(calls),
        threads=threads,
    )
    times = np.array(rounds)  # [rounds, calls]
    totals = times.sum(axis=1, keepdims=True)
    typical = np.median(times / totals, axis=0) * np.median(totals)
    return dict(zip(calls, typical.tolist(), strict=True))


def _durations_ms(
    calls: Sequence[Callable[[], object]], place: torch.device, clock: Callable[[], float]
) -> list[float]:
    """Of calls made one after the other."""
    if place.type == "cpu":
        marks = [clock()]
        for call in calls:
            call()
            marks.append(clock())
        return [(end - start) * 1e3 for start, end in itertools.pairwise(marks)]
    with torch.cuda.device(place):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]  # type: ignore[no-untyped-call]
        events[0].record()
        for call, event in zip(calls, events[1:], strict=True):
            call()
            event.record()
        torch.cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in itertools.pairwise(events)]


@dataclass(frozen=True, slots=True)
class _TimedUnit:
    """A unit, and what it took when the yardstick took so long; None is not timed."""

    unit: Unit
    ms: float | None = None
    yardstick_ms: float | None = None

    @property
    def share(self) -> float | None:
        """Its time in yardsticks."""
        return self.ms / self.yardstick_ms if self.ms and self.yardstick_ms else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.unit) | {"ms": self.ms, "yardstick_ms": self.yardstick_ms}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _TimedUnit:
        work = {kind: (count, moved) for kind, (count, moved) in data["work"].items()}
        return cls(Unit(data["key"], data["macs"], work), data["ms"], data["yardstick_ms"])


@dataclass(frozen=True, slots=True)
class _Measured:
    """A measured candidate: how many it has of which unit, and its times."""

    units: dict[str, int]
    measured_ms: float
    base_ms: float
    yardstick_ms: float
    speed: float | None = None
    unseen: float | None = None  # what was predicted, in yardsticks, while some of its units were estimated

    @property
    def share(self) -> float:
        """Measured, in yardsticks."""
        return self.measured_ms / self.yardstick_ms


def _merged(*tables: Mapping[str, _TimedUnit]) -> dict[str, _TimedUnit]:
    """All units; of one in several tables the last that was timed."""
    merged: dict[str, _TimedUnit] = {}
    for table in tables:
        merged |= {name: entry for name, entry in table.items() if entry.share or name not in merged}
    return merged


@functools.cache
def _yardstick() -> NeckGraph:
    features = tuple(FeatureSpec(level, 64, 2**level) for level in _YARDSTICK_SIZES)
    return create_graph("pafpn", features, channels=64, norm="batch")


def _check_ms(name: str, value: float, *, zero: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        wanted = "0 or more" if zero else "more than 0"
        raise InputError(f"expected {name} to be {wanted} milliseconds, got {value!r}")
