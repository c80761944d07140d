"""Each front neck's drawing, with what every node costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

from fpn_bench.errors import FpnBenchError
from fpn_bench.graph import GraphCost, NeckGraph, cost
from fpn_bench.graph.draw import as_svg
from fpn_bench.json_text import parse_json
from fpn_bench.reports.blocks import Drawing, Drawings, Section, Sentence, source_tag
from fpn_bench.reports.details import choices_of, latency_text, merit_text
from fpn_bench.reports.evidence import Evidence, evenly
from fpn_bench.reports.units import quantity

MOST_DRAWN = 24


def section(evidence: Evidence) -> Section | None:
    info = necks_info(evidence)
    if not info:
        return None
    told = [
        Sentence(
            "Rows are levels, coarsest on top; dashed arrows resample; heavy frames are outputs. The last line of a "
            "box is what the node costs: params · MACs, for one image."
        )
    ]
    if len(info) < len(evidence.front):
        facts = {"necks drawn": len(info), "necks on the front": len(evidence.front)}
        told.append(
            Sentence(f"{len(info)} of {len(evidence.front)} are drawn here, evenly spread over the front.", facts)
        )
    return Section("necks", "Necks on the front", tuple(told), (Drawings("front-necks", info),))


def necks_info(evidence: Evidence) -> tuple[Drawing, ...]:
    """The front's drawings, best first; at most `MOST_DRAWN`, evenly spread."""
    front = evidence.front
    return tuple(drawing(row) for row in front.iloc[evenly(len(front), MOST_DRAWN)].to_dict("records"))


def drawing(row: Mapping[Any, Any]) -> Drawing:
    """A design's neck with its figures and the cost of each node."""
    figures = {"AP": merit_text(row), "Seeds": str(row["seeds"])} if row["seeds"] else {}
    if not pd.isna(row["latency_ms"]):
        figures["Latency"] = latency_text(row)
    for name in ("params", "macs"):
        own = quantity(f"neck_{name}").text(row[f"neck_{name}"])
        figures[quantity(name).label] = f"{quantity(name).text(row[name])} (neck {own})"
    svg, problem, costs = neck_drawing(row["graph"], *image_size_of(row))
    chosen = " · ".join(f"{name} {value}" for name, value in choices_of(row).items())
    note = " · ".join(t for t in (f"trial {row['trial']}", str(row["backbone"]), str(row["candidate"]), chosen) if t)
    nodes = pd.DataFrame(
        [
            {"node": n.name, "level": n.level, "params": n.params, "macs": n.macs}
            for n in (costs.nodes if costs else ())
        ],
        columns=["node", "level", "params", "macs"],
    )
    return Drawing(str(row["key"]), str(row["label"]), source_tag(row["source"]), figures, note, svg, problem, nodes)


def image_size_of(row: Mapping[Any, Any]) -> tuple[int, int]:
    """What the backbone runs on: the image, padded where it had to be; zeros where the row does not say."""
    sides = [(row[f"padded_{side}"], row[f"image_{side}"]) for side in ("height", "width")]
    height, width = (next((int(v) for v in given if not pd.isna(v)), 0) for given in sides)
    return height, width


@lru_cache(2048)
def neck_drawing(graph: str, height: int, width: int) -> tuple[str, str, GraphCost | None]:
    """A recorded neck as SVG; why there is none; its costs at an image size, where these are known."""
    if not graph:
        return "", "no graph was recorded", None
    try:
        neck = NeckGraph.from_dict(parse_json(graph))
    except ValueError:
        return "", "the recorded graph is no JSON", None
    except FpnBenchError as error:
        return "", f"the recorded graph cannot be read: {error}", None
    try:
        costs = cost(neck, (height, width))
    except FpnBenchError:  # no size, or inputs whose strides are no powers of two: the drawing does without
        costs = None
    return as_svg(neck, costs), "", costs
