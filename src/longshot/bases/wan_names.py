"""The names of Wan's own code, which most checkpoints and LoRAs of the family have, as diffusers' names."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from longshot.bases.native import check_shapes
from longshot.errors import UserError

# What Wan's own code calls a module, and what diffusers calls it.
_WAN = [
    (r"text_embedding\.0", r"condition_embedder.text_embedder.linear_1"),
    (r"text_embedding\.2", r"condition_embedder.text_embedder.linear_2"),
    (r"time_embedding\.0", r"condition_embedder.time_embedder.linear_1"),
    (r"time_embedding\.2", r"condition_embedder.time_embedder.linear_2"),
    (r"time_projection\.1", r"condition_embedder.time_proj"),
    (r"head\.modulation", r"scale_shift_table"),
    (r"head\.head", r"proj_out"),
    (r"(blocks\.\d+)\.modulation", r"\1.scale_shift_table"),
    (r"(blocks\.\d+)\.norm3", r"\1.norm2"),
    (r"(blocks\.\d+)\.ffn\.0", r"\1.ffn.net.0.proj"),
    (r"(blocks\.\d+)\.ffn\.2", r"\1.ffn.net.2"),
    (r"(blocks\.\d+)\.self_attn\.([qkv])", r"\1.attn1.to_\2"),
    (r"(blocks\.\d+)\.cross_attn\.([qkv])", r"\1.attn2.to_\2"),
    (r"(blocks\.\d+)\.self_attn\.o", r"\1.attn1.to_out.0"),
    (r"(blocks\.\d+)\.cross_attn\.o", r"\1.attn2.to_out.0"),
    (r"(blocks\.\d+)\.self_attn\.(norm_[qk])", r"\1.attn1.\2"),
    (r"(blocks\.\d+)\.cross_attn\.(norm_[qk])", r"\1.attn2.\2"),
]


def wan_name(name: str) -> str:
    """A module (or bare parameter) of Wan's own code by diffusers' name; any other name as it is."""
    for own, theirs in _WAN:
        if found := re.fullmatch(own, name):
            return found.expand(theirs)
    return name


def diffusers_state(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """A state dict in Wan's own names (with `model.` before them, or without) in diffusers' names.

    place: what to call it in an error. Raises UserError for two tensors that would be the same one.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix("model.")
        module, _, leaf = name.rpartition(".")
        new = wan_name(name) if wan_name(name) != name else f"{wan_name(module)}.{leaf}"
        if new in renamed:
            raise UserError(f"{place}: {key} is there twice, under two names")
        renamed[new] = tensor
    return renamed


def converted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """A state dict in Wan's own names as that of a diffusers transformer, every tensor there and of the right shape.

    wanted: the state dict of that transformer. place: what to call the weights in an error. Raises UserError.
    """
    renamed = diffusers_state(state, place)
    check_shapes(Path(place), dict(wanted), renamed)
    return renamed
