"""Free DAGs of paths: the search space of Liang, Wang, Tang, Hu, Ling, "OPANAS: One-Shot Path Aggregation Network
Architecture Search", CVPR 2021, section 3.2. The family that builds them is `opa_fpn`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from fpn_bench.errors import InputError
from fpn_bench.zoo.free import FreeSpace, Gene, Genes, as_words
from fpn_bench.zoo.opa_fpn import FOUND, PATHS, Dag, format_dag, parse_dag


@dataclass(frozen=True)
class PyramidDags(FreeSpace[Dag]):
    """Every DAG of up to a given number of pyramids behind the laterals, with some types of paths.

    Genes: the type of the path between each two pyramids. A pyramid that no path leads to is left out, with the paths
    from it, so that every combination is a DAG; the first always has its path.

    Attributes:
        nodes: most pyramids behind the laterals; the published DAG has 5.
        paths: types of paths to choose from. Without ``none`` every DAG has all pyramids and all paths.

    Raises:
        InputError: what was expected and what it got.
    """

    nodes: int = 5
    paths: tuple[str, ...] = PATHS

    word: ClassVar[str] = "pyramid_dags"
    option: ClassVar[str] = "dag"

    def __post_init__(self) -> None:
        if type(self.nodes) is not int or self.nodes < 1:
            raise InputError(f"expected nodes to be a whole number of at least 1, got {self.nodes!r}")
        object.__setattr__(self, "paths", as_words("paths", self.paths, PATHS))
        if not set(self.paths) - {"none"}:
            raise InputError(f"expected at least one of paths to be other than none, got {list(self.paths)}")

    @cached_property
    def genes(self) -> Mapping[str, tuple[Gene, ...]]:
        """See `FreeSpace.genes`; ``"3.1"`` is the gene of the path from N1 to N3."""
        first = tuple(path for path in self.paths if path != "none")
        genes = {f"{i}.{j}": first if i == 1 else self.paths for i in range(1, self.nodes + 1) for j in range(i)}
        return {name: values for name, values in genes.items() if len(values) > 1}

    def compose(self, genes: Genes) -> Dag:
        """See `FreeSpace.compose`."""
        lone = next(path for path in self.paths if path != "none")
        kept = [0]
        dag: list[tuple[str, ...]] = []
        for i in range(1, self.nodes + 1):
            paths = tuple(str(genes.get(f"{i}.{j}", lone)) for j in kept)
            if set(paths) != {"none"}:
                dag.append(paths)
                kept.append(i)
        return tuple(dag)

    def _genes_of(self, genome: Dag) -> dict[str, Gene]:
        return {
            name: genome[i - 1][j] if i <= len(genome) else "none"
            for name in self.genes
            for i, j in [map(int, name.split("."))]
        }

    def contains(self, genome: object) -> bool:
        """See `FreeSpace.contains`."""
        try:
            if not isinstance(genome, tuple) or parse_dag(genome) != genome:
                return False
        except InputError:
            return False
        counted = len(genome) == self.nodes or ("none" in self.paths and len(genome) < self.nodes)
        return counted and all(path in self.paths for paths in genome for path in paths)

    @cached_property
    def size(self) -> int:
        """Number of DAGs."""
        count = len(self.paths)
        if "none" not in self.paths:
            return int(count ** (self.nodes * (self.nodes + 1) // 2))
        return sum(math.prod(count**i - 1 for i in range(1, most + 1)) for most in range(1, self.nodes + 1))

    @cached_property
    def published(self) -> Dag:
        """The DAG that the paper found, its first pyramids; types that the space lacks become ``none``, or its first.

        Pyramids beyond those of the paper are left out where the space allows it.
        """
        found = parse_dag(FOUND)
        other = "none" if "none" in self.paths else self.paths[0]
        return self.compose(
            {
                name: path if path in values else other if other in values else values[0]
                for name, values in self.genes.items()
                for i, j in [map(int, name.split("."))]
                for path in [found[i - 1][j] if i <= len(found) else "none"]
            }
        )

    @staticmethod
    def text(genome: Dag) -> str:
        """See `FreeSpace.text`."""
        return format_dag(genome)

    @staticmethod
    def parse(text: str) -> Dag:
        """See `FreeSpace.parse`."""
        return parse_dag(text)
