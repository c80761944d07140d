"""A candidate that a study found, ready to be trained further or exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fpn_bench.backbones import Backbone
from fpn_bench.candidates.candidate import Candidate
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.candidates.model import DetectorSpec


class NamedStudy(Protocol):
    """The study of a candidate."""

    @property
    def name(self) -> str:
        """Of the study."""

    @property
    def path(self) -> Path | None:
        """Its folder; None where it lives in a database elsewhere."""


@dataclass(frozen=True)
class StudyCandidate:
    """A candidate of a study, in a context with its data set, backbone and recipe.

    Attributes:
        study: where it was found.
        row: its row there; ``row["trial"]``, ``row["seed"]``, ``row["ap"]`` (None where it was not trained) ...
        context: evaluates it: ``context.trained(candidate, row["seed"])`` is the training behind the row,
            ``context.protocol.training`` its recipe, ``context.dataset`` its data set.
        candidate: what it is.
        backbone: its own, loaded in the context.
        weights: where the backbone's weights are from: a file, ``"hub"``, ``"pip:PACKAGE"`` or None (random).
        differences: fields in which the context's protocol is not the study's, each (field, there, here): AP figures of
            the two do not compare. Empty unless ``data`` named another data set, or the study is of another release.
    """

    study: NamedStudy
    row: Mapping[str, Any]
    context: EvaluationContext
    candidate: Candidate
    backbone: Backbone
    weights: str | None
    differences: tuple[tuple[str, Any, Any], ...]

    @property
    def spec(self) -> DetectorSpec:
        """What its detector is made of; `fpn_bench.ImageDetector.build` makes it, `weights` are its backbone's."""
        return self.context.spec(self.candidate)
