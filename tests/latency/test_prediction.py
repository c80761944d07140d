"""Predicted latency: laws of the table by a timer that is set by hand; one real timing."""

import itertools
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn_bench.analysis import prediction_error
from fpn_bench.errors import CacheError, FormatVersionError, InputError
from fpn_bench.graph import Activation, Conv, Edge, Merge, NeckGraph, Node, Resample, cost
from fpn_bench.latency.prediction import LatencyTable, time_side_by_side
from fpn_bench.latency.units import neck_units
from fpn_bench.pyramid import FeatureSpec, level_sizes
from fpn_bench.zoo import create_graph

FEATURES = tuple(FeatureSpec(level, 8 * level, 2**level) for level in (3, 4, 5))
SIZES = {3: (12, 16), 4: (6, 8), 5: (3, 4)}
YARDSTICK_MS = 2.0


class _Timer:
    """Times of units by their id, and a machine that may be slow; says what it was asked for."""

    def __init__(self, ms: Callable[[str], float] = lambda unit: 0.1 + int(unit, 16) % 97 / 97) -> None:
        self.ms = ms
        self.slowness = 1.0
        self.asked: list[str] = []

    def __call__(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        self.asked += [name for name in calls if name != "yardstick"]
        return {name: self.slowness * (YARDSTICK_MS if name == "yardstick" else self.ms(name)) for name in calls}

    def sum_of(self, graph: NeckGraph) -> float:
        return sum(self.ms(unit.id) for unit in neck_units(graph, SIZES).values())


@pytest.fixture
def timer() -> _Timer:
    return _Timer()


@pytest.fixture
def table(tmp_path: Path, timer: _Timer) -> LatencyTable:
    return LatencyTable(root=tmp_path, timer=timer)


def _necks(count: int, seed: int = 0) -> list[NeckGraph]:
    """Distinct necks of several families."""
    rng = random.Random(seed)
    found: dict[str, NeckGraph] = {}
    while len(found) < count:
        family = rng.choice(["fpn", "pafpn", "bifpn", "csp_pafpn"])
        more = {"repeats": rng.randint(1, 4)} if family in ("fpn", "bifpn") else {}
        graph = create_graph(family, FEATURES, (3, 4, 5, 6)[: rng.choice([3, 4])], 8 * rng.randint(1, 9), **more)
        found[graph.id] = graph
    return list(found.values())


# -- units -------------------------------------------------------------------------------------------------------


@given(graphs, st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_names_orders_and_levels_are_no_part_of_a_unit(graph: NeckGraph, seed: int) -> None:
    rng = random.Random(seed)
    sizes = {spec.level: (4 * 2 ** (9 - spec.level), 2 ** (9 - spec.level)) for spec in graph.inputs}
    up = {f"C{spec.level}": f"C{spec.level + 1}" for spec in graph.inputs}
    up |= {node.name: f"x{i}" for i, node in enumerate(graph.nodes)}
    nodes = []
    for node in graph.nodes:
        edges = [Edge(up[edge.source], edge.ops) for edge in node.inputs]
        if node.merge.commutes:
            rng.shuffle(edges)
        nodes.append(replace(node, name=up[node.name], level=node.level + 1, inputs=tuple(edges)))
    inputs = tuple(replace(spec, level=spec.level + 1) for spec in graph.inputs)
    moved = NeckGraph(inputs, tuple(nodes), tuple(up[name] for name in graph.outputs))
    one = neck_units(graph, sizes)
    other = neck_units(moved, {level + 1: size for level, size in sizes.items()})
    assert Counter(unit.key for unit in one.values()) == Counter(unit.key for unit in other.values())
    assert sum(unit.macs for unit in one.values()) == cost(graph, input_sizes=sizes).macs


@given(graphs)
@settings(max_examples=15, deadline=None)
def test_what_is_timed_makes_the_map_of_its_node(tmp_path_factory: pytest.TempPathFactory, graph: NeckGraph) -> None:
    sizes = {spec.level: (3 * 2 ** (8 - spec.level) // 2, 2 ** (8 - spec.level)) for spec in graph.inputs}
    units = neck_units(graph, sizes)
    ids = {unit.id for unit in units.values()}
    made = {}

    def run(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        made.update({name: call() for name, call in calls.items() if name in ids})
        return dict.fromkeys(calls, 1.0)

    state = torch.get_rng_state()
    predicted = LatencyTable(root=tmp_path_factory.mktemp("table"), timer=run).predict(graph, sizes)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.keys() == ids
    every = level_sizes(sizes, range(10))
    for name, unit in units.items():
        assert made[unit.id].shape == (1, graph.channels_of(name), *every[graph.level_of(name)])
    assert (predicted.timed, predicted.estimated) == (len(units), 0)


def test_two_maps_of_one_level_and_other_sizes_are_other_units() -> None:
    def graph(*sources: str) -> NeckGraph:
        maps = (Node("a", 3, (Edge("C3"),), ops=(Conv(4, 1),)), Node("b", 3, (Edge("C3"),), ops=(Conv(6, 1),)))
        merged = Node("m", 3, tuple(Edge(source) for source in sources), Merge("concat"))
        return NeckGraph(FEATURES[:1], (*maps, merged), ("m",))

    ab, ba = neck_units(graph("a", "b"), {3: (5, 7)}), neck_units(graph("b", "a"), {3: (5, 7)})
    assert ab["m"].key != ba["m"].key  # a concatenation does not commute
    assert ab["a"] == ba["a"] != ab["b"]
    assert ab["a"].key != neck_units(graph("a", "b"), {3: (7, 5)})["a"].key


def test_costs_of_a_unit_by_hand() -> None:
    edges = (Edge("C3"), Edge("C4", (Conv(24, 1), Resample("nearest"))))
    graph = NeckGraph(FEATURES[:2], (Node("m", 3, edges, ops=(Activation("silu"),)),), ("m",))
    (unit,) = neck_units(graph, {3: (4, 6), 4: (2, 3)}).values()
    assert unit.macs == 32 * 24 * 6
    assert unit.work == {
        "conv": (1, (32 + 24) * 6),
        "resample nearest": (1, 24 * 6 + 24 * 24),
        "merge": (1, (24 + 24 + 24) * 24),
        "activation silu": (1, 2 * 24 * 24),
    }


def test_a_node_that_passes_a_map_on_is_no_unit(table: LatencyTable) -> None:
    bare = NeckGraph(FEATURES[:1], (Node("same", 3, (Edge("C3"),)),), ("same",))
    assert neck_units(bare, {3: (2, 2)}) == {}
    assert table.predict(bare, {3: (2, 2)}, base_ms=5.0).median_ms == 5.0


# -- the sum -----------------------------------------------------------------------------------------------------


def test_with_nothing_learned_the_prediction_is_the_sum(table: LatencyTable, timer: _Timer) -> None:
    for graph in _necks(5):
        predicted = table.predict(graph, SIZES)
        count = len(neck_units(graph, SIZES))
        assert predicted.median_ms == predicted.sum_ms == pytest.approx(timer.sum_of(graph))
        assert (predicted.low_ms, predicted.high_ms) == (-math.inf, math.inf)
        assert (predicted.units, predicted.timed, predicted.estimated) == (count, count, 0)
        assert predicted.measured_candidates == 0
        assert table.predict(graph, SIZES, base_ms=40.0).median_ms == pytest.approx(40.0 + timer.sum_of(graph))
    assert math.isnan(table.error().median_ape)


def test_units_alike_are_timed_once(table: LatencyTable, timer: _Timer) -> None:
    three, five = (create_graph("bifpn", FEATURES, channels=16, repeats=n) for n in (3, 5))
    table.predict(three, SIZES)
    assert len(timer.asked) == len(set(timer.asked)) < len(neck_units(three, SIZES))
    timer.asked.clear()
    assert table.predict(five, SIZES).median_ms == pytest.approx(timer.sum_of(five))
    assert timer.asked == []


def test_a_slow_machine_makes_no_slow_unit(table: LatencyTable, timer: _Timer) -> None:
    first, second, *others = _necks(9)
    assert table.slowness() == 1.0  # nothing to compare with yet
    for graph in others:
        table.predict(graph, SIZES)
    assert table.slowness() == pytest.approx(1.0)
    timer.slowness = 3.0
    assert table.slowness() == pytest.approx(3.0)
    table.predict(first, SIZES)
    table.learn(first, SIZES, 3.0 * timer.sum_of(first))
    timer.slowness = 1.0
    assert table.predict(first, SIZES).median_ms == pytest.approx(timer.sum_of(first))
    assert table.predict(second, SIZES).median_ms == pytest.approx(timer.sum_of(second))


def test_predictions_are_stated_at_the_speed_that_measurements_are(table: LatencyTable, timer: _Timer) -> None:
    """What was measured at half the reference speed is predicted as it would be at that speed."""
    first, second = _necks(2)
    timer.slowness = 2.0
    for graph in (first, second):
        table.predict(graph, SIZES)
    table.learn(first, SIZES, 2.0 * timer.sum_of(first), speed=0.5)
    assert table.predict(first, SIZES).median_ms == pytest.approx(timer.sum_of(first))
    assert table.predict(second, SIZES, base_ms=7.0).median_ms == pytest.approx(7.0 + timer.sum_of(second))


def test_of_one_base_the_last_measurement_counts(table: LatencyTable, timer: _Timer) -> None:
    (graph,) = _necks(1)
    table.predict(graph, SIZES)
    for base_ms in (5.0, 5.1):
        table.learn(graph, SIZES, base_ms + timer.sum_of(graph), base_ms=base_ms, base_id="resnet18")
    assert table.error().candidates == 1
    table.learn(graph, SIZES, 9.0 + timer.sum_of(graph), base_ms=9.0, base_id="resnet50")
    assert table.error().candidates == 2


# -- learning ----------------------------------------------------------------------------------------------------


def test_every_measured_candidate_improves_it(table: LatencyTable, timer: _Timer) -> None:
    def truth(graph: NeckGraph) -> float:
        return 1.3 * timer.sum_of(graph) + 0.02 * len(neck_units(graph, SIZES))

    *train, unseen = _necks(25)
    misses = []
    for graph in train:
        misses.append(abs(table.predict(unseen, SIZES).median_ms / truth(unseen) - 1))
        table.predict(graph, SIZES)
        table.learn(graph, SIZES, truth(graph))
    assert all(after < before + 0.01 for before, after in itertools.pairwise(misses))
    assert misses[0] > 0.2
    assert misses[1] < 0.1
    assert misses[-1] < 0.02
    assert table.error().median_ape < 2.0
    assert table.error().kendall_tau == pytest.approx(1.0)
    assert table.error().candidates == len(train)


def test_what_stands_around_the_neck_is_learned_too(table: LatencyTable, timer: _Timer) -> None:
    *train, unseen = _necks(30)
    for graph in train:
        table.predict(graph, SIZES)
        table.learn(graph, SIZES, 20.0 * 0.9 + 1.2 * timer.sum_of(graph), base_ms=20.0)
    predicted = table.predict(unseen, SIZES, base_ms=20.0)
    assert predicted.median_ms == pytest.approx(18.0 + 1.2 * timer.sum_of(unseen), rel=0.01)
    assert predicted.sum_ms == pytest.approx(20.0 + timer.sum_of(unseen))


def test_one_wild_measurement_moves_little(table: LatencyTable, timer: _Timer) -> None:
    *train, unseen = _necks(21)
    for i, graph in enumerate(train):
        table.predict(graph, SIZES)
        table.learn(graph, SIZES, (4.0 if i == 7 else 1.0) * timer.sum_of(graph))
    assert table.predict(unseen, SIZES).median_ms == pytest.approx(timer.sum_of(unseen), rel=0.02)


def test_a_neck_measured_again_counts_once(table: LatencyTable, timer: _Timer) -> None:
    graph = _necks(1)[0]
    table.predict(graph, SIZES)
    for factor in (5.0, 1.0):
        table.learn(graph, SIZES, factor * timer.sum_of(graph))
    assert table.error().candidates == 1
    assert table.predict(graph, SIZES).median_ms == pytest.approx(timer.sum_of(graph))


def test_leave_one_out_and_interval_against_tables_without_the_one(tmp_path: Path, timer: _Timer) -> None:
    rng = np.random.default_rng(0)
    necks = _necks(20)
    timed = LatencyTable(root=tmp_path, timer=timer)
    for graph in necks:
        timed.predict(graph, SIZES)
    measured = [1.2 * timer.sum_of(graph) * math.exp(0.1 * rng.standard_normal()) for graph in necks]
    predicted = []
    for left_out in (*range(len(necks)), None):
        folder = tmp_path / str(left_out)
        folder.mkdir()
        shutil.copy(timed.path, folder)
        table = LatencyTable(root=folder, timer=timer)
        for i, graph in enumerate(necks):
            if i != left_out:
                table.learn(graph, SIZES, measured[i])
        if left_out is not None:
            predicted.append(table.predict(necks[left_out], SIZES).median_ms)
    truth = prediction_error(predicted, measured)
    assert table.error().median_ape == pytest.approx(truth.median_ape, rel=0.05)
    assert table.error().kendall_tau == pytest.approx(truth.kendall_tau, abs=0.02)
    misses = sorted(abs(math.log(p / m)) for p, m in zip(predicted, measured, strict=True))
    one = table.predict(necks[0], SIZES)
    assert math.log(one.high_ms / one.median_ms) == pytest.approx(misses[math.ceil(0.95 * 21) - 1], rel=0.05)
    assert one.low_ms * one.high_ms == pytest.approx(one.median_ms**2)


def test_an_interval_needs_19_candidates(table: LatencyTable, timer: _Timer) -> None:
    necks = _necks(19)
    for i, graph in enumerate(necks):
        assert math.isinf(table.predict(graph, SIZES).high_ms)
        table.learn(graph, SIZES, timer.sum_of(graph) * (1 + 0.01 * (i % 3)))
    assert math.isfinite(table.predict(necks[0], SIZES).high_ms)


# -- estimates ---------------------------------------------------------------------------------------------------


def test_units_can_be_estimated_from_others(tmp_path: Path) -> None:
    *known, unseen = _necks(12)
    every = [unit for graph in (*known, unseen) for unit in neck_units(graph, SIZES).values()]
    ms = {unit.id: 1e-7 * unit.macs + sum(1e-3 * n + 1e-6 * moved for n, moved in unit.work.values()) for unit in every}
    timer = _Timer(ms.__getitem__)
    table = LatencyTable(root=tmp_path, timer=timer)
    nothing = table.predict(unseen, SIZES, time_missing=False)
    assert math.isnan(nothing.median_ms)
    assert (nothing.low_ms, nothing.high_ms) == (-math.inf, math.inf)
    assert (nothing.timed, nothing.estimated) == (0, nothing.units)
    table.learn(unseen, SIZES, 7.0)  # of a neck that nothing can be said about yet
    assert table.error().candidates == 0
    for i, graph in enumerate(known):
        table.predict(graph, SIZES)
        table.learn(graph, SIZES, timer.sum_of(graph))
        estimated = table.predict(unseen, SIZES, time_missing=False)
        assert estimated.measured_candidates == i + 2
    asked = set(timer.asked)
    assert estimated.estimated == sum(unit.id not in asked for unit in neck_units(unseen, SIZES).values()) > 0
    assert estimated.sum_ms == pytest.approx(timer.sum_of(unseen), rel=0.02)
    assert set(timer.asked) == asked
    timed = table.predict(unseen, SIZES)
    assert timed.sum_ms == pytest.approx(timer.sum_of(unseen))
    assert timed.estimated == 0


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured_ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_latency_is_refused(table: LatencyTable, measured_ms: float) -> None:
    graph = _necks(1)[0]
    with pytest.raises(InputError, match=r"measured_ms to be more than 0 milliseconds, got"):
        table.learn(graph, SIZES, measured_ms)
    if measured_ms:
        with pytest.raises(InputError, match=r"base_ms to be 0 or more milliseconds, got"):
            table.predict(graph, SIZES, base_ms=measured_ms)
    assert not table.path.exists()


def test_sizes_of_other_levels_are_refused(table: LatencyTable) -> None:
    with pytest.raises(InputError, match="input_sizes"):
        table.predict(_necks(1)[0], {3: (4, 4)})


def test_error_by_hand() -> None:
    error = prediction_error([1.0, 2.0, 4.0, math.nan], [1.0, 1.0, 2.0, 5.0])
    assert (error.median_ape, error.candidates) == (100.0, 3)
    assert error.kendall_tau == pytest.approx(2 / math.sqrt(3 * 2))  # two pairs agree, one is tied
    with pytest.raises(InputError, match="expected a measurement for each"):
        prediction_error([1.0], [])


# -- on disk -----------------------------------------------------------------------------------------------------


def test_another_process_goes_on_where_one_ended(tmp_path: Path, table: LatencyTable, timer: _Timer) -> None:
    graph, other = _necks(2)
    table.predict(graph, SIZES)
    table.learn(graph, SIZES, 2 * timer.sum_of(graph))
    table.path.with_name(f".{table.path.name}.killed.tmp").write_text('{"head"')  # a write that was killed
    timer.asked.clear()
    again = LatencyTable(root=tmp_path, timer=timer)
    assert again.predict(graph, SIZES) == table.predict(graph, SIZES)
    assert again.error() == table.error()
    assert timer.asked == []
    for settings_id, threads in (("bf16", None), ("", 7)):
        elsewhere = LatencyTable(root=tmp_path, timer=timer, settings_id=settings_id, threads=threads)
        assert elsewhere.path != table.path
        assert elsewhere.predict(other, SIZES).measured_candidates == 0


def test_two_processes_that_write_both_keep_what_they_found(tmp_path: Path, timer: _Timer) -> None:
    necks = _necks(12)
    tables = [LatencyTable(root=tmp_path, timer=timer) for _ in range(3)]

    def work(which: int) -> None:
        for graph in necks[which::3]:
            tables[which].learn(graph, SIZES, timer.sum_of(graph))  # of units that are timed only afterwards
            tables[which].predict(graph, SIZES)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    timer.asked.clear()
    merged = LatencyTable(root=tmp_path, timer=timer)
    for graph in necks:
        assert merged.predict(graph, SIZES).median_ms == pytest.approx(timer.sum_of(graph))
    assert timer.asked == []
    assert merged.error().candidates == len(necks)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}', b'{"head": {}}'],
)
def test_a_file_that_is_no_table_is_begun_anew(tmp_path: Path, timer: _Timer, garbage: bytes) -> None:
    graph = _necks(1)[0]
    path = LatencyTable(root=tmp_path, timer=timer).path
    path.write_bytes(garbage)
    table = LatencyTable(root=tmp_path, timer=timer)
    assert table.predict(graph, SIZES).median_ms == pytest.approx(timer.sum_of(graph))
    assert len(json.loads(path.read_text())["units"]) == len(set(timer.asked))


def test_a_newer_file_is_left_alone(table: LatencyTable, timer: _Timer) -> None:
    newer = '{"schema_version": 2, "all": "else"}'
    table.path.write_text(newer)
    with pytest.raises(FormatVersionError, match="schema_version 2"):
        LatencyTable(root=table.path.parent, timer=timer)
    with pytest.raises(FormatVersionError, match="schema_version 2"):
        table.predict(_necks(1)[0], SIZES)
    assert table.path.read_text() == newer


def test_a_folder_that_cannot_be_written(tmp_path: Path, timer: _Timer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        LatencyTable(root=tmp_path / "file" / "below", timer=timer).predict(_necks(1)[0], SIZES)


def test_the_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    assert LatencyTable().path.parent == tmp_path / "latency"


# -- real timings ------------------------------------------------------------------------------------------------


def _is_timed_on(device: str, root: Path) -> None:
    table = LatencyTable(device=device, threads=1, root=root, unit_budget_s=0.005)
    threads = torch.get_num_threads()
    graph = _necks(1)[0]
    predicted = table.predict(graph, SIZES)
    assert predicted.estimated == 0
    assert 0 < predicted.median_ms == predicted.sum_ms < math.inf
    table.learn(graph, SIZES, 1.0)
    assert 0 < table.predict(graph, SIZES).median_ms < math.inf
    assert torch.get_num_threads() == threads


def test_real_timing(tmp_path: Path) -> None:
    _is_timed_on("cpu", tmp_path)


@pytest.mark.gpu
def test_real_timing_on_a_gpu(tmp_path: Path) -> None:
    _is_timed_on("cuda:0", tmp_path)


def test_calls_are_timed_in_rounds_of_one_each() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = time_side_by_side(calls, device="cpu", threads=1, unit_budget_s=0.001)
    assert times.keys() == calls.keys()
    assert order == list("abc") * (len(order) // 3)
