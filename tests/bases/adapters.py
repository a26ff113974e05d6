"""LoRA files of random factors, as PEFT writes them."""

import torch
from safetensors.torch import save_file


def factors(network, module: str, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs_ = network.get_submodule(module).weight.shape
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, inputs_, generator=generator) * 0.2,
        torch.randn(outputs, rank, generator=generator) * 0.2,
    )


def write_peft(path, network, modules, rank=2, seed=0, prefix="transformer.", meta=None, **more):
    """A LoRA file as PEFT has it, and its factors."""
    made = {m: factors(network, m, rank, seed + i) for i, m in enumerate(modules)}
    tensors = {f"{prefix}{m}.lora_A.weight": down for m, (down, _) in made.items()}
    tensors |= {f"{prefix}{m}.lora_B.weight": up for m, (_, up) in made.items()}
    save_file(tensors | more, path, meta)
    return made
