"""A table of trained networks as something to ask: AP after any epoch, costs, the front, how much of it was found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.pareto import pareto_mask
from fpn_bench.analysis.rows import CHOICE_PREFIX, make_table
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.metrics import metric_of
from fpn_bench.search.space import CHEAP_FACTS, COSTS, Choices, Space
from fpn_bench.tabular.figures import Figures, Record
from fpn_bench.tabular.files import Metadata, Row, read_table

if TYPE_CHECKING:
    import pandas as pd

    from fpn_bench.tabular.evaluator import TabularEvaluator

Network = NeckGraph | str | Mapping[str, Any]
"""How a network is named: its neck graph, the id of that graph or of the detector around it, or a choice set."""


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
        self._figures = Figures(metadata.name, self.epochs, self.seeds, trainings)
        self._machines = [[(r.get("machine") or "", r.get("latency_device") or "") for r in of] for of in trainings]
        self._written = written
        self._by_id = {row[name]: i for i, row in enumerate(self._networks) for name in ("graph_id", "candidate")}
        self._by_spelling = {_spelling(_choices(row)): i for i, row in enumerate(self._networks)}
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
        return self._figures.has_latency

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
        return self._figures.record(self.index(network), epochs, seed)

    def table(self) -> pd.DataFrame:
        """One row a network and seed, in the columns of a study's table (`fpn_bench.analysis.COLUMNS`)."""
        protocol = self.metadata.protocol
        rows: list[dict[str, Any]] = []
        for index, network in enumerate(self._networks):
            for at, seed in enumerate(self.seeds):
                machine, latency_device = self._machines[index][at]
                curve = self._figures.curve(index, seed)
                rows.append(
                    {
                        **{f"{CHOICE_PREFIX}{key}": value for key, value in _choices(network).items()},
                        **{name: of[index] for name, of in self._figures.costs.items()},
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
                        "train_s": self._figures.train_s(index, seed),
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
        values = self._figures.values(wanted, epochs, seed)
        members = np.flatnonzero(pareto_mask(values, [metric_of(name).direction for name in wanted]))
        sign = -1 if metric_of(wanted[0]).direction == "maximize" else 1
        best_first = members[np.argsort(sign * values[members, 0], kind="stable")]
        return tuple(self._figures.record(index, epochs, seed) for index in best_first.tolist())

    def reference(self, objectives: Sequence[str] | None = None) -> tuple[float, ...]:
        """The point that hypervolume is taken from: AP 0, and the table's highest value of each cost."""
        return tuple(
            0.0 if name == "ap" else float(max(self._figures.costs[name])) for name in self._wanted(objectives)
        )

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
        values = self._figures.values(wanted, epochs, seed)
        found = values[sorted({self.index(network) for network in evaluated})]
        return hypervolume(found, directions, reference) / hypervolume(values, directions, reference)

    def regret(self, evaluated: Iterable[Network], *, epochs: int | None = None, seed: int | None = None) -> float:
        """By how many AP points the best of some networks is below the best of the table; of none, the best AP itself.

        Args and errors as in `hypervolume_fraction`.
        """
        ap = self._figures.values(("ap",), epochs, seed)[:, 0]
        return float(ap.max()) - max((float(ap[self.index(network)]) for network in evaluated), default=0.0)

    # -- inside -----------------------------------------------------------------------------------------------------

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
