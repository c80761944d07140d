"""A table on disk: ``NAME.csv``, one row a training, and ``NAME.json`` beside it, what all of them have in common.

The CSV has these columns, in any order; others may stand beside them. Choices are JSON, empty where they are not asked.

    protocol, candidate, graph_id, label     ids of protocol, detector and neck graph; the neck for people
    choice.KEY                               a choice set that gives the network
    seed                                     of the training
    params, macs, neck_params, neck_macs     for one image
    latency_ms, latency_low_ms, latency_high_ms    median and its 95 % interval; empty while not measured
    ap_1 ... ap_N                            AP after each epoch, percent points
    loss                                     training loss of the last epoch
    train_s, cpu_s                           clock and CPU seconds of the whole training, cpu_s with its evaluations
    machine, latency_device                  may be absent: what trained, what latency was measured on
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fpn_bench.analysis.rows import (
    CHOICE_PREFIX,
    check_file_name,
    csv_rows,
    parse_number,
    parse_whole,
)
from fpn_bench.errors import FormatVersionError, InputError
from fpn_bench.json_text import parse_json
from fpn_bench.paths import write_text_atomic
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search.space import CHEAP_FACTS
from fpn_bench.training.protocol import Protocol

SCHEMA_VERSION = 1
LATENCY = ("latency_ms", "latency_low_ms", "latency_high_ms")
"""Of a network: all three, or none."""

Row = dict[str, str]
"""One training, as it is written."""


class Metadata(BaseModel):
    """What all rows of a table have in common.

    Attributes:
        name: of the table.
        space: text of the space file that is listed exhaustively.
        features: of the backbone, which the neck graphs begin at.
        weights: id of the backbone's weights.
        protocol: what the AP is taken under.
        protocol_id: of it, as it stands in the rows.
        written_on: machine and versions that wrote the table; what trained stands in the rows, where it was recorded.
        recorder: what made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    space: str
    features: tuple[FeatureSpec, ...]
    weights: str
    protocol: Protocol
    protocol_id: str
    written_on: dict[str, Any]
    recorder: str


def read_table(path: Path) -> tuple[Metadata, list[Row]]:
    """What `write_table` wrote.

    Args:
        path: of the CSV; the JSON lies beside it.

    Raises:
        FormatVersionError: written by a newer fpn_bench.
        InputError: a file is missing or damaged.
    """
    try:
        data = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        header, lines = csv_rows(path)
        rows = [dict(zip(header, line, strict=True)) for line in lines]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be read with the .json beside it: {reason}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise FormatVersionError(
            f"{path} has schema_version {version}, this fpn_bench reads up to {SCHEMA_VERSION}: upgrade fpn-bench"
        )
    try:
        metadata = Metadata.model_validate(data)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{path.with_suffix('.json')}: {where}: {error.errors()[0]['msg']}") from error
    try:
        check_rows(metadata, rows)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return metadata, rows


def write_table(folder: Path, metadata: Metadata, rows: Sequence[Mapping[str, str]]) -> tuple[Path, list[str]]:
    """Write what is complete of recorded rows.

    A seed that some network lacks is left out, for a mean over seeds compares only where all networks have the same
    ones; so are latencies, unless every network has one.

    Args:
        folder: of ``NAME.csv`` and ``NAME.json``.
        metadata: of the table.
        rows: of its protocol.

    Returns:
        The path of the CSV, and what was left out and why, a sentence each.

    Raises:
        InputError: no seed is complete, or rows contradict each other; nothing was written.
    """
    check_file_name(metadata.name, "table")
    networks = {row["candidate"] for row in rows}
    counts = Counter(row["seed"] for row in rows)
    left_out = [
        f"seed {seed} is left out: {count} of {len(networks)} networks have it"
        for seed, count in counts.items()
        if count < len(networks)
    ]
    kept = [dict(row) for row in rows if counts[row["seed"]] >= len(networks)]
    measured = {row["candidate"] for row in kept if all(row[name] for name in LATENCY)}
    if measured != networks:
        left_out.append(f"latency is left out: {len(measured)} of {len(networks)} networks have it")
        kept = [row | dict.fromkeys(LATENCY, "") for row in kept]
    check_rows(metadata, kept)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    path = folder / f"{metadata.name}.csv"
    write_text_atomic(path, text.getvalue())
    write_text_atomic(path.with_suffix(".json"), json.dumps(metadata.model_dump(mode="json"), indent=1) + "\n")
    return path, left_out


def check_rows(metadata: Metadata, rows: Iterable[Mapping[str, str]]) -> None:
    """Make sure that every network has every seed once, one set of facts, and numbers where numbers belong.

    Raises:
        InputError: says which row does not.
    """
    facts: dict[str, tuple[str, ...]] = {}
    seeds: dict[str, set[int]] = {}
    aps = [f"ap_{epoch}" for epoch in range(1, metadata.protocol.training.epochs + 1)]
    for number, row in enumerate(rows, start=2):  # as an editor counts lines
        choices = [name for name in row if name.startswith(CHOICE_PREFIX)]
        try:
            own = tuple(row[name] for name in ("graph_id", "label", *choices, *CHEAP_FACTS, *LATENCY))
            numbers = [parse_number(row[name]) for name in (*aps, "loss", "train_s", "cpu_s")]
            numbers += [parse_number(row[name]) for name in LATENCY if any(row[other] for other in LATENCY)]
            for name in CHEAP_FACTS:
                parse_whole(row[name])
            for name in choices:
                if row[name]:
                    parse_json(row[name])
            seed, name, protocol = parse_whole(row["seed"]), row["candidate"], row["protocol"]
        except KeyError as error:
            raise InputError(f"line {number}: expected a column {error}, got {len(row)} columns without it") from error
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"line {number}: {reason}; expected a whole row") from error
        if not all(map(math.isfinite, numbers)):
            raise InputError(
                f"line {number}: expected the finite numbers of a finished training, got a value that is none"
            )
        if protocol != metadata.protocol_id:
            raise InputError(f"line {number}: expected protocol {metadata.protocol_id}, got {protocol[:80]}")
        if facts.setdefault(name, own) != own:
            raise InputError(f"line {number}: {name} has other choices or costs than in a line before")
        if seed in seeds.setdefault(name, set()):
            raise InputError(f"line {number}: {name} occurs twice with seed {seed}")
        seeds[name].add(seed)
    if not seeds:
        raise InputError("no seed is complete over all networks; record one first")
    every = set.union(*seeds.values())
    lacking = next((name for name, own in seeds.items() if own != every), None)
    if lacking is not None:
        raise InputError(
            f"expected the seeds {sorted(every)} of each network, got {sorted(seeds[lacking])} of {lacking}"
        )
