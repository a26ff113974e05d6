"""Reads the attributes of a puppet shot back from its pixels, by comparing them with what the renderer would draw.

First the place: every panorama at every offset and pan, with errors cut off so that characters do not count. Then who is
there, people on land and fish on the reef: where an outline fits what differs from the place; which body, pattern and hat
or tail explain its pixels best. Then the motion: what was read is followed through the shot. What fits nothing well enough
is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from longshot.puppets import render as draw
from longshot.puppets.world import (
    CAMERAS,
    COLORS,
    ENVIRONMENTS,
    HATS,
    HEIGHT,
    MAX_OFFSET,
    PATTERNS,
    REEF,
    TIMES,
    WIDTH,
    Acting,
    Character,
    Fish,
    Puppet,
    PuppetShot,
)

# Errors are levels (0..255), a mean over channels, cut off at CAP a pixel. The limits lie between what a mildly
# blurred, shifted, noisy rendering gives and what garbage gives; tests/puppets/test_score.py measures both.
CAP = 48.0
PLACE_MATCHED = 0.33  # share of pixels that must lie near the place (a close-up hides about half of it)
PLACE_NEAR, MAX_SHIFT = 12.0, 16.0
PLACE_MARGIN = 0.35  # by how much another place must fit worse
PERSON_FOUND, PERSON_CLEAR = (
    0.62,
    0.47,
)  # how much of a body's outline differs from the place; less what is beside it
BODY_ERROR, HAT_ERROR = 22.0, 20.0
ARM_GAIN = 3.0  # by how much a raised arm must fit better than a hanging one
MARGIN = {
    "body": 3.0,
    "pattern": 1.5,
    "hat": 1.2,
    "hat_color": 1.5,
    "tail_color": 1.5,
}  # by how much the next value must fit worse


@dataclass(frozen=True)
class PersonReading:
    """What is seen of one person or fish; None is unreadable, and so is the hat of a fish. x: screen x in the first frame."""

    action: str | None
    x: float
    body: str | None = None
    pattern: str | None = None
    hat: str | None = None
    hat_color: str | None = None
    tail_color: str | None = None


@dataclass(frozen=True)
class Reading:
    """What is seen of one shot, people or fish from left to right; None is unreadable."""

    environment: str | None
    time: str | None
    camera: str | None
    pan: int | None
    people: tuple[PersonReading, ...]

    @property
    def readable(self) -> bool:
        """Whether the place and every person's body could be read."""
        return self.environment is not None and all(person.body is not None for person in self.people)

    @property
    def action(self) -> str | None:
        """The action of the leftmost person, None where there is nobody or it can't be read."""
        return self.people[0].action if self.people else None


def _soften(picture: np.ndarray) -> np.ndarray:
    """[..., H, W] blurred by 1-2-1 both ways. Frames and drawings are compared soft: a little blur or half a pixel then
    costs little."""
    edge = np.pad(picture, [(0, 0)] * (picture.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = edge[..., :-2, :] + 2 * edge[..., 1:-1, :] + edge[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


# --- the place --------------------------------------------------------------------------------------------------

_PLACES = [(e, t, c) for e in (*ENVIRONMENTS, REEF) for t in TIMES for c in CAMERAS]
_STEP = 4  # the search starts from every fourth offset
_STARTS = np.arange(-MAX_OFFSET, MAX_OFFSET + 1, _STEP)
_CELL_H, _CELL_W = 4, 6


@cache
def _coarse_places() -> Float32[np.ndarray, "places offsets cells"]:
    """Every panorama at every start, averaged over cells of 4 x 6 pixels."""
    rows = []
    for place in range(len(_PLACES)):
        views = np.stack([_place_view(place, offset) for offset in _STARTS.tolist()])
        rows.append(np.stack([_coarse(view) for view in views]))
    return np.stack(rows)


def _coarse(planes: Float32[np.ndarray, "3 32 48"]) -> Float32[np.ndarray, " cells"]:
    cells = planes.reshape(3, HEIGHT // _CELL_H, _CELL_H, WIDTH // _CELL_W, _CELL_W)
    return cells.mean((2, 4), dtype=np.float32).reshape(-1)


@cache
def _place_planes(place: int) -> Float32[np.ndarray, "3 32 wide"]:
    return np.ascontiguousarray(_soften(draw.panorama(*_PLACES[place]).transpose(2, 0, 1).astype(np.float32)))


def _place_view(place: int, offset: int) -> Float32[np.ndarray, "3 32 48"]:
    start = MAX_OFFSET + draw.PAD + max(-MAX_OFFSET, min(MAX_OFFSET, int(offset)))
    return _place_planes(place)[:, :, start : start + WIDTH]


@dataclass(frozen=True)
class _Place:
    """Which place it is, its offset in the first frame and its pan; `known` says whether it fits at all."""

    index: int
    offset: int
    pan: int
    known: bool

    def view(self, frame: int) -> Float32[np.ndarray, "3 32 48"]:
        return _place_view(self.index, self.offset + self.pan * frame)


def _share_near(frame: Float32[np.ndarray, "3 32 48"], place: Float32[np.ndarray, "3 32 48"]) -> float:
    """The share of pixels that show the place, a small shift of the colours aside."""
    differs = (frame - place).reshape(3, -1)
    visible = np.abs(differs).sum(0) < 3 * 2 * MAX_SHIFT
    if not visible.any():
        return 0.0
    shift = np.clip(np.median(differs[:, visible], axis=1, keepdims=True), -MAX_SHIFT, MAX_SHIFT)
    return float((np.abs(differs - shift).sum(0) / 3 < PLACE_NEAR).mean())


def _find_place(frames: Float32[np.ndarray, "frames 3 32 48"]) -> _Place:
    """The place, offset and pan with the least cut-off error over the first, middle and last frame."""
    last = len(frames) - 1
    at = sorted({0, last // 2, last})
    ends = sorted({0, last})
    costs = []
    for k in ends:
        error = np.abs(_coarse_places() - _coarse(frames[k]))
        costs.append(np.minimum(error, CAP, out=error).mean(-1))
    tries = []  # (cost, place, offset, pan)
    for pan in (0,) if last == 0 else (-1, 0, 1):
        total = np.zeros_like(costs[0])
        for k, cost in zip(ends, costs, strict=True):
            columns = np.rint((_STARTS + pan * k + MAX_OFFSET) / _STEP).astype(int)
            total += cost[:, np.clip(columns, 0, len(_STARTS) - 1)]
        total[:, np.abs(_STARTS + pan * last) > MAX_OFFSET + _STEP] = 1e9
        best = total.argmin(1)
        tries += [(float(total[p, o]), p, int(_STARTS[o]), pan) for p, o in enumerate(best)]
    tries.sort()

    def fit(place: int, offset: int, pan: int) -> tuple[float, int, int, int]:
        cost = 0.0
        for k in at:
            error = np.abs(frames[k] - _place_view(place, offset + pan * k)).sum(0) / 3
            cost += float(np.minimum(error, CAP).sum()) / error.size / len(at)
        return cost, place, offset, pan

    # One try a place and pan, then closer and closer around the best ones.
    seen = {key: fit(*key) for key in [t[1:] for t in tries[:12]]}
    for step, keep in ((2, 6), (1, 3), (1, 1)):
        for _, place, offset, pan in sorted(seen.values())[:keep]:
            for key in ((place, offset - step, pan), (place, offset + step, pan)):
                if key not in seen:
                    seen[key] = fit(*key)
    fits = sorted(seen.values())
    cost, place, offset, pan = fits[0]
    others = [other for other, p, _, _ in fits if _PLACES[p][0] != _PLACES[place][0]]
    near = float(np.mean([_share_near(frames[k], _place_view(place, offset + pan * k)) for k in at]))
    known = near >= PLACE_MATCHED and (not others or others[0] - cost >= PLACE_MARGIN)
    return _Place(place, offset, pan, known)


# --- people -----------------------------------------------------------------------------------------------------

_MAX_LIFT = 4
_BODY_TOP, _HAT_LOW = 17.4, 17.0  # units: where the body's evidence ends and the hat's begins
_REACH = 13.4
Kind = type[Puppet] | type[Fish]
_PATTERNED = [(body, pattern) for body in COLORS for pattern in PATTERNS]


@dataclass(frozen=True)
class _Frame:
    """Window geometry of a camera: a puppet at x, standing on the ground, fills rows 0..h, columns x-reach..x+reach.

    body, crown: the rows that tell of a body, and of a hat or tail.
    """

    top: int  # screen row of the window's first row; may be negative
    h: int
    reach: int
    body: slice
    crown: slice


@cache
def _geometry(kind: Kind, camera: str) -> _Frame:
    ground, scale = draw.GROUND[camera], draw.SCALE[camera]
    top = int(np.floor(ground - 28.4 * scale))
    bottom = min(HEIGHT, int(np.ceil(ground + 0.5)))
    edge = round(ground - _BODY_TOP * scale) - top
    low = round(ground - _HAT_LOW * scale) - top
    rows = slice(0, bottom - top)
    body, crown = (rows, rows) if kind is Fish else (slice(edge, bottom - top), slice(0, low))
    return _Frame(top, bottom - top, int(np.ceil(_REACH * scale)), body, crown)


def _drawn(
    camera: str, facing: int, character: Character, action: str, frame: int, level: int
) -> Float32[np.ndarray, "3 h w"]:
    """A character's window before a backdrop of one grey level."""
    g = _geometry(type(character), camera)
    length = 1 if action == "stand" else 8
    shot = PuppetShot(camera, 0, (Acting(0, action, 24.0, facing, facing),), length, True)
    strip = np.full((length, HEIGHT, WIDTH + 2 * draw.PAD, 3), level, np.uint8)
    draw._draw_people(strip, shot, (character,))
    soft = _soften(strip[frame].transpose(2, 0, 1).astype(np.float32))
    middle = draw.PAD + 24
    rows = soft[:, max(0, g.top) : g.top + g.h, middle - g.reach : middle + g.reach]
    return np.pad(rows, ((0, 0), (max(0, -g.top), 0), (0, 0)), mode="edge")


@cache
def _hidden(camera: str, facing: int, hat: str | None, action: str, frame: int) -> Float32[np.ndarray, "h w"]:
    """How much of the place a puppet, or without a hat a fish, hides: colours don't matter."""
    character = Fish("", "red", "plain", "blue") if hat is None else Puppet("", "red", "plain", hat, "blue")
    black, white = (_drawn(camera, facing, character, action, frame, level) for level in (0, 255))
    return 1 - (white - black).mean(0) / 255


@lru_cache(maxsize=1024)
def _sprite(
    camera: str, facing: int, character: Character, action: str = "stand", frame: int = 0
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "3 h w"]]:
    """How much of the place a character hides, and what it adds: picture = place * (1 - hidden) + added."""
    hat = None if isinstance(character, Fish) else character.hat
    return _hidden(camera, facing, hat, action, frame), _drawn(camera, facing, character, action, frame, 0)


class _Sprites:
    """Sprites of one window as lists of the pixels that matter: keep [n, P], added [3, n, P], where [P]."""

    def __init__(self, pairs, rows: slice, only):
        hidden = np.stack([h[rows] for h, _ in pairs])
        added = np.stack([a[:, rows] for _, a in pairs], axis=1)
        ys, xs = np.nonzero(only(hidden))
        self.where = (ys + rows.start) * _View.STRIDE + xs
        self.keep = np.ascontiguousarray(1 - hidden[:, ys, xs])
        self.added = np.ascontiguousarray(added[:, :, ys, xs])


def _other(color: str) -> str:
    """A colour that isn't this one."""
    return "red" if color != "red" else "blue"


@cache
def _tail(camera: str, facing: int) -> Bool[np.ndarray, "h w"]:
    """Where the colour of a fish's tail shows."""
    red, blue = (_sprite(camera, facing, Fish("", "green", "plain", color))[1] for color in ("red", "blue"))
    return np.abs(red - blue).sum(0) > 100


@cache
def _body_sprites(kind: Kind, camera: str, facing: int) -> _Sprites:
    """8 colours x 3 patterns, where a body hides the place: below a hat, before a tail."""
    rows = _geometry(kind, camera).body
    where = _chess(kind, camera)[rows] if camera != "wide" else np.array(True)
    if kind is Fish:
        where = where & ~_tail(camera, facing)
        bodies: list[Character] = [Fish("", b, pattern, _other(b)) for b, pattern in _PATTERNED]
    else:
        bodies = [Puppet("", b, pattern, "top", _other(b)) for b, pattern in _PATTERNED]
    pairs = [_sprite(camera, facing, character) for character in bodies]
    return _Sprites(pairs, rows, lambda hidden: (hidden.min(0) > 0.5) & where)


@cache
def _crown_sprites(kind: Kind, camera: str, facing: int, body: str) -> _Sprites:
    """On a body of the given colour: 4 hats x 8 colours where any hat may be, or 8 colours of a tail."""
    if kind is Fish:
        fish = [_sprite(camera, facing, Fish("", body, "plain", color)) for color in COLORS]
        return _Sprites(fish, _geometry(kind, camera).crown, lambda hidden: _tail(camera, facing))
    people = [Puppet("", body, "plain", hat, color) for hat in HATS for color in COLORS]
    pairs = [_sprite(camera, facing, puppet) for puppet in people]
    return _Sprites(pairs, _geometry(kind, camera).crown, lambda hidden: hidden.max(0) > 0.05)


def _chess(kind: Kind, camera: str) -> np.ndarray:
    """Every second pixel of a window."""
    g = _geometry(kind, camera)
    return np.indices((g.h, 2 * g.reach)).sum(0) % 2 == 0


@lru_cache(maxsize=256)
def _whole_sprite(camera: str, facing: int, character: Character) -> _Sprites:
    """One character, every second pixel of it."""
    kind = type(character)
    rows = slice(0, _geometry(kind, camera).h)
    return _Sprites(
        [_sprite(camera, facing, character)], rows, lambda hidden: (hidden[0] > 0.5) & _chess(kind, camera)
    )


@cache
def _arm_sprites(camera: str, facing: int, body: str) -> _Sprites:
    """The arm on the facing side hanging, then raised low and high, where that makes a difference."""
    puppet = Puppet("", body, "plain", "cone", _other(body))
    waving = [_sprite(camera, facing, puppet, "wave", frame) for frame in (3, 5)]
    rows = slice(0, _geometry(Puppet, camera).h)
    return _Sprites(
        [_sprite(camera, facing, puppet), *waving], rows, lambda hidden: np.ptp(hidden, axis=0) > 0.35
    )


@cache
def _outline(
    kind: Kind, camera: str, facing: int
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Weights that sum to 1: inside a standing body or a fish, and beside it."""
    g = _geometry(kind, camera)
    inside = _hidden(camera, facing, None if kind is Fish else "top", "stand", 0)[g.body].copy()
    inside[inside < 0.6] = 0
    beside = np.zeros_like(inside)
    for row in range(len(inside)):
        filled = np.flatnonzero(inside[row])
        if len(filled):
            for columns in (slice(max(0, filled[0] - 3), filled[0]), slice(filled[-1] + 1, filled[-1] + 4)):
                beside[row, columns] = 1
    return inside / inside.sum(), beside / max(1.0, beside.sum())


class _View:
    """A frame and its place, padded so that a window fits at every position; plane 6 is 0 outside the picture."""

    MARGIN = 32
    STRIDE = WIDTH + 2 * MARGIN

    def __init__(
        self,
        frame: Float32[np.ndarray, "3 32 48"],
        place: Float32[np.ndarray, "3 32 48"],
        kind: Kind,
        camera: str,
    ):
        m = self.MARGIN
        self.g, self.kind, self.camera = _geometry(kind, camera), kind, camera
        self.planes = np.zeros((7, HEIGHT + 2 * m, self.STRIDE), np.float32)
        self.planes[:3, m:-m, m:-m] = frame
        self.planes[3:6, m:-m, m:-m] = place
        self.planes[6, m:-m, m:-m] = 1
        self.flat = self.planes.reshape(7, -1)

    def errors(self, at: Sequence[tuple[int, int]], sprites: _Sprites) -> Float32[np.ndarray, "positions n"]:
        """The mean cut-off error of every sprite at every (x, lift)."""
        g, m = self.g, self.MARGIN
        base = np.asarray([(m + g.top - lift) * self.STRIDE + m + x - g.reach for x, lift in at])
        seen = self.flat[:, base[:, None] + sprites.where]  # [7, positions, P]
        error = np.zeros((len(at), *sprites.keep.shape), np.float32)
        for c in range(3):
            drawn = seen[3 + c][:, None] * sprites.keep
            drawn += sprites.added[c]
            drawn -= seen[c][:, None]
            error += np.abs(drawn, out=drawn)
        np.minimum(error, 3 * CAP, out=error)
        valid = seen[6]
        return np.einsum("mnp,mp->mn", error, valid) / (3 * np.maximum(valid.sum(-1), 1)[:, None])


def _find_people(view: _View) -> list[int]:
    """The x of everybody: where a body's outline is filled with what is not the place. A fish's depends on where it looks."""
    maps = [_filled(view, *_outline(view.kind, view.camera, facing)) for facing in _facings(view.kind)]
    low, filled, score = maps[0][0], *(np.concatenate([m[k] for m in maps]) for k in (1, 2))
    apart = int(14 * draw.SCALE[view.camera]) if view.camera != "close" else WIDTH
    found: list[int] = []
    while len(found) < 2:
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        if filled[row, column] < PERSON_FOUND or score[row, column] < PERSON_CLEAR:
            break
        found.append(int(column) + low)
        score[:, max(0, column - apart) : column + apart + 1] = -9
    return sorted(found)


def _facings(kind: Kind) -> tuple[int, ...]:
    """The ways to look that give different outlines."""
    return (-1, 1) if kind is Fish else (1,)


def _filled(view: _View, inside: np.ndarray, beside: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The x of the first column, and for every [lift, x] how much of an outline is filled, and that less what is beside it."""
    g, m = view.g, view.MARGIN
    low, high = (3, WIDTH - 3) if view.camera == "wide" else (6, WIDTH - 6)
    first = m + g.top + g.body.start
    area = view.planes[:, first - _MAX_LIFT : first + len(inside), m + low - g.reach : m + high + g.reach]
    differs = np.clip(np.abs(area[:3] - area[3:6]).sum(0) / 80, 0, 1)
    windows = sliding_window_view(differs, inside.shape)  # [lifts from the highest down, positions, h, w]
    seen = sliding_window_view(area[6], inside.shape)
    filled = np.tensordot(windows, inside, 2) / np.maximum(np.tensordot(seen, inside, 2), 0.3)
    return low, filled, filled - 0.5 * np.tensordot(windows, beside, 2)


class _Person:
    """Errors of every body and every hat or tail at the best fit near a position, summed over frames as they come in."""

    def __init__(self, kind: Kind, camera: str):
        self.kind, self.camera = kind, camera
        self.body = np.zeros((len(COLORS), len(PATTERNS)))
        self.crown = np.zeros((1 if kind is Fish else len(HATS), len(COLORS)))
        self.weight = 0.0

    def look(self, view: _View, x: int, lifts: Sequence[int]) -> tuple[int, int, int]:
        """Adds a frame's evidence; returns the fitted x, lift and facing."""
        at = [(x + dx, lift) for dx in (-1, 0, 1) for lift in lifts]
        tables = {
            facing: view.errors(at, _body_sprites(self.kind, self.camera, facing)) for facing in (-1, 1)
        }
        fits = {facing: table.min(1) for facing, table in tables.items()}
        if self.kind is Fish:  # a round body fits well enough the wrong way round; the tail doesn't
            for facing in fits:
                tails = _crown_sprites(Fish, self.camera, facing, "white")
                fits[facing] = fits[facing] + view.errors(at, tails).min(1)
        facing = min(fits, key=lambda f: fits[f].min())
        position = int(fits[facing].argmin())
        errors, (x, lift) = tables[facing][position], at[position]
        body, _ = _PATTERNED[int(errors.argmin())]
        crowns = view.errors(
            [(x, lift + dy) for dy in (-1, 0, 1)], _crown_sprites(self.kind, self.camera, facing, body)
        ).min(0)
        weight = 1 / (float(errors.min()) + 4)
        self.body += weight * errors.reshape(self.body.shape)
        self.crown += weight * crowns.reshape(self.crown.shape)
        self.weight += weight
        return x, lift, facing

    def read(self) -> dict[str, str | None]:
        """The best value of each attribute, or None where nothing fits or two fit alike."""
        body, crown = self.body / self.weight, self.crown / self.weight
        out: dict[str, str | None] = {}
        fits_body, fits_crown = body.min() <= BODY_ERROR, crown.min() <= HAT_ERROR
        tables: list[tuple[str, Sequence[str], np.ndarray, bool]] = [
            ("body", COLORS, body.min(1), fits_body),
            ("pattern", PATTERNS, body.min(0), fits_body),
        ]
        if self.kind is Fish:
            tables.append(("tail_color", COLORS, crown.min(0), fits_crown))
        else:
            tables += [
                ("hat", HATS, crown.min(1), fits_crown),
                ("hat_color", COLORS, crown.min(0), fits_crown),
            ]
        for name, values, table, fits in tables:
            order = np.argsort(table)
            clear = table[order[1]] - table[order[0]] >= MARGIN[name]
            out[name] = values[int(order[0])] if fits and clear else None
        return out

    def likeliest(self) -> Character:
        """What it is most like, readable or not: something to follow through the shot."""
        body, pattern = _PATTERNED[int(self.body.argmin())]
        crowns = [(hat, color) for hat in range(len(self.crown)) for color in COLORS]
        order = [crowns[int(k)] for k in np.argsort(self.crown, axis=None)]
        hat, color = next((h, c) for h, c in order if c != body)
        return (
            Fish("", body, pattern, color)
            if self.kind is Fish
            else Puppet("", body, pattern, HATS[hat], color)
        )


def _follow(view: _View, character: Character, facing: int, x: int, reach: int) -> tuple[int, int]:
    """(x, lift) where the character fits best, at most `reach` pixels from x."""
    xs = [k for k in range(x - reach, x + reach + 1) if 0 <= k <= WIDTH]
    at = [(k, lift) for k in xs for lift in range(-1, _MAX_LIFT)]
    return at[int(view.errors(at, _whole_sprite(view.camera, facing, character))[:, 0].argmin())]


def _arm_raised(view: _View, body: str, x: int, lift: int) -> float:
    """By how many levels a raised arm fits better than hanging arms, on the side where it fits best."""
    gains = []
    for facing in (-1, 1):
        hanging, low, high = view.errors([(x, lift)], _arm_sprites(view.camera, facing, body))[0]
        gains.append(float(hanging - min(low, high)))
    return max(gains)


def read_shot(frames: UInt8[np.ndarray, "frames 32 48 3"]) -> Reading:
    """What can be seen in a shot. Motion (pan, actions) needs at least 4 frames and is None below."""
    pixels = np.ascontiguousarray(_soften(frames.transpose(0, 3, 1, 2).astype(np.float32)))
    place = _find_place(pixels)
    environment, time, camera = _PLACES[place.index]
    if not place.known:
        return Reading(None, None, None, None, ())
    moving = len(frames) >= 4
    first = _View(pixels[0], place.view(0), Fish if environment == REEF else Puppet, camera)
    people = tuple(_read_person(pixels, place, first, x, moving) for x in _find_people(first))
    return Reading(environment, time, camera, place.pan if moving else None, people)


def _read_person(pixels, place: _Place, first: _View, x: int, moving: bool) -> PersonReading:
    person = _Person(first.kind, first.camera)
    x, lift, facing = person.look(first, x, range(-1, 3))
    num_frames = len(pixels)
    if num_frames == 1:
        return PersonReading(**person.read(), action=None, x=float(x))
    character = person.likeliest()
    at = sorted({round(float(k)) for k in np.linspace(0, num_frames - 1, min(num_frames, 8))})
    again = {at[len(at) // 2], at[-1]}
    track, arms, here = [], [], x
    for before, k in zip([0, *at], at, strict=False):
        view = _View(pixels[k], place.view(k), first.kind, first.camera) if k else first
        here, lift = _follow(view, character, facing, here, 2 * (k - before) + 1)
        track.append((k, here + place.pan * k))
        arms.append(_arm_raised(view, character.body, here, lift) if first.kind is Puppet else 0.0)
        if k in again:
            _, _, facing = person.look(view, here, (lift - 1, lift, lift + 1))
    return PersonReading(**person.read(), action=_action(track, arms) if moving else None, x=float(x))


def _action(track: list[tuple[int, int]], arms: list[float]) -> str:
    """Which action a track of (frame, x in the place) and arms is: walking, then waving."""
    frame, x = np.asarray(track, np.float32).T
    speed = float(np.polyfit(frame, x, 1)[0])
    if abs(speed) > 0.5:
        return "walk_right" if speed > 0 else "walk_left"
    if (np.asarray(arms) > ARM_GAIN).mean() >= 0.25:
        return "wave"
    return "stand"
