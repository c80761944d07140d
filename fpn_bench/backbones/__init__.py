"""Backbones: timm models as frozen sources of feature maps. The only package that imports timm's models."""

from fpn_bench.backbones.create import Backbone, BackboneInfo, create_backbone, describe_backbone, list_backbones
from fpn_bench.backbones.probe import Probe, Recipe
from fpn_bench.backbones.weights import WeightsRecord
from fpn_bench.vocabulary import AdapterName

__all__ = [
    "AdapterName",
    "Backbone",
    "BackboneInfo",
    "Probe",
    "Recipe",
    "WeightsRecord",
    "create_backbone",
    "describe_backbone",
    "list_backbones",
]
