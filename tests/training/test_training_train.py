"""The short training: it learns, it is a function of its seed, and it stops on a loss that is not finite."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.detection.detector import Detector
from fpn_bench.errors import InputError, TrialError
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.training import (
    HeadConfig,
    TrainingRecipe,
    TrainingResult,
    evaluate_detector,
    input_targets,
    seeded,
    train_detector,
)

SIZE = (64, 96)
CLASSES = 2
SPECS = (FeatureSpec(3, 8, 8), FeatureSpec(4, 8, 16))


class Laterals(nn.Module):
    """One 1x1 convolution a level."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(s.channels, channels, 1) for s in SPECS)
        self.norm = nn.BatchNorm2d(channels)
        self.graph = SimpleNamespace(inputs=SPECS)
        self.out_features = tuple(FeatureSpec(s.level, channels, s.stride) for s in SPECS)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.norm(conv(x)) for conv, x in zip(self.convs, features, strict=True))


class DrawnMaps:
    """Maps that show each box: channel `label` is 1 inside it, the rest is fixed noise. A provider without a disk."""

    def __init__(self, images: int, seed: int = 0, mirror: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.image_size, self.features, self.mirror = SIZE, SPECS, mirror
        records, maps = [], [np.empty((images, 8, SIZE[0] // s.stride, SIZE[1] // s.stride), np.float32) for s in SPECS]
        for k in range(images):
            extent = rng.integers(24, 60, 2)
            x, y = rng.integers(0, [SIZE[1] - extent[0], SIZE[0] - min(extent[1], 60)])
            box = np.array([[x, y, x + extent[0], min(y + extent[1], SIZE[0])]], np.float32)
            label = rng.integers(0, CLASSES, 1)
            # The file is twice as high and three times as wide as the network's input.
            records.append(
                ImageRecord(
                    id=k, path=Path(f"{k}.jpg"), size=(SIZE[0] * 2, SIZE[1] * 3),
                    boxes=box * np.array([3, 2, 3, 2], np.float32), labels=label.astype(np.int64),
                    areas=np.array([(box[0, 2] - box[0, 0]) * (box[0, 3] - box[0, 1]) * 6], np.float32),
                    crowd=np.zeros(1, np.bool_),
                )
            )  # fmt: skip
            for level, spec in zip(maps, SPECS, strict=True):
                level[k] = rng.normal(size=level[k].shape) * 0.1
                left, top, right, bottom = (box[0] / spec.stride).astype(int)
                level[k, label[0], top : bottom + 1, left : right + 1] += 1
        self.records, self.maps = tuple(records), maps

    def batch(self, indices, mirrored=False) -> tuple[Tensor, ...]:
        indices, mirrored = np.broadcast_arrays(np.atleast_1d(indices), mirrored)
        return tuple(
            torch.from_numpy(np.where(mirrored[:, None, None, None], level[indices][..., ::-1], level[indices]))
            for level in self.maps
        )


def make(seed: int = 0) -> Detector:
    with seeded(seed):
        return Detector(Laterals(), CLASSES, HeadConfig(convs=1))


def run(seed: int = 0, images: int = 24, **recipe) -> tuple[TrainingResult, Detector]:
    detector = make(seed)
    settings = {"epochs": 4, "batch_size": 4, "learning_rate": 4e-3} | recipe
    provider = DrawnMaps(images)
    result = train_detector(detector, provider, DrawnMaps(12, seed=1), recipe=TrainingRecipe(**settings), seed=seed)
    return result, detector


def test_it_learns() -> None:
    result, _ = run(epochs=16, images=48)
    losses = [loss for _, loss in result.curve]
    assert [epoch for epoch, _ in result.curve] == list(range(1, 17))
    assert result.steps == 16 * 12
    assert losses[-1] < losses[0] * 0.6
    assert result.ap.ap50 > 50  # the boxes are found at their place in the files' pixels


def test_the_loss_on_val_is_that_of_the_evaluated_weights() -> None:
    result, detector = run()
    val = DrawnMaps(12, seed=1)
    with torch.no_grad():
        parts = detector.loss(val.batch(range(12)), input_targets(val.records, SIZE, mirrored=False))
    ((epoch, loss),) = result.val_losses
    assert epoch == 4
    assert loss == pytest.approx(float(sum(parts.values())))


def test_a_seed_gives_the_same_bits_again_and_another_does_not() -> None:
    first, detector = run(seed=3)
    again, copy = run(seed=3)
    assert first.curve == again.curve
    assert repr(first.ap) == repr(again.ap)  # NaN where there are no objects of a size
    for a, b in zip(detector.state_dict().values(), copy.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert run(seed=4)[0].curve != first.curve


def test_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_detector_is_left_with_the_weights_that_were_evaluated() -> None:
    result, detector = run()
    assert not detector.training
    again = evaluate_detector(detector, DrawnMaps(12, seed=1))
    assert repr(again) == repr(result.ap)


def test_averaging_changes_the_weights_but_not_the_training() -> None:
    averaged, detector = run(ema_decay=0.9)
    last, other = run(ema_decay=0.0)
    assert averaged.curve == last.curve
    assert not torch.equal(detector.neck.convs[0].weight, other.neck.convs[0].weight)
    assert not torch.equal(detector.neck.norm.running_mean, other.neck.norm.running_mean)


@pytest.mark.parametrize("shared_by", [1, 2])
def test_average_is_the_recursion_s(shared_by: int) -> None:
    from fpn_bench.training.train import WeightAverage

    weight = nn.Linear(1, 1, bias=False)
    module = nn.ModuleList([weight] * shared_by)
    values = torch.linspace(1, 3, 40).tolist()
    nn.init.constant_(weight.weight, 100.0)  # the initial weights are no part of the mean
    average = WeightAverage(module, 0.8)
    for t, value in enumerate(values, start=1):
        nn.init.constant_(weight.weight, value)
        average.update()
        shares = [0.8 ** (t - k) for k in range(1, t + 1)]
        mean = sum(share * v for share, v in zip(shares, values, strict=False)) / sum(shares)
        assert average.mean[0].item() == pytest.approx(mean, rel=1e-5)
    average.apply()
    assert weight.weight.item() == pytest.approx(mean, rel=1e-5)


def test_a_loss_that_is_not_finite_is_a_failed_trial() -> None:
    provider = DrawnMaps(8)
    provider.maps[0][5] = np.nan
    with pytest.raises(TrialError, match=r"loss became nan in epoch 1 of 2; try training\.learning_rate below 0\.004"):
        train_detector(make(), provider, provider, recipe=TrainingRecipe(epochs=2, batch_size=4), seed=0)


def test_progress_of_each_epoch() -> None:
    seen = []
    provider = DrawnMaps(8)
    recipe = TrainingRecipe(epochs=3, batch_size=3)
    result = train_detector(make(), provider, provider, recipe=recipe, seed=0, on_epoch=lambda *a: seen.append(a))
    assert seen == [(epoch, 3, loss) for epoch, loss in result.curve]
    assert result.steps == 3 * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("images", [1, 5])
def test_few_images_and_every_precision(images: int, precision: str) -> None:
    provider = DrawnMaps(images)
    recipe = TrainingRecipe(epochs=1, batch_size=16, precision=precision, warmup_fraction=0, grad_clip_norm=0)
    result = train_detector(make(), provider, provider, recipe=recipe, seed=0)
    assert result.steps == 1
    assert np.isfinite(result.curve[0][1])


def test_images_without_boxes_train_too() -> None:
    provider = DrawnMaps(4)
    empty = [
        ImageRecord(r.id, r.path, r.size, r.boxes[:0], r.labels[:0], r.areas[:0], r.crowd[:0]) for r in provider.records
    ]
    provider.records = tuple(empty)
    result = train_detector(make(), provider, provider, recipe=TrainingRecipe(epochs=1), seed=0)
    assert np.isfinite(result.curve[0][1])
    assert np.isnan(result.ap.ap)


def test_targets_are_scaled_mirrored_and_without_crowds() -> None:
    record = ImageRecord(
        id=0,
        path=Path("a.jpg"),
        size=(100, 200),
        boxes=np.array([[20, 10, 60, 50], [0, 0, 200, 100]], np.float32),
        labels=np.array([1, 0]),
        areas=np.array([1600, 20000], np.float32),
        crowd=np.array([False, True]),
    )
    plain, mirrored = (input_targets([record], (50, 400), mirrored=m)[0] for m in (False, True))
    assert plain["boxes"].tolist() == [[40, 5, 120, 25]]
    assert mirrored["boxes"].tolist() == [[280, 5, 360, 25]]
    assert plain["labels"].tolist() == mirrored["labels"].tolist() == [1]


def test_mirrored_images_are_asked_for_every_second_epoch_only_where_wanted() -> None:
    for mirror in (True, False):
        provider = DrawnMaps(6)
        seen = np.zeros((6, 2), int)
        batch = provider.batch

        def counted(indices, mirrored=False, batch=batch, seen=seen):
            for index, side in zip(*np.broadcast_arrays(np.atleast_1d(indices), mirrored), strict=True):
                seen[index, int(side)] += 1
            return batch(indices, mirrored)

        provider.batch = counted
        recipe = TrainingRecipe(epochs=4, batch_size=4, mirror=mirror, standardise=False)
        train_detector(make(), provider, DrawnMaps(2), recipe=recipe, seed=0)
        assert seen.tolist() == [[2, 2] if mirror else [4, 0]] * 6


def test_standardised_maps_have_zero_mean_and_unit_variance() -> None:
    provider = DrawnMaps(20)
    provider.maps[1] = provider.maps[1] * 30 + 5
    provider.maps[1][:, 3] = 2.5  # a dead channel
    detector = make()
    for level, same in zip(detector.standardise(provider.batch(range(20))), provider.batch(range(20)), strict=True):
        assert torch.equal(level, same)  # the identity until the statistics are known
    train_detector(detector, provider, provider, recipe=TrainingRecipe(epochs=1), seed=0)
    for k, level in enumerate(detector.standardise(provider.batch(range(20)))):
        alive = [c for c in range(8) if (k, c) != (1, 3)]
        torch.testing.assert_close(level.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
        torch.testing.assert_close(level.std((0, 2, 3))[alive], torch.ones(len(alive)), atol=0.05, rtol=0)
        assert level.isfinite().all()
    detector = make()
    train_detector(detector, provider, provider, recipe=TrainingRecipe(epochs=1, standardise=False), seed=0)
    assert torch.equal(detector.standardise(provider.batch([0]))[1], provider.batch([0])[1])


def test_mirroring_needs_a_provider_that_has_mirrors() -> None:
    with pytest.raises(InputError, match=r"mirror=True.*training\.mirror: false"):
        train_detector(make(), DrawnMaps(4, mirror=False), DrawnMaps(2), recipe=TrainingRecipe(epochs=1), seed=0)
