"""The gallery: a page with every neck of the registry. `docs/tools/site.py` puts it into the site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fpn_bench.analysis import by_candidate, read_csv
from fpn_bench.errors import InputError
from fpn_bench.graph import NeckGraph, as_svg, cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph, describe, list_necks, list_unfit, options
from fpn_bench.zoo.registry import choices

FEATURES = (FeatureSpec(3, 512, 8), FeatureSpec(4, 1024, 16), FeatureSpec(5, 2048, 32))  # ResNet-50's C3 to C5
CHANNELS = 64
IMAGE_SIZE = (640, 640)
TABLE = Path(__file__).parents[2] / "results" / "suite-necks-oi_vehicles.csv"

INTRO = """# Gallery of necks

Every neck of the zoo with its default options: its drawing, its source, its cost, and its options. Drawings and costs
are for a pyramid with the channels of ResNet-50's C3 to C5, 64 channels, P3 to P5, 640x640. In a drawing, levels are
rows, the coarsest on top; a heavy frame marks an output; each box says its operations, params and MACs.

`fpn-bench necks show NAME` prints a neck for other levels, widths and options. [Adding a neck](extending/neck.md) is
one function.
"""


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def human(number: float) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def graph_of(name: str) -> NeckGraph | None:
    try:
        return create_graph(name, FEATURES, (3, 4, 5), CHANNELS)
    except InputError:  # not of these levels or this width
        return None


def aps() -> dict[str, str]:
    """Neck -> its AP in the suite `necks`, where its table is there."""
    if not TABLE.exists():
        return {}
    rows = by_candidate(read_csv(TABLE))
    return {row["neck"]: f"{row['ap']:.1f} ({row['seeds']} seeds)" for row in rows.to_dict("records")}


def option_rows(name: str, args: str) -> list[str]:
    meanings = {
        option: " ".join(meaning.split())
        for option, meaning in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", args, re.MULTILINE)
    }
    listed = choices(name)
    rows = []
    for option, value in options(name).items():
        shown: Any = list(value) if isinstance(value, tuple) else value
        allowed = ", ".join(f"`{choice}`" for choice in listed[option])
        cells = (f"`{option}`", f"`{json.dumps(shown)}`", allowed, meanings.get(option, "").replace("|", "\\|"))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def section(name: str, ap: str) -> str:
    text, _, args = describe(name).partition("\n\nArgs:\n")
    graph = graph_of(name)
    parts = [f"## {name}\n", linked(text) + "\n"]
    if graph is None:
        parts.append("Not available for these levels and this width.\n")
    else:
        costs = cost(graph, IMAGE_SIZE)
        facts = [f"{human(costs.params)} params", f"{human(costs.macs)} MACs", f"{len(graph.nodes)} nodes"]
        facts += [f"{ap} AP on `oi_vehicles` in the suite `necks`"] if ap else []
        parts.append(f"**{' · '.join(facts)}**\n")
        parts.append(f'<div class="neck" data-search-exclude>{as_svg(graph, costs)}</div>\n')
    rows = option_rows(name, args)
    if rows:
        parts += ["| option | default | choices | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"]
    return "\n".join(parts)


def page() -> str:
    """The whole page, as Markdown."""
    known = aps()
    parts = [INTRO, *(section(name, known.get(name, "")) for name in list_necks())]
    parts.append("## Published necks that are no graph of maps\n\n| neck | why it is not here |\n|---|---|")
    return "\n".join([*parts, *(f"| {name} | {reason} |" for name, reason in list_unfit().items())]) + "\n"
