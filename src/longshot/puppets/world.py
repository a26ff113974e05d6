"""What can exist in the puppet world, and how a scene is drawn from a seed.

It has two themes: people in eight places on land, and fish on a reef.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

WIDTH, HEIGHT, FPS = 48, 32, 8

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (216, 38, 42),
    "orange": (247, 132, 22),
    "yellow": (253, 218, 44),
    "green": (38, 166, 74),
    "blue": (44, 104, 232),
    "purple": (130, 58, 180),
    "pink": (252, 142, 196),
    "white": (246, 246, 242),
}
COLORS = tuple(PALETTE)
PATTERNS = ("plain", "stripes", "spots")
HATS = ("top", "cone", "beanie", "brim")
ENVIRONMENTS = ("meadow", "beach", "forest", "desert", "snow", "city", "cafe", "bedroom")
REEF = "reef"
TIMES = ("day", "dusk", "night")
CAMERAS = ("wide", "medium", "close")
ACTIONS = ("stand", "walk_left", "walk_right", "wave")
SWIMMING = ("stand", "walk_left", "walk_right")  # a fish floats, or swims to a side
NAMES = ("Mia", "Ben", "Ada", "Tom", "Lily", "Max", "Ella", "Sam", "Nora", "Leo", "Anna", "Jack")

WALK_SPEED = 1.0  # pixels a frame, and the pan's speed too: a walk with a pan its way is a tracking shot
MAX_OFFSET = 40  # the panorama reaches this many pixels to either side of its middle

Theme = Literal["puppets", "reef"]

# Where characters may start (x of the feet, of a fish its middle, pixels), where they may go, and how near two may come, for
# each camera.
PLACES = {"wide": (10.0, 24.0, 38.0), "medium": (13.0, 24.0, 35.0), "close": (19.0, 24.0, 29.0)}
BOUNDS = {"wide": (7.0, 41.0), "medium": (9.0, 39.0), "close": (15.0, 33.0)}
APART = {"wide": 15.0, "medium": 18.0, "close": 48.0}


@dataclass(frozen=True)
class Puppet:
    """One person. Two puppets with the same four attributes look the same; the name is for captions only."""

    LOOK: ClassVar = ("body", "hat", "hat_color", "pattern")

    name: str
    body: str
    pattern: str
    hat: str
    hat_color: str


@dataclass(frozen=True)
class Fish:
    """One fish, as `Puppet`."""

    LOOK: ClassVar = ("body", "tail_color", "pattern")

    name: str
    body: str
    pattern: str
    tail_color: str


Character = Puppet | Fish


def look(character: Character) -> dict[str, str]:
    """What a character looks like: its attributes but for the name."""
    return {name: getattr(character, name) for name in character.LOOK}


@dataclass(frozen=True)
class Acting:
    """What one character does in a shot: `who` indexes the scene's characters (0-based, `Character who+1`)."""

    who: int
    action: str
    x: float  # screen x of the feet at the shot's first frame
    facing: int  # -1 left, +1 right
    facing_before: int  # where it looked when the shot began; differs from `facing` only in a continued take


@dataclass(frozen=True)
class PuppetShot:
    """One shot: `pan` is -1, 0 or +1 (camera to the left or right), `offset` the panorama's start in pixels."""

    camera: str
    pan: int
    cast: tuple[Acting, ...]
    frames: int
    cut: bool
    offset: int = 0


@dataclass(frozen=True)
class PuppetScene:
    """Shots that share characters, a place and a time of day."""

    characters: tuple[Character, ...]
    environment: str
    time: str
    shots: tuple[PuppetShot, ...]


def walk_direction(action: str) -> int:
    """-1, 0 or +1: which way an action moves a person."""
    return {"walk_left": -1, "walk_right": 1}.get(action, 0)


def screen_x(acting: Acting, shot: PuppetShot, frame: float) -> float:
    """Where a person's feet are on the screen at a frame; `frame = shot.frames` is the state the next shot starts from."""
    return acting.x + (walk_direction(acting.action) - shot.pan) * WALK_SPEED * frame


def is_legal(shot: PuppetShot) -> bool:
    """Whether everybody stays in the picture, apart from each other, and the pan stays on the panorama."""
    low, high = BOUNDS[shot.camera]
    for frame in (0, shot.frames):
        if abs(shot.offset + shot.pan * frame) > MAX_OFFSET:
            return False
        xs = [screen_x(acting, shot, frame) for acting in shot.cast]
        if any(not low <= x <= high for x in xs):
            return False
        if any(b - a < APART[shot.camera] for a, b in pairwise(xs)):  # the cast is listed left to right
            return False
    return True


def _draw_character(rng: np.random.Generator, theme: Theme, others: Sequence[Character]) -> Character:
    """A random character of another body colour and name than the others; its hat or tail never has the colour of its body."""
    body = str(rng.choice([c for c in COLORS if all(c != o.body for o in others)]))
    name = str(rng.choice([n for n in NAMES if all(n != o.name for o in others)]))
    pattern = str(rng.choice(PATTERNS))
    hat = str(rng.choice(HATS)) if theme == "puppets" else None
    color = str(rng.choice([c for c in COLORS if c != body]))
    return Fish(name, body, pattern, color) if hat is None else Puppet(name, body, pattern, hat, color)


def theme_of(characters: Sequence[Character]) -> Theme:
    """Which theme characters are of."""
    return "reef" if any(isinstance(c, Fish) for c in characters) else "puppets"


def draw_characters(rng: np.random.Generator, count: int, theme: Theme = "puppets") -> tuple[Character, ...]:
    """`count` puppets, or fish, with different names and body colours."""
    characters: list[Character] = []
    for _ in range(count):
        characters.append(_draw_character(rng, theme, characters))
    return tuple(characters)


def draw_scene(
    rng: np.random.Generator,
    num_shots: int,
    frames: Sequence[int] = (8,),
    *,
    theme: Theme = "puppets",
    characters: Sequence[Character] | None = None,
    environment: str | None = None,
    time: str | None = None,
    p_pair: float = 0.5,
    p_two: float = 0.4,
    p_empty: float = 0.08,
    p_continue: float = 0.25,
    p_pan: float = 0.3,
    cameras: Sequence[str] = CAMERAS,
    actions: Sequence[str] = ACTIONS,
) -> PuppetScene:
    """A random scene of `num_shots` shots whose lengths are drawn from `frames`.

    p_pair: the scene has two characters (unless `characters` is given); p_two: a shot of such a scene shows
    both; p_empty: a shot shows nobody; p_continue: a shot continues the one before it; p_pan: the camera pans. Of `actions`
    fish do those of `SWIMMING`.
    """
    if characters is None:
        characters = draw_characters(rng, 2 if rng.random() < p_pair else 1, theme)
    if theme == "reef":
        actions, environment = [a for a in actions if a in SWIMMING], environment or REEF
    shots: list[PuppetShot] = []
    for _ in range(num_shots):
        length = int(rng.choice(frames))
        before = shots[-1] if shots else None
        if before is not None and before.cast and rng.random() < p_continue:
            shots.append(_draw_continuation(rng, before, length, p_pan, actions))
        else:
            shots.append(_draw_cut(rng, len(characters), length, p_two, p_empty, p_pan, cameras, actions))
    return PuppetScene(
        characters=tuple(characters),
        environment=environment or str(rng.choice(ENVIRONMENTS)),
        time=time or str(rng.choice(TIMES, p=(0.5, 0.25, 0.25))),
        shots=tuple(shots),
    )


def _draw_pan(rng: np.random.Generator, p_pan: float) -> int:
    return int(rng.choice((-1, 1))) if rng.random() < p_pan else 0


def _draw_cut(
    rng: np.random.Generator,
    num_characters: int,
    frames: int,
    p_two: float,
    p_empty: float,
    p_pan: float,
    cameras: Sequence[str],
    actions: Sequence[str],
) -> PuppetShot:
    """A shot after a cut. The first try that is legal is taken; the last resort is people who stand still.

    Who is alone walks in from the side, or stands in the middle and looks right, or elsewhere and looks to the middle; two
    begin on either side and look at each other. `words` says what differs from that, so a prompt leaves little open.
    """
    empty = num_characters == 0 or rng.random() < p_empty
    two = not empty and num_characters > 1 and rng.random() < p_two
    roomy = [c for c in cameras if c != "close"] or ["wide"]
    camera = str(rng.choice(roomy if empty or two else list(cameras)))
    if empty:
        return PuppetShot(camera, _draw_pan(rng, max(p_pan, 0.5 if p_pan > 0 else 0.0)), (), frames, True)
    who = [int(k) for k in rng.permutation(num_characters)[: 2 if two else 1]]
    left, middle, right = PLACES[camera]
    for attempt in range(64):
        still = attempt == 63
        cast = []
        for place, k in enumerate(who):
            action = "stand" if still else str(rng.choice(actions))
            if two:
                x = (left, right)[place]
            elif walk_direction(action):
                x = left if walk_direction(action) > 0 else right
            else:
                x = float(rng.choice((left, middle, middle, right)))
            toward = 1 if x == left else -1 if x == right else int(rng.choice((-1, 1), p=(0.3, 0.7)))
            facing = walk_direction(action) or toward
            cast.append(Acting(k, action, x, facing, facing))
        shot = PuppetShot(camera, 0 if still else _draw_pan(rng, p_pan), tuple(cast), frames, True)
        if is_legal(shot):
            return shot
    raise AssertionError("people who stand at their places are always legal")


def _draw_continuation(
    rng: np.random.Generator, before: PuppetShot, frames: int, p_pan: float, actions: Sequence[str]
) -> PuppetShot:
    """The next event of a take: it starts from the exact end state of `before`; mostly, and where that is legal, everybody does
    something else, and now and then goes on."""
    start = replace(before, frames=frames, cut=False, offset=before.offset + before.pan * before.frames)
    goes_on = rng.random() < 0.25
    for attempt in range(64):
        still = attempt == 63
        cast = []
        for acting in before.cast:
            others = [a for a in actions if goes_on or a != acting.action] or list(actions)
            action = "stand" if still else str(rng.choice(others))
            facing = walk_direction(action) or acting.facing
            cast.append(
                Acting(acting.who, action, screen_x(acting, before, before.frames), facing, acting.facing)
            )
        shot = replace(start, cast=tuple(cast), pan=0 if still else _draw_pan(rng, p_pan))
        if is_legal(shot):
            return shot
    raise AssertionError("people who stand where a legal shot left them are always legal")
