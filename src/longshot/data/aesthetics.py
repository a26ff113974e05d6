"""How pleasing pictures are, by a head on CLIP's picture features: LAION's predictors and whatever has their form."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from longshot.data.encoders import Pictures, clip
from longshot.errors import UserError

MODEL = "openai/clip-vit-large-patch14"
"""What LAION's predictors sit on."""

Judge = Callable[[Pictures], Float32[np.ndarray, " pictures"]]


@cache
def judge(model: str, head: str) -> Judge:
    """Return a function from pictures to scores, about 1 to 10 for LAION's heads.

    model: of CLIP, a folder or a name on the hub. head: a .safetensors file of linear layers (LAION trained them without anything
    between), from CLIP's width down to 1. UserError where one of them is missing or doesn't fit the other.
    """
    encode = clip(model or MODEL, "aesthetic score", "aesthetics")
    layers = read_head(Path(head))

    def scores(pictures: Pictures) -> Float32[np.ndarray, " pictures"]:
        x = encode(pictures)
        if x.shape[1] != layers[0][0].shape[1]:
            raise UserError(
                f"{head}: reads {layers[0][0].shape[1]} features; {model or MODEL} has {x.shape[1]}: give the CLIP it is for"
            )
        for weight, bias in layers:
            x = x @ weight.T + bias
        return x[:, 0]

    return scores


def read_head(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight and bias of each layer in order; UserError, naming what is wrong, for any other file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the head of an aesthetic score must be a .safetensors file")
    try:
        tensors = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a safetensors file that can be read ({error})") from error
    names = sorted(
        (name.removesuffix("weight") for name in tensors if name.endswith("weight")),
        key=lambda name: [int(number) for number in re.findall(r"\d+", name)],
    )
    if {f"{name}{part}" for name in names for part in ("weight", "bias")} != tensors.keys() or not names:
        raise UserError(f"{path}: holds other things than the weights and biases of linear layers")
    layers = [(tensors[f"{name}weight"], tensors[f"{name}bias"]) for name in names]
    widths = [layers[0][0].shape[-1], *(len(bias) for _, bias in layers)]
    if widths[-1] != 1 or any(
        w.shape != (after, before) or b.shape != (after,)
        for (w, b), (before, after) in zip(layers, pairwise(widths), strict=True)
    ):
        raise UserError(
            f"{path}: its layers {', '.join(names)} don't lead from one to the next and to one score"
        )
    return layers


def hash_of(head: str) -> str:
    """Return the SHA-256 of a head's file, which belongs to the key of what it scored."""
    try:
        return hashlib.sha256(Path(head).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{head}: cannot be read ({error.strerror or error})") from error
