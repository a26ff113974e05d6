"""Stage `filter`: every shot and scene gets scores, and what a model shouldn't learn from is marked with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from longshot.data.aesthetics import hash_of, judge
from longshot.data.records import Row, SceneRow, SceneShot
from longshot.data.shots import tiles_of
from longshot.data.stage import Made, Place, Settings, Stage, Unit
from longshot.files import write_text

EXAMPLES = 12


class FilterSettings(Settings):
    """Limits; a filter that is null is off, its score is kept all the same."""

    black: float | None = Field(0.4, ge=0, le=1)
    """most share of pictures that are black (brightness below 0.06, hardly anything on them)"""
    frozen: float | None = Field(0.95, ge=0, le=1)
    """most share of frames that repeat the one before"""
    still: float | None = Field(0.0006, ge=0, le=1)
    """least mean change from frame to frame, of brightness 0 to 1"""
    shaky: float | None = Field(0.015, ge=0)
    """most jerk of the camera, in frame widths a frame"""
    text: float | None = Field(0.004, ge=0, le=1)
    """most share of the picture covered by titles or burnt-in writing, mean over the shot"""
    short_s: float | None = Field(1.0, ge=0)
    """shortest shot"""
    aesthetic: float | None = None
    """least aesthetic score, mean over the shot; LAION's heads give about 1 to 10. Needs a head (extra longshot[aesthetics])"""
    aesthetic_head: str = ""
    """a .safetensors file of linear layers on CLIP's features; with one, every shot gets the score"""
    aesthetic_model: str = ""
    """the CLIP below the head, a folder or a name on the hub; openai/clip-vit-large-patch14 if empty"""
    min_shots: int = Field(1, ge=1)
    """fewest shots that must be left of a scene"""
    duplicate: float | None = Field(0.5, gt=0, le=1)
    """share of a scene's pictures that an earlier scene has too, from which it is a near duplicate"""
    duplicate_bits: int = Field(6, ge=0, le=20)
    """by how many of their 63 bits the hashes of two pictures may differ"""

    @model_validator(mode="after")
    def _head_for_a_limit(self) -> "FilterSettings":
        if self.aesthetic is not None and not self.aesthetic_head:
            raise ValueError("aesthetic needs aesthetic_head, the .safetensors file of a head on CLIP")
        return self

    def resolved(self, folder: Path) -> "FilterSettings":
        paths = {"aesthetic_head": self.aesthetic_head, "aesthetic_model": self.aesthetic_model}
        # A model may be a name on the hub, which is no folder here.
        found = {
            n: str(folder / p)
            for n, p in paths.items()
            if p and (n.endswith("head") or (folder / p).is_dir())
        }
        return self.model_copy(update=found)


@dataclass(frozen=True)
class Filter(Stage):
    """The same scenes with scores, `kept` and reasons; nothing is thrown away. Duplicates are judged over the whole corpus."""

    name = "filter"
    after = "scenes"
    version = 1
    reads = SceneRow
    writes = SceneRow
    settings: FilterSettings
    place: Place

    TESTS: ClassVar[tuple[str, ...]] = ("black", "frozen", "still", "shaky", "text", "aesthetic", "short")

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        """Yield a unit a scene, with the hash of the head that scores it: another one gives other scores."""
        head = self.settings.aesthetic_head
        facts = ({"aesthetic_head": hash_of(head)},) if head else ()
        for row in rows:
            yield Unit(self.label(row), (row, *facts))

    def run(self, unit: Unit, key: str) -> Made:
        scene = SceneRow.of(unit.rows[0])
        shots = [self._judged(shot) for shot in scene.shots]
        if scene.kind == "take":
            shots = _longest_run(shots)
        left = [shot for shot in shots if shot.kept]
        kept = len(left) >= self.settings.min_shots
        reasons = () if kept else tuple(sorted({r for shot in shots for r in shot.reasons})) or ("few shots",)
        counted = left or shots
        scores = {
            name: round(float(np.mean([s.scores[name] for s in counted])), 5) for name in shots[0].scores
        }
        update = {"shots": tuple(shots), "kept": kept, "reasons": reasons, "scores": scores}
        return Made([scene.model_copy(update=update)])

    def _judged(self, shot: SceneShot) -> SceneShot:
        scores, limits = scores_of(shot), self.settings
        if limits.aesthetic_head:
            seen = judge(limits.aesthetic_model, limits.aesthetic_head)(tiles_of(self.place, shot))
            scores["aesthetic"] = round(float(seen.mean()), 5)
        above = {"black": limits.black, "frozen": limits.frozen, "shaky": limits.shaky, "text": limits.text}
        reasons = [name for name, limit in above.items() if limit is not None and scores[name] > limit]
        # What is frozen or black is still as well; one reason will do.
        if limits.still is not None and scores["still"] < limits.still and not reasons:
            reasons.append("still")
        if limits.aesthetic is not None and scores["aesthetic"] < limits.aesthetic:
            reasons.append("aesthetic")
        if limits.short_s is not None and shot.seconds < limits.short_s:
            reasons.append("short")
        return shot.model_copy(update={"scores": scores, "kept": not reasons, "reasons": tuple(reasons)})

    def settle(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Mark scenes that show what an earlier one shows, and write the report of all filters."""
        seen = _Seen(self.settings.duplicate_bits)
        report = FilterReport()
        for row in rows:
            scene = SceneRow.of(row)
            if scene.kept and self.settings.duplicate is not None:
                twin, share = seen.twin(scene)
                scores = scene.scores | {"duplicate": round(share, 4)}
                scene = scene.model_copy(update={"scores": scores})
                if share >= self.settings.duplicate:
                    update = {"kept": False, "reasons": ("duplicate",), "duplicate_of": twin}
                    scene = scene.model_copy(update=update)
                else:
                    seen.add(scene)
            report.count(scene)
            yield scene.row()
        write_text(self.place.folder(self.name) / "report.json", report.text())


def scores_of(shot: SceneShot) -> dict[str, float]:
    """Return what the filters go by: shares from 0 to 1, changes of brightness 0 to 1, frame widths, seconds."""
    samples = shot.samples
    black = np.mean([s.luma < 0.06 and s.spread < 0.04 for s in samples])
    scores = {
        "black": black,
        "frozen": np.mean([s.still for s in samples]),
        "still": np.mean([s.change for s in samples]),
        "shaky": np.mean([s.shake for s in samples]),
        "text": np.mean([s.text for s in samples]),
        "sharp": np.mean([s.sharp for s in samples]),
        "seconds": shot.seconds,
    }
    return {name: round(float(value), 5) for name, value in scores.items()}


def _longest_run(shots: list[SceneShot]) -> list[SceneShot]:
    """Keep the longest run of kept parts of a take: without a part, what follows doesn't continue what came before."""
    runs: list[list[int]] = [[]]
    for n, shot in enumerate(shots):
        if shot.kept:
            runs[-1].append(n)
        else:
            runs.append([])
    longest = max(runs, key=len)
    return [
        shot
        if n in longest or not shot.kept
        else shot.model_copy(update={"kept": False, "reasons": ("gap",)})
        for n, shot in enumerate(shots)
    ]


class _Seen:
    """Hashes of the pictures of scenes seen so far, found by any of four parts that two near hashes share."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.parts: list[dict[int, list[tuple[int, int]]]] = [defaultdict(list) for _ in range(4)]
        self.scenes: list[tuple[str, str, str, int, int]] = []

    def twin(self, scene: SceneRow) -> tuple[str | None, float]:
        """Return the earlier scene that has most of this one's pictures, and which share of them it has."""
        hashes = _hashes(scene)
        hits: dict[int, int] = defaultdict(int)
        for code in hashes:
            near = {
                place
                for n, part in enumerate(self.parts)
                for other, place in part.get(code >> 16 * n & 0xFFFF, ())
                if (code ^ other).bit_count() <= self.bits
            }
            for place in near:
                if not self._is_same_footage(place, scene):
                    hits[place] += 1
        if not hits:
            return None, 0.0
        place = max(hits, key=lambda p: (hits[p], -p))
        return self.scenes[place][0], hits[place] / len(hashes)

    def add(self, scene: SceneRow) -> None:
        shots = scene.kept_shots
        place = len(self.scenes)
        self.scenes.append(
            (scene.id, scene.film.path, scene.kind, shots[0].start_frame, shots[-1].stop_frame)
        )
        for code in _hashes(scene):
            for n, part in enumerate(self.parts):
                part[code >> 16 * n & 0xFFFF].append((code, place))

    def _is_same_footage(self, place: int, scene: SceneRow) -> bool:
        """Whether an earlier scene is the same frames of the same file: a take and the scene it was taken from."""
        _, path, kind, start, stop = self.scenes[place]
        if path != scene.film.path or kind == scene.kind:
            return False
        return scene.shots[0].start_frame < stop and start < scene.shots[-1].stop_frame


def _hashes(scene: SceneRow) -> list[int]:
    """Return the hashes of a scene's pictures that show something: those of flat ones mean nothing."""
    return [int(s.hash, 16) for shot in scene.kept_shots for s in shot.samples if s.spread > 0.04]


@dataclass
class FilterReport:
    """How much each filter took away, with examples."""

    scenes: int = 0
    kept: int = 0
    seconds: float = 0.0
    kept_seconds: float = 0.0
    reasons: dict[str, dict] = field(default_factory=dict)

    def count(self, scene: SceneRow) -> None:
        self.scenes += 1
        self.kept += scene.kept
        self.seconds += sum(shot.seconds for shot in scene.shots)
        self.kept_seconds += scene.seconds if scene.kept else 0.0
        lost: Iterable[SceneShot] = scene.shots if not scene.kept else [s for s in scene.shots if not s.kept]
        for shot in lost:
            for reason in shot.reasons or scene.reasons:
                entry = self.reasons.setdefault(
                    reason, {"shots": 0, "scenes": 0, "seconds": 0.0, "examples": []}
                )
                entry["shots"] += 1
                entry["seconds"] += shot.seconds
                if len(entry["examples"]) < EXAMPLES:
                    example = {
                        "scene": scene.id,
                        "shot": shot.id,
                        "film": scene.film.path,
                        "start_s": shot.start_s,
                    }
                    score = shot.scores.get(
                        "seconds" if reason == "short" else reason, scene.scores.get(reason)
                    )
                    entry["examples"].append(example | {"score": score, "duplicate_of": scene.duplicate_of})
        for reason in scene.reasons:
            self.reasons.setdefault(reason, {"shots": 0, "scenes": 0, "seconds": 0.0, "examples": []})[
                "scenes"
            ] += 1

    def text(self) -> str:
        told = {
            "scenes": self.scenes,
            "kept": self.kept,
            "seconds": round(self.seconds, 3),
            "kept_seconds": round(self.kept_seconds, 3),
            "reasons": {
                name: entry | {"seconds": round(entry["seconds"], 3)}
                for name, entry in sorted(self.reasons.items())
            },
        }
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
