"""Free spaces: genomes too many to list, each of which is a neck. One protocol for all of them.

A genome is written as one line of text, which is what a neck family takes as an option and what a search stores. A
`FreeSpace` takes it apart into genes, each with its own short list of values, of which *every* combination is a valid
genome: so any sampler that can pick from lists can search it, and sampling, mutation and crossover are the same few
lines for every space. All of them are pure: same arguments, same result, nothing changed.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from fpn_bench.errors import InputError
from fpn_bench.zoo.parts import check_option

Gene = str | int
Genes = Mapping[str, Gene]

G = TypeVar("G")


class FreeSpace(ABC, Generic[G]):
    """The genomes over some alphabet.

    For every genome g of the space ``compose(decompose(g)) == g`` and ``parse(text(g)) == g``. What takes a genome
    refuses, with an InputError, one that is not of the space.
    """

    word: ClassVar[str]
    """Its name in a search space's ``free:``."""
    option: ClassVar[str]
    """The option of a neck family that takes the text."""

    @cached_property
    @abstractmethod
    def genes(self) -> Mapping[str, tuple[Gene, ...]]:
        """Name of each gene -> the values it may have; at least two."""

    @abstractmethod
    def compose(self, genes: Genes) -> G:
        """The genome of any combination of values, valid by construction."""

    def decompose(self, genome: G) -> dict[str, Gene]:
        """The genes of a genome of the space."""
        if not self.contains(genome):
            text = isinstance(genome, str)
            hint = "; `parse` makes one of its text" if text else ""
            raise InputError(f"expected a genome of {self}, got {repr(genome) if text else genome}{hint}")
        return self._genes_of(genome)

    @abstractmethod
    def _genes_of(self, genome: G) -> dict[str, Gene]:
        """`decompose`, of a genome known to be of the space."""

    @abstractmethod
    def contains(self, genome: object) -> bool:
        """Whether some combination of genes makes this genome."""

    @cached_property
    @abstractmethod
    def size(self) -> int:
        """Number of distinct genomes."""

    @cached_property
    @abstractmethod
    def published(self) -> G:
        """The published genome, as near as the space has it."""

    @staticmethod
    @abstractmethod
    def text(genome: G) -> str:
        """One line."""

    @staticmethod
    @abstractmethod
    def parse(text: str) -> G:
        """The genome of a text; exact, so that a genome has one text.

        Raises:
            InputError: what was expected and what it got.
        """

    def has(self, text: Any) -> bool:
        """Whether this is the text of a genome of the space."""
        try:
            if not isinstance(text, str):
                return False
            genome = self.parse(text)
            return self.text(genome) == text and self.contains(genome)
        except InputError:
            return False

    def enumerate(self) -> Iterator[G]:
        """Every genome once, lazily, in a fixed order."""
        for values in itertools.product(*self.genes.values()):
            genes = dict(zip(self.genes, values, strict=True))
            genome = self.compose(genes)
            if self.decompose(genome) == genes:  # the one of several spellings that a genome is taken apart into
                yield genome

    def sample(self, rng: random.Random) -> G:
        """A genome of genes drawn uniformly."""
        return self.compose({name: rng.choice(values) for name, values in self.genes.items()})

    def neighbours(self, genome: G) -> Iterator[G]:
        """The genomes that one changed gene makes, each once."""
        genes = self.decompose(genome)
        found = {genome}
        for name, values in self.genes.items():
            for value in values:
                other = self.compose({**genes, name: value})
                if other not in found:
                    found.add(other)
                    yield other

    def mutate(self, genome: G, rng: random.Random) -> G:
        """The genome with one gene drawn anew; another genome, unless there is none."""
        genes = self.decompose(genome)
        for name in rng.sample(list(self.genes), len(self.genes)):
            for value in rng.sample(self.genes[name], len(self.genes[name])):
                other = self.compose({**genes, name: value})
                if other != genome:
                    return other
        return genome

    def crossover(self, a: G, b: G, rng: random.Random) -> G:
        """A genome with each gene from either parent."""
        one, other = self.decompose(a), self.decompose(b)
        return self.compose({name: gene if rng.random() < 0.5 else other[name] for name, gene in one.items()})


def as_whole_numbers(name: str, values: object) -> tuple[int, ...]:
    """A field's list as a tuple.

    Raises:
        InputError: it is no list, or not of whole numbers.
    """
    if not isinstance(values, Sequence) or any(type(value) is not int for value in values):
        raise InputError(f"expected {name} to be a list of whole numbers, got {values!r}")
    return tuple(values)


def as_words(name: str, values: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """A field's list as a tuple.

    Raises:
        InputError: it is no list, a word is not known or comes twice.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"expected {name} to be a list of some of {', '.join(known)}, got {values!r}")
    for value in values:
        check_option(name, value, known)
    if len(set(values)) < len(values):
        raise InputError(f"expected {name} to name each once, got {list(values)}")
    return tuple(values)
