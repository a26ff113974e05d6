"""HoloCine: one global caption and a caption a shot, as JSON or as one raw string. Every shot is a cut.

JSON holds `global_caption`, `shot_captions`, `num_frames` and `shot_cut_frames` (one number fewer than shots), or the
raw string under `prompt`. Characters are `[character1]`. A caption that longshot did not write is read sentence by
sentence: who `[character1]` is, where it is set, and the rest as the story.
"""

import re
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from longshot.errors import UserError
from longshot.formats import caption
from longshot.formats.source import (
    CHARACTER,
    Files,
    Imported,
    Node,
    extra,
    json_root,
    json_text,
    kept_of,
    kept_text,
    main_file,
    read_file,
    unused,
)
from longshot.scene import Character, Scene, Shot

read = read_file
_MARK = re.compile(r"\[character ?(\d{1,4})\]", re.IGNORECASE)
_RAW = re.compile(
    r"\s*(?:\[global caption\](?P<top>.*?))?\[per shot caption\](?P<shots>.*)", re.DOTALL | re.IGNORECASE
)
_CUT = re.compile(r"\s*\|?\s*\[shot cut\]\s*", re.IGNORECASE)  # some write ` |` before a cut
_COUNT = re.compile(r"\s*\bThis scene contains \d+ shots?\.?\s*\Z")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\[])")
_IS = re.compile(r"\[character ?(\d{1,4})\](?: is |: |, )(.+)", re.DOTALL | re.IGNORECASE)
_APPOSED = re.compile(r"[ ,]*\[character ?(\d{1,4})\],?", re.IGNORECASE)
_GOES_ON = re.compile(r"(?:He|She|They|His|Her|Their|It|Its)\b")
_PLACE = re.compile(
    r"\b(?:is|are) set (?:in|on|at)\b|\btakes place\b|^The (?:setting|environment|location|background|place)\b",
    re.IGNORECASE,
)

Tiers = tuple[list[Character], str, str]
"""Characters, environment and story."""


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of a structured file or a raw string."""
    name, text = main_file(files)
    if not text.lstrip().startswith("{"):
        return _parse_raw(name, text), []
    root = json_root(files)
    if (prompt := root.get("prompt")) is not None and root.get("shot_captions") is None:
        scene, known = _parse_raw(name, prompt.text(), kept={"raw": True}), {"prompt"}
    else:
        captions = [item.text() for item in root.need("shot_captions").items()]
        if not captions:
            raise root.need("shot_captions").error("holds no shots")
        scene, known = _scene(root.text_or("global_caption"), captions), {"global_caption", "shot_captions"}
    kept = {
        key: value
        for key, value in root.mapping().items()
        if key not in known | {"num_frames", "shot_cut_frames"}
    }
    lengths, notes = _read_frames(scene, root)
    scene.extra = extra("holocine", {**kept_of(scene, "holocine"), **kept, **lengths})
    return scene, notes + unused(list(kept))


def dump(scene: Scene, path: Path) -> Files:
    """Return a structured file, or the raw string where `path` does not end in `.json`."""
    kept = kept_of(scene, "holocine")
    raw, top, string = kept.pop("raw", False), _global_caption(scene), _raw_string(scene)
    kept = {key: value for key, value in kept.items() if key not in ("global_caption", "prompt")}
    if path.suffix.lower() != ".json":
        return {str(path): string + "\n"}
    captions: list[Any] = [_caption(shot) for shot in scene.shots]
    content: dict[str, Any] = {"global_caption": top, "shot_captions": captions}
    if any(shot.frames for shot in scene.shots):
        kept = {key: value for key, value in kept.items() if key not in ("num_frames", "shot_cut_frames")}
    return {str(path): json_text({**({"prompt": string} if raw else content), **kept, **_frames(scene)})}


def _parse_raw(name: str, text: str, kept: dict[str, Any] | None = None) -> Scene:
    parts = _RAW.fullmatch(text)
    if parts is None:
        wanted = "`[global caption] ... [per shot caption] ... [shot cut] ...`"
        raise UserError(f"{name}: lacks `[per shot caption]`; a HoloCine string reads {wanted}")
    scene = _scene((parts["top"] or "").strip(), _CUT.split(parts["shots"].strip()))
    kept = {**kept_of(scene, "holocine"), **(kept or {})}
    if _raw_string(scene) != text.strip():
        kept["prompt"] = text.strip()
    scene.extra = extra("holocine", kept)
    return scene


def _scene(top: str, captions: list[str]) -> Scene:
    """Return the scene of a global caption and captions, which are kept where they could not be written again."""
    shots = [Shot(prompt=_in_words(text)) for text in captions]
    for shot, text in zip(shots, captions, strict=True):
        if _caption(shot) != text:
            shot.extra = extra("holocine", {"caption": text})
    characters, environment, story = _tiers(top, shots)
    scene = Scene(characters=characters, environment=environment, story=story, shots=shots)
    if _global_caption(scene) != top:
        scene.extra = extra("holocine", {"global_caption": top})
    return scene


def _tiers(top: str, shots: list[Shot]) -> Tiers:
    """Return what a global caption tells, and a character without a look for each that only the shots name."""
    top = _COUNT.sub("", top)
    characters, environment, story = caption.split(_in_words(top))
    if not characters and _MARK.search(top):
        characters, environment, story = _read_sentences(top)
    known = {character.id for character in characters}
    named = {int(found[1]) for shot in shots for found in CHARACTER.finditer(shot.prompt)}
    characters += [Character(id=number) for number in sorted(named - known - {0})]
    return characters, environment, story


def _read_sentences(top: str) -> Tiers:
    """Return who, where and what of a caption in a person's own words; every sentence goes to one of them."""
    looks: dict[int, list[str]] = {}
    places, story = [], []
    current: list[str] | None = None
    for sentence in _SENTENCE.split(top.strip()):
        numbers = {int(found[1]) for found in _MARK.finditer(sentence)}
        new = numbers - set(looks)
        if (introduced := _IS.fullmatch(sentence)) and int(introduced[1]) in new - {0}:
            current = looks[int(introduced[1])] = [introduced[2]]
        elif len(numbers) == 1 and new - {0} and not sentence.startswith("["):
            current = looks[new.pop()] = [_APPOSED.sub("", sentence)]
        elif not numbers and current and _GOES_ON.match(sentence):
            current.append(sentence)
        else:
            current = None
            (places if _PLACE.search(sentence) else story).append(sentence)
    for number in {int(found[1]) for found in _MARK.finditer(top)} - set(looks) - {0}:
        looks[number] = []
    people = [
        Character(id=number, description=_in_words(" ".join(look))) for number, look in sorted(looks.items())
    ]
    return people, _in_words(" ".join(places)), _in_words(" ".join(story))


def _in_words(text: str) -> str:
    return _MARK.sub(lambda found: f"Character {int(found[1])}", text)


def _in_marks(text: str) -> str:
    return CHARACTER.sub(lambda found: f"[character{int(found[1])}]", text)


def _caption(shot: Shot) -> str:
    kept = kept_text(shot, "holocine", "caption")
    return kept if kept is not None and _in_words(kept) == shot.prompt else _in_marks(shot.prompt)


def _global_caption(scene: Scene) -> str:
    """Return the caption that was imported while it still says what the scene says, or a new one."""
    kept = kept_of(scene, "holocine").get("global_caption")
    if isinstance(kept, str) and _tiers(kept, scene.shots) == (
        scene.characters,
        scene.environment,
        scene.story,
    ):
        return kept
    count = f"This scene contains {len(scene.shots)} shot{'s' if len(scene.shots) > 1 else ''}."
    return f"{_in_marks(caption.compose(scene))} {count}".lstrip()


def _raw_string(scene: Scene) -> str:
    captions = [_caption(shot) for shot in scene.shots]
    kept = kept_of(scene, "holocine").get("prompt")
    if isinstance(kept, str) and (parts := _RAW.fullmatch(kept)):
        same_shots = [_in_words(text) for text in _CUT.split(parts["shots"].strip())] == [
            s.prompt for s in scene.shots
        ]
        told = _tiers((parts["top"] or "").strip(), scene.shots)
        if same_shots and told == (scene.characters, scene.environment, scene.story):
            return kept
    return f"[global caption] {_global_caption(scene)} [per shot caption] {' [shot cut] '.join(captions)}"


def _read_frames(scene: Scene, root: Node) -> tuple[dict[str, Any], list[str]]:
    """Set the frames of the shots; return what is kept of the lengths, and what is not used."""
    total = None if (number := root.get("num_frames")) is None else number.count(1)
    cuts = root.get("shot_cut_frames")
    if cuts is None and len(scene.shots) > 1:
        kept: dict[str, Any] = {} if total is None else {"num_frames": total}
        return kept, ["num_frames without shot_cut_frames: the shots get the default length"] if kept else []
    starts = [0] + [item.count(1) for item in cuts.items()] if cuts is not None else [0]
    if cuts is not None and len(starts) != len(scene.shots):
        raise cuts.error(
            f"gives {len(starts) - 1} cuts for {len(scene.shots)} shots; it needs one fewer than shots"
        )
    bounds = starts if total is None else [*starts, total]
    for shot, (start, stop) in zip(scene.shots, pairwise(bounds), strict=False):
        if stop <= start:
            raise (cuts or root).error(
                f"must go up from cut to cut and stay below num_frames ({start} before {stop})"
            )
        shot.frames = stop - start
    return {} if cuts is None or len(starts) > 1 else {"shot_cut_frames": []}, []


def _frames(scene: Scene) -> dict[str, Any]:
    """Return `num_frames` and `shot_cut_frames`, as far as the lengths of the shots are known."""
    frames = [shot.frames for shot in scene.shots]
    ends = list(accumulate(count for count in frames if count is not None))
    if None in frames[:-1]:
        return {}
    cuts: dict[str, Any] = {"shot_cut_frames": [*ends[: len(frames) - 1]]} if len(frames) > 1 else {}
    return cuts if frames[-1] is None else {"num_frames": ends[-1], **cuts}
