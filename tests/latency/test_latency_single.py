"""Latency: the statistics against brute force, the loop against a clock that is set by hand."""

import gc
import itertools
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpn_bench.errors import InputError
from fpn_bench.host import running_system
from fpn_bench.latency import measure_latency
from fpn_bench.latency.single import MIN_SAMPLES, median_interval, summarise


class _Work:
    """A call that takes the given milliseconds by a clock of its own, the last one for ever."""

    def __init__(self, *times_ms: float) -> None:
        self.now = 0.0
        self.calls = 0
        self._times = itertools.chain(times_ms, itertools.repeat(times_ms[-1]))

    def __call__(self) -> None:
        self.calls += 1
        self.now += next(self._times) / 1e3

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("n", [6, 7, 10, 25, 99, 100, 1001])
def test_interval_is_the_narrowest_that_covers_95_percent(n: int) -> None:
    low, high = median_interval([float(i) for i in range(1, n + 1)])
    rank = int(low)
    assert high == n + 1 - rank
    assert 2 * scipy.stats.binom.cdf(rank - 1, n, 0.5) <= 0.05
    assert 2 * scipy.stats.binom.cdf(rank, n, 0.5) > 0.05


@pytest.mark.parametrize("n", [6, 9, 12])
def test_interval_against_every_outcome(n: int) -> None:
    """Each sample is below the true median or above: all 2^n ways, counted."""
    rank = int(median_interval([float(i) for i in range(1, n + 1)])[0])
    covered = sum(rank <= sum(below) <= n - rank for below in itertools.product((0, 1), repeat=n))
    assert covered >= 0.95 * 2**n


@pytest.mark.parametrize("n", range(1, MIN_SAMPLES))
def test_no_interval_from_too_few_samples(n: int) -> None:
    assert median_interval([1.0] * n) == (-math.inf, math.inf)
    assert not summarise([1.0] * n).converged


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=60))
def test_figures_are_ordered_and_ignore_the_order_of_samples(samples: list[float]) -> None:
    figures = summarise(samples)
    assert figures == summarise(samples[::-1])
    assert figures.low_ms <= figures.median_ms <= figures.high_ms
    assert min(samples) <= figures.median_ms <= figures.p90_ms <= max(samples) or len(samples) < 3
    assert sum(s <= figures.p90_ms for s in samples) >= 0.9 * len(samples)
    assert figures.samples == len(samples)


def test_constant_work_converges_at_once() -> None:
    work = _Work(5.0)
    latency = measure_latency(work, budget_s=60, clock=work.clock)
    assert (latency.samples, latency.converged) == (MIN_SAMPLES, True)
    assert latency.median_ms == pytest.approx(5.0)
    assert latency.low_ms == pytest.approx(5.0)
    assert latency.high_ms == pytest.approx(5.0)
    assert latency.device == "cpu"


def test_noisy_work_is_sampled_until_the_budget_is_spent() -> None:
    work = _Work(*(1.0 + i * 37 % 101 / 10 for i in range(2000)))  # 1.0 to 11.0 ms, in no order
    latency = measure_latency(work, budget_s=1.0, clock=work.clock)
    assert not latency.converged
    assert latency.samples == pytest.approx(1000 / 6, rel=0.05)
    assert latency.low_ms < 6.0 < latency.high_ms
    assert latency.p90_ms == pytest.approx(10.0, rel=0.03)


def test_slow_starts_are_warmed_away() -> None:
    work = _Work(900.0, 500.0, 300.0, 200.0, 120.0, 60.0, 30.0, 20.0, 12.0, 10.0)
    latency = measure_latency(work, budget_s=60, clock=work.clock)
    assert latency.p90_ms == pytest.approx(10.0)


def test_slow_work_gets_its_fewest_samples_whatever_they_take() -> None:
    work = _Work(10_000.0)
    latency = measure_latency(work, budget_s=0.5, clock=work.clock)
    assert work.calls == 1 + MIN_SAMPLES
    assert latency.converged


def test_settings_are_put_back_even_after_a_failure() -> None:
    threads = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []

    def work() -> None:
        seen.append((torch.get_num_threads(), gc.isenabled()))
        if len(seen) > 4:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_latency(work, threads=1)
    assert set(seen) == {(1, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)


def test_real_work() -> None:
    a = torch.randn(64, 64)
    latency = measure_latency(lambda: a @ a, budget_s=0.05, threads=1)
    assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms
    assert latency.threads == 1


_HOLDER = """
import sys, time
from fpn_bench.latency import measure_latency
def work():
    if not told: told.append(print("inside", flush=True)) ; sys.stdin.readline() ; left.append(time.monotonic())
told, left = [], []
print("ready", flush=True)
measure_latency(work, budget_s=0.001)
print(left[0], flush=True)
"""


def test_two_processes_take_turns() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert [other.stdout.readline() for _ in range(2)] == ["ready\n", "inside\n"]
        begun: list[float] = []
        second = threading.Thread(
            target=lambda: measure_latency(lambda: begun.append(time.monotonic()), budget_s=0.001), daemon=True
        )
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive()
        assert not begun
        other.stdin.write("\n")
        other.stdin.flush()
        first_left = float(other.stdout.readline())
        second.join(timeout=120)
        assert not second.is_alive()
        assert begun[0] > first_left
    assert other.returncode == 0


@pytest.mark.parametrize("as_file", [False, True])
def test_lock_is_in_the_cache_folder_or_else_temporary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_file: bool
) -> None:
    home, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    if as_file:
        home.touch()
    monkeypatch.setenv("FPN_BENCH_CACHE", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[str] = []
    measure_latency(lambda: seen.extend(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.db")), budget_s=0.001)
    user = os.getuid() if hasattr(os, "getuid") else 0
    system = running_system()
    wanted = Path(f"temporary/fpn_bench-{user}-{system}-cpu.db" if as_file else f"cache/locks/{system}/cpu.db")
    assert set(seen) == {str(wanted)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "meta"}, "'cpu', 'cuda' or 'cuda:N', got 'meta'"),
        ({"device": "cuda:99"}, "expected cpu or a CUDA device that torch sees .* got 'cuda:99'"),
        ({"budget_s": 0}, "budget_s=1.0, got 0"),
        ({"budget_s": math.nan}, "budget_s=1.0, got nan"),
        ({"threads": 0}, "threads to be 1 or more, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_latency(lambda: None, **arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cuda_events_see_the_work_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def product(side: int) -> Callable[[], torch.Tensor]:
        a = torch.randn(side, side, device="cuda")
        return lambda: a @ a

    uuid = torch.cuda.get_device_properties(0).uuid
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    small, large = (measure_latency(product(side), device="cuda") for side in (256, 8192))
    assert small.device == "cuda:0"
    assert (tmp_path / "locks" / running_system() / f"cuda-{uuid}.db").exists()
    assert large.low_ms > small.high_ms
    start = time.perf_counter()
    product(8192)()
    torch.cuda.synchronize()
    assert large.low_ms < 2 * (time.perf_counter() - start) * 1e3
