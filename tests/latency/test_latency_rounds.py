"""Interleaved rounds: verdicts by hand, drift that must not matter, calls that fail among others."""

import functools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpn_bench.errors import InputError, MeasurementError
from fpn_bench.latency import measure_rounds as _measure_rounds
from fpn_bench.latency.rounds import compare_turns, sequential_interval
from fpn_bench.latency.single import MIN_SAMPLES
from fpn_bench.profiling import Execution

measure_rounds = functools.partial(_measure_rounds, at_reference_speed=False)


class _Device:
    """A clock set by hand, which calls move by what they take times how slow the device is by then."""

    def __init__(self, slowness: Callable[[float], float] = lambda _: 1.0) -> None:
        self.now = 0.0
        self.slowness = slowness
        self.order: list[str] = []

    def call(self, name: str, times_ms: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += next(times_ms) * self.slowness(self.now) / 1e3

        return run

    def clock(self) -> float:
        return self.now


def _always(value: float) -> Iterator[float]:
    while True:
        yield value


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0] * 8, "same"),
        ([1.019] * 8, "same"),
        ([1.0195, 0.981, 1.0, 1.0, 1.0, 1.0, 1.01, 0.99], "same"),
        ([1.021] * 8, "slower"),
        ([0.98] * 8, "faster"),
        ([1.03] * 7 + [1.01], "unclear"),
        ([1.0] * 7 + [1.03], "unclear"),
        ([1.5] * 7, "unclear"),  # too few for an interval
        ([2.0], "unclear"),
    ],
)
def test_verdicts(ratios: list[float], verdict: str) -> None:
    found = compare_turns(ratios, [1.0] * len(ratios))
    assert found.verdict == verdict
    assert found.ratio == statistics.median(ratios)
    assert (found.rounds, found.tolerance) == (len(ratios), 0.02)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=8, max_size=40), st.floats(0.001, 0.5))
def test_the_other_way_round_is_the_opposite(pairs: list[tuple[float, float]], tolerance: float) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = compare_turns(a, b, tolerance), compare_turns(b, a, tolerance)
    opposite = {"same": "same", "unclear": "unclear", "faster": "slower", "slower": "faster"}
    on_the_edge = any(
        math.isclose(x, edge, rel_tol=1e-9)
        for x in (there.low, there.high)
        for edge in (1 + tolerance, 1 / (1 + tolerance))
    )
    assert on_the_edge or back.verdict == opposite[there.verdict]
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)


def test_looking_again_and_again_does_not_make_verdicts_false() -> None:
    """At the tolerance neither "same" nor "slower" is true: each may be said in 2.5 %, however often one looks."""
    rng, said = random.Random(0), Counter[str]()
    for _ in range(400):
        ratios: list[float] = []
        while len(ratios) < 400:
            ratios.append(1.02 * math.exp(rng.gauss(0, 0.05)))
            if len(ratios) >= 8 and len(ratios) % 4 == 0:
                verdict = compare_turns(ratios, [1.0] * len(ratios)).verdict
                if verdict != "unclear":
                    said[verdict] += 1
                    break
    assert said["faster"] == 0
    assert said["same"] + said["slower"] <= 0.05 * 400


@pytest.mark.parametrize("n", [8, 20, 100, 400])
def test_the_interval_is_refuted_bets(n: int) -> None:
    low, _ = sequential_interval([float(i) for i in range(1, n + 1)])
    below = int(low) - 1  # so many samples below the median are still refuted, one more is not

    def bet(k: int) -> float:
        return 2**n / ((n + 1) * math.comb(n, k))

    assert bet(below) >= 20 > bet(below + 1)
    assert sequential_interval([1.0] * 7) == (-math.inf, math.inf)


def test_drift_does_not_show_in_the_ratio() -> None:
    """The device gets several times as slow in the course: medians wander, ratios stand."""
    device = _Device(lambda now: 1 + now / 4)
    calls = {name: device.call(name, _always(ms)) for name, ms in (("a", 20.0), ("b", 22.0), ("c", 20.0))}
    found = measure_rounds(calls, baseline="a", budget_s=4, clock=device.clock)
    assert found.compare("b", "a").verdict == "slower"
    assert found.compare("b", "a").ratio == pytest.approx(1.1, rel=0.01)
    assert found.compare("c", "a").verdict == "same"
    assert found.latencies["a"].high_ms > 1.2 * found.latencies["a"].low_ms


def test_ends_when_all_is_decided_or_time_is_up() -> None:
    device = _Device()
    calls = {name: device.call(name, _always(20.0)) for name in "ab"}
    found = measure_rounds(calls, baseline="a", budget_s=60, clock=device.clock)
    assert {len(t) for t in found.turns_ms.values()} == {8}  # the first look at which there is an interval

    def wild(low: float) -> Iterator[float]:
        while True:
            yield from (low, 3 * low)

    device = _Device()
    seen: list[float] = []
    found = measure_rounds(
        {"a": device.call("a", _always(20.0)), "b": device.call("b", wild(20.0))},
        baseline="a",
        budget_s=5,
        clock=device.clock,
        on_round=lambda _, share: seen.append(share),
    )
    assert found.compare("b", "a").verdict == "unclear"
    assert 10 <= device.now <= 13.5  # two budgets, the warm-ups and a round more
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_every_call_has_a_turn_in_every_round_in_changing_order() -> None:
    device = _Device()
    calls = {name: device.call(name, _always(30.0)) for name in "abc"}
    measure_rounds(calls, budget_s=0.001, clock=device.clock)
    rounds = ["".join(device.order[-3 * (i + 1) :][:3]) for i in range(MIN_SAMPLES)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1


def test_short_calls_are_timed_several_times_a_turn() -> None:
    device = _Device()
    found = measure_rounds({"a": device.call("a", _always(0.5))}, budget_s=0.001, clock=device.clock)
    assert found.latencies["a"].samples == 4 * MIN_SAMPLES  # two milliseconds; once before, untimed


@pytest.mark.parametrize("calls_before", [0, 2, 5, 8])
def test_a_call_that_fails_leaves_the_others_alone(calls_before: int) -> None:
    device = _Device()

    def fails() -> Iterator[float]:
        for _ in range(calls_before):
            yield 20.0
        raise RuntimeError("\"deformable_im2col\" not implemented for 'Half'")

    found = measure_rounds(
        {"bad": device.call("bad", fails()), "good": device.call("good", _always(20.0))},
        baseline="bad",
        budget_s=0.2,
        clock=device.clock,
    )
    assert set(found.latencies) == set(found.turns_ms) == {"good"}
    assert found.latencies["good"].median_ms == pytest.approx(20)
    assert found.failures["bad"].status == "unsupported"


def test_on_a_lost_device_nothing_goes_on() -> None:
    device = _Device()

    def lost() -> Iterator[float]:
        yield 20.0
        raise RuntimeError("CUDA error: unspecified launch failure")

    found = measure_rounds(
        {"a": device.call("a", lost()), "b": device.call("b", _always(20.0))}, budget_s=1, clock=device.clock
    )
    assert not found.latencies
    assert [f.status for f in found.failures.values()] == ["device_lost"] * 2
    assert isinstance(found.failures["b"], MeasurementError)


def test_calls_that_all_fail_after_their_warm_up_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standards are warm by then, and were never timed."""
    warm: list[str] = []
    standards = {name: functools.partial(warm.append, name) for name in ("yardstick", "check")}
    monkeypatch.setattr("fpn_bench.latency.rounds.standards", lambda _: standards)

    def breaks_down() -> None:
        if warm:
            raise ValueError("a table ran full")

    found = _measure_rounds({"a": breaks_down}, execution=Execution(threads=1), budget_s=0.01)
    assert (dict(found.latencies), found.failures["a"].reason) == ({}, "a table ran full")


def test_the_budget_of_a_call_that_fails_goes_to_no_other() -> None:
    def wild() -> Iterator[float]:
        while True:
            yield from (20.0, 60.0)

    def fails() -> None:
        raise RuntimeError("no")

    device = _Device()
    calls = {"a": device.call("a", wild())} | dict.fromkeys("bcd", fails)
    measure_rounds(calls, budget_s=5, clock=device.clock)
    assert 5 <= device.now <= 6.5  # one budget, the warm-up and a round more


def test_a_call_that_fails_while_its_energy_is_counted_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Device()

    def times() -> Iterator[float]:
        for _ in range(3 + MIN_SAMPLES):
            yield 30.0
        raise ValueError("a table ran full")

    monkeypatch.setattr("fpn_bench.latency.rounds.energy_j", lambda _: 1.0)
    calls = {"bad": device.call("bad", times()), "good": device.call("good", _always(30.0))}
    found = measure_rounds(calls, budget_s=0.1, clock=device.clock)
    assert {name: latency.median_ms for name, latency in found.latencies.items()} == {
        "bad": pytest.approx(30.0),
        "good": pytest.approx(30.0),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calls": {}}, "at least one call to time, .* got none"),
        ({"budget_s": 0}, "budget_s=1.0, got 0"),
        ({"budget_s": math.nan}, "budget_s=1.0, got nan"),
        ({"baseline": "z"}, "one of the calls a as baseline, got 'z'"),
        ({"tolerance": 0, "baseline": "a"}, "tolerance=0.02, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_rounds(**({"calls": {"a": lambda: None}} | arguments))  # type: ignore[arg-type]


def test_real_calls_on_real_threads() -> None:
    import torch

    before = torch.get_num_threads()
    threads: set[int] = set()
    calls = {name: lambda: threads.add(torch.get_num_threads()) for name in "ab"}
    found = _measure_rounds(calls, execution=Execution(threads=1), budget_s=0.01)
    assert threads == {1}
    assert torch.get_num_threads() == before
    assert {latency.threads for latency in found.latencies.values()} == {1}


def test_energy_is_of_one_image_and_of_that_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Device()
    joules = {"a": 2.0, "b": 10.0}
    monkeypatch.setattr(
        "fpn_bench.latency.rounds.energy_j", lambda _: 100.0 + sum(joules[name] for name in device.order)
    )
    calls = {name: device.call(name, _always(30.0)) for name in "ab"}
    found = measure_rounds(calls, execution=Execution(batch=4), budget_s=0.1, clock=device.clock)
    assert {name: latency.energy_j for name, latency in found.latencies.items()} == {"a": 0.5, "b": 2.5}


def test_a_device_that_does_not_tell_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (None, 5.0):  # silent, or a counter that stands still
        monkeypatch.setattr("fpn_bench.latency.rounds.energy_j", lambda _, answer=answer: answer)
        device = _Device()
        found = measure_rounds({"a": device.call("a", _always(30.0))}, budget_s=0.1, clock=device.clock)
        assert found.latencies["a"].energy_j is None
