"""`search`, `bench` and `join`: a space, a data set and a backbone in, a study out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fpn_bench.detection.samples import sample_images
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.search.database import DATABASE, is_url, storage_errors
from fpn_bench.search.detectors import (
    DetectorEvaluator,
    OnLoad,
    WorkerPreparation,
    prepare,
    reading_options,
    run_columns,
    with_overrides,
)
from fpn_bench.search.executors import Executor
from fpn_bench.search.held_out import evaluate_chosen
from fpn_bench.search.launch import run_study, shared_rows
from fpn_bench.search.opening import check_name, open_study
from fpn_bench.search.records import Event
from fpn_bench.search.space import Space
from fpn_bench.search.study import Study, load_study
from fpn_bench.search.worker import Worker


def search(
    space: Space | str | Path = "quickstart",
    *,
    data: str | Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    trials: int | None = None,
    name: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    cache: str | Path | None = None,
    cache_gib: float = 20.0,
    skip_unreadable: bool = False,
    val_fraction: float | None = None,
    allow_images_from: Sequence[str | Path] | None = None,
    share: bool = True,
    test: bool = True,
    workers: int = 1,
    executor: Executor | None = None,
    on_load: OnLoad | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Study:
    """Search a space, or go on with the search of the same name, until its budget is spent.

    Args:
        space: a `Space`, a YAML file, or the name of a shipped space.
        data: folder of a data set in COCO, VOC or YOLO format, instead of the space's own.
        backbone: timm name, instead of the space's; its weights are random unless `weights` says more.
        weights: of the backbone: a file, ``"hub"`` or ``"pip:PACKAGE"``.
        trials: whole trainings to pay for in all, instead of the space's budget.
        name: of the study; the space's by default. It lives in ``results/name``.
        results: folder of studies.
        storage: URL of a database server instead of SQLite in the study's folder.
        seed: of the trainings.
        device: where latency is measured and detectors are trained.
        cache: folder of features and drawn data; None is `fpn_bench.paths.cache_home`.
        cache_gib: bound on the features kept there; 0 keeps none and runs the backbone on each batch, which is slow.
        skip_unreadable, val_fraction, allow_images_from: how the data set is read, see `reading_options`.
        share: take over what other studies there have trained under this protocol, instead of training it again.
        test: when the search is over, take the AP of what it chose on the data set's test split, if that has one.
        workers: how many candidates are assessed at a time. Each shares the machine's cores, and on ``"cuda"`` has a
            GPU in turn; latency is measured by one at a time, with as many threads as a single worker would have.
        executor: where they run; None is this machine. See `fpn_bench.search.executors`.
        on_load, on_event: called while the data set is read, and with what happens, for display.

    Returns: the study; `Study.result` says how the run ended.

    Raises:
        InputError: anything that was given and cannot be used; nothing was changed.
    """
    space = space if isinstance(space, Space) else Space.load(space)
    name = check_name(name or space.name)
    reading = reading_options(skip_unreadable, val_fraction, allow_images_from)
    space = with_overrides(space, data, backbone, weights, reading)
    space, ids = _as_begun(space, storage or Path(results) / name, name)
    bench, metadata = prepare(space, device=device, cache=cache, cache_gib=cache_gib, weights_ids=ids, on_load=on_load)
    study, result = run_study(
        space,
        evaluator := DetectorEvaluator(space, bench),
        bench.protocol,
        Path(results) / name,
        storage=storage,
        name=name,
        budget=trials,
        seed=seed,
        columns=run_columns(space, bench, metadata),
        metadata=metadata,
        samples=partial(sample_images, bench.dataset),
        share=share,
        workers=workers,
        executor=executor,
        prepare=WorkerPreparation.like(bench, space, device, cache, cache_gib, metadata),
        on_event=on_event,
    )
    study.result = result
    if test:
        evaluate_chosen(study, evaluator, bench, result, on_event)
    return study


def _as_begun(space: Space, target: str | Path, name: str) -> tuple[Space, Mapping[str, str] | None]:
    """The space with the recipe of the study that it continues, and backbone -> id of that study's weights.

    The space as it is and None where there is no such study, or it cannot be read.
    """
    try:
        there = load_study(target, name).metadata()
    except InputError:
        return space, None
    return space.with_recorded_recipe(there["protocol"]["training"]), there.get("weights")


def bench(
    suite: Space | str | Path = "smoke",
    *,
    seeds: int | None = None,
    weights: Mapping[str, str] | None = None,
    **given: Any,
) -> Study:
    """Train what a suite lists, each candidate with each seed, or go on with the study of the same name.

    Args:
        suite: a `Space` that lists its candidates (``necks:``), a YAML file, or the name of a shipped suite.
        seeds: trainings of each candidate, instead of the suite's. A study can be given more of them later.
        weights: backbone -> where its weights are, instead of the suite's: a file, ``"hub"`` or ``"pip:PACKAGE"``.
        given: ``data``, ``name``, ``results``, ``workers`` and whatever else `search` takes.

    Returns:
        The study; `Study.result` says how the run ended.

    Raises:
        InputError: it is no suite, or anything else that was given cannot be used; nothing was changed.
    """
    space = suite if isinstance(suite, Space) else Space.load(suite)
    if not space.listed:
        raise InputError(
            f"expected a suite, which lists its candidates under `necks:`, got the search space {space.name!r}; "
            f"try `fpn-bench search {space.name}`"
        )
    given.setdefault("test", False)  # a suite chooses nothing
    changes: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    if weights:
        known = [entry.name for entry in space.backbones]
        for name in weights:
            if name not in known:
                raise UnknownNameError(f"backbone of suite {space.name!r}", name, known)
        entries = [entry.model_dump(mode="json") for entry in space.backbones]
        changed = [{**entry, "weights": weights.get(entry["name"], entry["weights"])} for entry in entries]
        changes["backbone"] = changed if isinstance(space.raw["backbone"], list) else changed[0]
    return search(space.replace(**changes) if changes else space, **given)


def join(
    storage: str | Path,
    *,
    name: str | None = None,
    data: str | Path | None = None,
    weights: str | None = None,
    trials: int | None = None,
    number: int | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    cache_gib: float = 20.0,
    on_load: OnLoad | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Study:
    """Be a worker of a study that was begun elsewhere, until its budget is spent.

    The plan (budget, seed, sampler, rungs) is that of the last `search` on it.

    Args:
        storage: URL of the database server, or folder or file of the study.
        name: of the study, where the storage holds several.
        data: where its data set lies on this machine, if elsewhere than where the search was begun.
        weights: of its backbone on this machine, likewise.
        trials: whole trainings to pay for in all, instead of what the last search said.
        number: of this worker, unlike those of others; part of the sampler's seed. Drawn when None.
        device, cache, cache_gib, on_load, on_event: see `search`.

    Raises:
        InputError: there is no such study.
        ProtocolError: what is here is not what the study was begun with: data set, weights, latency device.
    """
    found = load_study(storage, name)
    plan = found.last_run()
    space = with_overrides(found.space(), data, None, weights, {})
    weights_ids = found.metadata().get("weights")
    bench, here = prepare(
        space, device=device, cache=cache, cache_gib=cache_gib, weights_ids=weights_ids, on_load=on_load
    )
    target: str | Path = storage if is_url(storage) else (found.path or Path(storage)) / DATABASE
    with storage_errors(target):
        study = open_study(target, space, bench.protocol, name=found.name, metadata=here)
    columns = {"protocol": bench.protocol.id, "study": found.name, **run_columns(space, bench, here)}
    folder = found.path or Path("results") / found.name
    with storage_errors(target):
        result = Worker(
            study,
            space,
            DetectorEvaluator(space, bench),
            budget=plan["budget"] if trials is None else trials,
            seed=plan["seed"],
            columns=columns,
            shared=shared_rows(target, folder, found.name, bench.protocol.id, plan["seed"]),
            number=number if number is not None else random.SystemRandom().randrange(1, 10**6),
            on_event=on_event,
        ).run()
    joined = Study(study.optuna, study.storage, found.path)
    joined.result = result
    return joined
