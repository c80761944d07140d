"""The live page: every study, filters, selection, hostile text; and in a real browser, over a real search."""

from __future__ import annotations

import base64
import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pandas as pd
import pytest
from edges import TEXT_FIELDS
from search_evaluator import PROTOCOL, InstantEvaluator, space
from tables import OBJECTIVES, UNTRAINED, graph_json, realistic_rows, realistic_table, row, study_meta

from fpn_bench.analysis import Objective, empty_table, make_table, pareto_mask, parse_objectives
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.reports import report_info
from fpn_bench.reports.dashboard import make_app
from fpn_bench.reports.dashboard_blocks import Page
from fpn_bench.reports.dashboard_callbacks import key_of, ranges_after, with_ranges
from fpn_bench.reports.dashboard_feed import MOST_LIVE, Feed, Filters, narrow
from fpn_bench.reports.dashboard_server import listen, server_of
from fpn_bench.reports.dashboard_status import running_now, status_lines
from fpn_bench.search import Study, load_study, run_study

HERE = Path(__file__).parents[1]
MACS = Objective("macs", "minimize")


def minimize(name: str) -> dict[str, str]:
    return {"name": name, "direction": "minimize"}


def studied(table: pd.DataFrame, **meta: Any) -> list[tuple[pd.DataFrame, dict[str, Any], Any]]:
    return [(table, study_meta(**meta), None)]


class Browser:
    """What a browser asks of the server: the layout, then callbacks; it keeps the page's state."""

    def __init__(self, app: Any) -> None:
        self.client = app.server.test_client()
        self.callbacks = self.get("/_dash-dependencies")
        self.state: dict[str, Any] = {}
        self._keep(self.get("/_dash-layout"))

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200
        return json.loads(answer.text)

    def _keep(self, component: Any) -> None:
        """The properties of all components with an id, also of those that a callback made."""
        if isinstance(component, list):
            for child in component:
                self._keep(child)
        elif isinstance(component, dict) and "props" in component:
            props = component["props"]
            if "id" in props:
                name = self.name(props["id"])
                for prop, value in props.items():
                    self.state[f"{name}.{prop}"] = value
            self._keep(props.get("children"))

    @staticmethod
    def name(id: Any) -> str:
        return json.dumps(id, sort_keys=True, separators=(",", ":")) if isinstance(id, dict) else id

    def each(self, wanted: str, make: Callable[[Any], Any]) -> Any:
        """Made of the component of an id; of each that is there, where the id says `ALL`."""
        if "ALL" not in wanted:
            return make(wanted)
        kind = json.loads(wanted)["type"]
        names = dict.fromkeys(name.rpartition(".")[0] for name in self.state if name.startswith('{"at"'))
        return [make(id) for id in map(json.loads, names) if id["type"] == kind]

    def entry(self, id: Any, prop: str) -> dict[str, Any]:
        return {"id": id, "property": prop, "value": self.state.get(f"{self.name(id)}.{prop}")}

    def call(self, output: str, changed: str) -> None:
        """The callback whose outputs name ``output``, as if the property ``changed`` had."""
        callback = next(c for c in self.callbacks if output in c["output"])

        def filled(entries: list[dict[str, str]]) -> list[Any]:
            return [self.each(e["id"], lambda id, p=e["property"]: self.entry(id, p)) for e in entries]

        outputs = []
        for part in callback["output"].strip(".").split("..."):
            id, _, prop = part.rpartition(".")
            outputs.append(self.each(id, lambda id, p=prop: {"id": id, "property": p}))
        body = {
            "output": callback["output"],
            "outputs": outputs if callback["output"].startswith("..") else outputs[0],
            "inputs": filled(callback["inputs"]),
            "state": filled(callback["state"]),
            "changedPropIds": [changed],
        }
        answer = self.client.post("/_dash-update-component", json=body)
        if answer.status_code == 204:
            return
        assert answer.status_code == 200, answer.text
        for name, props in json.loads(answer.text)["response"].items():
            for prop, value in props.items():
                plain = prop.partition("@")[0]
                if name == "live-page":
                    self.state = {
                        k: v for k, v in self.state.items() if not k.startswith('{"at"') or "rows" in k or "bound" in k
                    }
                self.state[f"{name}.{plain}"] = value
                self._keep(value)

    def look(self) -> None:
        """What one tick of the clock brings about."""
        before = dict(self.state)
        self.call("live-version.data", "live-tick.n_intervals")
        if self.state.get("live-told.data") != before.get("live-told.data"):
            self.call("live-head.children", "live-told.data")
        if self.state.get("live-version.data") != before.get("live-version.data"):
            self.filtered()

    def look_until(self, seen: Callable[[], bool]) -> None:
        """Ticks until something is there: a study is not read again at once."""
        end = time.monotonic() + 30
        while not seen():
            assert time.monotonic() < end
            time.sleep(0.05)
            self.look()

    def filtered(self, changed: str = "live-version.data") -> None:
        self.call("live-page.children", changed)
        self.shown("live-shown.data")

    def shown(self, changed: str) -> None:
        self.call("live-panel.children", changed)
        self.call(".figure", changed)
        self.call('"designs"}.children', changed)

    def choose(self, key: str | None) -> None:
        self.state["live-chosen.data"] = key
        self.shown("live-chosen.data")

    def text(self, *names: str) -> str:
        """What is written in these components, or on the whole page."""
        found: list[str] = []

        def collect(value: Any) -> None:
            if isinstance(value, list):
                for child in value:
                    collect(child)
            elif isinstance(value, dict) and "props" in value:
                id = self.name(value["props"]["id"]) if "id" in value["props"] else None
                collect(self.state.get(f"{id}.children") if id else value["props"].get("children"))
            elif value is not None:
                found.append(str(value))

        for name in names or ("head", "notes", "subtitle", "page", "panel"):
            collect(self.state.get(f"live-{name}.children"))
        return "\n".join(found)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        return {
            json.loads(name.rpartition(".")[0])["at"]: value
            for name, value in self.state.items()
            if name.endswith('"type":"plot"}.figure')
        }

    @property
    def designs(self) -> list[str]:
        """Keys of the designs in the list, as it is sorted and paged."""
        return [line["props"]["data-key"] for line in self._lines]

    @property
    def _lines(self) -> list[dict[str, Any]]:
        scroll = self.state['{"at":"design-table","type":"designs"}.children'][0]
        return scroll["props"]["children"]["props"]["children"][1]["props"]["children"]

    def marked(self, mark: str) -> set[str]:
        """Those of them that are marked as ``front`` or ``selected``."""
        return {line["props"]["data-key"] for line in self._lines if mark in line["props"]["className"].split()}


def opened(studies: Sequence[Any], **options: Any) -> Browser:
    browser = Browser(make_app(lambda: studies, **options))
    browser.look()
    return browser


# -- every study ------------------------------------------------------------------------------------------------------

EDGES: dict[str, tuple[pd.DataFrame, list[dict[str, str]], str]] = {
    "a search": (realistic_table(24), OBJECTIVES, "published necks"),
    "empty": (empty_table(), OBJECTIVES, "no trial yet"),
    "one running": (
        make_table([{"study": "s", "trial": 0, "status": "running", "source": "sampled"}]),
        OBJECTIVES,
        "Running now: 1",
    ),
    "one trial": (make_table([row(0, graph=graph_json("fpn", 64))]), OBJECTIVES, "1 neck on the front"),
    "all rejected": (
        make_table([row(i, status="rejected", reason=f"macs {i} > 0", **UNTRAINED) for i in range(3)]),
        OBJECTIVES,
        "there is no front (3 rejected)",
    ),
    "all failed": (
        make_table([row(i, status="failed", **UNTRAINED, macs=None, params=None) for i in range(3)]),
        OBJECTIVES,
        "there is no front (3 failed)",
    ),
    "single objective": (realistic_table(12), OBJECTIVES[:1], "published necks"),
    "four objectives": (
        realistic_table(16, seeds=2),
        [*OBJECTIVES, minimize("latency_ms"), minimize("params")],
        "published necks",
    ),
    "infinite": (
        make_table([row(0, latency_ms=float("inf")), row(1)]),
        [OBJECTIVES[0], minimize("latency_ms")],
        "on the front",
    ),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_every_study_has_a_page_that_says_how_it_stands(edge):
    table, objectives, words = EDGES[edge]
    browser = opened(studied(table, objectives=objectives))
    assert words in browser.text()
    for key in browser.designs[:1] if len(table) else ():
        browser.choose(key)
        assert browser.state["selected.hidden"] is False
        assert "Status" in browser.text("panel")
    browser.choose("no such design")
    assert "not among the designs" in browser.text("panel")
    browser.choose(None)
    assert browser.state["selected.hidden"] is True


def test_the_page_shows_what_the_report_shows_and_knows_no_section_by_name():
    table, meta = realistic_table(60), study_meta()
    report = report_info(table, meta, most=MOST_LIVE)
    browser = opened(studied(table))
    text = browser.text()
    for section in report.sections:
        assert section.title in text
        assert all(sentence.text in text for sentence in section.sentences)
    renamed = tuple(replace(s, id=f"new {i}", title=f"New {i}") for i, s in enumerate(report.sections))
    live = Page(report.evidence, renamed, None).live
    assert len(live) == len(Page(report.evidence, report.sections, None).live)
    plots = {b.id: b.draw() for s in report.sections for b in s.blocks if hasattr(b, "draw")}
    assert set(browser.figures) == set(plots)
    for name, figure in browser.figures.items():
        assert figure["data"] == json.loads(plots[name].to_json())["data"]


# -- looking again ----------------------------------------------------------------------------------------------------


def test_a_finished_trial_is_seen_and_nothing_is_sent_when_nothing_changed():
    rows = realistic_rows(20)
    browser = Browser(make_app(lambda: studied(make_table(rows)), every_s=0.0))
    browser.look()
    before = dict(browser.state)
    browser.look()
    assert browser.state == before
    done = [r for r in rows if r["status"] == "complete"]
    newest = {"trial": 20, "candidate": "new", "ap": 99.0, "neck_label": "the newest"}
    rows.append(done[-1] | newest | {"started_at": "2026-02-03T20:00:00+00:00"})
    browser.look_until(lambda: "the newest" in browser.text("head"))
    assert browser.designs[0] == rows[-1]["candidate"]
    assert any(
        "the newest" in t for trace in browser.figures["front-macs"]["data"] for t in trace.get("hovertext") or []
    )
    assert (
        browser.state["live-page.children"] is before["live-page.children"]
    )  # nothing was made anew: plots keep their zoom


def test_a_study_that_cannot_be_read_says_so_and_is_read_again():
    away: list[Exception] = []

    def read() -> Any:
        if away:
            raise away[0]
        return studied(realistic_table(10))

    browser = Browser(make_app(read, every_s=0.0))
    browser.look()
    text = browser.text("page")
    away.append(OSError("the <b>database</b>\nis gone"))
    browser.look_until(lambda: "cannot be read" in browser.text("head"))
    assert "cannot be read at the moment, what is shown is older: the <b>database</b> is gone" in browser.text("head")
    assert browser.text("page") == text
    away.clear()
    browser.look_until(lambda: "cannot be read" not in browser.text("head"))


def test_a_study_is_read_by_one_looker_at_a_time():
    reading, go = threading.Event(), threading.Event()
    reads = []

    def read() -> Any:
        reads.append(1)
        if len(reads) > 1:
            reading.set()
            assert go.wait(20)
        return studied(realistic_table(5))

    feed = Feed(read, every_s=0.0)
    first = threading.Thread(target=feed.refresh)
    first.start()
    assert reading.wait(20)
    feed.refresh()  # comes back at once, with what is there
    assert len(reads) == 2
    go.set()
    first.join(20)
    assert len(feed.rows) == 5


def test_pace_counts_the_trials_of_the_last_hour():
    now = datetime(2026, 2, 3, 12, tzinfo=UTC)
    ends = [timedelta(minutes=m) for m in (1, 30, 59, 61)]
    rows = [row(i, started_at=(now - end - timedelta(seconds=46)).isoformat()) for i, end in enumerate(ends)]
    rows.append(row(0, seed=1, started_at=rows[0]["started_at"]))  # another seed of a trial is no trial
    rows.append(row(9, status="running", **UNTRAINED, total_s=None))
    rows.append(row(10, started_at="no date"))
    lines = status_lines(Feed(lambda: studied(make_table(rows))), now)
    assert lines == [
        "6 complete, 1 running",
        "3 trials finished in the last hour",
        "the last one at 2026-02-03 11:59:00 UTC",
    ]
    running, finished = running_now(make_table(rows), parse_objectives(OBJECTIVES))
    assert list(running.rows["trial"]) == [9]
    assert finished.rows["trial"].iloc[0] == 0


def test_what_finished_last_is_named_as_the_designs_are():
    rows = [row(0), row(1, protocol="other"), row(2, status="failed", candidate="", **UNTRAINED)]
    for table in (make_table(rows), make_table([rows[0], rows[2]])):
        (finished,) = running_now(table, parse_objectives(OBJECTIVES))
        designs = report_info(table, study_meta(), mix_protocols=True).evidence.designs
        assert set(finished.rows["key"]) == set(designs["key"])


def test_a_section_that_comes_while_a_design_is_selected_is_shown():
    rows = [r for r in realistic_rows(60) if r["status"] == "complete"][:9]
    browser = Browser(make_app(lambda: studied(make_table(rows)), every_s=0.0))
    browser.look()
    assert "Rejected and failed" not in browser.text("page")
    rows.append(row(99, status="failed", reason="a new reason", **UNTRAINED))
    end = time.monotonic() + 30
    while "1 failed" not in str(browser.state["live-told.data"]):  # the data are there, the page is not arranged yet
        assert time.monotonic() < end
        browser.call("live-version.data", "live-tick.n_intervals")
    browser.choose(rows[0]["candidate"])
    browser.filtered()
    assert "a new reason" in browser.text("page")


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filters_leave_rows_out_and_say_so():
    rows = realistic_rows(60)
    browser = opened(studied(make_table(rows)))
    browser.state['{"at":"neck","type":"pick-rows"}.value'] = ["pafpn"]
    browser.state['{"at":"macs","type":"bound"}.value'] = 1.5
    browser.filtered('{"at":"neck","type":"pick-rows"}.value')
    kept = [r for r in rows if r["neck"] == "pafpn" and r["macs"] <= 1.5e9]
    assert set(browser.designs) == {r["candidate"] for r in kept}
    note = browser.text("notes")
    assert f"Filtered: {len(kept)} of 60 rows (neck family pafpn; MACs at most 1.500 G)" in note
    assert "front of the filtered designs" in note
    done = [r for r in kept if r["status"] == "complete"]
    best = pareto_mask([[r["ap"], r["macs"]] for r in done], ["maximize", "minimize"])
    front = {r["candidate"] for r, on in zip(done, best, strict=True) if on}
    assert browser.marked("front") == front
    browser.state['{"at":"macs","type":"bound"}.value'] = 0
    browser.filtered()
    assert "Nothing passes the filters (neck family pafpn; MACs at most 0.000 G)" in browser.text("notes")
    assert browser.text("page") == ""


def test_no_filter_puts_an_infeasible_design_on_a_front():
    best = {"ap": 99.0, "macs": 1_000_000, "latency_ms": 0.1, "neck_label": "infeasible", "neck": "bad"}
    rows = [*realistic_rows(12), row(30, **best, status="rejected", reason="params"), row(31, **best, status="failed")]
    browser = opened(studied(make_table(rows)))
    wanted: list[dict[str, Any]] = [
        {},
        {"status": ["rejected"]},
        {"status": ["complete", "rejected", "failed"]},
        {"neck": ["bad"]},
    ]
    for picked in wanted:
        for name in ("status", "neck"):
            browser.state[f'{{"at":"{name}","type":"pick-rows"}}.value'] = picked.get(name)
        browser.filtered()
        assert not browser.marked("front") & {"c0000000001e", "c0000000001f"}
        for name, figure in browser.figures.items():
            for trace in figure["data"]:
                inside = any("infeasible" in text for text in trace.get("hovertext") or [])
                assert not inside or "no final AP" in trace["name"], (name, trace["name"])


def test_a_candidate_passes_with_all_its_seeds_or_not_at_all():
    rows = make_table(
        [
            row(0, candidate="a", latency_ms=9.9),
            row(1, candidate="a", seed=1, source="confirmed", latency_ms=10.1),
            row(2, candidate="b", latency_ms=11.0),
            row(3, candidate="", status="running", **UNTRAINED, latency_ms=None),
        ]
    )
    bounded = Filters(bounds=(("latency_ms", 10.0),))
    assert list(narrow(rows, bounded, [Objective("latency_ms", "minimize")])["trial"]) == [0, 1, 3]
    assert list(narrow(rows, bounded, [Objective("latency_ms", "maximize")])["trial"]) == [2, 3]
    assert list(narrow(rows, Filters(picked=(("source", ("sampled",)),)), [MACS])["trial"]) == [0, 1, 2, 3]
    assert list(narrow(rows, Filters(picked=(("source", ("confirmed",)),)), [MACS])["trial"]) == []
    assert list(narrow(rows, Filters(picked=(("status", ("running",)),)), [MACS])["trial"]) == [3]


def test_studies_stand_side_by_side_on_the_same_axes():
    a = make_table([r | {"study": "a"} for r in realistic_rows(20)])
    b = make_table([r | {"study": "b", "candidate": f"b{i}"} for i, r in enumerate(realistic_rows(20, random_state=3))])
    browser = opened([(a, study_meta(name="a"), None), (b, study_meta(name="b"), None)])
    assert "a: " in browser.state["live-told.data"][0]
    one, two = browser.figures["study-0-0"], browser.figures["study-1-0"]
    assert one["layout"]["xaxis"]["range"] == two["layout"]["xaxis"]["range"]
    keys = [{k for t in f["data"] for k in t.get("customdata") or []} for f in (one, two)]
    assert keys[0] <= set(a["candidate"])
    assert keys[1] <= set(b["candidate"])
    browser.state["live-studies.value"] = [1]
    browser.filtered("live-studies.value")
    assert "study-0-0" not in browser.figures
    assert set(browser.designs) <= set(b["candidate"])


def test_studies_that_do_not_compare_are_refused():
    other = (realistic_table(5), study_meta(name="other", objectives=[OBJECTIVES[0], minimize("params")]), None)
    with pytest.raises(InputError, match="expected the same objectives in all studies of a front"):
        make_app(lambda: [*studied(realistic_table(5)), other])
    mixed = make_table([row(0), row(1, protocol="other")])
    with pytest.raises(ProtocolError):
        make_app(lambda: studied(mixed))
    assert "protocol" in opened(studied(mixed), mix_protocols=True).text()
    with pytest.raises(InputError, match="expected at least one study, got none"):
        make_app(list)


# -- selection --------------------------------------------------------------------------------------------------------


def test_a_selected_design_is_ringed_everywhere_and_told_in_full():
    browser = opened(studied(realistic_table(60)))
    plain = {name: len(figure["data"]) for name, figure in browser.figures.items()}
    key = next(key for key in browser.designs if key in browser.marked("front"))
    drawn = {n for n, f in browser.figures.items() if any(key in (t.get("customdata") or []) for t in f["data"])}
    assert len(drawn) >= 4
    browser.choose(key)
    ringed = {name for name, figure in browser.figures.items() if len(figure["data"]) > plain[name]}
    assert ringed == {n for n in drawn if any(t["type"] != "bar" for t in browser.figures[n]["data"])} & ringed
    assert {"front-macs", "front-3d"} <= ringed
    assert browser.marked("selected") == {key}
    assert "Latency, 95 % interval" in browser.text("panel")
    svg = browser.state["live-panel.children"][1]["props"]["children"]["props"]["src"]
    assert base64.b64decode(svg.removeprefix("data:image/svg+xml;base64,")).startswith(b"<svg")
    browser.choose(None)
    assert {name: len(figure["data"]) for name, figure in browser.figures.items()} == plain


def test_the_list_of_designs_is_sorted_searched_and_paged():
    rows = realistic_rows(120)
    browser = opened(studied(make_table(rows)))

    def ask(words: str = "", **state: Any) -> list[str]:
        browser.state["live-listed.data"] = {"by": "", "up": False, "page": 0} | state
        browser.state['{"at":"design-table","type":"find"}.value'] = words
        browser.call('"designs"}.children', "live-listed.data")
        return browser.designs

    done = sorted((r for r in rows if r["status"] == "complete"), key=lambda r: -r["ap"])
    assert ask() == [r["candidate"] for r in done[:25]]
    assert ask(page=1) == [r["candidate"] for r in done[25:50]]
    macs = {r["candidate"]: r["macs"] for r in rows}
    listed = ask(by="macs", up=True)
    told = [round(macs[key] / 1e9, 2) for key in listed]
    assert told == sorted(round(value / 1e9, 2) for value in macs.values())[: len(listed)]
    last = ask(by="ap", page=99)  # what has no AP stays last
    assert last == ask(by="ap", up=True, page=99)
    assert set(last) <= {r["candidate"] for r in rows if r["status"] != "complete"}
    assert set(ask("nan in EPOCH 3")) == {r["candidate"] for r in rows if r["status"] == "failed"}
    assert ask("no such words") == []
    assert ask(by="no such column") == ask()


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ({"points": [{"x": 1}, {"customdata": "a"}]}, "a"),
        ({"points": [{"customdata": ["no", "key"]}]}, None),
        ("c", "c"),
        (None, None),
        ("", None),
        ([], None),
    ],
)
def test_what_a_click_means(event, key):
    assert key_of(event) == key


def test_a_zoom_outlives_new_data():
    ranges = ranges_after({}, {"xaxis.range[0]": 1, "xaxis.range[1]": 2, "yaxis2.range": [3, 4], "autosize": True})
    assert ranges == {"xaxis": [1, 2], "yaxis2": [3, 4]}
    assert ranges_after(ranges, {"xaxis.autorange": True, "scene.camera": {}}) == {"yaxis2": [3, 4]}
    assert ranges_after(ranges, {"autosize": True}) == ranges
    rows = realistic_rows(20)
    browser = Browser(make_app(lambda: studied(make_table(rows)), every_s=0.0))
    browser.look()
    browser.state["live-zoomed.data"] = {"front-macs": {"xaxis": [0.5, 0.7]}}
    before = browser.state["live-version.data"]
    rows.append(rows[6] | {"trial": 20, "candidate": "new", "status": "complete", "ap": 40.0, "macs": 9_000_000_000})
    browser.look_until(lambda: browser.state["live-version.data"] != before)
    assert browser.figures["front-macs"]["layout"]["xaxis"]["range"] == [0.5, 0.7]
    report = report_info(make_table(rows), study_meta())
    (figure,) = (b.draw() for s in report.sections for b in s.blocks if getattr(b, "id", "") == "front-macs")
    assert with_ranges(figure, {"xaxis": [1, 2]}).layout.xaxis.range == (1, 2)
    assert figure.layout.xaxis.range != (1, 2)


def gallery(table: pd.DataFrame, **words: str) -> dict[str, Any]:
    image = {"name": "a.jpg", "width": 200, "height": 100, "jpeg": "AAAA", "truth": [[1, 2, 30, 40, 0]]} | words
    found = {c: [[[5, 6, 50, 60, 1, 0.9]]] for c in table["candidate"] if c}
    return {"classes": ["car", words.get("name", "bus")], "images": [image], "detections": found}


def test_sample_images_are_those_of_the_selected_design():
    table = realistic_table(30)
    samples = gallery(table)
    chosen = next(iter(samples["detections"]))
    samples["detections"][chosen] = [[[5, 6, 50, 60, 0, 0.77]]]
    browser = opened([(table, study_meta(), samples)])

    def drawn() -> str:
        part = browser.state['{"at":"samples 0","type":"part"}.children'][1]["props"]["children"][0]["props"][
            "children"
        ][0]
        return base64.b64decode(part["props"]["children"]["props"]["src"].partition(",")[2]).decode()

    assert "bus 0.90" in drawn()
    browser.choose(chosen)
    assert "car 0.77" in drawn()
    assert 'href="data:image/jpeg;base64,AAAA"' in drawn()


# -- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile",
    [
        "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{%scripts%}",
        '{"at":"x","type":"plot"}...a.b',
    ],
)
def test_hostile_text_stays_text(hostile):
    rows = [r | dict.fromkeys(TEXT_FIELDS, hostile) | {"choice." + hostile: hostile} for r in realistic_rows(16)]
    rows[0] |= {"graph": hostile, "candidate": hostile, "ap": 80.0}
    rows[1] |= {"graph": graph_json("fpn", 64).replace("lateral", json.dumps(hostile)[1:-1]), "ap": 90.0}
    table = make_table(rows)
    texts = {k: [hostile] for k in ("constraints", "warnings", "notes", "commands")}
    meta = study_meta(name=hostile, space=hostile, **texts, machine={hostile: hostile}, versions={hostile: hostile})
    app = make_app(lambda: [(table, meta, gallery(table, name=hostile, jpeg='"/><script>'))])
    page = app.server.test_client().get("/")
    assert hostile not in page.text
    assert page.text.count("<script") == opened_scripts()
    browser = Browser(app)
    browser.look()
    browser.choose(hostile)
    assert hostile in browser.text("panel")
    browser.choose(rows[1]["candidate"])
    assert '"Img"' in json.dumps(browser.state["live-panel.children"]) or "No drawing" in browser.text("panel")
    for name, figure in browser.figures.items():
        for trace in figure["data"]:
            shown = [*(trace.get("hovertext") or []), *(trace.get("text") or []), trace.get("name") or ""]
            assert not any("<img" in text or "<script" in text for text in shown), name

    def check(value: Any) -> None:
        """Nothing that reads markup: no Markdown, no raw HTML, no links."""
        if isinstance(value, list):
            for child in value:
                check(child)
        elif isinstance(value, dict):
            if "namespace" in value:
                assert value["type"] not in {"Markdown", "DangerouslySetInnerHTML", "Iframe", "A", "Script", "Link"}
                assert str(value["props"].get("src", "data:image/svg+xml;base64,")).startswith(
                    "data:image/svg+xml;base64,"
                )
                assert "href" not in value["props"]
            for child in value.values():
                check(child)

    check([*browser.state.values()])
    for part in json.dumps(browser.state["live-page.children"]).split("data:image/svg+xml;base64,")[1:]:
        svg = base64.b64decode(part.partition('"')[0]).decode()
        assert "<script" not in svg
        assert "onerror=alert(1)>" not in svg


@functools.cache
def opened_scripts() -> int:
    """Scripts of a page over harmless names."""
    return make_app(lambda: studied(realistic_table(3))).server.test_client().get("/").text.count("<script")


def test_nothing_comes_from_elsewhere_and_nothing_can_be_changed():
    app = make_app(lambda: studied(realistic_table(5)))
    client = app.server.test_client()
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self' 'sha256-" in policy
    for address in ("http://", "https://", 'src="//'):
        assert address not in page.text
    rules = {rule.rule: rule.methods for rule in app.server.url_map.iter_rules()}
    assert [rule for rule, methods in rules.items() if methods and "POST" in methods] == ["/_dash-update-component"]
    assert not any("mcp" in rule for rule in rules)


def test_reports_do_not_import_dash_and_without_it_the_dashboard_says_what_to_install():
    code = (
        "import sys, fpn_bench.reports, fpn_bench.cli.dashboard; assert 'dash' not in sys.modules\n"
        "sys.modules['dash'] = None\n"
        "from fpn_bench.errors import InputError\n"
        "try: import fpn_bench.reports.dashboard\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip() == 'the dashboard needs dash: pip install "fpn-bench[dashboard]"'


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_named_and_the_next_one_found():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} can be used"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        assert first.getsockname()[1] < second.getsockname()[1] < 8150
    with pytest.raises(InputError, match="--port"):
        listen("203.0.113.1", None)


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    code = "from fpn_bench.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "dashboard", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(HERE.parent), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a script inherit that Ctrl-C is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no study at nowhere"),
        (
            ["a", "b", "--name", "x", "--name", "y", "--name", "z"],
            "expected one --name for each of 2 studies, or none, got 3",
        ),
        (["nowhere", "--port", "70000"], "65535"),
    ],
)
def test_wrong_arguments_are_one_message_and_exit_2(arguments, words, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("dashboard", *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1 or "Usage" in err


def searched(folder: Path, trials: int, train_s: float = 0.0) -> Study:
    wanted = space()
    study, _ = run_study(
        wanted, InstantEvaluator(wanted, train_s=train_s), PROTOCOL, folder, budget=trials, share=False
    )
    return study


def test_the_command_serves_a_study_until_ctrl_c(tmp_path):
    searched(tmp_path / "s", 3)
    process = command("s", "--port", "0", "--host", "0.0.0.0", cwd=tmp_path)
    assert process.stdout is not None
    port = process.stdout.readline().rpartition(":")[2].split("/")[0]
    assert urlopen(f"http://127.0.0.1:{port}/_dash-layout").status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert err.splitlines() == [
        "anyone who reaches 0.0.0.0 can read what is shown: there is no password",
        "fpn-bench: stopped",
    ]


def test_only_its_own_name_reaches_a_dashboard_of_this_machine(tmp_path):
    app = make_app(lambda: studied(realistic_table(3)))
    with serving(app) as address:
        port = int(address.rpartition(":")[2])
        answers = []
        for host in (f"localhost:{port}", "elsewhere.example"):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                answers.append(connection.makefile().readline().split()[1])
    assert answers == ["200", "400"]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app as `serve` serves it, in a thread."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = server_of(app, listening)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join()


def test_a_lost_database_is_said_and_found_again(tmp_path):
    from fpn_bench.cli.dashboard import _Followed

    searched(tmp_path / "s", 2)
    followed = _Followed(str(tmp_path / "s"), None)
    assert len(followed.read()[0]) == 2
    (tmp_path / "s").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"s\b.* is not there"):
        followed.read()
    searched(tmp_path / "s", 3)
    assert len(followed.read()[0]) == 3
    shutil.rmtree(tmp_path / "s")
    shutil.copytree(tmp_path / "away", tmp_path / "s")
    assert len(followed.read()[0]) == 2
    assert len(load_study(tmp_path / "s").table()) == 2


# -- in a browser -----------------------------------------------------------------------------------------------------

FRONT_POINT = """() => {
  const plot = document.querySelector("#front .js-plotly-plot");
  for (const trace of plot.querySelectorAll(".scatterlayer .trace")) {
    const points = [...trace.querySelectorAll(".points path")];
    if (trace.__data__[0].trace.name !== "searched, on the front" || !points.length) continue;
    const box = points[Math.floor(points.length / 2)].getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }
}"""
RINGED = """() => [...document.querySelectorAll(".js-plotly-plot")].filter(
  (plot) => plot.data.some((trace) => trace.marker?.color === "#d6257f")).length"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser that is installed; what is loaded in it is held against the rules when a page closes."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail('these tests want playwright: pip install "fpn-bench[services]"')
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("these tests want Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(chromium: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page that says nothing on its console and asks nobody but the dashboard."""
    page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else problems.append(r.url))
    page.goto(address)
    yield page
    page.close()
    assert problems == []


def until(page: Any, seen: Callable[[], bool]) -> None:
    """Waits from outside: the page's policy lets no script be made inside."""
    end = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


@pytest.mark.services
def test_a_click_on_a_point_updates_all_views(chromium, tmp_path):
    table = realistic_table(120, seeds=2)
    app = make_app(lambda: [(table, study_meta(), None)])
    with serving(app) as address, watched(chromium, address) as page:
        page.wait_for_selector("#front .scatterlayer .points path", timeout=60_000)
        page.wait_for_selector("#choices .main-svg", timeout=60_000)
        page.screenshot(path=str(tmp_path / "top.png"))
        page.locator("#front .js-plotly-plot").first.scroll_into_view_if_needed()
        x, y = page.evaluate(FRONT_POINT)
        page.mouse.move(x - 4, y)
        page.mouse.move(x, y)
        page.wait_for_selector(".hoverlayer .hovertext")
        page.mouse.click(x, y)
        page.wait_for_selector("#selected h2", timeout=30_000)
        until(page, lambda: page.evaluate(RINGED) >= 4)
        page.screenshot(path=str(tmp_path / "selected.png"))
        assert page.evaluate("document.querySelector('#selected img').naturalWidth") > 100
        title = page.inner_text("#selected h2")
        assert title in page.inner_text("tr.selected >> nth=0")
        page.keyboard.press("Escape")
        until(page, lambda: page.evaluate(RINGED) == 0)
        assert page.is_hidden("#selected")
        page.locator("#design-table tbody tr").nth(2).click()
        until(page, lambda: page.evaluate(RINGED) >= 3)
        page.locator("#design-table th button", has_text="MACs").click()
        page.wait_for_selector("#design-table th[aria-sort]")
        page.locator(".filters input[type=number]").fill("1.2")
        page.wait_for_selector("text=Every front below is the front of the filtered designs", timeout=30_000)
        page.screenshot(path=str(tmp_path / "filtered.png"), full_page=True)


@pytest.mark.services
def test_a_zoom_and_what_was_unfolded_stay_when_data_come(chromium):
    rows = realistic_rows(60)
    shown = [make_table(rows[:50])]
    with serving(make_app(lambda: [(shown[0], study_meta(), None)])) as address, watched(chromium, address) as page:
        page.wait_for_selector("#front .scatterlayer .points path", timeout=60_000)
        page.locator("#latency details summary").click()
        page.locator("#front .js-plotly-plot").first.scroll_into_view_if_needed()
        box = page.locator("#front .nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
        page.mouse.move(box["x"] + 500, box["y"] + 280, steps=4)
        page.mouse.up()
        ranges = "() => { const l = document.querySelector('#front .js-plotly-plot')._fullLayout;" + (
            " return [l.xaxis.range, l.yaxis.range].map(String).join() }"
        )
        page.wait_for_timeout(1_000)
        zoomed = page.evaluate(ranges)
        best = max((r for r in rows[:50] if r["status"] == "complete"), key=lambda r: r["ap"])
        added = best | {"trial": 99, "candidate": "added", "neck_label": "added", "ap": 60.0, "macs": 8_000_000_000}
        shown[0] = make_table([*rows[:50], added])
        until(page, lambda: "added" in page.inner_text("#answer"))
        page.wait_for_timeout(1_000)
        assert page.evaluate(ranges) == zoomed
        assert page.evaluate("document.querySelector('#latency details').open")


@pytest.mark.services
def test_a_trial_that_finishes_is_on_the_page_within_five_seconds(chromium, tmp_path):
    code = (
        "from search_evaluator import PROTOCOL, InstantEvaluator, space\n"
        "from fpn_bench.search import run_study\n"
        "wanted = space()\n"
        f"run_study(wanted, InstantEvaluator(wanted, train_s=6.0), PROTOCOL, {str(tmp_path / 's')!r}, budget=9)"
    )
    environment = {"PYTHONPATH": f"{HERE.parent}:{HERE}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    search = subprocess.Popen([sys.executable, "-c", code], env=environment)
    dashboard_process = None
    try:
        end = time.monotonic() + 120
        while not finished_in(tmp_path / "s"):
            assert time.monotonic() < end
            time.sleep(0.2)
        dashboard_process = command("s", "--port", "0", cwd=tmp_path)
        assert dashboard_process.stdout is not None
        address = dashboard_process.stdout.readline().split()[0]
        with watched(chromium, address) as page:
            page.wait_for_selector("#front .main-svg", timeout=60_000)
            page.wait_for_timeout(3_000)
            told_then, points_then = counted(page)
            lags: list[float] = []
            study = load_study(tmp_path / "s")
            while len(lags) < 3:
                done = (study.table()["status"] == "complete").sum()
                if done <= told_then:
                    time.sleep(0.05)
                    assert time.monotonic() < end + 120
                    continue
                began = time.monotonic()
                while min(counted(page)[0], told_then + counted(page)[1] - points_then) < done:
                    assert time.monotonic() - began < 5.0
                    page.wait_for_timeout(50)
                lags.append(time.monotonic() - began)
                told_then, points_then = counted(page)
            print("seconds from the database to the page:", [round(lag, 2) for lag in lags])
            page.screenshot(path=str(tmp_path / "running.png"))
            assert "Running now: 1" in page.inner_text("#live-head")
    finally:
        for process in (search, dashboard_process):
            if process is not None:
                process.kill()
                process.communicate()


def finished_in(folder: Path) -> int:
    """Trials of a study that are complete; 0 before there is one."""
    try:
        return int((load_study(folder).table()["status"] == "complete").sum())
    except InputError:
        return 0


def counted(page: Any) -> tuple[int, int]:
    """Complete trials as the page's head tells them, and points of designs in its first figure."""
    head = page.inner_text("#live-head .counts")
    points = (
        "document.querySelector('#front .js-plotly-plot').data.reduce((n, t) => n + (t.customdata?.length ?? 0), 0)"
    )
    return int(head.split(" complete")[0]) if " complete" in head else 0, int(page.evaluate(points))


@pytest.mark.services
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_nothing_is_wider_than_a_phone_and_dark_is_dark(chromium, tmp_path, width, scheme):
    table = realistic_table(60)
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    app = make_app(lambda: [(table, study_meta(), gallery(table))])
    with serving(app) as address, watched(chromium, address, **options) as page:
        page.wait_for_selector("#choices .main-svg", timeout=60_000)
        page.wait_for_timeout(1_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        page.screenshot(path=str(tmp_path / f"{scheme}-{width}.png"))
        page.locator("#front").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#front').scrollIntoView()")
        page.screenshot(path=str(tmp_path / f"{scheme}-{width}-front.png"))
