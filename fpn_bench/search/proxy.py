"""Is the short training to be trusted? A sample of a study is trained longer, and the two rankings are compared.

The longer trainings are a study of their own, a suite that lists the sample: stopped, it goes on. What they found is
kept with the short study, where reports find it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from fpn_bench.errors import InputError
from fpn_bench.search.api import bench
from fpn_bench.search.database import DATABASE, is_url, open_database, storage_errors
from fpn_bench.search.detectors import OnLoad
from fpn_bench.search.opening import PROXY
from fpn_bench.search.records import Columns, Event
from fpn_bench.search.space import Space
from fpn_bench.search.study import Study, load_study

COST = "macs"
"""What bands are formed by: known of every candidate, and exact."""
FIRST_SEED = 1_000_000
"""Of the longer trainings: one that no short training has, so that the two do not share their initial weights."""


def correlate(
    study: str | Path,
    *,
    name: str | None = None,
    times: int = 4,
    sample: int = 30,
    seeds: int = 1,
    data: str | Path | None = None,
    on_load: OnLoad | None = None,
    on_event: Callable[[Event], None] | None = None,
    **given: Any,
) -> Study:
    """Train a random sample of a study's candidates longer, and keep both APs of each with the study.

    `fpn_bench.analysis.proxy_trust` says what follows. Called again, it goes on, and adds what the
    short study has found since: which candidates are the sample depends on their ids alone. Of a search with rungs
    those that were trained to their end are sampled, and no others.

    Args:
        study: folder, database file or URL of a study that was searched or benched.
        name: of it, where a database holds several.
        times: how many times the epochs.
        sample: how many candidates; all of a study of fewer.
        seeds: longer trainings of each.
        data: where its data set lies, if elsewhere than where the study was begun.
        on_load, on_event: see `fpn_bench.search.api.search`.
        given: ``device``, ``cache``, ``workers``, ``weights`` ... as `fpn_bench.search.api.bench` takes them.

    Returns:
        The study of the longer trainings, ``NAME-xTIMES`` beside the other.

    Raises:
        InputError: there is no such study, or nothing in it is complete.
    """
    short = load_study(study, name)
    space = short.space()
    rows = _complete(short)
    first = {row["candidate"]: row for row in reversed(rows)}
    if not first:
        raise InputError(f"study {short.name!r} has no complete candidate that could be trained longer")
    picked = sorted(first, key=lambda name: hashlib.sha256(name.encode()).digest())[:sample]
    suite = longer_suite(space, f"{short.name}-x{times}", times, seeds, [first[name]["choices"] for name in picked])
    longer = bench(
        suite,
        data=data,
        results="results" if short.path is None else short.path.parent,
        storage=str(study) if is_url(study) else None,
        seed=FIRST_SEED,
        on_load=on_load,
        on_event=on_event,
        **given,
    )
    long_rows = _complete(longer)
    kept = {
        "times": times,
        "epochs": space.full_epochs,
        "cost": COST,
        "study": longer.name,
        "protocol": longer.metadata()["protocol"]["id"],
        "candidates": [
            {
                "candidate": candidate,
                "label": first[candidate]["neck_label"],
                COST: first[candidate][COST],
                "short": _aps(rows, candidate),
                "long": _aps(long_rows, candidate),
            }
            for candidate in sorted({row["candidate"] for row in long_rows} & set(first))
        ],
    }
    if kept["candidates"]:
        target: str | Path = study if short.path is None else short.path / DATABASE
        with storage_errors(target):
            written = optuna.load_study(study_name=short.name, storage=open_database(target).optuna)
            written.set_user_attr(PROXY, {**written.user_attrs.get(PROXY, {}), str(times): kept})
    return longer


def longer_suite(space: Space, name: str, times: int, seeds: int, chosen: Sequence[Mapping[str, Any]]) -> Space:
    """Some choice sets of a space, to be trained so many times its epochs; judged by AP and MACs."""
    kept = ("schema_version", "backbone", "data", "image_size", "head")
    training = {**space.raw.get("training", {}), "epochs": times * space.full_epochs}
    return Space.from_dict(
        {
            **{key: space.raw[key] for key in kept if key in space.raw},
            "name": name,
            "training": training,
            "necks": [
                {**space.settings(choices), **{k: v for k, v in choices.items() if k == "backbone"}}
                for choices in chosen
            ],
            "seeds": seeds,
            "objectives": {"ap": "maximise", COST: "minimise"},  # latency would be measured again for nothing
        }
    )


def _complete(study: Study) -> list[Columns]:
    return [row for row in study.rows() if row["status"] == "complete"]


def _aps(rows: list[Mapping[str, Any]], candidate: str) -> dict[str, float]:
    """Seed -> AP, the first training of each."""
    found: dict[str, float] = {}
    for row in rows:
        if row["candidate"] == candidate:
            found.setdefault(str(row["seed"]), float(row["ap"]))
    return found
