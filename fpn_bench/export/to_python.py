"""One Python file that needs nothing but torch: neck, head and decoding."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fpn_bench import nn as layers
from fpn_bench.candidates.model import ImageDetector
from fpn_bench.detection.detector import Standardise, head_groups
from fpn_bench.errors import ExportError
from fpn_bench.export import parts
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import Written, compare, compare_found, noise
from fpn_bench.export.source import Substitutes, write_neck
from fpn_bench.export.text import constants, module_text, prefixed

TORCH_ONLY: Substitutes = {layers.DeformableConv: parts.DeformableConv}
"""Layers that need torchvision -> the same without."""

_ABOUT = """\
    detector = load()  # the weights beside this file
    maps = backbone(images)  # {maps}
    boxes, scores = detector.boxes(maps)  # [N, A, 4] in pixels, [N, A, classes]; NMS is left to the reader
    pyramid = detector.pyramid(maps)  # or the neck alone"""

_DETECTOR = '''
{constants}


class Detector(nn.Module):
    """Neck and head on the maps of the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise({channels})
        self.neck = Neck()
        self.head = Head({width}, classes={classes}, convs={convs}, groups={groups})

    def pyramid(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The backbone's maps [N, C, H, W], finest first -> the neck's."""
        return self.neck(self.standardise(features))

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raw outputs, see `Head.forward`."""
        return self.head(self.pyramid(features))

    def boxes(
        self, features: Sequence[torch.Tensor], image_size: tuple[int, int] = IMAGE_SIZE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes [N, A, 4] (x1 y1 x2 y2, pixels of the network's input) and scores [N, A, classes], before NMS."""
        maps = self.pyramid(features)
        return decode(*self.head(maps), [m.shape[-2:] for m in maps], STRIDES, image_size)


def load(path: str | Path = Path(__file__).with_name("weights.pt")) -> Detector:
    """With trained weights, in eval mode."""
    detector = Detector()
    detector.load_state_dict(torch.load(path, weights_only=True))
    return detector.eval()
'''

_CHECK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import detector
data = torch.load(sys.argv[2], weights_only=True)
found = detector.load()
with torch.no_grad():
    torch.save([*found(data), *found.boxes(data)], sys.argv[2])
others = {name.split(".")[0] for name in sys.modules} & {"fpn_bench", "torchvision", "timm", "safetensors"}
assert not others, others
"""


def detector_state(model: ImageDetector, neck: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the file's ``Detector``: `neck`'s by the names that they have there."""
    detector = model.detector
    return {
        **prefixed("standardise", detector.standardise.state_dict()),
        **prefixed("neck", neck),
        **prefixed("head", detector.head.state_dict()),
    }


def add_detector(model: ImageDetector, bundle: Bundle, substitutes: Substitutes) -> dict[str, Tensor]:
    """Write neck, head and decoding into `bundle`; the weights of its class ``Detector``."""
    spec = model.spec
    state = write_neck(model.detector.neck, bundle, substitutes)
    for part in (Standardise, parts.Head, parts.decode):
        bundle.add(part)
    width = spec.graph.out_features[0].channels
    text = _DETECTOR.format(
        constants=constants(model),
        channels=tuple(s.channels for s in spec.graph.inputs),
        width=width,
        classes=len(spec.classes),
        convs=spec.head.convs,
        groups=head_groups(width),
    )
    bundle.add_imports("from pathlib import Path\nfrom torch import nn")
    bundle.add_text("Detector", text.strip(), like=__name__)
    return detector_state(model, state)


def write(model: ImageDetector, folder: Path) -> Written:
    """``detector.py`` and ``weights.pt``; compared in a process that knows nothing of fpn_bench."""
    bundle = Bundle()
    state = add_detector(model, bundle, TORCH_ONLY)
    inputs = ", ".join(f"C{s.level}: {s.channels} channels, stride {s.stride}" for s in model.spec.graph.inputs)
    title = f"A neck and an FCOS head on maps of {model.spec.backbone}, in torch alone."
    text = module_text(title, model, _ABOUT.format(maps=inputs), bundle)
    files = (folder / "detector.py", folder / "weights.pt")
    files[0].write_text(text, encoding="utf-8")
    torch.save(state, files[1])
    return Written(files, _check(model, folder))


@torch.no_grad()
def _check(model: ImageDetector, folder: Path) -> float:
    images = noise(2, 3, model.spec.image_size)
    maps = model.backbone.maps(images)
    raw = model.detector(maps)
    outputs = (raw["cls_logits"], raw["bbox_regression"], raw["bbox_ctrness"])
    sizes = [(m.shape[-2], m.shape[-1]) for m in model.detector.pyramid(maps)]
    strides = [s.stride for s in model.detector.out_features]
    wanted = [*outputs, *parts.decode(*outputs, sizes, strides, model.spec.image_size)]
    with tempfile.TemporaryDirectory() as temporary:
        exchanged = Path(temporary) / "maps.pt"
        torch.save(list(maps), exchanged)
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHECK, str(folder), str(exchanged)], capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ExportError(f"the Python file does not run by itself ({lines[-1]})")
        got = torch.load(exchanged, weights_only=True)
    found = model.detector.detect(maps, model.spec.image_size, score_threshold=0.0)[0]
    boxes, scores = got[-2:]
    error = compare("the Python file", got, wanted)
    return max(error, compare_found("what the Python file finds", boxes[0], scores[0], found))
