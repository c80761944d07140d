"""A report as Markdown, as JSON, and as tables of its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import escape
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from fpn_bench.analysis.rows import json_records, json_value
from fpn_bench.reports.blocks import Block, Code, Drawings, Facts, Gallery, Plot, Sentence, Table
from fpn_bench.reports.report import Report

JSON_VERSION = 1
NUMBERS = ("section", "block", "line", "row", "name", "value")


def numbers_table(report: Report) -> pd.DataFrame:
    """Every number the report states beside those of single designs, unrounded: one row a number.

    Columns: ``section``, ``block`` (of the section; ``""`` for its sentences), ``line`` (from 0), ``row`` (the text
    that names the line, a design's key where it is one), ``name`` and ``value``.
    """
    rows: list[tuple[str, str, int, str, str, float]] = []
    for section, sentences in (("loud", report.loud), ("mind", report.mind)):
        rows += _sentence_numbers(section, sentences)
    for part in report.sections:
        rows += _sentence_numbers(part.id, part.sentences)
        for block in part.blocks:
            for name, frame in _frames(block):
                rows += [(part.id, name, *number) for number in _frame_numbers(frame)]
    return pd.DataFrame(rows, columns=list(NUMBERS)).astype({"line": "int64", "value": "float64"})


def designs_table(report: Report) -> pd.DataFrame:
    """Every design of the report, one row each: means and intervals over its seeds, and whether it is on the front."""
    return report.evidence.designs.drop(columns=["hover", "graph", "schema_version", "ap_curve", "val_loss_curve"])


def _sentence_numbers(section: str, sentences: tuple[Sentence, ...]) -> Iterator[tuple[str, str, int, str, str, float]]:
    for line, sentence in enumerate(sentences):
        for name, value in sentence.numbers.items():
            yield section, "", line, "", name, float(value)


def _frames(block: Block) -> Iterator[tuple[str, pd.DataFrame]]:
    match block:
        case Table():
            yield block.id, block.rows
        case Plot():
            for name, frame in block.data.items():
                yield f"{block.id}.{name}", frame
        case Drawings():
            for drawing in block.drawings:
                yield f"{block.id}.{drawing.key}", drawing.nodes


def _frame_numbers(frame: pd.DataFrame) -> Iterator[tuple[int, str, str, float]]:
    numeric = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    named = [name for name in frame.columns if name not in numeric]
    if "key" in named:
        named = ["key"]
    rows = frame[named].itertuples(index=False) if named else [()] * len(frame)  # pandas 2 has no rows without columns
    titles = [" / ".join(str(v) for v in row) for row in rows]
    for name in numeric:
        values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for line, (title, value) in enumerate(zip(titles, values, strict=True)):
            yield line, title, str(name), float(value)


def json_document(report: Report) -> str:
    """The report's content as one JSON document: sentences, tables, what the figures show, every design."""
    document = {
        "schema_version": JSON_VERSION,
        "title": report.title,
        "subtitle": report.subtitle,
        "protocol": report.evidence.protocol,
        "objectives": [{"name": o.name, "direction": o.direction} for o in report.evidence.objectives],
        "constraints": list(report.evidence.constraints),
        "loud": [_said(sentence) for sentence in report.loud],
        "mind": [_said(sentence) for sentence in report.mind],
        "sections": [
            {
                "id": section.id,
                "title": section.title,
                "sentences": [_said(sentence) for sentence in section.sentences],
                "blocks": [block for given in section.blocks if (block := _block(given))],
            }
            for section in report.sections
        ],
        "designs": json_records(designs_table(report)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _said(sentence: Sentence) -> dict[str, Any]:
    return {"text": sentence.text, "numbers": {name: json_value(value) for name, value in sentence.numbers.items()}}


def _block(block: Block) -> dict[str, Any] | None:
    match block:
        case Facts():
            return {"kind": "facts", "title": block.title, "facts": [list(pair) for pair in block.pairs]}
        case Code():
            return {"kind": "code", "title": block.title, "text": block.text}
        case Table() | Plot() | Drawings():
            title = block.title if isinstance(block, Table) else block.alt if isinstance(block, Plot) else ""
            data = {name: json_records(frame) for name, frame in _frames(block)}
            return {"kind": kind(block), "id": block.id, "title": title, "data": data}
        case Gallery():
            images = [{name: image[name] for name in ("name", "width", "height", "truth")} for image in block.images]
            found = {"classes": list(block.classes), "images": images, "detections": dict(block.detections)}
            return {"kind": "gallery", "id": block.id, "data": found}
        case _:
            return None  # the designs stand once, at the end


def markdown_page(report: Report) -> str:
    """Sentences, tables and facts as Markdown; the figures are the page's."""
    # HTML's rules are not Markdown's: `finalize` escapes every expression instead.
    environment = template_environment(autoescape=False, finalize=_markdown)
    return environment.get_template("report.md.j2").render(report=report)


def template_environment(*, autoescape: bool, finalize: Callable[[object], object] | None = None) -> jinja2.Environment:
    """What all templates are rendered with: a name that is not given is an error, and blocks leave no empty lines."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=autoescape,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"kind": kind, "records": lambda frame: frame.to_dict("records")}
    environment.filters |= filters
    return environment


def kind(block: Block) -> str:
    """What a template asks a block for."""
    return type(block).__name__.lower()


def template_text(name: str) -> str:
    return resources.files("fpn_bench.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, as it should
    text = escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
