"""What the comparisons with peers share: their packages without the parts that need a GPU, random weights, diffusers' network."""

import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4
SIZES = {
    "in_dim": 4,
    "out_dim": 4,
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 16,
    "text_dim": 16,
    "num_heads": 2,
    "num_layers": 3,
}
"""Of every small network, in the words of Wan's own code, which all four build on."""


def packages(checkout: Path, *names: str) -> None:
    """Makes packages of a checkout importable without running their __init__, which asks for VAEs, tokenizers and GPUs."""
    sys.path.insert(0, str(checkout))
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package


class _Unused(types.ModuleType):
    """A module of which any name can be imported; none of them is used."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **named: None})


def unused(*names: str) -> None:
    """Modules that a peer imports at the top and that its network doesn't use."""
    for name in names:
        module = _Unused(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module


def attention(q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor | None = None, **_) -> Tensor:
    """What flash-attention computes: [batch, tokens, heads, dim], no mask."""
    assert k_lens is None or (k_lens == k.shape[1]).all()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@torch.no_grad()
def fill(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, also where a fresh network has zeros and would agree with anything."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        fan = weight[0].numel() if weight.ndim > 1 else 10
        weight.copy_(torch.randn(weight.shape, generator=generator) * min(fan**-0.5, 0.3))
    return network.eval()


def features(prompt: str) -> torch.Tensor:
    """What stands for a prompt's text features: numbers that hang on every letter of it."""
    generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
    return torch.randn(len(prompt.split()) + 1, SIZES["text_dim"], generator=generator)


def wan_network(sizes: Mapping[str, int]) -> Any:
    """diffusers' Wan transformer of the same sizes, in the names that Wan's own code gives them."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        in_channels=sizes["in_dim"],
        out_channels=sizes["out_dim"],
        num_attention_heads=sizes["num_heads"],
        attention_head_dim=sizes["dim"] // sizes["num_heads"],
        text_dim=sizes["text_dim"],
        freq_dim=sizes["freq_dim"],
        ffn_dim=sizes["ffn_dim"],
        num_layers=sizes["num_layers"],
    ).eval()


def verdict(rows: Sequence[tuple[str, Tensor, Tensor]]) -> int:
    """Prints the largest difference of each pair (theirs, ours); 1 if one is above the tolerance, else 0."""
    worst = 0.0
    for label, theirs, ours in rows:
        if theirs.shape != ours.shape:
            print(f"{label}: shapes {tuple(theirs.shape)} and {tuple(ours.shape)}")
            return 1
        off = float((theirs - ours).abs().max())
        worst = max(worst, off)
        print(f"{label}  spread {float(theirs.std()):.3f}  largest difference {off:.1e}")
    same = worst < TOLERANCE
    print(f"{'the same' if same else 'NOT the same'}: largest difference {worst:.1e}")
    return int(not same)
