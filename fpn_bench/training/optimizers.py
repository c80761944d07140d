"""The optimiser of a training, from its recipe.

``"adamw"``: Loshchilov & Hutter 2019 (arXiv:1711.05101), weight decay on weights of two and more dimensions.

``"muon"``: Jordan et al. 2024, timm's implementation. The momentum of each convolution of the neck and the head,
flattened to [out, in * kernel], is replaced by the nearest semi-orthogonal matrix, so that every direction of the
weight moves alike. Deep necks learn many times faster with it. What has no such directions stays with AdamW: biases,
norms, merge weights, depthwise and grouped convolutions, the last predictors (their outputs are no features), and the
backbone, whose trained weights are only to be adjusted.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from timm.optim import Muon
from torch import nn

from fpn_bench.detection.detector import Detector
from fpn_bench.training.protocol import OptimizerName

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class OptimizerSettings(Protocol):
    """What a recipe says of the optimiser; `TrainingRecipe` and `FullRecipe` have it."""

    @property
    def optimizer(self) -> OptimizerName: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def muon_learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def backbone_lr_factor(self) -> float: ...


def create_optimizer(detector: Detector, backbone: nn.Module, recipe: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimiser over all that is trained; each group's ``lr`` is its peak rate.

    Args:
        detector: neck and head.
        backbone: its trained part; without parameters where it is frozen.
        recipe: which optimiser, and its rates.
    """
    orthogonal = orthogonalised_parameters(detector) if recipe.optimizer == "muon" else []
    chosen = {id(p) for p in orthogonal}
    rest = [p for p in detector.parameters() if p.requires_grad and id(p) not in chosen]
    trunk = [p for p in backbone.parameters() if p.requires_grad]
    groups = [
        *_decayed(rest, recipe.learning_rate, recipe.weight_decay),
        *_decayed(trunk, recipe.learning_rate * recipe.backbone_lr_factor, recipe.weight_decay),
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    for group in groups:
        group |= {"use_fallback": True, "betas": (0.9, 0.999), "eps": 1e-8}
    if orthogonal:
        muon = {"params": orthogonal, "lr": recipe.muon_learning_rate, "weight_decay": recipe.weight_decay}
        groups.append({**muon, "use_muon": True})
    return Muon(groups, momentum=0.95, adjust_lr_fn="original", conv_mode="flatten")


def orthogonalised_parameters(detector: Detector) -> list[nn.Parameter]:
    """The weights that Muon trains: of ungrouped convolutions and matrices, but for the last predictors."""
    predictors = set(detector.predictors)
    weights = dict.fromkeys(  # a weight that nodes share is listed once
        cast(nn.Parameter, module.weight)
        for module in detector.modules()
        if isinstance(module, _CONVOLUTIONS) and getattr(module, "groups", 1) == 1 and module not in predictors
    )
    return [w for w in weights if w.requires_grad and min(w.shape[0], w[0].numel()) > 1]


def _decayed(parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups with and without weight decay; none that is empty."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
