"""Two tables of one protocol side by side: what changed from A to B, and how sure that is.

Differences are B - A, ratios B / A, and every verdict says how B stands to A. Swapping the two mirrors all of them.

Candidates of both are compared one by one (`fpn_bench.analysis.shared`).
Fronts and the best at each cost were picked by their figures: they are judged by draws of the true values
(`fpn_bench.analysis.two_fronts`), as the report judges its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from fpn_bench.analysis.comparable import (
    DEFAULT_OBJECTIVES,
    LeftOut,
    Metadata,
    comparable_objectives,
    objectives_of_both,
    other_conditions,
    protocol_of_both,
)
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import STATUSES, Objective, check_table, json_records, json_value, parse_objectives
from fpn_bench.analysis.shared import mean_change, shared_candidates
from fpn_bench.analysis.two_fronts import Change, FrontChange, described, front_change, levels, pool_tables, scatter_of
from fpn_bench.errors import InputError

COMPARISON_VERSION = 1
CORRECTION = "Holm"
DRAWS = 1_000


@dataclass(frozen=True)
class TableComparison:
    """What `compare_tables` found; `fpn_bench.reports.comparison_text` says it in words.

    Attributes:
        protocol: id both were taken under; ``""`` where neither has a row.
        objectives: of the fronts.
        searched: those that A and B were searched for; empty where their metadata do not say, or nobody asked them.
        left_out: objectives that were measured under other conditions, and are none of the fronts'.
        replaced: all were left out, so that fronts are compared in AP and MACs.
        conditions: ``field``, ``a``, ``b``: what else differs; figures may have changed for it.
        statuses: ``status``, ``a``, ``b``: rows of each.
        shared: one row a candidate that finished on both sides; the columns are those of `SHARED_COLUMNS`, and of
            further objectives the same as of AP.
        only: candidates that finished on one side only: ``side``, ``candidate``, ``neck``, ``neck_label``, ``seeds``,
            the objectives, ``on_joint_front``.
        ap: mean change of AP over the shared candidates that were trained twice, paired by candidate.
        front: the two fronts.
        levels: the best AP at several costs: ``cost`` (the column), ``at_most``, and for each side ``candidate_*``,
            ``neck_label_*``, ``ap_*``, ``seeds_*``; ``ap_difference``, the expected one, its ``_low`` and ``_high``,
            ``ap_verdict`` and ``ap_basis`` (expected | same training | equal figures). Where fronts are compared in
            another trained objective first, that one's name stands for ``ap``.
        seed_sd: the seeds' pooled standard deviation of AP, in points, the prior's without any second seed.
        seed_freedom: its degrees of freedom, those of the prior among them.
        seed_replicates: those of them that were seen in replicates.
        margin_ap: difference of AP that does not matter, in points.
        latency_tolerance: ratio of latencies, less one, that does not matter.
        margin_hypervolume: share of the union's hypervolume that does not matter.
        confidence: of all intervals.
    """

    protocol: str
    objectives: tuple[Objective, ...]
    searched: tuple[tuple[Objective, ...], tuple[Objective, ...]]
    left_out: tuple[LeftOut, ...]
    replaced: bool
    conditions: pd.DataFrame
    statuses: pd.DataFrame
    shared: pd.DataFrame
    only: pd.DataFrame
    ap: Change
    front: FrontChange
    levels: pd.DataFrame
    seed_sd: float
    seed_freedom: int
    seed_replicates: int
    margin_ap: float
    latency_tolerance: float
    margin_hypervolume: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not known is None."""
        front = self.front
        return {
            "schema_version": COMPARISON_VERSION,
            "protocol": self.protocol,
            "objectives": [{"name": o.name, "direction": o.direction} for o in self.objectives],
            "confidence": self.confidence,
            "correction": CORRECTION,
            "margin_ap": self.margin_ap,
            "latency_tolerance": self.latency_tolerance,
            "margin_hypervolume": self.margin_hypervolume,
            "seed_sd": json_value(self.seed_sd),
            "seed_freedom": self.seed_freedom,
            "conditions": json_records(self.conditions),
            "statuses": json_records(self.statuses),
            "ap": _fields(self.ap),
            "front": {
                "reference": [json_value(v) for v in front.reference],
                "hypervolume_a": json_value(front.hypervolume_a),
                "hypervolume_b": json_value(front.hypervolume_b),
                "hypervolume_union": json_value(front.hypervolume_union),
                "change": _fields(front.change),
                "members": json_records(front.members),
            },
            "levels": json_records(self.levels),
            "shared": json_records(self.shared),
            "only": json_records(self.only),
        }


def compare_tables(
    a: pd.DataFrame,
    b: pd.DataFrame,
    objectives: Sequence[Mapping[str, str] | Objective] | None = None,
    *,
    metadata: tuple[Metadata, Metadata] = ({}, {}),
    margin_ap: float = 0.5,
    latency_tolerance: float = 0.02,
    margin_hypervolume: float = 0.01,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> TableComparison:
    """How table ``b`` stands to table ``a``, candidate by candidate and front against front.

    Args:
        a, b: as `fpn_bench.analysis.make_table`, `read_csv` or a study's ``table()`` give them.
        objectives: of the fronts; None takes those that both studies' metadata name, else AP and MACs.
        metadata: of the two studies, where they are known; their protocols tell which fields differ.
        margin_ap: difference of AP that does not matter, in points.
        latency_tolerance: relative difference of latencies that does not matter.
        margin_hypervolume: difference of hypervolumes that does not matter, as a share of the union's.
        confidence: of all intervals and verdicts.
        draws: of the two fronts, for the interval of their hypervolumes.
        seed: of the draws.

    Raises:
        ProtocolError: the two were taken under two protocols, or one of them holds several; names what differs.
        InputError: no tables of fpn_bench; a margin or confidence that is none; unknown objectives.
    """
    for name, value in (
        ("margin_ap", margin_ap),
        ("latency_tolerance", latency_tolerance),
        ("margin_hypervolume", margin_hypervolume),
    ):
        if not 0 <= value < math.inf:
            raise InputError(f"expected {name} to be a finite number of 0 or more, e.g. {name}=0.02, got {value}")
    if not 0 < confidence < 1:
        raise InputError(f"expected confidence to be a share between 0 and 1, e.g. 0.95, got {confidence}")
    if draws < 2:
        raise InputError(f"expected draws to be at least 2, e.g. {DRAWS}, got {draws}")
    tables = (check_table(a), check_table(b))
    protocol = protocol_of_both(tables, metadata)
    wanted, *searched = objectives_of_both(metadata)
    if objectives is not None:
        wanted, searched = parse_objectives(objectives), [(), ()]
    kept, left_out = comparable_objectives(tables, wanted)
    wanted = kept or DEFAULT_OBJECTIVES
    both = pool_tables(tables, confidence)
    scatter = scatter_of(both.runs, "ap")
    shared = shared_candidates(both, wanted, margin_ap, latency_tolerance, confidence)
    ap = mean_change(shared, scatter, margin_ap, confidence)
    joint = pareto_mask(objective_values(both.candidates, wanted), [o.direction for o in wanted])
    front = front_change(both, joint, wanted, margin_hypervolume, confidence, draws, seed)
    alone = both.candidates.assign(on_joint_front=joint)[~both.candidates["candidate"].isin(shared["candidate"])]
    only = described(alone, wanted, "on_joint_front")
    return TableComparison(
        protocol=protocol,
        objectives=wanted,
        searched=(searched[0], searched[1]),
        left_out=left_out,
        replaced=not kept,
        conditions=other_conditions(tables, metadata),
        statuses=_statuses(tables),
        shared=shared,
        only=only,
        ap=ap,
        front=front,
        levels=levels(both, wanted, margin_ap, confidence),
        seed_sd=scatter.sd,
        seed_freedom=scatter.freedom,
        seed_replicates=scatter.replicates,
        margin_ap=margin_ap,
        latency_tolerance=latency_tolerance,
        margin_hypervolume=margin_hypervolume,
        confidence=confidence,
    )


def _statuses(tables: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    counts = [table["status"].value_counts() for table in tables]
    rows = [(s, *(int(c.get(s, 0)) for c in counts)) for s in STATUSES if any(s in c for c in counts)]
    return pd.DataFrame(rows, columns=["status", "a", "b"]).astype({"status": "str", "a": "int64", "b": "int64"})


def _fields(change: Change) -> dict[str, Any]:
    return {name: json_value(value) for name, value in asdict(change).items()}
