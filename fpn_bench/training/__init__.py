"""Short training of detectors on cached features of a frozen backbone."""

from fpn_bench.training.cache import FeatureCache, FeatureProvider, FeatureSource, default_cache_root
from fpn_bench.training.protocol import HeadConfig, Protocol, TrainingRecipe
from fpn_bench.training.train import TrainingResult, evaluate_detector, input_targets, seeded, train_detector

__all__ = [
    "FeatureCache",
    "FeatureProvider",
    "FeatureSource",
    "HeadConfig",
    "Protocol",
    "TrainingRecipe",
    "TrainingResult",
    "default_cache_root",
    "evaluate_detector",
    "input_targets",
    "seeded",
    "train_detector",
]
