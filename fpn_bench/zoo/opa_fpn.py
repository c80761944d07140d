"""OPA-FPN: Liang, Wang, Tang, Hu, Ling, "OPANAS: One-Shot Path Aggregation Network Architecture Search", CVPR 2021.

The genome of the family is a directed acyclic graph whose nodes are whole pyramids. N0 is the laterals; every later
pyramid is the sum of what its paths make of the earlier ones; the neck's outputs are the sum of N1 ... Nk.

    genome = (("TD",), ("TD", "TD"), ("FS", "none", "skip"), ...)

Entry i (from 1) is the pyramid Ni and has exactly i path types; the j-th (from 0) is the path from Nj to Ni:

    none    no edge
    skip    Nj as it is
    TD      top-down: each level, with the path's upsampled result of the level above added, through a 3x3
    BU      bottom-up: each level, with the path's pooled result of the level below added, through a 3x3
    FS      fusing-splitting: the finer half is pooled into one map, the coarser half upsampled into one; both,
            concatenated at either size, go through one 3x3; the results are handed back to the levels of their halves
    SE      scale-equalising: 3x3 of the level + 3x3 stride 2 of the finer + upsampled 3x3 of the coarser, then ReLU;
            each of the three has one set of weights for all levels

Spelled compactly, in options and YAML: types separated by spaces (or commas), pyramids by ";", as in `FOUND`.
`parse_dag` reads either spelling and `format_dag` writes the compact one. Any number of pyramids from 1 is valid, and
so is any mix of types, as long as each pyramid has a path other than "none" (one without is nothing: leave it out) and
"FS" has at least two levels to work on. All of that can be checked from the genome, and `parse_dag` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Conv,
    DeformableConv,
    Edge,
    GraphBuilder,
    Merge,
    NeckGraph,
    Norm,
    Op,
    Resample,
    Restore,
    input_name,
)
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    conv_norm,
    finish,
    laterals,
)
from fpn_bench.zoo.registry import neck

Dag = tuple[tuple[str, ...], ...]
PATHS = ("none", "skip", "TD", "BU", "FS", "SE")
FOUND = "TD; TD TD; FS none skip; BU skip none TD; BU none FS SE BU"
DeformableOption = Literal["none", "coarser", "all"]
DEFORMABLE: tuple[DeformableOption, ...] = ("none", "coarser", "all")


def parse_dag(dag: str | Sequence[Sequence[str]], levels: int | None = None) -> Dag:
    """The genome, from either spelling.

    Args:
        dag: compact, or one sequence of path types a pyramid.
        levels: of the pyramids; when given, paths that need more are refused.

    Raises:
        InputError: names the pyramid, what came and what was wanted.
    """
    if isinstance(dag, str):
        dag = [pyramid.replace(",", " ").split() for pyramid in dag.split(";")]
    if not isinstance(dag, Sequence) or not dag:
        raise InputError(f"dag={dag!r} came; at least one pyramid is wanted, e.g. {FOUND!r}")
    for i, pyramid in enumerate(dag, start=1):
        if isinstance(pyramid, str) or not isinstance(pyramid, Sequence):
            raise InputError(f"pyramid N{i} of the dag is {pyramid!r}; a list of {i} path type(s) is wanted")
        if len(pyramid) != i:
            raise InputError(
                f"pyramid N{i} of the dag has {len(pyramid)} path(s): {' '.join(map(str, pyramid))!r}; {i} are wanted, "
                f"one from each of N0 ... N{i - 1}"
            )
        for j, path in enumerate(pyramid):
            if path not in PATHS:
                raise UnknownNameError(f"type of the path N{j} -> N{i} of the dag:", str(path), PATHS)
            if path == "FS" and levels is not None and levels < 2:
                raise InputError(f"path N{j} -> N{i} of the dag is FS, which has no use for {levels} level; TD is alike")
        if set(pyramid) == {"none"}:
            raise InputError(f"pyramid N{i} of the dag has no path other than none; leave it out, or give it one")
    return tuple(tuple(pyramid) for pyramid in dag)


def format_dag(dag: Sequence[Sequence[str]]) -> str:
    """The compact spelling of a genome."""
    return "; ".join(" ".join(pyramid) for pyramid in dag)


def pyramid_dag(
    b: GraphBuilder,
    pyramid: Mapping[int, str],
    dag: Dag,
    channels: int,
    *,
    deformable: DeformableOption = "coarser",
    up: UpOption = "nearest",
    norm: NormOption = "none",
    activation: ActivationOption = "none",
    separable: bool = False,
) -> dict[int, str]:
    """Add a DAG of pyramids to a graph.

    Args:
        b: the graph so far.
        pyramid: N0; level -> name of a map of `channels`, each level above the one before.
        dag: from `parse_dag`.
        channels: width.
        deformable, up, norm, activation, separable: as the options of `opa_fpn`.

    Returns:
        The sum of all later pyramids: level -> name.
    """
    paths = _Paths(b, tuple(sorted(pyramid)), channels, deformable, up, norm, activation, separable)
    pyramids = [dict(pyramid)]
    for i, types in enumerate(dag, start=1):
        parts = []
        for j, path in enumerate(types):
            if path != "none":
                make = None if path == "skip" else getattr(paths, path)
                parts.append(pyramids[j] if make is None else make(f"N{i}_{path}{j}_", pyramids[j]))
        pyramids.append({k: paths.sum(f"N{i}_{k}", k, *(part[k] for part in parts)) for k in pyramid})
    return {k: paths.sum(f"all{k}", k, *(n[k] for n in pyramids[1:])) for k in pyramid}
