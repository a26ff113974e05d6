"""What is measured of frames while they go by: light, motion, shake, text, the black around a letterbox, a perceptual hash."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, UInt8

from longshot.data.cuts import TINY, Small, Tiny, load_cv2, middle

Grey = UInt8[np.ndarray, "height width"]
GREY_WIDTH = 480
"""Width at which text and borders are looked for: letters of a subtitle are then 10 to 20 pixels high."""
COARSE_WIDTH = 200
STEEP = 160
"""Sobel slope of an edge between letter and ground: a step of 40 in 255."""
MOTION = (64, 36)
NO_BORDER = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """One frame of a film, small, and what was measured of it. change and jump are against the frame before."""

    index: int
    second: float
    picture: Small
    luma: float
    spread: float
    change: float
    jump: tuple[float, float] | None
    """how far the picture moved, in frame widths; None where that can't be said"""
    detail: "Detail | None"


@dataclass(frozen=True)
class Detail:
    """What is looked for in some frames only, since it takes a larger picture."""

    text: float
    """share of the picture covered by what looks like lines of writing that stand still"""
    sharp: float
    border: tuple[float, float, float, float]
    """black at the left, top, right, bottom, as shares of width and height"""


class Meter:
    """Measures frames one by one, in order."""

    def __init__(self, detail_every: int) -> None:
        self.cv2 = load_cv2()
        self.detail_every = detail_every
        self.window = self.cv2.createHanningWindow(MOTION, self.cv2.CV_32F)
        self.motion: Float32[np.ndarray, "height width"] | None = None
        self.spread = 0.0  # of `motion`
        self.edges: tuple[np.ndarray, ...] | None = None
        # Kept from frame to frame, since setting up a scaler costs as much as scaling.
        self.to_fine, self.to_coarse = VideoReformatter(), VideoReformatter()
        self.index = 0

    def measure(self, second: float, stored, picture: Small) -> tuple[Frame, Tiny]:
        """Return the frame's measures and its thumbnail. `stored` is the frame as decoded, `picture` as shown, small."""
        cv2 = self.cv2
        tiny = cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA) / np.float32(255)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        motion = cv2.resize(grey, MOTION, interpolation=cv2.INTER_AREA).astype(np.float32)
        luma, spread = (float(value[0, 0]) for value in cv2.meanStdDev(motion))
        change, jump = 0.0, None
        if self.motion is not None:
            change = cv2.norm(motion, self.motion, cv2.NORM_L1) / (motion.size * 255)
            if min(spread, self.spread) >= 8:  # in hardly any picture, noise moves
                jump = self._jump(self.motion, motion.copy())
        detail = None
        if self.index % self.detail_every == 0:
            detail = self._detail(stored)
        frame = Frame(self.index, second, picture, luma / 255, spread / 255, change, jump, detail)
        self.motion, self.spread = motion, spread
        self.index += 1
        return frame, tiny

    def _jump(self, before: np.ndarray, now: np.ndarray) -> tuple[float, float] | None:
        # Both are spent: OpenCV multiplies the window into what it is given.
        (x, y), sure = self.cv2.phaseCorrelate(before, now, self.window)
        return (x / MOTION[0], y / MOTION[0]) if sure > 0.15 else None

    def _detail(self, stored) -> Detail:
        cv2 = self.cv2
        height = max(16, round(stored.height * GREY_WIDTH / stored.width))
        # By swscale both, since OpenCV takes ten times as long over a ratio that isn't whole.
        fine = self.to_fine.reformat(stored, GREY_WIDTH, height, "gray", interpolation="AREA", threads=1)
        low = height * COARSE_WIDTH // GREY_WIDTH
        small = self.to_coarse.reformat(fine, COARSE_WIDTH, low, "gray", interpolation="AREA", threads=1)
        turned = round(stored.rotation / 90)
        grey, coarse = (np.ascontiguousarray(np.rot90(made.to_ndarray(), turned)) for made in (fine, small))
        steep = self._steep(grey)  # up to 255
        edges = tuple(
            cv2.threshold(slope, STEEP, 1, cv2.THRESH_BINARY)[1] for slope in (steep, self._steep(coarse))
        )
        before = self.edges if self.edges and self.edges[0].shape == edges[0].shape else edges
        self.edges = edges
        lines = text_share(edges[0] & before[0], grey, LINES, cv2)
        title = text_share(edges[1] & before[1], coarse, TITLES, cv2)
        return Detail(max(lines, title), cv2.mean(steep)[0] / 255, black_border(grey))

    def _steep(self, grey: Grey) -> Grey:
        return self.cv2.convertScaleAbs(self.cv2.Sobel(grey, self.cv2.CV_16S, 1, 0))


@dataclass(frozen=True)
class Writing:
    """What a block of writing looks like in a grey picture, in pixels or in shares of the picture's height and width."""

    close: tuple[int, int]
    open: tuple[int, int]
    least_height: float
    most_height: float
    least_ratio: float
    """width by height"""
    strokes: float
    """edges that a line of pixels crosses, for each width by height; 4 at least"""
    flat: float
    """share of the block that is as bright as its letters (or as its ground): paint is flat, grass isn't"""


MANY_STROKES = 12
"""A line so long is writing even where its letters are too thin to have a colour of their own; grass has 4 to 6."""
LINES = Writing((1, 13), (4, 9), 0.018, 0.2, 2.2, 0.9, 0.2)
"""Subtitles and credits, at GREY_WIDTH."""
TITLES = Writing((3, 15), (5, 9), 0.12, 0.5, 1.2, 0.9, 0.3)
"""Titles with letters as high as a tenth of the picture, at COARSE_WIDTH."""


def text_share(edges: Grey, grey: Grey, writing: Writing, cv2) -> float:
    """Return the share of the picture covered by writing, 0 to 1, given its strong vertical edges (0 and 1).

    Letters are many short vertical edges side by side, so joined sideways they make low, well filled boxes; and they are
    painted in one colour. Edges that stand still should be given: those that are in a frame and in one half a second before.
    """
    height, width = edges.shape
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones(writing.close, np.uint8))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones(writing.open, np.uint8))
    # Outlines rather than labelled components: a tenth of the time.
    outlines, parents = cv2.findContours(joined, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    area = 0
    for n, outline in enumerate(outlines):
        if parents[0, n, 3] >= 0:  # the edge of a hole
            continue
        x, y, w, h = cv2.boundingRect(outline)
        high = writing.least_height * height <= h <= writing.most_height * height
        if not (high and w >= writing.least_ratio * h and w >= 0.04 * width):
            continue
        if np.count_nonzero(joined[y : y + h, x : x + w]) < 0.5 * w * h:
            continue
        inside = edges[y : y + h, x : x + w]
        strokes = middle((np.diff(inside.astype(np.int8), axis=1) == 1).sum(1))
        if strokes < max(4, writing.strokes * w / h) or not 0.1 < inside.mean() < 0.75:
            continue
        block = grey[y : y + h, x : x + w].astype(np.int16)
        ordered = np.sort(block, axis=None)
        low, bright = part_way(ordered, 0.03), part_way(ordered, 0.97)
        painted = float((np.abs(block - bright) <= 12).mean()) >= writing.flat
        if bright - low >= 50 and (painted or strokes >= MANY_STROKES):
            area += w * h
    return area / (width * height)


def part_way(ordered: np.ndarray, share: float) -> float:
    """Return the quantile of sorted values, as numpy has it, whose own first loads a package that nothing else here needs."""
    place = share * (len(ordered) - 1)
    below, over = int(place), place - int(place)
    a, b = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return a + (b - a) * over if over < 0.5 else b - (b - a) * (1 - over)


def black_border(grey: Grey) -> tuple[float, float, float, float]:
    """Return how much of the picture is black at the left, top, right and bottom, as shares; none of a black picture."""
    rows, columns = grey.max(1) > 28, grey.max(0) > 28
    if not rows.any() or float(grey.mean()) < 10:
        return NO_BORDER
    height, width = grey.shape
    return (
        int(columns.argmax()) / width,
        int(rows.argmax()) / height,
        int(columns[::-1].argmax()) / width,
        int(rows[::-1].argmax()) / height,
    )


def picture_inside(
    borders: list[tuple[float, float, float, float]], width: int, height: int
) -> tuple[int, int, int, int] | None:
    """Return left, top, width, height of the picture inside black bars, in even pixels; None where there are no bars.

    Bars come in pairs: above and below, or left and right, alike to 2 % of the picture and at least 2 % each, in every
    frame looked at. A picture that is dark on one side has no bars.
    """
    seen = [border for border in borders if border != NO_BORDER] or borders
    if not seen:
        return None
    left, top, right, bottom = (min(border[side] for border in seen) for side in range(4))
    across = min(left, right) if abs(left - right) < 0.02 and min(left, right) >= 0.02 else 0.0
    down = min(top, bottom) if abs(top - bottom) < 0.02 and min(top, bottom) >= 0.02 else 0.0
    if not (across or down):
        return None
    # One pixel of the measuring grid more than was seen, so that no black line is left.
    x, y = (
        _even(share and (share + 1 / GREY_WIDTH) * size) for share, size in ((across, width), (down, height))
    )
    return x, y, (width - 2 * x) // 2 * 2, (height - 2 * y) // 2 * 2


def _even(pixels: float) -> int:
    return round(pixels / 2 + 0.25) * 2


def perceptual_hash(picture: Small, cv2) -> str:
    """Return 64 bits as hex: the signs of the lowest frequencies of the picture, which survive scaling and re-encoding."""
    grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()[1:]
    bits = np.concatenate([waves > middle(waves), [False]])
    return np.packbits(bits).tobytes().hex()


def rate(text: str) -> float:
    """Return a rate written as an exact fraction."""
    return float(Fraction(text))
