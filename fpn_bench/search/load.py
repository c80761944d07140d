"""A trial of a study becomes its candidate again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fpn_bench.analysis import differing_fields
from fpn_bench.candidates.candidate import Candidate
from fpn_bench.candidates.study_candidate import StudyCandidate
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.search.detectors import DetectorEvaluator, OnLoad, adapted, prepare, source_of
from fpn_bench.search.records import Columns
from fpn_bench.search.space import Space
from fpn_bench.search.study import Study, load_study
from fpn_bench.training.protocol import recorded_recipe

_SHORTEST_ID: Final = 6
"""Fewer digits than these are a trial's number, never how a candidate's id begins."""


def load_candidate(
    study: Study | str | Path,
    trial: int | str | None = None,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    on_load: OnLoad | None = None,
) -> StudyCandidate:
    """A candidate of a study, ready to be trained further or exported.

    Args:
        study: a loaded one, or what `fpn_bench.load_study` takes.
        trial: its number, or the beginning of its candidate's id; None is the best AP of the front.
        data: folder of the data set, where it lies elsewhere than when the search was begun, or of another one.
        weights: of the backbone, likewise; they must be the ones that the study was begun with.
        cache: folder of features and drawn data; None is `fpn_bench.paths.cache_home`.
        device: of the context.
        on_load: called while the data set is read.

    Raises:
        InputError: there is no such study or trial, or what it needs cannot be had here.
        ProtocolError: what is made here is another candidate than the trial's, e.g. for other weights.
    """
    study = study if isinstance(study, Study) else load_study(study)
    row = _row(study, trial)
    space = _narrowed(adapted(study.space(), data, None, None, {}), row["choices"], weights)
    context, _ = prepare(
        space, device=device, cache=cache, on_load=on_load, weights_ids=study.metadata().get("weights")
    )
    candidate: Candidate = DetectorEvaluator(space, context).describe(row["choices"]).candidate
    source = source_of(space.backbone(row["choices"]))
    if candidate.id != row["candidate"]:
        raise ProtocolError(
            f"trial {row['trial']} of study {study.name!r} was candidate {row['candidate']} with weights "
            f"{row['weights']}, and is {candidate.id} with {candidate.backbone.weights} here: give the weights that "
            "the study was begun with (--weights), or use the fpn_bench that it was made with"
        )
    there = {k: v for k, v in study.metadata()["protocol"].items() if k != "id"}
    there["training"] = recorded_recipe(there["training"]).model_dump(mode="json")
    differences = tuple(differing_fields(there, context.protocol.model_dump(mode="json")))
    if data is None and (changed := [d for d in differences if d[0] == "dataset_hash"]):
        raise ProtocolError(
            f"the data set of study {study.name!r} has changed since (hash {changed[0][1][:12]} there, "
            f"{changed[0][2][:12]} here): name the one to take with --data DIR"
        )
    return StudyCandidate(study, row, context, candidate, context.load_backbone(source), source.weights, differences)


def _narrowed(space: Space, choices: Mapping[str, Any], weights: str | None) -> Space:
    """The space with no backbone but that of a choice set, which is all that is loaded then; its choices stay."""
    entry = space.backbone(choices)
    narrowed = copy.copy(space)
    narrowed.backbones = (entry if weights is None else entry.model_copy(update={"weights": str(weights)}),)
    return narrowed


def _row(study: Study, trial: int | str | None) -> Columns:
    """The row that is meant, of a candidate that could be built."""
    rows = [row for row in study.rows() if row.get("candidate")]
    if trial is None:
        front = study.front()
        if not len(front):
            raise InputError(f"study {study.name!r} has no complete trial yet: let it go on, or name one with --trial")
        return _best_known(rows, str(front.sort_values("ap")["candidate"].iloc[-1]))
    text = str(trial)
    if text.isdecimal():
        for row in rows:
            if row["trial"] == int(text):
                return row
    is_number = isinstance(trial, int) or (text.isdecimal() and len(text) < _SHORTEST_ID)
    named = [] if is_number else sorted({row["candidate"] for row in rows if row["candidate"].startswith(text)})
    if len(named) == 1 and trial != "":
        return _best_known(rows, named[0])
    if named:
        raise InputError(
            f"expected the beginning of one id, got {trial!r} of {', '.join(named[:4])} ...: give more of it"
        )
    there = [row["trial"] for row in rows if row["status"] == "complete"]
    wanted = f"complete are {_listed(there)}" if there else "none is complete"
    raise InputError(f"study {study.name!r} has no candidate of trial {trial}: {wanted}")


def _best_known(rows: Sequence[Columns], candidate: str) -> Columns:
    """Of the rows of a candidate the complete one of the lowest seed, else the last."""
    own = [row for row in rows if row["candidate"] == candidate]
    return min((row for row in own if row["status"] == "complete"), key=lambda row: row["seed"], default=own[-1])


def _listed(numbers: Sequence[int], most: int = 12) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")
