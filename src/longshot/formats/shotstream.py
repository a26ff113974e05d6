"""ShotStream: JSON with `global_caption`, `shot1`, `shot2`, ..., and a CSV that points to it. Every shot is a cut.

Either file can be imported. The CSV gives each row's `json_path` and `frame_number`, a list of `[start, stop)` spans;
`json_path` is looked up in the folder of the CSV, by its full path and then by its file name.
"""

import csv
import io
import json
import re
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from longshot.document import parse_json, read_text
from longshot.errors import UserError
from longshot.files import inside
from longshot.formats import caption
from longshot.formats.source import (
    Files,
    Imported,
    Node,
    choose,
    extra,
    json_root,
    json_text,
    kept_of,
    main_file,
    the_others,
    unused,
)
from longshot.scene import Scene, Shot

COLUMNS = ["shot_num_from_caption", "json_path", "video_path", "frame_number"]
_SHOT = re.compile(r"shot([1-9]\d{0,3})\Z")


def read(path: Path, index: int | None = None) -> tuple[Files, list[str]]:
    """Return the JSON, or the CSV with the JSON of the row chosen by `index` (from 1)."""
    text = read_text(path)
    if path.suffix.lower() != ".csv":
        return {str(path): text}, []
    row, _ = _row(str(path), text, index)
    captions = _find(path, row.get("json_path") or "")
    return {str(path): text, str(captions): read_text(captions)}, []


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of a JSON, or of one row of a CSV and its JSON."""
    name, text = main_file(files)
    if len(files) == 1 and not name.lower().endswith(".csv"):
        return _parse_captions(json_root(files))
    row, notes = _row(name, text, index)
    others = [(other, content) for other, content in files.items() if other != name]
    if not others:
        raise UserError(f"{name}: names no captions that were read")
    document = parse_json(others[0][1], others[0][0])
    scene, kept_notes = _parse_captions(Node(document, document.data))
    _read_row(scene, row, name)
    return scene, notes + kept_notes


def dump(scene: Scene, path: Path) -> Files:
    """Return the JSON; for a `path` ending in `.csv` that CSV, and the JSON beside it."""
    kept = kept_of(scene, "shotstream")
    row = kept.pop("row", {})
    prompts = {f"shot{k}": shot.prompt for k, shot in enumerate(scene.shots, start=1)}
    captions = json_text({**kept, "global_caption": caption.compose(scene), **prompts})
    if path.suffix.lower() != ".csv":
        return {str(path): captions}
    beside = path.with_suffix(".json")
    columns = {**(row if isinstance(row, dict) else {}), "json_path": beside.name}
    columns["shot_num_from_caption"] = len(scene.shots)
    if spans := _spans(scene):
        columns["frame_number"] = json.dumps(spans)
    return {str(path): _csv(columns), str(beside): captions}


def _row(name: str, text: str, index: int | None) -> tuple[dict[str, str], list[str]]:
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(table)
    except csv.Error as error:
        raise UserError(
            f"{name}: is not a CSV table that can be read ({error}); is the file whole?"
        ) from error
    if "json_path" not in (table.fieldnames or []):
        raise UserError(f"{name}:1: lacks the column json_path; the first line names the columns")
    chosen = choose(name, "row", len(rows), index)
    row = rows[chosen]
    if None in row or None in row.values():
        raise UserError(f"{name}: row {chosen + 1} has another number of cells than the first line has names")
    return row, the_others("row", len(rows), chosen)


def _find(table: Path, named: str) -> Path:
    """Return the captions that a row names; UserError where they lie outside the table's folder or are absent."""
    if not named.strip():
        raise UserError(f"{table}: a row names no json_path")
    try:
        full = inside(table.parent, named)
    except UserError as error:
        raise UserError(f"{table}: json_path {error}") from error
    beside = inside(table.parent, PurePosixPath(named).name or named)
    for candidate in (full, beside):
        if candidate.is_file():
            return candidate
    raise UserError(f"{table}: json_path {named!r} is not there; put {beside.name} beside the table")


def _parse_captions(root: Node) -> Imported:
    numbers = sorted(int(found[1]) for key in root.mapping() if (found := _SHOT.match(key)))
    if not numbers:
        raise root.error("holds no `shot1`")
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise root.error(f"goes on with shot{number} where shot{expected} should come")
    shots = [Shot(prompt=root.need(f"shot{number}").text()) for number in numbers]
    characters, environment, story = caption.split(root.text_or("global_caption"))
    kept = {
        key: value
        for key, value in root.mapping().items()
        if not _SHOT.match(key) and key != "global_caption"
    }
    scene = Scene(characters=characters, environment=environment, story=story, shots=shots)
    scene.extra = extra("shotstream", kept)
    return scene, unused(list(kept))


def _read_row(scene: Scene, row: dict[str, str], name: str) -> None:
    """Set the frames of the shots, and keep the other cells of the row."""
    count = (row.get("shot_num_from_caption") or "").strip()
    if count and count != str(len(scene.shots)):
        raise UserError(
            f"{name}: shot_num_from_caption is {count[:20]}, but the captions have {len(scene.shots)} shots"
        )
    spans = _read_spans(name, row.get("frame_number") or "")
    if spans and len(spans) != len(scene.shots):
        raise UserError(f"{name}: frame_number gives {len(spans)} spans for {len(scene.shots)} shots")
    for shot, (start, stop) in zip(scene.shots, spans, strict=bool(spans)):
        shot.frames = stop - start
    kept: dict[str, Any] = {
        key: cell for key, cell in row.items() if key not in ("json_path", "frame_number")
    }
    if spans and _spans(scene) != spans:
        for shot, (start, _) in zip(scene.shots, spans, strict=True):
            shot.extra = extra("shotstream", {"start": start})
    scene.extra = extra("shotstream", {**kept_of(scene, "shotstream"), "row": kept})


def _read_spans(name: str, cell: str) -> list[list[int]]:
    if not cell.strip():
        return []
    problem = UserError(f"{name}: frame_number is not a list of spans such as [[0, 56], [56, 114]]")
    document = None
    try:
        document = parse_json(cell.replace("(", "[").replace(")", "]"), name)
        spans = [
            [number.count() for number in pair.items()] for pair in Node(document, document.data).items()
        ]
    except UserError as error:
        raise problem from error
    if not all(len(pair) == 2 and pair[0] < pair[1] for pair in spans):
        raise problem
    return spans


def _spans(scene: Scene) -> list[list[int]]:
    """Return the spans of the shots: where the imported table had them, else one after the other."""
    frames = [shot.frames or 0 for shot in scene.shots]
    if not all(frames):
        return []
    kept = [kept_of(shot, "shotstream").get("start") for shot in scene.shots]
    starts = [start for start in kept if isinstance(start, int)]
    if len(starts) < len(frames):
        starts = [0, *accumulate(frames[:-1])]
    return [[start, start + count] for start, count in zip(starts, frames, strict=True)]


def _csv(columns: dict[str, object]) -> str:
    names = [name for name in COLUMNS if name in columns] + [name for name in columns if name not in COLUMNS]
    stream = io.StringIO()
    table = csv.DictWriter(stream, names, lineterminator="\n")
    table.writeheader()
    table.writerow(columns)
    return stream.getvalue()
