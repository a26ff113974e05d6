"""Stage `scenes`: adjacent shots of one place and cast become a scene; a long take becomes one, split at its events."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, pairwise
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Float32
from pydantic import Field

from longshot.data.encoders import LINKED, EncoderName, Vectors, encoder
from longshot.data.records import Row, SceneRow, SceneShot, ShotRow
from longshot.data.shots import tiles_of
from longshot.data.stage import Lines, Made, Place, Settings, Stage, Unit

ShotVectors = Iterable[Float32[np.ndarray, "_ width"]]
"""Of each shot, vectors of its pictures; each has its own number of them."""
Alike = Float[np.ndarray, "shots reach"]
"""How alike each shot is to the next one, the one after that, and so on; -1 to 1."""
CHANGED = {"id", "start_frame", "stop_frame", "start_s", "stop_s", "samples", "first_tile", "begins"}
"""Fields in which a part of a take differs from the whole."""

FLAT = 0.04
"""Spread of brightness, 0 to 1, below which a picture shows nothing to compare."""


class SceneSettings(Settings):
    encoder: EncoderName = "colours"
    """what pictures are compared by: colours (no download), dinov2 or clip (extra longshot[encoders])"""
    model: str = ""
    """another model for dinov2 or clip: a folder, or a name on the hub"""
    similarity: float | None = Field(None, gt=-1, lt=1)
    """from which two shots are linked; by default the encoder's own (colours 0.6, dinov2 0.55, clip 0.8)"""
    reach: int = Field(5, ge=1)
    """a shot is linked to shots up to so many further on: A-B-A-B is one scene"""
    reach_s: float = Field(60.0, gt=0)
    """and no more than so many seconds of other shots between them"""
    max_shots: int = Field(9, ge=1)
    """the context window: a longer scene is split where its shots are least alike"""
    max_s: float | None = Field(None, gt=0)
    """longest scene in seconds, where there is a limit; a shot that is longer alone stays whole"""
    take_s: float = Field(6.0, gt=0)
    """a shot this long may become a take"""
    take_change: float = Field(0.3, ge=0, le=2)
    """... if its pictures differ by so much (1 - similarity) from each other somewhere"""
    event_min_s: float = Field(2.0, gt=0)
    event_max_s: float = Field(10.0, gt=0)
    """lengths of the parts of a take"""
    event_cost: float = Field(0.15, ge=0)
    """what a part more must gain in likeness of its pictures to each other; higher gives fewer parts"""


@dataclass(frozen=True)
class Scenes(Stage):
    """Rows of scenes from all shots of a film. Every shot is in exactly one scene of kind `cuts`; takes come on top."""

    name = "scenes"
    after = "shots"
    version = 1
    reads = ShotRow
    writes = SceneRow
    settings: SceneSettings
    place: Place

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        for film, shots in groupby(rows, key=lambda row: (row["film"]["path"], row["film"]["sha256"])):
            yield Unit(film[0], Lines(shots))

    def run(self, unit: Unit, key: str) -> Made:
        # Of a film's shots only times are held: they are read again as scenes are made of them.
        encode = encoder(self.settings.encoder, self.settings.model)
        times: list[tuple[float, float]] = []
        parted: dict[int, list[int]] = {}

        def vectors() -> Iterator[Vectors]:
            for n, shot in enumerate(map(ShotRow.of, unit.rows)):
                seen = encode(tiles_of(self.place, shot))
                if starts := self._starts(shot, seen):
                    parted[n] = starts
                times.append((shot.start_s, shot.stop_s))
                yield seen

        alike = likenesses(vectors(), self.settings.reach)
        scenes = (self._scene(unit.rows, alike, part) for part in self._parts(times, alike))
        takes = (take for n in parted for take in self._takes(ShotRow.of(unit.rows[n]), parted[n]))
        return Made(merge(scenes, takes, key=lambda row: (row.shots[0].start_frame, row.kind)))

    def _linked(self) -> float:
        return LINKED[self.settings.encoder] if self.settings.similarity is None else self.settings.similarity

    # -- scenes of several shots
    def _parts(self, times: Sequence[tuple[float, float]], alike: Alike) -> Iterator[range]:
        settings = self.settings
        links = alike >= self._linked()
        for early, k in zip(*np.nonzero(links), strict=True):
            if times[early + 1 + k][0] - times[early][1] > settings.reach_s:
                links[early, k] = False
        lengths = [stop - start for start, stop in times]
        for group in linked_groups(links):
            yield from split(group, alike, lengths, settings.max_shots, settings.max_s)

    def _scene(self, shots: Sequence[Row], alike: Alike, part: range) -> SceneRow:
        inside = [ShotRow.of(shots[n]) for n in part]
        near = [float(alike[n, : part.stop - 1 - n].max()) for n in part[:-1]]
        members = tuple(SceneShot(**dict(shot), cut=True) for shot in inside)
        return SceneRow(
            id=f"{inside[0].film.sha256[:16]}-{inside[0].start_frame:07d}-{inside[-1].stop_frame:07d}",
            film=inside[0].film,
            kind="cuts",
            shots=members,
            similarity=round(float(np.mean(near)), 4) if near else None,
        )

    # -- takes
    def _starts(self, shot: ShotRow, vectors: Vectors) -> list[int]:
        """Return at which samples the parts of a shot begin; none where it is no take of several."""
        settings = self.settings
        if shot.seconds < max(settings.take_s, 2 * settings.event_min_s):
            return []
        shown = vectors[
            [sample.spread > FLAT for sample in shot.samples]
        ]  # what a fade leaves isn't a change of place
        if not len(shown) or 1 - float((shown @ shown.T).min()) < settings.take_change:
            return []
        later = events(vectors, [s.second for s in shot.samples], shot.stop_s, settings)
        return [0, *later] if later else []

    def _takes(self, shot: ShotRow, starts: Sequence[int]) -> Iterator[SceneRow]:
        # In pieces of equal length rather than full windows and a rest.
        count = ceil(len(starts) / self.settings.max_shots)
        for piece in np.array_split(np.arange(len(starts)), count):
            members = tuple(self._part(shot, n, starts) for n in piece.tolist())
            start, stop = members[0].start_frame, members[-1].stop_frame
            name = f"{shot.film.sha256[:16]}-{start:07d}-{stop:07d}-take"
            yield SceneRow(id=name, film=shot.film, kind="take", shots=members)

    def _part(self, shot: ShotRow, n: int, starts: Sequence[int]) -> SceneShot:
        """Return part n of a take, from sample starts[n] up to the next one's."""
        first, last = starts[n], starts[n + 1] if n + 1 < len(starts) else len(shot.samples)
        begin, end = shot.samples[first], shot.samples[last] if last < len(shot.samples) else None
        return SceneShot(
            **{name: value for name, value in shot if name not in CHANGED},
            id=f"{shot.id}.{n}",
            start_frame=begin.frame if n else shot.start_frame,
            stop_frame=end.frame if end else shot.stop_frame,
            start_s=begin.second if n else shot.start_s,
            stop_s=end.second if end else shot.stop_s,
            samples=shot.samples[first:last],
            first_tile=shot.first_tile + first,
            begins="event" if n else shot.begins,
            cut=n == 0,
        )


def likenesses(vectors: ShotVectors, reach: int) -> Alike:
    """Return how alike each shot is to the next `reach` ones, -1 to 1; -1 where there is none any more.

    Two shots are as alike as their most similar pictures: the camera may show the place only for a moment. Of the vectors,
    those of `reach` shots are held at a time, so that a film may be of any length.
    """
    rows: list[np.ndarray] = []
    before: deque[Vectors] = deque(maxlen=reach)
    for late, seen in enumerate(vectors):
        rows.append(np.full(reach, -1.0))
        for k, earlier in enumerate(reversed(before)):
            rows[late - 1 - k][k] = float((earlier @ seen.T).max())
        before.append(seen)
    return np.stack(rows) if rows else np.empty((0, reach))


def linked_groups(links: Bool[np.ndarray, "shots reach"]) -> Iterator[range]:
    """Yield runs of shots: a boundary lies where no link goes from a shot before it to one after (overlapping links).

    links: of each shot, whether it is linked to the next one, the one after that, and so on.
    """
    start, furthest = 0, 0
    for shot in range(len(links)):
        if shot > furthest:
            yield range(start, shot)
            start = shot
        later = np.nonzero(links[shot])[0]
        furthest = max(furthest, shot, shot + 1 + int(later.max()) if len(later) else shot)
    if len(links):
        yield range(start, len(links))


def split(
    group: range,
    alike: Alike,
    lengths: Sequence[float],
    max_shots: int,
    max_s: float | None,
) -> list[range]:
    """Return the group in as few parts as the window allows, cut where shots on both sides are least alike.

    A part of several shots is at most max_shots and max_s long. Exact, by dynamic programming over the last cut.
    """
    shots = list(group)
    best: list[tuple[int, float, int]] = [
        (0, 0.0, 0)
    ]  # parts, likeness cut through, where the last part starts
    for stop in range(1, len(shots) + 1):
        options = []
        for start in range(stop - 1, max(-1, stop - max_shots - 1), -1):
            if max_s is not None and stop - start > 1 and sum(lengths[n] for n in shots[start:stop]) > max_s:
                break
            cost = max(0.0, float(alike[shots[start] - 1, 0])) if start else 0.0
            options.append((best[start][0] + 1, best[start][1] + cost, start))
        best.append(min(options))
    cuts = [len(shots)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][2])
    return [range(shots[a], shots[b - 1] + 1) for a, b in pairwise(reversed(cuts))]


def events(vectors: Vectors, seconds: Sequence[float], stop_s: float, settings: SceneSettings) -> list[int]:
    """Return at which samples new parts of a take begin: parts whose pictures are alike, of the lengths allowed.

    Minimises, over all divisions, the squared distances of pictures to the mean of their part plus event_cost a part.
    """
    count = len(vectors)
    times = [*seconds, stop_s]
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, axis=0, dtype=np.float64)])
    best: list[tuple[float, int]] = [(0.0, 0)] + [(np.inf, 0)] * count
    for stop in range(1, count + 1):
        for start in range(stop - 1, -1, -1):
            length = times[stop] - times[start]
            if length > settings.event_max_s:
                break
            if length < settings.event_min_s or best[start][0] == np.inf:
                continue
            inside = sums[stop] - sums[start]
            scatter = (stop - start) - float(inside @ inside) / (stop - start)
            cost = best[start][0] + scatter + settings.event_cost
            if cost < best[stop][0]:
                best[stop] = cost, start
    if best[count][0] == np.inf:  # no division has the lengths asked for
        return []
    starts, at = [], count
    while at:
        at = best[at][1]
        starts.append(at)
    return [start for start in reversed(starts) if start]
