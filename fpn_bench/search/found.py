"""What a search found, ready to be worked with again: of a study and a trial, its candidate on a workbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpn_bench.analysis import differing_fields
from fpn_bench.assess import Workbench
from fpn_bench.backbones import Backbone
from fpn_bench.candidate import Candidate
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.model import DetectorSpec
from fpn_bench.search.ledger import Row, stored_rows
from fpn_bench.search.run import DetectorEvaluator, OnLoad, _adapted, _source, prepare
from fpn_bench.search.space import Space
from fpn_bench.search.study import Study, load_study


@dataclass(frozen=True)
class Found:
    """A candidate of a study, on a workbench with its data set, backbone and recipe.

    Attributes:
        study: where it was found.
        row: its row there; ``row["trial"]``, ``row["seed"]``, ``row["ap"]`` (None where it was not trained) ...
        bench: can assess it: ``bench.trained(candidate, row["seed"])`` is the training behind the row,
            ``bench.protocol.training`` its recipe, ``bench.dataset`` its data set.
        candidate: what it is.
        backbone: its own, mounted on the bench.
        weights: where the backbone's weights came from: a file, ``"hub"``, ``"pip:PACKAGE"`` or None (random).
        differences: fields in which the bench's protocol is not the study's, each (field, there, here): AP figures of
            the two do not compare. Empty unless ``data`` named another data set, or the study is of another release.
    """

    study: Study
    row: Mapping[str, Any]
    bench: Workbench
    candidate: Candidate
    backbone: Backbone
    weights: str | None
    differences: tuple[tuple[str, Any, Any], ...]

    @property
    def spec(self) -> DetectorSpec:
        """What its detector is made of; `fpn_bench.ImageDetector.build` makes it, `weights` are its backbone's."""
        return self.bench.spec(self.candidate)


def found(
    study: Study | str | Path,
    trial: int | str | None = None,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    on_load: OnLoad | None = None,
) -> Found:
    """A candidate of a study, ready to be trained further or exported.

    Args:
        study: a loaded one, or what `fpn_bench.load_study` takes.
        trial: its number, or the beginning of its candidate's id; None is the best AP of the front.
        data: folder of the data set, where it lies elsewhere than when the search was begun, or of another one.
        weights: of the backbone, likewise; they must be the ones that the study was begun with.
        cache: folder of features and drawn data; None is `fpn_bench.cache_home.cache_home`.
        device: of the workbench.
        on_load: called while the data set is read.

    Raises:
        InputError: there is no such study or trial, or what it needs cannot be had here.
        ProtocolError: what is made here is another candidate than the trial's, e.g. for other weights.
    """
    study = study if isinstance(study, Study) else load_study(study)
    row = _row(study, trial)
    space = Space.parse(study.last_run()["space"], source=f"study {study.name!r}")
    space = _adapted(space, data, None, None if weights is None else str(weights), False)
    bench, _ = prepare(space, device=device, cache=cache, on_load=on_load)
    candidate: Candidate = DetectorEvaluator(space, bench).describe(row["choices"]).candidate
    source = _source(space.backbone(row["choices"]))
    if candidate.id != row["candidate"]:
        raise ProtocolError(
            f"trial {row['trial']} of study {study.name!r} is candidate {row['candidate']} with weights "
            f"{row['weights']}, and {candidate.id} with {candidate.backbone.weights} came of it here: give the weights "
            "that the study was begun with (--weights), or take the fpn_bench that it was made with"
        )
    there = {k: v for k, v in study.metadata()["protocol"].items() if k != "id"}
    differences = tuple(differing_fields(there, bench.protocol.model_dump(mode="json")))
    if data is None and (changed := [d for d in differences if d[0] == "dataset_hash"]):
        raise ProtocolError(
            f"the data set of study {study.name!r} has changed since (hash {changed[0][1][:12]} there, "
            f"{changed[0][2][:12]} here): name the one to take with --data DIR"
        )
    return Found(study, row, bench, candidate, bench.mount(source), source.weights, differences)


def _row(study: Study, trial: int | str | None) -> Row:
    """The row that is meant, of a candidate that could be built."""
    rows = [row for _, row in stored_rows(study._study) if row is not None and row.get("candidate")]
    if trial is None:
        front = study.front()
        if not len(front):
            raise InputError(f"study {study.name!r} has no complete trial yet: let it go on, or name one with --trial")
        return _best_known(rows, str(front.sort_values("ap")["candidate"].iloc[-1]))
    if str(trial).isdecimal():
        for row in rows:
            if row["trial"] == int(trial):
                return row
    named = sorted({row["candidate"] for row in rows if row["candidate"].startswith(str(trial))})
    if len(named) == 1 and trial != "":
        return _best_known(rows, named[0])
    if named:
        raise InputError(f"trial {trial!r} came, and candidates {', '.join(named[:4])} ... begin so: say more of it")
    there = [row["trial"] for row in rows if row["status"] == "complete"]
    wanted = f"complete are {_listed(there)}" if there else "none is complete"
    raise InputError(f"study {study.name!r} has no candidate of trial {trial}: {wanted}")


def _best_known(rows: Sequence[Row], candidate: str) -> Row:
    """Of the rows of a candidate the complete one of the lowest seed, else the last."""
    own = [row for row in rows if row["candidate"] == candidate]
    return min((row for row in own if row["status"] == "complete"), key=lambda row: row["seed"], default=own[-1])


def _listed(numbers: Sequence[int], most: int = 12) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")
