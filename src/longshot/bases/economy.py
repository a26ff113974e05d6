"""Less memory for a pretrained base: weights in fp8, weights that wait on the CPU, a VAE that works in tiles.

All three are diffusers' own; here they are put together in the one order that works, and said no to where they can't.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from longshot.errors import UserError

Offload = Literal["none", "group"]
WeightDtype = Literal["own", "fp8"]


@dataclass(frozen=True)
class Economy:
    """How to save memory, at a price.

    weights: "fp8" keeps the transformer's matrices in e4m3 and widens a layer at a time (norms, embeddings and biases beside
    them stay as diffusers says); it moves every picture a little. offload: "group" keeps all weights on the CPU and brings a
    block at a time to the device; it costs time and no precision. tile_vae: pixels are made in overlapping tiles, which
    may show in flat areas.
    """

    weights: WeightDtype = "own"
    offload: Offload = "none"
    tile_vae: bool = False

    def __post_init__(self):
        for name, kinds in (("weights", WeightDtype), ("offload", Offload)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(f"no {name} {getattr(self, name)!r}: use {' or '.join(get_args(kinds))}")

    @property
    def is_none(self) -> bool:
        return self == Economy()


def economise(base: Any, economy: Economy, device: str | torch.device) -> None:
    """Places a pretrained base on a device with what `economy` asks. Merge LoRAs before: fp8 weights take no more changes.

    Raises UserError for a base that has none of this: the native one.
    """
    pipe = getattr(base, "pipe", None)
    if pipe is None:
        if economy.is_none:
            base.to(device)
            return
        raise UserError(
            f"{base.spec.name}: runs whole and in its own dtype; offloading, fp8 weights and VAE tiles are for pretrained bases"
        )
    network = base.network
    if economy.weights == "fp8":
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)
    if economy.tile_vae:
        pipe.vae.enable_tiling()
    if economy.offload == "none":
        base.to(device)
        return
    from diffusers.hooks import apply_group_offloading

    onto = torch.device(device)
    # With a stream the next block is on its way while one computes; only CUDA has them.
    how: dict[str, Any] = {"onload_device": onto, "use_stream": onto.type == "cuda"}
    network.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **how)
    for part in _parts(pipe):
        if part is not network:
            apply_group_offloading(part, offload_type="leaf_level", **how)


def _parts(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a network's weights and buffers as they are kept now."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
