"""What may be compared at all: one protocol, and which conditions differ beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fpn_bench.analysis.rows import Objective, merit_first, one_protocol, parse_objectives
from fpn_bench.errors import ProtocolError
from fpn_bench.metrics import LATENCY_CONDITIONS, metric_of

Metadata = Mapping[str, Any]
Tables = tuple[pd.DataFrame, pd.DataFrame]

DEFAULT_OBJECTIVES = (Objective("ap", "maximize"), Objective("macs", "minimize"))
"""Where neither side says what was searched for."""


@dataclass(frozen=True)
class LeftOut:
    """Objectives that fronts are not compared in.

    Attributes:
        objectives: measured under other conditions on the two sides.
        conditions: ``field``, ``a``, ``b``: which; ``""`` for what is not recorded.
    """

    objectives: tuple[Objective, ...]
    conditions: pd.DataFrame


def differing_fields(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each leaf in which two pieces of plain data differ: ``("training.epochs", 8, 5)``; None where one lacks it."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from differing_fields(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b


def protocol_of_both(tables: Tables, metadata: tuple[Metadata, Metadata]) -> str:
    """The id of the protocol that both were taken under; ``""`` where neither has a row that says.

    Raises:
        ProtocolError: they are two, or one table holds several; names the fields that differ, as far as they are known.
    """
    ids = []
    for name, table, meta in zip("AB", tables, metadata, strict=True):
        try:
            found = one_protocol(table)
        except ProtocolError:
            held = sorted(set(table["protocol"]))
            raise ProtocolError(
                f"{name} holds rows of {len(held)} protocols, {' and '.join(map(repr, held[:2]))}, whose AP does not "
                "compare: give a table of one"
            ) from None
        ids.append(found or str((meta.get("protocol") or {}).get("id") or ""))
    if all(ids) and ids[0] != ids[1]:
        told = [meta.get("protocol") for meta in metadata]
        known = all(told)
        fields = told if known else [_protocol_columns(table) for table in tables]
        differ = [
            f"{field}: {_said(old)} in A, {_said(new)} in B"
            for field, old, new in differing_fields(*fields)
            if field != "id"
        ]
        said = ", ".join(differ) or "nothing that was recorded differs"
        more = "" if known else "; a table does not carry the whole protocol: give two studies to see all of it"
        raise ProtocolError(
            f"A was taken under protocol {ids[0]!r}, B under {ids[1]!r} ({said}{more}); their AP does not compare: "
            "give two of one protocol"
        )
    return ids[0] or ids[1]


def _said(value: Any) -> str:
    return "not recorded" if value is None or value == "" else json.dumps(value)


def _protocol_columns(table: pd.DataFrame) -> dict[str, Any]:
    """What a table tells of its protocol, in the protocol's own words."""
    columns = {
        "dataset": "dataset",
        "image_height": "image_height",
        "image_width": "image_width",
        "head": "head",
        "training.epochs": "epochs",
    }
    return {field: _values(table, column) for field, column in columns.items()}


def objectives_of_both(metadata: tuple[Metadata, Metadata]) -> tuple[tuple[Objective, ...], ...]:
    """The objectives to compare fronts in, the merit first, and those of A and of B, where both say theirs."""
    a, b = (parse_objectives(meta["objectives"]) if meta.get("objectives") else () for meta in metadata)
    chosen = tuple(o for o in a if o in b) if a and b else a or b
    return merit_first(chosen or DEFAULT_OBJECTIVES), a, b


def comparable_objectives(
    tables: Tables, objectives: tuple[Objective, ...]
) -> tuple[tuple[Objective, ...], tuple[LeftOut, ...]]:
    """The objectives but those that were measured under other conditions, which may be all of them; and the latter."""
    found: dict[tuple[str, ...], list[tuple[Objective, pd.DataFrame]]] = {}
    for objective in objectives:
        columns = metric_of(objective.name).conditions
        if not columns:
            continue
        sides = [
            conditions_of(table[(table["status"] == "complete") & table[objective.name].notna()], columns)
            for table in tables
        ]
        a, b = sides
        if len(a) and len(b) and set(map(tuple, a.to_numpy())) != set(map(tuple, b.to_numpy())):
            rows = [(c, _values(a, c), _values(b, c)) for c in columns if _values(a, c) != _values(b, c)]
            differ = pd.DataFrame(rows, columns=["field", "a", "b"], dtype="str")
            found.setdefault(tuple(map(str, rows)), []).append((objective, differ))
    left_out = tuple(LeftOut(tuple(o for o, _ in of), of[0][1]) for of in found.values())
    gone = [o for of in left_out for o in of.objectives]
    return tuple(o for o in objectives if o not in gone), left_out


def conditions_of(rows: pd.DataFrame, columns: Sequence[str] = LATENCY_CONDITIONS) -> pd.DataFrame:
    """The conditions of rows as text; ``""`` where not known. A machine is its label and id."""
    text = {column: rows[column].astype(object).where(rows[column].notna(), "").astype(str) for column in columns}
    if "machine" in columns:
        text["machine"] = (rows["machine_label"] + " " + rows["machine"]).str.strip()
    return pd.DataFrame(text, index=rows.index)


def other_conditions(tables: Tables, metadata: tuple[Metadata, Metadata]) -> pd.DataFrame:
    """What differs beside the protocol: ``field``, ``a``, ``b``.

    What only one side has recorded is told of latency alone, whose conditions decide whether it is compared.
    """
    timed = [conditions_of(table[table["latency_ms"].notna()]) for table in tables]
    told = [_facts(table, meta) for table, meta in zip(tables, metadata, strict=True)]
    rows = [(field, told[0][field], told[1][field]) for field in told[0] if told[1].get(field)]
    if all(map(len, timed)):
        a, b = timed
        rows += [(c, _values(a, c) or "not recorded", _values(b, c) or "not recorded") for c in LATENCY_CONDITIONS[1:]]
    return pd.DataFrame([row for row in rows if row[1] and row[1] != row[2]], columns=["field", "a", "b"], dtype="str")


def _facts(table: pd.DataFrame, meta: Metadata) -> dict[str, str]:
    """Facts about a side, with ``""`` for what is not known."""
    facts = {"machine": _values(conditions_of(table), "machine")}
    facts |= {column: _values(table, column) for column in ("dataset", "torch", "fpn_bench")}
    for backbone, rows in table.groupby("backbone"):
        facts[f"weights of {backbone}"] = _values(rows, "weights")
    for package, version in (meta.get("versions") or {}).items():
        if str(package).replace("-", "_") not in facts:
            facts[str(package)] = str(version)
    return facts | {"constraints": ", ".join(map(str, meta.get("constraints") or ("none",))) if meta else ""}


def _values(table: pd.DataFrame, column: str) -> str:
    """The values of a column that are known, as one text."""
    return ", ".join(sorted({str(v) for v in table[column].dropna()} - {""}))
