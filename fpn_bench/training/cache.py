"""The feature cache: a frozen backbone sees every image once, its maps are read from disk ever after.

What is kept are the maps of its trunk: an adapter is trained with the neck.

What lies on disk is `fpn_bench.training.cache_store`'s.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.images import load_image
from fpn_bench.errors import CacheError
from fpn_bench.paths import cache_home
from fpn_bench.profiling import shared_device
from fpn_bench.pyramid import FeatureSpec, ImageSize
from fpn_bench.training.cache_store import CacheEntry, CacheStore, digest

if TYPE_CHECKING:
    from fpn_bench.backbones import Backbone
    from fpn_bench.backbones.split import Prefix

    Frozen: TypeAlias = Backbone | Prefix

_log = logging.getLogger(__name__)

CACHE_FORMAT: Final = 1
Progress = Callable[[int, int], None]
"""Called with (images done, images in all); a mirror is an image of its own."""


def default_cache_root() -> Path:
    """The feature cache's folder."""
    return cache_home() / "features"


class FeatureProvider(Protocol):
    """Where a training gets a split's maps from: `FeatureCache` or `FeatureSource`."""

    @property
    def records(self) -> Sequence[ImageRecord]:
        """The split's images."""

    @property
    def image_size(self) -> ImageSize:
        """Size of the network's input."""

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """The levels that `batch` returns, finest first."""

    @property
    def mirror(self) -> bool:
        """Whether mirrored images can be had."""

    def batch(self, indices: npt.ArrayLike, mirrored: npt.ArrayLike = False) -> tuple[Tensor, ...]:
        """float32 maps [N, C, H, W], finest first, of the images ``indices``, each mirrored or not."""


def load_input(record: ImageRecord, image_size: ImageSize, backbone: Frozen) -> Tensor:
    """One image file as the backbone wants it, see `to_input`."""
    return to_input(load_image(record), image_size, backbone)


def to_input(image: Image.Image, image_size: ImageSize, backbone: Frozen) -> Tensor:
    """One RGB image as the backbone wants it: stretched to ``image_size``, normalised; float32 [3, H, W].

    PIL's resize, antialiased, with the interpolation the backbone was trained with.
    """
    height, width = image_size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[backbone.interpolation.upper()])
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float().div_(255)
    mean, std = torch.tensor(backbone.mean)[:, None, None], torch.tensor(backbone.std)[:, None, None]
    return pixels.sub_(mean).div_(std)


def load_inputs(records: Sequence[ImageRecord], image_size: ImageSize, backbone: Frozen) -> Tensor:
    """A batch of images as the backbone wants them, float32 [N, 3, H, W]."""
    # Decoding and resizing release the interpreter lock.
    with ThreadPoolExecutor(min(len(records), os.cpu_count() or 1, 8)) as pool:
        return torch.stack(list(pool.map(lambda record: load_input(record, image_size, backbone), records)))


def device_of(module: Frozen) -> torch.device:
    """Where the module's weights are; the CPU where it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


class FeatureSource:
    """Maps computed by the backbone each time they are asked for: for data too large to cache, and to compare with.

    Args:
        backbone: frozen; its own device is used.
        records: the split's images.
        image_size: (height, width) of the input.
        mirror: allow mirrored images.
    """

    def __init__(
        self, backbone: Frozen, records: Sequence[ImageRecord], *, image_size: ImageSize, mirror: bool
    ) -> None:
        self.backbone = backbone
        self.records = tuple(records)
        self.image_size = image_size
        self.mirror = mirror
        self.features = tuple(backbone.trunk_features)

    @torch.no_grad()
    def batch(self, indices: npt.ArrayLike, mirrored: npt.ArrayLike = False) -> tuple[Tensor, ...]:
        """See `FeatureProvider.batch`."""
        indices, mirrored = np.broadcast_arrays(np.atleast_1d(indices), mirrored)
        inputs = load_inputs([self.records[i] for i in indices], self.image_size, self.backbone)
        inputs = torch.where(torch.from_numpy(mirrored.copy())[:, None, None, None], inputs.flip(3), inputs)
        return tuple(self.backbone.trunk(inputs.to(device_of(self.backbone))))


class FeatureCache:
    """A split's maps on disk, memory-mapped. Make one with `open_or_build`.

    Attributes:
        records: the split's images, in the order of the indices.
        image_size: (height, width) of the network's input.
        features: the levels held, finest first.
        mirror: whether mirrored images are held too.
        hit: whether everything was there already (the backbone was not run).
    """

    def __init__(
        self,
        entries: Sequence[CacheEntry],
        records: Sequence[ImageRecord],
        features: Sequence[FeatureSpec],
        *,
        image_size: ImageSize,
        hit: bool,
    ) -> None:
        self.records = tuple(records)
        self.image_size = image_size
        self.features = tuple(features)
        self.mirror = len(entries) > 1
        self.hit = hit
        self._entries = entries  # keeps them in use, which protects them from eviction
        self._maps = [[entry.open(spec.level) for entry in entries] for spec in self.features]

    @classmethod
    def open_or_build(
        cls,
        backbone: Frozen,
        records: Sequence[ImageRecord],
        *,
        dataset_hash: str,
        split: str,
        image_size: ImageSize,
        root: str | os.PathLike[str] | None = None,
        mirror: bool = False,
        batch_size: int = 16,
        max_gib: float = 20.0,
        variant: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> FeatureCache:
        """The split's maps, from disk where they are there, else computed and kept.

        Args:
            backbone: frozen; its `trunk_features` are the levels wanted. On a hit it is not run.
            records: the split's images.
            dataset_hash: `DetectionDataset.hash`.
            split: its name.
            image_size: (height, width) the images are stretched to.
            root: folder of the cache; None is `default_cache_root()`.
            mirror: hold the mirrored images too.
            batch_size: images a forward of the backbone.
            max_gib: bound on the whole root; the least recently used entries that no process uses make room.
            variant: what the trunk's maps depend on beside the backbone's name, weights and preprocessing, in plain
                values; two variants share nothing.
            on_progress: called after each batch with (images done, images in all); a mirror is an image of its own.

        Raises:
            CacheError: the disk is full, the bound too small, or the backbone's maps are not finite.
        """
        root = Path(root) if root is not None else default_cache_root()
        store = CacheStore(root, max_gib)
        entries = []
        for mirrored in (False, True) if mirror else (False,):
            description = {
                "cache_format": CACHE_FORMAT,
                "backbone": backbone.name,
                "weights": backbone.weights.id,
                # timm draws the random weights and may republish those of its hub; a file's hash says it all.
                "timm": version("timm") if backbone.weights.sha256 is None else None,
                "image_size": list(image_size),
                "preprocessing": {
                    "resize": "stretch",
                    "interpolation": backbone.interpolation,
                    "mean": [float(v) for v in backbone.mean],
                    "std": [float(v) for v in backbone.std],
                },
                "dataset_hash": dataset_hash,
                "split": split,
                "images": digest([record.id for record in records]),
                "mirrored": mirrored,
                # Absent where there is none, so that what was kept before there were variants is found.
                **({"variant": dict(variant)} if variant else {}),
            }
            entries.append(CacheEntry(store, description))
        levels = [spec.level for spec in backbone.trunk_features]
        hit = True
        with contextlib.ExitStack() as locks:
            with store.disk_errors():
                for entry in entries:
                    entry.use()
            if any(entry.missing(levels, len(records)) for entry in entries):
                for entry in entries:  # always plain before mirrored: no two processes wait for each other
                    locks.enter_context(FileLock(entry.lock_path))
                missing = {entry: entry.missing(levels, len(records), log=True) for entry in entries}
                if any(missing.values()):  # else another process has built them meanwhile
                    hit = False
                    _build(backbone, records, missing, store, image_size, batch_size, on_progress)
        return cls(entries, records, backbone.trunk_features, image_size=image_size, hit=hit)

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return sum(int(maps.nbytes) for level in self._maps for maps in level)

    def batch(self, indices: npt.ArrayLike, mirrored: npt.ArrayLike = False) -> tuple[Tensor, ...]:
        """See `FeatureProvider.batch`."""
        indices, mirrored = np.broadcast_arrays(np.atleast_1d(indices), mirrored)
        batch = []
        for maps in self._maps:
            out = np.empty((len(indices), *maps[0].shape[1:]), dtype=np.result_type(*maps))
            for k, (index, flipped) in enumerate(zip(indices, mirrored, strict=True)):
                out[k] = maps[int(flipped)][index]
            batch.append(torch.from_numpy(out).float())  # numpy converts float16 one by one, torch many at a time
        return tuple(batch)


def _build(
    backbone: Frozen,
    records: Sequence[ImageRecord],
    missing: Mapping[CacheEntry, Sequence[int]],
    store: CacheStore,
    image_size: ImageSize,
    batch_size: int,
    on_progress: Progress | None,
) -> None:
    """Compute and keep what is missing: as float16, then once more as float32 what does not fit into float16."""
    device = device_of(backbone)
    for dtype in (np.float16, np.float32):
        with _Pass(store, missing, dtype) as current, torch.no_grad():
            for start in range(0, len(records), batch_size):
                inputs = load_inputs(records[start : start + batch_size], image_size, backbone).to(device)
                for entry in current.open_entries():
                    with shared_device(device):
                        maps = backbone.trunk(inputs.flip(3) if entry.description["mirrored"] else inputs)
                    current.write(
                        entry, dict(zip((s.level for s in backbone.trunk_features), maps, strict=True)), len(records)
                    )
                if on_progress is not None:
                    done = min(start + batch_size, len(records))
                    left = sum(len(records) - done for entry in missing if missing[entry])
                    on_progress(len(missing) * len(records) - left, len(missing) * len(records))
            missing = current.finish()
        if not any(missing.values()):
            return
    levels = sorted({f"P{level}" for failed in missing.values() for level in failed})
    raise CacheError(
        f"backbone {backbone.name!r} with weights {backbone.weights.id} gives infinite or NaN values at "
        f"{', '.join(levels)} for some images; take other weights"
    )


class _Pass:
    """One run over the images, writing the missing levels of some entries into folders that nobody reads."""

    def __init__(
        self, store: CacheStore, missing: Mapping[CacheEntry, Sequence[int]], dtype: type[np.floating[Any]]
    ) -> None:
        self.store = store
        self.dtype = np.dtype(dtype)
        self.missing = {entry: list(levels) for entry, levels in missing.items() if levels}
        self.failed: dict[CacheEntry, list[int]] = {entry: [] for entry in self.missing}
        self.files: dict[tuple[CacheEntry, int], IO[bytes]] = {}
        self.crcs: dict[tuple[CacheEntry, int], int] = {}
        self.needed = 0

    def __enter__(self) -> _Pass:
        self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            # What could not be flushed to a full disk has been reported, or is about to be.
            with contextlib.suppress(OSError):
                file.close()
        self._remove()

    def _folder(self, entry: CacheEntry) -> Path:
        return entry.path.with_suffix(".building")

    def _remove(self) -> None:
        for entry in self.missing:
            shutil.rmtree(self._folder(entry), ignore_errors=True)

    def open_entries(self) -> list[CacheEntry]:
        """The entries that still have levels to write."""
        return [entry for entry, levels in self.missing.items() if len(self.failed[entry]) < len(levels)]

    def write(self, entry: CacheEntry, maps: Mapping[int, Tensor], images: int) -> None:
        """Append a batch of ``maps`` (level -> [N, C, H, W]); a level that the type cannot hold is given up."""
        with self.store.disk_errors(lambda: self.needed):
            if not self.files:
                self._reserve(maps, images)
            for level in self.missing[entry]:
                if level in self.failed[entry]:
                    continue
                values = maps[level].cpu().numpy()
                with np.errstate(over="ignore"):
                    values = np.ascontiguousarray(values, dtype=self.dtype)
                if not np.isfinite(values).all():
                    self.failed[entry].append(level)
                    self.files[entry, level].truncate(0)
                    continue
                self._append(entry, level, values.data)

    def _append(self, entry: CacheEntry, level: int, data: bytes | memoryview) -> None:
        self.files[entry, level].write(data)
        self.crcs[entry, level] = zlib.crc32(data, self.crcs.get((entry, level), 0))

    def _reserve(self, maps: Mapping[int, Tensor], images: int) -> None:
        wanted = [(entry, level) for entry, levels in self.missing.items() for level in levels]
        sizes = {level: images * maps[level][0].numel() * self.dtype.itemsize for level in maps}
        self.needed = sum(sizes[level] for _, level in wanted)
        self.store.reserve(self.needed, keep=list(self.missing))
        for entry, level in wanted:
            self._folder(entry).mkdir(exist_ok=True)
            file = (self._folder(entry) / f"P{level}.npy").open("wb")
            self.files[entry, level] = file
            header = {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (images, *maps[level].shape[1:]),
            }
            written = io.BytesIO()
            np.lib.format.write_array_header_1_0(written, header)
            self._append(entry, level, written.getvalue())
            file.flush()
            if hasattr(os, "posix_fallocate"):  # takes the space now, so that a full disk shows before the work
                os.posix_fallocate(file.fileno(), file.tell(), sizes[level])

    def finish(self) -> dict[CacheEntry, list[int]]:
        """Put the whole levels into their place; the levels that failed are returned."""
        with self.store.disk_errors(lambda: self.needed):
            for (entry, level), file in self.files.items():
                if level in self.failed[entry]:
                    continue
                file.flush()
                os.fsync(file.fileno())
                file.close()
                size = os.stat(file.name).st_size
                os.replace(file.name, entry.file(level))
                # Whoever looks between these two takes the file for damaged, waits for the lock and looks again.
                entry.write_sum(level, size, self.crcs[entry, level])
        return self.failed
