"""Tensors in safetensors files that are either whole or not there."""

import os
import re
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from longshot.errors import UserError
from longshot.files import atomic_path


def stored(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that one is made of: of a quantised one its numbers and their scales, of another one itself."""
    kind: Any = tensor
    if hasattr(kind, "as_tensor"):  # out of a GGUF
        return [kind.as_tensor()]
    if not hasattr(kind, "__tensor_flatten__"):
        return [tensor]
    names, _ = kind.__tensor_flatten__()
    return [plain for name in names for plain in stored(getattr(tensor, name))]


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file. Raises UserError, leaving an older file whole, where the system refuses (a full disk)."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while serializing: ").removeprefix("I/O error: ")
            if refused := re.match(
                r"(.+?) \(os error (\d+)\)", reason
            ):  # an OSError, so that callers see which
                raise OSError(int(refused[2]), refused[1]) from error
            raise UserError(f"{path}: could not be written ({reason})") from error
