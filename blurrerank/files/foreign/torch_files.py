"""Read torch.save files of tensors, arrays and plain containers, by torch's own reader of weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import InputError
from .pickles import KNOWN, plain_values


def read_torch(path: Path) -> Any:
    """Return the saved object, with tensors as arrays; bfloat16 becomes float32.

    Args:
        path: a torch.save file of any version.

    Raises:
        InputError: if it is damaged, or contains anything but tensors, arrays and plain containers.
    """
    import torch

    names: list[Any] = [(found, f"{module}.{name}") for (module, name), found in KNOWN.items()]
    with torch.serialization.safe_globals(names):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged file torch raises what it likes
            name = re.search(r"GLOBAL (\S+)", str(error))
            if name is not None:
                raise InputError(
                    f"{path} contains {name[1]}, but only tensors, NumPy arrays and plain containers are read "
                    "from a file of torch.save; no code in it was executed"
                ) from None
            why = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            said = why[1] if why else (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{path} is a damaged file of torch.save: {said}") from None
    return plain_values(found, str(path))
