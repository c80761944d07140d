"""Damaged files are answered right or refused in one line: no traceback, no hang, nothing left behind, none silent.

`fuzzing` has the driver, `fuzz_kinds` the kinds of file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from fuzz_kinds import KINDS
from fuzzing import JSON, TEXT, Answer, Kind, Mutator, Sample, Verdict, judge_apart, judge_here, truncate

from fpn_bench.errors import InputError

FEW = 2
"""Mutants of each kind in the ordinary suite."""


def _told(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(f"{v.kind} {v.seed} ({v.mutator}): {v.fault}" for v in verdicts)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_few_mutants_of_each_kind(kind: Kind, tmp_path: Path) -> None:
    faults = [verdict for verdict in judge_here(kind, range(FEW), tmp_path) if verdict.fault]
    assert not faults, _told(faults)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_all_mutants(kind: Kind) -> None:
    verdicts = list(judge_apart(kind, 0, kind.mutants))
    assert len(verdicts) == kind.mutants
    faults = [verdict for verdict in verdicts if verdict.fault]
    assert not faults, _told(faults)


def test_a_thousand_mutants_are_judged() -> None:
    assert sum(kind.mutants for kind in KINDS.values()) >= 1000


# -- the driver itself sees every kind of fault ----------------------------------------------------------------------


def _kind(read) -> Kind:
    def make(folder: Path) -> Sample:
        (folder / "file.json").write_text(json.dumps({"a": [1, 2, 3], "b": "text"}))
        return Sample(folder / "file.json", lambda: read(folder / "file.json"))

    return Kind("made up", make, (Mutator("truncate", truncate, "said"),), 5)


def _only(kind: Kind, folder: Path) -> str:
    (verdict,) = judge_here(kind, [0], folder)
    return verdict.fault


VALID = json.dumps({"a": [1, 2, 3], "b": "text"})


def test_faults_are_seen(tmp_path: Path) -> None:
    def silent(path):
        return Answer(len(path.read_text()))

    def loud(path):
        return Answer(json.loads(path.read_text()))

    def lines(path):
        if path.read_text() != VALID:
            raise InputError("two\nlines")
        return Answer(1)

    def litter(path):
        if path.read_text() != VALID:
            path.with_name("file.tmp").touch()
            raise InputError("no")
        return Answer(1)

    def refuses(path):
        if path.read_text() != VALID:
            raise InputError("no")
        return Answer(1)

    found = {}
    for number, read in enumerate((silent, loud, lines, litter, refuses)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found[read.__name__] = _only(_kind(read), folder)
        assert [path.name for path in folder.iterdir()] == ["file.json"]  # as it was
        assert (folder / "file.json").read_text() == VALID
    assert "figures changed silently" in found["silent"]
    assert "JSONDecodeError" in found["loud"]
    assert "no line" in found["lines"]
    assert "left behind" in found["litter"]
    assert found["refuses"] == ""


def test_a_mutant_is_the_same_whenever_it_is_made() -> None:
    content = json.dumps({"a": [1, 2.5, {"b": "text", "c": None}], "d": {"e": True}}).encode()
    for mutator in (*JSON, *TEXT):
        made = [mutator.apply(content, random.Random(7)) for _ in range(2)]
        assert made[0] == made[1], mutator.name
