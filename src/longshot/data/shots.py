"""Stage `shots`: a film is decoded once, cut into takes, and everything later stages want to know of it is measured."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
from PIL import Image
from pydantic import Field

from longshot.data.cuts import Boundary, CutSettings, Small, finder, load_cv2
from longshot.data.measure import Frame, Meter, perceptual_hash, picture_inside, rate
from longshot.data.records import FilmRow, Row, Sample, ShotRow
from longshot.data.stage import Lines, Made, Place, Stage, Unit
from longshot.errors import UserError
from longshot.files import atomic_path
from longshot.video import scan

STRIP_TILES = 16
"""Samples side by side in one picture."""
STILL = 0.0008
"""Change of mean brightness, 0 to 1, below which a frame is the one before it again; noise of the codec is above it."""


class ShotSettings(CutSettings):
    width: int = Field(256, ge=64, le=1024)
    """pixels: the width to which frames are scaled for looking at them; samples are kept at it"""
    sample_s: float = Field(1.0, gt=0.04)
    """a frame is kept and measured so often"""


@dataclass(frozen=True)
class Shots(Stage):
    """Rows of shots from a row of a film. Every frame that can be decoded is in exactly one shot."""

    name = "shots"
    after = "probe"
    version = 4
    reads = FilmRow
    writes = ShotRow
    settings: ShotSettings
    place: Place

    def label(self, row: Row) -> str:
        return row["film"]["path"]

    def run(self, unit: Unit, key: str) -> Made:
        film = FilmRow.of(unit.rows[0])
        path = self.place.film(film.film.path)
        if path.is_file() and path.stat().st_size != film.bytes:
            raise UserError(f"{film.film.path}: has changed since it was probed; run the stage probe again")
        settings, fps = self.settings, rate(film.fps)
        cuts, meter = finder(settings, fps), Meter(max(1, round(settings.sample_s * fps / 2)))
        folder = PurePosixPath(self.name, "files", key[:2], key)
        shots = _Shots(film, settings, self.place, folder)
        broken: UserError | None = None
        try:
            for second, stored, picture in scan(path, settings.width):
                frame, tiny = meter.measure(second, stored, picture)
                shots.push(frame, cuts.push(picture, tiny), cuts.delay)
        except UserError as error:
            # Frames before the damage are good; a film without any is not.
            if meter.index == 0:
                raise
            broken = error
        shots.finish(cuts.finish(), film.seconds)
        return Made(
            shots.rows, notes=[f"{broken}; its first {meter.index} frames are used"] if broken else []
        )

    def files(self, row: Row) -> Iterable[str]:
        return row["strips"]


@dataclass
class _Shots:
    """Frames that wait until it is known to which shot they belong, the shot that is being filled, and those finished."""

    film: FilmRow
    settings: ShotSettings
    place: Place
    folder: PurePosixPath
    waiting: deque[Frame] = field(default_factory=deque)
    boundaries: deque[Boundary] = field(default_factory=deque)
    rows: Lines = field(default_factory=Lines)
    shot: "_Shot | None" = None

    def push(self, frame: Frame, found: list[Boundary], delay: int) -> None:
        self.waiting.append(frame)
        self.boundaries.extend(found)
        while self.waiting and self.waiting[0].index < frame.index - delay:
            self._settle(self.waiting.popleft())

    def finish(self, found: list[Boundary], seconds: float) -> None:
        self.boundaries.extend(found)
        last = self.waiting[-1]
        while self.waiting:
            self._settle(self.waiting.popleft())
        end = (
            max(seconds, last.second + 1e-3)
            if last.index + 1 >= self.film.frames
            else last.second + 1 / rate(self.film.fps)
        )
        self._close(last.index + 1, end)

    def _settle(self, frame: Frame) -> None:
        if self.shot is None:
            self.shot = _Shot(self, frame, Boundary(0, "film"))
        elif self.boundaries and self.boundaries[0].frame == frame.index:
            self._close(frame.index, frame.second)
            self.shot = _Shot(self, frame, self.boundaries.popleft())
        half = self.boundaries[0].half if self.boundaries else 0
        until = self.boundaries[0].frame - half if self.boundaries else None
        self.shot.add(frame, until)

    def _close(self, stop: int, stop_s: float) -> None:
        assert self.shot is not None
        self.rows.append(self.shot.row(len(self.rows), stop, stop_s).row())


class _Shot:
    """A shot being filled: its samples, and sums of what was measured since the last one."""

    def __init__(self, shots: _Shots, first: Frame, begin: Boundary) -> None:
        self.shots, self.first, self.begin = shots, first, begin
        self.samples: list[Sample] = []
        self.tiles: list[Small] = []
        self.strips: list[str] = []
        self.borders: set[tuple[float, float, float, float]] = set()
        lead = max(begin.half, 2) / rate(shots.film.fps)
        self.next_s = first.second + lead
        self.middle: Frame | None = None
        self._reset()

    def _reset(self) -> None:
        self.changes: list[float] = []
        self.jumps: list[tuple[float, float] | None] = []
        self.texts: list[float] = []
        self.sharps: list[float] = []

    def add(self, frame: Frame, until: int | None) -> None:
        """Count a frame in; `until` is where the shot's pictures end and a mixture with the next begins, if known."""
        if frame.index > self.first.index:  # the change into a shot is the cut's, not the shot's
            self.changes.append(frame.change)
            self.jumps.append(frame.jump)
        if frame.detail is not None:
            self.texts.append(frame.detail.text)
            self.sharps.append(frame.detail.sharp)
            if len(self.borders) < 1000:
                self.borders.add(frame.detail.border)
        mixed = until is not None and frame.index >= until
        if not mixed or self.middle is None:
            self.middle = frame
        if frame.second >= self.next_s and not mixed:
            self._sample(frame)
            self.next_s = frame.second + self.shots.settings.sample_s - 0.25 / rate(self.shots.film.fps)

    def _sample(self, frame: Frame) -> None:
        cv2 = load_cv2()
        changes = self.changes or [0.0]
        steps = [np.subtract(b, a) for a, b in pairwise(self.jumps) if a and b]
        self.samples.append(
            Sample(
                frame=frame.index,
                second=round(frame.second, 6),
                luma=_short(frame.luma),
                spread=_short(frame.spread),
                change=_short(np.mean(changes)),
                still=_short(np.mean([c < STILL for c in self.changes])) if self.changes else 0.0,
                shake=_short(np.mean([np.hypot(*s) for s in steps])) if len(steps) >= 4 else 0.0,
                text=_short(max(self.texts, default=self.samples[-1].text if self.samples else 0.0)),
                sharp=_short(np.mean(self.sharps))
                if self.sharps
                else (self.samples[-1].sharp if self.samples else 0.0),
                hash=perceptual_hash(frame.picture, cv2),
            )
        )
        self.tiles.append(frame.picture)
        if len(self.tiles) == STRIP_TILES:
            self._write_strip()
        self._reset()

    def _write_strip(self) -> None:
        name = str(self.shots.folder / f"{self.first.index:08d}_{len(self.strips)}.jpg")
        with atomic_path(self.shots.place.file(name)) as temporary:
            # The suffix says the format: told its name, or by write_image, Pillow would learn other formats first.
            Image.fromarray(np.concatenate(self.tiles, axis=1)).save(temporary, quality=92)
        self.strips.append(name)
        self.tiles = []

    def row(self, index: int, stop: int, stop_s: float) -> ShotRow:
        """Return the finished shot."""
        if not self.samples:
            self._sample(self.middle or self.first)
        elif self.changes:  # what was measured after the last sample counts to it
            self._fold()
        if self.tiles:
            self._write_strip()
        film = self.shots.film
        return ShotRow(
            id=f"{film.film.sha256[:16]}-{self.first.index:07d}",
            film=film.film,
            fps=film.fps,
            start_frame=self.first.index,
            stop_frame=stop,
            start_s=self.first.second,
            stop_s=stop_s,
            index=index,
            begins=self.begin.kind,
            width=film.width,
            height=film.height,
            crop=picture_inside(list(self.borders), film.width, film.height),
            strips=tuple(self.strips),
            tile_width=self.first.picture.shape[1],
            tiles=len(self.samples),
            samples=tuple(self.samples),
        )

    def _fold(self) -> None:
        last = self.samples[-1]
        text = max([last.text, *self.texts])
        if len(self.samples) > 1:
            self.samples[-1] = last.model_copy(update={"text": _short(text)})
            return
        steps = [np.subtract(b, a) for a, b in pairwise(self.jumps) if a and b]
        self.samples[-1] = last.model_copy(
            update={
                "change": _short(np.mean(self.changes)),
                "still": _short(np.mean([c < STILL for c in self.changes])),
                "shake": _short(np.mean([np.hypot(*s) for s in steps])) if len(steps) >= 4 else 0.0,
                "text": _short(text),
            }
        )


def _short(value: float | np.floating) -> float:
    return round(float(value), 5)


def tiles_of(place: Place, shot: ShotRow) -> list[Small]:
    """Return the pictures of a shot's samples, in order; UserError where a strip is gone."""
    tiles: list[Small] = []
    for name in shot.strips:
        path = place.file(name)
        if not path.is_file():
            raise UserError(f"{name}: the pictures of shot {shot.id} are gone; run the stage shots again")
        try:
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                strip = np.asarray(image.convert("RGB"))
        except Exception as error:  # as in video.read_image
            raise UserError(f"{name}: is damaged ({error}); run the stage shots again") from error
        tiles += np.split(strip, strip.shape[1] // shot.tile_width, axis=1)
    return tiles[shot.first_tile : shot.first_tile + len(shot.samples)]
