"""Where a film changes from one take to the next: hard cuts, dissolves and fades, found while the frames go by.

Hard cuts are proposed by the rule of PySceneDetect's AdaptiveDetector and then checked against the pictures around them, as
a flash and fast drawn motion look like cuts to it. Dissolves are found by what they are: a frame that is the mean of one
before and one after, which differ. Fades are the darkness (or the white) between two different pictures. Everything is
decided at most DELAY frames after it is seen, so memory doesn't grow with the film.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from longshot.data.records import Begin
from longshot.data.stage import Settings
from longshot.errors import UserError

Small = UInt8[np.ndarray, "height width 3"]
Tiny = Float32[np.ndarray, "18 32 3"]

TINY = (32, 18)
"""Width and height of the thumbnails that pictures are compared by."""
BLURRED = (16, 9)
"""... and of the smaller ones that dissolves are looked for in."""


class CutSettings(Settings):
    detector: Literal["classic", "transnetv2"] = "classic"
    """what finds the shots: the rules below, or a learned network (extra longshot[detectors])"""
    learned: float = Field(0.5, gt=0, lt=1)
    """transnetv2: least chance of a change, as the network sees it; the settings below are those of the rules"""
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


def middle(values: Sequence[float] | np.ndarray) -> float:
    """Return the median of values, one at least; numpy's own first loads a package that nothing else here needs."""
    ordered, half = sorted(values), len(values) // 2
    return float(ordered[half]) if len(values) % 2 else float(ordered[half - 1] + ordered[half]) / 2


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


class _History:
    """The last frames by number: thumbnails, half-size thumbnails as rows of numbers, and scores."""

    def __init__(self, keep: int) -> None:
        self.keep, self.first, self.end = keep, 0, 0
        self.tiny: deque[Tiny] = deque(maxlen=keep)
        self.half: deque[np.ndarray] = deque(maxlen=keep)
        self.score: deque[float] = deque(maxlen=keep)

    def add(self, tiny: Tiny, blurred: np.ndarray, score: float) -> None:
        self.first += len(self.tiny) == self.keep
        self.tiny.append(tiny)
        self.half.append(blurred.reshape(-1))
        self.score.append(score)
        self.end += 1

    def at(self, frame: int) -> Tiny:
        return self.tiny[frame - self.first]

    def blurred(self, frame: int) -> np.ndarray:
        """Return half the thumbnail: motion weighs less in it, and a mixture is still one."""
        return self.half[frame - self.first]

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
        self.adaptive = Adaptive(settings)
        self.cv2 = load_cv2()
        self.halves = list(_halves(self.reach)) if self.reach else []
        self.hard: list[int] = []  # candidates, not checked yet
        self.found: list[Boundary] = []  # checked, not given out yet
        self.fits: deque[tuple[int, float, float, int]] = deque(maxlen=2 * self.reach + 2)
        self.dark = _Hold()
        self.bright = _Hold()
        self.given: deque[Boundary] = deque(maxlen=8)

    def push(self, picture: Small, tiny: Tiny) -> list[Boundary]:
        now = self.history.end
        candidates, score = self.adaptive(now, picture)
        self.history.add(tiny, self.cv2.resize(tiny, BLURRED, interpolation=self.cv2.INTER_AREA), score)
        self.hard += candidates
        while self.hard and now >= self.hard[0] + max(self.flash, self.near):
            self._check_hard(self.hard.pop(0))
        mean = sum(self.cv2.mean(tiny)) / 3  # of red, green and blue; the fourth is 0
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
            rivals = (*self.given, *ready, *self.found)
            if not any(self._says_better(rival, boundary) for rival in rivals) and boundary.frame > (
                self.given[-1].frame if self.given else 0
            ):
                out.append(boundary)
                self.given.append(boundary)
        return out

    def _says_better(self, rival: Boundary, boundary: Boundary) -> bool:
        """Whether both explain the same change and the rival is the simpler word for it: cut, then fade, then dissolve."""
        if rival.kind not in {"dissolve": ("cut", "fade"), "fade": ("cut",)}.get(boundary.kind, ()):
            return False
        # The way into the dark and out of it fits a dissolve; it takes about as long again as the dark.
        ramp = self.near if rival.kind == "fade" else 1
        return abs(rival.frame - boundary.frame) <= rival.half + boundary.half + ramp

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
        return len(moving) <= 3 or own >= self.settings.lead * middle(moving)

    # -- fades
    def _fade(self, hold: "_Hold", now: int, inside: bool) -> None:
        if inside:
            if hold.since is None:
                hold.since = now
            if now - hold.since + 1 == self.hold and hold.since > 0:
                self.found.append(Boundary(hold.since, "fade"))
            return
        since, hold.since = hold.since, None
        if since is None or since == 0:
            return
        if now - since >= self.hold:
            self.found.append(Boundary(now, "fade"))
        elif now - since >= 2 and self._differs(since, now):
            self.found.append(Boundary((since + now) // 2, "fade", half=(now - since) // 2))

    def _differs(self, since: int, now: int) -> bool:
        """Whether the pictures on both sides of the dark are two; the frames nearest to it show what is there."""
        before = max(self.history.first, since - 2)
        return likeness(self.history.at(before), self.history.at(now)) < 0.8

    # -- dissolves
    def _dissolve(self, now: int) -> None:
        """Judge the frame `reach` ago as the middle of a dissolve of several lengths."""
        middle = now - self.reach
        best = (middle, 1.0, 0.0, 0)
        # By OpenCV, pair by pair: numpy over all of them at once takes five times as long, mostly between its calls.
        cv2, blurred, fitting = self.cv2, self.history.blurred, []
        for half in self.halves:
            if half > middle - self.history.first:
                break
            a, b = blurred(middle - half), blurred(middle + half)
            change = cv2.norm(a, b, cv2.NORM_L1) / a.size
            if change < self.settings.dissolve_change:
                continue
            mixed = cv2.addWeighted(a, 0.5, b, 0.5, 0)
            fit = cv2.norm(blurred(middle), mixed, cv2.NORM_L1) / a.size / change
            # What fits worse than the setting is never taken, so it needn't be looked at further.
            if fit <= self.settings.dissolve_fit:
                fitting.append((fit, half, change))
        for fit, half, change in sorted(fitting):
            if self._is_mixture(blurred(middle - half), blurred(middle + half), middle, half):
                best = (middle, fit, change, half)
                break
        self.fits.append(best)
        if len(self.fits) == self.fits.maxlen:
            self._pick_dissolve()

    def _is_mixture(self, a: np.ndarray, b: np.ndarray, middle: int, half: int) -> bool:
        """Whether two different pictures, both with something on them, change over the whole frame and step by step."""
        if min(a.std(), b.std()) < UNIFORM or likeness(a.reshape(-1, 1, 3), b.reshape(-1, 1, 3)) > 0.6:
            return False
        span = b - a
        if float((np.abs(span).reshape(-1, 3).max(-1) > 0.06).mean()) < 0.6:
            return False
        frames = middle - half // 2, middle, middle + half // 2
        between = np.stack([self.history.blurred(frame) for frame in frames])
        shares = (between - a) @ span / float(span @ span)
        return bool(-0.1 < shares[0] < 0.45 < shares[1] + 0.1 and shares[1] < 0.65 and 0.55 < shares[2] < 1.1)

    def _pick_dissolve(self, flush: bool = False) -> None:
        """Take the frame in the middle of the window where it fits best of all there."""
        middle = len(self.fits) // 2
        if not flush and self.fits[middle][1] > self.settings.dissolve_fit:
            return  # as nearly always
        best = min(range(len(self.fits)), key=lambda i: self.fits[i][1])
        if not (flush or best == middle) or self.fits[best][1] > self.settings.dissolve_fit:
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


class Adaptive:
    """Candidates for hard cuts by the rule of PySceneDetect's AdaptiveDetector, in two calls a frame; a test equates the two.

    The score of a frame is the mean change of its hue, saturation and brightness (0 to 255) since the one before. A candidate's
    is `ratio` times the mean of the scores of the 2 frames on either side, and `content` at least.
    """

    WINDOW = 2

    def __init__(self, settings: CutSettings) -> None:
        self.ratio, self.content, self.cv2 = settings.ratio, settings.content, load_cv2()
        self.before: Small | None = None
        self.scores: deque[float] = deque(maxlen=2 * self.WINDOW + 1)

    def __call__(self, frame: int, picture: Small) -> tuple[list[int], float]:
        """Return the candidates known from this frame on, which lie WINDOW frames back, and its score."""
        colours = self.cv2.cvtColor(picture, self.cv2.COLOR_RGB2HSV)
        score = 0.0
        if self.before is not None:
            score = self.cv2.norm(colours, self.before, self.cv2.NORM_L1) / colours.size
        self.before = colours
        self.scores.append(score)
        if len(self.scores) < 2 * self.WINDOW + 1 or (own := self.scores[self.WINDOW]) < self.content:
            return [], score
        around = (sum(self.scores) - own) / (2 * self.WINDOW)
        return [frame - self.WINDOW] if around < 1e-5 or own >= self.ratio * around else [], score


def load_cv2() -> Any:
    """Return the module cv2; UserError says how to install it."""
    try:
        import cv2
    except ImportError as error:
        raise UserError("finding shots needs OpenCV: pip install 'longshot[data]'") from error
    cv2.setNumThreads(1)  # small pictures: threads cost more than they bring, and workers share the machine
    return cv2


def finder(settings: CutSettings, fps: float) -> Finder:
    """Return the detector for a film of `fps` frames a second."""
    if settings.detector == "transnetv2":
        from longshot.data.transnet import Learned

        return Learned(settings, fps)
    return Classic(settings, fps)
