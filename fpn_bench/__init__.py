"""Search, measure and compare feature-pyramid necks on any timm backbone.

    import fpn_bench as fb

    backbone = fb.create_backbone("resnet50", levels=(3, 4, 5))
    graph = fb.create_graph("fpn", backbone.features, channels=64)
    neck = fb.build_neck(graph, backbone.features)
    study = fb.search("quickstart")

Importing the package imports none of torch, timm, optuna, plotly: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpn_bench import tabular
    from fpn_bench.analysis import compare_tables
    from fpn_bench.analysis.choice import choose
    from fpn_bench.backbones import Backbone, create_backbone, list_backbones
    from fpn_bench.candidates.candidate import Candidate
    from fpn_bench.candidates.context import EvaluationContext
    from fpn_bench.candidates.evaluation import assess
    from fpn_bench.candidates.full_training import train_full
    from fpn_bench.candidates.model import DetectorSpec, ImageDetector
    from fpn_bench.candidates.study_candidate import StudyCandidate
    from fpn_bench.data.check import check_dataset
    from fpn_bench.data.formats import load_dataset, write_dataset
    from fpn_bench.errors import FpnBenchError, InputError
    from fpn_bench.export import export
    from fpn_bench.graph import GraphBuilder, NeckGraph, cost
    from fpn_bench.latency import profile
    from fpn_bench.nn.neck import Neck, build_neck
    from fpn_bench.pyramid import FeatureSpec
    from fpn_bench.reports import write_report
    from fpn_bench.search import Space, Study, list_spaces, load_study
    from fpn_bench.search.api import bench, search
    from fpn_bench.search.load import load_candidate
    from fpn_bench.zoo import create_graph, list_necks

__version__ = "0.1.0"

_HOMES = {
    "analysis": ("compare_tables",),
    "analysis.choice": ("choose",),
    "backbones": ("Backbone", "create_backbone", "list_backbones"),
    "candidates.candidate": ("Candidate",),
    "candidates.context": ("EvaluationContext",),
    "candidates.evaluation": ("assess",),
    "candidates.full_training": ("train_full",),
    "candidates.model": ("DetectorSpec", "ImageDetector"),
    "candidates.study_candidate": ("StudyCandidate",),
    "data.check": ("check_dataset",),
    "data.formats": ("load_dataset", "write_dataset"),
    "errors": ("FpnBenchError", "InputError"),
    "export": ("export",),
    "graph": ("GraphBuilder", "NeckGraph", "cost"),
    "latency": ("profile",),
    "nn.neck": ("Neck", "build_neck"),
    "pyramid": ("FeatureSpec",),
    "reports": ("write_report",),
    "search": ("Space", "Study", "list_spaces", "load_study"),
    "search.load": ("load_candidate",),
    "search.api": ("bench", "search"),
    "zoo": ("create_graph", "list_necks"),
}
_PACKAGES = ("tabular",)
"""Reached as they are, ``fpn_bench.tabular.load``; the others by the names above."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_RENAMED = {"Workbench": "EvaluationContext", "found": "load_candidate", "train_found": "train_full"}
"""Names of before; they still work, with a warning."""

__all__ = [
    "Backbone",
    "Candidate",
    "DetectorSpec",
    "EvaluationContext",
    "FeatureSpec",
    "FpnBenchError",
    "GraphBuilder",
    "ImageDetector",
    "InputError",
    "Neck",
    "NeckGraph",
    "Space",
    "Study",
    "StudyCandidate",
    "__version__",
    "assess",
    "bench",
    "build_neck",
    "check_dataset",
    "choose",
    "compare_tables",
    "cost",
    "create_backbone",
    "create_graph",
    "export",
    "list_backbones",
    "list_necks",
    "list_spaces",
    "load_candidate",
    "load_dataset",
    "load_study",
    "profile",
    "search",
    "tabular",
    "train_full",
    "write_dataset",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        message = f"fpn_bench.{name} is now called fpn_bench.{_RENAMED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name in _PACKAGES:
        return importlib.import_module(f"fpn_bench.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fpn_bench' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"fpn_bench.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _PublicModule(ModuleType):
    """`fpn_bench.search` is a function, and a package has the same name: importing the package, which sets it as an
    attribute here, must not put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _PublicModule
