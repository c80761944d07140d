"""`fpn-bench profile`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from fpn_bench.cli.app import app, err, human, out, parse_image_size, parse_levels
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.vocabulary import AdapterName, CacheState, MemoryFormat, Mode, Precision
from fpn_bench.zoo import create_graph, options

if TYPE_CHECKING:
    from fpn_bench.backbones import Backbone
    from fpn_bench.latency import Latency, Profile
    from fpn_bench.profiling import PartProfile, StaticProfile

Candidates = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CANDIDATE",
        help="[BACKBONE+]NECK[,KEY=VALUE]...: a neck's name or a graph as a JSON file, with options of its own, "
        "e.g. fpn bifpn,repeats=3 resnet18+pafpn. Several are timed in turns and compared with the first.",
    ),
]
NeckOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="Option of every neck, KEY=VALUE; may be repeated.")
]


@app.command()
def profile(
    candidates: Candidates = None,
    backbone: Annotated[str | None, typer.Option(help="timm name (fpn-bench backbones).")] = None,
    neck: Annotated[str | None, typer.Option(help="The one candidate, where none is listed.")] = None,
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "640x640",
    levels: Annotated[str, typer.Option(help="Levels the backbone hands over, FIRST-LAST.")] = "3-5",
    out_levels: Annotated[str | None, typer.Option(help="Levels the neck returns; default: the backbone's.")] = None,
    adapter: Annotated[AdapterName, typer.Option(help="What makes levels that the backbone lacks.")] = "simple",
    channels: Annotated[int, typer.Option(min=1, help="Width of the neck.")] = 256,
    option: NeckOptions = None,
    weights: Annotated[str | None, typer.Option(help="A file, hub, or pip:PACKAGE; costs do not depend on it.")] = None,
    device: Annotated[str | None, typer.Option(help="Measure latency there: cpu, cuda, cuda:N.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    precision: Annotated[Precision, typer.Option(help="tf32 is CUDA's; fp16 and bf16 cast everything.")] = "fp32",
    memory_format: Annotated[MemoryFormat, typer.Option(help="Of weights and images.")] = "contiguous",
    mode: Annotated[Mode, typer.Option(help="cuda_graph is CUDA's: captured once, replayed.")] = "eager",
    cache: Annotated[CacheState, typer.Option(help="cold: caches are overwritten before each call.")] = "warm",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of sampling the latency of each.")] = 2.0,
    tolerance: Annotated[float, typer.Option(help="Share by which latencies may differ and be the same.")] = 0.02,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory of an inference and a training step.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Count MACs by fvcore too.")] = False,
    view: Annotated[Path | None, typer.Option(help="Write a page that shows the work of each module, of one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a backbone with a neck costs: params, MACs; latency and memory where a device is named.

    MACs are the multiply-adds of convolutions, linear layers, matrix and attention products (FLOPs would be twice
    that). Element-wise work, norm layers, pooling and resampling are counted apart, as other operations. fvcore's
    users publish MACs with norm, pooling and resampling terms on top: that sum is shown too.

    Each of several candidates is the same as, faster or slower than the first: by the 95 % interval of the ratio of
    their times, taken in turns, against the tolerance; unclear where the interval is too wide for a verdict. What fails
    for one candidate stands in its row, the others go on, and the command exits with 1.
    """
    size = parse_image_size(image_size)
    wanted = parse_levels(levels)
    common = dict(_option(text) for text in option or [])
    asked = _asked(candidates or [], neck, backbone, view)
    from fpn_bench.backbones import create_backbone
    from fpn_bench.profiling import Execution

    run = Execution(device or "cpu", batch, precision, memory_format, mode, cache, threads)
    if device is None and not memory and run != Execution():
        raise InputError("expected --device or --memory with settings of a run, got neither; add one of them")
    hub = weights == "hub"
    backbones = {
        name: create_backbone(
            name, wanted, pretrained=hub, weights=None if hub else weights, image_size=size, adapter=adapter
        )
        for name in dict.fromkeys(c.backbone for c in asked)
    }
    graphs = _graphs(asked, backbones, parse_levels(out_levels) if out_levels else None, channels, common)
    profiles = _profiles(
        asked,
        backbones,
        graphs,
        image_size=size,
        execution=run if device is not None or memory else None,
        latency=device is not None,
        budget_s=budget,
        tolerance=tolerance,
        memory=("inference", "training") if memory else (),
        verify=verify,
    )
    if view is not None and (static := next(iter(profiles.values())).static) is not None:
        from fpn_bench.reports.profile_view import write_profile_view

        err.print(f"view: {write_profile_view(static, view)}", markup=False)
    if as_json:
        rows = [{"name": n, **found.to_dict(), "graph": graphs[n].to_dict()} for n, found in profiles.items()]
        print(json.dumps({"profiles": rows}, indent=2))
    elif len(profiles) == 1:
        ((name, found),) = profiles.items()
        _print_one(f"{asked[0].backbone} + {name} {graphs[name].id} at {size[0]}x{size[1]}", found)
    else:
        _print_all(profiles, f"at {size[0]}x{size[1]}")
    if any(found.status != "ok" for found in profiles.values()):
        raise typer.Exit(1)


def _asked(candidates: list[str], neck: str | None, backbone: str | None, view: Path | None) -> list[_Candidate]:
    if view is not None and len(candidates) > 1:
        raise InputError(f"expected one candidate with --view {view}, got {len(candidates)}")
    if candidates and neck is not None:
        raise InputError(f"expected either candidates or --neck, got both; list {neck} among the candidates")
    return [_Candidate.parse(text, backbone) for text in candidates or [neck or "fpn"]]


def _graphs(
    asked: Sequence[_Candidate],
    backbones: Mapping[str, Backbone],
    out_levels: tuple[int, ...] | None,
    channels: int,
    common: Mapping[str, Any],
) -> dict[str, NeckGraph]:
    """Of each candidate, by its text; what is listed twice has its place behind it."""
    graphs: dict[str, NeckGraph] = {}
    for i, candidate in enumerate(asked, 1):
        name = candidate.text if candidate.text not in graphs else f"{candidate.text} ({i})"
        graphs[name] = candidate.graph(backbones[candidate.backbone].features, out_levels, channels, common)
    return graphs


def _profiles(
    asked: Sequence[_Candidate], backbones: Mapping[str, Backbone], graphs: Mapping[str, NeckGraph], **how: Any
) -> dict[str, Profile]:
    """`profile_all` with a bar."""
    from fpn_bench.latency import Model, profile_all
    from fpn_bench.nn.neck import build_neck

    def build(backbone: Backbone, graph: NeckGraph) -> Model:
        return Model(backbone, build_neck(graph, backbone.features))

    models = {
        name: partial(build, backbones[candidate.backbone], graph)
        for candidate, (name, graph) in zip(asked, graphs.items(), strict=True)
    }
    bar = Progress(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("static", total=1.0)
        return profile_all(
            models, on_progress=lambda what, share: bar.update(task, description=what, completed=share), **how
        )


@dataclass(frozen=True)
class _Candidate:
    """What stands for one: ``[BACKBONE+]NECK[,KEY=VALUE]...``."""

    text: str
    backbone: str
    neck: str
    options: Mapping[str, Any]

    @staticmethod
    def parse(text: str, backbone: str | None) -> _Candidate:
        # Commas within brackets belong to a list of values.
        name, *settings = re.split(r",(?![^\[\]]*\])", text)
        before, plus, neck = name.rpartition("+")
        chosen = before if plus else backbone
        if not chosen:
            raise InputError(f"candidate {text} has no backbone: give --backbone NAME, or write BACKBONE+{text}")
        return _Candidate(text, chosen, neck, dict(_option(setting) for setting in settings))

    def graph(
        self,
        features: Sequence[FeatureSpec],
        out_levels: tuple[int, ...] | None,
        channels: int,
        common: Mapping[str, Any],
    ) -> NeckGraph:
        chosen = {**common, **self.options}
        if not self.neck.endswith(".json"):
            known = [*options(self.neck), "channels"]
            for option in chosen:
                if option not in known:
                    hint = f"fpn-bench necks show {self.neck}"
                    raise UnknownNameError(f"option of neck {self.neck!r}", option, known, hint)
            return create_graph(self.neck, features, out_levels, chosen.pop("channels", channels), **chosen)
        if chosen:
            raise InputError(f"expected no options with the graph {self.neck}, which has none; edit the file instead")
        try:
            text = Path(self.neck).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"graph {self.neck} cannot be read: {error}") from None
        return NeckGraph.from_json(text)


def _option(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InputError(f"expected an option as KEY=VALUE, e.g. merge=concat, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def _print_one(title: str, found: Profile) -> None:
    """Part by part."""
    if found.static is not None:
        out.print(title, markup=False)
        table = Table(box=None, pad_edge=False)
        for column in ("part", "params", "MACs", "other ops", "activations", "peak MiB"):
            table.add_column(column, justify="left" if column == "part" else "right")
        rows: dict[str, PartProfile | StaticProfile] = {**found.static.parts, "all": found.static}
        for name, part in rows.items():
            table.add_row(
                name,
                f"{part.params:,}",
                human(part.macs),
                human(part.other_ops),
                human(part.activation_elements),
                f"{part.peak_activation_bytes / (1 << 20):.1f}",
            )
        out.print(table)
        out.print(f"as fvcore sums: {human(found.static.macs_fvcore_style)} MACs", markup=False)
        _print_uncounted(found)
    if found.fvcore is not None:
        said = (
            f"fvcore itself: {human(found.fvcore.macs)} MACs, {human(found.fvcore.macs_fvcore_style)} in its own style"
        )
        lacks = ", ".join(f"{name} x{n}" for name, n in found.fvcore.uncounted.items())
        out.print(said + (f"; not counted: {lacks}" if lacks else ""), markup=False)
    if (lat := found.latency) is not None:
        settled = "" if lat.converged else "; budget spent before the interval was under 1 %"
        out.print(
            f"latency: median {lat.median_ms:.2f} ms (95 % {lat.low_ms:.2f} to {lat.high_ms:.2f}), p90 "
            f"{lat.p90_ms:.2f} ms, {lat.samples} samples, {_settings(found)}{settled}",
            soft_wrap=True,
            markup=False,
        )
        if lat.speed is not None:
            out.print(_speed(lat), markup=False)
        _print_telemetry(lat)
    for task, memory in found.memory.items():
        how = "resident set of the process" if memory.method == "process_resident_set" else "CUDA allocator"
        predicted = ""
        if task == "inference" and found.predicted_peak_mib is not None:
            predicted = f"; {found.predicted_peak_mib:.0f} MiB of maps predicted"
        said = f"memory, {task}: peak {memory.peak_mib:.0f} MiB ({how}), of it the call {memory.rise_mib:.0f} MiB"
        out.print(said + predicted, markup=False)
    _print_failures({"": found})


def _print_all(profiles: Mapping[str, Profile], title: str) -> None:
    """A row each."""
    out.print(title, markup=False)
    table = Table(box=None, pad_edge=False)
    baseline = next(iter(profiles))
    timed = any(found.latency for found in profiles.values())
    tasks = list(dict.fromkeys(task for found in profiles.values() for task in found.memory))
    table.add_column("candidate")
    for column in ("params", "MACs", *(["latency ms (95 %)", f"against {baseline}"] if timed else [])):
        table.add_column(column, justify="right")
    if timed:
        table.add_column("verdict")
    for task in tasks:
        table.add_column(f"{task} MiB", justify="right")
    table.add_column("status")
    for name, found in profiles.items():
        cells = ["", ""] if found.static is None else [f"{found.static.params:,}", human(found.static.macs)]
        if timed:
            lat, versus = found.latency, found.comparison
            cells.append("" if lat is None else f"{lat.median_ms:.2f} ({lat.low_ms:.2f} to {lat.high_ms:.2f})")
            cells.append("" if versus is None else f"{versus.ratio:.3f} ({versus.low:.3f} to {versus.high:.3f})")
            cells.append("" if versus is None else versus.verdict)
        cells += [f"{found.memory[task].rise_mib:.0f}" if task in found.memory else "" for task in tasks]
        table.add_row(name, *cells, found.status)
    out.print(table)
    first = profiles[baseline]
    if timed:
        out.print(f"latency: {_settings(first)}", soft_wrap=True, markup=False)
        if (lat := next(found.latency for found in profiles.values() if found.latency)).speed is not None:
            out.print(_speed(lat), markup=False)
    for found in profiles.values():
        _print_uncounted(found)
    _print_failures(profiles)


def _settings(found: Profile) -> str:
    run = found.execution
    assert run is not None
    threads = f", {found.latency.threads} threads" if found.latency is not None else ""
    how = f"batch {run.batch}, {run.precision}, {run.memory_format}, {run.mode}, {run.cache} caches"
    return f"{how} on {run.device}{threads}, {found.machine.label}"


def _speed(lat: Latency) -> str:
    """How the figures relate to the clock, and to other processes."""
    assert lat.speed is not None
    said = f"{lat.clock_ms:.2f} ms by the clock; stated at the device's reference speed, now at {lat.speed:.1%}"
    if lat.spread is None:
        return said + "; how well it repeats is known from the third process on"
    return said + f"; intervals are widened by the {lat.spread:.1%} that processes differ by"


def _print_telemetry(lat: Latency) -> None:
    seen = lat.telemetry
    told = [
        ("clock", seen.clock_mhz, "MHz"),
        ("lowest", seen.clock_low_mhz, "MHz"),
        ("temperature", seen.temperature_c, "C"),
        ("power", seen.power_w, "W"),
        ("energy", lat.energy_j, "J an image"),
    ]
    words = [f"{what} {value:.4g} {unit}" for what, value, unit in told if value is not None]
    if seen.throttled_samples:
        words.append(f"throttled in {seen.throttled_samples} samples ({', '.join(seen.throttle_reasons or ())})")
    if words:
        out.print("device: " + ", ".join(words), markup=False)


def _print_uncounted(found: Profile) -> None:
    if found.static is not None and found.static.uncounted:
        err.print("not counted: " + ", ".join(f"{name} x{n}" for name, n in found.static.uncounted.items()))


def _print_failures(profiles: Mapping[str, Profile]) -> None:
    for name, found in profiles.items():
        if found.reason:
            err.print(f"{name}: {found.reason}" if name else found.reason, markup=False)
