"""Where a film changes from one take to the next: hard cuts, dissolves and fades, found while the frames go by.

Hard cuts are PySceneDetect's AdaptiveDetector, whose finds are then checked against the pictures around them, since a flash
and fast drawn motion look like cuts to it. Dissolves are found by what they are: a frame that is the mean of one before and
one after, which differ. Fades are the darkness (or the white) between two different pictures. Everything is decided at
most DELAY frames after it is seen, so memory doesn't grow with the film.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from longshot.data.records import Begin
from longshot.data.stage import Settings
from longshot.errors import UserError

Small = UInt8[np.ndarray, "height width 3"]
Tiny = Float32[np.ndarray, "18 32 3"]

TINY = (32, 18)
"""Width and height of the thumbnails that pictures are compared by."""


class CutSettings(Settings):
    ratio: float = 3.0
    """hard cut: how many times larger the change is than those of the 2 frames on either side (AdaptiveDetector)"""
    content: float = 12.0
    """hard cut: least change of hue, saturation and brightness, mean of 0 to 255 (min_content_val)"""
    lead: float = 1.8
    """hard cut: how many times larger the change is than the usual change in the third of a second on either side"""
    flash_s: float = 0.3
    """a picture that is back within so many seconds was hidden by a flash, not cut away from"""
    dissolve_s: float = 2.0
    """longest dissolve that is looked for; 0 looks for none"""
    dissolve_change: float = 0.08
    """dissolve: least mean difference of the pictures before and after, 0 to 1"""
    dissolve_fit: float = 0.26
    """dissolve: how far the middle may be from their mean, as a share of that difference"""
    black: float = 0.05
    """fade: mean brightness below which a frame counts as black, 0 to 1"""
    white: float = 0.95
    """fade: mean brightness above which a frame counts as white"""
    hold_s: float = 1.0
    """black or white that lasts longer is a shot of its own"""


@dataclass(frozen=True)
class Boundary:
    """A new shot begins at `frame`; `half` frames on either side are a mixture of the two."""

    frame: int
    kind: Begin
    half: int = 0


@runtime_checkable
class Finder(Protocol):
    """Finds boundaries in frames that are pushed one by one. A boundary comes at most `delay` frames late, in order."""

    delay: int

    def push(self, picture: Small, tiny: Tiny) -> list[Boundary]: ...

    def finish(self) -> list[Boundary]: ...


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of two thumbnails, 0 to 1."""
    return float(np.abs(a - b).mean())


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two thumbnails, -1 to 1: the same picture brighter or paler is still the same."""
    a, b = a - a.mean((0, 1)), b - b.mean((0, 1))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-6 else 0.0


def is_other(a: Tiny, b: Tiny) -> bool:
    """Say whether two thumbnails show different views, rather than things that moved in one view.

    Motion changes a part of the picture and keeps its colours and most of its layout; another view has other colours, or
    differs nearly everywhere. Measured on generated films: cuts have a colour distance of 0.31 or more or differ in 0.8
    of the picture; large things that jump a quarter of the picture have 0.25 at most and differ in 0.7 at most.
    """
    if min(a.std(), b.std()) < UNIFORM:
        return distance(a, b) > 0.08
    if colour_distance(a, b) > 0.45:
        return True
    least = max(0.015, 0.3 * float(a.std() + b.std()) / 2)
    changed = float((np.abs(a - b).max(-1) > least).mean())
    return likeness(a, b) < 0.5 and changed > 0.7


def colour_distance(a: Tiny, b: Tiny) -> float:
    """Return how much of the picture has other colours, 0 to 1, by histograms of 64 colours."""
    return 0.5 * float(np.abs(_colours(a) - _colours(b)).sum()) / (a.size // 3)


def _colours(tiny: Tiny) -> np.ndarray:
    levels = np.minimum(
        (np.sqrt(tiny) * 4).astype(np.int64), 3
    )  # the root gives dark colours their share of the bins
    return np.bincount((levels @ np.array([16, 4, 1])).ravel(), minlength=64)


UNIFORM = 0.02
"""A thumbnail whose values spread less than this (standard deviation, 0 to 1) shows nothing."""


@dataclass
class _History:
    """The last frames: thumbnails and scores, by frame number."""

    keep: int
    first: int = 0
    tiny: deque[Tiny] = field(default_factory=deque)
    blurred: deque[np.ndarray] = field(default_factory=deque)
    score: deque[float] = field(default_factory=deque)

    @property
    def end(self) -> int:
        return self.first + len(self.tiny)

    def add(self, tiny: Tiny, score: float) -> None:
        self.tiny.append(tiny)
        self.blurred.append(tiny.reshape(9, 2, 16, 2, 3).mean((1, 3)))
        self.score.append(score)
        if len(self.tiny) > self.keep:
            self.tiny.popleft()
            self.blurred.popleft()
            self.score.popleft()
            self.first += 1

    def at(self, frame: int) -> Tiny:
        return self.tiny[frame - self.first]

    def blurred_at(self, frame: int) -> np.ndarray:
        """Return half the thumbnail: motion weighs less in it, and a mixture is still one."""
        return self.blurred[frame - self.first]

    def scores(self, start: int, stop: int) -> list[float]:
        start, stop = max(start, self.first), min(stop, self.end)
        return [self.score[frame - self.first] for frame in range(start, stop)]

    def span(self, start: int, stop: int) -> range:
        return range(max(start, self.first), min(stop, self.end))


class Classic:
    """Hard cuts, dissolves and fades without a learned model. `fps` turns the settings' seconds into frames."""

    def __init__(self, settings: CutSettings, fps: float) -> None:
        self.settings = settings
        self.flash = max(2, round(settings.flash_s * fps))
        self.near = max(4, round(fps / 3))
        self.reach = max(3, round(settings.dissolve_s * fps / 2)) if settings.dissolve_s > 0 else 0
        self.hold = max(2, round(settings.hold_s * fps))
        self.delay = max(self.flash, self.near, 2 * self.reach, self.hold) + 8
        self.history = _History(2 * self.delay + 8)
        self.adaptive = _adaptive(settings)
        self.hard: list[int] = []  # candidates, not checked yet
        self.found: list[Boundary] = []  # checked, not given out yet
        self.fits: deque[tuple[int, float, float, int]] = deque(maxlen=2 * self.reach + 2)
        self.dark = _Hold()
        self.bright = _Hold()
        self.given = -1

    def push(self, picture: Small, tiny: Tiny) -> list[Boundary]:
        now = self.history.end
        candidates, score = self.adaptive(now, picture)
        self.history.add(tiny, score)
        self.hard += candidates
        while self.hard and now >= self.hard[0] + max(self.flash, self.near):
            self._check_hard(self.hard.pop(0))
        mean = float(tiny.mean())
        self._fade(self.dark, now, mean < self.settings.black)
        self._fade(self.bright, now, mean > self.settings.white)
        if self.reach:
            self._dissolve(now)
        return self._ready(now - self.delay)

    def finish(self) -> list[Boundary]:
        for frame in self.hard:
            self._check_hard(frame)
        self.hard = []
        if self.reach and self.fits:
            self._pick_dissolve(flush=True)
        return self._ready(self.history.end)

    def _ready(self, until: int) -> list[Boundary]:
        """Give out, in order, the boundaries before frame `until`; of several about the same change, one."""
        ready = sorted((b for b in self.found if b.frame <= until), key=lambda b: b.frame)
        self.found = [b for b in self.found if b.frame > until]
        out = []
        for boundary in ready:
            # Whatever explains the same change twice: a hard cut says it best.
            better = {"dissolve": ("cut", "fade"), "fade": ("cut",)}.get(boundary.kind, ())
            rivals = [b for b in (*ready, *self.found) if b.kind in better]
            if any(abs(b.frame - boundary.frame) <= b.half + boundary.half + 1 for b in rivals):
                continue
            if boundary.frame > max(self.given, 0):
                out.append(boundary)
                self.given = boundary.frame
        return out

    # -- hard cuts
    def _check_hard(self, frame: int) -> None:
        before, after = self.history.at(frame - 1), self.history.at(frame)
        change = distance(before, after)
        if (
            change >= 0.02
            and is_other(before, after)
            and self._leads(frame)
            and not self._is_flash(frame, change)
        ):
            self.found.append(Boundary(frame, "cut"))

    def _is_flash(self, frame: int, change: float) -> bool:
        """Whether the picture before is back soon, or the one after was there a moment ago."""
        history, same = self.history, 0.4 * change
        before, after = history.at(frame - 1), history.at(frame)
        back = (distance(before, history.at(k)) for k in history.span(frame + 1, frame + self.flash + 1))
        there = (distance(after, history.at(k)) for k in history.span(frame - 1 - self.flash, frame - 1))
        return any(d < same for d in back) or any(d < same for d in there)

    def _leads(self, frame: int) -> bool:
        """Whether the change stands out from the others around, frames that repeat the one before left aside."""
        scores = self.history.scores(frame - self.near, frame + self.near + 1)
        own = self.history.scores(frame, frame + 1)[0]
        moving = [score for score in scores if score > 1.0]
        return own >= self.settings.lead * float(np.median(moving)) or len(moving) <= 3

    # -- fades
    def _fade(self, hold: "_Hold", now: int, inside: bool) -> None:
        if inside:
            if hold.since is None:
                hold.since = now
            if now - hold.since + 1 == self.hold and hold.since > 0 and not self._hard_at(hold.since):
                self.found.append(Boundary(hold.since, "fade"))
            return
        since, hold.since = hold.since, None
        if since is None or since == 0:
            return
        if now - since >= self.hold:
            if not self._hard_at(now):
                self.found.append(Boundary(now, "fade"))
        elif (
            now - since >= 2
            and not self._hard_at(since)
            and not self._hard_at(now)
            and self._differs(since, now)
        ):
            self.found.append(Boundary((since + now) // 2, "fade", half=(now - since) // 2))

    def _hard_at(self, frame: int) -> bool:
        near = range(frame - 1, frame + 2)
        return any(h in near for h in self.hard) or any(
            b.frame in near and b.kind == "cut" for b in self.found
        )

    def _differs(self, since: int, now: int) -> bool:
        """Whether the pictures on both sides of the dark are two; the frames nearest to it show what is there."""
        before = max(self.history.first, since - 2)
        return likeness(self.history.at(before), self.history.at(now)) < 0.8

    # -- dissolves
    def _dissolve(self, now: int) -> None:
        """Judge the frame `reach` ago as the middle of a dissolve of several lengths."""
        middle = now - self.reach
        best = (middle, 1.0, 0.0, 0)
        m = self.history.blurred_at(middle) if middle >= self.history.first else None
        for half in _halves(self.reach):
            if m is None or middle - half < self.history.first:
                break
            a, b = self.history.blurred_at(middle - half), self.history.blurred_at(middle + half)
            change = distance(a, b)
            if change < self.settings.dissolve_change:
                continue
            fit = float(np.abs(m - (a + b) / 2).mean()) / change
            if fit < best[1] and self._is_mixture(a, b, middle, half):
                best = (middle, fit, change, half)
        self.fits.append(best)
        if len(self.fits) == self.fits.maxlen:
            self._pick_dissolve()

    def _is_mixture(self, a: np.ndarray, b: np.ndarray, middle: int, half: int) -> bool:
        """Whether two different pictures, both with something on them, change over the whole frame and step by step."""
        if min(a.std(), b.std()) < UNIFORM or likeness(a, b) > 0.6:
            return False
        span = b - a
        if float((np.abs(span).max(-1) > 0.06).mean()) < 0.6:
            return False
        power = float((span * span).sum())
        early, late = self.history.blurred_at(middle - half // 2), self.history.blurred_at(middle + half // 2)
        shares = [
            float(((x - a) * span).sum()) / power for x in (early, self.history.blurred_at(middle), late)
        ]
        return -0.1 < shares[0] < 0.45 < shares[1] + 0.1 and shares[1] < 0.65 and 0.55 < shares[2] < 1.1

    def _pick_dissolve(self, flush: bool = False) -> None:
        """Take the frame in the middle of the window where it fits best of all there."""
        places = range(len(self.fits)) if flush else [len(self.fits) // 2]
        best = min(range(len(self.fits)), key=lambda i: self.fits[i][1])
        if best not in places or self.fits[best][1] > self.settings.dissolve_fit:
            return
        frame, _, _, half = self.fits[best]
        if any(b.kind == "cut" and abs(b.frame - frame) <= half for b in self.found):
            return
        if any(b.kind == "dissolve" and abs(b.frame - frame) <= self.reach for b in self.found):
            return
        self.found.append(Boundary(frame, "dissolve", half))


@dataclass
class _Hold:
    """Since when it has been dark (or white); None when it isn't."""

    since: int | None = None


def _halves(reach: int) -> Iterable[int]:
    """Yield half lengths of dissolves, from short to long, the longest included."""
    half = 3
    while half < reach:
        yield half
        half = half * 3 // 2 + 1
    yield reach


def _adaptive(settings: CutSettings):
    """Return a function of (frame, picture) that gives PySceneDetect's candidates, 2 frames late, and the frame's score."""
    scenedetect, cv2 = load_scenedetect()
    detector = scenedetect.AdaptiveDetector(
        adaptive_threshold=settings.ratio, min_scene_len=1, window_width=2, min_content_val=settings.content
    )

    def look(frame: int, picture: Small) -> tuple[list[int], float]:
        # Frames are counted, not timed: a nominal rate will do, and a variable one makes no difference.
        cuts = detector.process_frame(
            scenedetect.FrameTimecode(frame, 24.0), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        )
        return [cut.frame_num for cut in cuts], float(detector._frame_score or 0.0)

    return look


def load_scenedetect() -> tuple[Any, Any]:
    """Return the modules scenedetect and cv2; UserError says how to install them."""
    try:
        import cv2
        import scenedetect
    except ImportError as error:
        raise UserError(
            "finding shots needs PySceneDetect: pip install 'longshot[data]' (or scenedetect-headless)"
        ) from error
    cv2.setNumThreads(1)  # small pictures: threads cost more than they bring, and workers share the machine
    return scenedetect, cv2


def finder(settings: CutSettings, fps: float) -> Finder:
    """Return the detector for a film of `fps` frames a second. One that is learned would be another branch here."""
    return Classic(settings, fps)
