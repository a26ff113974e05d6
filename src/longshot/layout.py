"""Where every token of a scene is: its shot, its modality and its 3D position.

A `Layout` is a pure function of shot sizes. Masks, rotary positions, per-shot noise, packing and the KV cache all read it;
it holds no pixels and no weights. Several scenes are *packed* end to end into one token sequence (NaViT-style), so scenes of
different sizes need no padding.

Token order: scene by scene, group by group, and in a group its text tokens, then its video tokens in (t, h, w) order
(LCT sec. 3.2: `[text 0][dummy video] [text 1][video 1] ... [text N][video N]`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

ALIGNED_GAP = 8  # positions of time between the videos of two groups, in the rope mode "aligned"
GLOBAL = 0  # the shot id of the group that holds the global prompt
PADDING = -1  # the shot id of padding tokens

RopeMode = Literal["interleaved", "aligned", "anchor", "timeline"]
Visibility = Literal["scene", "causal", "shot"]
VISIBILITIES: tuple[Visibility, ...] = ("scene", "causal", "shot")


@dataclass(frozen=True)
class Group:
    """One text-video pair of a scene: a shot, or the global prompt with its dummy video.

    shot: the id that visibility compares: 0 for the global prompt, 1, 2, ... for the shots of a story.
    text: number of text tokens T_i. grid: video tokens along (time, height, width). at: where on the timeline it begins, for
    the rope mode of that name; None is right after the group before it. phase: radians by which every time angle of its
    tokens is turned besides, which moves a shot away from the others at all frequencies alike (ShotStream: 1/6 a shot).
    """

    shot: int
    text: int
    grid: tuple[int, int, int]
    at: int | None = None
    phase: float = 0.0

    def __post_init__(self):
        if self.shot < 0 or self.text < 0 or len(self.grid) != 3 or min(self.grid) < 0:
            raise ValueError(f"a group needs shot >= 0, text >= 0 and a grid of three sizes >= 0, got {self}")

    @property
    def video(self) -> int:
        """Number of video tokens."""
        t, h, w = self.grid
        return t * h * w

    @property
    def frame_tokens(self) -> int:
        """Number of video tokens at one time."""
        return self.grid[1] * self.grid[2]

    @property
    def tokens(self) -> int:
        return self.text + self.video


def global_group(text: int) -> Group:
    """The group of a global prompt of `text` tokens: its dummy video is one zero token (METHOD, sec. 3, [choice])."""
    return Group(GLOBAL, text, (1, 1, 1))


def positions_of_group(group: Group, offset: int, rope: RopeMode) -> tuple[Int[np.ndarray, "tokens 3"], int]:
    """The (t, h, w) positions of a group that starts at `offset`, and the offset of the group after it.

    interleaved (LCT sec. 3.2.1): text token j lies on the space diagonal at offset + j, video starts at offset + T_i, and the
    next group starts one past the largest coordinate used (the M-RoPE rule).
    aligned: inside a group every token lies to every other as in `interleaved`, but all groups share one frame: video starts at
    (offset, 0, 0), after the end of the diagonal of its text, and the next video `ALIGNED_GAP` after its last token frame. A
    place in the picture then has one position in all shots, and the last frame of the shot before is always equally far away,
    however long the prompts are: what a shot that goes on without a cut copies from.
    anchor: all text lies at the offset, video starts there too, and the next group starts max(T, H, W) later. It spends few
    positions, and a single shot keeps its own coordinates at any offset: the mode to start pretrained bases with.
    timeline: the groups share one timeline and one frame: a video token lies at (at + t, h, w), text at (at, 0, 0), where `at`
    is the group's own, or the offset. A cut may then be a jump in time (LongLive 2.0: 8 a cut, EchoShot: 4, HoloCine: 0, see
    `timeline`), and chosen history stays where it was.
    """
    frames, side = max(group.grid[0], 1), max(group.grid)
    if rope == "interleaved":
        start = offset + group.text
        origin, end = (start, start, start), start + side
    elif rope == "aligned":
        origin, end = (offset, 0, 0), offset + frames + ALIGNED_GAP
    elif rope == "anchor":
        origin, end = (offset, offset, offset), offset + max(side, 1)
    else:
        start = offset if group.at is None else group.at
        origin, end = (start, 0, 0), start + frames
    diagonal = rope in ("interleaved", "aligned")  # text ends where video starts; else all of it lies there
    text = np.arange(-group.text, 0) if diagonal else np.zeros(group.text, np.int64)
    video = np.indices(group.grid).reshape(3, -1).T
    return np.concatenate([text[:, None].repeat(3, axis=1), video]).astype(np.int64) + origin, end


def timeline(groups: Sequence[Group], cuts: Collection[int], jump: int) -> tuple[Group, ...]:
    """The groups with their places: one after the other in time, with a jump before each whose shot id is in `cuts`."""
    placed, at = [], 0
    for group in groups:
        at += jump if group.shot in cuts else 0
        placed.append(replace(group, at=at))
        at += max(group.grid[0], 1)
    return tuple(placed)


@dataclass(frozen=True)
class Tokens:
    """Columns that describe a packed token sequence, one row a token."""

    scene: Int[np.ndarray, " tokens"]
    group: Int[np.ndarray, " tokens"]  # index into `Layout.groups`
    shot: Int[np.ndarray, " tokens"]  # PADDING on padding tokens
    is_text: Bool[np.ndarray, " tokens"]
    position: Int[np.ndarray, "tokens 3"]
    phase: Float[np.ndarray, " tokens"]  # see `Group`

    def __len__(self) -> int:
        return len(self.scene)


@dataclass(frozen=True)
class Span:
    """A half-open run of tokens, `[start, stop)`."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Layout:
    """The groups of one or more scenes, packed.

    scenes: for every scene its groups in story order, those already remembered in a KV cache first.
    past: for every scene how many of its leading groups are remembered: they are keys, never queries, and own no rows in
        latents or text. Empty means none anywhere.
    rope: how positions are handed out, see `positions_of_group`.
    pad: padding tokens appended to queries and keys (to reach a fixed shape); they see and are seen by nothing else.
    """

    scenes: tuple[tuple[Group, ...], ...]
    past: tuple[int, ...] = ()
    rope: RopeMode = "interleaved"
    pad: int = field(default=0)

    def __post_init__(self):
        if not self.past:
            object.__setattr__(self, "past", (0,) * len(self.scenes))
        if len(self.past) != len(self.scenes):
            raise ValueError(f"{len(self.scenes)} scenes but {len(self.past)} counts of past groups")
        for i, (groups, past) in enumerate(zip(self.scenes, self.past, strict=True)):
            if not 0 <= past <= len(groups):
                raise ValueError(f"scene {i} has {len(groups)} groups; {past} of them can't be in the past")
            shots = [g.shot for g in groups]
            if shots != sorted(set(shots)):
                raise ValueError(f"scene {i}: shot ids must rise without repeats, got {shots}")

    @classmethod
    def single(cls, *groups: Group, past: int = 0, rope: RopeMode = "interleaved") -> "Layout":
        """The layout of one scene."""
        return cls((groups,), (past,), rope)

    def without_text(self) -> "Layout":
        """The same scenes as a network sees them whose text is only cross-attended: no text token takes part or has a place."""
        scenes = tuple(tuple(replace(g, text=0) for g in groups) for groups in self.scenes)
        return replace(self, scenes=scenes)

    def one_by_one(self) -> list["Layout"]:
        """The packed scenes as layouts of their own, in order. Raises ValueError for a layout with padding."""
        if self.pad:
            raise ValueError("padding belongs to no scene")
        return [
            Layout((groups,), (past,), self.rope) for groups, past in zip(self.scenes, self.past, strict=True)
        ]

    # -- groups ---------------------------------------------------------------------------------------------------------
    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose tokens are computed (not those in the past), scene after scene. `sigma` has one entry for each."""
        return tuple(g for groups, n in zip(self.scenes, self.past, strict=True) for g in groups[n:])

    @cached_property
    def num_text(self) -> int:
        return sum(g.text for g in self.groups)

    @cached_property
    def num_video(self) -> int:
        return sum(g.video for g in self.groups)

    # -- token columns --------------------------------------------------------------------------------------------------
    def _columns(self, past: bool) -> Tokens:
        rows: list[tuple] = []
        positions = [np.zeros((0, 3), np.int64)]
        computed = 0
        for s, (groups, num_past) in enumerate(zip(self.scenes, self.past, strict=True)):
            offset = 0
            for i, g in enumerate(groups):
                position, offset = positions_of_group(g, offset, self.rope)
                index = -1 if i < num_past else computed
                computed += i >= num_past
                if i < num_past and not past:
                    continue
                rows.append((s, index, g.shot, g.phase, g.text, g.video))
                positions.append(position)
        sizes = [t + v for *_, t, v in rows]
        phases = np.repeat(np.array([r[3] for r in rows], np.float64), sizes)

        def column(values, padding):
            return np.concatenate(
                [np.repeat(np.asarray(values, np.int64), sizes), np.full(self.pad, padding, np.int64)]
            )

        is_text = [np.r_[np.ones(t, bool), np.zeros(v, bool)] for *_, t, v in rows]
        return Tokens(
            scene=column([r[0] for r in rows], PADDING),
            group=column([r[1] for r in rows], PADDING),
            shot=column([r[2] for r in rows], PADDING),
            is_text=np.concatenate([*is_text, np.zeros(self.pad, bool)]),
            position=np.concatenate([*positions, np.zeros((self.pad, 3), np.int64)]),
            phase=np.concatenate([phases, np.zeros(self.pad)]),
        )

    @cached_property
    def queries(self) -> Tokens:
        """The tokens that are computed, in order."""
        return self._columns(past=False)

    @cached_property
    def keys(self) -> Tokens:
        """The tokens that can be attended to: each scene's remembered groups, then its computed ones."""
        return self._columns(past=True) if any(self.past) else self.queries

    @cached_property
    def group_of_video(self) -> Int[np.ndarray, " video"]:
        """For every video token, the index of its group in `groups`."""
        return np.repeat(np.arange(len(self.groups)), [g.video for g in self.groups])

    @cached_property
    def group_of_text(self) -> Int[np.ndarray, " text"]:
        return np.repeat(np.arange(len(self.groups)), [g.text for g in self.groups])

    @cached_property
    def interleave(self) -> Int[np.ndarray, " tokens"]:
        """Where each token of the sequence comes from in `concat([all text, all video])`; padding has no entry."""
        is_text = self.queries.is_text[: len(self.queries) - self.pad]
        source = np.empty(len(is_text), np.int64)
        source[is_text] = np.arange(self.num_text)
        source[~is_text] = self.num_text + np.arange(self.num_video)
        return source

    # -- spans ----------------------------------------------------------------------------------------------------------
    @cached_property
    def group_spans(self) -> tuple[Span, ...]:
        """The query tokens of each entry of `groups`."""
        stops = np.cumsum([g.tokens for g in self.groups], dtype=np.int64)
        return tuple(
            Span(int(stop) - g.tokens, int(stop)) for g, stop in zip(self.groups, stops, strict=True)
        )

    @cached_property
    def video_spans(self) -> tuple[Span, ...]:
        """The rows of each entry of `groups` in the latents `z` [video, channels]."""
        stops = np.cumsum([g.video for g in self.groups], dtype=np.int64)
        return tuple(Span(int(stop) - g.video, int(stop)) for g, stop in zip(self.groups, stops, strict=True))

    def last_frame(self, group: int) -> slice:
        """The rows of a group's last token frame in the latents; `group` is an index into `groups`."""
        stop = self.video_spans[group].stop
        return slice(stop - self.groups[group].frame_tokens, stop)

    def blocks(self, visibility: Visibility) -> list[tuple[Span, Span]]:
        """Attention as a list of (query span, key span) in which every query sees every key: no mask is needed.

        `scene` gives one block a scene, `causal` one a group whose keys are a growing prefix, `shot` one a group.
        """
        blocks: list[tuple[Span, Span]] = []
        query = key = 0
        for groups, num_past in zip(self.scenes, self.past, strict=True):
            scene_key = key
            key += sum(g.tokens for g in groups[:num_past])
            new = sum(g.tokens for g in groups[num_past:])
            if visibility == "scene":
                blocks.append((Span(query, query + new), Span(scene_key, key + new)))
            else:
                start, own = query, key
                for g in groups[num_past:]:
                    first = scene_key if visibility == "causal" else own
                    blocks.append((Span(start, start + g.tokens), Span(first, own + g.tokens)))
                    start, own = start + g.tokens, own + g.tokens
            query, key = query + new, key + new
        return [(q, k) for q, k in blocks if q.stop > q.start]

    def visible(self, visibility: Visibility) -> Bool[np.ndarray, "queries keys"]:
        """The dense mask, straight from the predicate on ids: the slow reference of `blocks`.

        `scene`: same scene; `causal`: and key shot <= query shot; `shot`: and key shot == query shot. Padding sees itself
        (so that its softmax is finite) and nothing sees it.
        """
        q, k = self.queries, self.keys
        seen = (q.scene[:, None] == k.scene[None]) & (q.scene != PADDING)[:, None]
        if visibility == "causal":
            seen &= k.shot[None] <= q.shot[:, None]
        elif visibility == "shot":
            seen &= k.shot[None] == q.shot[:, None]
        if self.pad:
            tail = np.arange(1, self.pad + 1)
            seen[-tail, -tail] = True
        return seen
