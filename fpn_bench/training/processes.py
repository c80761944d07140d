"""The processes of one training: torchrun starts them, each trains on its share of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from fpn_bench.errors import InputError

_PATIENCE: Final = timedelta(hours=2)
"""How long the others wait while one evaluates and writes."""


@dataclass(frozen=True)
class Processes:
    """Which of how many this one is.

    Attributes:
        rank: from 0; that one evaluates, writes and speaks.
        count: 1 where there are no others.
        local_rank: from 0 on each machine: the number of the GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Processes:
        """As torchrun's environment variables say; one alone without them.

        Raises:
            InputError: they are no numbers.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        except (KeyError, ValueError) as error:
            got = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"expected whole numbers in RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them, got {got}"
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this one evaluates, writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: ``"cuda"`` is the GPU of its number."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """The processes hear each other inside."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """For all of them to come here."""
        if self.count > 1:
            dist.barrier()
