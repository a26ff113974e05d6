"""Does longshot run ShotStream's weights as ShotStream does? Both networks, one random state dict, block by block.

    python benchmarks/peers/shotstream.py CHECKOUT

CHECKOUT is a clone of https://github.com/KlingAIResearch/ShotStream. Its own causal network is built small, in fp32 on the CPU,
and run as its pipeline runs it: six frames of three earlier shots are read clean into their own cache, each with the prompt of
its shot, then every block of the fourth shot gets a noisy pass and a clean one; and the same for the first shot, which sees
zeros.
Flash-attention, which needs a GPU, is replaced from outside by torch's attention, which computes the same.

Prints the largest difference in every block and ends with 1 if one is above 1e-4. As a control, prints what no phase would give.
"""

import sys
import types
from pathlib import Path

import torch
from compare import SIZES, attention, fill, packages, verdict, wan_network

FRAMES, BLOCKS, HEIGHT, WIDTH, SEEN = 3, 4, 2, 3, 6
TOKENS = HEIGHT * WIDTH  # of a latent frame
SHOTS = {3: (0, 0, 1, 1, 2, 2), 0: (0,) * SEEN}  # for shots 3 and 0: the shot each seen frame is from


def peer(checkout: Path) -> torch.nn.Module:
    packages(checkout, "wan", "wan.modules")
    from wan.modules import causal_model, model  # ty: ignore

    causal_model.attention = model.flash_attention = attention
    network = fill(causal_model.CausalWanModel(local_attn_size=FRAMES * BLOCKS, **SIZES))
    network.num_frame_per_block = FRAMES
    for block in network.blocks:
        block.self_attn.max_attention_size = FRAMES * BLOCKS * TOKENS
    return network


def cache(network, frames: int, **more) -> list[dict]:
    """An empty KV cache a block, with the fields that its attention reads."""
    shape = (1, frames * TOKENS, SIZES["num_heads"], SIZES["dim"] // SIZES["num_heads"])
    return [
        {"k": torch.zeros(shape), "v": torch.zeros(shape)}
        | {name: torch.tensor([0]) for name in ("global_end_index", "local_end_index")}
        | more
        for _ in network.blocks
    ]


def peer_blocks(network, seen, noisy, clean, texts, shot: int, level: float) -> list[torch.Tensor]:
    """Its velocities for the noisy latent of every block of a shot. texts: of this shot and those before it."""
    kept, own = cache(network, SEEN), cache(network, FRAMES * BLOCKS)
    words = [{"is_init": False} for _ in network.blocks]
    flags = torch.tensor([*SHOTS[shot], *[max(shot, 1)] * FRAMES * BLOCKS], dtype=torch.int32)
    same = {"context": texts, "seq_len": 10_000, "crossattn_cache": words, "kv_cache_context": kept}
    network(seen[None], t=torch.zeros(1, SEEN), shot_flags_for_rope=flags[:SEEN], **same)
    out = []
    for n in range(BLOCKS):
        place = {"current_start": n * FRAMES * TOKENS, "kv_cache": own}
        place |= {"shot_flags_for_rope": flags[SEEN + n * FRAMES :][:FRAMES]}
        for latent, t in ((noisy[n], 1000 * level), (clean[n], 0.0)):
            v = network(latent[None], t=torch.full((1, FRAMES), t), **same, **place)[0]
            out += [v] if t else []
    return out


def our_blocks(
    state, seen, noisy, clean, texts, shot: int, level: float, phases: bool = True
) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network."""
    from dataclasses import replace

    from longshot.bases.shots import pack, unpack
    from longshot.bases.shotstream import SHOTSTREAM, ShotStreamBase, block_group, remembered_groups
    from longshot.bases.wan_names import converted
    from longshot.layout import Layout
    from longshot.model.context import Context

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "shotstream"))
    base = ShotStreamBase(types.SimpleNamespace(transformer=network), SHOTSTREAM)
    grid, box = (HEIGHT, WIDTH), (FRAMES, HEIGHT, WIDTH)
    words = [texts[s] for s in SHOTS[shot]]
    groups = remembered_groups(SHOTS[shot], [len(t) for t in words], grid)
    blocks = [block_group(n, shot, len(texts[-1]), grid) for n in range(BLOCKS)]
    if not phases:
        groups, blocks = ([replace(g, phase=0.0) for g in some] for some in (groups, blocks))
    rows = torch.cat([pack(seen[None, :, n : n + 1], (1, *grid), base.patch) for n in range(SEEN)])
    layout = Layout.single(*groups, rope="timeline")
    _, (context,) = base.remember(rows, torch.cat(words), torch.zeros(SEEN), layout, "scene", [Context()])
    out = []
    for n, group in enumerate(blocks):
        layout = Layout.single(*context.groups, group, past=len(context.groups), rope="timeline")
        pair = [pack(latent[n][None], box, base.patch) for latent in (noisy, clean)]
        v = base.velocity(pair[0], texts[-1], torch.tensor([level]), layout, "causal", [context])
        out.append(unpack(v, box, base.patch)[0])
        _, (context,) = base.remember(pair[1], texts[-1], torch.tensor([0.0]), layout, "causal", [context])
    return out


@torch.no_grad()
def main() -> int:
    network = peer(Path(sys.argv[1]))
    state = network.state_dict()
    rows = []
    for shot in SHOTS:
        generator = torch.Generator().manual_seed(shot)
        noisy, clean = (
            list(torch.randn(BLOCKS, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH, generator=generator)) for _ in range(2)
        )
        seen = torch.randn(4, SEEN, 2 * HEIGHT, 2 * WIDTH, generator=generator) * (shot > 0)
        texts = [torch.randn(5 + n, SIZES["text_dim"], generator=generator) for n in range(shot + 1)]
        theirs = peer_blocks(network, seen, noisy, clean, texts, shot, 0.7)
        ours = our_blocks(state, seen, noisy, clean, texts, shot, 0.7)
        if shot:
            control = our_blocks(state, seen, noisy, clean, texts, shot, 0.7, phases=False)
            off = max(float((a - b).abs().max()) for a, b in zip(theirs, control, strict=True))
            print(f"control: without phases the largest difference is {off:.1e}")
        rows += [
            (f"shot {shot + 1}, block {n + 1}", a, b)
            for n, (a, b) in enumerate(zip(theirs, ours, strict=True))
        ]
    return verdict(rows)


if __name__ == "__main__":
    sys.exit(main())
