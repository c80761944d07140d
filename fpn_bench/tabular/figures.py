"""The figures of a table of trained networks: AP after each epoch, costs, time; of a seed or their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpn_bench.errors import InputError
from fpn_bench.search.space import CHEAP_FACTS
from fpn_bench.tabular.files import LATENCY, Row

_SPENT = ("train_s", "cpu_s", "loss")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Record:
    """What the table has of a network.

    Attributes:
        graph_id: `NeckGraph.id` of the neck.
        candidate: id of the detector: backbone, neck, head and image size.
        label: the neck for people.
        epochs: of the training; fewer than all of them is the training as it stood then, under the whole schedule.
        seeds: of the trainings behind the figures, which are means over them.
        ap: COCO AP after so many epochs, percent points.
        params, macs: of the detector for one image.
        neck_params, neck_macs: of its neck.
        latency_ms: median of one image through the detector; NaN where the table has no latencies.
        latency_low_ms, latency_high_ms: its 95 % interval.
        train_s, cpu_s: what the training took until then, an even share of the whole for each epoch: seconds of clock
            without evaluations, and CPU seconds with one after each epoch. Only cpu_s compares between networks.
        loss: of the last epoch's training; NaN for fewer epochs, for it was recorded at the end alone.
    """

    graph_id: str
    candidate: str
    label: str
    epochs: int
    seeds: tuple[int, ...]
    ap: float
    params: int
    macs: int
    neck_params: int
    neck_macs: int
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    train_s: float
    cpu_s: float
    loss: float


class Figures:
    """What was measured of each network, by its index.

    Attributes:
        epochs: of a whole training.
        seeds: of the trainings, ascending.
        costs: name of a cost -> value of each network; latency is NaN where it was not measured.
    """

    def __init__(self, name: str, epochs: int, seeds: tuple[int, ...], trainings: Sequence[Sequence[Row]]) -> None:
        """Of table ``name``: ``trainings`` has the rows of each network, one for each of ``seeds``."""
        self.epochs, self.seeds = epochs, seeds
        self._table = name
        self._networks = [of[0] for of in trainings]
        ends = range(1, epochs + 1)
        aps = np.array([[[float(row[f"ap_{k}"]) for k in ends] for row in of] for of in trainings])
        spent = np.array([[[float(row[name]) for name in _SPENT] for row in of] for of in trainings])
        # Plain lists, by seed and for their mean: a record is made of them in microseconds.
        parts = {None: slice(None)} | {seed: slice(at, at + 1) for at, seed in enumerate(self.seeds)}
        self._aps = {seed: aps[:, part].mean(axis=1).tolist() for seed, part in parts.items()}
        self._spent = {seed: spent[:, part].mean(axis=1).tolist() for seed, part in parts.items()}
        self.costs: dict[str, list[Any]] = {
            **{name: [int(row[name]) for row in self._networks] for name in CHEAP_FACTS},
            **{name: [float(row[name] or "nan") for row in self._networks] for name in LATENCY},
        }
        self._records: dict[tuple[int, int | None, int | None], Record] = {}

    @property
    def has_latency(self) -> bool:
        return not math.isnan(self.costs["latency_ms"][0])

    def curve(self, index: int, seed: int) -> list[float]:
        """AP after each epoch."""
        return list(self._aps[seed][index])

    def train_s(self, index: int, seed: int) -> float:
        return float(self._spent[seed][index][0])

    def record(self, index: int, epochs: int | None, seed: int | None) -> Record:
        """See `TabularBenchmark.query`."""
        known = self._records.get((index, epochs, seed))
        if known is None:
            known = self._records[index, epochs, seed] = self._record(index, self._epochs(epochs), self._seed(seed))
        return known

    def _record(self, index: int, until: int, of: int | None) -> Record:
        train_s, cpu_s, loss = self._spent[of][index]
        network = self._networks[index]
        return Record(
            graph_id=network["graph_id"],
            candidate=network["candidate"],
            label=network["label"],
            epochs=until,
            seeds=self.seeds if of is None else (of,),
            ap=self._aps[of][index][until - 1],
            **{name: values[index] for name, values in self.costs.items()},
            train_s=train_s * until / self.epochs,
            cpu_s=cpu_s * until / self.epochs,
            loss=loss if until == self.epochs else math.nan,
        )

    def values(self, objectives: Sequence[str], epochs: int | None, seed: int | None) -> Floats:
        """Array [networks, objectives]; epochs and seed as in `TabularBenchmark.query`."""
        until = self._epochs(epochs)
        ap = [curve[until - 1] for curve in self._aps[self._seed(seed)]]
        return np.array([ap if name == "ap" else self.costs[name] for name in objectives], dtype=np.float64).T

    def _epochs(self, epochs: int | None) -> int:
        if epochs is None:
            return self.epochs
        if epochs not in range(1, self.epochs + 1):
            raise InputError(
                f"expected epochs from 1 to {self.epochs}, which table {self._table!r} has, got {epochs!r}"
            )
        return int(epochs)

    def _seed(self, seed: int | None) -> int | None:
        if seed is None:
            return None
        if seed not in self.seeds:
            listed = ", ".join(map(str, self.seeds))
            raise InputError(
                f"expected one of the seeds {listed} of table {self._table!r}, or None for their mean, got {seed!r}"
            )
        return int(seed)
