"""From a scene file, or a finished film, to the shots of a plan: prompts, sizes, noise, and whatever is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from longshot.bases.base import Base
from longshot.errors import UserError
from longshot.files import inside
from longshot.lint import scene_frames
from longshot.sample.plan import PlannedShot
from longshot.scene import SHOT_CUT, Reference, Scene, Shot
from longshot.video import is_picture, read_frames, read_image

Frames = UInt8[np.ndarray, "frames height width 3"]


@dataclass(frozen=True)
class Story:
    """The shots of a scene in story order, ready to be planned.

    numbers: for each planned shot the number of its scene shot (from 1), or None for an extra image beside one.
    notes: what a person should know about how references were read.
    """

    global_prompt: str
    shots: tuple[PlannedShot, ...]
    numbers: tuple[int | None, ...]
    notes: tuple[str, ...] = ()

    def place_of(self, number: int) -> int:
        """The place in `shots`, from 1, of a scene shot. Raises UserError when there is no such shot."""
        if number not in self.numbers:
            last = max(n for n in self.numbers if n is not None)
            raise UserError(f"there is no shot {number}; the scene has shots 1 to {last}")
        return self.numbers.index(number) + 1


def tell(
    scene: Scene, base: Base, folder: Path, given: Mapping[int, Path] | None = None, seed: int | None = None
) -> Story:
    """Turns a scene into planned shots for a base.

    folder: where the scene's references lie, and must stay inside. given: files that stand for whole shots (a picture or a
    clip at any place). Identity and environment images become one-frame shots before theirs and stay in every history; a
    first or last frame becomes a one-frame shot right before or after, without a cut between.
    """
    given = given or {}
    if bad := sorted(set(given) - set(range(1, len(scene.shots) + 1))):
        raise UserError(f"there is no shot {bad[0]} to give; the scene has shots 1 to {len(scene.shots)}")
    counts = scene_frames(scene, base.limits())
    teller = _Teller(scene, base, folder, scene.seed if seed is None else seed)
    for number, (shot, prompt, frames) in enumerate(
        zip(scene.shots, scene.shot_prompts(), counts, strict=True), start=1
    ):
        teller.add(number, shot, prompt, frames, given.get(number))
    return Story(scene.global_prompt(), tuple(teller.shots), tuple(teller.numbers), tuple(teller.notes))


class _Teller:
    def __init__(self, scene: Scene, base: Base, folder: Path, seed: int):
        self.scene, self.base, self.folder, self.seed = scene, base, folder, seed
        self.shots: list[PlannedShot] = []
        self.numbers: list[int | None] = []
        self.notes: list[str] = []

    def add(self, number: int, shot: Shot, prompt: str, frames: int, given: Path | None) -> None:
        """One scene shot with the images before and after it."""
        after = []
        for reference in shot.references:
            if reference.role == "video":
                if given is None:
                    given = inside(self.folder, reference.path)
                    self._place(number, shot, prompt, self._clip(number, given, reference), key=f"{number}")
                continue
            if reference.role == "last_frame":
                after.append(reference)
                continue
            self._image(number, reference, prompt)
            if reference.role == "first_frame":
                prompt = prompt.removeprefix(SHOT_CUT).lstrip()
        if not self.numbers or self.numbers[-1] != number:
            clip = None if given is None else self._clip(number, given, None)
            self._place(number, shot, prompt, clip, key=f"{number}", frames=frames)
        for reference in after:
            self._image(number, reference, prompt.removeprefix(SHOT_CUT).lstrip())

    def _place(
        self, number: int, shot: Shot, prompt: str, clip: Frames | None, key: str, frames: int | None = None
    ) -> None:
        width, height = self.base.spec.size
        length = self._length(clip) if clip is not None else frames
        assert length is not None
        self.shots.append(
            PlannedShot(
                shot=len(self.shots) + 1,
                label=f"shot {number}",
                prompt=prompt,
                grid=self.base.spec.grid(length, width, height),
                noise=(self.seed if shot.seed is None else shot.seed, key, shot.take),
                given=None if clip is None else self.base.encode(clip),
            )
        )
        self.numbers.append(number)

    def _image(self, number: int, reference: Reference, prompt: str) -> None:
        """An image beside a shot, as a one-frame shot of its own."""
        picture = read_image(inside(self.folder, reference.path), self.base.spec.size)
        words = {
            "identity": f"{SHOT_CUT} Character {reference.character or 1}.",
            "environment": f"{SHOT_CUT} {self.scene.environment}".strip(),
        }.get(reference.role, prompt)
        width, height = self.base.spec.size
        role = reference.role.replace("_", " ")
        self.shots.append(
            PlannedShot(
                shot=len(self.shots) + 1,
                label=f"shot {number}'s {role} image",
                prompt=words,
                grid=self.base.spec.grid(self.base.spec.min_frames, width, height),
                noise=(self.seed, f"{number} {reference.role} {reference.path}", 0),
                given=self.base.encode(picture[None]),
                pinned=reference.role in ("identity", "environment"),
            )
        )
        self.numbers.append(None)

    def _clip(self, number: int, path: Path, reference: Reference | None) -> Frames:
        """A picture, or as many frames of a clip as the base can hold, at its own rate and size; says so when it is cut."""
        spec = self.base.spec
        if is_picture(path):
            return read_image(path, spec.size)[None]
        start = (reference.start if reference else None) or 0.0
        stop = reference.stop if reference else None
        limit = start + float((spec.max_frames + 1) / spec.fps)
        frames = read_frames(
            path,
            start_s=start,
            stop_s=limit if stop is None else min(stop, limit),
            fps=spec.fps,
            size=spec.size,
        )
        legal = [n for n in range(min(len(frames), spec.max_frames), 0, -1) if self.base.limits().is_legal(n)]
        if not legal:
            raise UserError(
                f"shot {number}: {path} gives {len(frames)} frames at {spec.fps} fps; {spec.name} needs "
                f"{spec.min_frames} or more"
            )
        if legal[0] < len(frames):
            seconds = float(legal[0] / spec.fps)
            self.notes.append(
                f"shot {number}: the first {legal[0]} frames ({seconds:g} s) of {path.name} are used"
            )
        return frames[: legal[0]]

    def _length(self, clip: Frames) -> int:
        return max(len(clip), self.base.spec.min_frames)
