"""The search space: what may be chosen, what it is judged by and how it is searched, as a YAML file says it.

`dimensions` (searched keys), `choices` (the set of choice sets; sampler, budget, rungs), `schema` (the file), `reader`
(the file becomes dimensions), `semantics` (`Space`: choice sets become necks; the shipped files), `messages`.
"""

from fpn_bench.search.space.choices import Budget, ChoiceSpace, Rungs, SamplerConfig
from fpn_bench.search.space.dimensions import (
    CHEAP_FACTS,
    COSTS,
    ChoiceDimension,
    Choices,
    Constraint,
    Dimension,
    FreeDimension,
    RangeDimension,
    choices_key,
    number_text,
)
from fpn_bench.search.space.schema import FREE, BackboneEntry, SyntheticData
from fpn_bench.search.space.semantics import BASELINES, Space, list_spaces, list_suites, shipped_files

__all__ = [
    "BASELINES",
    "CHEAP_FACTS",
    "COSTS",
    "FREE",
    "BackboneEntry",
    "Budget",
    "ChoiceDimension",
    "ChoiceSpace",
    "Choices",
    "Constraint",
    "Dimension",
    "FreeDimension",
    "RangeDimension",
    "Rungs",
    "SamplerConfig",
    "Space",
    "SyntheticData",
    "choices_key",
    "list_spaces",
    "list_suites",
    "number_text",
    "shipped_files",
]
