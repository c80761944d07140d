"""A table of trained networks as something to ask: AP after any epoch, costs, the front, how much of it was found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.pareto import pareto_mask
from fpn_bench.analysis.rows import CHOICE_PREFIX, make_table
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.metrics import metric_of
from fpn_bench.search.space import CHEAP_FACTS, COSTS, Choices, Space
from fpn_bench.tabular.files import LATENCY, Metadata, Row, read_table

if TYPE_CHECKING:
    import pandas as pd

    from fpn_bench.tabular.evaluator import TabularEvaluator

_SPENT = ("train_s", "cpu_s", "loss")
Floats = npt.NDArray[np.float64]
Network = NeckGraph | str | Mapping[str, Any]
"""How a network is named: its neck graph, the id of that graph or of the detector around it, or a choice set."""


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


class TabularBenchmark:
    """Every network of a space, trained with every seed. Make one with `load`.

    Networks stand in the order of `space.enumerate()`.

    Attributes:
        name: of the table.
        metadata: protocol, backbone, machine and versions.
        features: of the backbone; necks to ask for are made over them.
        seeds: of the trainings, ascending.
        epochs: of a whole training.
    """

    def __init__(self, metadata: Metadata, rows: Sequence[Row]) -> None:
        """See `load`; the rows are checked (`files.check_rows`)."""
        self.metadata = metadata
        self.name = metadata.name
        self.features = metadata.features
        self.epochs = metadata.protocol.training.epochs
        self.seeds = tuple(sorted({int(row["seed"]) for row in rows}))
        by_choices = {_spelling(_choices(row)): row for row in rows}
        written = Space.parse(metadata.space, source=f"space of table {metadata.name!r}")
        self._networks = [by_choices[key] for key in map(_spelling, written.enumerate()) if key in by_choices]
        found = {(row["candidate"], int(row["seed"])): row for row in rows}
        if len(self._networks) * len(self.seeds) != len(rows):
            raise InputError(
                f"expected a row for each of {len(self._networks)} networks of its space and {len(self.seeds)} seeds "
                f"in table {self.name!r}, got {len(rows)}"
            )
        trainings = [[found[row["candidate"], seed] for seed in self.seeds] for row in self._networks]
        ends = range(1, self.epochs + 1)
        aps = np.array([[[float(row[f"ap_{k}"]) for k in ends] for row in of] for of in trainings])
        spent = np.array([[[float(row[name]) for name in _SPENT] for row in of] for of in trainings])
        # Plain lists, by seed and for their mean: a record is made of them in microseconds.
        parts = {None: slice(None)} | {seed: slice(at, at + 1) for at, seed in enumerate(self.seeds)}
        self._aps = {seed: aps[:, part].mean(axis=1).tolist() for seed, part in parts.items()}
        self._spent = {seed: spent[:, part].mean(axis=1).tolist() for seed, part in parts.items()}
        self._costs: dict[str, list[Any]] = {
            **{name: [int(row[name]) for row in self._networks] for name in CHEAP_FACTS},
            **{name: [float(row[name] or "nan") for row in self._networks] for name in LATENCY},
        }
        self._machines = [[(r.get("machine") or "", r.get("latency_device") or "") for r in of] for of in trainings]
        self._written = written
        self._by_id = {row[name]: i for i, row in enumerate(self._networks) for name in ("graph_id", "candidate")}
        self._by_spelling = {_spelling(_choices(row)): i for i, row in enumerate(self._networks)}
        self._records: dict[tuple[int, int | None, int | None], Record] = {}
        self._graphs: dict[int, NeckGraph] = {}

    # -- what is in it ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of networks."""
        return len(self._networks)

    metrics = ("ap", "latency_ms", *CHEAP_FACTS)
    """What networks can be judged by."""

    @property
    def has_latency(self) -> bool:
        """Whether latencies were measured."""
        return not math.isnan(self._costs["latency_ms"][0])

    @property
    def objectives(self) -> tuple[str, ...]:
        """What networks are judged by unless said otherwise: AP and latency, or MACs where there are no latencies."""
        return ("ap", "latency_ms") if self.has_latency else ("ap", "macs")

    @cached_property
    def space(self) -> Space:
        """The space whose every network is in the table, to be searched for `objectives`."""
        if tuple(o.name for o in self._written.objectives) == self.objectives:
            return self._written
        return self._written.replace(objectives={name: metric_of(name).direction for name in self.objectives})

    def index(self, network: Network) -> int:
        """The place of a network among those of the table.

        A choice set may leave out what the family has a default for, and say what the space holds constant: what
        counts is the network it makes.

        Raises:
            UnknownNameError: it is not in the table; says what is.
            InputError: a choice set of which no neck can be built.
        """
        if isinstance(network, str):
            found = self._by_id.get(network)
            name = network
        elif isinstance(network, NeckGraph):
            found = self._by_id.get(network.id)
            name = network.id
        else:
            spelling = _spelling(network)
            found = self._by_spelling.get(spelling)
            if found is None:
                choices = json.loads(spelling)  # plain values only
                found = self._by_id.get(self._built(choices).id)
                name = self.space.label(choices)
                if found is not None:
                    self._by_spelling[spelling] = found
        if found is None:
            known = [row["label"] for row in self._networks] if isinstance(network, Mapping) else [*self._by_id]
            raise UnknownNameError(
                f"network of table {self.name!r}, which holds {self._held()};", name, known, "TabularBenchmark.table"
            )
        return found

    def choices(self, network: Network) -> Choices:
        """The choice set of the space that makes a network. Raises as `index` does."""
        return _choices(self._networks[self.index(network)])

    def graph(self, network: Network) -> NeckGraph:
        """The neck of a network. Raises as `index` does."""
        index = self.index(network)
        if index not in self._graphs:
            self._graphs[index] = self._written.to_graph(_choices(self._networks[index]), self.features)
        return self._graphs[index]

    def query(self, network: Network, epochs: int | None = None, seed: int | None = None) -> Record:
        """What the table has of a network.

        Args:
            network: its neck graph (over `features`), an id, or a choice set; see `index`.
            epochs: after which AP is read; None is the whole training.
            seed: of one training; None is the mean over all `seeds`.

        Raises:
            UnknownNameError: it is not in the table.
            InputError: an epoch or a seed that the table lacks.
        """
        index = self.index(network)
        record = self._records.get((index, epochs, seed))
        if record is None:
            record = self._records[index, epochs, seed] = self._record(index, epochs, seed)
        return record

    def table(self) -> pd.DataFrame:
        """One row a network and seed, in the columns of a study's table (`fpn_bench.analysis.COLUMNS`)."""
        protocol = self.metadata.protocol
        rows: list[dict[str, Any]] = []
        for index, network in enumerate(self._networks):
            for at, seed in enumerate(self.seeds):
                machine, latency_device = self._machines[index][at]
                curve = self._aps[seed][index]
                rows.append(
                    {
                        **{f"{CHOICE_PREFIX}{key}": value for key, value in _choices(network).items()},
                        **{name: of[index] for name, of in self._costs.items()},
                        "study": self.name,
                        "trial": len(rows),
                        "candidate": network["candidate"],
                        "status": "complete",
                        "source": "enqueued",
                        "neck": self._written.family(_choices(network)),
                        "neck_label": network["label"],
                        "seed": seed,
                        "protocol": self.metadata.protocol_id,
                        "dataset": protocol.dataset,
                        "image_height": protocol.image_size[0],
                        "image_width": protocol.image_size[1],
                        "backbone": self._written.backbones[0].name,
                        "weights": self.metadata.weights,
                        "head": f"{protocol.head.kind} {protocol.head.convs} convs",
                        "epochs": self.epochs,
                        "epochs_trained": self.epochs,
                        "ap": curve[-1],
                        "ap_curve": json.dumps([[k, ap] for k, ap in enumerate(curve, start=1)]),
                        "train_s": self._spent[seed][index][0],
                        "machine_label": machine,
                        "latency_device": latency_device,
                    }
                )
        return make_table(rows)

    # -- searching it -----------------------------------------------------------------------------------------------

    def evaluator(self, space: Space | None = None) -> TabularEvaluator:
        """What the driver of `fpn_bench.search` can search this table by, in place of real trainings.

        Args:
            space: that will be searched, whose choice sets make networks of the table: by default `space`, or what
                `Space.replace` makes of it.

        Raises:
            InputError: the space wants latencies or further seeds that the table lacks.
        """
        from fpn_bench.tabular.evaluator import TabularEvaluator

        return TabularEvaluator(self, space or self.space)

    # -- judging a search -------------------------------------------------------------------------------------------

    def front(
        self, objectives: Sequence[str] | None = None, *, epochs: int | None = None, seed: int | None = None
    ) -> tuple[Record, ...]:
        """The networks that no other beats in every objective, best first objective first.

        Args:
            objectives: names of `metrics`; None is `self.objectives`.
            epochs, seed: see `query`.

        Raises:
            InputError: an objective, epoch or seed that the table lacks.
        """
        wanted = self._wanted(objectives)
        values = self._values(wanted, epochs, seed)
        members = np.flatnonzero(pareto_mask(values, [metric_of(name).direction for name in wanted]))
        sign = -1 if metric_of(wanted[0]).direction == "maximize" else 1
        best_first = members[np.argsort(sign * values[members, 0], kind="stable")]
        return tuple(self._record(index, epochs, seed) for index in best_first.tolist())

    def reference(self, objectives: Sequence[str] | None = None) -> tuple[float, ...]:
        """The point that hypervolume is taken from: AP 0, and the table's highest value of each cost."""
        return tuple(0.0 if name == "ap" else float(max(self._costs[name])) for name in self._wanted(objectives))

    def hypervolume_fraction(
        self,
        evaluated: Iterable[Network],
        objectives: Sequence[str] | None = None,
        *,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> float:
        """Hypervolume of some networks as a share of that of the whole table, from `reference`: 0 to 1.

        Args:
            evaluated: what a search has looked at, named as for `query`.
            objectives: see `front`.
            epochs, seed: see `query`; by default the mean over seeds of whole trainings, whatever the search saw.

        Raises:
            UnknownNameError: a network that is not in the table.
            InputError: an objective, epoch or seed that the table lacks.
        """
        wanted = self._wanted(objectives)
        directions, reference = [metric_of(name).direction for name in wanted], self.reference(wanted)
        values = self._values(wanted, epochs, seed)
        found = values[sorted({self.index(network) for network in evaluated})]
        return hypervolume(found, directions, reference) / hypervolume(values, directions, reference)

    def regret(self, evaluated: Iterable[Network], *, epochs: int | None = None, seed: int | None = None) -> float:
        """By how many AP points the best of some networks is below the best of the table; of none, the best AP itself.

        Args and errors as in `hypervolume_fraction`.
        """
        ap = self._values(("ap",), epochs, seed)[:, 0]
        return float(ap.max()) - max((float(ap[self.index(network)]) for network in evaluated), default=0.0)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _record(self, index: int, epochs: int | None, seed: int | None) -> Record:
        until, of = self._until(epochs), self._of(seed)
        train_s, cpu_s, loss = self._spent[of][index]
        network = self._networks[index]
        return Record(
            graph_id=network["graph_id"],
            candidate=network["candidate"],
            label=network["label"],
            epochs=until,
            seeds=self.seeds if of is None else (of,),
            ap=self._aps[of][index][until - 1],
            **{name: values[index] for name, values in self._costs.items()},
            train_s=train_s * until / self.epochs,
            cpu_s=cpu_s * until / self.epochs,
            loss=loss if until == self.epochs else math.nan,
        )

    def _values(self, objectives: Sequence[str], epochs: int | None, seed: int | None) -> Floats:
        """(networks, objectives)."""
        until = self._until(epochs)
        ap = [curve[until - 1] for curve in self._aps[self._of(seed)]]
        return np.array([ap if name == "ap" else self._costs[name] for name in objectives], dtype=np.float64).T

    def _until(self, epochs: int | None) -> int:
        if epochs is None:
            return self.epochs
        if epochs not in range(1, self.epochs + 1):
            raise InputError(f"expected epochs from 1 to {self.epochs}, which table {self.name!r} has, got {epochs!r}")
        return int(epochs)

    def _of(self, seed: int | None) -> int | None:
        """The seed, where there is such a one."""
        if seed is None:
            return None
        if seed not in self.seeds:
            listed = ", ".join(map(str, self.seeds))
            raise InputError(
                f"expected one of the seeds {listed} of table {self.name!r}, or None for their mean, got {seed!r}"
            )
        return int(seed)

    def _wanted(self, objectives: Sequence[str] | None) -> tuple[str, ...]:
        wanted = self.objectives if objectives is None else tuple(objectives)
        for name in wanted:
            if name not in self.metrics:
                raise UnknownNameError("objective", name, self.metrics)
        if not wanted or len(set(wanted)) < len(wanted):
            raise InputError(f"expected at least one objective, each once, got {list(wanted)}")
        if "latency_ms" in wanted:
            self.check_latency()
        return wanted

    def check_latency(self) -> None:
        """Make sure that there are latencies.

        Raises:
            InputError: there are none; says what there is.
        """
        if not self.has_latency:
            known = ", ".join(name for name in COSTS if name != "latency_ms")
            raise InputError(f"table {self.name!r} has no latencies, they were not measured; its costs are {known}")

    def _built(self, choices: Choices) -> NeckGraph:
        backbones = [entry.name for entry in self._written.backbones]
        if choices.get("backbone", backbones[0]) not in backbones:
            raise UnknownNameError(f"backbone of table {self.name!r}", str(choices["backbone"]), backbones)
        if "family" not in {**self._written.constants, **choices}:
            family = self._written.families[0]
            raise InputError(f"the choice set {choices} names no neck; say which, e.g. family={family!r}")
        return self._written.to_graph(choices, self.features)

    def _held(self) -> str:
        """What is in the table, for people."""
        searched = (f"{k} {', '.join(map(str, d.enumerate()))}" for k, d in self._written.dimensions.items())
        return f"{len(self)} networks ({'; '.join(searched)})"

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return f"TabularBenchmark({self.name!r}, {len(self)} networks, seeds {seeds}, {self.epochs} epochs)"


def load(name_or_path: str | Path = "curves") -> TabularBenchmark:
    """A table that is shipped (`list_tables`), or one of your own by the path of its CSV.

    Raises:
        UnknownNameError: no such table.
        FormatVersionError: it was written by a newer fpn_bench.
        InputError: a file is damaged.
    """
    path = Path(name_or_path)
    if path.suffix != ".csv":
        shipped = _shipped()
        if str(name_or_path) not in shipped:
            raise UnknownNameError("table", str(name_or_path), shipped, hint="fpn_bench.tabular.list_tables()")
        path = shipped[str(name_or_path)]
    return TabularBenchmark(*read_table(path))


def list_tables() -> list[str]:
    """Names of the shipped tables."""
    return sorted(_shipped())


def _shipped() -> dict[str, Path]:
    folder = Path(str(resources.files("fpn_bench.tabular"))) / "tables"
    return {path.stem: path for path in sorted(folder.glob("*.csv"))}


def _choices(row: Row) -> Choices:
    """The choice set of a row."""
    return {
        name.removeprefix(CHOICE_PREFIX): json.loads(text)
        for name, text in row.items()
        if name.startswith(CHOICE_PREFIX) and text
    }


def _spelling(choices: Mapping[str, Any]) -> str:
    """As `choices_key`, but numpy's scalars are the numbers they hold."""
    return json.dumps(dict(choices), sort_keys=True, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise InputError(f"expected text, a number, a truth value or a list as a choice, got a {type(value).__name__}")
