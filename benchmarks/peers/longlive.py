"""Does longshot run LongLive 2.0's weights as LongLive does? Both networks, one random state dict, chunk by chunk.

    python benchmarks/peers/longlive.py CHECKOUT

CHECKOUT is a clone of https://github.com/NVlabs/LongLive. Its own network is built small, in fp32 on the CPU, and run as its
pipeline runs it: a noisy pass and a clean one a chunk, its KV cache with a sink, a chunk pinned at every cut, and a jump in
time at every cut. Two things of it can't run without a GPU and are switched off or replaced from outside: its Triton kernels
(by its own environment variables) and flash-attention (by torch's attention, which computes the same).

Prints the largest difference in every chunk and ends with 1 if one is above 1e-4.
"""

import os
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F

os.environ |= {"LLV2_TRITON_ROPE": "0", "LLV2_TRITON_ADALN": "0"}
FRAMES, HEIGHT, WIDTH, SEEN = 2, 2, 3, 4  # of a chunk, in tokens; chunks a chunk sees, itself included
CHUNKS, CUTS, JUMP = 11, (3, 7), 8  # numbers from 1
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
TOLERANCE = 1e-4


def attention(q, k, v, k_lens=None, **_):
    """What its flash-attention computes: [batch, tokens, heads, dim], no mask."""
    assert k_lens is None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def peer(checkout: Path) -> torch.nn.Module:
    """Its own network, small and random everywhere."""
    sys.path.insert(0, str(checkout))
    for name in (
        "wan_5b",
        "wan_5b.modules",
    ):  # packages without their __init__, which asks for VAEs and tokenizers
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    unused = types.ModuleType(
        "transformers.models.x_clip.modeling_x_clip"
    )  # imported there and gone from transformers 5
    unused.x_clip_loss = None
    sys.modules[unused.__name__] = unused
    from wan_5b.modules import causal_model

    causal_model.attention = causal_model.flash_attention = attention
    made = causal_model.CausalWanModel(
        model_type="ti2v",
        local_attn_size=SEEN * FRAMES,
        sink_size=FRAMES,
        num_frame_per_block=FRAMES,
        **SIZES,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 10
            weight.copy_(torch.randn(weight.shape, generator=generator) * min(fan**-0.5, 0.3))
    for block in made.blocks:
        block.self_attn.max_attention_size = SEEN * FRAMES * HEIGHT * WIDTH
        block.self_attn.global_sink_size = FRAMES
    return made.eval()


def caches(network) -> list[dict]:
    """An empty KV cache a block, with the fields that its attention reads."""
    shape = (1, SEEN * FRAMES * HEIGHT * WIDTH, SIZES["num_heads"], SIZES["dim"] // SIZES["num_heads"])
    numbers = {"global_end_index": 0, "local_end_index": 0, "pinned_start": -1, "pinned_len": 0}
    return [
        {"k": torch.zeros(shape), "v": torch.zeros(shape)}
        | {k: torch.tensor([n]) for k, n in numbers.items()}
        for _ in network.blocks
    ]


def peer_chunks(network, noisy, clean, texts, level: float) -> list[torch.Tensor]:
    """Its velocities for the noisy latent of every chunk, the chunks before it remembered."""
    held, out, tokens = caches(network), [], FRAMES * HEIGHT * WIDTH
    for n in range(CHUNKS):
        network.rope_temporal_offset = float(JUMP * sum(c <= n + 1 for c in CUTS))
        for latent, t in ((noisy[n], 1000 * level), (clean[n], 0.0)):
            v = network(
                latent[None],
                t=torch.full((1, FRAMES), t),
                context=[texts[n]],
                seq_len=tokens,
                kv_cache=held,
                crossattn_cache=[None] * len(held),
                current_start=n * tokens,
                cache_start=n * tokens,
            )[0]
            out += [v] if latent is noisy[n] else []
        if n + 1 in CUTS:  # its pipeline pins the chunk that it has just read into the cache
            for cache in held:
                cache["pinned_start"].fill_(int(cache["local_end_index"]) - tokens)
                cache["pinned_len"].fill_(tokens)
    return out


def our_chunks(state, noisy, clean, texts, level: float) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network."""
    from dataclasses import replace

    from diffusers import WanTransformer3DModel

    from longshot.bases.longlive import converted, history
    from longshot.bases.shots import pack, unpack
    from longshot.bases.wan import WAN22_5B, WanBase
    from longshot.layout import Group, Layout, timeline
    from longshot.model.context import Context

    network = WanTransformer3DModel(
        in_channels=SIZES["in_dim"],
        out_channels=SIZES["out_dim"],
        num_attention_heads=SIZES["num_heads"],
        attention_head_dim=SIZES["dim"] // SIZES["num_heads"],
        text_dim=SIZES["text_dim"],
        freq_dim=SIZES["freq_dim"],
        ffn_dim=SIZES["ffn_dim"],
        num_layers=SIZES["num_layers"],
    ).eval()
    network.load_state_dict(converted(state, network.state_dict(), "longlive"))
    base = WanBase(types.SimpleNamespace(transformer=network), replace(WAN22_5B, rope="timeline"))
    grid = (FRAMES, HEIGHT, WIDTH)
    groups = timeline([Group(n + 1, len(t), grid) for n, t in enumerate(texts)], CUTS, JUMP)
    context, out = Context(), []
    for n, group in enumerate(groups):
        seen = context.select(history(n + 1, CUTS, SEEN))
        layout = Layout.single(*seen.groups, group, past=len(seen.groups), rope="timeline")
        rows = [pack(latent[n][None], grid, base.patch) for latent in (noisy, clean)]
        v = base.velocity(rows[0], texts[n], torch.tensor([level]), layout, "causal", [seen])
        out.append(unpack(v, grid, base.patch)[0])
        _, (new,) = base.remember(rows[1], texts[n], torch.tensor([0.0]), layout, "causal", [seen])
        context = context.extended(new.memories)
    return out


@torch.no_grad()
def main() -> int:
    checkout = Path(sys.argv[1])
    generator = torch.Generator().manual_seed(1)

    def latents():
        return list(torch.randn(CHUNKS, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH, generator=generator))

    noisy, clean = latents(), latents()
    texts = [torch.randn(5 + n, SIZES["text_dim"], generator=generator) for n in range(CHUNKS)]
    network = peer(checkout)
    theirs = peer_chunks(network, noisy, clean, texts, 0.7)
    ours = our_chunks(network.state_dict(), noisy, clean, texts, 0.7)
    worst = 0.0
    for n, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1):
        off = float((a - b).abs().max())
        worst = max(worst, off)
        print(
            f"chunk {n:2}{' (cut)' if n in CUTS else '      '}  spread {float(a.std()):.3f}  largest difference {off:.1e}"
        )
    print("the same" if worst < TOLERANCE else "NOT the same")
    return int(worst >= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
