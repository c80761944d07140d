"""Images of a data set that are there twice: told by their bytes, by their pixels, or nearly."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fpn_bench.data.annotations import AnnotatedSet
from fpn_bench.data.images import ImageCheck, look_at_image

THUMB_PX = 16  # side of the small pictures that near-duplicates are told by, in pixels
_NEAR_BITS = 3  # of 64, by which their gradients may differ
_NEAR_LEVELS = 4.0  # of 255, by which they may differ in the mean
_KEPT_DISTINCT, _KEPT_RECENT = 64, 8


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one image file holds: its check, a digest of its pixels, and what near-duplicates are told by."""

    check: ImageCheck
    pixels: bytes = b""
    gradient: int = 0
    thumb: npt.NDArray[np.uint8] | None = None


def look(path: Path) -> Look:
    """Decode a file, whole: pixels tell copies that were saved anew without loss, small pictures those with."""
    check, rgb = look_at_image(path)
    if rgb is None:
        return Look(check)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).digest()
    grey = rgb.convert("L")
    # Is each of 8 x 8 places brighter than its left neighbour? (difference hash: N. Krawetz 2013, "Kind of Like That")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    gradient = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
    thumb = np.asarray(grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX), np.uint8).reshape(-1)
    return Look(check, digest, gradient, thumb)


class Duplicate(NamedTuple):
    """An image that is there before: what a finding says of it."""

    kind: str
    split: str
    text: str
    example: str


def find_duplicates(annotated: AnnotatedSet, looks: Sequence[Look]) -> list[Duplicate]:
    """Images that are there before, in their own split or in an earlier one: told by bytes, by pixels, or nearly."""
    found: list[Duplicate] = []
    places = [(split.name, image.path) for split in annotated.splits for image in split.images]
    readable = [i for i, look in enumerate(looks) if look.check.problem is None]
    told: set[tuple[int, str]] = set()

    def tell(kind: str, words: str, i: int, j: int) -> None:
        (split, path), (other, twin) = places[i], places[j]
        if (i, other) in told:
            return
        told.add((i, other))
        where = "in their own split" if split == other else f"in {other}"
        leak = "" if split == other else ": what is measured on them is known from there"
        suffix = "" if split == other else f"_{other}"
        text = f"images that are {words} {where}{leak}"
        found.append(Duplicate(f"{kind}{suffix}", split, text, f"{path} and {twin}"))

    kinds: tuple[tuple[str, str, Callable[[Look], bytes]], ...] = (
        ("same_file", "a copy of one", lambda look: look.check.digest),
        ("same_pixels", "another file with the pixels of one", lambda look: look.pixels),
    )
    for kind, words, key in kinds:
        first: dict[tuple[bytes, str], int] = {}
        twins: dict[bytes, list[int]] = defaultdict(list)  # the first of each split
        for i in readable:
            digest = key(looks[i])
            for j in twins[digest]:
                tell(kind, words, i, j)
            if first.setdefault((digest, places[i][0]), i) == i:
                twins[digest].append(i)
    for i, j in near_duplicates((i, places[i][0], looks[i]) for i in readable):
        tell("near_duplicate", "nearly one", i, j)
    return found


def near_duplicates(looks: Iterable[tuple[int, str, Look]]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of nearly equal images, at most one for each image and split.

    Gradients that differ by at most 3 bits of 64 share one of four pieces of 16 bits, and mean brightness differs by no
    more than the pictures do: an image is compared with those only that share a piece in its own and the two
    neighbouring steps of brightness. A cell of that table keeps the last `_KEPT_RECENT` images of a split, and the last
    `_KEPT_DISTINCT` of those that were like none before, so that the frames of a static camera stay few.
    """
    cells: dict[tuple[int, int, int], dict[str, _Cell]] = defaultdict(lambda: defaultdict(_Cell))
    for number, split, look in looks:
        if look.thumb is None:
            continue
        step = int(look.thumb.mean() // _NEAR_LEVELS)
        pieces = [(piece, look.gradient >> (16 * piece) & 0xFFFF) for piece in range(_NEAR_BITS + 1)]
        found: dict[str, int] = {}
        for piece, key in pieces:
            for near in (step, step - 1, step + 1):
                for other, cell in cells[piece, key, near].items() if (piece, key, near) in cells else ():
                    if other not in found and (twin := cell.twin(look)) is not None:
                        found[other] = twin
        for twin in found.values():
            yield number, twin
        for piece, key in pieces:
            cells[piece, key, step][split].add(number, look, is_distinct=split not in found)


class _Cell:
    """Images of one split that may be alike."""

    def __init__(self) -> None:
        self._distinct: deque[tuple[int, Look]] = deque(maxlen=_KEPT_DISTINCT)
        self._recent: deque[tuple[int, Look]] = deque(maxlen=_KEPT_RECENT)

    def add(self, number: int, look: Look, *, is_distinct: bool) -> None:
        (self._distinct if is_distinct else self._recent).append((number, look))

    def twin(self, look: Look) -> int | None:
        """The number of an image that is nearly this one."""
        assert look.thumb is not None
        for number, other in chain(self._distinct, self._recent):
            if other.thumb is None or (look.gradient ^ other.gradient).bit_count() > _NEAR_BITS:
                continue
            if np.abs(look.thumb.astype(np.int16) - other.thumb).mean() <= _NEAR_LEVELS:
                return number
        return None
