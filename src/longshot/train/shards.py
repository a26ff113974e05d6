"""Training scenes out of shards, in the place of drawn puppets: step k of a run is a pure function of (seed, k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from longshot.bases import text_identity
from longshot.bases.base import Base, Spec
from longshot.data.latents import base_facts
from longshot.data.loader import Draw, TokenBuckets
from longshot.data.shards import Sample, ShardDataset
from longshot.errors import UserError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class StoredExample:
    """One training scene out of a shard: the latent and grid of each shot, the global prompt ("" for none), a prompt a shot.

    texts: the stored features of what a text encoder reads for each shot; None where it is to read the prompts.
    """

    shots: tuple[tuple[Tensor, Grid], ...]
    global_prompt: str
    prompts: tuple[str, ...]
    truth: None = None
    texts: tuple[Tensor, ...] | None = None

    def latents(self, base: Base) -> list[tuple[Tensor, Grid]]:
        """The clean latent of every shot, on the base's device, and its grid."""
        device = getattr(base, "device")  # noqa: B009 - every base has one
        return [(z.to(device).float(), grid) for z, grid in self.shots]


@dataclass(frozen=True)
class ShardStream:
    """What a step is made of. See `puppets.StreamConfig` for single, image, drop_text and drop_global.

    folder: of the shards; fingerprint: their hash, so that a run goes on with the scenes it began with, wherever they lie.
    budget: the most tokens of a pack. packs: packs a step, over all ranks, which must share them evenly. features: the identity
    of the text encoder whose stored features stand for the prompts; None where prompts are read.
    """

    folder: str
    fingerprint: str
    budget: int
    packs: int = 1
    single: float = 0.0
    image: float = 0.1
    drop_text: float = 0.1
    drop_global: float = 0.0
    features: str | None = None

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
    kind, global_prompt = "text", sample.record["global_prompt"]
    prompts = [shot["prompt"] for shot in shots]
    if len(shots) == 1 or rng.random() < config.single:
        chosen = [int(rng.integers(len(shots)))]
        kind, global_prompt, prompts = "alone", "", [shot["alone"] for shot in shots]
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
        kind, global_prompt, words = "none", "", ("",) * len(words)
    elif chance < config.drop_text + config.drop_global:
        kind = "bare" if kind == "text" and global_prompt else kind
        global_prompt = ""
    if config.features is None:
        return StoredExample(tuple(taken), global_prompt, words)
    names = ["none" if kind == "none" else f"{kind}.{k + 1}" for k in chosen]
    if missing := [name for name in names if name not in sample.tensors]:
        raise UserError(
            f"{config.folder}: scene {sample.key} has no features {missing[0]}; run `longshot data latents` again"
        )
    texts = tuple(sample.tensors[name] for name in names)
    return StoredExample(tuple(taken), global_prompt, words, texts=texts)


def check_base(folder: Path, made_for: dict[str, Any], spec: Spec) -> None:
    """Raises UserError, naming the first difference, when latents were made for a base of other sizes."""
    facts = base_facts(spec)
    for name in ("channels", "stride", "fps", "frame_offset"):
        if made_for.get(name) != facts[name]:
            raise UserError(
                f"{folder}: was made for {made_for.get('name')} with {name} {made_for.get(name)}; {spec.name} has "
                f"{facts[name]}. Run `longshot data latents` for this base"
            )


def features_for(folder: Path, made_for: dict[str, Any], base: str, spec: Spec) -> str | None:
    """The identity of the text encoder whose features, stored in shards, serve a base; None where they hold none of a frozen one.

    base: its name. Raises UserError where they were made by another encoder, or of prompts worded otherwise.
    """
    stored = made_for.get("text")
    own = None if stored is None else text_identity(base)
    if own is None:
        return None
    facts = base_facts(spec)
    advice = (
        "Run `longshot data latents` for this base, or with `text: prompts` to have training read the prompts"
    )
    if stored != own:
        raise UserError(
            f"{folder}: its text features were made by another text encoder ({stored}) than that of {spec.name} ({own}). {advice}"
        )
    for name in ("prompts", "cut"):
        if made_for.get(name) != facts[name]:
            theirs = made_for.get(name)
            raise UserError(
                f"{folder}: its text features were made with {name} {theirs!r}; {spec.name} has {facts[name]!r}. {advice}"
            )
    return own
