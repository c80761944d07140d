"""Markdown, JSON and tables: every number of the page can be looked up in the tables beside it."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from edges import EDGES, with_rungs
from tables import OBJECTIVES, realistic_rows, realistic_table, study_meta

from fpn_bench.analysis import make_table
from fpn_bench.cli.report import FORMATS as cli_formats
from fpn_bench.errors import InputError
from fpn_bench.reports import (
    FORMATS,
    designs_table,
    json_document,
    markdown_page,
    numbers_table,
    report_info,
    write_report,
)
from fpn_bench.reports.blocks import Drawings, Plot, Table
from fpn_bench.reports.report import Report

SCALES = (1.0, 1e-6, 1e-9, 100.0)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.]*\w)")
CONSTANTS = {"95", "2", "000", "1", "0", "32", "96"}
"""Words of the sentences: the 95 % interval, 2,000 draws, tau's ends, COCO's sizes."""


def full_report() -> Report:
    rows = [r | {"backbone": f"net{i % 2}", "latency_predicted_ms": 20.0 + i % 7} for i, r in enumerate(with_rungs(60))]
    rows += [r | {"seed": 1, "ap": r["ap"] + 0.4} for r in rows if r["status"] == "complete" and r["trial"] % 4 == 0]
    return report_info(make_table(rows), study_meta())


def found(text: str, values: Iterable[float]) -> bool:
    """Whether a number as it is shown is one of these, in some unit and rounded as it is."""
    digits = len(text.partition(".")[2])
    return any(
        f"{v * scale:.{digits}f}" == f"{float(text):.{digits}f}" for v in values if math.isfinite(v) for scale in SCALES
    )


def test_every_number_in_a_table_stands_in_the_tables_beside_the_page() -> None:
    report = full_report()
    numbers = numbers_table(report)
    designs = designs_table(report).set_index("key")
    seen = 0
    for section in report.sections:
        for block in section.blocks:
            if not isinstance(block, Table):
                continue
            own = numbers[(numbers["section"] == section.id) & (numbers["block"] == block.id)]
            for line, row in enumerate(block.rows.to_dict("records")):
                values = list(own.loc[own["line"] == line, "value"])
                if "key" in row:
                    assert set(own.loc[own["line"] == line, "row"]) <= {row["key"]}
                for column in block.columns:
                    if column.numeric or "interval" in column.title:
                        for text in NUMBER.findall(column.text(row)):
                            assert found(text, values), (section.id, block.id, column.title, column.text(row))
                            seen += 1
    assert seen > 300
    assert len(designs) > 40


def test_every_number_in_a_sentence_stands_in_the_tables_beside_the_page() -> None:
    report = full_report()
    seen = 0
    for section, sentences in (("mind", report.mind), *((s.id, s.sentences) for s in report.sections)):
        for sentence in sentences:
            # Names of necks and values of conditions have digits of their own.
            labels = [*report.evidence.designs["label"], "P3-P5", "cpu", *report.evidence.constraints]
            text = sentence.text
            for label in sorted(labels, key=len, reverse=True):
                text = text.replace(label, "")
            for number in NUMBER.findall(text):
                assert number in CONSTANTS or found(number, sentence.numbers.values()), (section, sentence.text, number)
                seen += 1
    assert seen > 20


def test_every_point_of_a_figure_stands_in_the_tables_beside_the_page() -> None:
    report = full_report()
    designs = designs_table(report).set_index("key")
    numeric = [c for c in designs.columns if pd.api.types.is_numeric_dtype(designs[c])]
    values = {
        key: row[np.isfinite(row)] for key, row in zip(designs.index, designs[numeric].to_numpy(float), strict=True)
    }
    numbers = numbers_table(report)
    rng = np.random.default_rng(0)
    seen = 0
    for section in report.sections:
        own = numbers.loc[numbers["section"] == section.id, "value"].to_numpy()
        for plot in (block for block in section.blocks if isinstance(block, Plot)):
            for trace in plot.draw().data:
                coordinates = [
                    (axis, trace[axis]) for axis in ("x", "y", "z") if axis in trace and trace[axis] is not None
                ]
                for axis, given in coordinates:
                    for i in rng.permutation(len(given))[:40]:
                        value = given[i]
                        if (
                            isinstance(value, str)
                            or value is None
                            or (not trace.customdata and plot.id.startswith("front"))
                        ):
                            continue  # a name; a gap; the line through points that are looked up themselves
                        key = trace.customdata[i] if trace.customdata else None
                        known = own if key is None else np.concatenate([values[key], own])
                        near = any(np.isclose(known * scale, value, rtol=1e-4).any() for scale in SCALES)
                        middle = plot.id == "latency-histogram"  # bars stand between two edges that are given
                        drawn = plot.id == "latency-predicted" and key is None
                        assert near or middle or drawn, (plot.id, trace.name, axis, value)
                        seen += 1
    assert seen > 500


def test_node_costs_stand_in_the_tables_beside_the_page() -> None:
    report = full_report()
    numbers = numbers_table(report)
    (block,) = (b for s in report.sections for b in s.blocks if isinstance(b, Drawings))
    drawing = block.drawings[0]
    own = numbers[numbers["block"] == f"{block.id}.{drawing.key}"]
    assert own.loc[own["name"] == "macs", "value"].sum() == drawing.nodes["macs"].sum() > 0


@pytest.mark.parametrize("edge", EDGES)
def test_every_study_has_markdown_json_and_tables(edge: str) -> None:
    table, objectives, words = EDGES[edge]
    report = report_info(table, study_meta(objectives=objectives))
    text = markdown_page(report)
    assert words in text.replace("\\", "")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|"), line
    document = json.loads(json_document(report), parse_constant=lambda constant: pytest.fail(constant))
    assert document["schema_version"] == 1
    assert len(document["designs"]) == len(report.evidence.designs)
    assert words in " ".join(s["text"] for s in document["sections"][0]["sentences"])
    numbers = numbers_table(report)
    again = pd.read_csv(io.StringIO(numbers.to_csv(index=False)), keep_default_na=False, na_values={"value": [""]})
    pd.testing.assert_frame_equal(again, numbers, check_dtype=False)


def test_markdown_tables_are_tables() -> None:
    lines = markdown_page(full_report()).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| Neck |"))
    assert re.fullmatch(r"\|( -{3}:? \|)+", lines[at + 1])
    assert lines[at + 2].startswith("| ")
    assert lines[at].count("|") == lines[at + 1].count("|") == lines[at + 2].count("|")


def test_tables_beside_the_page_are_written_whole(tmp_path: Path) -> None:
    paths = write_report(realistic_table(20), study_meta(), tmp_path / "r", formats=["csv", "json"])
    assert [p.name for p in paths] == ["r.csv", "r.designs.csv", "r.numbers.csv", "r.json"]
    designs = pd.read_csv(paths[1], keep_default_na=False)
    assert list(designs["key"]) == list(report_info(realistic_table(20), study_meta()).evidence.designs["key"])
    assert "graph" not in designs


def test_png_without_kaleido_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'PNG needs kaleido, which is not there: `pip install "fpn-bench\[png\]"`'):
        write_report(realistic_table(5), study_meta(), tmp_path / "r", formats=["md", "png"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_knows_the_formats() -> None:
    assert cli_formats == FORMATS  # it does not import this room to say so


@pytest.mark.parametrize(
    ("to", "name"), [("out/", "report.md"), (".", "report.md"), ("x.HTML", "x.md"), ("v1.5", "v1.5.md")]
)
def test_a_path_is_a_folder_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = write_report(realistic_table(5), study_meta(), to, formats=["md"])
    assert path.name == name
    assert path.exists()
    Path("r.md").mkdir()
    with pytest.raises(InputError, match=r"expected the path of a file, got the folder .*r\.md"):
        write_report(realistic_table(5), study_meta(), "r", formats=["md"])


def test_detections_stand_in_the_json() -> None:
    image = {"name": "a.jpg", "width": 9, "height": 9, "jpeg": "AAAA", "truth": []}
    table = realistic_table(10)
    key = table["candidate"][0]
    samples = {"classes": ["car"], "images": [image], "detections": {key: [[[1, 1, 2, 2, 0, 0.9]]]}}
    document = json.loads(json_document(report_info(table, study_meta(), samples=lambda candidates: samples)))
    (gallery,) = (b for s in document["sections"] for b in s["blocks"] if b["kind"] == "gallery")
    assert gallery["data"]["detections"] == {key: [[[1, 1, 2, 2, 0, 0.9]]]}
    assert "jpeg" not in gallery["data"]["images"][0]


def test_an_order_of_objectives_changes_nothing() -> None:
    a, b = (
        report_info(make_table(realistic_rows(30)), study_meta(objectives=o)) for o in (OBJECTIVES, OBJECTIVES[::-1])
    )
    pd.testing.assert_frame_equal(numbers_table(a), numbers_table(b))
