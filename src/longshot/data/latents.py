"""The stage `latents`: captioned scenes in, and for each a file of what a base reads in training: latents and text features.

Of a shot longer than the base holds, one clip is taken. Where a shot goes on from the one before without a cut, the clips meet
frame on frame, as far as they can: see `plan_clips`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from longshot.data.captions import CaptionedScene
from longshot.data.clips import read_clip
from longshot.data.records import Record, Row, SceneShot
from longshot.data.stage import Made, Place, Settings, Stage, Unit
from longshot.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from longshot.bases.base import Base, Spec


class LatentSettings(Settings):
    """For which base, and how the pictures are read."""

    base: str = "tiny"
    """`tiny`, or a weights file of a base; its weights don't matter here, its sizes do"""
    device: str = "cpu"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """of the stored numbers; float16 gives every 8-bit pixel of a native base back"""
    size: Literal["base", "aspect"] = "base"
    """`base` crops every film to the base's picture size; `aspect` keeps its shape, at about the same area"""
    text: Literal["features", "prompts"] = "features"
    """`prompts` leaves the features of the prompts out, for a base that reads the prompts in training, as native ones do"""
    max_frames: int | None = Field(default=None, ge=1)
    """of a clip, when fewer than the base holds"""

    def resolved(self, folder: Path) -> "LatentSettings":
        is_file = self.base.endswith(".safetensors")
        return self.model_copy(update={"base": str(folder / self.base)}) if is_file else self


class Group(Record):
    """Tokens of a text and of the video beside it; a scene's first group is its global prompt's, empty where it has none."""

    text: int
    grid: tuple[int, int, int]


class LatentShot(Record):
    """What was taken of a shot: `frames` frames at the base's rate from `start_s` on, seconds from the film's first frame."""

    id: str
    start_s: float
    frames: int
    size: tuple[int, int]
    cut: bool
    """whether the clip begins with a cut, in the film or because what came before was left out"""
    prompt: str
    """with `[SHOT CUT]` where it is due, as training reads it"""
    alone: str
    """a prompt for the shot by itself"""


class LatentScene(CaptionedScene):
    """A captioned scene and its file of tensors.

    The file holds for shot k (from 1) `video.k` [tokens, channels], `image.k`, one of its frames as a clip that stands still,
    `text.k` [tokens, width], its prompt's features, and `alone.k`, those of the prompt that needs no scene; and `text.0`, the
    global prompt's features, if there is one. Where a base reads the global prompt before each shot's own, there is no `text.0`;
    `bare.k` are the features of a shot's prompt without it, and `none` those of no words, which training draws as well.
    """

    base_facts: dict[str, Any]
    """what of the base the latents depend on; `text`, if features of a frozen text encoder are kept, says which one made them"""
    global_prompt: str
    clips: tuple[LatentShot, ...]
    groups: tuple[Group, ...]
    file: str
    bytes: int


@dataclass(frozen=True)
class Clip:
    """A span of a film to read: `frames` frames at the base's rate from `start_s` on."""

    start_s: float
    frames: int
    cut: bool


def plan_clips(
    shots: Sequence[SceneShot], cuts: Sequence[bool], spec: "Spec", max_frames: int | None = None
) -> list[Clip]:
    """Return the clip to take of each shot.

    A clip is the longest legal one from the shot's beginning, with two exceptions. Where the next shot goes on without a cut,
    the clip ends where that one's begins: their border moves by up to half a step of the base's frames, and of a shot that is
    longer than the base holds, the end is taken. A shot that is joined to the one before and too long is taken from its
    beginning; the one after it then begins with a cut, since that is what the pixels show. Raises UserError for a shot that
    is shorter than the shortest clip.
    """
    most = min(spec.max_frames, max_frames or spec.max_frames)
    step, least = spec.stride[0], spec.min_frames
    longest = most - (most - spec.frame_offset) % step
    clips: list[Clip] = []
    joined_at: float | None = None  # where the clip before ends, if this shot can go on from there
    for k, (shot, cut) in enumerate(zip(shots, cuts, strict=True)):
        joined = joined_at is not None and not cut
        begin = joined_at if joined and joined_at is not None else shot.start_s
        goes_on = k + 1 < len(shots) and not cuts[k + 1]
        room = (shot.stop_s - begin) * float(spec.fps) + 1e-6
        steps = (room - spec.frame_offset) / step
        frames = step * (round(steps) if goes_on else int(steps // 1)) + spec.frame_offset
        too_long = frames > longest
        frames = min(frames, longest)
        if frames < least:
            raise UserError(
                f"shot {shot.id}: {shot.seconds:.2f} s is too short: {spec.name} needs {least} frames at {spec.fps} a "
                f"second; let the filter leave out shots shorter than {float(least / spec.fps):.2f} s"
            )
        if too_long and goes_on and not joined:
            begin = shot.stop_s - float(frames / spec.fps)
        meets_next = goes_on and not (too_long and joined)
        joined_at = begin + float(frames / spec.fps) if meets_next else None
        clips.append(Clip(begin, frames, cut=not joined))
    return clips


def size_of(shot: SceneShot, spec: "Spec", settings: LatentSettings) -> tuple[int, int]:
    """Return the picture size (width, height) in which a shot is read."""
    if settings.size == "base":
        return spec.size
    _, _, width, height = shot.crop or (0, 0, shot.width, shot.height)
    area, aspect = spec.size[0] * spec.size[1], width / height
    _, unit_h, unit_w = spec.stride
    return (
        max(1, round((area * aspect) ** 0.5 / unit_w)) * unit_w,
        max(1, round((area / aspect) ** 0.5 / unit_h)) * unit_h,
    )


def text_features(base: "Base", prompts: Sequence[str]) -> "list[Tensor]":
    """Return what training needn't compute again of texts, [tokens, width] each: for a native base, whose text transformer is
    trained along, the frozen vectors that it reads; for another base, whose text encoder is frozen, its output."""
    import torch

    from longshot.bases.native import NativeBase

    if isinstance(base, NativeBase):
        return [torch.from_numpy(base.table.vectors(base.tokenise(prompt))) for prompt in prompts]
    with torch.no_grad():
        return [features.cpu() for features in base.encode_text(list(prompts))]


def base_facts(spec: "Spec") -> dict[str, Any]:
    """Return what of a base its latents depend on, as JSON values."""
    names = ("name", "fps", "size", "stride", "channels", "frame_offset", "prompts", "cut")
    facts = {name: getattr(spec, name) for name in names}
    return {
        name: str(v) if isinstance(v, Fraction) else list(v) if isinstance(v, tuple) else v
        for name, v in facts.items()
    }


@dataclass(frozen=True)
class Latents(Stage):
    """Captioned scenes in, scenes with files of tensors out."""

    name: ClassVar[str] = "latents"
    after: ClassVar[str | None] = "captions"
    version: ClassVar[int] = 1
    reads: ClassVar[type[Record]] = CaptionedScene
    writes: ClassVar[type[Record]] = LatentScene
    settings: LatentSettings
    place: Place

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        """Yield a unit a scene, with the facts of the base: another base under the same name gives other latents."""
        from longshot.bases import load_spec, text_identity

        facts = base_facts(load_spec(self.settings.base))
        if self.settings.text == "features" and (encoder := text_identity(self.settings.base)):
            facts["text"] = encoder
        for row in rows:
            yield Unit(self.label(row), (row, facts))

    def files(self, row: Row) -> Iterable[str]:
        return [row["file"]]

    def run(self, unit: Unit, key: str) -> Made:
        from longshot.bases.base import refuse_given

        scene = CaptionedScene.of(unit.rows[0], unit.name)
        base = _base(self.settings.base, self.settings.device)
        shots, cuts = scene.kept_shots, scene.cuts
        refuse_given(base.spec, False, "latents")
        if len(shots) > base.spec.max_shots:
            raise UserError(
                f"scene {scene.id}: has {len(shots)} shots; {base.spec.name} holds {base.spec.max_shots}: set the longest "
                "scene of the stage scenes to that"
            )
        clips = plan_clips(shots, cuts, base.spec, self.settings.max_frames)
        told = scene.caption.scene([clip.cut for clip in clips])
        global_prompt, prompts = told.global_prompt(), told.shot_prompts()
        alone = [scene.caption.alone(k) for k in range(len(shots))]
        tensors, groups = self._texts(base, scene.id, global_prompt, prompts, alone)
        taken = []
        for k, (shot, clip) in enumerate(zip(shots, clips, strict=True), start=1):
            size = size_of(shot, base.spec, self.settings)
            video, image = self._pictures(base, shot, clip, size)
            tensors |= {f"video.{k}": video, f"image.{k}": image}
            grid = base.spec.grid(clip.frames, *size)
            groups.append(Group(text=len(tensors[f"text.{k}"]), grid=grid))
            taken.append(
                LatentShot(
                    id=shot.id,
                    **asdict(clip),
                    size=size,
                    prompt=prompts[k - 1],
                    alone=alone[k - 1],
                )
            )
        if self.settings.text == "prompts":
            tensors = {name: t for name, t in tensors.items() if name.startswith(("video.", "image."))}
        file = self._save(key, tensors)
        row = LatentScene(
            **scene.row(),
            base_facts=unit.rows[1],
            global_prompt=global_prompt,
            clips=tuple(taken),
            groups=tuple(groups),
            file=file.relative_to(self.place.out).as_posix(),
            bytes=file.stat().st_size,
        )
        return Made([row])

    def _texts(
        self, base: "Base", scene: str, global_prompt: str, prompts: Sequence[str], alone: Sequence[str]
    ) -> "tuple[dict[str, Tensor], list[Group]]":
        """The features of all texts by name, and the group of the global prompt."""
        spec, limits = base.spec, base.limits()
        texts = {f"text.{k}": spec.wording(global_prompt, p, k) for k, p in enumerate(prompts, start=1)}
        texts |= {f"alone.{k}": spec.wording("", p) for k, p in enumerate(alone, start=1)}
        if global_prompt and spec.prompts == "group":
            texts = {"text.0": global_prompt, **texts}
        elif spec.prompts == "joined" and self.settings.text == "features":
            bare = enumerate(prompts if global_prompt else (), start=1)
            texts |= {f"bare.{k}": spec.wording("", p, k) for k, p in bare} | {"none": ""}
        for name, text in texts.items():
            if (count := limits.count_tokens(text)) > limits.max_text_tokens:
                where = (
                    "the global prompt" if name == "text.0" else f"the prompt of shot {name.split('.')[1]}"
                )
                raise UserError(
                    f"scene {scene}: {where} has {count} tokens; {spec.name} reads {limits.max_text_tokens}: ask for "
                    "shorter captions"
                )
        features = dict(zip(texts, text_features(base, list(texts.values())), strict=True))
        has_global = "text.0" in features
        first = (
            Group(text=len(features["text.0"]), grid=(1, 1, 1))
            if has_global
            else Group(text=0, grid=(0, 0, 0))
        )
        return features, [first]

    def _pictures(
        self, base: "Base", shot: SceneShot, clip: Clip, size: tuple[int, int]
    ) -> "tuple[Tensor, Tensor]":
        """The latent of a clip, and that of one of its frames, chosen by the shot's id."""
        import torch

        frames = read_clip(self.place, shot, clip.start_s, clip.frames, base.spec.fps, size)
        still = int(hashlib.sha256(shot.id.encode()).hexdigest(), 16) % clip.frames
        with torch.no_grad():
            return base.encode(frames).cpu(), base.encode(frames[still : still + 1]).cpu()

    def _save(self, key: str, tensors: "dict[str, Tensor]") -> Path:
        import torch

        from longshot.tensors import save_tensors

        dtype = getattr(torch, self.settings.dtype)
        for name, tensor in tensors.items():
            if not tensor.to(dtype).isfinite().all():
                raise UserError(f"{name} holds numbers that {dtype} can't: set dtype to bfloat16 or float32")
        file = self.place.folder(self.name) / "files" / key[:2] / key / "scene.safetensors"
        save_tensors(file, {name: t.to(dtype).contiguous() for name, t in sorted(tensors.items())}, {})
        return file


@lru_cache(maxsize=1)
def _base(name: str, device: str) -> "Base":
    from longshot.bases import load_base

    base = load_base(name)
    return base.to(device)
