"""Seconds a denoising step of a pretrained base: longshot against diffusers' own pipeline, with random weights.

    python benchmarks/pretrained.py                                              # a tiny network, on any CPU
    python benchmarks/pretrained.py --base wan2.2-ti2v-5b --size 832x480 --frames 81 --device cuda --compile

Two questions. One shot: `denoise` with guidance against diffusers' `WanPipeline`, the same steps, prompt features given, latents
out. Shot n of a scene: a pass over it with the KV cache of the shots before, against a pass that recomputes them. With
`--compile` both sides run again with diffusers' own `compile_repeated_blocks`. Nothing is downloaded: time doesn't depend on
what the weights are. The text encoder and the VAE are left out, since both sides call the same ones. On a CPU the seconds are
those of the process's own threads, which other processes hardly change.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch
import tyro
from measure import in_turn, machine, ratios, spread, table, verdict

from longshot.bases.wan import TEXT_ROWS, WAN21_1B, WAN22_5B, WanBase
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Sampling, denoise
from longshot.sample.plan import PlannedShot, together

GOAL = 1.0  # longshot's time over diffusers', single shot
TINY = replace(WAN22_5B, name="tiny-wan", channels=16, size=(512, 256))
BASES = {"tiny-wan": TINY, "wan2.2-ti2v-5b": WAN22_5B, "wan2.1-t2v-1.3b": WAN21_1B}
SIZES = {  # heads, head size, hidden width of the MLP, layers, text width
    "tiny-wan": (4, 24, 384, 4, 16),
    "wan2.2-ti2v-5b": (24, 128, 14336, 30, 4096),
    "wan2.1-t2v-1.3b": (12, 128, 8960, 30, 4096),
}


@dataclass(frozen=True)
class Settings:
    base: Literal["tiny-wan", "wan2.2-ti2v-5b", "wan2.1-t2v-1.3b"] = "tiny-wan"
    size: str | None = None
    """pixels of a frame, as WIDTHxHEIGHT; the base's own size if not given"""
    frames: int = 17
    """of every shot, 4n+1"""
    shots: int = 5
    """of the scene whose last shot is timed"""
    words: int = 60
    """tokens of a prompt"""
    steps: int = 4
    runs: int = 5
    device: str = "cpu"
    compile: bool = False
    check: bool = False
    """leave with 1 when longshot is slower than the goal"""


class Worded(WanBase):
    """Wan with prompt features given: its text encoder isn't there."""

    features: Any = None

    def tokenise(self, prompt: str) -> np.ndarray:
        return np.zeros(len(self.features), np.int64)

    def encode_text(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        return [self.features for _ in prompts]


def dtype_of(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def network(settings: Settings) -> Any:
    """Wan's transformer with random weights, the same in every call."""
    from diffusers import WanTransformer3DModel

    heads, dim, mlp, layers, text = SIZES[settings.base]
    channels = BASES[settings.base].channels // 4
    torch.manual_seed(0)
    torch.set_default_dtype(dtype_of(settings.device))
    with torch.device(settings.device):
        made = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=dim,
            in_channels=channels,
            out_channels=channels,
            text_dim=text,
            ffn_dim=mlp,
            num_layers=layers,
            cross_attn_norm=True,
            rope_max_seq_len=1024,
        )
    torch.set_default_dtype(torch.float32)
    return made.eval().requires_grad_(False)


def pipeline(settings: Settings) -> Any:
    """diffusers' own pipeline, without a text encoder, and with a VAE that only says how large its latents are."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

    spec = BASES[settings.base]
    z = spec.channels // 4
    residual: dict[str, Any] = {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
    is_second = spec.stride[1] == 32
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
        in_channels=12 if is_second else 3,
        out_channels=12 if is_second else 3,
        **(residual if is_second else {}),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=spec.shift)
    pipe: Any = WanPipeline(None, None, vae, scheduler, network(settings), expand_timesteps=is_second)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings.device)


def waited(job: Callable[[], object], device: str) -> Callable[[], object]:
    """A job that ends when the device has done it."""

    def run() -> None:
        with torch.no_grad():
            job()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def single_shot(settings: Settings, base: Worded, pipe: Any, size: tuple[int, int]) -> dict[str, Callable]:
    """One shot from noise to latent, with guidance, by either side."""
    grid = base.spec.grid(settings.frames, *size)
    like = {"device": settings.device, "dtype": dtype_of(settings.device)}
    text = torch.zeros(1, TEXT_ROWS, SIZES[settings.base][4], **like)
    text[0, : settings.words] = base.features
    factor = pipe.vae_scale_factor_spatial
    channels = pipe.transformer.config.in_channels
    noise = torch.randn(1, channels, grid[0], size[1] // factor, size[0] // factor, device=settings.device)
    plan = together("", [PlannedShot(1, "shot 1", "a prompt", grid, (0, "1", 0))])
    sampling = Sampling(steps=settings.steps, shift=base.spec.shift, guidance=base.spec.guidance)

    def theirs() -> object:
        return pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            height=size[1],
            width=size[0],
            num_frames=settings.frames,
            num_inference_steps=settings.steps,
            guidance_scale=base.spec.guidance,
            latents=noise,
            output_type="latent",
            return_dict=False,
        )

    def ours() -> object:
        return list(denoise(base, plan, sampling, device=settings.device))

    return {"diffusers": waited(theirs, settings.device), "longshot": waited(ours, settings.device)}


def last_shot(settings: Settings, base: Worded, size: tuple[int, int]) -> dict[str, Callable]:
    """One pass over the last shot of a scene, one branch of guidance, the shots before it recomputed or remembered."""
    grid = base.spec.grid(settings.frames, *size)
    groups = tuple(Group(k, settings.words, grid) for k in range(1, settings.shots + 1))
    past = settings.shots - 1

    def given(layout: Layout) -> tuple:
        z = torch.randn(layout.num_video, base.spec.channels, device=settings.device)
        sigma = torch.full((len(layout.groups),), 0.5, device=settings.device)
        return z, base.features.repeat(len(layout.groups), 1), sigma, layout

    whole = given(Layout.single(*groups, rope=base.spec.rope))
    context = Context()
    with torch.no_grad():
        for k in range(past):
            one = Layout.single(*groups[: k + 1], past=k, rope=base.spec.rope)
            _, (context,) = base.remember(*given(one), "causal", [context])
    alone = given(Layout.single(*groups, past=past, rope=base.spec.rope))
    return {
        "recompute": waited(lambda: base.velocity(*whole, "causal"), settings.device),
        "cache": waited(lambda: base.velocity(*alone, "causal", [context]), settings.device),
    }


def main(settings: Settings) -> int:
    spec = BASES[settings.base]
    size = spec.size
    if settings.size:
        width, _, height = settings.size.partition("x")
        size = int(width), int(height)
    tokens = int(np.prod(spec.grid(settings.frames, *size)))
    print(machine())
    gpu = "" if settings.device == "cpu" else f"{torch.cuda.get_device_name(settings.device)}; "
    print(f"{gpu}diffusers {metadata.version('diffusers')}, {str(dtype_of(settings.device))[6:]}")
    print(
        f"{settings.base}, {size[0]}x{size[1]}, {settings.frames} frames: {tokens:,} tokens a shot; {settings.steps} steps, "
        f"guidance {spec.guidance:g}; {settings.runs} runs in turn, median (min to max)"
    )
    pipe = pipeline(settings)
    base = Worded(_Pipe(network(settings)), replace(spec, size=size, fps=Fraction(spec.fps)))
    base.features = torch.randn(
        settings.words, SIZES[settings.base][4], device=settings.device, dtype=dtype_of(settings.device)
    )
    rows, missed = [], []
    for how in ("eager", "compiled") if settings.compile else ("eager",):
        if how == "compiled":
            for part in (pipe.transformer, base.network):
                part.compile_repeated_blocks()
        for name, jobs in (
            ("one shot, film", single_shot(settings, base, pipe, size)),
            (f"shot {settings.shots}, pass", last_shot(settings, base, size)),
        ):
            clock = time.process_time if settings.device == "cpu" else time.perf_counter
            times = in_turn(jobs, settings.runs, clock=clock)
            (first, slow), (second, fast) = times.items()
            ratio = ratios(fast, slow)
            rows.append((f"{name}, {how}", f"{second} to {first}", spread(slow), spread(fast), spread(ratio)))
            if first == "diffusers" and sorted(ratio)[len(ratio) // 2] > GOAL:
                missed.append(
                    f"{name}, {how}: longshot takes {spread(ratio)} of diffusers' time, not {GOAL:g}"
                )
    print(table(("", "what", "seconds of the latter", "seconds of the former", "ratio"), rows))
    return verdict(missed, settings.check)


@dataclass
class _Pipe:
    """All that a base needs of a pipeline where neither text nor pixels are made."""

    transformer: Any


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
