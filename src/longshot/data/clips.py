"""Frames of a shot out of its film: at a rate and size asked for, inside its letterbox, a few at a time."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from longshot.data.records import ShotRow
from longshot.data.stage import Place
from longshot.video import fit, read_frames

CHUNK_PIXELS = 40_000_000
"""Full-size pixels held at once: 4 frames of 4K."""


def read_clip(
    place: Place, shot: ShotRow, start_s: float, frames: int, fps: Fraction, size: tuple[int, int]
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Return `frames` frames on the screen at start_s + i/fps, cropped and made to cover `size` (width, height).

    start_s counts from the film's first frame. Raises UserError, naming the film, where it doesn't show so many.
    """
    path = place.film(shot.film.path)
    at_once = max(1, CHUNK_PIXELS // max(shot.width * shot.height, 1))
    parts = []
    for first in range(0, frames, at_once):
        count = min(at_once, frames - first)
        begin = Fraction(start_s) + first / fps
        part = read_frames(
            path, start_s=float(begin), stop_s=float(begin + (count - Fraction(1, 2)) / fps), fps=fps
        )
        parts.append(fit(cropped(part[:count], shot), size))
    return np.concatenate(parts)


def read_stills(
    place: Place, shot: ShotRow, times: Sequence[float], longest_side: int
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Return the pictures on the screen at some times, cropped, with no side longer than `longest_side`."""
    fps = Fraction(shot.fps)
    _, _, width, height = shot.crop or (0, 0, shot.width, shot.height)
    scale = min(1.0, longest_side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return [read_clip(place, shot, time, 1, fps, size)[0] for time in times]


def cropped(
    frames: UInt8[np.ndarray, "frames height width 3"], shot: ShotRow
) -> UInt8[np.ndarray, "frames crop_height crop_width 3"]:
    """Return the part of the frames inside the shot's letterbox."""
    if shot.crop is None:
        return frames
    left, top, width, height = shot.crop
    return frames[:, top : top + height, left : left + width]
