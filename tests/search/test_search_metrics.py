"""Any metric as an objective and as a bound: over real tiny trainings, and one that is registered from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fpn_bench as fb
from fpn_bench.analysis import compare_tables, make_table, parse_objectives
from fpn_bench.errors import InputError, SpaceError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.metrics import Metric, metrics, register, unregister
from fpn_bench.profiling import telemetry
from fpn_bench.reports import comparison_text, gather, markdown_page, report_info
from fpn_bench.search import Space
from fpn_bench.search.api import search

SPACE = {
    "name": "tiny",
    "backbone": {"name": "mobilenetv3_small_050"},
    "data": {"kind": "synthetic", "train_images": 6, "val_images": 4, "image_size": [96, 96]},
    "image_size": [64, 64],
    "head": {"kind": "fcos", "convs": 0},
    "training": {"epochs": 1},
    "neck": {"family": "fpn", "channels": {"choices": [8, 16]}, "repeats": {"choices": [1, 2]}},
    "objectives": {"ap": "maximise", "macs": "minimise"},
    "budget": {"trials": 3},
    "enqueue": "none",
}
GUIDE = Path(__file__).parents[2] / "docs" / "extending" / "metric.md"


@pytest.fixture
def where(tmp_path):
    return {"results": tmp_path / "results", "cache": tmp_path / "cache"}


@pytest.fixture
def node_count():
    """A metric of this test's own, gone again afterwards."""
    metric = Metric(
        "node_count",
        "Nodes",
        "minimize",
        "static",
        "nodes of the neck",
        "int",
        digits=0,
        compute=lambda row: len(NeckGraph.from_json(row["graph"]).nodes),
    )
    yield register(metric)
    if metric in metrics():
        unregister("node_count")


def nodes_in(text):
    """Counted in the plain JSON, without the package."""
    return len(json.loads(text)["nodes"])


def test_ap50_and_peak_memory_are_searched_reported_and_compared(where):
    objectives = {"peak_mib": "minimise", "ap50": "maximise"}
    space = Space.from_dict({**SPACE, "objectives": objectives, "budget": {"trials": 2}})
    study = search(space, **where)
    table = study.table()
    assert list(table.status) == ["complete"] * 2
    assert table.ap50.notna().all()
    assert (table.peak_mib > 50).all()  # a process with torch in it
    assert study.metadata()["objectives"][1] == {"name": "ap50", "direction": "maximize"}

    best = table.sort_values(["ap50", "peak_mib"], ascending=[False, True]).iloc[0]
    assert best.candidate in set(study.front().candidate)
    page = markdown_page(report_info(table, study.metadata()))
    assert r"AP50 \[95 %\]" in page
    assert "Peak memory (MiB)" in page
    assert f"{best.peak_mib:.1f}" in page

    other = search(space, name="other", seed=1, share=False, **where)
    found = compare_tables(table, other.table(), metadata=(study.metadata(), other.metadata()))
    assert [o.name for o in found.objectives] == ["ap50", "peak_mib"]
    both = found.shared.set_index("candidate")
    for name, row in both.iterrows():
        a, b = (t.set_index("candidate").loc[name] for t in (table, other.table()))
        assert row.ap50_difference == pytest.approx(b.ap50 - a.ap50)
        assert row.peak_mib_difference == pytest.approx(b.peak_mib - a.peak_mib)
        assert row.ap50_verdict in ("better", "worse", "same", "unclear")


def test_two_trained_objectives_with_further_seeds(where):
    space = Space.from_dict(
        {
            **SPACE,
            "objectives": {"ap": "maximise", "ap50": "maximise"},
            "budget": {"trials": 5, "confirm": 0.5, "seeds": 3},
        }
    )
    table = search(space, **where).table()
    assert set(table.status) <= {"complete", "repeat"}
    assert (table.status == "complete").sum() == 5


@pytest.mark.parametrize("sampler", ["known_cost", "tpe", "evolution"])
def test_a_metric_from_outside_is_an_objective_and_a_bound(where, node_count, sampler):
    space = Space.from_dict(
        {
            **SPACE,
            "objectives": {"ap": "maximise", "node_count": "minimise"},
            "sampler": {"kind": sampler, "startup_trials": 1},
        }
    )
    study = search(space, **where)
    table = study.table()
    assert table.node_count.tolist() == [nodes_in(graph) for graph in table.graph]
    assert table.node_count.nunique() > 1
    page = markdown_page(report_info(table, study.metadata()))
    assert "Nodes" in page
    found = compare_tables(table, table, metadata=(study.metadata(), study.metadata()))
    assert "node_count" in found.front.members
    assert (found.shared.node_count_difference == 0).all()
    assert comparison_text(found).headline.startswith("B is the same as A")

    least = int(table.node_count.min())
    bounded = space.replace(name="bounded", constraints=[f"node_count <= {least}"])
    rows = search(bounded, share=False, **where).table()
    assert rows.loc[rows.status == "complete", "node_count"].tolist() == [least] * int(
        (rows.status == "complete").sum()
    )
    assert (rows.status == "complete").any()
    with pytest.raises(SpaceError, match=rf"node_count {least}"):
        search(space.replace(name="none", constraints=["node_count <= 1"]), **where)

    unregister("node_count")
    again = fb.load_study(where["results"] / "tiny").table()
    assert "node_count" not in again
    assert again.ap.equals(table.ap)
    with pytest.raises(SpaceError, match="unknown objective 'node_count'"):
        Space.from_dict(space.raw)


def test_a_metric_may_be_better_the_more_of_it_there_is_and_be_computed_of_what_was_trained(where):
    register(Metric("ap_per_mac", "AP per GMAC", "maximize", "trained", noise="seeds",
                    compute=lambda row: 1e9 * row["ap"] / row["macs"]))  # fmt: skip
    register(Metric("depth", "Depth", "maximize", "static", compute=lambda row: nodes_in(row["graph"])))
    try:
        space = Space.from_dict({**SPACE, "objectives": {"ap_per_mac": "maximise", "depth": "maximise"}})
        study = search(space, **where)
        table = study.table()
        assert np.allclose(table.ap_per_mac, 1e9 * table.ap / table.macs.astype(float))
        assert study.front().depth.max() == table.depth.max()
        chance = gather(table, study.metadata()).front.front_probability
        assert chance.isna().all()  # one seed each, and nothing is known beforehand
        assert "How sure the front is cannot be said" in markdown_page(report_info(table, study.metadata()))
    finally:
        unregister("ap_per_mac")
        unregister("depth")


def test_workers_in_processes_that_do_not_know_a_metric_say_so(where, node_count):
    space = Space.from_dict({**SPACE, "objectives": {"ap": "maximise", "node_count": "minimise"}})
    with pytest.raises(InputError, match="expected the metric 'node_count' of the space in each worker's process"):
        search(space, workers=2, **where)


def test_energy_of_a_device_that_does_not_tell_is_one_clear_line(where, monkeypatch):
    monkeypatch.setattr(telemetry, "_RAPL", Path("/nowhere"))
    for wanted in ({"objectives": {"ap": "maximise", "energy_j": "minimise"}}, {"constraints": ["energy_j <= 1"]}):
        with pytest.raises(InputError, match=r"expected a device that reports its energy.*got cpu.*leave energy_j out"):
            search(Space.from_dict({**SPACE, **wanted}), **where)


def test_energy_of_a_device_that_tells(where, monkeypatch, tmp_path):
    counter = tmp_path / "rapl" / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("0")
    monkeypatch.setattr(telemetry, "_RAPL", tmp_path / "rapl")
    read = Path.read_text

    def rising(path, *args, **kwargs):
        if path == counter:
            counter.write_text(str(int(read(path)) + 1_000_000))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", rising)
    space = Space.from_dict(
        {**SPACE, "objectives": {"ap": "maximise", "energy_j": "minimise"}, "budget": {"trials": 1}}
    )
    table = search(space, **where).table()
    assert table.status.tolist() == ["complete"]
    assert (table.energy_j > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {"ap50": "minimise"}}, "objectives.ap50: expected maximize, got minimise"),
        ({"constraints": ["ap50 >= 20"]}, "unknown constrained quantity 'ap50'"),
        ({"objectives": {"ap50": "maximise"}, "training": {"epochs": 4}, "rungs": {"epochs": [2]}},
         "rungs: expected ap as the one trained objective"),
    ],
)  # fmt: skip
def test_what_a_metric_cannot_be(changes, message):
    with pytest.raises(SpaceError, match=message):
        Space.from_dict({**SPACE, **changes})


def test_names_are_registered_once_and_unknown_ones_are_refused(node_count):
    with pytest.raises(InputError, match="registered already"):
        register(node_count)
    with pytest.raises(InputError, match="lower-case"):
        register(Metric("Two Words", "", "minimize", "static"))
    with pytest.raises(InputError, match="expected noise='seeds' of 'loss'"):
        register(Metric("loss", "Loss", "minimize", "trained"))
    with pytest.raises(UnknownNameError, match="metric 'nodes'"):
        unregister("nodes")
    assert parse_objectives([{"name": "node_count", "direction": "minimize"}])
    assert "node_count" in make_table([])


def test_the_guide_to_a_metric_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "edge_count" in done.stdout
