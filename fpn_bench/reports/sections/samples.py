"""Sample images with what a chosen neck detects on them."""

from __future__ import annotations

from fpn_bench.reports.blocks import Gallery, Section, Sentence
from fpn_bench.reports.evidence import Evidence

LEAST_SCORE = 0.3
"""Boxes below this score are not drawn."""
MOST_DESIGNS = 200


def section(evidence: Evidence) -> Section | None:
    gallery = samples_info(evidence)
    if gallery is None:
        return None
    told = Sentence(
        "The same few images of the val split for every neck. White dashes are what was annotated; coloured boxes are "
        f"the most confident detections, with a score of at least {LEAST_SCORE:g}, of the lowest seed's training. "
        "Select another neck anywhere on the page, or here. "
        f"They are kept of {len(gallery.detections)} necks: the front, the published, the best of the rest.",
        {"least score": LEAST_SCORE, "necks with detections": len(gallery.detections)},
    )
    return Section("samples", "What a neck detects", (told,), (gallery,))


def samples_info(evidence: Evidence) -> Gallery | None:
    """The sample images, and detections of the designs on the front, the published ones and the best of the rest."""
    designs = evidence.finished[evidence.finished["shown"]]
    first = designs["on_front"] | (designs["source"] == "published")
    wanted = designs.assign(first=first).sort_values("first", ascending=False, kind="stable").iloc[:MOST_DESIGNS]
    samples = evidence.samples(list(wanted["candidate"])) if callable(evidence.samples) else evidence.samples
    if not samples or not samples.get("images"):
        return None
    recorded = samples["detections"]
    kept = wanted[wanted["candidate"].isin(list(recorded))]
    if kept.empty:
        return None
    detections = {
        str(row["key"]): [[box for box in image if box[5] >= LEAST_SCORE] for image in recorded[row["candidate"]]]
        for row in kept.to_dict("records")
    }
    labels = dict(zip(kept["key"], kept["label"], strict=True))
    return Gallery(
        "gallery",
        tuple(str(name) for name in samples["classes"]),
        tuple(samples["images"]),
        detections,
        str(kept["key"].iloc[0]),
        labels,
    )
