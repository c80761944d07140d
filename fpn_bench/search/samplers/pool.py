"""What the known-cost sampler may propose, as far as it was looked up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from fpn_bench.search.records import Facts
from fpn_bench.search.samplers.base import Floats, ProposingSampler, crossover
from fpn_bench.search.samplers.gp import Encoder, Ints
from fpn_bench.search.space import Choices, choices_key

WHOLE = 20_000
"""Largest space whose choice sets are all in the pool."""
SETTLED, _MIN_LOOK_UPS = 256, 16
"""From so many assessed candidates on proposals have to be quick: look-ups become fewer, in proportion, down to so
many."""
_FIRST = 4
"""How many times more look-ups the first proposal may take."""
_REMEMBERED = 32_768
"""Choice sets that are not looked up again, of a space that is not wholly in the pool."""
_SLACK = 128
"""So many more members than there should be are not worth the work of taking them out."""
_LITTER = 8
"""New members of the pool around a parent."""


class Pool:
    """What may be proposed, as far as it was looked up.

    Members that may no longer be proposed stay for a while, for taking rows out of a batch costs as much as scoring it.

    Attributes:
        members: choice sets and what is known of them, each network once.
        batch: the same, encoded.
        scores: (members,) as of when each was last scored; infinity before. Front and knowledge only grow, so that
            an old score is mostly an upper bound (Minoux 1978): the highest are the first to be scored again.
    """

    def __init__(self, sampler: ProposingSampler, encoder: Encoder, look_ups: int, at_most: int) -> None:
        self._sampler, self._encoder = sampler, encoder
        self._space, self._rng = sampler.space, sampler.rng
        self._look_ups, self._at_most = look_ups, at_most
        self.members: list[tuple[Choices, Facts]] = []
        self.batch = encoder.batch([])
        self.scores: Floats = np.empty(0)
        size = self._space.size
        self._whole = size is not None and size <= WHOLE
        self._drawn = self._draw()
        self._rows: dict[str, int] = {}  # id -> row, of those that may be proposed
        self._seen: dict[int, None] = {}  # hashes of choice sets, for their texts are long; the oldest first

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def open_rows(self) -> Ints:
        """Rows of those that may be proposed, ascending."""
        return np.sort(np.fromiter(self._rows.values(), np.int64, len(self._rows)))

    def renew(self, taken: AbstractSet[str], best: Sequence[Choices], assessed: int) -> None:
        """Leave out what is taken and look up some more.

        Args:
            taken: ids.
            best: assessed choice sets whose neighbourhood is worth a look.
            assessed: how many there are in all.
        """
        for name in [name for name in self._rows if name in taken]:
            self._drop(self._rows[name])
        excess = 0 if self._whole else len(self) - self._at_most
        if excess > _SLACK:
            rows = self.open_rows
            for row in rows[np.argsort(self.scores[rows], kind="stable")[:excess]].tolist():
                self._drop(row)
        if len(self.members) - len(self) > _SLACK:
            self._compact()
        looks = _FIRST * self._look_ups
        if self._seen:
            looks = min(self._look_ups, max(self._look_ups * SETTLED // max(assessed, 1), _MIN_LOOK_UPS))
        found: list[tuple[Choices, Facts]] = []
        for choices in itertools.islice(self._sources(best, looks), looks):
            facts = self._sampler.open_facts(choices, taken)
            if facts is not None and facts.id not in self._rows:
                self._rows[facts.id] = len(self.members) + len(found)
                found.append((choices, facts))
        if found or self._encoder.groups > len(self.batch.tokens):
            self.members += found
            self.batch = self._encoder.batch([self._encoder.encode(*member) for member in found], self.batch)
            self.scores = np.concatenate([self.scores, np.full(len(found), np.inf)])

    def most_promising(self, count: int, rng: random.Random) -> Ints:
        """Rows to score: all, or the highest by their last score and a few others."""
        rows = self.open_rows
        if len(rows) <= count:
            return rows
        order = rows[np.argsort(-self.scores[rows], kind="stable")]
        top = max(count - count // 8, 1)
        return np.concatenate([order[:top], rng.sample(order[top:].tolist(), count - top)]).astype(np.int64)

    def _drop(self, row: int) -> None:
        choices, facts = self.members[row]
        del self._rows[facts.id]
        if not self._whole:  # may be looked up again: not all that ever was is remembered
            self._seen.pop(hash(choices_key(choices)), None)

    def _compact(self) -> None:
        rows = self.open_rows
        self.members = [self.members[row] for row in rows.tolist()]
        self.batch, self.scores = self.batch.take(rows), self.scores[rows]
        self._rows = {facts.id: row for row, (_, facts) in enumerate(self.members)}

    def _sources(self, best: Sequence[Choices], wanted: int) -> Iterator[Choices]:
        """Choice sets not looked up yet: of a small space every one in the end."""
        drawn = itertools.islice(self._drawn, None if self._whole else wanted)
        for choices in itertools.chain(self._around(best, wanted // 2), drawn):
            key = hash(choices_key(choices))
            if key not in self._seen:
                if len(self._seen) >= _REMEMBERED and not self._whole:
                    del self._seen[next(iter(self._seen))]
                self._seen[key] = None
                yield choices

    def _around(self, best: Sequence[Choices], wanted: int) -> Iterator[Choices]:
        """Neighbours and crossings of the best that were assessed and of those with the highest scores."""
        space, rng = self._space, self._rng
        if self._whole and len(self._seen) == space.size:
            return
        rows = self.open_rows
        scores = self.scores[rows]
        top = rows[np.argsort(np.where(np.isfinite(scores), -scores, np.inf), kind="stable")[:_LITTER]]
        parents = [*best, *(self.members[row][0] for row in top)]
        for _ in range(wanted // _LITTER if parents else 0):
            one, other = rng.choice(parents), rng.choice(parents)
            if space.contains(one):
                yield from itertools.islice(space.neighbours(one, rng), _LITTER // 2)
            yield from (crossover(space, one, other, rng) for _ in range(_LITTER // 2))

    def _draw(self) -> Iterator[Choices]:
        """Of a small space each choice set once, of another one after the other without end."""
        if self._whole:
            listed = list(self._space.enumerate())
            self._rng.shuffle(listed)
            yield from reversed(listed)
        else:
            while True:
                yield self._space.sample(self._rng)
