"""The protocol: everything that makes two AP figures comparable, as data with an id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _freeze(value: Any) -> Any:
    """The value, where it is one; a single message instead of one for each type it might have been."""
    if value in ("all", "none") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise PydanticCustomError(
        "expected",
        "expected {what}, e.g. {instead}",
        {"what": "all, none or the last frozen level", "instead": "freeze: 3"},
    )


Freeze = Annotated[Literal["all", "none"] | int, BeforeValidator(_freeze)]
"""How much of the backbone is frozen: ``"all"``, ``"none"``, or k for all that its map Ck needs."""


OptimizerName = Literal["adamw", "muon"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadConfig(_Strict):
    """The detection head on top of the neck.

    Attributes:
        kind: ``"fcos"`` (Tian et al. 2019, as in torchvision).
        convs: 3x3 convolutions in each of the two towers (4 in the paper).
    """

    kind: Literal["fcos"] = "fcos"
    convs: Annotated[int, Field(ge=0, le=8)] = 2


class TrainingRecipe(_Strict):
    """The short training. A space file's `training:` block is exactly this.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step.
        optimizer: ``"muon"`` for the neck's and head's convolutions with AdamW for the rest, or ``"adamw"`` for all;
            see `fpn_bench.training.optimizers`.
        learning_rate: peak of the one-cycle schedule, of what AdamW trains.
        muon_learning_rate: the same of what Muon trains.
        weight_decay: decoupled, on weights of two and more dimensions only.
        warmup_fraction: share of the steps in which the rate rises.
        ema_decay: decay of the weight average that is evaluated; 0 evaluates the last weights.
        grad_clip_norm: bound on the gradient's global norm; 0 is no bound.
        mirror: train on each image and its mirror in turn, every second epoch.
        standardise: shift and scale the backbone's channels to zero mean and unit variance over the training split,
            by constants in front of the neck.
        precision: arithmetic of the training.
        freeze: how much of the backbone keeps its weights and batch-norm statistics: ``"all"``, ``"none"``, or k,
            the stages up to and including the one that gives level Ck.
        backbone_lr_factor: the rate of the backbone's trainable part, as a share of `learning_rate`.
    """

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 8
    optimizer: OptimizerName = "muon"
    learning_rate: PositiveFloat = 4e-3
    muon_learning_rate: PositiveFloat = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_fraction: Fraction = 0.25
    ema_decay: Fraction = 0.98
    grad_clip_norm: Annotated[float, Field(ge=0)] = 10.0
    mirror: bool = True
    standardise: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    freeze: Freeze = "all"
    backbone_lr_factor: PositiveFloat = 0.1


def recorded_recipe(recorded: Mapping[str, Any]) -> TrainingRecipe:
    """The recipe that a study or a table recorded.

    Raises:
        pydantic.ValidationError: it is none.
    """
    # Releases that recorded no optimiser had AdamW alone.
    return TrainingRecipe.model_validate({"optimizer": "adamw", **recorded})


class Protocol(_Strict):
    """What stands behind an AP figure. Rows of two protocol ids are never put into one table unasked.

    Attributes:
        dataset: name of the data set, for people.
        dataset_hash: sha256 over annotations and images (`DetectionDataset.hash`), for the id.
        image_size: (height, width) the images are resized to.
        head: the detection head.
        training: the short training.
        code_version: of what the recipe leaves to the code: head, losses, initial weights, shape of the schedule,
            detection thresholds. A release that changes AP by changing those raises it. 2: weights that nodes share
            are averaged once a step.
    """

    schema_version: Literal[1] = 1
    code_version: Literal[1, 2] = 2
    dataset: str
    dataset_hash: str
    image_size: tuple[PositiveInt, PositiveInt]
    head: HeadConfig = HeadConfig()
    training: TrainingRecipe = TrainingRecipe()

    @field_validator("training", mode="before")
    @classmethod
    def _as_recorded(cls, training: Any) -> Any:
        return recorded_recipe(training) if isinstance(training, dict) else training

    @property
    def id(self) -> str:
        """12 hex digits over everything but the data set's display name."""
        data = self.model_dump(mode="json", exclude={"dataset"})
        if self.training.freeze == "all":
            # As before these two existed; and a backbone that is frozen has no rate.
            del data["training"]["freeze"], data["training"]["backbone_lr_factor"]
        if self.training.optimizer == "adamw":  # likewise
            del data["training"]["optimizer"], data["training"]["muon_learning_rate"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
