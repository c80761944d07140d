"""The recipe of a full training, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fpn_bench.training.protocol import (
    Fraction,
    Freeze,
    OptimizerName,
    PositiveFloat,
    PositiveInt,
    TrainingRecipe,
    _Strict,
)


class FullRecipe(_Strict):
    """How a detector is trained on images, to the end.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step, of all processes together.
        optimizer, learning_rate, muon_learning_rate, weight_decay: as in the short training.
        warmup_fraction: share of the steps in which the rate rises.
        ema_decay: decay of the weight average that is evaluated and kept; 0 keeps the last weights.
        grad_clip_norm: bound on the gradient's global norm; 0 is no bound.
        standardise: shift and scale the backbone's channels to zero mean and unit variance over the training split,
            by constants in front of the neck.
        freeze: how much of the backbone keeps its weights: ``"all"``, ``"none"``, or k, the stages up to and including
            the one that gives level Ck. Batch-norm statistics of the backbone never move, as is usual in detection:
            batches are too small for them. Their scales and shifts are trained with the rest.
        backbone_lr_factor: the rate of the backbone's trainable part, as a share of `learning_rate`.
        amp: arithmetic of the training: float32, or autocast to bfloat16 or (with scaled gradients) float16.
        flip: mirror every second image, at random.
        scale: an image is stretched to the network's input times a factor drawn from this range, then cropped or
            padded to it at a random place; (1, 1) does neither.
        photometric: change brightness, contrast, saturation, hue and the order of channels at random.
    """

    epochs: PositiveInt = 24
    batch_size: PositiveInt = 8
    optimizer: OptimizerName = "muon"
    learning_rate: PositiveFloat = 4e-3
    muon_learning_rate: PositiveFloat = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_fraction: Fraction = 0.1
    ema_decay: Fraction = 0.99
    grad_clip_norm: Annotated[float, Field(ge=0)] = 10.0
    standardise: bool = True
    freeze: Freeze = "all"
    backbone_lr_factor: PositiveFloat = 0.1
    amp: Literal["none", "bf16", "fp16"] = "none"
    flip: bool = True
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    photometric: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> FullRecipe:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"expected scale with the smaller factor first, e.g. (0.8, 1.25), got {self.scale}")
        return self

    @classmethod
    def after(cls, short: TrainingRecipe, **changes: Any) -> FullRecipe:
        """What a short training was done with, as far as a full one has the same, and what the caller says.

        Raises:
            pydantic.ValidationError: a change is none of these.
        """
        shared = (
            "batch_size",
            "optimizer",
            "learning_rate",
            "muon_learning_rate",
            "weight_decay",
            "grad_clip_norm",
            "standardise",
            "backbone_lr_factor",
        )
        return cls(**{**{name: getattr(short, name) for name in shared}, **changes})
