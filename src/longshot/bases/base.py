"""What longshot asks of a base: a few facts (`Spec`) and a handful of functions (`Base`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, exp, floor
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from longshot.errors import UserError
from longshot.flow import Solver
from longshot.layout import Layout, RopeMode, Visibility
from longshot.lint import Limits
from longshot.model.context import Context
from longshot.scene import SHOT_CUT


def _nearest_sizes(width: int, height: int, w: int, h: int) -> list[tuple[int, int]]:
    """The legal sizes just below and above one that isn't."""
    below, above = ((max(r(width / w), 1) * w, max(r(height / h), 1) * h) for r in (floor, ceil))
    return [below, above] if below != above else [below]


Mode = Literal["joint", "causal", "bidirectional"]


@dataclass(frozen=True)
class MultiShot:
    """How weights that were trained on films of several shots are to be used, where that isn't LCT's way.

    modes: those they were trained for. jump: of rope "timeline", token frames of time before a shot. levels: the noise levels
    of the steps they were distilled for, before the shift, without the last one, 0. block: token frames that are denoised at a
    time; a shot has a multiple of them. history: what a shot sees of earlier ones: "shots", whole ones; "blocks", the last
    blocks of one stream that runs through all shots; "frames", single frames spread over them. Of the last two, history is held
    clean. stream: the VAE decodes all shots as one clip, whose very first latent is a single frame. reads: "own", each shot's
    prompt is a text; "scene", all prompts are one text. between: what stands between the global prompt and a shot's own; {}
    in it is the number of the shot, from 0. takes: what a person may give in the place of a shot or beside one.
    """

    modes: tuple[Mode, ...]
    jump: int = 0
    levels: tuple[float, ...] = ()
    block: int = 1
    history: Literal["shots", "blocks", "frames"] = "shots"
    stream: bool = False
    reads: Literal["own", "scene"] = "own"
    between: str = " "
    takes: Literal["pictures and clips", "clips", "nothing"] = "pictures and clips"


@dataclass(frozen=True)
class Spec:
    """The facts of a base that don't depend on weights.

    size: pixels (width, height) of a frame by default. stride: pixels a token spans in (time, height, width).
    frame_offset: shots have `stride[0] * n + frame_offset` frames. max_frames, max_shots: what it was trained on.
    display_scale: whole-number enlargement of frames written to video files. guidance, steps, shift, solver: good values for
    sampling.
    prompts: how a shot learns what the scene is about. "group": the global prompt is a group of its own, which the shots attend
    to (LCT sec. 3.2). "joined": it is written before each shot's own prompt, since the base was trained on single shots that
    read one text each; then no layout has a group 0. cut: how the prompt of a shot that begins with a cut begins; LCT's mark
    means nothing to weights that were not trained with it. multishot: None for LCT's way with several shots.
    context_sigma, causal_context_sigma: the noise levels at which what is given or finished is best held, under full and under
    context-causal attention.
    last_level: the noise level before 0 in the last step, see `flow.sigma_table`. shifts: where the shift grows with a shot's
    tokens, tokens and the logarithm of the shift at two sizes; `shift` is then that of a shot of the default size.
    """

    name: str
    licence: str
    fps: Fraction
    size: tuple[int, int]
    stride: tuple[int, int, int]
    channels: int
    frame_offset: int
    default_frames: int
    max_frames: int
    max_shots: int
    max_text_tokens: int
    display_scale: int
    guidance: float
    steps: int
    shift: float
    rope: RopeMode
    prompts: Literal["group", "joined"] = "group"
    cut: str = SHOT_CUT
    solver: Solver = "euler"
    multishot: MultiShot | None = None
    context_sigma: float = 0.1
    causal_context_sigma: float = 0.1
    last_level: float = 0.0
    shifts: tuple[tuple[int, float], tuple[int, float]] | None = None

    def held_at(self, visibility: Visibility, said: float | None = None) -> float:
        """The noise level at which history is held: the one that was said, else the best."""
        if said is not None:
            return said
        return self.causal_context_sigma if visibility == "causal" else self.context_sigma

    def shift_at(self, tokens: int) -> float:
        """The shift for a shot of so many tokens."""
        if self.shifts is None:
            return self.shift
        (few, low), (many, high) = self.shifts
        return exp(low + (high - low) * (tokens - few) / (many - few))

    def wording(self, global_prompt: str, prompt: str, shot: int = 1) -> str:
        """What the text encoder reads for a shot. A base's own sign of a cut comes first of all. shot: its number, from 1."""
        if self.prompts == "group":
            return prompt
        cut = self.cut if prompt.startswith(SHOT_CUT) else ""
        between = self.multishot.between.format(shot - 1) if self.multishot else " "
        return cut + f"{global_prompt}{between}{prompt.removeprefix(SHOT_CUT).lstrip()}".strip()

    @property
    def frame_step(self) -> int:
        """Shots have `frame_step * n + first_frames` pixel frames."""
        return self.stride[0] * (self.multishot.block if self.multishot else 1)

    @property
    def first_frames(self) -> int:
        return (self.frame_offset - self.stride[0]) % self.frame_step if self.frame_offset else 0

    def grid(self, frames: int, width: int, height: int) -> tuple[int, int, int]:
        """Tokens along (time, height, width) of a clip. Raises UserError, with the nearest legal values, if it has none."""
        t, h, w = self.stride
        step, first = self.frame_step, self.first_frames
        if frames < self.min_frames or (frames - first) % step:
            low = max(self.min_frames, frames - (frames - first) % step)
            raise UserError(f"{frames} frames; {self.name} needs {step}n+{first}: use {low} or {low + step}")
        if width % w or height % h or min(width, height) < 1:
            near = " or ".join(f"{x}x{y}" for x, y in _nearest_sizes(width, height, w, h))
            raise UserError(f"{width}x{height} pixels; {self.name} needs multiples of {w}x{h}: use {near}")
        return -(-frames // t), height // h, width // w

    @property
    def min_frames(self) -> int:
        """Frames of the shortest clip, which is what an image becomes."""
        return self.first_frames or self.frame_step

    def frames(self, grid: tuple[int, int, int], is_first: bool = False) -> int:
        """Pixel frames of a clip with this token grid. is_first: whether it is a film's first, which begins its stream."""
        if is_first and self.multishot and self.multishot.stream:
            return (grid[0] - 1) * self.stride[0] + 1
        return (grid[0] - (self.frame_offset > 0)) * self.stride[0] + self.frame_offset


def holds_history_clean(spec: Spec) -> bool:
    """Whether a base reads its history clean, block by block or frame by frame, whatever noise level a plan gives it."""
    return spec.multishot is not None and spec.multishot.history != "shots"


def refuse_given(spec: Spec, is_picture: bool, what: str) -> None:
    """UserError for a picture or clip that a base can't take. what: begins the message."""
    takes = spec.multishot.takes if spec.multishot else "pictures and clips"
    if takes == "nothing":
        raise UserError(
            f"{what}: {spec.name} takes no pictures and no clips, since its shots are pieces of one stream of latents"
        )
    if takes == "clips" and is_picture:
        raise UserError(
            f"{what}: {spec.name} takes no pictures: give a clip of {spec.frame_step}n+{spec.first_frames} frames"
        )


@runtime_checkable
class Codec(Protocol):
    """The part of a base that a scene is told with: its facts and its way from pixels to latents."""

    spec: Spec

    def limits(self) -> Limits:
        """What `lint` needs to know to check a scene against this base."""
        ...

    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "video channels"]:
        """The clean latent of a clip. A single frame is an image: a clip of the shortest length that stands still."""
        ...


@runtime_checkable
class Base(Protocol):
    """A single-shot model that longshot runs as a scene model. Latents are rows, see `layout.py`; `v` is eps - z_0."""

    spec: Spec

    def limits(self) -> Limits:
        """What `lint` needs to know to check a scene against this base."""
        ...

    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        """The token ids of a prompt, never truncated."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        """The features of each prompt, independent of the others."""
        ...

    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "video channels"]:
        """The clean latent of a clip. A single frame is an image: a clip of the shortest length that stands still."""
        ...

    def decode(
        self, z: Float[Tensor, "video channels"], grid: tuple[int, int, int]
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """The pixels of a clean latent."""
        ...

    def velocity(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
    ) -> Float[Tensor, "video channels"]:
        """v for every row of z, given each group's noise level and what each scene remembers."""
        ...

    def remember(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
    ) -> tuple[Float[Tensor, "video channels"], list[Context]]:
        """The velocity, and `past` extended by the keys and values of the layout's groups, one context a scene (LCT sec. 3.3)."""
        ...

    def fingerprint(self) -> str:
        """A hash of the weights."""
        ...

    def to(self, device: str | torch.device) -> "Base":
        """This base, with its networks on a device."""
        ...
