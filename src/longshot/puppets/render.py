"""Draws puppet scenes: signed distance shapes, anti-aliased, a cached panorama behind people made of few parts.

Everything is a pure function of the shot. Motions begin and end at rest, so a shot that continues another
starts one frame's motion after it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import UInt8

from longshot.puppets.world import (
    HEIGHT,
    MAX_OFFSET,
    PALETTE,
    REEF,
    WIDTH,
    Acting,
    Character,
    Fish,
    Puppet,
    PuppetScene,
    PuppetShot,
    screen_x,
    walk_direction,
)

Rgb = tuple[float, float, float]

# A puppet is about 27 units tall. scale: pixels a unit; ground: screen y of the feet; zoom: of the place behind.
SCALE = {"wide": 0.8, "medium": 0.96, "close": 1.36}
GROUND = {"wide": 28.5, "medium": 30.0, "close": 37.8}
ZOOM = {"wide": 1.0, "medium": 1.2, "close": 1.5}
BOB = 1.5  # pixels; a step lifts a walker by less
INK: Rgb = (44, 32, 48)
INK_WIDTH = {"wide": 0.7, "medium": 0.8, "close": 1.0}  # of outlines, pixels
PAD = 24  # people are drawn on a wider strip, then the frame is cut out of it
_REACH = 13.4  # units from a puppet's middle to the edge of its window, which a raised hand must not leave


# --- shapes: distances in the units of their coordinates, negative inside ---------------------------------------


def circle(u, v, cu, cv, r):
    return np.hypot(u - cu, v - cv) - r


def ellipse(u, v, cu, cv, ru, rv):
    du, dv = u - cu, v - cv
    k0 = np.hypot(du / ru, dv / rv)
    k1 = np.hypot(du / ru**2, dv / rv**2)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-6)


def box(u, v, cu, cv, hu, hv, r=0.0):
    qu, qv = np.abs(u - cu) - (hu - r), np.abs(v - cv) - (hv - r)
    return np.hypot(np.maximum(qu, 0), np.maximum(qv, 0)) + np.minimum(np.maximum(qu, qv), 0) - r


def capsule(u, v, au, av, bu, bv, r):
    du, dv = bu - au, bv - av
    pu, pv = u - au, v - av
    h = np.clip((pu * du + pv * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(pu - du * h, pv - dv * h) - r


def triangle(u, v, cu, base, half, height, r=0.0):
    """An upright isosceles triangle (v grows upwards) with rounded corners."""
    slope = np.hypot(height, half)
    side = (np.abs(u - cu) * height + (v - base - height) * half) / slope
    return np.maximum(side + r, base + r - v) - r


# --- places -----------------------------------------------------------------------------------------------------

_TINT = {"day": (1.0, 1.0, 1.0), "dusk": (0.94, 0.72, 0.68), "night": (0.45, 0.51, 0.76)}
_SKY = {  # top and horizon of the sky at dusk and at night; by day each place has its own
    "dusk": ((140, 104, 160), (255, 176, 112)),
    "night": ((24, 28, 72), (60, 70, 128)),
}


class _Canvas:
    """A panorama being painted. x: world units from its middle; y: world units downwards, 32 a wide frame."""

    def __init__(self, camera: str, time: str):
        zoom = ZOOM[camera]
        columns = np.arange(-MAX_OFFSET - PAD, WIDTH + MAX_OFFSET + PAD, dtype=np.float32) + 0.5
        rows = np.arange(HEIGHT, dtype=np.float32) + 0.5
        self.time, self.zoom, self.tint = time, zoom, _TINT[time]
        self.x = ((columns - WIDTH / 2) / zoom)[None, :]
        self.y = ((rows - GROUND[camera]) / zoom + GROUND["wide"])[:, None]
        self.rgb = np.zeros((HEIGHT, len(columns), 3), np.float32)

    def fill(self, distance, color: Rgb, *, lit: bool = False):
        """Paints a shape; a lit one keeps its colour at dusk and at night."""
        cover = np.clip(0.5 - distance * self.zoom, 0, 1)[..., None]
        tint = (1.0, 1.0, 1.0) if lit else self.tint
        self.rgb += cover * (np.asarray(color, np.float32) * np.asarray(tint, np.float32) - self.rgb)

    def sky(self, top: Rgb, horizon: Rgb, at: float):
        """A vertical gradient down to y = at."""
        if self.time != "day":
            top, horizon = _SKY[self.time]
        w = np.clip(self.y / at, 0, 1)[..., None]
        self.rgb[:] = np.asarray(top) * (1 - w) + np.asarray(horizon) * w

    def sun(self, x: float = 13.0, y: float = 8.0, low: float = 17.0):
        """The sun by day, a low red sun at dusk, a crescent moon and a few stars at night."""
        if self.time == "day":
            self.fill(circle(self.x, self.y, x, y, 3.0), (255, 236, 150), lit=True)
        elif self.time == "dusk":
            self.fill(circle(self.x, self.y, x, low, 4.2), (255, 110, 84), lit=True)
        else:
            moon = circle(self.x, self.y, x, y, 3.2)
            self.fill(
                np.maximum(moon, -circle(self.x, self.y, x - 1.7, y - 0.9, 2.6)), (246, 240, 200), lit=True
            )
            for sx, sy in ((-42, 6), (-27, 9), (-12, 6), (-3, 9.5), (4, 5), (24, 6), (33, 10), (45, 7)):
                self.fill(circle(self.x, self.y, sx, sy, 0.55), (226, 226, 240), lit=True)

    def ground(self, at: float, color: Rgb, swell: float = 0.0, length: float = 40.0, shift: float = 0.0):
        """Everything below y = at, with soft hills of the given height."""
        self.fill(at - swell * np.cos((self.x - shift) * (2 * np.pi / length)) - self.y, color)


def _up(c: _Canvas, x: float, base: float, half: float, height: float, r: float = 0.0):
    return triangle(c.x, -c.y, x, -base, half, height, r)


def _meadow(c: _Canvas):
    c.sky((126, 196, 244), (206, 236, 250), 20)
    c.sun()
    c.ground(18.5, (150, 206, 158), 2.6, 44, 8)
    for x in (-15, 38):  # a big round tree
        c.fill(box(c.x, c.y, x, 18, 1.2, 5), (130, 92, 62))
        c.fill(circle(c.x, c.y, x, 11, 5.6), (82, 140, 88))
    for x in (16, -39):  # a barn
        c.fill(box(c.x, c.y, x, 19, 4.2, 3.6), (184, 104, 88))
        c.fill(_up(c, x, 15.6, 5.6, 4.2), (112, 84, 84))
        c.fill(box(c.x, c.y, x, 20.4, 1.4, 2.3), (92, 62, 60))
    c.ground(22, (134, 190, 98), 0.5, 30)


def _beach(c: _Canvas):
    c.sky((110, 206, 246), (214, 244, 250), 17)
    c.sun(12, 8, 15)
    c.fill(17 - c.y + 0 * c.x, (60, 172, 190))
    for x in (3.0, -40):  # a sail
        c.fill(_up(c, x, 17, 2.6, 7), (250, 246, 236))
        c.fill(box(c.x, c.y, x, 17.6, 3.2, 0.9, 0.6), (150, 96, 70))
    c.fill(22.4 + 0.7 * np.cos(c.x * (2 * np.pi / 26)) - c.y, (238, 214, 160))
    for x in (-16, 32):  # a palm
        c.fill(capsule(c.x, c.y, x, 24, x + 2.4, 9, 0.9), (150, 108, 72))
        for dx, dy in ((-6, 1.6), (6, 1.6), (-4.6, -3), (5, -3)):
            c.fill(capsule(c.x, c.y, x + 2.4, 9, x + 2.4 + dx, 9 + dy, 1.1), (70, 140, 96))
    for x in (17, -33):  # a parasol
        c.fill(box(c.x, c.y, x, 20, 0.5, 5.4), (240, 236, 226))
        dome = np.maximum(ellipse(c.x, c.y, x, 16.4, 6.2, 5.2), c.y - 16.4)
        c.fill(dome, (226, 116, 106))
        c.fill(np.maximum(dome, np.abs(c.x - x) - 1.7), (250, 240, 226))


def _forest(c: _Canvas):
    c.sky((150, 196, 176), (198, 222, 186), 20)
    c.sun(9, 6.5, 13)
    for x in (-44, -31, -6, 4, 17, 29, 43):  # far firs
        c.fill(_up(c, x, 21, 4.6, 15.5, 0.6), (98, 146, 122))
    c.ground(20.5, (92, 122, 82), 0.6, 36)
    for x, w in ((-17, 2.5), (16.5, 3.0), (-38, 3.0), (37, 2.5)):  # near trunks
        c.fill(box(c.x, c.y, x, 10, w, 13.2), (94, 70, 58))
        c.fill(ellipse(c.x, c.y, x, 1.6, 8.6, 6.4), (58, 98, 76))
    for x in (-9.5, 26):  # toadstools
        c.fill(box(c.x, c.y, x, 22, 0.9, 2.0), (240, 230, 214))
        c.fill(np.maximum(ellipse(c.x, c.y, x, 20.8, 3.0, 2.8), c.y - 20.8), (206, 92, 82))


def _desert(c: _Canvas):
    c.sky((132, 206, 222), (250, 230, 196), 18)
    c.sun(8, 7, 14)
    for x, w in ((-17, 7.5), (26, 6.0), (-42, 5)):  # a mesa
        c.fill(box(c.x, c.y, x, 16, w, 5.6, 1.2), (196, 120, 92))
        c.fill(box(c.x, c.y, x, 16.4, w, 1.0), (164, 94, 80))
    c.ground(19.5, (232, 186, 122), 1.4, 52, 20)
    for x in (15, -30, 44):  # a cactus
        c.fill(capsule(c.x, c.y, x, 24, x, 13, 1.6), (84, 140, 92))
        c.fill(capsule(c.x, c.y, x, 19.5, x - 4, 19.5, 1.1), (84, 140, 92))
        c.fill(capsule(c.x, c.y, x - 4, 19.5, x - 4, 16.5, 1.1), (84, 140, 92))
        c.fill(capsule(c.x, c.y, x, 18, x + 3.8, 18, 1.1), (84, 140, 92))
        c.fill(capsule(c.x, c.y, x + 3.8, 18, x + 3.8, 14.6, 1.1), (84, 140, 92))
    c.ground(24, (220, 168, 106), 0.7, 34, 6)


def _snow(c: _Canvas):
    c.sky((166, 190, 216), (224, 232, 242), 18)
    c.sun(14, 7, 15)
    for x, w, h in ((-8, 15, 14), (26, 14, 11.5), (-40, 14, 12)):  # a mountain
        c.fill(_up(c, x, 21, w, h), (138, 154, 184))
        c.fill(np.maximum(_up(c, x, 21, w, h), c.y - (21 - h * 0.62)), (236, 240, 248))
    c.ground(20.5, (214, 224, 238), 0.8, 38, 4)
    for x in (-18, 17.5, 40, -37):  # a fir
        c.fill(box(c.x, c.y, x, 22.5, 0.8, 1.6), (110, 84, 76))
        for base, half in ((21.6, 4.8), (18.2, 3.9), (14.8, 3.0)):
            c.fill(_up(c, x, base, half, 5.4), (62, 102, 104))
    c.ground(24.4, (196, 208, 228), 0.4, 30)


def _city(c: _Canvas):
    c.sky((168, 190, 208), (222, 222, 216), 20)
    c.sun(3, 7, 13)
    glow: Rgb = (255, 214, 120) if c.time == "night" else (190, 206, 216)
    for x, w, top, color in (
        (-18, 5.5, 6, (112, 116, 134)),
        (-7.5, 4.0, 12, (150, 138, 140)),
        (8.5, 4.0, 13, (128, 124, 136)),
        (18, 5.0, 4, (140, 128, 124)),
        (30, 5.5, 9, (112, 116, 134)),
        (42, 4.5, 6, (150, 138, 140)),
        (-31, 5.5, 8, (140, 128, 124)),
        (-43, 5.0, 5, (128, 124, 136)),
    ):
        tower = box(c.x, c.y, x, (top + 25) / 2, w, (25 - top) / 2)
        c.fill(tower, color)
        wx = np.abs((c.x - x + 20 * 3.4) % 3.4 - 1.7) - 0.8
        wy = np.abs((c.y - top - 1.0) % 3.6 - 1.8) - 1.0
        c.fill(np.maximum(np.maximum(wx, wy), tower + 0.9), glow, lit=c.time == "night")
    c.ground(23, (176, 172, 168))
    c.ground(25.4, (92, 94, 104))
    for k in range(-5, 6):
        c.fill(box(c.x, c.y, k * 10.0, 30.6, 2.4, 0.5), (214, 206, 176))


def _window(c: _Canvas, x: float, y: float, hw: float, hh: float, frame: Rgb):
    c.fill(box(c.x, c.y, x, y, hw + 1.0, hh + 1.0, 0.5), frame)
    pane = {"day": (176, 222, 246), "dusk": (255, 160, 104), "night": (30, 36, 84)}[c.time]
    c.fill(box(c.x, c.y, x, y, hw, hh), pane, lit=True)
    if c.time != "day":
        glow: Rgb = (246, 240, 200) if c.time == "night" else (255, 108, 80)
        c.fill(circle(c.x, c.y, x + 1.8, y - 0.8, 1.7), glow, lit=True)
    cross = np.minimum(box(c.x, c.y, x, y, 0.5, hh), box(c.x, c.y, x, y, hw, 0.5))
    c.fill(cross, frame)


def _cafe(c: _Canvas):
    if c.time == "night":
        c.tint = (0.62, 0.46, 0.44)  # lamplight
    c.fill(-c.y - 99 + 0 * c.x, (206, 158, 116))
    c.fill(18 - c.y + 0 * c.x, (150, 100, 74))
    for x in (-14, 30):
        _window(c, x, 11, 5.0, 5.0, (110, 74, 60))
    for x in (15, -34):  # a shelf of cups
        c.fill(box(c.x, c.y, x, 14.6, 6.4, 0.7), (104, 70, 56))
        for k, color in enumerate(((236, 226, 206), (128, 176, 170), (236, 226, 206))):
            c.fill(box(c.x, c.y, x - 4 + 4 * k, 12.6, 1.4, 1.4, 0.5), color)
    for x in (1.5, -24, 41):  # a lamp, lit at all hours
        c.fill(box(c.x, c.y, x, 2, 0.35, 3), (70, 50, 46))
        c.fill(np.maximum(ellipse(c.x, c.y, x, 7.6, 3.4, 3.6), c.y - 7.6), (92, 148, 140))
        c.fill(circle(c.x, c.y, x, 7.9, 1.2), (255, 240, 180), lit=True)
    c.fill(23 - c.y + 0 * c.x, (116, 78, 62))
    for x in (-15.5, 18, 40, -41):  # a round table
        c.fill(box(c.x, c.y, x, 25, 0.8, 3.4), (84, 60, 52))
        c.fill(ellipse(c.x, c.y, x, 21.6, 5.4, 1.3), (232, 218, 196))


def _bedroom(c: _Canvas):
    c.fill(-c.y - 99 + 0 * c.x, (150, 170, 206))
    stripe = np.abs((c.x + 200) % 8.0 - 4.0) - 2.0
    c.fill(stripe + 0 * c.y, (162, 182, 216))
    _window(c, 15, 9.5, 4.6, 5.0, (244, 240, 232))
    for dx in (-6.6, 6.6):  # curtains
        c.fill(box(c.x, c.y, 15 + dx, 10, 1.6, 7.4, 0.8), (214, 178, 122))
    for x in (0.0, -33, 41):  # a picture
        c.fill(box(c.x, c.y, x, 9, 3.2, 2.7, 0.4), (150, 108, 80))
        c.fill(box(c.x, c.y, x, 9, 2.3, 1.8), (240, 228, 196))
        c.fill(_up(c, x, 10.8, 1.8, 2.6), (110, 158, 132))
    c.fill(22.5 - c.y + 0 * c.x, (178, 140, 108))
    c.fill(box(c.x, c.y, 0, 22, 99, 0.6), (240, 236, 228))
    for x in (-15, 35):  # a bed
        c.fill(box(c.x, c.y, x - 7.4, 18.5, 1.2, 6.2, 0.8), (128, 88, 68))
        c.fill(box(c.x, c.y, x, 22.0, 8.0, 3.0, 1.2), (120, 170, 168))
        c.fill(box(c.x, c.y, x - 4.4, 18.8, 3.0, 1.7, 1.4), (248, 244, 236))
    c.fill(ellipse(c.x, c.y, 6, 29, 15, 2.6), (206, 178, 190))


def _reef(c: _Canvas):
    c.fill(-c.y - 99 + 0 * c.x, (150, 222, 222))
    for k in range(7):  # water, paler towards the sand
        c.fill(
            c.y - 22 + 3.4 * k + 0.6 * np.cos(c.x * (2 * np.pi / 30) + k),
            _mix((150, 222, 222), (58, 158, 196), (k + 1) / 7),
        )
    for x, w in ((-19, 7), (22, 6), (-40, 8), (41, 6)):  # a rock
        c.fill(ellipse(c.x, c.y, x, 25, w, 6.5), (108, 122, 146))
    for x in (-14.5, 31, -34):  # a branching coral
        c.fill(capsule(c.x, c.y, x, 26, x, 16, 1.5), (222, 122, 128))
        for dx, low, top in ((-4, 21, 15), (4, 19, 13), (-2.4, 17, 11.5), (2.6, 16, 10)):
            c.fill(capsule(c.x, c.y, x, low, x + dx, low - 2, 1.1), (222, 122, 128))
            c.fill(capsule(c.x, c.y, x + dx, low - 2, x + dx, top, 1.1), (222, 122, 128))
    for x, top in ((14.5, 9), (18, 13), (-27, 11), (37, 8)):  # kelp
        c.fill(np.abs(c.x - x - 1.1 * np.sin(c.y * 0.7)) - 1.2 + 4 * np.maximum(0, top - c.y), (74, 138, 98))
    c.ground(25, (236, 218, 170), 0.8, 34, 6)
    for x in (6, -8, 27, -30):  # a shell
        c.fill(np.maximum(ellipse(c.x, c.y, x, 28.5, 1.9, 1.9), c.y - 28.5), (246, 190, 176))
    for x, y in ((9, 6), (10.4, 10), (8.6, 13), (-25, 7), (-24, 11), (30, 5)):  # bubbles
        c.fill(np.abs(circle(c.x, c.y, x, y, 1.1)) - 0.3, (232, 248, 250))


def _mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = ((1 - share) * x + share * y for x, y in zip(a, b, strict=True))
    return red, green, blue


_PAINT = {
    "meadow": _meadow,
    "beach": _beach,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "cafe": _cafe,
    "bedroom": _bedroom,
    REEF: _reef,
}


@cache
def panorama(environment: str, time: str, camera: str) -> UInt8[np.ndarray, "height wide 3"]:
    """The whole place without people, wider than the frame by MAX_OFFSET + PAD pixels on either side (read-only)."""
    canvas = _Canvas(camera, time)
    _PAINT[environment](canvas)
    rgb = np.rint(np.clip(canvas.rgb, 0, 255)).astype(np.uint8)
    rgb.setflags(write=False)
    return rgb


# --- people -----------------------------------------------------------------------------------------------------


def _ease(x):
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _cycles(frames: int) -> float:
    """How often an 8-frame motion fits in a shot, a whole number so that the shot ends at rest."""
    return float(max(1, round(frames / 8)))


class _Pose:
    """Per frame, as [F, 1, 1] arrays: where a puppet is and how its parts sit."""

    def __init__(self, acting: Acting, shot: PuppetShot):
        f = np.arange(shot.frames, dtype=np.float32)
        phase = 2 * np.pi * f / shot.frames * _cycles(shot.frames)
        action = acting.action
        zero = np.zeros_like(f)
        self.x = np.asarray([screen_x(acting, shot, k) for k in range(shot.frames)], np.float32)
        self.look = (
            acting.facing_before + (acting.facing - acting.facing_before) * _ease((f + 1) / 3)
        ).astype(np.float32)
        self.stretch, self.lift, self.step, self.stride, self.lean = zero + 1, zero, zero, zero, zero
        if walk_direction(action):
            self.lift = 1.1 * np.abs(np.sin(2 * np.pi * f / 8)) * SCALE[shot.camera] ** 0.5
            self.step = np.sin(2 * np.pi * f / 8)
            self.stride = np.sin(2 * np.pi * f / 8 - np.pi / 2) * np.minimum(
                1, np.minimum(f, shot.frames - f) / 2
            )
            self.lean = 0.05 * walk_direction(action) * _ease((f + 1) / 3) * _ease((shot.frames - f + 1) / 3)
        else:
            self.stretch = 1 + 0.03 * (0.5 - 0.5 * np.cos(phase))
        self.arm = {-1: zero, 1: zero}  # angle from hanging down, outwards, radians
        self.raised = {
            -1: zero,
            1: zero,
        }  # how far an arm is up, 0..1; a raised one is longer and its hand larger
        if action == "wave":
            up = _ease((f + 0.5) / 2) * _ease((shot.frames - f) / 2) * (f > 0)
            self.arm[acting.facing] = up * (2.0 + 0.12 * np.sin(2 * np.pi * f / 8))
            self.raised[acting.facing] = up
        elif walk_direction(action):
            for side in (-1, 1):
                self.arm[side] = 0.22 + 0.22 * side * self.step - 0.22


def _shape(a):
    return np.asarray(a, np.float32)[:, None, None]


_SPOTS = ((-2.7, 9.0), (2.7, 9.0), (0.0, 6.0), (-2.9, 3.4), (2.9, 3.4))


class _Layer:
    """A window of every frame of a shot around one person, painted part after part.

    rgb: [3, F, h, w] (planes: numpy broadcasts a cover over them quickly); u, v: puppet units from the feet.
    """

    def __init__(self, rgb, u, v, top: float, scale: float, ink: float):
        self.rgb, self.u, self.v = rgb, u, v
        self.top, self.scale, self.ink = top, scale, ink

    def band(self, low: float, high: float) -> _Layer:
        """The rows that can hold v = low..high units in any frame; `top` is the ground's distance below row 0."""
        first = max(0, int(self.top - high * self.scale * 1.1 - BOB - 2))
        last = max(first + 1, int(np.ceil(self.top - low * self.scale * 0.85 + 2)))
        rows = slice(first, last)
        return _Layer(
            self.rgb[:, :, rows], self.u[:, rows], self.v[:, rows], self.top - first, self.scale, self.ink
        )

    def paint(self, distance, color: Rgb, *, outline: bool = True, alpha: float = 1.0):
        d = distance * self.scale
        if outline:
            self.blend(np.clip(0.5 + self.ink - d, 0, 1), INK)
        self.blend(np.clip(0.5 - d, 0, 1) * alpha, color)
        return d

    def blend(self, cover, color: Rgb):
        self.rgb += cover * (np.asarray(color, np.float32)[:, None, None, None] - self.rgb)


def contrast_color(body: str) -> Rgb:
    """The colour of stripes and spots on a body."""
    return (58, 40, 62) if body in ("yellow", "white", "pink") else (250, 244, 226)


def _paint_person(rgb, u0, v0, pose: _Pose, puppet: Puppet, camera: str):
    """Paints on rgb [3, F, h, w]; u0 [F, 1, w], v0 [1, h, 1]: pixels from the ground point below the puppet, v0 upwards."""
    scale = SCALE[camera]
    lift, stretch = _shape(pose.lift), _shape(pose.stretch)
    v = (v0 - lift) / (scale * stretch)
    u = u0 * np.sqrt(stretch) / scale - _shape(pose.lean) * v
    whole = _Layer(rgb, u, v + 0 * u, float(v0[0, 0, 0]) + 0.5, scale, INK_WIDTH[camera])
    look, step, stride = _shape(pose.look), _shape(pose.step), _shape(pose.stride)
    body, hat = PALETTE[puppet.body], PALETTE[puppet.hat_color]

    shade = ellipse(u0 / scale, v0 / scale, 0, 0.3, 6.2, 1.4) + lift / scale * 0.25
    whole.paint(shade, (20, 16, 30), outline=False, alpha=0.34)

    p = whole.band(-1.5, 4.5)
    for side in (-1, 1):
        ahead = side * 2.6 + look * 0.6 + side * stride * 2.2
        up = 1.2 + np.maximum(0, side * step) * 1.3
        p.paint(ellipse(p.u, p.v, ahead, up, 2.4, 1.5), _shade(body, 0.62))
    for side in (-1, 1):
        raised = _shape(pose.raised[side])
        p = whole.band(3.0, 22.0 if raised.max() > 0 else 12.5)
        angle, length = _shape(pose.arm[side]) + 0.42, 5.6 + 2.4 * raised
        su, sv = side * 4.4, 10.4
        hand_u, hand_v = su + length * side * np.sin(angle), sv - length * np.cos(angle)
        arm = capsule(p.u, p.v, su, sv, hand_u, hand_v, 1.35 + 0.55 * raised)
        if raised.max() > 0:
            arm = np.minimum(arm, circle(p.u, p.v, hand_u, hand_v, 1.35 + 1.25 * raised))
        p.paint(arm, body)
    p = whole.band(0.5, 13.5)
    d = p.paint(box(p.u, p.v, 0, 7.0, 5.4, 5.9, 4.6), body)
    if puppet.pattern == "stripes":
        bands = np.minimum(np.abs(p.v - 9.4), np.abs(p.v - 4.9)) - 1.1
        p.blend(np.clip(0.5 - np.maximum(d, bands * scale), 0, 1), contrast_color(puppet.body))
    elif puppet.pattern == "spots":
        squared = [(p.u - su) ** 2 + (p.v - sv) ** 2 for su, sv in _SPOTS]
        spots = np.sqrt(np.minimum.reduce(squared)) - 1.35
        p.blend(np.clip(0.5 - np.maximum(d, spots * scale), 0, 1), contrast_color(puppet.body))

    p = whole.band(9.5, 22.0)
    hu = p.u - look * 0.5
    p.paint(ellipse(hu, p.v, 0, 15.9, 5.8, 5.1), body)
    p = whole.band(12.0, 18.8)
    eu = p.u - look * 2.0
    for side in (-1, 1):
        p.paint(circle(eu, p.v, side * 1.9, 16.6, 1.65), (255, 255, 255), outline=False)
        p.paint(circle(eu, p.v, side * 1.9 + look * 0.5, 16.6, 0.95), (26, 20, 30), outline=False)
    if camera != "wide":
        p.paint(np.maximum(np.abs(circle(eu, p.v, 0, 14.6, 2.0)) - 0.38, p.v - 13.9), INK, outline=False)
    p = whole.band(16.5, 28.5)
    _paint_hat(p, p.u - look * 0.5, p.v, puppet.hat, hat)


def _paint_hat(p: _Layer, u, v, hat: str, color: Rgb):
    if hat == "top":
        p.paint(box(u, v, 0, 23.2, 3.7, 3.9, 0.4), color)
        p.paint(box(u, v, 0, 21.0, 3.7, 0.8), _shade(color, 0.6), outline=False)
        p.paint(box(u, v, 0, 19.6, 6.2, 0.9, 0.7), color)
    elif hat == "cone":
        p.paint(triangle(u, v, 0, 18.9, 4.8, 8.7, 0.3), color)
    elif hat == "beanie":
        p.paint(circle(u, v, 0, 24.8, 2.0), (250, 248, 240))
        p.paint(np.maximum(ellipse(u, v, 0, 18.6, 5.6, 5.2), 18.6 - v), color)
        p.paint(box(u, v, 0, 19.2, 6.0, 1.2, 1.0), _shade(color, 0.8))
    else:
        p.paint(np.maximum(ellipse(u, v, 0, 19.8, 4.2, 4.6), 19.8 - v), color)
        p.paint(ellipse(u, v, 0, 19.7, 9.4, 1.5), color)


_MIDDLE = 13.0  # units above the ground: a fish's


def _paint_fish(rgb, u0, v0, pose: _Pose, fish: Fish, camera: str):
    """As `_paint_person`. A fish is 19 units long; u grows the way it looks; it turns between two frames."""
    scale = SCALE[camera]
    lift, look, stroke = _shape(pose.lift), _shape(pose.look), _shape(pose.stride)
    stretch = _shape(pose.stretch)
    u = u0 * stretch / scale * np.sign(look) - 2.2
    v = (v0 - lift) / (scale * stretch) - _MIDDLE + 0 * u
    whole = _Layer(rgb, u, v, float(v0[0, 0, 0]) + 0.5, scale, INK_WIDTH[camera])
    body, tail = PALETTE[fish.body], PALETTE[fish.tail_color]

    swayed = v - 0.35 * stroke * np.maximum(0, -5 - u)
    fan = np.maximum(np.abs(swayed) - 1.2 - 0.75 * np.maximum(0, -5 - u), np.maximum(u + 4.5, -11.4 - u))
    notch = np.abs(swayed) - 0.9 * np.maximum(0, -9 - u)  # the fork between its halves
    whole.paint(np.maximum(fan, -notch), tail)
    whole.paint(triangle(u, v, -0.6, 3.6, 3.8, 4.6, 0.3), tail)  # the fin on its back
    d = whole.paint(ellipse(u, v, 0, 0, 7.0, 5.4), body)
    if fish.pattern == "stripes":
        bands = np.minimum(np.abs(u - 0.6), np.abs(u + 3.6)) - 0.95
        whole.blend(np.clip(0.5 - np.maximum(d, bands * scale), 0, 1), contrast_color(fish.body))
    elif fish.pattern == "spots":
        squared = [(u - su) ** 2 + (v - sv) ** 2 for su, sv in ((-3.4, 1.6), (0.4, 2.4), (-1.2, -2.2))]
        spots = np.sqrt(np.minimum.reduce(squared)) - 1.3
        whole.blend(np.clip(0.5 - np.maximum(d, spots * scale), 0, 1), contrast_color(fish.body))
    whole.paint(circle(u, v, 4.0, 1.2, 1.75), (255, 255, 255), outline=False)
    whole.paint(circle(u, v, 4.5, 1.2, 1.0), (26, 20, 30), outline=False)


def _shade(color: Rgb, by: float) -> Rgb:
    return (color[0] * by, color[1] * by, color[2] * by)


def _window_rows(camera: str) -> tuple[int, int]:
    top = GROUND[camera] - (29.5 * SCALE[camera] + BOB)
    return max(0, int(top)), min(HEIGHT, int(np.ceil(GROUND[camera] + 2.5)))


def _draw_people(
    strip: UInt8[np.ndarray, "frames height wide 3"], shot: PuppetShot, characters: tuple[Character, ...]
):
    """Paints the cast into frames that are wider than the picture by PAD on either side."""
    reach = int(np.ceil(_REACH * SCALE[shot.camera])) + 1
    y0, y1 = _window_rows(shot.camera)
    v0 = (GROUND[shot.camera] - (np.arange(y0, y1, dtype=np.float32) + 0.5))[None, :, None]
    for acting in shot.cast:
        pose = _Pose(acting, shot)
        left = np.clip(np.floor(pose.x).astype(int) - reach + PAD, 0, strip.shape[2] - 2 * reach)
        u0 = ((left - PAD + 0.5 - pose.x)[:, None] + np.arange(2 * reach)).astype(np.float32)[:, None, :]
        windows = [strip[k, y0:y1, x : x + 2 * reach] for k, x in enumerate(left)]
        rgb = np.ascontiguousarray(np.stack(windows).transpose(3, 0, 1, 2), dtype=np.float32)
        character = characters[acting.who]
        if isinstance(character, Fish):
            _paint_fish(rgb, u0, v0, pose, character, shot.camera)
        else:
            _paint_person(rgb, u0, v0, pose, character, shot.camera)
        painted = np.rint(rgb).astype(np.uint8).transpose(1, 2, 3, 0)
        for window, pixels in zip(windows, painted, strict=True):
            window[:] = pixels


def _strip(environment: str, time: str, shot: PuppetShot) -> UInt8[np.ndarray, "frames height wide 3"]:
    """The place in every frame of a shot, PAD wider than the picture on either side."""
    place = panorama(environment, time, shot.camera)
    starts = MAX_OFFSET + shot.offset + shot.pan * np.arange(shot.frames)
    return np.stack([place[:, s : s + WIDTH + 2 * PAD] for s in starts])


def render_shot(scene: PuppetScene, k: int) -> UInt8[np.ndarray, "frames 32 48 3"]:
    """The frames of shot k (0-based), RGB."""
    shot = scene.shots[k]
    strip = _strip(scene.environment, scene.time, shot)
    _draw_people(strip, shot, scene.characters)
    return np.ascontiguousarray(strip[:, :, PAD : PAD + WIDTH])


def render(scene: PuppetScene) -> list[UInt8[np.ndarray, "frames 32 48 3"]]:
    """The frames of every shot."""
    return [render_shot(scene, k) for k in range(len(scene.shots))]


def render_place(environment: str, time: str = "day", camera: str = "wide") -> UInt8[np.ndarray, "32 48 3"]:
    """A place without people: an environment image."""
    start = MAX_OFFSET + PAD
    return panorama(environment, time, camera)[:, start : start + WIDTH].copy()


def render_portrait(
    character: Character, camera: str = "medium", facing: int = 1
) -> UInt8[np.ndarray, "32 48 3"]:
    """One puppet or fish before a plain grey backdrop: an identity image."""
    shot = PuppetShot(camera, 0, (Acting(0, "stand", 24.0, facing, facing),), 1, True)
    strip = np.empty((1, HEIGHT, WIDTH + 2 * PAD, 3), np.uint8)
    strip[:] = (176, 180, 186)
    _draw_people(strip, shot, (character,))
    return np.ascontiguousarray(strip[0, :, PAD : PAD + WIDTH])
