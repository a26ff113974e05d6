"""A LoRA while it is trained: low-rank layers beside frozen ones, in any base's network.

The layers that are adapted are the matrices of the blocks, attention and MLP of every stream; modulation stays as it is. A layer
keeps the names of its weights, so nothing else of a base knows of it; what was learned leaves as an `Adapter` (`lora.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from longshot.bases.lora import Adapter, Change
from longshot.errors import UserError

_IN_BLOCKS = re.compile(r"(\w+_)?blocks\.\d+\.(?!.*(norm|modulation))")


@dataclass(frozen=True)
class LoraConfig:
    """What is trained beside a base. base: the fingerprint of its weights, which a run that goes on must find again."""

    rank: int
    base: str = ""


class LowRank(nn.Linear):
    """A frozen linear layer and what is learned beside it: x W^T + b + (x A^T) B^T. B begins as zeros, so nothing changes."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator):
        nn.Module.__init__(self)  # not Linear's: the weights are there
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        edge = linear.in_features**-0.5
        down = torch.rand(rank, linear.in_features, generator=generator) * 2 * edge - edge
        device = linear.weight.device
        self.lora_A = nn.Parameter(down.to(device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, input: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        learned = F.linear(F.linear(input.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return F.linear(input, self.weight, self.bias) + learned.to(input.dtype)


def adapted(network: nn.Module) -> list[str]:
    """The names of the layers that a LoRA of this network changes."""
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if _IN_BLOCKS.match(name)]


def attach(network: nn.Module, rank: int, seed: int = 0) -> None:
    """Freezes a network and puts low-rank layers into its blocks, the same for the same seed. Only these learn.

    Raises UserError for a rank that is too small or too large to be one.
    """
    names = adapted(network)
    layers = {name: network.get_submodule(name) for name in names}
    most = min(min(layer.weight.shape) for layer in layers.values() if isinstance(layer, nn.Linear))
    if not 1 <= rank <= most:
        raise UserError(
            f"--lora {rank}: use a rank from 1 to {most}, the least that a layer of this base has"
        )
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        assert isinstance(layer, nn.Linear)
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, LowRank(layer, rank, generator))


def as_adapter(name: str, weights: Mapping[str, Tensor]) -> Adapter:
    """What was learned, `LAYER.lora_A` and `LAYER.lora_B` by name, on its way to a file. name: what to call it in an error."""
    layers = [key.removesuffix(".lora_A") for key in weights if key.endswith(".lora_A")]
    return Adapter(
        name, {layer: Change(weights[f"{layer}.lora_A"], weights[f"{layer}.lora_B"]) for layer in layers}
    )
