"""Training scenes of the puppet world, drawn on the fly: step k of a run is a pure function of (seed, stage, k)."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longshot.bases.native import NativeBase
from longshot.errors import UserError
from longshot.puppets.render import render, render_place, render_portrait
from longshot.puppets.words import caption, single_caption
from longshot.puppets.world import (
    ACTIONS,
    CAMERAS,
    WIDTH,
    Acting,
    PuppetScene,
    PuppetShot,
    Theme,
    draw_characters,
    draw_scene,
    theme_of,
)
from longshot.scene import PLACE_PROMPT, identity_prompt


@dataclass(frozen=True)
class Truth:
    """What an example was drawn from.

    stills: for a shot that became an image, which of its frames; None for the others. portrait: the shot, from 0, that is a
    picture of somebody elsewhere, or None.
    """

    scene: PuppetScene
    stills: tuple[int | None, ...]
    portrait: int | None = None


@dataclass(frozen=True)
class Example:
    """One training scene: the frames of each shot, the global prompt ("" for none) and a prompt a shot.

    truth: where the scene comes from the puppet world, for the auxiliary loss of `train/attributes.py`. seen_as: what noisy
    shots show instead of `shots`, the same scene with people who look otherwise; None for the truth.
    """

    shots: tuple[UInt8[np.ndarray, "_ height width 3"], ...]
    global_prompt: str
    prompts: tuple[str, ...]
    truth: Truth | None = None
    seen_as: tuple[UInt8[np.ndarray, "_ height width 3"], ...] | None = None

    def latents(self, base: NativeBase) -> list[tuple[Tensor, tuple[int, int, int]]]:
        """The clean latent of every shot, on the base's device, and its grid."""
        sizes = ((max(len(s), base.spec.min_frames), s.shape[2], s.shape[1]) for s in self.shots)
        return [(base.encode(s), base.spec.grid(*size)) for s, size in zip(self.shots, sizes, strict=True)]

    def evidence(self, base: NativeBase) -> list[Tensor] | None:
        """The latents of `seen_as`, or None."""
        return None if self.seen_as is None else [base.encode(s) for s in self.seen_as]


LONGEST = 4


@dataclass(frozen=True)
class StreamConfig:
    """What a step is made of.

    scenes: examples a step over all ranks. single: share of them that are one shot with one prompt (keeps the base's
    ability, LCT sec. 3.2). shots: range of shots a scene, both ends included. frames: lengths to draw a shot's from.
    reef: chance that an example is of the reef and its fish. takes: chance that a scene is one take, each shot going on without a
    cut. image: chance that a shot is replaced by one of its own frames (what makes image conditions work). drop_text: chance that
    an example loses all its words (for guidance); drop_global: that it loses only its global prompt. portraits: that a scene
    begins with a picture of one of its characters before a plain backdrop, and as often again of its place, as composition is
    given them (LCT sec. 4.3), in either order;
    such a scene has at most `LONGEST` shots besides. misled: that what the noisy shots show contradicts what words and clean
    shots say of people's looks (`train/loop.py`, `noised`).
    """

    scenes: int
    single: float = 0.0
    shots: tuple[int, int] = (1, 1)
    frames: tuple[int, ...] = (8, 8, 12, 16)
    actions: tuple[str, ...] = ACTIONS
    cameras: tuple[str, ...] = CAMERAS
    pan: float = 0.3
    pair: float = 0.5
    reef: float = 0.0
    takes: float = 0.0
    image: float = 0.1
    drop_text: float = 0.1
    drop_global: float = 0.0
    portraits: float = 0.0
    misled: float = 0.0

    def steps(self, seed: int, rank: int = 0, num_ranks: int = 1) -> "PuppetSteps":
        """A rank's share of every step. Raises UserError when there are fewer scenes a step than ranks."""
        if num_ranks > self.scenes:
            raise UserError(
                f"{self.scenes} scenes a step can't be shared by {num_ranks} processes; "
                "use fewer processes, or more scenes a step"
            )
        return PuppetSteps(self, seed, rank, num_ranks)


def draw_example(rng: np.random.Generator, config: StreamConfig) -> Example:
    """One example, rendered and captioned."""
    theme: Theme = "reef" if config.reef and rng.random() < config.reef else "puppets"
    draw = partial(
        draw_scene,
        theme=theme,
        actions=config.actions,
        cameras=config.cameras,
        p_pan=config.pan,
        p_pair=config.pair,
    )
    if config.shots[1] == 1 or rng.random() < config.single:
        scene = draw(rng, 1, config.frames)
        global_prompt, prompts = "", [single_caption(scene, 0, rng)]
    else:
        if rng.random() < config.takes:
            draw = partial(draw, p_continue=1.0, p_empty=0.0)
        scene = draw(rng, int(rng.integers(config.shots[0], config.shots[1] + 1)), config.frames)
        global_prompt, prompts = caption(scene, rng)
    shots = render(scene)
    stills = [int(rng.integers(len(shot))) if rng.random() < config.image else None for shot in shots]
    seen = [shot if k is None else shot[k : k + 1] for shot, k in zip(shots, stills, strict=True)]
    chance = rng.random()
    if chance < config.drop_text:
        global_prompt, prompts = "", [""] * len(prompts)
    elif chance < config.drop_text + config.drop_global:
        global_prompt = ""
    example = Example(tuple(seen), global_prompt, tuple(prompts), Truth(scene, tuple(stills)))
    if 1 < len(seen) <= LONGEST and rng.random() < config.portraits:
        example = _with_pictures(example, rng)
    if rng.random() < config.misled and any(prompts):
        example = replace(example, seen_as=_otherwise(example, scene, rng))
    return example


def _otherwise(
    example: Example, scene: PuppetScene, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "_ height width 3"], ...]:
    """The example's shots blended with what a first guess may hold: other people in their places, its two people changed over,
    or its people once more, fainter, beside themselves."""
    assert example.truth is not None
    share = rng.uniform(0.3, 1.0)
    people = draw_characters(rng, len(scene.characters), theme_of(scene.characters))
    kind = rng.random()
    if kind < 0.3:
        share /= 2
        people, scene = scene.characters, _moved(scene, rng)
    elif kind < 0.65 and len(people) > 1:
        people = scene.characters[::-1]
    pictures = len(example.shots) - len(scene.shots)
    others = render(replace(scene, characters=people))
    stills = example.truth.stills[pictures:]
    others = [shot if k is None else shot[k : k + 1] for shot, k in zip(others, stills, strict=True)]
    blended = [
        np.rint((1 - share) * a + share * b).astype(np.uint8)
        for a, b in zip(example.shots[pictures:], others, strict=True)
    ]
    return (*example.shots[:pictures], *blended)


def _moved(scene: PuppetScene, rng: np.random.Generator) -> PuppetScene:
    """The scene with everybody some pixels to one side, in each shot by itself."""
    shots = []
    for shot in scene.shots:
        far = float(rng.choice((-1, 1)) * rng.uniform(6, 18))
        shots.append(replace(shot, cast=tuple(replace(a, x=a.x + far) for a in shot.cast)))
    return replace(scene, shots=tuple(shots))


def _with_pictures(example: Example, rng: np.random.Generator) -> Example:
    """The scene behind a portrait of one of its people and, as often as not, a picture of its place, in either order."""
    assert example.truth is not None
    scene, stills = example.truth.scene, example.truth.stills
    who, facing = int(rng.integers(len(scene.characters))), int(rng.choice((-1, 1)))
    portrait = PuppetShot("medium", 0, (Acting(who, "stand", WIDTH / 2, facing, facing),), 1, True)
    pictures = [(portrait, render_portrait(scene.characters[who], facing=facing), identity_prompt(who + 1))]
    if rng.random() < 0.5:
        place = PuppetShot("wide", 0, (), 1, True)
        pictures.append((place, render_place(scene.environment, scene.time), PLACE_PROMPT))
        if rng.random() < 0.5:
            pictures.reverse()
    shots, pixels, prompts = zip(*pictures, strict=True)
    worded = any(example.prompts)
    truth = Truth(
        replace(scene, shots=(*shots, *scene.shots)),
        (*(0 for _ in pictures), *stills),
        portrait=shots.index(portrait),
    )
    return Example(
        (*(p[None] for p in pixels), *example.shots),
        example.global_prompt,
        (*(p if worded else "" for p in prompts), *example.prompts),
        truth,
    )


class PuppetSteps(Dataset):
    """`steps[k]` is this rank's share of step k's examples: example i of a step goes to rank i mod num_ranks."""

    def __init__(self, config: StreamConfig, seed: int, rank: int = 0, num_ranks: int = 1):
        self.config, self.seed, self.rank, self.num_ranks = config, seed, rank, num_ranks

    def __getitem__(self, index: int) -> list[Example]:
        return [
            draw_example(np.random.default_rng([self.seed, index, i]), self.config)
            for i in self.places(index)
        ]

    def places(self, step: int) -> Sequence[int]:
        """The place in the step, over all ranks, of each of this rank's examples."""
        return range(self.rank, self.config.scenes, self.num_ranks)


def stream(steps: Dataset, start: int, stop: int, workers: int = 1) -> Iterator[list]:
    """Steps start..stop in order, made ahead by `workers` processes; the examples don't depend on their number."""
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_interrupts_to_the_trainer,
    )
    yield from loader


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    """A terminal sends Ctrl-C to every process of a run; a worker that dies of it would take the step in progress along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
