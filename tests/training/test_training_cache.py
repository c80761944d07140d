"""The feature cache: what it returns, when it is rebuilt, and that nothing half-done is ever taken for whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.errors import CacheError
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.training.cache import FeatureCache, FeatureSource, default_cache_root, load_input

SIZE = (64, 96)


class SmallBackbone(nn.Module):
    """A frozen seeded convolution per level, with everything the cache reads of a backbone; counts its forwards."""

    def __init__(self, levels: tuple[int, ...] = (3, 4), scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.name, self.weights = "small", SimpleNamespace(id="random-0", sha256=None)
        self.mean, self.std, self.interpolation = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), "bicubic"
        self.trunk_features = tuple(FeatureSpec(level, 4 * level, 2**level) for level in levels)
        self.kernels = [
            torch.randn(s.channels, 3, s.stride, s.stride, generator=generator) * scale for s in self.trunk_features
        ]
        self.calls = 0

    def trunk(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        maps = zip(self.kernels, self.trunk_features, strict=True)
        return tuple(nn.functional.conv2d(x, kernel, stride=spec.stride) for kernel, spec in maps)


def make_records(folder: Path, count: int = 5, seed: int = 0) -> list[ImageRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for k in range(count):
        height, width = (int(v) for v in rng.integers(40, 120, 2))
        path = folder / f"{k}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        records.append(
            ImageRecord(
                id=k, path=path, size=(height, width), boxes=np.zeros((0, 4), np.float32),
                labels=np.zeros(0, np.int64), areas=np.zeros(0, np.float32), crowd=np.zeros(0, np.bool_),
            )
        )  # fmt: skip
    return records


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    folder = tmp_path / "images"
    folder.mkdir()
    return make_records(folder)


def build(root: Path, records, backbone=None, **changes) -> tuple[FeatureCache, SmallBackbone]:
    backbone = backbone if backbone is not None else SmallBackbone()
    arguments = {
        "dataset_hash": "d0",
        "split": "train",
        "image_size": SIZE,
        "root": root,
        "mirror": True,
        "batch_size": 2,
    }
    return FeatureCache.open_or_build(backbone, records, **(arguments | changes)), backbone


def entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_maps_are_the_backbone_s(tmp_path: Path, records) -> None:
    cache, backbone = build(tmp_path / "cache", records)
    assert not cache.hit
    assert cache.features == backbone.trunk_features
    images = torch.stack([load_input(r, SIZE, backbone) for r in records])
    assert images.shape == (5, 3, *SIZE)
    for flipped, inputs in ((False, images), (True, images.flip(3))):
        for got, want in zip(cache.batch(np.arange(5), flipped), backbone.trunk(inputs), strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    mixed = cache.batch([4, 0, 4], [True, False, False])
    for k, level in enumerate(mixed):
        assert torch.equal(level[0], cache.batch([4], [True])[k][0])
        assert torch.equal(level[1], cache.batch([0])[k][0])
        assert torch.equal(level[2], cache.batch([4])[k][0])


def test_the_uncached_source_returns_the_same(tmp_path: Path, records) -> None:
    cache, backbone = build(tmp_path / "cache", records)
    source = FeatureSource(backbone, records, image_size=SIZE, mirror=True)
    assert source.features == cache.features
    for got, want in zip(
        cache.batch([3, 1, 3], [False, True, True]), source.batch([3, 1, 3], [False, True, True]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def test_preprocessing_resizes_with_antialias_and_normalises(tmp_path: Path) -> None:
    array = np.zeros((128, 192, 3), dtype=np.uint8)
    array[:, ::2] = 255  # a stripe a pixel: antialiasing makes it grey, point sampling does not
    path = tmp_path / "stripes.png"
    Image.fromarray(array).save(path)
    empty = np.zeros((0, 4), np.float32)
    record = ImageRecord(
        1, path, (128, 192), empty, np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_)
    )
    image = load_input(record, SIZE, SmallBackbone())
    grey = (0.5 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.3])
    torch.testing.assert_close(image[:, 5:-5, 5:-5].mean((1, 2)), grey, atol=0.02, rtol=0)
    assert image[:, 5:-5, 5:-5].std() < image.std() + 0.1


def test_second_open_is_a_hit_and_never_runs_the_backbone(tmp_path: Path, records) -> None:
    first, _ = build(tmp_path / "cache", records)
    again, backbone = build(tmp_path / "cache", records)
    assert again.hit
    assert backbone.calls == 0
    assert torch.equal(first.batch([2], [True])[1], again.batch([2], [True])[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_hash": "d1"},
        {"split": "val"},
        {"image_size": (64, 64)},
        {"weights": "file-abc"},
        {"name": "other"},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (1.0, 1.0, 1.0)},
        {"interpolation": "bilinear"},
        {"variant": {"padded_size": [64, 128]}},
    ],
    ids=str,
)
def test_anything_that_changes_the_maps_changes_the_key(tmp_path: Path, records, changes) -> None:
    build(tmp_path / "cache", records)
    before = entries(tmp_path / "cache")
    backbone = SmallBackbone()
    for name in ("name", "mean", "std", "interpolation"):
        if name in changes:
            setattr(backbone, name, changes.pop(name))
    if "weights" in changes:
        backbone.weights = SimpleNamespace(id=changes.pop("weights"), sha256=None)
    cache, _ = build(tmp_path / "cache", records, backbone, **changes)
    assert not cache.hit
    assert len(entries(tmp_path / "cache") - before) == 2


def test_keys_are_those_of_earlier_releases(tmp_path: Path, records) -> None:
    backbone = SmallBackbone()
    backbone.weights = SimpleNamespace(id="file:w", sha256="0" * 64)
    for variant in (None, {}):
        build(tmp_path / "cache", records, backbone, variant=variant)
        assert entries(tmp_path / "cache") == {"5a3af96c5904af5aac366baef4f461de", "f7fd7d6e432f0e73240383a7c6c592f3"}


def test_a_subset_of_the_images_is_another_entry(tmp_path: Path, records) -> None:
    build(tmp_path / "cache", records)
    cache, _ = build(tmp_path / "cache", records[:2])
    assert not cache.hit
    assert cache.batch([0, 1])[0].shape[0] == 2


def test_levels_and_mirrors_are_added_by_later_passes(tmp_path: Path, records) -> None:
    root = tmp_path / "cache"
    plain, backbone = build(root, records, SmallBackbone((3,)), mirror=False)
    assert backbone.calls == 3
    assert not plain.mirror
    assert len(entries(root)) == 1
    _, backbone = build(root, records, SmallBackbone((3,)))
    assert backbone.calls == 3  # the mirrors only
    files = {path: path.stat().st_mtime_ns for path in root.glob("*/P3.npy")}
    both, _ = build(root, records)
    assert not both.hit
    assert files == {path: path.stat().st_mtime_ns for path in root.glob("*/P3.npy")}
    for got, want in zip(
        both.batch([1], [True]),
        SmallBackbone().trunk(load_input(records[1], SIZE, backbone).flip(2)[None]),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def damaged_value(path: Path) -> None:
    maps = np.load(path, mmap_mode="r+")
    maps[..., -1] = 60000
    maps.flush()


def damaged_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "overwritten": damaged_value,
    "one bit": damaged_bit,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 100),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"0" * 64),
    "empty": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "other array": lambda path: np.save(path, np.zeros((5, 12, 8, 12), np.float16)),
    "fewer images": lambda path: np.save(path, np.zeros((2, 12, 8, 12), np.float16)),
    "other version": lambda path: path.write_bytes(path.read_bytes()[:6] + b"\x07\x00" + path.read_bytes()[8:]),
    "sum gone wrong": lambda path: path.with_suffix(".json").write_text("[1"),
    "sum of another": lambda path: path.with_suffix(".json").write_text('{"bytes": 1, "crc32": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_features_are_computed_anew_with_one_line(damage, tmp_path: Path, records, caplog) -> None:
    """Opened in the same process: what had been compared before is compared again."""
    root = tmp_path / "cache"
    first, _ = build(root, records)
    wanted = [first.batch(np.arange(5), mirrored) for mirrored in (False, True)]
    (file,) = {
        path for path in root.glob("*/P3.npy") if json.loads((path.parent / "entry.json").read_text())["mirrored"]
    }
    del first
    DAMAGE[damage](file)
    again, backbone = build(root, records)
    assert not again.hit
    assert backbone.calls == 3  # of the mirrored images alone
    for kept, mirrored in zip(wanted, (False, True), strict=True):
        for a, b in zip(again.batch(np.arange(5), mirrored), kept, strict=True):
            assert torch.equal(a, b)
    (line,) = caplog.messages
    assert str(file) in line
    assert "computed anew" in line
    assert build(root, records)[0].hit


def test_damage_between_two_processes_is_seen(tmp_path: Path, records, monkeypatch) -> None:
    """Also where size and time are what they were."""
    root = tmp_path / "cache"
    build(root, records, mirror=False)
    (file,) = root.glob("*/P4.npy")
    before = file.stat()
    damaged_value(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    monkeypatch.setattr("fpn_bench.training.cache_store._CHECKED", {})
    assert not build(root, records, mirror=False)[0].hit


def test_files_from_before_there_were_sums_are_hits_and_get_them(tmp_path: Path, records, monkeypatch) -> None:
    root = tmp_path / "cache"
    build(root, records, mirror=False)
    for path in root.glob("*/P?.json"):
        path.unlink()
    monkeypatch.setattr("fpn_bench.training.cache_store._CHECKED", {})
    assert build(root, records, mirror=False)[0].hit
    assert len(list(root.glob("*/P?.json"))) == 2
    (file,) = root.glob("*/P3.npy")
    damaged_bit(file)
    assert not build(root, records, mirror=False)[0].hit


def test_a_sum_is_that_of_the_file(tmp_path: Path, records) -> None:
    root = tmp_path / "cache"
    build(root, records)
    for path in root.glob("*/P?.npy"):
        kept = json.loads(path.with_suffix(".json").read_text())
        assert kept == {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}


def test_values_too_large_for_float16_are_kept_in_float32(tmp_path: Path, records) -> None:
    backbone = SmallBackbone()
    backbone.kernels[1] = backbone.kernels[1] * 1e5
    cache, _ = build(tmp_path / "cache", records, backbone)
    dtypes = {path.name: np.load(path, mmap_mode="r").dtype for path in (tmp_path / "cache").glob("*/P*.npy")}
    assert dtypes == {"P3.npy": np.float16, "P4.npy": np.float32}
    want = backbone.trunk(load_input(records[0], SIZE, backbone)[None])[1]
    assert want.abs().max() > 65504
    assert torch.equal(cache.batch([0])[1], want)
    assert build(tmp_path / "cache", records, backbone)[0].hit


def test_values_that_are_not_finite_are_refused(tmp_path: Path, records) -> None:
    backbone = SmallBackbone()
    backbone.kernels[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(CacheError, match=r"'small' with weights random-0 gives infinite or NaN values at P3"):
        build(tmp_path / "cache", records, backbone)
    assert not list((tmp_path / "cache").glob("*.building"))


def test_progress_counts_images(tmp_path: Path, records) -> None:
    calls: list[tuple[int, int]] = []
    build(tmp_path / "cache", records, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]  # and their mirrors
    build(tmp_path / "cache", records, split="val", mirror=False)
    calls.clear()
    build(tmp_path / "cache", records, split="val", on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(7, 10), (9, 10), (10, 10)]  # the mirrors alone were missing


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path / "features"
    monkeypatch.delenv("FPN_BENCH_CACHE")
    assert default_cache_root() == Path.home() / ".cache" / "fpn_bench" / "features"


# --- space ---------------------------------------------------------------------------------------------------------

ONE_SPLIT_MIB = 5 * 2 * (12 * 8 * 12 + 16 * 4 * 6) * 2 / 2**20  # images, mirror, P3 and P4, float16


def test_least_recently_used_entries_make_room(tmp_path: Path, records) -> None:
    root = tmp_path / "cache"
    bound = 2.5 * ONE_SPLIT_MIB / 2**10
    for k, split in enumerate(("a", "b")):
        build(root, records, split=split, max_gib=bound)
        for meta in root.glob("*/entry.json"):
            if json.loads(meta.read_text())["split"] == split:
                os.utime(meta, (1000 + k, 1000 + k))
    build(root, records, split="a", max_gib=bound)  # now b is the older one
    build(root, records, split="c", max_gib=bound)
    kept = {json.loads(meta.read_text())["split"] for meta in root.glob("*/entry.json")}
    assert kept == {"a", "c"}


def test_entries_in_use_stay(tmp_path: Path, records) -> None:
    root = tmp_path / "cache"
    bound = 1.5 * ONE_SPLIT_MIB / 2**10
    held, _ = build(root, records, split="a", max_gib=bound)
    before = held.batch([0])[0].clone()
    with pytest.raises(CacheError, match=r"--cache-gib 0\.0"):
        build(root, records, split="b", max_gib=bound)
    assert torch.equal(held.batch([0])[0], before)
    assert build(root, records, split="a", max_gib=bound)[0].hit
    del held
    build(root, records, split="b", max_gib=bound)
    assert {json.loads(meta.read_text())["split"] for meta in root.glob("*/entry.json")} == {"b"}


def test_one_entry_above_the_bound_says_what_to_type(tmp_path: Path, records) -> None:
    with pytest.raises(CacheError, match=r"needs 1 MiB more.*bound of 1 MiB.*give it --cache-gib 0\.01 or more"):
        build(tmp_path / "cache", records, max_gib=1e-5)


CHILD = textwrap.dedent(
    """
    import resource, sys, time
    from pathlib import Path
    sys.path[:0] = {tests!r}
    import test_training_cache as t
    class Slow(t.SmallBackbone):
        def trunk(self, x):
            print("forward", flush=True)
            time.sleep({sleep})
            return super().trunk(x)
    records = t.make_records(Path({images!r}), 8)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        cache, _ = t.build(Path({root!r}), records, Slow())
        print("hit" if cache.hit else "built", flush=True)
    except t.CacheError as error:
        print("CacheError", error, flush=True)
    """
)


def child(tmp_path: Path, *, sleep: float = 0.0, limit: int = -1) -> subprocess.Popen[str]:
    (tmp_path / "images").mkdir(exist_ok=True)
    code = CHILD.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], sleep=sleep, limit=limit,
        images=str(tmp_path / "images"), root=str(tmp_path / "cache"),
    )  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_in_the_middle_leaves_nothing_taken_for_whole(tmp_path: Path) -> None:
    process = child(tmp_path, sleep=0.3)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "forward\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    root = tmp_path / "cache"
    assert list(root.glob("*.building/P3.npy"))
    assert not [path for path in root.glob("*/P*.npy") if path.parent.suffix != ".building"]
    records = make_records(tmp_path / "images", 8)
    # Another entry sweeps what the dead builder left ...
    build(root, records[:3], split="val")
    assert not list(root.glob("*.building"))
    # ... and the same one is built from the beginning.
    cache, backbone = build(root, records)
    assert not cache.hit
    assert backbone.calls == 8
    want = backbone.trunk(load_input(records[7], SIZE, backbone)[None])[0]
    torch.testing.assert_close(cache.batch([7])[0], want, rtol=2e-3, atol=2e-3)


def test_two_processes_build_one_entry_once(tmp_path: Path) -> None:
    first = child(tmp_path, sleep=0.2)
    assert first.stdout is not None
    first.stdout.readline()
    _, backbone = build(tmp_path / "cache", make_records(tmp_path / "images", 8))  # waits for the other
    assert backbone.calls == 0
    assert first.communicate(timeout=60)[0].endswith("built\n")


def test_two_threads_build_one_entry_once(tmp_path: Path, records) -> None:
    backbones: list[SmallBackbone] = []
    threads = [
        threading.Thread(target=lambda: backbones.append(build(tmp_path / "cache", records)[1])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(backbone.calls for backbone in backbones) == [0, 0, 6]


def test_a_file_that_cannot_grow_is_a_full_disk(tmp_path: Path) -> None:
    """A real limit of the kernel on the size of files, in a child process."""
    process = child(tmp_path, limit=8192)
    output = process.communicate(timeout=60)[0].splitlines()[-1]
    assert output.startswith("CacheError the feature cache needs 1 MiB, but the disk of")
    assert "MiB free; free some, or set FPN_BENCH_CACHE" in output
    assert not list((tmp_path / "cache").glob("*.building"))
    assert not list((tmp_path / "cache").glob("*/P*.npy"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A tmpfs of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_before_the_work(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    records = make_records(tmp_path / "images", 60)
    with pytest.raises(CacheError, match=r"needs 2 MiB, but the disk of .* has 0 MiB free") as caught:
        build(small_disk / "cache", records, SmallBackbone((2, 3)), mirror=False, image_size=(128, 192))
    assert "\n" not in str(caught.value)
    assert not list((small_disk / "cache").glob("*.building"))


def test_a_disk_that_fills_up_in_the_middle(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without space taken in advance (as on macOS), another writer can fill the disk between two batches.
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    (tmp_path / "images").mkdir()
    records = make_records(tmp_path / "images", 20)

    def fill(done: int, total: int) -> None:
        if done == 4:
            with contextlib.suppress(OSError), (small_disk / "other").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(CacheError, match=r"needs 1 MiB, but the disk of .* has 0 MiB free"):
        build(small_disk / "cache", records, SmallBackbone((2, 3)), mirror=False, on_progress=fill)
    assert not list((small_disk / "cache").glob("*.building"))
    assert not list((small_disk / "cache").glob("*/P*.npy"))
    (small_disk / "other").unlink()
    cache, _ = build(small_disk / "cache", records, SmallBackbone((2, 3)), mirror=False)
    assert cache.batch([19])[0].shape == (1, 8, 16, 24)


def test_a_root_that_cannot_be_made(tmp_path: Path, records) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="set FPN_BENCH_CACHE to another folder"):
        build(tmp_path / "file" / "cache", records)


def test_what_another_process_removes_between_listing_and_looking_is_nothing(tmp_path):
    """As a builder's folder is when its pass ends while another makes room."""
    from fpn_bench.training.cache_store import _last_use, _size, cache_bytes

    assert _size(tmp_path / "0123.building") == 0
    assert _last_use(tmp_path / "0123") == 0.0
    assert cache_bytes(tmp_path / "no folder") == 0
