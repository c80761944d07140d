"""Images of a training split as a full training sees them: another view in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.images import load_image
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.train import seeded

if TYPE_CHECKING:
    from fpn_bench.backbones import Backbone

Example = tuple[Tensor, dict[str, Tensor]]
"""An image float32 [3, H, W] as the backbone wants it, and its target (`fpn_bench.detection.detector.Target`)."""
_ITEM, _STEP = 0, 1


def drawn_seed(seed: int, *where: int) -> int:
    """A seed for torch, for one place in a training: unlike that of any other place, and of any other training."""
    return int(np.random.SeedSequence(seed, spawn_key=where).generate_state(1, np.uint64)[0])


def item_seed(seed: int, epoch: int, index: int) -> int:
    """Of the view of an image in an epoch."""
    return drawn_seed(seed, _ITEM, epoch, index)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of what a model draws in a step (dropout, stochastic depth) in one of several processes."""
    return drawn_seed(seed, _STEP, step, rank)


class TrainingImages(Dataset[Example]):
    """A view of each image in each epoch: a function of seed, epoch and index alone, whoever asks, in whatever order.

    Args:
        records: the training split.
        image_size: (height, width) of the network's input.
        backbone: whose normalisation and interpolation are used; it is not kept.
        recipe: its `flip`, `scale` and `photometric`. With none of them an image is as the evaluation sees it.
        seed: of all views.
    """

    def __init__(
        self, records: Sequence[ImageRecord], image_size: ImageSize, backbone: Backbone, recipe: FullRecipe, seed: int
    ) -> None:
        self.records = tuple(records)
        self.seed = seed
        self._mean, self._std = list(backbone.mean), list(backbone.std)
        self._view = v2.Compose(
            [
                _Rescale(image_size, recipe.scale, backbone.interpolation),
                v2.RandomCrop(list(image_size), pad_if_needed=True, fill=[round(255 * m) for m in backbone.mean]),
                *([v2.RandomHorizontalFlip()] if recipe.flip else []),
                *([v2.RandomPhotometricDistort()] if recipe.photometric else []),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: tuple[int, int]) -> Example:
        """The view of image ``place[1]`` in epoch ``place[0]``. Crowd regions are no targets.

        Raises:
            DataError: the file cannot be read any more.
        """
        epoch, index = place
        record = self.records[index]
        boxes = torch.from_numpy(record.boxes[~record.crowd])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=record.size),
            "labels": torch.from_numpy(record.labels[~record.crowd]),
        }
        with seeded(item_seed(self.seed, epoch, index)):
            image, target = self._view(load_image(record), target)
        pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
        boxes = target["boxes"].as_subclass(Tensor)
        return v2.functional.normalize(pixels, self._mean, self._std), {"boxes": boxes, "labels": target["labels"]}


def collate(examples: Sequence[Example]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch: images float32 [N, 3, H, W], and a target each."""
    images, targets = zip(*examples, strict=True)
    return torch.stack(images), list(targets)


class _Rescale(v2.Transform):  # type: ignore[misc]
    """Stretch to the network's input, as the evaluation does, times a random factor, in one resize.

    Cropped or padded to the input afterwards it is the scale jitter of Ghiasi et al. 2021, "Simple Copy-Paste is a
    Strong Data Augmentation Method for Instance Segmentation" (arXiv:2012.07177), on the evaluation's aspect ratio.
    """

    def __init__(self, image_size: ImageSize, factors: tuple[float, float], interpolation: str) -> None:
        super().__init__()
        self.image_size = image_size
        self.factors = factors
        self.interpolation = v2.InterpolationMode(interpolation)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.factors
        factor = low + (high - low) * float(torch.rand(()))
        return {"size": [max(1, round(side * factor)) for side in self.image_size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], interpolation=self.interpolation, antialias=True)
