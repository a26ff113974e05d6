"""Weights of Wan's family as others save them."""

import torch

_WAN_NAMES = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn1.to_": "self_attn.",
    "attn2.to_": "cross_attn.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}


def in_wan_names(network: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """A Wan transformer's state dict in the names of Wan's own code, as others save it."""
    out = {}
    for name, weight in network.state_dict().items():
        for diffusers, own in _WAN_NAMES.items():
            name = name.replace(diffusers, own)
        name = "head.modulation" if name == "modulation" else name
        out[prefix + name] = weight.clone()
    return out
