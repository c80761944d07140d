"""Draws docs/images/front.png, the picture of the README, of a suite's table in results/.

    python docs/tools/front_picture.py results/suite-necks-oi_vehicles.csv

It is the figure of the report's section "Pareto front", with the names of the necks where these do not overlap. Needs
``pip install "fpn-bench[png]"`` and Chrome or Chromium.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import kaleido
import plotly.graph_objects as go

from fpn_bench.analysis import read_csv
from fpn_bench.reports.evidence import gather
from fpn_bench.reports.sections.front import front_figure, front_info
from fpn_bench.reports.units import quantity

TARGET = Path(__file__).parents[1] / "images" / "front.png"
OBJECTIVES = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]
WIDTH, HEIGHT = 1000, 480
PLOT = (920, 380)  # pixels of the plot's area, about
PLACES = ((1, 0, "left"), (-1, 0, "right"), (1, -11, "left"), (1, 11, "left"), (-1, -11, "right"), (-1, 11, "right"))


def front_of(table: str) -> go.Figure:
    """AP over MACs of every neck of the table, with labels."""
    (plane,) = front_info(gather(read_csv(table), {"objectives": OBJECTIVES}))
    figure = front_figure(plane)
    points = plane.points.sort_values("y", ascending=False)
    scale = quantity("macs").scale
    sides = [(points["x"].max() - points["x"].min()) * 1.1, (points["y"].max() - points["y"].min()) * 1.5]
    at = {
        key: ((x - points["x"].min()) / sides[0] * PLOT[0], -(y - points["y"].min()) / sides[1] * PLOT[1])
        for key, x, y in zip(points.index, points["x"], points["y"], strict=True)
    }
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    for key, row in points.iterrows():
        name, (x, y) = str(row["neck"]), at[key]
        width = 6.4 * len(name)
        for side, down, anchor in PLACES:
            left = x + 9 if side > 0 else x - 9 - width
            box = (left, y + down - 6, left + width, y + down + 6)
            if not any(a < box[2] and box[0] < c and b < box[3] and box[1] < d for a, b, c, d in taken):
                taken.append(box)
                figure.add_annotation(
                    x=row["x"] * scale, y=row["y"], text=name, showarrow=False, font_size=11,
                    xanchor=anchor, xshift=9 * side, yshift=-down,
                )  # fmt: skip
                break
    return figure.update_layout(paper_bgcolor="white", plot_bgcolor="white", width=WIDTH, height=HEIGHT)


async def main(table: str) -> None:
    async with kaleido.Kaleido(mathjax=False) as browser:
        size = {"width": WIDTH, "height": HEIGHT, "scale": 1.6}
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_bytes(await browser.calc_fig(front_of(table), opts={"format": "png", **size}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
