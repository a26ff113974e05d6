"""From a scene file, or a finished film, to the shots of a plan: prompts, sizes, noise, and whatever is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from longshot.bases.base import Codec, Spec, refuse_given
from longshot.errors import UserError
from longshot.files import inside
from longshot.lint import scene_frames
from longshot.sample.plan import PlannedShot
from longshot.scene import PLACE_PROMPT, ROLES, SHOT_CUT, Reference, Scene, Shot, identity_prompt
from longshot.video import is_picture, probe, read_frames, read_image

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
    scene: Scene, base: Codec, folder: Path, given: Mapping[int, Path] | None = None, seed: int | None = None
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
    def __init__(self, scene: Scene, base: Codec, folder: Path, seed: int):
        self.scene, self.base, self.folder, self.seed = scene, base, folder, seed
        self.shots: list[PlannedShot] = []
        self.numbers: list[int | None] = []
        self.notes: list[str] = []

    def add(self, number: int, shot: Shot, prompt: str, frames: int, given: Path | None) -> None:
        """One scene shot with the images before and after it."""
        of_role = {role: [r for r in shot.references if r.role == role] for role in ROLES}
        clip = self._given(number, given, of_role["video"])
        for reference in (*of_role["identity"], *of_role["environment"], *of_role["first_frame"]):
            self._image(number, reference, prompt)
            if reference.role == "first_frame":
                prompt = _without_cut(prompt)
        self._place(number, shot, prompt, frames if clip is None else len(clip), clip)
        for reference in of_role["last_frame"]:
            self._image(number, reference, _without_cut(prompt))

    def _given(self, number: int, given: Path | None, videos: Sequence[Reference]) -> Frames | None:
        """The clip that stands for a shot, if any: a file named for it, else its first video reference."""
        if unused := videos[0 if given else 1 :]:
            names = ", ".join(r.path for r in unused)
            self.notes.append(f"shot {number}: {names} isn't used, since one clip makes the shot")
        if given is not None:
            return self._clip(number, given, None)
        return self._clip(number, inside(self.folder, videos[0].path), videos[0]) if videos else None

    def _place(self, number: int, shot: Shot, prompt: str, frames: int, clip: Frames | None) -> None:
        spec = self.base.spec
        self.shots.append(
            PlannedShot(
                shot=len(self.shots) + 1,
                label=f"shot {number}",
                prompt=prompt,
                grid=spec.grid(max(frames, spec.min_frames), *spec.size),
                noise=(self.seed if shot.seed is None else shot.seed, f"{number}", shot.take),
                given=None if clip is None else self.base.encode(clip),
            )
        )
        self.numbers.append(number)

    def _image(self, number: int, reference: Reference, prompt: str) -> None:
        """An image beside a shot, as a one-frame shot of its own."""
        refuse_given(self.base.spec, True, f"shot {number}: {reference.path}")
        picture = still(inside(self.folder, reference.path), self.base.spec)
        words = {
            "identity": identity_prompt(reference.character or 1),
            "environment": PLACE_PROMPT,
        }.get(reference.role, prompt)
        role = reference.role.replace("_", " ")
        self.shots.append(
            PlannedShot(
                shot=len(self.shots) + 1,
                label=f"shot {number}'s {role} image",
                prompt=words,
                grid=self.base.spec.grid(self.base.spec.min_frames, *self.base.spec.size),
                noise=(self.seed, f"{number} {reference.role} {reference.path}", 0),
                given=self.base.encode(picture),
                pinned=reference.role in ("identity", "environment"),
            )
        )
        self.numbers.append(None)

    def _clip(self, number: int, path: Path, reference: Reference | None) -> Frames:
        """A picture, or as many frames of a clip as the base can hold, at its own rate and size; says so when it is cut."""
        spec = self.base.spec
        refuse_given(spec, is_still(path), f"shot {number}: {path}")
        if is_still(path):
            return read_image(path, spec.size)[None]
        start = (reference.start if reference else None) or 0.0
        stop = reference.stop if reference else None
        limit = start + float((spec.max_frames + 1) / spec.fps)
        if stop is not None or probe(path).seconds > limit:
            stop = min(stop or limit, limit)
        frames = read_frames(path, start_s=start, stop_s=stop, fps=spec.fps, size=spec.size)
        legal = [n for n in range(min(len(frames), spec.max_frames), 0, -1) if self.base.limits().is_legal(n)]
        if not legal:
            raise UserError(
                f"shot {number}: {path} gives {len(frames)} frames at {spec.fps} fps; {spec.name} needs "
                f"{spec.min_frames} or more"
            )
        if legal[0] < len(frames):
            seconds = float(legal[0] / spec.fps)
            self.notes.append(
                f"shot {number}: {legal[0]} frames ({seconds:g} s) of {path.name} are used, from {start:g} s on"
            )
        return frames[: legal[0]]


def is_still(path: Path) -> bool:
    """Whether a file is a still picture, or has the name of one and so should be."""
    return is_picture(path) or path.suffix.lower() in (
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
    )


def still(path: Path, spec: Spec) -> UInt8[np.ndarray, "1 height width 3"]:
    """A picture, or the first frame of a clip, at the base's size."""
    if is_still(path):
        return read_image(path, spec.size)[None]
    tick = float(1 / spec.fps)
    return read_frames(path, stop_s=tick if probe(path).seconds > tick else None, size=spec.size)[:1]


def _without_cut(prompt: str) -> str:
    return prompt.removeprefix(SHOT_CUT).lstrip()
