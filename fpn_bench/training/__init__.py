"""Training of detectors: the short one on cached features of a frozen backbone, and the full one on images.

The protocol and the recipes are plain data and load at once; what needs torch is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.protocol import HeadConfig, Protocol, TrainingRecipe

if TYPE_CHECKING:
    from fpn_bench.training.cache import FeatureCache, FeatureProvider, FeatureSource, default_cache_root
    from fpn_bench.training.checkpoint import Checkpoint
    from fpn_bench.training.full import FullProgress, FullTraining
    from fpn_bench.training.processes import Processes
    from fpn_bench.training.train import TrainingResult, evaluate_detector, input_targets, seeded, train_detector

__all__ = [
    "Checkpoint",
    "FeatureCache",
    "FeatureProvider",
    "FeatureSource",
    "FullProgress",
    "FullRecipe",
    "FullTraining",
    "HeadConfig",
    "Processes",
    "Protocol",
    "TrainingRecipe",
    "TrainingResult",
    "default_cache_root",
    "evaluate_detector",
    "input_targets",
    "seeded",
    "train_detector",
]
_ELSEWHERE = {
    "Checkpoint": "checkpoint",
    "Processes": "processes",
    **dict.fromkeys(("FullProgress", "FullTraining"), "full"),
    **dict.fromkeys(("FeatureCache", "FeatureProvider", "FeatureSource", "default_cache_root"), "cache"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fpn_bench.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fpn_bench.training.{_ELSEWHERE.get(name, 'train')}"), name)
