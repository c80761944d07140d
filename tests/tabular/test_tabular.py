"""Tables of trained necks, against figures worked out here from the rows that they were written from."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fpn_bench as fb
from fpn_bench import tabular
from fpn_bench.analysis import front
from fpn_bench.candidates.candidate import BackboneId, Candidate
from fpn_bench.errors import DataError, FormatVersionError, InputError, UnknownNameError
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search import Space, list_spaces, run_study
from fpn_bench.search.space import shipped_files
from fpn_bench.tabular import Metadata, TabularBenchmark, load, write_table
from fpn_bench.training.protocol import Protocol

FEATURES = (FeatureSpec(3, 8, 8), FeatureSpec(4, 16, 16), FeatureSpec(5, 32, 32))
SPACE = """
name: made-up
backbone: {name: made_up_net}
data: {kind: coco}
image_size: [64, 64]
training: {epochs: 3}
neck:
  family: {choices: [fpn, pafpn, top_only]}
  channels: {range: [8, 24], step: 8}
  merge: {choices: [sum, max], when: {family: [fpn, pafpn]}}
  norm: group
objectives: {ap: maximise, latency_ms: minimise}
"""
KNOWN = Space.parse(SPACE)
SETS = list(KNOWN.enumerate())
PROTOCOL = Protocol(dataset="made up", dataset_hash="0" * 64, image_size=(64, 64), training=KNOWN.training)
METADATA = Metadata(
    name="made-up",
    space=SPACE,
    features=FEATURES,
    weights="random",
    protocol=PROTOCOL,
    protocol_id=PROTOCOL.id,
    written_on={},
    recorder="this test",
)


def ap_of(index: int, seed: int, epoch: int) -> float:
    """Distinct, scattered, and another order for another seed."""
    return (7 * index % 15) + epoch + 0.25 * ((index * (seed + 2)) % 5)


def macs_of(index: int) -> int:
    """With ties."""
    return 1000 * (1 + index % 7)


def rows_of(seeds: tuple[int, ...] = (0, 1), *, measured: bool = True) -> list[dict[str, str]]:
    rows = []
    for seed in seeds:
        for index, choices in enumerate(SETS):
            latency = 5 + (11 * index % 15)
            row: dict[str, Any] = {
                "protocol": PROTOCOL.id,
                "candidate": f"{index:016x}",
                "graph_id": KNOWN.to_graph(choices, FEATURES).id,
                "label": KNOWN.label(choices),
                **{f"choice.{k}": json.dumps(choices[k]) if k in choices else "" for k in KNOWN.dimensions},
                "seed": seed,
                "params": 100 + index,
                "macs": macs_of(index),
                "neck_params": 10 + index,
                "neck_macs": 500 + index,
                "latency_ms": latency if measured else "",
                "latency_low_ms": latency - 1 if measured else "",
                "latency_high_ms": latency + 1 if measured else "",
                **{f"ap_{k}": ap_of(index, seed, k) for k in (1, 2, 3)},
                "loss": 1.5 + seed,
                "train_s": 30 + seed,
                "cpu_s": 60 + seed,
            }
            rows.append({name: str(value) for name, value in row.items()})
    return rows


@pytest.fixture
def table(tmp_path: Path) -> TabularBenchmark:
    path, left_out = write_table(tmp_path, METADATA, rows_of())
    assert left_out == []
    return load(path)


@pytest.fixture
def unmeasured(tmp_path: Path) -> TabularBenchmark:
    return load(write_table(tmp_path, METADATA, rows_of((3,), measured=False))[0])


# -- asking -----------------------------------------------------------------------------------------------------------


def test_every_network_is_found_by_every_name_it_has(table):
    assert len(table) == len(SETS) == 15
    for index, choices in enumerate(SETS):
        graph = KNOWN.to_graph(choices, FEATURES)
        record = table.query(choices)
        assert (record.candidate, record.graph_id, record.params) == (f"{index:016x}", graph.id, 100 + index)
        assert record == table.query(graph) == table.query(graph.id) == table.query(record.candidate)
        assert table.choices(graph) == choices
        assert table.graph(record.candidate) == graph


def test_figures_are_those_recorded(table):
    for index, choices in enumerate(SETS):
        for epoch in (1, 2, 3):
            for seed in (0, 1):
                record = table.query(choices, epoch, seed)
                assert (record.epochs, record.seeds) == (epoch, (seed,))
                assert record.ap == ap_of(index, seed, epoch)
                assert record.train_s == pytest.approx((30 + seed) * epoch / 3)
                assert record.cpu_s == pytest.approx((60 + seed) * epoch / 3)
            mean = table.query(choices, epoch)
            assert mean.seeds == (0, 1)
            assert mean.ap == pytest.approx((ap_of(index, 0, epoch) + ap_of(index, 1, epoch)) / 2)
        last = table.query(choices)
        assert last == table.query(choices, 3, None) == table.query(choices, np.int64(3))
        assert (last.loss, last.macs, last.train_s) == (2.0, macs_of(index), 30.5)
        assert np.isnan(table.query(choices, 2).loss)
        assert (last.latency_low_ms, last.latency_ms, last.latency_high_ms) == tuple(
            5 + (11 * index % 15) + d for d in (-1, 0, 1)
        )


@pytest.mark.parametrize(
    "spelling",
    [
        {"merge": "sum", "channels": 16, "family": "fpn"},
        {"family": "fpn", "channels": 16},  # the family's default merge
        {"family": "fpn", "channels": 16, "norm": "group", "out_levels": [3, 4, 5]},
        {"family": "fpn", "channels": 16, "out_levels": (3, 4, 5), "backbone": "made_up_net"},
        {"family": "fpn", "channels": np.int64(16), "merge": np.str_("sum")},
    ],
)
def test_other_spellings_of_a_network_find_it(table, spelling):
    wanted = table.query({"family": "fpn", "channels": 16, "merge": "sum"})
    for _ in range(2):
        assert table.query(spelling) is wanted


def test_a_graph_with_other_names_is_the_same_network(table):
    graph = table.graph(SETS[0])
    data = json.loads(graph.to_json())
    text = json.dumps(data)
    for node in data["nodes"]:
        text = text.replace(f'"{node["name"]}"', f'"renamed_{node["name"]}"')
    renamed = fb.NeckGraph.from_json(text)
    assert renamed != graph
    assert table.query(renamed) is table.query(SETS[0])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("00", "unknown network of table 'made-up', which holds 15 networks .*family fpn, pafpn, top_only"),
        ({"family": "fpn", "channels": 12}, r"channels 8, 16, 24.*did you mean 'fpn \d+ch"),
        ({"family": "fpn", "channels": 16, "norm": "none"}, "unknown network"),
        ({"family": "fpn", "channels": 16, "mrge": "sum"}, "did you mean 'merge'"),
        ({"family": "bifpn", "channels": 16}, "unknown network"),
        ({"family": "fpnn", "channels": 16}, "did you mean 'fpn'"),
        ({"channels": 16}, "names no neck"),
        ({}, "names no neck"),
        ({"family": "fpn", "channels": 16, "backbone": "made_up_nte"}, "did you mean 'made_up_net'"),
        ({"family": "fpn", "channels": "16"}, "positive whole number"),
        ({"family": "fpn", "channels": {1, 2}}, "got a set"),
    ],
)
def test_what_is_not_in_the_table_says_what_is(table, network, message):
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            table.query(network)
    with pytest.raises(UnknownNameError):
        table.query(fb.create_graph("bifpn", FEATURES, channels=16))


@pytest.mark.parametrize("epochs", [0, 4, -1, 1.5, "3"])
def test_epochs_it_lacks_are_refused(table, epochs):
    with pytest.raises(InputError, match="1 to 3"):
        table.query(SETS[0], epochs)


@pytest.mark.parametrize("seed", [2, -1, 0.5, "0"])
def test_seeds_it_lacks_are_refused(table, seed):
    with pytest.raises(InputError, match="seeds 0, 1"):
        table.query(SETS[0], seed=seed)


def test_a_record_is_frozen(table):
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.query(SETS[0]).ap = 50.0


def test_what_was_not_measured_is_no_number_and_no_objective(unmeasured):
    assert not unmeasured.has_latency
    assert np.isnan(unmeasured.query(SETS[0]).latency_ms)
    assert unmeasured.objectives == ("ap", "macs")
    assert [o.name for o in unmeasured.space.objectives] == ["ap", "macs"]
    for call in (unmeasured.front, unmeasured.reference):
        with pytest.raises(InputError, match="no latencies"):
            call(("ap", "latency_ms"))
    with pytest.raises(InputError, match="no latencies"):
        unmeasured.evaluator(KNOWN)


# -- judging ----------------------------------------------------------------------------------------------------------


def values_of(seed: int | None) -> list[tuple[float, float]]:
    seeds = (0, 1) if seed is None else (seed,)
    return [(sum(ap_of(i, s, 3) for s in seeds) / len(seeds), float(macs_of(i))) for i in range(len(SETS))]


def area(points: list[tuple[float, float]], worst: float) -> float:
    """Dominated by points of (AP, cost), below the worst cost: strip by strip of cost."""
    costs = sorted({cost for _, cost in points} | {worst})
    strips = itertools.pairwise(costs)
    return sum((end - cost) * max(ap for ap, own in points if own <= cost) for cost, end in strips)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_front_is_what_nothing_beats(table, seed):
    values = values_of(seed)
    beaten = {
        i
        for i, (ap, cost) in enumerate(values)
        for other_ap, other_cost in values
        if other_ap >= ap and other_cost <= cost and (other_ap, other_cost) != (ap, cost)
    }
    found = table.front(("ap", "macs"), seed=seed)
    assert {int(record.candidate, 16) for record in found} == set(range(len(SETS))) - beaten
    assert [r.ap for r in found] == sorted((r.ap for r in found), reverse=True)
    assert [r.macs for r in table.front(("macs", "ap"), seed=seed)] == sorted(r.macs for r in found)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_share_of_the_hypervolume_is_that_of_areas(table, seed):
    values = values_of(seed)
    worst = max(cost for _, cost in values)
    assert table.reference(("ap", "macs")) == (0.0, worst)
    for chosen in ([0], [3, 5], [1, 1, 8, 14], list(range(15)), [6]):
        share = table.hypervolume_fraction([SETS[i] for i in chosen], ("ap", "macs"), seed=seed)
        assert share == pytest.approx(area([values[i] for i in chosen], worst) / area(values, worst))
        best = max(ap for ap, _ in values)
        assert table.regret((SETS[i] for i in chosen), seed=seed) == pytest.approx(
            best - max(values[i][0] for i in chosen)
        )
    assert table.hypervolume_fraction(SETS) == 1.0
    assert table.hypervolume_fraction([]) == 0.0
    assert table.regret([]) == pytest.approx(max(ap for ap, _ in values_of(None)))


def test_objectives_are_checked(table):
    with pytest.raises(UnknownNameError, match="did you mean 'macs'"):
        table.front(("ap", "mac"))
    for objectives in ((), ("ap", "ap")):
        with pytest.raises(InputError, match="each once"):
            table.front(objectives)


def test_its_rows_are_a_table_of_the_house(table):
    rows = table.table()
    assert len(rows) == 2 * len(SETS)
    objectives = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]
    assert set(front(rows, objectives).candidate) == {r.candidate for r in table.front(("ap", "macs"))}
    assert json.loads(rows.ap_curve[16]) == [[k, ap_of(8, 0, k)] for k in (1, 2, 3)]


# -- searching --------------------------------------------------------------------------------------------------------


def test_the_driver_searches_it(table, tmp_path):
    space = table.space.replace(sampler={"kind": "random"}, budget={"trials": 6}, rungs={"epochs": [1]}, enqueue="none")
    study, result = run_study(space, table.evaluator(space), PROTOCOL, tmp_path / "study", seed=1)
    assert (result.status, result.counts.get("failed", 0)) == ("finished", 0)
    rows = study.table()
    complete = rows[rows.status == "complete"]
    assert len(complete)
    assert (rows.status == "stopped").any()
    for row in complete.to_dict("records"):
        record = table.query(row["candidate"], seed=1)
        assert (row["ap"], row["latency_ms"], row["params"]) == (record.ap, record.latency_ms, record.params)
        assert json.loads(row["ap_curve"])[-1] == [3, record.ap]
    stopped = rows[rows.status == "stopped"].iloc[0]
    assert (stopped.ap, stopped.epochs) == (table.query(stopped.candidate, 1, 1).ap, 1)


def test_a_network_outside_fails_alone(table, tmp_path):
    space = table.space.replace(enqueue=[{"family": "bifpn", "channels": 16}], budget={"trials": 2})
    study, _ = run_study(space, table.evaluator(space), PROTOCOL, tmp_path / "study")
    rows = study.table()
    assert rows.status[0] == "failed"
    assert "unknown network of table 'made-up'" in rows.reason[0]
    assert (rows.status == "complete").sum() == 2


def test_a_seed_it_lacks_ends_the_run_before_anything_is_paid(table, tmp_path):
    with pytest.raises(DataError, match=r"seed 2 is not in table 'made-up': it has the seeds 0, 1"):
        run_study(table.space, table.evaluator(), PROTOCOL, tmp_path / "study", seed=2)
    assert not fb.load_study(tmp_path / "study").table().paid.any()


def test_spaces_it_cannot_answer_are_refused_at_once(table):
    with pytest.raises(InputError, match="up to 5 seeds and table 'made-up' has 2"):
        table.evaluator(table.space.replace(budget={"confirm": 0.2}))
    table.evaluator(table.space.replace(budget={"confirm": 0.2, "seeds": 2}))
    with pytest.raises(InputError, match=r"epochs: expected 3 of table 'made-up', got 8"):
        table.evaluator(table.space.replace(training={"epochs": 8}))


# -- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_not_complete_is_left_out_and_said(tmp_path):
    rows = rows_of()[:-1]
    rows[4] |= {"latency_ms": "", "latency_low_ms": "", "latency_high_ms": ""}
    path, left_out = write_table(tmp_path, METADATA, rows)
    assert left_out == [
        "seed 1 is left out: 14 of 15 networks have it",
        "latency is left out: 14 of 15 networks have it",
    ]
    table = load(path)
    assert (table.seeds, table.has_latency, len(table)) == ((0,), False, 15)


@pytest.mark.parametrize("rows", [[], rows_of((0,))[:-1] + rows_of((1,))[1:]])
def test_nothing_is_written_where_nothing_is_complete(tmp_path, rows):
    with pytest.raises(InputError, match="no seed is complete"):
        write_table(tmp_path, METADATA, rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\\b", "", ".", "..", "a\0b", "a\nb", "x" * 300, "C:x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "deep"
    folder.mkdir()
    with pytest.raises(InputError, match="table name"):
        write_table(folder, METADATA.model_copy(update={"name": name}), rows_of())
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]
    with pytest.raises(InputError, match="unknown table"):
        load(f"../{name}" if name else "..")


def test_a_newer_file_is_refused(table, tmp_path):
    file = tmp_path / "made-up.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2', 1))
    with pytest.raises(FormatVersionError, match="schema_version 2"):
        load(tmp_path / "made-up.csv")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ap_2", "", "line 4"),
        ("ap_2", "nan", "line 4: expected the finite numbers"),
        ("seed", "1", "line 19: .* occurs twice with seed 1"),
        ("protocol", "other", "line 4: expected protocol .* got other"),
        ("params", "7", "line 19: .* other choices or costs"),
        ("latency_low_ms", "", "line 4"),
        ("graph_id", None, "line 2"),
    ],
)
def test_a_damaged_file_is_refused(table, tmp_path, column, value, message):
    path = tmp_path / "made-up.csv"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if value is None:
        rows = [{k: v for k, v in row.items() if k != column} for row in rows]
    else:
        rows[2][column] = value
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_file_of_half_its_rows_is_refused(table, tmp_path):
    path = tmp_path / "made-up.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"of each network, got"):
        load(path)
    path.write_text(lines[0])
    with pytest.raises(InputError, match="no seed is complete"):
        load(path)
    (tmp_path / "made-up.json").write_text("{}")
    with pytest.raises(InputError, match=r"made-up.json: name"):
        load(path)
    (tmp_path / "made-up.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load(path)


# -- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tabular.list_tables())
def test_a_shipped_table_is_that_of_its_space(name):
    table = load(name)
    metadata = table.metadata
    assert name in list_spaces()
    assert metadata.space == shipped_files()[name].read_text()
    assert metadata.protocol.id == metadata.protocol_id
    sets = list(Space.load(name).enumerate())
    assert len(table) == len(sets)
    assert set(table.seeds) >= {0}
    (entry,) = table.space.backbones
    backbone = BackboneId(entry.name, metadata.weights, entry.levels)
    protocol = metadata.protocol
    for choices in sets[::7]:
        record, graph = table.query(choices), table.space.to_graph(choices, table.features)
        candidate = Candidate(backbone, graph, protocol.head, protocol.image_size)
        assert (record.graph_id, record.candidate) == (graph.id, candidate.id)
        assert record.neck_params == fb.cost(graph, protocol.image_size).params
        assert 0 < record.ap < 100


def test_unknown_tables_are_named():
    assert tabular.list_tables() == ["curves"]
    with pytest.raises(UnknownNameError, match="did you mean 'curves'"):
        load("curvse")
    with pytest.raises(InputError, match="cannot be read"):
        load("elsewhere/curves.csv")


def test_the_examples_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "guide" / "search-methods.md").read_text()
    (code,) = [part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "tabular" in part]
    names: dict[str, Any] = {}
    exec(code, names)
    table, evaluated = names["table"], names["evaluated"]
    assert len(evaluated) == len({table.index(choices) for choices in evaluated}) == 32
    assert 0 < table.hypervolume_fraction(evaluated) < 1
    assert 0 <= table.regret(evaluated) < 5
    assert (names["study"].table().status == "complete").any()


def test_it_is_searched_without_torch(tmp_path):
    code = (
        "import sys, fpn_bench as fb; from fpn_bench.search import run_study; table = fb.tabular.load('curves'); "
        "space = table.space.replace(budget={'trials': 12}); "
        f"study, _ = run_study(space, table.evaluator(space), table.metadata.protocol, {str(tmp_path / 'study')!r}); "
        "print(table.hypervolume_fraction(study.table().candidate)); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1
