"""Training scenes out of shards, in the place of drawn puppets: step k of a run is a pure function of (seed, k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from longshot.bases.base import Base, Spec
from longshot.data.latents import base_facts
from longshot.data.loader import Draw, TokenBuckets
from longshot.data.shards import Sample, ShardDataset
from longshot.errors import UserError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class StoredExample:
    """One training scene out of a shard: the latent and grid of each shot, the global prompt ("" for none), a prompt a shot."""

    shots: tuple[tuple[Tensor, Grid], ...]
    global_prompt: str
    prompts: tuple[str, ...]
    truth: None = None

    def latents(self, base: Base) -> list[tuple[Tensor, Grid]]:
        """The clean latent of every shot, on the base's device, and its grid."""
        device = getattr(base, "device")  # noqa: B009 - every base has one
        return [(z.to(device).float(), grid) for z, grid in self.shots]


@dataclass(frozen=True)
class ShardStream:
    """What a step is made of. See `puppets.StreamConfig` for single, image, drop_text and drop_global.

    folder: of the shards; fingerprint: their hash, so that a run goes on with the scenes it began with, wherever they lie.
    budget: the most tokens of a pack. packs: packs a step, over all ranks, which must share them evenly.
    """

    folder: str
    fingerprint: str
    budget: int
    packs: int = 1
    single: float = 0.0
    image: float = 0.1
    drop_text: float = 0.1
    drop_global: float = 0.0

    def steps(self, seed: int, rank: int = 0, num_ranks: int = 1) -> "ShardSteps":
        """A rank's share of every step. Raises UserError when the shards are others, or ranks can't share a step."""
        return ShardSteps(self, seed, rank, num_ranks)


class ShardSteps(Dataset):
    """`steps[k]` is this rank's share of step k's examples, the same for any number of workers and ranks."""

    def __init__(self, config: ShardStream, seed: int, rank: int = 0, num_ranks: int = 1):
        self.config, self.seed, self.rank, self.num_ranks = config, seed, rank, num_ranks
        self.dataset = ShardDataset(config.folder)
        if self.dataset.fingerprint() != config.fingerprint:
            raise UserError(
                f"{config.folder}: holds other scenes than the run began with; use another run folder"
            )
        self.draws(0)

    @cached_property
    def buckets(self) -> TokenBuckets:
        tokens = [entry.tokens for entry in self.dataset.entries]
        return TokenBuckets(tokens, self.seed, self.config.budget, self.config.packs)

    def draws(self, step: int) -> list[Draw]:
        return self.buckets.draws(step, self.rank, self.num_ranks)

    def places(self, step: int) -> Sequence[int]:
        """The place in the step, over all ranks, of each of this rank's examples."""
        return [draw.place for draw in self.draws(step)]

    def __getitem__(self, index: int) -> list[StoredExample]:
        return [
            draw_stored(
                self.dataset[d.scene], np.random.default_rng([self.seed, d.epoch, d.scene]), self.config
            )
            for d in self.draws(index)
        ]


def draw_stored(sample: Sample, rng: np.random.Generator, config: ShardStream) -> StoredExample:
    """A scene as it is trained on this time: whole or one of its shots, some shots as images, with its words or without."""
    shots, grids = sample.record["shots"], [group["grid"] for group in sample.record["groups"][1:]]
    chosen = list(range(len(shots)))
    global_prompt, prompts = sample.record["global_prompt"], [shot["prompt"] for shot in shots]
    if len(shots) == 1 or rng.random() < config.single:
        chosen = [int(rng.integers(len(shots)))]
        global_prompt, prompts = "", [shot["alone"] for shot in shots]
    taken = []
    for k in chosen:
        t, h, w = grids[k]
        is_image = rng.random() < config.image
        name = f"image.{k + 1}" if is_image else f"video.{k + 1}"
        z = sample.tensors[name]
        taken.append((z, (len(z) // (h * w), h, w) if is_image else (t, h, w)))
    chance = rng.random()
    words = tuple(prompts[k] for k in chosen)
    if chance < config.drop_text:
        global_prompt, words = "", ("",) * len(words)
    elif chance < config.drop_text + config.drop_global:
        global_prompt = ""
    return StoredExample(tuple(taken), global_prompt, words)


def check_base(folder: Path, made_for: dict[str, Any], spec: Spec) -> None:
    """Raises UserError, naming the first difference, when latents were made for a base of other sizes."""
    facts = base_facts(spec)
    for name in ("channels", "stride", "fps", "frame_offset"):
        if made_for.get(name) != facts[name]:
            raise UserError(
                f"{folder}: was made for {made_for.get('name')} with {name} {made_for.get(name)}; {spec.name} has "
                f"{facts[name]}. Run `longshot data latents` for this base"
            )
