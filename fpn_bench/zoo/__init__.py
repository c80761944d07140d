"""The published necks as data: one paper a file, each function returning a `NeckGraph`. No torch."""

import importlib
import pkgutil

from fpn_bench.zoo.registry import choices, create_graph, describe, list_necks, list_unfit, options

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")  # a family registers itself when its file is imported

__all__ = ["choices", "create_graph", "describe", "list_necks", "list_unfit", "options"]
