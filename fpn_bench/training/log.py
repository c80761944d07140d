"""What a full training says of each epoch: a CSV file, and TensorBoard's where that is installed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fpn_bench.paths import write_text_atomic

COLUMNS: Final = (
    "epoch",
    "loss",
    "loss_classification",
    "loss_bbox_regression",
    "loss_bbox_ctrness",
    "ap",
    "ap50",
    "learning_rate",
    "seconds",
    "images_per_s",
)
"""AP in percent points, empty where an epoch was not evaluated; the rate is that of the epoch's last step; seconds are
those of training alone."""


class TrainingLog:
    """``log.csv`` in a folder, written whole after each epoch, so that it never says more than was kept.

    Args:
        folder: of the training.
        tensorboard: also write ``folder/tensorboard``; None does where `tensorboard` is installed.
    """

    def __init__(self, folder: Path, tensorboard: bool | None = None) -> None:
        self.path = folder / "log.csv"
        self._events = folder / "tensorboard"
        self._wanted = importlib.util.find_spec("tensorboard") is not None if tensorboard is None else tensorboard
        self._writer: Any = None

    @contextlib.contextmanager
    def resumed_at(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """For a training that has come so far: what an earlier process wrote beyond that is taken back."""
        self.write(rows)
        if self._wanted:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events), purge_step=max(1, len(rows)))
            self._write_tensorboard(rows)  # its last one may have been kept and not told
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take down all epochs, the last of which is new."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write_text_atomic(self.path, text.getvalue())
        self._write_tensorboard(rows)

    def _write_tensorboard(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """TensorBoard of the last epoch."""
        if self._writer is not None and rows:
            last = rows[-1]
            for name in COLUMNS[1:]:
                if last[name] is not None:
                    self._writer.add_scalar(name, last[name], last["epoch"])
            self._writer.flush()
