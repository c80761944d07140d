"""The page itself: whole, offline, safe from what stands in files, and never a traceback."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from edges import EDGES, TEXT_FIELDS
from plotly.offline import get_plotlyjs
from tables import PUBLISHED, graph_json, realistic_rows, realistic_table, row, study_meta

from fpn_bench.analysis import empty_table, make_table, read_csv
from fpn_bench.errors import ProtocolError, UnknownNameError
from fpn_bench.reports import write_report
from fpn_bench.reports.evidence import MOST_SHOWN

FILES = ["report.csv", "report.designs.csv", "report.html", "report.md", "report.numbers.csv"]
VOID = {"meta", "input", "br"}
FORBIDDEN = {"link", "img", "iframe", "object", "embed", "base", "form", "use", "animate", "foreignobject"}


class Page(HTMLParser):
    """Tags, scripts and text of a page; fails on tags that do not close."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self.open: list[str] = []
        assert source.count(get_plotlyjs()) == 1
        self.feed(source.replace(get_plotlyjs(), "PLOTLY"))  # parsing its megabytes takes seconds
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif not (self.open and self.open[-1] == "style"):
            self.text += data

    @property
    def executable(self) -> list[str]:
        return [text for kind, text in self.scripts if kind is None]

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [data for data in self.data if "layout" in data]

    @property
    def data(self) -> list[dict[str, Any]]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]

    @property
    def designs(self) -> dict[str, Any]:
        return self.data[-1]


def report(tmp_path: Path, table: pd.DataFrame, **meta: Any) -> Page:
    page, csv, _, _, markdown = write_report(table, study_meta(**meta), tmp_path / "out" / "report.html")
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    pd.testing.assert_frame_equal(read_csv(csv), table)
    assert markdown.read_text().startswith("# ")
    parsed = Page(page.read_text())
    check_safe(parsed)
    return parsed


def check_safe(page: Page) -> None:
    """Our two scripts and no other, both named in the policy; nothing that loads or runs anything."""
    plotly_js, page_js = page.executable
    assert plotly_js == "PLOTLY"
    assert "Plotly.newPlot" in page_js
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    for script in (get_plotlyjs(), page_js):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    for tag, attributes in page.tags:
        assert tag not in FORBIDDEN
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "xlink:href", "srcset", "action"}
            if name == "href":
                assert value is not None
                assert re.fullmatch(r"#[a-z]+" if tag == "a" else r"data:image/jpeg;base64,[A-Za-z0-9+/=]*", value)


def test_a_search(tmp_path: Path) -> None:
    page = report(tmp_path, realistic_table(60))
    assert "published necks at no more cost" in page.text
    assert "No neck has a second seed: the seeds' standard deviation is taken to be " in page.text
    for words in (
        "fpn 64ch P3-P5",
        "latency_ms <= 24",
        "1f0c5a7e9b21",
        "AMD EPYC 7B13",
        "3 boxes of zero area",
        "fpn-bench search",
    ):
        assert words in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) >= 3
    assert len(page.figures) == 13
    assert len(page.designs["keys"]) == len(page.designs["rows"]) > 40
    names = [trace.get("name") for trace in page.figures[0]["data"]]
    assert "Pareto front" in names
    assert {n for n in names if n.startswith("published: ")} == {f"published: {n} {c}ch P3-P5" for n, c in PUBLISHED}
    symbols = [t["marker"]["symbol"] for t in page.figures[0]["data"] if t["name"].startswith("published: ")]
    assert len(set(symbols)) == len(symbols)


def test_nothing_but_the_rows_and_the_metadata_decides_the_page(tmp_path: Path) -> None:
    first, second = (
        write_report(realistic_table(30), study_meta(), tmp_path / name / "r.html", formats=["html"])[0].read_bytes()
        for name in ("a", "b")
    )
    assert first == second


@pytest.mark.parametrize(
    "edge", [pytest.param(edge, marks=[] if i % 3 == 0 else [pytest.mark.slow]) for i, edge in enumerate(EDGES)]
)
def test_every_study_has_a_page(tmp_path: Path, edge: str) -> None:
    table, objectives, words = EDGES[edge]
    assert words in report(tmp_path, table, objectives=objectives).text


def test_no_metadata_at_all(tmp_path: Path) -> None:
    for table in (empty_table(), realistic_table(20)):
        write_report(table, {}, tmp_path / "r.html")
        check_safe(Page((tmp_path / "r.html").read_text()))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param("<script>alert(1)</script>", marks=pytest.mark.slow),
        "</script><script>alert(1)</script>",
        pytest.param("<!--<script>", marks=pytest.mark.slow),
        "{{7654321*3}}{% raw %}",
        "\"'><img src=x onerror=alert(1)>",
        pytest.param('<a href="javascript:alert(1)">x</a>', marks=pytest.mark.slow),
        "%{x}\\u003c</title></style>",
        pytest.param("&lt;script&gt;", marks=pytest.mark.slow),
    ],
)
def test_hostile_text_stays_text(tmp_path: Path, hostile: str) -> None:
    rows = [r | dict.fromkeys(TEXT_FIELDS, hostile) | {"choice." + hostile: hostile} for r in realistic_rows(40)]
    rows[0] |= {"graph": hostile, "candidate": hostile}
    rows[1] |= {"graph": graph_json("fpn", 64).replace("lateral", json.dumps(hostile)[1:-1]), "ap": 90.0}
    rows[2] |= {"graph": json.dumps({"inputs": hostile}), "ap": 91.0}
    texts = {k: [hostile] for k in ("constraints", "warnings", "notes", "commands")}
    data = {k: {hostile: hostile, "nested": {hostile: [hostile]}} for k in ("protocol", "machine", "versions")}
    samples = {
        "classes": [hostile],
        "images": [{"name": hostile, "width": 9, "height": 9, "jpeg": "AAAA", "truth": [[1, 1, 2, 2, 0]]}],
        "detections": {rows[5]["candidate"]: [[[1, 1, 2, 2, 0, 0.9]]]},
    }
    meta = study_meta(name=hostile, space=hostile, created_at=hostile, **texts, **data)
    (path,) = write_report(make_table(rows), meta, tmp_path / "r.html", formats=["html"], samples=samples)
    page = Page(path.read_text())
    check_safe(page)
    assert page.text.count(hostile) > 40
    assert str(7654321 * 3) not in page.text
    title = next(i for i, (tag, _) in enumerate(page.tags) if tag == "title")
    assert page.tags[title + 1][0] == "style"
    marked_up = [text for figure in page.figures for text in strings(figure)]
    assert len(marked_up) > 100
    assert not [text for text in marked_up if re.search(r"<(?!/?b>|br>|/?extra>)", text)]
    assert any(
        hostile in text for row in page.designs["rows"] for text in row
    )  # as text, which the script puts in as text


def strings(value: object) -> list[str]:
    """Every text of a figure but keys, which are never shown."""
    if isinstance(value, dict):
        return [text for name, part in value.items() if name != "customdata" for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


def test_markdown_keeps_hostile_text_in_its_cell(tmp_path: Path) -> None:
    rows = [r | {"neck_label": "a|b\n# c `d` <i>_e_"} for r in realistic_rows(20)]
    (path,) = write_report(make_table(rows), study_meta(), tmp_path / "r.html", formats=["md"])
    text = path.read_text()
    assert "a\\|b \\# c \\`d\\` &lt;i&gt;\\_e\\_" in text
    assert "\n# c" not in text


def test_an_infeasible_design_that_dominates_is_on_no_front(tmp_path: Path) -> None:
    best = {
        "ap": 99.0,
        "macs": 1_000_000,
        "latency_ms": 0.1,
        "neck_label": "infeasible",
        "graph": graph_json("fpn", 24),
    }
    rows = [
        *realistic_rows(30),
        row(30, **best, status="rejected", reason="params 9 > 5"),
        row(31, **best, status="failed"),
    ]
    page = report(tmp_path, make_table(rows))
    keys = {row["candidate"] for row in rows[-2:]}
    apart = ("rejected, no final AP", "failed, no final AP")
    for figure in page.figures:
        for trace in figure["data"]:
            inside = bool(keys & set(trace.get("customdata") or []))
            assert not inside or trace.get("name") in apart
    status = [c["name"] for c in page.designs["columns"]].index("status")
    found = {
        key: row[status] for key, row in zip(page.designs["keys"], page.designs["rows"], strict=True) if key in keys
    }
    assert sorted(found.values()) == ["failed", "rejected"]
    (markdown,) = write_report(make_table(rows), study_meta(), tmp_path / "r.html", formats=["md"])
    assert "infeasible" not in markdown.read_text()
    assert "infeasible" not in page.text  # outside of the list of all designs


def test_random_weights_stand_at_the_top(tmp_path: Path) -> None:
    page = report(tmp_path, make_table([r | {"weights_random": True} for r in realistic_rows(10)]))
    assert page.text.index("Random backbone weights") < page.text.index("published necks at no more cost")
    assert any(attributes.get("role") == "alert" for _, attributes in page.tags)


def test_wrong_calls_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'html'"):
        write_report(realistic_table(5), study_meta(), tmp_path / "r", formats=["htm"])
    with pytest.raises(ProtocolError):
        write_report(make_table([row(0), row(1, protocol="other")]), study_meta(), tmp_path / "r")
    assert os.listdir(tmp_path) == []


def test_a_page_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_report(realistic_table(5), study_meta(), tmp_path / "r.html", formats=["html"])
    before = path.read_bytes()

    def fails(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_report(realistic_table(6), study_meta(), tmp_path / "r.html", formats=["html"])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.html"]


def test_five_thousand_rows_stay_under_ten_megabytes(tmp_path: Path) -> None:
    (path,) = write_report(realistic_table(5000), study_meta(), tmp_path / "r.html", formats=["html"])
    assert path.stat().st_size < 10e6
    page = Page(path.read_text())
    check_safe(page)
    assert len(page.designs["rows"]) > 3900


@pytest.mark.slow
def test_fifty_thousand_rows_are_thinned_and_stay_under_twenty_megabytes(tmp_path: Path) -> None:
    (path,) = write_report(realistic_table(50_000), study_meta(), tmp_path / "r.html", formats=["html"])
    assert path.stat().st_size < 20e6
    page = Page(path.read_text())
    check_safe(page)
    assert len(page.designs["rows"]) == MOST_SHOWN
    assert re.search(rf"{MOST_SHOWN} of \d+ designs are drawn and listed on this page", page.text)
