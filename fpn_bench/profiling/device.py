"""Devices to measure on."""

from __future__ import annotations

import torch

from fpn_bench.errors import InputError


def check_device(device: str | torch.device) -> torch.device:
    """The CPU, or an existing CUDA device with its index.

    Raises:
        InputError: it is neither, or torch does not see it.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"expected device to be 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}") from error
    if place.type == "cpu":
        return torch.device("cpu")
    if place.type != "cuda":
        raise InputError(f"expected device to be 'cpu', 'cuda' or 'cuda:N', got {str(place)!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = place.index if place.index is not None else (torch.cuda.current_device() if count else 0)
    if index >= count:
        raise InputError(f"expected cpu or a CUDA device that torch sees ({count} here), got {str(place)!r}")
    return torch.device("cuda", index)
