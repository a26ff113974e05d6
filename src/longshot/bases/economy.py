"""Less memory for a pretrained base: weights in fp8 or int8, weights that wait on the CPU, a VAE that works in tiles.

All are diffusers' own, torchao's (int8) or accelerate's (whole networks that wait); here they are put together in the one order
that works, and said no to where they can't.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn

from longshot.bases.single import is_quantised
from longshot.bases.tune import adapted
from longshot.errors import UserError
from longshot.tensors import stored

Offload = Literal["none", "group", "model"]
WeightDtype = Literal["own", "fp8", "int8"]


@dataclass(frozen=True)
class Economy:
    """How to save memory, at a price.

    weights: "fp8" keeps the transformer's matrices in e4m3 and widens a layer at a time (norms, embeddings and biases beside
    them stay as diffusers says); "int8" keeps the matrices of its blocks in whole numbers, with a scale a row (torchao). Both
    move every picture a little, int8 less. offload: "group" keeps all weights on the CPU and brings a block at a time to the
    device, "model" a whole network at a time: the text encoder, then the transformer, then the VAE; they cost time and no
    precision. tile_vae: pixels are made in overlapping tiles, which may show in flat areas.
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
    networks = [n for n in (base.network, getattr(base, "second", None)) if n is not None]
    for network in networks:
        if is_quantised(network):
            refuse_narrower(economy)
        if economy.weights == "fp8":
            network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)
        elif economy.weights == "int8":
            _to_int8(network)
    if economy.tile_vae:
        pipe.vae.enable_tiling()
    if economy.offload == "none":
        base.to(device)
        return
    if economy.offload == "model":
        _one_at_a_time(_parts(pipe), torch.device(device))
        return
    from diffusers.hooks import apply_group_offloading

    onto = torch.device(device)
    # With a stream the next block is on its way while one computes; only CUDA has them.
    how: dict[str, Any] = {"onload_device": onto, "use_stream": onto.type == "cuda"}
    for network in networks:
        network.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **how)
    for part in _parts(pipe):
        if part not in networks:
            apply_group_offloading(part, offload_type="leaf_level", **how)


def refuse_narrower(economy: Economy) -> None:
    """UserError where the weights of a GGUF are asked for narrower than they are."""
    if economy.weights != "own":
        raise UserError(
            f"--weight-dtype {economy.weights}: the weights of a GGUF are narrow already; leave it out"
        )


def _to_int8(network: nn.Module) -> None:
    """Keeps the matrices of the blocks as whole numbers from -127 to 127, with a scale a row."""
    if find_spec("torchao") is None:
        raise UserError("--weight-dtype int8: needs one more package: pip install 'longshot[int8]'")
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.quant_api import quantize_

    layers = set(adapted(network))
    quantize_(network, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name in layers)


def _one_at_a_time(parts: list[nn.Module], device: torch.device) -> None:
    """Each network comes to the device when it is called, and sends the one before away."""
    from accelerate.hooks import ModelHook, add_hook_to_module
    from accelerate.utils import send_to_device

    class Bring(ModelHook):
        execution_device = device  # where a pipeline puts what it hands to a network

        def pre_forward(self, module, *args, **kwargs):
            for other in parts:
                if other is not module:
                    other.to("cpu")
            module.to(device)
            return send_to_device(args, device), send_to_device(kwargs, device)

    for part in parts:
        part.to("cpu")
        add_hook_to_module(part, Bring())


def _parts(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a network's weights and buffers as they are kept now."""
    return sum(t.nbytes for tensor in (*module.parameters(), *module.buffers()) for t in stored(tensor))
