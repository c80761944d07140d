"""An instant evaluator over the real zoo: AP and latency are made up from the graph, costs are real."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpn_bench.errors import TrialError
from fpn_bench.graph import cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search import Described, Space, Study
from fpn_bench.search.storage import QUEUED, Request
from fpn_bench.training.protocol import Protocol, TrainingRecipe

FEATURES = (FeatureSpec(3, 40, 8), FeatureSpec(4, 112, 16), FeatureSpec(5, 320, 32))
ADAMW = TrainingRecipe(optimizer="adamw")  # the only one when the studies in tests/data were begun
PROTOCOL = Protocol(dataset="made up", dataset_hash="0" * 64, image_size=(192, 192), training=ADAMW)

SPACE: dict[str, Any] = {
    "schema_version": 1,
    "name": "made-up",
    "backbone": {"name": "made_up_net"},
    "data": {"kind": "synthetic"},
    "image_size": [192, 192],
    "neck": {
        "family": {"choices": ["fpn", "pafpn"]},
        "channels": {"choices": [32, 48, 64, 96]},
        "out_levels": {"choices": [[3, 4, 5], [3, 4, 5, 6]]},
        "merge": {"choices": ["sum", "fast_normalised", "concat", "max"]},
        "repeats": {"range": [1, 3], "when": {"family": "fpn"}},
    },
    "objectives": {"ap": "maximise", "latency_ms": "minimise"},
    "budget": {"trials": 16},
}


def space(**changes: Any) -> Space:
    return Space.from_dict({**SPACE, **changes})


class InstantEvaluator:
    """Counts what it is asked; `log` has one line a training, so that a killed process leaves a trace."""

    def __init__(self, space: Space, *, train_s: float = 0.0, log: Path | None = None) -> None:
        self.space, self.train_s, self.log = space, train_s, log
        self.described: list[str] = []
        self.predicted: list[str] = []
        self.measured: list[str] = []
        self.trained: list[str] = []
        self.fails_on: dict[str, Exception] = {}  # neck family -> what is raised in training

    def describe(self, choices: Mapping[str, Any]) -> Described:
        graph = self.space.to_graph(choices, FEATURES)
        costs = cost(graph, self.space.image_size)
        self.described.append(graph.id)
        facts = {
            "params": costs.params + 1_000_000,
            "macs": costs.macs + 10**8,
            "neck_params": costs.params,
            "neck_macs": costs.macs,
            "backbone": self.space.backbone(choices).name,
        }
        family = self.space.settings(choices)["family"]
        return Described(graph.id, self.space.label(choices), family, json.dumps(graph.to_dict()), facts)

    def predict(self, described: Described) -> Mapping[str, Any]:
        """A third too high or too low, and it knows that; knows nothing before it has measured something."""
        self.predicted.append(described.id)
        if not self.measured:
            return {}
        guess = (2 + described.facts["neck_macs"] / 4e7) * (4 / 3 if int(described.id[0], 16) % 2 else 3 / 4)
        ends = {"latency_predicted_low_ms": 0.7 * guess, "latency_predicted_high_ms": 1.4 * guess}
        return {"latency_predicted_ms": guess, **ends}

    def measure(self, described: Described) -> Mapping[str, Any]:
        self.measured.append(described.id)
        latency = 2 + described.facts["neck_macs"] / 4e7
        return {"latency_ms": latency, "latency_low_ms": 0.9 * latency, "latency_high_ms": 1.1 * latency}

    def train(self, described: Described, seed: int, epochs: int, on_progress: Any) -> Mapping[str, Any]:
        self.trained.append(described.id)
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(described.id + "\n")
        on_progress({"epoch": 1, "epochs": 1})
        time.sleep(self.train_s)
        if described.neck in self.fails_on:
            raise self.fails_on[described.neck]
        fused = {"fpn": 4.0, "pafpn": 5.0}.get(described.neck, 0.0)
        noise = int(described.id[:6], 16) / 16**6
        return {"ap": 15 + fused + described.facts["neck_params"] ** 0.25 / 10 + noise + 0.1 * seed, "train_s": 0.0}


@dataclass(frozen=True)
class Training:
    """What a worker said of a training: ``"start"`` or ``"end"``, of what, to which epoch, and its own process."""

    what: str
    candidate: str
    seed: int
    epochs: int
    pid: int


class Told(InstantEvaluator):
    """Has in `log` a line when a training starts and one when it has come to its end."""

    def train(self, described: Described, seed: int, epochs: int, on_progress: Any) -> Mapping[str, Any]:
        self._say("start", described, seed, epochs)
        on_progress({"epoch": 1, "epochs": epochs})
        for _ in range(10):
            time.sleep(self.train_s / 10)
            on_progress({"epoch": 1, "epochs": epochs})
        result = InstantEvaluator(self.space).train(described, seed, epochs, on_progress)
        self._say("end", described, seed, epochs)
        return result

    def _say(self, what: str, described: Described, seed: int, epochs: int) -> None:
        assert self.log is not None
        with self.log.open("a") as stream:
            stream.write(f"{what} {described.id} {seed} {epochs} {os.getpid()}\n")


@dataclass(frozen=True)
class Prepare:
    """Makes the evaluator of a worker, in its own process."""

    space: Space
    train_s: float
    log: Path

    def __call__(self, number: int) -> tuple[InstantEvaluator, Mapping[str, Any]]:
        return Told(self.space, train_s=self.train_s, log=self.log), {"machine_label": f"worker {number}"}

    def trainings(self) -> list[Training]:
        """What was said so far; a line that is being written is left out."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        said = (line.split() for line in lines if line.endswith("\n"))
        return [Training(what, name, int(seed), int(epochs), int(pid)) for what, name, seed, epochs, pid in said]

    def under_way(self) -> list[Training]:
        """Trainings that have not come to their end, with the process that is, or was, at each."""
        said = self.trainings()
        over = {(t.candidate, t.seed, t.epochs, t.pid) for t in said if t.what == "end"}
        return [t for t in said if t.what == "start" and (t.candidate, t.seed, t.epochs, t.pid) not in over]


def check_study(study: Study, prepare: Prepare, *, lost_at_once: int = 0) -> None:
    """Every trial is finished or failed with a reason, none is lost, and nothing was trained twice to the end.

    A worker that dies between the end of a training and the storing of its row leaves nothing behind, so that the
    training is made again; ``lost_at_once`` workers died at a moment that nobody chose, and each may have been there.
    """
    table = study.table()
    assert list(table.trial) == list(range(len(table)))
    told = study._study.get_trials(deepcopy=False)
    assert all(trial.state.is_finished() for trial in told)
    assert sorted(trial.user_attrs["trial"] for trial in told) == list(table.trial)  # Optuna knows each, once
    assert set(table.status) <= {"complete", "stopped", "continued", "repeat", "rejected", "failed"}
    assert (table.reason[table.status == "failed"] != "").all()
    complete = table[table.status == "complete"]
    assert not complete.duplicated(["candidate", "seed"]).any()
    ended = Counter((t.candidate, t.seed, t.epochs) for t in prepare.trainings() if t.what == "end")
    twice = [key for key, times in ended.items() if times > 1]
    assert len(twice) <= lost_at_once, twice
    assert {(name, seed) for name, seed, _ in ended} >= set(zip(complete.candidate, complete.seed, strict=True))


def begin_and_die(study: Study, request: Request | None = None) -> int:
    """A worker takes what is queued, else a new trial, and is never heard of again; the trial's number."""
    assert study._trials_store is not None
    with study._trials_store.transaction() as transaction:
        queued = [trial.trial for trial in transaction.changes(-1) if trial.state == QUEUED]
        if request is None and queued:
            transaction.begin(min(queued), "a worker that died")
            return min(queued)
        return transaction.begin_new(request or Request(), "a worker that died")


def queued_in(study: Study) -> list[Request]:
    """What waits in a study."""
    assert study._trials_store is not None
    return [trial.request for trial in study._trials_store.changes() if trial.state == QUEUED]


__all__ = [
    "FEATURES",
    "PROTOCOL",
    "SPACE",
    "InstantEvaluator",
    "Prepare",
    "Training",
    "TrialError",
    "begin_and_die",
    "check_study",
    "queued_in",
    "space",
]
