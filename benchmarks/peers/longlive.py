"""Does longshot run LongLive 2.0's weights as LongLive does? One random state dict: chunk by chunk, then a whole film.

    python benchmarks/peers/longlive.py CHECKOUT

CHECKOUT is a clone of https://github.com/NVlabs/LongLive. Its own network is built small, in fp32 on the CPU, and run as its
pipeline runs it: a noisy pass and a clean one a chunk, its KV cache with a sink, a chunk pinned at every cut, and a jump in
time at every cut. Then its own pipeline makes the latents of a film of three shots, sampler, prompts, cuts and all, and longshot
makes them from the same noise. Two things of it can't run without a GPU and are switched off or replaced from outside: its
Triton kernels (by its own environment variables) and flash-attention (by torch's attention, which computes the same). Its VAE is
left out, and text features are random numbers drawn for each prompt.

Prints the largest difference in every chunk and shot, and ends with 1 if one is above 1e-4.
"""

import os
import re
import sys
import types
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from compare import SIZES, attention, features, fill, packages, unused, verdict, wan_network

os.environ |= {"LLV2_TRITON_ROPE": "0", "LLV2_TRITON_ADALN": "0"}
FRAMES, HEIGHT, WIDTH, SEEN = 2, 2, 3, 4  # of a chunk, in tokens; chunks a chunk sees, itself included
CHUNKS, CUTS, JUMP = 11, (3, 7), 8  # numbers from 1
PROMPTS = ("a dog walks", "a cat in the snow looks up", "the two of them")  # of the shots between the cuts


def peer(checkout: Path) -> torch.nn.Module:
    """Its own network, small and random everywhere."""
    packages(checkout, "wan_5b", "wan_5b.modules", "wan_5b.utils", "pipeline", "utils")
    unused("transformers.models.x_clip.modeling_x_clip")  # imported there and gone from transformers 5
    from wan_5b.modules import causal_model  # ty: ignore

    causal_model.attention = causal_model.flash_attention = attention
    network = causal_model.CausalWanModel(
        model_type="ti2v",
        local_attn_size=SEEN * FRAMES,
        sink_size=FRAMES,
        num_frame_per_block=FRAMES,
        **SIZES,
    )
    fill(network)
    for block in network.blocks:
        block.self_attn.max_attention_size = SEEN * FRAMES * HEIGHT * WIDTH
        block.self_attn.global_sink_size = FRAMES
    return network


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


def our_base(state):
    """Its weights in longshot, over diffusers' network, with chunks as short as the small network's."""
    from longshot.bases.longlive import LONGLIVE2, LongLiveBase
    from longshot.bases.wan_names import converted

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "longlive"))
    habits = LONGLIVE2.multishot
    assert habits
    small = replace(LONGLIVE2, channels=16, multishot=replace(habits, block=FRAMES))
    return LongLiveBase(types.SimpleNamespace(transformer=network), small)


def our_chunks(state, noisy, clean, texts, level: float) -> list[torch.Tensor]:
    """The same through longshot."""
    from longshot.bases.longlive import history
    from longshot.bases.shots import pack, unpack
    from longshot.layout import Group, Layout, timeline
    from longshot.model.context import Context

    base, grid = our_base(state), (FRAMES, HEIGHT, WIDTH)
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


# -- a film -------------------------------------------------------------------------------------------------------------
class Settings(dict):
    """A config whose entries are attributes too, as its own is."""

    def __getattr__(self, name: str):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Generator(torch.nn.Module):
    """Its network as its pipeline calls it: frames before channels, text features by name."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.model = network

    def forward(self, noisy_image_or_video, conditional_dict, timestep, **cached):
        words = [rows[rows.abs().sum(1) > 0] for rows in conditional_dict["prompt_embeds"]]
        tokens = timestep.shape[1] * HEIGHT * WIDTH
        latent = noisy_image_or_video.transpose(1, 2)
        flow = self.model(latent, t=timestep, context=words, seq_len=tokens, **cached)
        return flow.transpose(1, 2), None


def peer_film(checkout: Path, network, noise: torch.Tensor) -> torch.Tensor:
    """The latents [channels, frames, height, width] that its pipeline makes of a noise of that shape."""
    unused("omegaconf", "utils.wan_5b_wrapper", "utils.dataset")
    said = re.search(r'DEFAULT_SCENE_CUT_PREFIX = "(.*)"', (checkout / "utils/dataset.py").read_text())
    assert said
    cut = sys.modules["utils.dataset"].DEFAULT_SCENE_CUT_PREFIX = said[1]
    from pipeline import causal_diffusion_inference as theirs  # ty: ignore

    heads, dim = SIZES["num_heads"], SIZES["dim"] // SIZES["num_heads"]
    theirs.wan_default_config["Wan2.2-TI2V-5B"] |= {
        "num_heads": heads,
        "head_dim": dim,
        "num_transformer_blocks": SIZES["num_layers"],
    }
    settings = Settings(
        model_kwargs=Settings(model_name="Wan2.2-TI2V-5B", timestep_shift=5.0, local_attn_size=SEEN * FRAMES),
        num_frame_per_block=FRAMES,
        image_or_video_shape=[1, CHUNKS * FRAMES, SIZES["in_dim"], 2 * HEIGHT, 2 * WIDTH],
        inference={
            "sampling_steps": 4,
            "sink_size": FRAMES,
            "guidance_scale": 1.0,
            "multi_shot_sink": True,
            "multi_shot_rope_offset": JUMP,
        },
    )

    def encode(text_prompts: list[str]) -> dict:
        rows = [features(prompt) for prompt in text_prompts]
        return {
            "prompt_embeds": torch.stack([torch.nn.functional.pad(r, (0, 0, 0, 512 - len(r))) for r in rows])
        }

    made = theirs.CausalDiffusionInferencePipeline(
        settings, "cpu", Generator(network), encode, torch.nn.Module()
    )
    firsts, prompts = (1, *CUTS), []
    for chunk in range(1, CHUNKS + 1):
        shot = sum(chunk >= first for first in firsts) - 1
        prompts.append((cut if chunk in CUTS else "") + PROMPTS[shot])
    return made.inference(noise.transpose(0, 1)[None], [prompts], return_latents=True)[0].transpose(0, 1)


def our_film(state) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, latents) of longshot's film, as the pipeline above has them."""
    from longshot.bases.shots import unpack
    from longshot.sample.denoise import Sampling, denoise, noise_of
    from longshot.sample.plan import PlannedShot, autoregressive

    base = our_base(state)
    base.tokenise = lambda prompt: torch.zeros(len(prompt.split()) + 1).numpy().astype("int64")
    base.encode_text = lambda prompts: [features(prompt) for prompt in prompts]
    bounds = [1, *CUTS, CHUNKS + 1]
    shots = [
        PlannedShot(n, f"shot {n}", f"[SHOT CUT] {prompt}", ((b - a) * FRAMES, HEIGHT, WIDTH), (0, str(n), 0))
        for n, (prompt, a, b) in enumerate(zip(PROMPTS, bounds, bounds[1:], strict=False), start=1)
    ]
    sampling = Sampling(steps=4, shift=5.0, guidance=1.0, solver="unipc")
    found: dict[int, torch.Tensor] = {}
    for finished in denoise(base, autoregressive("", shots), sampling):
        found |= finished.latents

    def film(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([unpack(z, s.grid, base.patch)[0] for s, z in zip(shots, rows, strict=True)], 1)

    return film([noise_of(s, 16) for s in shots]), film([found[s.shot] for s in shots])


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
    state = network.state_dict()
    ours = our_chunks(state, noisy, clean, texts, 0.7)
    rows = [
        (f"chunk {n:2}{' (cut)' if n in CUTS else '      '}", a, b)
        for n, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1)
    ]
    noise, film = our_film(state)
    bounds = [0, *(FRAMES * (c - 1) for c in CUTS), CHUNKS * FRAMES]
    made = peer_film(checkout, network, noise)
    rows += [
        (f"shot {n} of a film", made[:, a:b], film[:, a:b])
        for n, (a, b) in enumerate(pairwise(bounds), start=1)
    ]
    return verdict(rows)


if __name__ == "__main__":
    sys.exit(main())
