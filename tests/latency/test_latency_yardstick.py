"""The reference speed: what is kept of it, and how it turns the clock's times into latencies that repeat."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.stats
import torch

from fpn_bench.latency import latency_of, measure_rounds
from fpn_bench.latency.yardstick import FEWEST, add_measurement, standards
from fpn_bench.profiling import Execution

EXECUTION = Execution(threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    return tmp_path / "latency" / "yardstick.json"


def _process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Go on as another process."""
    monkeypatch.setattr("fpn_bench.latency.yardstick._PROCESS", name)


def test_the_first_measurement_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for i, ms in enumerate((2.0, 3.0, 1.0), 1):
        _process(monkeypatch, str(i))
        reference = add_measurement(EXECUTION, ms, 1.0)
        assert reference is not None
        assert (reference.yardstick_ms, reference.processes) == (2.0, i)
    other = add_measurement(Execution(threads=1, memory_format="channels_last"), 7.0, 1.0)
    assert other is not None
    assert other.yardstick_ms == 7.0


def test_spread_is_the_prediction_interval_of_the_check_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [1.0, 1.02, 0.99, 1.01]
    for i, check in enumerate(checks, 1):
        _process(monkeypatch, str(i))
        for noise in (3.0, 0.5, 1.0):  # of one process the last counts
            reference = add_measurement(EXECUTION, 2.0, 2 * check * noise)
        assert reference is not None
        logs = [math.log(c) for c in checks[:i]]
        wanted = 0.0 if i < FEWEST else scipy.stats.t.ppf(0.975, i - 1) * statistics.stdev(logs)
        assert reference.spread == pytest.approx(wanted)


def test_only_so_many_are_kept_and_the_reference_for_ever(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(130):
        _process(monkeypatch, str(i))
        add_measurement(EXECUTION, 1.0 + i, 1.0)
    ((key, device),) = json.loads(cache.read_text()).items()
    assert list(device["checks"]) == [str(i) for i in range(30, 130)]
    assert device["yardstick_ms"] == 1.0
    assert "1 threads" in key


BROKEN = '{"a": {"yardstick_ms": %s, "checks": {"b": %s}}}'


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 3}', '{"a": {}}', BROKEN % (0, 1), BROKEN % (1, "null"), BROKEN % ('"x"', 1)]
)
def test_a_broken_file_is_begun_anew(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    reference = add_measurement(EXECUTION, 2.0, 1.0)
    assert reference is not None
    assert (reference.yardstick_ms, reference.processes) == (2.0, 1)


def test_without_a_folder_there_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "file"))
    assert add_measurement(EXECUTION, 2.0, 1.0) is None
    latency = latency_of(lambda: None, EXECUTION, budget_s=0.001)
    assert (latency.speed, latency.spread) == (None, None)
    assert latency.clock_ms == latency.median_ms


class _Device:
    """A clock set by hand, on a device so fast; the standards take a millisecond at full speed."""

    def __init__(self, speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.speed = 0.0, speed
        fixed = {"yardstick": self.taking(1.0), "check": self.taking(1.0)}
        monkeypatch.setattr("fpn_bench.latency.rounds.standards", lambda _: fixed)

    def taking(self, ms: float) -> "_Call":
        return _Call(self, ms)


class _Call:
    def __init__(self, device: _Device, ms: float) -> None:
        self.device, self.ms = device, ms

    def __call__(self) -> None:
        self.device.now += self.ms / self.device.speed / 1e3


def test_a_slower_device_gives_the_same_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    for speed in (1.0, 0.5, 0.8, 1.25):
        device = _Device(speed, monkeypatch)
        found = measure_rounds(
            {"a": device.taking(30.0)}, execution=EXECUTION, budget_s=1, clock=lambda d=device: d.now
        ).latencies["a"]
        assert found.median_ms == pytest.approx(30.0)
        assert found.clock_ms == pytest.approx(30.0 / speed)
        assert found.speed == pytest.approx(speed)
        assert found.p90_ms == pytest.approx(30.0)
        assert found.low_ms <= found.median_ms <= found.high_ms
        assert found.spread is None  # so well repeats the check standard


def test_intervals_are_as_wide_as_measurements_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in (1.0, 1.02, 0.98):
        _process(monkeypatch, str(check))
        add_measurement(EXECUTION, 1.0, check)
    _process(monkeypatch, "ours")
    device = _Device(1.0, monkeypatch)
    found = measure_rounds(
        {"a": device.taking(30.0)}, execution=EXECUTION, budget_s=1, clock=lambda: device.now
    ).latencies["a"]
    assert found.spread == pytest.approx(3.182 * statistics.stdev([0, math.log(1.02), math.log(0.98), 0]), rel=1e-3)
    assert math.log(found.high_ms / found.median_ms) == pytest.approx(found.spread, rel=1e-6)
    assert math.log(found.median_ms / found.low_ms) == pytest.approx(found.spread, rel=1e-6)
    assert found.converged  # of the measurement itself


def _runs(precision: str, memory_format: str) -> Iterator[object]:
    for call in standards(Execution(threads=1, precision=precision, memory_format=memory_format)).values():  # type: ignore[arg-type]
        yield call()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_standards_run_in_every_precision_and_format(precision: str, memory_format: str) -> None:
    assert len(list(_runs(precision, memory_format))) == 2


def test_standards_that_fail_cost_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def refused(_: Execution) -> dict[str, object]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for broken in (lambda _: {"yardstick": lost, "check": lost}, refused):
        monkeypatch.setattr("fpn_bench.latency.rounds.standards", broken)
        latency = latency_of(lambda: None, EXECUTION, budget_s=0.001)
        assert (latency.speed, latency.clock_ms) == (None, latency.median_ms)


def test_on_a_lost_device_the_standards_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def never(_: Execution) -> dict[str, object]:
        raise AssertionError("it is lost")

    monkeypatch.setattr("fpn_bench.latency.rounds.standards", never)
    found = measure_rounds({"a": lost}, execution=EXECUTION, budget_s=0.001)
    assert found.failures["a"].status == "device_lost"
