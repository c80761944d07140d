"""How everything was measured, and the commands that measure it again; and what must be read before any figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fpn_bench.analysis.comparable import conditions_of
from fpn_bench.analysis.words import count
from fpn_bench.reports.blocks import Block, Code, Facts, Section, Sentence
from fpn_bench.reports.evidence import Evidence, joined, texts

NOISY_LATENCY = 0.1
"""Half an interval, as a share of the median, beyond which a latency deserves a warning."""
MEANINGS = (
    "AP is COCO AP in percent points, after the protocol's short training: it ranks necks under that protocol.",
    "MACs count one multiply-add as one, for one image, whole detector.",
    "Latency is the median forward time of one batch with the 95 % interval of the median.",
)


def section(evidence: Evidence) -> Section:
    meta = evidence.meta
    blocks: list[Block] = [Facts(title, pairs) for title, pairs in facts_info(evidence)]
    if notes := texts(meta.get("notes")):
        blocks.append(Facts("Data set", tuple(("", note) for note in notes)))
    if space := str(meta.get("space") or ""):
        blocks.append(Code("Search space", space))
    if commands := texts(meta.get("commands")):
        blocks.append(Code("To reproduce", "\n".join(commands), open=True))
    return Section("provenance", "How this was measured", tuple(Sentence(text) for text in MEANINGS), tuple(blocks))


def loud_warnings(table: pd.DataFrame) -> tuple[Sentence, ...]:
    """What must be read before any figure."""
    random = table[table["weights_random"].fillna(False).astype(bool)]
    if random.empty:
        return ()
    text = (
        f"Random backbone weights: {joined(random['backbone'])} is frozen and untrained in "
        f"{count(len(random), 'row')}. Its features carry little, so AP says almost nothing about the necks. Give "
        "weights to the backbone and search again."
    )
    return (Sentence(text, {"rows with random weights": len(random)}),)


def warnings(evidence: Evidence) -> tuple[Sentence, ...]:
    """What a reader should mind: mixed conditions, missing figures, noise, what is still running."""
    table, finished = evidence.table, evidence.finished
    said = []
    protocols = table.loc[table["protocol"] != "", "protocol"].nunique()
    if protocols > 1:
        text = f"Rows of {protocols} protocols are mixed: their AP figures do not compare."
        said.append(Sentence(text, {"protocols": protocols}))
    timed = table.dropna(subset=["latency_ms"])
    for name, values in conditions_of(timed).items():
        n = values[values != ""].nunique()
        if n > 1:
            what = str(name).removeprefix("latency_").replace("_", " ")
            text = f"Latency was measured under {n} values of {what} ({joined(values)}): it does not compare."
            said.append(Sentence(text, {f"values of {what}": n}))
    said += [
        Sentence(f"Rows of several versions of {name}: {joined(table[name])}.")
        for name in ("torch", "fpn_bench")
        if table.loc[table[name] != "", name].nunique() > 1
    ]
    for objective in evidence.objectives:
        missing = int(finished[objective.name].isna().sum())
        if missing:
            text = f"{count(missing, 'finished candidate')} without {objective.name}: not on the front."
            said.append(Sentence(text, {f"without {objective.name}": missing}))
    if any(objective.name == "latency_ms" for objective in evidence.objectives):
        half = (finished["latency_high_ms"] - finished["latency_low_ms"]) / 2
        noisy = int((half > NOISY_LATENCY * finished["latency_ms"]).sum())
        if noisy:
            text = (
                f"Latency of {count(noisy, 'candidate')} is known no better than ±{NOISY_LATENCY:.0%}, so its order "
                "on the front is not sure: measure on an idle machine."
            )
            said.append(Sentence(text, {"noisy latencies": noisy, "noise limit": NOISY_LATENCY}))
    predicted = table["latency_ms"].isna() & table["latency_predicted_ms"].notna() & (table["status"] == "rejected")
    if predicted.any():
        alone = int(predicted.sum())
        text = f"{count(alone, 'candidate')} rejected on predicted latency alone: in the list, in no figure of latency."
        said.append(Sentence(text, {"rejected on a prediction": alone}))
    running = int((table["status"] == "running").sum())
    if running:
        said.append(Sentence(f"{count(running, 'trial')} still running or cut off: not counted.", {"running": running}))
    return (*said, *(Sentence(text) for text in texts(evidence.meta.get("warnings"))))


def facts_info(evidence: Evidence) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Study, protocol, machine and versions as names and values; what is unknown is left out."""
    table, meta = evidence.table, evidence.meta
    study = {
        "objectives": ", ".join(f"{o.direction} {o.name}" for o in evidence.objectives),
        "hard constraints": ", ".join(evidence.constraints) or "none",
        "backbones": joined(table["backbone"]),
        "weights": joined(table["weights"]),
        "seeds": ", ".join(str(s) for s in sorted(set(table["seed"].dropna()))),
        "created": meta.get("created_at") or "",
    }
    machine = _without_versions(meta.get("machine") or {"machines": joined(table["machine_label"])})
    versions = meta.get("versions") or {n: joined(table[n]) for n in ("fpn_bench", "torch")}
    blocks = {
        "Study": study,
        "Protocol": {"id": evidence.protocol, **(meta.get("protocol") or {})},
        "Machine": machine,
        "Versions": versions,
    }
    flat = ((title, tuple((k, v) for k, v in _flatten(block) if v)) for title, block in blocks.items())
    return tuple((title, pairs) for title, pairs in flat if pairs)


def _without_versions(machine: Mapping[str, Any]) -> dict[str, Any]:
    """They have a block of their own; of several studies each has its machine."""
    return {
        name: _without_versions(value) if isinstance(value, Mapping) else value
        for name, value in machine.items()
        if name != "versions"
    }


def _flatten(data: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(data, Mapping):
        return [pair for k, v in data.items() for pair in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(data, (list, tuple)):
        return [(prefix, " x ".join(map(str, data)) if prefix.endswith("size") else ", ".join(map(str, data)))]
    return [(prefix, "" if data is None else str(data))]
