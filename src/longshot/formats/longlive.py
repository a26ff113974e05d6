"""LongLive 2: a folder of captions, `000001.json` = `{"caption": "..."}` a shot, sorted by number.

`The scene transitions. ` in front of a caption is a cut. `shot_durations.txt` counts chunks of the model, which have no
length of their own: the numbers are kept for export.
"""

import re
from pathlib import Path
from typing import Any

from longshot.document import parse_json, read_text
from longshot.errors import UserError
from longshot.formats.source import (
    Files,
    Imported,
    Node,
    choose,
    json_text,
    kept_of,
    the_others,
    unused,
)
from longshot.scene import Scene, Shot

CUT = "The scene transitions. "
DURATIONS = "shot_durations.txt"
_NUMBERED = re.compile(r"\d{1,9}\Z")


def read(path: Path, index: int | None = None) -> tuple[Files, list[str]]:
    """Return the files of one sample, and what else lies beside them.

    `path` is the sample, or a folder of samples, or a folder with `caption/<sample>`; `index` (from 1) chooses among
    several samples.
    """
    try:
        sample, notes = _sample(path, index)
        names = sorted((file for file in sample.iterdir() if _is_shot(file)), key=lambda file: int(file.stem))
        others = sorted(
            file.name for file in sample.iterdir() if not _is_shot(file) and file.name != DURATIONS
        )
        durations = [sample / DURATIONS] if (sample / DURATIONS).exists() else []
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from error
    videos = sample.parent.parent / "video" / sample.name
    notes += [f"{name} (not a numbered caption)" for name in others]
    notes += [f"the videos in {videos}"] if videos.is_dir() else []
    return {str(file): read_text(file) for file in [*names, *durations]}, notes


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of one sample's files, in the order given."""
    captions = {name: text for name, text in files.items() if Path(name).name != DURATIONS}
    shots = [_shot(name, text, first=k == 0) for k, (name, text) in enumerate(captions.items())]
    notes = unused(
        sorted({key for shot in shots for key in kept_of(shot, "longlive")} - {"file", "chunks", "cut"})
    )
    for name in set(files) - set(captions):
        _keep_durations(shots, name, files[name])
        notes.append(f"{DURATIONS}: kept for export, not used (a chunk has no length in frames or seconds)")
    return Scene(shots=shots), notes


def dump(scene: Scene, path: Path) -> Files:
    """Return one caption file a shot, and the durations where every shot still has its own."""
    kept = [kept_of(shot, "longlive") for shot in scene.shots]
    files = {}
    for k, (name, shot) in enumerate(zip(_names(kept), scene.shots, strict=True)):
        others = {key: value for key, value in kept[k].items() if key not in ("file", "chunks", "cut")}
        prefix = CUT if shot.cut and (k > 0 or kept[k].get("cut")) else ""
        files[str(path / name)] = json_text({**others, "caption": prefix + shot.prompt})
    if all("chunks" in one for one in kept):
        files[str(path / DURATIONS)] = " ".join(str(one["chunks"]) for one in kept) + "\n"
    return files


def _is_shot(file: Path) -> bool:
    return file.suffix == ".json" and _NUMBERED.match(file.stem) is not None


def _sample(path: Path, index: int | None) -> tuple[Path, list[str]]:
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; LongLive keeps a sample as a folder of captions")
    if any(_is_shot(file) for file in path.iterdir()):
        return path, []
    root = path / "caption" if (path / "caption").is_dir() else path
    samples = sorted(
        folder for folder in root.iterdir() if folder.is_dir() and any(map(_is_shot, folder.iterdir()))
    )
    chosen = choose(str(path), "sample", len(samples), index)
    return samples[chosen], the_others("sample", len(samples), chosen)


def _shot(name: str, text: str, first: bool) -> Shot:
    document = parse_json(text, name)
    root = Node(document, document.data)
    caption = root.need("caption").text()
    kept: dict[str, Any] = {key: value for key, value in root.mapping().items() if key != "caption"}
    if taken := sorted({"file", "chunks", "cut"} & set(kept)):
        raise root.error(f"has the name {taken[0]!r}, which a caption file does not have")
    kept["file"] = Path(name).stem
    if first and caption.startswith(CUT):
        kept["cut"] = True
    cut = first or caption.startswith(CUT)
    return Shot(prompt=caption.removeprefix(CUT), cut=cut, extra={"longlive": kept})


def _keep_durations(shots: list[Shot], name: str, text: str) -> None:
    words = text.replace(",", " ").split()
    if len(words) != len(shots):
        raise UserError(f"{name}: gives {len(words)} durations for {len(shots)} captions")
    for shot, word in zip(shots, words, strict=True):
        if not re.fullmatch(r"[0-9]{1,9}", word):
            raise UserError(f"{name}: {word!r} is not a whole number of chunks")
        shot.extra = {"longlive": {**kept_of(shot, "longlive"), "chunks": int(word)}}


def _names(kept: list[dict[str, Any]]) -> list[str]:
    """Return the names the files had, or new ones where shots were added or moved."""
    stems = [stem for one in kept if isinstance(stem := one.get("file"), str) and _NUMBERED.match(stem)]
    numbers = [int(stem) for stem in stems]
    in_order = len(stems) == len(kept) and numbers == sorted(set(numbers))
    return (
        [f"{stem}.json" for stem in stems] if in_order else [f"{k:06}.json" for k in range(1, len(kept) + 1)]
    )
