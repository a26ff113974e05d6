"""Reads the attributes of a puppet shot back from its pixels, by comparing them with what the renderer would draw.

First the place: every panorama at every offset and pan, with errors cut off so that people do not count. Then the
people: where a puppet's outline fits what differs from the place; which body, pattern and hat explain its pixels
best. Then the motion: the puppet that was read is followed through the shot. What fits nothing well enough is None,
never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Float32, UInt8
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
    TIMES,
    WIDTH,
    Acting,
    Puppet,
    PuppetShot,
)

# Errors are levels (0..255), a mean over channels, cut off at CAP a pixel. The limits lie between what a mildly
# blurred, shifted, noisy rendering gives and what garbage gives; tests/puppets/test_score.py measures both.
CAP = 48.0
PLACE_MATCHED = 0.30  # share of pixels that must lie near the place (a close-up hides about half of it)
PLACE_NEAR = 26.0
PLACE_MARGIN = 0.35  # by how much another place must fit worse
PERSON_FOUND = 0.50  # how much of a puppet's outline must be filled with something that is not the place
BODY_ERROR, HAT_ERROR = 26.0, 27.0
MARGIN = 0.6  # by how much the next best value must fit worse


@dataclass(frozen=True)
class PersonReading:
    """What is seen of one person; None is unreadable. x: screen x of the feet in the first frame."""

    body: str | None
    pattern: str | None
    hat: str | None
    hat_color: str | None
    action: str | None
    x: float


@dataclass(frozen=True)
class Reading:
    """What is seen of one shot, people from left to right; None is unreadable."""

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


# --- the place --------------------------------------------------------------------------------------------------

_PLACES = [(e, t, c) for e in ENVIRONMENTS for t in TIMES for c in CAMERAS]
_OFFSETS = np.arange(-MAX_OFFSET, MAX_OFFSET + 1)
_CELL_H, _CELL_W = 4, 6


@cache
def _coarse_places() -> Float32[np.ndarray, "places offsets cells"]:
    """Every panorama at every offset, averaged over cells of 4 x 6 pixels."""
    rows = []
    for place in _PLACES:
        wide = draw.panorama(*place)[:, draw.PAD : draw.PAD + WIDTH + 2 * MAX_OFFSET].astype(np.float32)
        views = sliding_window_view(wide, WIDTH, axis=1)  # [H, offsets, 3, W]
        cells = views.reshape(HEIGHT // _CELL_H, _CELL_H, len(_OFFSETS), 3, WIDTH // _CELL_W, _CELL_W).mean(
            (1, 5)
        )
        rows.append(cells.transpose(1, 0, 3, 2).reshape(len(_OFFSETS), -1))
    return np.stack(rows)


def _coarse(frame: Float32[np.ndarray, "32 48 3"]) -> Float32[np.ndarray, " cells"]:
    return frame.reshape(HEIGHT // _CELL_H, _CELL_H, WIDTH // _CELL_W, _CELL_W, 3).mean((1, 3)).reshape(-1)


def _place_view(place: int, offset: int) -> UInt8[np.ndarray, "32 48 3"]:
    start = MAX_OFFSET + draw.PAD + int(np.clip(offset, -MAX_OFFSET, MAX_OFFSET))
    return draw.panorama(*_PLACES[place])[:, start : start + WIDTH]


@dataclass(frozen=True)
class _Place:
    """Which place it is, its offset in the first frame and its pan; `known` says whether it fits at all."""

    index: int
    offset: int
    pan: int
    known: bool

    def view(self, frame: int) -> UInt8[np.ndarray, "32 48 3"]:
        return _place_view(self.index, self.offset + self.pan * frame)


def _find_place(frames: Float32[np.ndarray, "frames 32 48 3"]) -> _Place:
    """The place, offset and pan with the least cut-off error over the first, middle and last frame."""
    last = len(frames) - 1
    at = sorted({0, last // 2, last})
    table = _coarse_places()[:, ::2]  # every second offset is enough to start from
    costs = []
    for k in at:
        error = np.abs(table - _coarse(frames[k]))
        costs.append(np.minimum(error, CAP, out=error).mean(-1))
    offsets = _OFFSETS[::2]
    tries = []  # (cost, place, offset, pan)
    for pan in (0,) if last == 0 else (-1, 0, 1):
        total = np.zeros_like(costs[0])
        for k, cost in zip(at, costs, strict=True):
            columns = np.clip(np.rint((offsets + pan * k + MAX_OFFSET) / 2).astype(int), 0, len(offsets) - 1)
            total += cost[:, columns]
        total[:, np.abs(offsets + pan * last) > MAX_OFFSET + 2] = 1e9
        best = total.argmin(1)
        tries += [(float(total[p, o]), p, int(offsets[o]), pan) for p, o in enumerate(best)]
    tries.sort()

    def cost_of(place: int, offset: int, pan: int) -> tuple[float, float]:
        views = np.stack([_place_view(place, offset + pan * k) for k in at]).astype(np.float32)
        error = np.abs(frames[at] - views).mean(-1)
        return float(np.minimum(error, CAP).mean()), float((error < PLACE_NEAR).mean())

    fine = []
    for _, place, offset, pan in tries[:10]:
        fine += [(*cost_of(place, o, pan), place, o, pan) for o in (offset - 1, offset, offset + 1)]
    fine.sort()
    cost, near, place, offset, pan = fine[0]
    others = [c for c, _, p, _, _ in fine if _PLACES[p][0] != _PLACES[place][0]]
    known = near >= PLACE_MATCHED and (not others or others[0] - cost >= PLACE_MARGIN)
    return _Place(place, offset, pan, known)


# --- people -----------------------------------------------------------------------------------------------------

_MAX_LIFT = 8
_BODY_TOP, _HAT_LOW = 17.4, 17.0  # units: where the body's evidence ends and the hat's begins
_REACH = 10.8


@dataclass(frozen=True)
class _Frame:
    """Window geometry of a camera: a puppet at x, standing on the ground, fills rows 0..h, columns x-reach..x+reach."""

    top: int  # screen row of the window's first row; may be negative
    h: int
    reach: int
    body: slice  # rows
    hat: slice


@cache
def _geometry(camera: str) -> _Frame:
    ground, scale = draw.GROUND[camera], draw.SCALE[camera]
    top = int(np.floor(ground - 28.4 * scale))
    bottom = min(HEIGHT, int(np.ceil(ground + 0.5)))
    edge = int(round(ground - _BODY_TOP * scale)) - top
    low = int(round(ground - _HAT_LOW * scale)) - top
    return _Frame(top, bottom - top, int(np.ceil(_REACH * scale)), slice(edge, bottom - top), slice(0, low))


@cache
def _sprite(
    camera: str, facing: int, puppet: Puppet
) -> tuple[Float32[np.ndarray, "h w 1"], Float32[np.ndarray, "h w 3"]]:
    """How much of the place a standing puppet hides, and what it adds: picture = place * (1 - hidden) + added."""
    g = _geometry(camera)
    shot = PuppetShot(camera, 0, (Acting(0, "stand", 24.0, facing, facing),), 1, True)
    pictures = []
    for level in (0, 255):
        strip = np.full((1, HEIGHT, WIDTH + 2 * draw.PAD, 3), level, np.uint8)
        draw._draw_people(strip, shot, (puppet,))
        middle = draw.PAD + 24
        rows = strip[0, max(0, g.top) : g.top + g.h, middle - g.reach : middle + g.reach].astype(np.float32)
        pictures.append(np.pad(rows, ((max(0, -g.top), 0), (0, 0), (0, 0)), mode="edge"))
    hidden = 1 - (pictures[1] - pictures[0]).mean(-1, keepdims=True) / 255
    return hidden, pictures[0]


@cache
def _body_sprites(camera: str, facing: int):
    """[8 colours * 3 patterns, h, w, 1 and 3] below the hat."""
    g = _geometry(camera)
    pairs = [
        _sprite(camera, facing, Puppet("", body, pattern, "top", "red" if body != "red" else "blue"))
        for body in COLORS
        for pattern in PATTERNS
    ]
    return np.stack([h[g.body] for h, _ in pairs]), np.stack([a[g.body] for _, a in pairs])


@cache
def _hat_sprites(camera: str, facing: int, body: str):
    """[4 shapes * 8 colours, h, w, 1 and 3] of the hat's rows above a head of the given colour."""
    g = _geometry(camera)
    pairs = [
        _sprite(camera, facing, Puppet("", body, "plain", hat, color)) for hat in HATS for color in COLORS
    ]
    return np.stack([h[g.hat] for h, _ in pairs]), np.stack([a[g.hat] for _, a in pairs])


@cache
def _outline(camera: str) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Weights that sum to 1: inside a standing body, and beside it."""
    g = _geometry(camera)
    inside = _body_sprites(camera, 1)[0][1, ..., 0].copy()
    inside[inside < 0.6] = 0
    beside = np.zeros_like(inside)
    for row in range(len(inside)):
        filled = np.flatnonzero(inside[row])
        if len(filled):
            for columns in (slice(max(0, filled[0] - 3), filled[0]), slice(filled[-1] + 1, filled[-1] + 4)):
                beside[row, columns] = 1
    assert inside.shape[0] == g.body.stop - g.body.start
    return inside / inside.sum(), beside / max(1.0, beside.sum())


class _View:
    """A frame and its place, padded so that a window fits at every position; `valid` is 0 outside the picture."""

    MARGIN = 32

    def __init__(
        self, frame: Float32[np.ndarray, "32 48 3"], place: UInt8[np.ndarray, "32 48 3"], camera: str
    ):
        m = self.MARGIN
        self.g = _geometry(camera)
        self.camera = camera
        both = np.zeros((HEIGHT + 2 * m, WIDTH + 2 * m, 7), np.float32)
        both[m:-m, m:-m, :3] = frame
        both[m:-m, m:-m, 3:6] = place
        both[m:-m, m:-m, 6] = 1
        self.both = both

    def window(self, x: int, lift: int, rows: slice):
        """The picture, the place and the validity around a puppet at x, `lift` pixels above the ground."""
        g, m = self.g, self.MARGIN
        top = m + g.top + rows.start - lift
        part = self.both[top : top + rows.stop - rows.start, m + x - g.reach : m + x + g.reach]
        return part[..., :3], part[..., 3:6], part[..., 6]

    def errors(self, x: int, lift: int, rows: slice, hidden, added, whole: bool):
        """Mean cut-off error of each sprite [n, h, w, .]; over the window if `whole`, else where the sprite hides."""
        picture, place, valid = self.window(x, lift, rows)
        error = np.abs(picture - (place * (1 - hidden) + added)).mean(-1)
        np.minimum(error, CAP, out=error)
        weight = valid * (hidden[..., 0].max(0) > 0.05 if whole else hidden[..., 0] > 0.5)
        return (error * weight).sum((-2, -1)) / np.maximum(weight.sum((-2, -1)), 1e-6)


def _find_people(view: _View) -> list[tuple[int, int]]:
    """(x, lift) of everybody: where a body's outline is filled with what is not the place."""
    g, m = view.g, view.MARGIN
    differs = np.clip(np.abs(view.both[..., :3] - view.both[..., 3:6]).sum(-1) / 80, 0, 1)
    inside, beside = _outline(view.camera)
    rows = inside.shape[0]
    low, high = (3, WIDTH - 3) if view.camera == "wide" else (6, WIDTH - 6)
    first = m + g.top + g.body.start
    area = differs[first - _MAX_LIFT : first + rows, m + low - g.reach : m + high + g.reach]
    valid = view.both[first - _MAX_LIFT : first + rows, m + low - g.reach : m + high + g.reach, 6]
    windows = sliding_window_view(area, inside.shape)  # [lifts from the highest down, positions, h, w]
    seen = sliding_window_view(valid, inside.shape)
    filled = np.tensordot(windows, inside, 2) / np.maximum(np.tensordot(seen, inside, 2), 0.3)
    score = filled - 0.5 * np.tensordot(windows, beside, 2)
    found: list[tuple[int, int]] = []
    apart = int(11 * draw.SCALE[view.camera]) if view.camera != "close" else WIDTH
    while len(found) < 2:
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        if (
            score[row, column] < -1
            or filled[row, column] < PERSON_FOUND
            or score[row, column] < PERSON_FOUND - 0.22
        ):
            break
        found.append((int(column) + low, _MAX_LIFT - int(row)))
        score[:, max(0, column - apart) : column + apart + 1] = -9
    return sorted(found)


class _Person:
    """Errors of every body and hat at the best fit near a position, summed over frames as they come in."""

    def __init__(self, camera: str):
        self.camera = camera
        self.body = np.zeros(len(COLORS) * len(PATTERNS))
        self.hat = np.zeros(len(HATS) * len(COLORS))
        self.weight = 0.0

    def look(self, view: _View, x: int, lift: int, wiggle: int = 1) -> tuple[int, int, int]:
        """Adds a frame's evidence; returns the fitted x, lift and facing."""
        g = view.g
        best = (np.inf, x, lift, 1, self.body)
        for facing in (-1, 1):
            hidden, added = _body_sprites(self.camera, facing)
            for dx in range(-wiggle, wiggle + 1):
                for dy in range(-wiggle, wiggle + 1):
                    if lift + dy < -2:
                        continue
                    errors = view.errors(x + dx, lift + dy, g.body, hidden, added, False)
                    if errors.min() < best[0]:
                        best = (float(errors.min()), x + dx, lift + dy, facing, errors)
        error, x, lift, facing, errors = best
        body = COLORS[int(errors.argmin()) // len(PATTERNS)]
        hidden, added = _hat_sprites(self.camera, facing, body)
        hats = np.min([view.errors(x, lift + dy, g.hat, hidden, added, True) for dy in (-1, 0, 1)], axis=0)
        weight = 1 / (error + 4)
        self.body += weight * errors
        self.hat += weight * hats
        self.weight += weight
        return x, lift, facing

    def read(self) -> dict[str, str | None]:
        """The best value of each attribute, or None where nothing fits or two fit alike."""
        body = (self.body / self.weight).reshape(len(COLORS), len(PATTERNS))
        hat = (self.hat / self.weight).reshape(len(HATS), len(COLORS))
        out: dict[str, str | None] = {}
        fits_body, fits_hat = body.min() <= BODY_ERROR, hat.min() <= HAT_ERROR
        for name, values, table, fits in (
            ("body", COLORS, body.min(1), fits_body),
            ("pattern", PATTERNS, body.min(0), fits_body),
            ("hat", HATS, hat.min(1), fits_hat),
            ("hat_color", COLORS, hat.min(0), fits_hat),
        ):
            order = np.argsort(table)
            clear = table[order[1]] - table[order[0]] >= MARGIN
            out[name] = values[int(order[0])] if fits and clear else None
        return out


def _best_puppet(person: _Person) -> Puppet:
    """The likeliest puppet, readable or not: something to follow through the shot."""
    body = COLORS[int(person.body.argmin()) // len(PATTERNS)]
    pattern = PATTERNS[int(person.body.argmin()) % len(PATTERNS)]
    order = [k for k in np.argsort(person.hat) if COLORS[k % len(COLORS)] != body]
    return Puppet("", body, pattern, HATS[order[0] // len(COLORS)], COLORS[order[0] % len(COLORS)])


def _follow(view: _View, puppet: Puppet, facing: int, x: int, reach: int) -> tuple[int, int]:
    """(x, lift) where the puppet fits best, at most `reach` pixels from x."""
    g, m = view.g, view.MARGIN
    hidden, added = _sprite(view.camera, facing, puppet)
    top = m + g.top
    part = view.both[top - _MAX_LIFT : top + g.h + 2, m + x - reach - g.reach : m + x + reach + g.reach]
    windows = sliding_window_view(part, (g.h, 2 * g.reach), axis=(0, 1))[::1]  # [lifts, xs, 7, h, w]
    added, hidden = added.transpose(2, 0, 1), hidden.transpose(2, 0, 1)
    error = np.abs(windows[:, :, :3] - (windows[:, :, 3:6] * (1 - hidden) + added)).mean(2)
    weight = windows[:, :, 6] * (hidden[0] > 0.3)
    cost = (np.minimum(error, CAP) * weight).sum((-2, -1)) / np.maximum(weight.sum((-2, -1)), 1)
    row, column = np.unravel_index(int(cost.argmin()), cost.shape)
    return x - reach + int(column), _MAX_LIFT - int(row)


def _arm_raised(view: _View, puppet: Puppet, x: int, lift: int) -> tuple[float, float]:
    """How much of the zones left and right of the head is filled with the body's colour."""
    g, m = view.g, view.MARGIN
    scale = draw.SCALE[view.camera]
    base = m + draw.GROUND[view.camera] - lift
    top, bottom = int(round(base - 16.5 * scale)), int(round(base - 10.5 * scale))
    color = np.asarray(draw.PALETTE[puppet.body], np.float32)
    shares = []
    for side in (-1, 1):
        near, far = sorted((side * 7.2 * scale, side * 10.4 * scale))
        part = view.both[top:bottom, int(round(m + x + near)) : int(round(m + x + far))]
        body = np.abs(part[..., :3] - color).mean(-1)
        place = np.abs(part[..., 3:6] - part[..., :3]).mean(-1)
        shares.append(float(((body < 42) & (place > 18) & (part[..., 6] > 0)).mean()) if part.size else 0.0)
    return shares[0], shares[1]


def read_shot(frames: UInt8[np.ndarray, "frames 32 48 3"]) -> Reading:
    """What can be seen in a shot. Motion (pan, actions) needs at least 4 frames and is None below."""
    pixels = frames.astype(np.float32)
    place = _find_place(pixels)
    environment, time, camera = _PLACES[place.index]
    if not place.known:
        return Reading(None, None, None, None, ())
    moving = len(frames) >= 4
    first = _View(pixels[0], place.view(0), camera)
    people = tuple(
        _read_person(pixels, place, camera, first, x, lift, moving) for x, lift in _find_people(first)
    )
    return Reading(environment, time, camera, place.pan if moving else None, people)


def _read_person(
    pixels, place: _Place, camera: str, first: _View, x: int, lift: int, moving: bool
) -> PersonReading:
    person = _Person(camera)
    x, lift, facing = person.look(first, x, lift)
    num_frames = len(pixels)
    if num_frames == 1:
        return PersonReading(**person.read(), action=None, x=float(x))
    puppet = _best_puppet(person)
    at = sorted({int(round(k)) for k in np.linspace(0, num_frames - 1, min(num_frames, 9))})
    again = {at[len(at) // 2], at[-1]}
    track, arms, here = [], [], x
    for before, k in zip([0, *at], at, strict=False):
        view = _View(pixels[k], place.view(k), camera) if k else first
        here, lift = _follow(view, puppet, facing, here, 2 * (k - before) + 1)
        track.append((k, here + place.pan * k, lift))
        arms.append(_arm_raised(view, puppet, here, lift))
        if k in again:
            _, _, facing = person.look(view, here, lift)
    return PersonReading(**person.read(), action=_action(camera, track, arms) if moving else None, x=float(x))


def _action(camera: str, track: list[tuple[int, int, int]], arms: list[tuple[float, float]]) -> str:
    """Which action a track of (frame, x in the place, lift) and arms is: walking, then jumping, then waving."""
    frame, x, lift = np.asarray(track, np.float32).T
    speed = float(np.polyfit(frame, x, 1)[0])
    if abs(speed) > 0.5:
        return "walk_right" if speed > 0 else "walk_left"
    if lift.max() - np.median(np.sort(lift)[:3]) >= 0.45 * draw.JUMP[camera]:
        return "jump"
    left, right = np.asarray(arms).T
    if (np.maximum(left, right) > 0.22).mean() >= 0.25:
        return "wave"
    return "stand"
