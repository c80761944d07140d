"""What a report is made of, whatever it becomes: a page, Markdown, JSON, numbers in a CSV, a live dashboard.

A section computes its blocks from the evidence; who shows them knows the kinds of block and no section by name.
Every number that a block shows stands unrounded in its data, so that it can be looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.reports.units import quantity

Record = Mapping[str, Any]
Size = Literal["tall", "wide", "short", "small"]


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the numbers it states, by name."""

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of a `Table`: its head, and what stands in the cell of a row.

    Attributes:
        title: the head.
        text: of a row's record.
        numeric: right-aligned.
        tag: a small mark behind the text, e.g. ``"published"``.
    """

    title: str
    text: Callable[[Record], str]
    numeric: bool = False
    tag: Callable[[Record], str] | None = None

    @classmethod
    def number(cls, name: str) -> Column:
        """The column ``name``, as its quantity is shown; an en dash where it is missing."""
        shown = quantity(name)
        return cls(shown.title, lambda row: shown.number(row[name]) or "–", numeric=True)

    @classmethod
    def neck(cls, title: str = "Neck", name: str = "label") -> Column:
        """What the design is called, tagged with where it comes from, see `source_tag`."""
        return cls(title, lambda row: str(row[name]), tag=lambda row: source_tag(row["source"]))


@dataclass(frozen=True)
class Table:
    """Rows of data, some of it shown. A column ``key`` makes each row a design that can be selected.

    Attributes:
        id: unlike any other on the page.
        title: above it; of a ``folded`` one, what unfolds it.
        rows: the data, unrounded.
        columns: what is shown of it.
        note: below it.
        folded: it repeats, in figures, what a plot shows.
    """

    id: str
    title: str
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure, drawn when it is asked for.

    Attributes:
        id: unlike any other on the page.
        draw: the figure. Points of designs have the design's key as ``customdata``.
        data: what is drawn beside the designs themselves: tables by name.
        caption: what it shows and how to read it.
        size: of its place on the page.
        alt: what it is, in a few words, for who cannot see it.
    """

    id: str
    draw: Callable[[], go.Figure]
    alt: str
    data: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    caption: str = ""
    size: Size = "wide"


@dataclass(frozen=True)
class Drawing:
    """A neck's drawing with its figures.

    Attributes:
        key: of the design.
        title: the neck.
        tag: a small mark behind the title.
        figures: name and text.
        note: a line below.
        svg: the drawing; ``""`` where there is none.
        problem: why there is none.
        nodes: what each node costs: ``node``, ``level``, ``params``, ``macs``.
    """

    key: str
    title: str
    tag: str
    figures: Mapping[str, str]
    note: str
    svg: str
    problem: str
    nodes: pd.DataFrame


@dataclass(frozen=True)
class Drawings:
    """Necks side by side."""

    id: str
    drawings: tuple[Drawing, ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Sample images with boxes.

    Attributes:
        id: unlike any other on the page.
        classes: names.
        images: ``name``, ``width``, ``height``, ``jpeg`` (base64), ``truth`` [[x1, y1, x2, y2, label], ...].
        detections: of each design: for each image [[x1, y1, x2, y2, label, score], ...], in pixels of the image.
        chosen: the design shown first.
        labels: how each design is called.
    """

    id: str
    classes: tuple[str, ...]
    images: tuple[Record, ...]
    detections: Mapping[str, Any]
    chosen: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Designs:
    """Every design of the study, to be sorted, filtered and selected."""

    id: str = "design-table"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    title: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text as it is, folded away unless ``open``."""

    title: str
    text: str
    open: bool = False


def source_tag(source: object) -> str:
    """Where a design comes from, unless that is what most of its study come from: the sampler, or a suite's list."""
    return "" if source in ("sampled", "listed") else str(source)


Block = Table | Plot | Drawings | Gallery | Designs | Facts | Code


@dataclass(frozen=True)
class Section:
    """A part of the report. The first sentence of the answer is the report's headline."""

    id: str
    title: str
    sentences: tuple[Sentence, ...]
    blocks: tuple[Block, ...]
