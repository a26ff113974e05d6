"""Does longshot run ShotStream's weights as ShotStream does? One random state dict: block by block, then a whole film.

    python benchmarks/peers/shotstream.py CHECKOUT

CHECKOUT is a clone of https://github.com/KlingAIResearch/ShotStream. Its own causal network is built small, in fp32 on the CPU,
and run as its pipeline runs it: six frames of three earlier shots are read clean into their own cache, each with the prompt of
its shot, then every block of the fourth shot gets a noisy pass and a clean one; and the same for the first shot, which sees
zeros. Then its own pipeline makes the latents of a film of four shots, sampler, seen frames, prompts and all, and longshot makes
them from the same noise, which the pipeline is handed in the place of what it draws.

Flash-attention, which needs a GPU, is replaced from outside by torch's attention, which computes the same. Its VAE and its text
encoder are replaced by small ones: pictures are three sums of a latent's channels, without the 8 bits that longshot's pictures
pass; text features are numbers that hang on every letter of a prompt.

Prints the largest difference in every block and shot and ends with 1 if one is above 1e-4. As controls, prints what no phase
would give, and the film with pictures of 8 bits.
"""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compare import SIZES, attention, features, fill, packages, unused, verdict, wan_network

FRAMES, BLOCKS, HEIGHT, WIDTH, SEEN = 3, 4, 2, 3, 6
TOKENS = HEIGHT * WIDTH  # of a latent frame
SHOTS = {3: (0, 0, 1, 1, 2, 2), 0: (0,) * SEEN}  # for shots 3 and 0: the shot each seen frame is from


FILM_FRAMES = 21  # latent frames of every shot of a film: its pipeline makes no other
STORY = "A man and a dog in the snow."
PROMPTS = ("a man waves", "the dog runs in", "both sit on a wall", "they walk away")


def peer(checkout: Path, frames: int = FRAMES * BLOCKS) -> torch.nn.Module:
    packages(checkout, "wan", "wan.modules")
    from wan.modules import causal_model, model  # ty: ignore

    causal_model.attention = model.flash_attention = attention
    network = fill(causal_model.CausalWanModel(local_attn_size=frames, **SIZES))
    network.num_frame_per_block = FRAMES
    for block in network.blocks:
        block.self_attn.max_attention_size = frames * TOKENS
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


def our_base(state):
    """Its weights in longshot, over diffusers' network."""
    from longshot.bases.shotstream import SHOTSTREAM, ShotStreamBase
    from longshot.bases.wan_names import converted

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "shotstream"))
    return ShotStreamBase(types.SimpleNamespace(transformer=network), replace(SHOTSTREAM, channels=16))


def our_blocks(
    state, seen, noisy, clean, texts, shot: int, level: float, phases: bool = True
) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network."""
    from longshot.bases.shots import pack, unpack
    from longshot.bases.shotstream import block_group, remembered_groups
    from longshot.layout import Layout
    from longshot.model.context import Context

    base, grid, box = our_base(state), (HEIGHT, WIDTH), (FRAMES, HEIGHT, WIDTH)
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


# -- a film -------------------------------------------------------------------------------------------------------------
MIX = torch.tensor(
    [[0.3, -0.2, 0.1, 0.0], [0.0, 0.2, 0.1, -0.3], [0.1, 0.1, -0.3, 0.2]]
)  # latent channels to colours


def pictures(latent: torch.Tensor) -> torch.Tensor:
    """[frames, 3, height, width] in [-1, 1] of a latent [channels, frames, height, width]: one of its first frame, else four."""
    still = torch.einsum("rc,cfhw->frhw", MIX, latent)
    frames = torch.cat([still[:1], still[1:].repeat_interleave(4, 0)])
    return (frames + 0.1 * torch.sin(torch.arange(len(frames)))[:, None, None, None]).clamp(-1, 1)


def stills(frames: torch.Tensor) -> torch.Tensor:
    """Latents [frames, channels, height, width] of pictures of any size."""
    small = F.adaptive_avg_pool2d(frames, (2 * HEIGHT, 2 * WIDTH))
    return torch.einsum("rc,frhw->fchw", MIX, small) * 3


class Vae(torch.nn.Module):
    """Stands for its VAE; keeps the latents that it was given to decode."""

    def __init__(self):
        super().__init__()
        first = types.SimpleNamespace(weight=torch.zeros(1))
        self.model = types.SimpleNamespace(encoder=types.SimpleNamespace(conv1=first))
        self.latents: list[torch.Tensor] = []

    def encode_to_latent(self, frames: torch.Tensor) -> torch.Tensor:
        return stills(frames[:, :, 0])[:, None]

    def decode_to_pixel(self, latent: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        self.latents.append(latent[0].transpose(0, 1).clone())
        return pictures(self.latents[-1])[None]


class Texts(torch.nn.Module):
    """Stands for its text encoder."""

    def forward(self, text_prompts: list[str]) -> dict:
        rows = [features(prompt) for prompt in text_prompts]
        return {"prompt_embeds": torch.stack([F.pad(r, (0, 0, 0, 512 - len(r))) for r in rows])}


class Noise:
    """torch, with noise that was drawn before in the place of what it would draw: of each shot, then of its blocks' steps."""

    def __init__(self, shots: list[list[torch.Tensor]]):
        """shots: of each the noise [frames, channels, height, width] it starts from, then that of each later step."""
        self.starts = iter([drawn[0][None] for drawn in shots])
        blocks = range(0, FILM_FRAMES, FRAMES)
        self.later = iter([z[b : b + FRAMES] for drawn in shots for b in blocks for z in drawn[1:]])

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def randn(self, shape, **_) -> torch.Tensor:
        return next(self.starts).reshape(shape)

    def randn_like(self, like: torch.Tensor) -> torch.Tensor:
        return next(self.later).reshape(like.shape)


def peer_film(checkout: Path, network, noise: Noise) -> list[torch.Tensor]:
    """The latents [channels, frames, height, width] of each shot that its pipeline makes."""
    packages(checkout, "pipeline", "model", "utils")
    unused("flask", "peft", "utils.loss", "utils.debug_option")
    unused("wan.modules.tokenizers", "wan.modules.vae", "wan.modules.t5")
    from pipeline import causal_inference_ar as theirs  # ty: ignore
    from utils import wan_wrapper  # ty: ignore

    from model import base  # ty: ignore

    own = types.SimpleNamespace(from_pretrained=lambda *args, **named: network)
    wan_wrapper.CausalWanModel, base.WanTextEncoder, base.WanVAEWrapper = own, Texts, Vae
    settings = types.SimpleNamespace(
        timestep_shift=8.0,
        denoising_step_list=[1000, 740, 500, 260],
        warp_denoising_step=True,
        num_frame_per_block=FRAMES,
        dynamic_sample_frames=True,
        change_rope=True,
        max_context_frames=SEEN,
        multi_caption=True,
        context_noise=0,
    )
    made = theirs.CausalInferenceArPipeline(settings, "cpu")
    made.d, made.frame_seq_length, theirs.torch = SIZES["dim"] // SIZES["num_heads"], TOKENS, noise
    named = [[[f"shot{n}:{prompt}"]] for n, prompt in enumerate(PROMPTS)]  # as its data set names them
    batch = {"global_captions": [[STORY]], "shots_captions": [named], "shot_flag": list(range(len(PROMPTS)))}
    made.inference(batch)
    return made.vae.latents


def our_film(state, bits: int = 0) -> tuple[Noise, list[torch.Tensor]]:
    """(noise, the latents of each shot) of longshot's film. bits: of its pictures' colours; 0 for all."""
    from longshot.bases.shots import pack, unpack
    from longshot.sample.denoise import Sampling, denoise, noise_of
    from longshot.sample.plan import PlannedShot, autoregressive

    base = our_base(state)
    levels = 2**bits - 1

    def decode(z: torch.Tensor, grid: tuple[int, int, int]) -> np.ndarray:
        frames = pictures(unpack(z, grid, base.patch)[0])
        frames = ((frames + 1) / 2 * levels).round() / levels * 2 - 1 if bits else frames
        return frames.numpy()

    def encode_still(picture: np.ndarray) -> torch.Tensor:
        return pack(stills(torch.from_numpy(picture)[None])[:, :, None], (1, HEIGHT, WIDTH), base.patch)

    base.decode, base.encode_still = decode, encode_still
    base.tokenise = lambda prompt: torch.zeros(len(prompt.split()) + 1).numpy().astype("int64")
    base.encode_text = lambda prompts: [features(prompt) for prompt in prompts]
    grid = (FILM_FRAMES, HEIGHT, WIDTH)
    shots = [
        PlannedShot(n, f"shot {n}", f"[SHOT CUT] {prompt}", grid, (0, str(n), 0))
        for n, prompt in enumerate(PROMPTS, start=1)
    ]
    spec, found = base.spec, {}
    sampling = Sampling(spec.steps, spec.shift, spec.guidance, spec.solver)
    for finished in denoise(base, autoregressive(STORY, shots), sampling):
        found |= finished.latents

    def film(z: torch.Tensor) -> torch.Tensor:
        return unpack(z, grid, base.patch)[0]

    noise = Noise([[film(noise_of(s, 16, k)).transpose(0, 1) for k in range(spec.steps)] for s in shots])
    return noise, [film(found[s.shot]) for s in shots]


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
    noise, film = our_film(state)
    whole = peer(Path(sys.argv[1]), FILM_FRAMES)
    whole.load_state_dict(state)
    made = peer_film(Path(sys.argv[1]), whole, noise)
    off = max(float((a - b).abs().max()) for a, b in zip(made, our_film(state, bits=8)[1], strict=True))
    print(f"control: with pictures of 8 bits the largest difference in the film is {off:.1e}")
    rows += [(f"shot {n} of a film", a, b) for n, (a, b) in enumerate(zip(made, film, strict=True), start=1)]
    return verdict(rows)


if __name__ == "__main__":
    sys.exit(main())
