"""Generated films whose cuts, places and faults are known: painted places, a camera that moves, every kind of transition."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (192, 108)
FPS = 24


def place(seed: int, size: tuple[int, int] = SIZE, dark: float = 1.0) -> Image.Image:
    """A wide painting of a place: sky, ground, many things. Seeds give different ones."""
    rng = np.random.default_rng(seed)
    width, height = 4 * size[0], 2 * size[1]
    sky, ground = rng.integers(30, 226, (2, 3))
    horizon = rng.uniform(0.3, 0.7)
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in sky))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon * height, width, height), fill=tuple(int(c) for c in ground))
    for _ in range(70):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.02, 0.12) * width, rng.uniform(0.05, 0.4) * height
        colour = tuple(int(c) for c in np.clip(0.5 * (sky + ground) + rng.normal(0, 55, 3), 0, 255))
        shape = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        shape((x, y, x + w, y + h), fill=colour)
    noise = rng.normal(0, 10, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
    painted = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), np.float32) + noise
    return Image.fromarray((np.clip(painted, 0, 255) * dark).astype(np.uint8))


@dataclass
class Take:
    """Frames of one take. pan: pixels a frame; runner: speed of something large that crosses the picture."""

    seed: int
    frames: int
    pan: float = 0.5
    zoom: float = 1.0
    start: float = 0.2
    runner: float = 0.0
    dark: float = 1.0
    every: int = 1  # a drawn picture is held for so many frames
    shake: float = 0.0
    flash: Sequence[int] = ()

    def paint(self, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
        width, height = size
        canvas, rng, out = place(self.seed, size, self.dark), np.random.default_rng(self.seed + 1000), []
        for n in range(self.frames):
            step = n // self.every * self.every
            left = self.start * width + self.pan * step + self.shake * rng.normal()
            top = 0.3 * height + 0.2 * self.pan * step + self.shake * rng.normal()
            box = (left, top, left + width / self.zoom, top + height / self.zoom)
            frame = canvas.resize(size, Image.Resampling.BILINEAR, box=_within(box, canvas.size))
            if self.runner:
                x = (self.runner * step + self.seed * 31) % (1.6 * width) - 0.4 * width
                ImageDraw.Draw(frame).ellipse(
                    (x, 0.2 * height, x + 0.35 * width, 0.95 * height), fill=(220, 40, 60)
                )
            picture = np.asarray(frame)
            if n in self.flash:
                picture = np.clip(picture.astype(np.float32) * 0.3 + 180, 0, 255).astype(np.uint8)
            out.append(picture)
        return out


def _within(box, size):
    left, top, right, bottom = box
    width, height = min(right - left, size[0]), min(bottom - top, size[1])
    left, top = np.clip(left, 0, size[0] - width), np.clip(top, 0, size[1] - height)
    return (left, top, left + width, top + height)


@dataclass
class Film:
    """A film being cut together: frames, and the first frame of every shot after the first, by kind of transition."""

    size: tuple[int, int] = SIZE
    frames: list[np.ndarray] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    gradual: list[tuple[str, int, int]] = field(default_factory=list)  # kind, first and last mixed frame

    def cut(self, take: Take) -> "Film":
        if self.frames:
            self.cuts.append(len(self.frames))
        self.frames += take.paint(self.size)
        return self

    def dissolve(self, take: Take, length: int) -> "Film":
        new = take.paint(self.size)
        first = len(self.frames) - length
        for k in range(length):
            share = (k + 1) / (length + 1)
            mixed = (1 - share) * self.frames[first + k] + share * new[k]
            self.frames[first + k] = mixed.astype(np.uint8)
        self.gradual.append(("dissolve", first, first + length))
        self.frames += new[length:]
        return self

    def fade(self, take: Take, out: int = 12, dark: int = 6, into: int = 12) -> "Film":
        """Through black: `out` frames down, `dark` black, `into` frames up."""
        first = len(self.frames) - out
        for k in range(out):
            self.frames[first + k] = (self.frames[first + k] * (1 - (k + 1) / out)).astype(np.uint8)
        self.frames += [np.zeros_like(self.frames[0])] * dark
        new = take.paint(self.size)
        for k in range(into):
            new[k] = (new[k] * (k / into)).astype(np.uint8)
        self.frames += new
        self.gradual.append(("fade", first, first + out + dark + into))
        return self

    def write(self, path: Path, fps: Fraction = Fraction(FPS), times: Sequence[float] | None = None) -> Path:
        """Encode it the way films are: H.264, lossy, groups of pictures; `times` in seconds make the rate variable."""
        return write_film(path, self.frames, fps, times)


def write_film(
    path: Path, frames, fps=Fraction(FPS), times=None, crf=23, codec="libx264", pixels="yuv420p"
) -> Path:
    base = Fraction(1, 1000) if times else 1 / Fraction(fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        height, width = frames[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        stream.codec_context.time_base = base
        for n, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = (round(times[n] * 1000) if times else n), base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def written(frame: np.ndarray, text: str, size: int = 12, at: tuple[float, float] = (0.1, 0.8)) -> np.ndarray:
    """The frame with words burnt in, white with a dark edge, as subtitles and titles are."""
    image = Image.fromarray(frame)
    place = (at[0] * image.width, at[1] * image.height)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(place, text, "white", font, stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def score_cuts(
    found: Sequence[int], truth: Sequence[int], slack: int = 1
) -> tuple[float, list[int], list[int]]:
    """F1 of found against true cuts within `slack` frames; those found wrongly, and those missed."""
    left, wrong = list(truth), []
    for frame in found:
        near = [t for t in left if abs(t - frame) <= slack]
        if near:
            left.remove(min(near, key=lambda t: abs(t - frame)))
        else:
            wrong.append(frame)
    hits = len(truth) - len(left)
    return 2 * hits / max(1, len(found) + len(truth)), wrong, left


def tally(film: Film, found: Sequence[tuple[int, str]]) -> Counter[str]:
    """Count by kind: changes there are (true), those found (hit), and by that name (named), and finds of nothing (false).

    `found` are frames and kinds. A cut counts within 1 frame, a fade or a dissolve from its first to its last mixed frame; each
    find counts for one change, so a fade that is found twice is found once and wrong once.
    """
    left, count = list(found), Counter()
    changes = [("cut", frame - 1, frame + 1) for frame in film.cuts] + film.gradual
    for kind, first, last in changes:
        near = [b for b in left if first <= b[0] <= last]
        count[f"{kind} true"] += 1
        if near:
            best = min(near, key=lambda b: (b[1] != kind, abs(b[0] - (first + last) / 2)))
            count[f"{kind} hit"] += 1
            count[f"{kind} named"] += best[1] == kind
            left.remove(best)
    count.update(f"{kind} false" for _, kind in left)
    return count


def f1(count: Counter[str], kind: str) -> float:
    """F1 of a kind of change, of a tally."""
    true, hit, false = (count[f"{kind} {what}"] for what in ("true", "hit", "false"))
    return 2 * hit / max(1, true + hit + false)


def montage(seed: int, shots: int = 14, size: tuple[int, int] = SIZE) -> Film:
    """A film of random shots with every difficulty: cuts in one place, dark ones, fast motion, flashes, drawn on threes,
    fades and dissolves."""
    rng = np.random.default_rng(seed)
    film = Film(size)
    last = seed * 100
    for n in range(shots):
        same = n and rng.random() < 0.3
        last = last if same else seed * 100 + n
        length = int(rng.integers(14, 70))
        take = Take(
            last,
            length,
            pan=float(rng.choice([0, 0.5, 1.5, 4, -3])),
            zoom=float(rng.choice([1.0, 1.6, 2.4])) if same else float(rng.choice([0.7, 1.0])),
            start=float(rng.uniform(0.1, 2.5)),
            runner=float(rng.choice([0, 0, 4, 10])),
            dark=float(rng.choice([1.0, 1.0, 1.0, 0.35])),
            every=int(rng.choice([1, 1, 1, 2, 3])),
            shake=float(rng.choice([0, 0, 2.0])),
            flash=[length // 2 + k for k in range(int(rng.integers(1, 4)))] if rng.random() < 0.25 else (),
        )
        kind = rng.choice(["cut", "cut", "cut", "fade", "dissolve"]) if n else "cut"
        room = len(film.frames) - max([0, *film.cuts, *(last for _, _, last in film.gradual)])
        if kind == "cut" or min(length, room) < 40:
            film.cut(take)
        elif kind == "fade":
            film.fade(take, out=int(rng.integers(6, 16)), dark=int(rng.integers(2, 12)))
        else:
            film.dissolve(take, int(rng.choice([8, 16, 24])))
    return film
