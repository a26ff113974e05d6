"""Tensors in safetensors files that are either whole or not there."""

import os
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from longshot.errors import UserError
from longshot.files import atomic_path


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file. Raises UserError, leaving an older file whole, where the system refuses (a full disk)."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while serializing: ").removeprefix("I/O error: ")
            raise UserError(f"{path}: could not be written ({reason})") from error
