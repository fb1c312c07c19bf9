"""Which device computes, and how much memory it may take."""

from __future__ import annotations

import torch

from ..errors import BlurrerankError, ParameterError

DEFAULT_MEMORY = 2 << 30
"""Budget for what is held in memory at a time, in bytes: a quarter for features as they are stored, three
eighths for the normalised gallery, half as much for its bfloat16 copy, an eighth for two batches of probes, and
another for working on them. Features that take all of their share leave some of the others' over."""


def budget(memory: int | None, device: torch.device) -> int:
    """`memory`, or by default 2 GiB, and half of what is free on a CUDA device."""
    if memory is not None:
        return memory
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else DEFAULT_MEMORY


def pick_device(device: str = "auto") -> torch.device:
    """The torch device a name means: `auto`, `cpu`, `cuda` or `cuda:1`.

    Raises:
        BlurrerankError: if there is no such device, and a `ParameterError` if it is no such name.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ParameterError(f"device {device!r} is not known: use auto, cpu, cuda or cuda:1") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ParameterError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:1")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise BlurrerankError(
            f"device {device!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if chosen.type == "cuda" and chosen.index is None:
        # As tensors name it, so that the two can be compared.
        return torch.device("cuda", torch.cuda.current_device())
    return chosen
