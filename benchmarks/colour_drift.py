"""What it costs in colour to extend a film from its decoded video instead of from its latents.

    python benchmarks/colour_drift.py [--base tiny] [--extensions 12] [--random-vaes]

A take is extended again and again, each time from the same noise: once every segment's history is the latents as they were made;
then it is what comes back when the history is decoded, kept as bytes or written as an mp4 file, and encoded again. For each
extension: how far the mean colour has gone from that of the first segment (0 to 255, mean over channels), and the RMS difference
of its pixels from those of the same extension made from latents. `--random-vaes` sends one latent through each small random VAE
of tests/bases again and again, without a network: it shows what each way does to a latent, and nothing of colours, which take
trained weights.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import tyro
from measure import machine, table

from longshot.bases import load_base
from longshot.bases.base import Base
from longshot.sample.denoise import Sampling, denoise
from longshot.sample.plan import PlannedShot, autoregressive
from longshot.video import read_frames, write_video

TESTS = Path(__file__).parent.parent / "tests" / "bases"
GLOBAL = "[Character] Character 1: a red puppet with a blue top hat. [Environment] a cafe by day. [Story] A friend waits."
FIRST, ON = "[SHOT CUT] Medium shot. Character 1 stands.", "Character 1 waves."
Back = Callable[[Base, np.ndarray, tuple[int, int, int]], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    base: str = "tiny"
    extensions: int = 12
    seeds: int = 2
    steps: int = 8
    context_sigma: float | None = None
    """of history; the base's own if not given"""
    history: int = 2
    """segments that each new one sees"""
    random_vaes: bool = False
    """measure the random VAEs of the tests instead of a base"""


def as_bytes(base: Base, pixels: np.ndarray, grid: tuple[int, int, int]) -> torch.Tensor:
    return base.encode(pixels)


def as_file(base: Base, pixels: np.ndarray, grid: tuple[int, int, int]) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "segment.mp4", pixels, base.spec.fps)
        return base.encode(read_frames(Path(folder) / "segment.mp4"))


WAYS: dict[str, Back | None] = {"latents": None, "bytes": as_bytes, "mp4 file": as_file}


def extended(base: Base, back: Back | None, seed: int, settings: Settings) -> list[np.ndarray]:
    """The pixels of a take's segments, the first one and its extensions."""
    spec = base.spec
    grid = spec.grid(spec.default_frames, *spec.size)
    sampling = Sampling(settings.steps, spec.shift, spec.guidance, spec.solver)
    history: list[torch.Tensor] = []
    pixels: list[np.ndarray] = []
    for n in range(settings.extensions + 1):
        seen = history[-settings.history :]
        prompts = [ON] * (len(seen) + 1)
        if n == len(seen):
            prompts[0] = FIRST
        shots = [
            PlannedShot(i + 1, f"segment {n}", p, grid, (seed, str(n - len(seen) + i), 0), given=z)
            for i, (p, z) in enumerate(zip(prompts, [*seen, None], strict=True))
        ]
        held_at = spec.held_at("causal", settings.context_sigma)
        plan = autoregressive(GLOBAL, shots, window=len(shots), context_sigma=held_at)
        z = [made for finished in denoise(base, plan, sampling) for made in finished.latents.values()][-1]
        pixels.append(base.decode(z, grid))
        history.append(z if back is None else back(base, pixels[-1], grid))
    return pixels


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


def colour_of(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3).mean(0)


def drift(settings: Settings) -> None:
    base = load_base(settings.base, "causal")
    films = {
        way: [extended(base, back, seed, settings) for seed in range(settings.seeds)]
        for way, back in WAYS.items()
    }
    rows = []
    for n in range(settings.extensions + 1):
        row = [str(n)]
        for way, takes in films.items():
            gone = mean(float(np.abs(colour_of(t[n]) - colour_of(t[0])).mean()) for t in takes)
            row.append(f"{gone:.1f}")
            if way != "latents":
                row.append(
                    f"{mean(rms(t[n], a[n]) for t, a in zip(takes, films['latents'], strict=True)):.1f}"
                )
        rows.append(tuple(row))
    titles = ["extension"]
    for way in films:
        titles += [f"{way}: colour"] + ([f"{way}: RMS"] if way != "latents" else [])
    print(
        f"{machine()}; {settings.base}, {settings.seeds} seeds, {settings.steps} steps, history {settings.history}"
    )
    print(table(titles, rows))


def round_trips(settings: Settings) -> None:
    """One latent through each small random VAE, so many times."""
    sys.path.insert(0, str(TESTS))
    from pipelines import SMALL, saved

    print(f"{machine()}; random weights, {settings.extensions} round trips of one latent through bytes")
    rows = []
    for small in SMALL:
        with tempfile.TemporaryDirectory() as folder:
            base = load_base(str(saved(small, Path(folder))))
        grid = base.spec.grid(base.spec.stride[0] + 1, *small.size)
        start = torch.randn(
            int(np.prod(grid)), base.spec.channels, generator=torch.Generator().manual_seed(0)
        )
        first, z, off, colour = base.decode(start, grid), start, [], []
        for _ in range(settings.extensions):
            z = as_bytes(base, base.decode(z, grid), grid)
            off.append(float((z - start).square().mean().sqrt() / start.square().mean().sqrt()))
            colour.append(float(np.abs(colour_of(base.decode(z, grid)) - colour_of(first)).mean()))
        rows.append((small.name, f"{off[0]:.2f}", f"{off[-1]:.2f}", f"{colour[0]:.1f}", f"{colour[-1]:.1f}"))
    last = settings.extensions
    print(table(["VAE", "latent off, 1", f"latent off, {last}", "colour, 1", f"colour, {last}"], rows))


if __name__ == "__main__":
    asked = tyro.cli(Settings)
    if asked.random_vaes:
        round_trips(asked)
    else:
        drift(asked)
