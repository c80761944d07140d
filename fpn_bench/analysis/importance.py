"""What matters: how much of a column's variance each searched choice explains by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.rows import CHOICE_PREFIX

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]
SHUFFLES = 400
MOST_VALUES = 8
"""A choice of more numbers than this is cut into as many ranges of about as many designs each."""


def choice_importance(candidates: pd.DataFrame, column: str, *, seed: int = 0) -> pd.DataFrame:
    """The share of the variance of ``column`` that each choice explains by itself, most first.

    The share is epsilon squared (Kelley 1935): the between-groups share of the variance, less what as many random
    groups would explain. Beside it stands what shuffling the choice's values reaches in one case of twenty: a share
    below that is noise. Effects of choices together are not seen, and a sampler that dwells on good designs narrows
    what there is to explain.

    Args:
        candidates: one row a candidate (`fpn_bench.analysis.by_candidate`), with columns ``choice.*``. A choice counts
            where it was asked, and where the column is known.
        column: numeric.
        seed: of the shuffles.

    Returns:
        ``choice``, ``share`` (0..1; below 0 is noise), ``noise`` (the 95th percentile under shuffling), ``values`` (how
        many groups), ``candidates`` (how many rows). Choices with one value only, or fewer than two rows more than
        values, are left out.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name in [str(c) for c in candidates.columns if str(c).startswith(CHOICE_PREFIX)]:
        known = candidates[(candidates[name] != "") & candidates[column].notna()]
        groups, labels = choice_groups(known[name])
        if len(labels) < 2 or len(known) < len(labels) + 2:
            continue
        target = known[column].to_numpy(dtype=np.float64)
        if not np.isfinite(target).all() or np.ptp(target) == 0:
            continue
        shuffled = [_epsilon_squared(groups, rng.permutation(target)) for _ in range(SHUFFLES)]
        rows.append(
            {
                "choice": name.removeprefix(CHOICE_PREFIX),
                "share": _epsilon_squared(groups, target),
                "noise": float(np.quantile(shuffled, 0.95)),
                "values": len(labels),
                "candidates": len(known),
            }
        )
    columns = ["choice", "share", "noise", "values", "candidates"]
    return pd.DataFrame(rows, columns=columns).sort_values("share", ascending=False, kind="stable", ignore_index=True)


def choice_groups(values: pd.Series[Any]) -> tuple[Codes, list[str]]:
    """The group of each value, and what the groups are called, in order.

    Text is a group by itself, and so is a number, unless there are more than `MOST_VALUES` numbers: these are cut into
    ranges.
    """
    texts = sorted(set(values))
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(numbers).any() or not texts:
        order = {text: i for i, text in enumerate(texts)}
        return np.array([order[v] for v in values], dtype=np.intp), texts
    value = dict(zip(texts, numbers, strict=True))
    given = np.array([value[v] for v in values])
    distinct = np.unique(numbers)
    if len(distinct) <= MOST_VALUES:
        return np.searchsorted(distinct, given), [f"{v:.12g}" for v in distinct]
    edges = np.unique(np.quantile(given, np.linspace(0, 1, MOST_VALUES + 1)[1:-1]))
    groups = np.searchsorted(edges, given, side="left")
    used, codes = np.unique(groups, return_inverse=True)
    ends = [(given[groups == g].min(), given[groups == g].max()) for g in used]
    return codes, [f"{low:.12g}" if low == high else f"{low:.12g} to {high:.12g}" for low, high in ends]


def _epsilon_squared(groups: Codes, target: Floats) -> float:
    count = np.bincount(groups)
    means = np.bincount(groups, weights=target) / count
    total = float(((target - target.mean()) ** 2).sum())
    within = float(((target - means[groups]) ** 2).sum())
    k, n = len(count), len(target)
    return (total - within - (k - 1) * within / (n - k)) / total
