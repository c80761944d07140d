"""Devices to measure on."""

from __future__ import annotations

import torch

from fpn_bench.errors import InputError


def check_device(device: str | torch.device) -> torch.device:
    """The CPU or a CUDA device that is there, with its index.

    Raises:
        InputError: it is neither, or torch does not see it.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {str(device)!r} came: 'cpu', 'cuda' or 'cuda:N' is wanted") from error
    if place.type == "cpu":
        return torch.device("cpu")
    if place.type != "cuda":
        raise InputError(f"device {str(place)!r} came: 'cpu', 'cuda' or 'cuda:N' is wanted")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = place.index if place.index is not None else (torch.cuda.current_device() if count else 0)
    if index >= count:
        raise InputError(f"device {str(place)!r} came, but torch sees {count} CUDA devices: take cpu")
    return torch.device("cuda", index)
