"""StoryMem and its ST-Bench: a story in scenes (see `episode`), read as JSON5."""

import math
import re
from pathlib import Path
from typing import Any

from longshot.document import Document, parse_json
from longshot.errors import UserError
from longshot.formats.episode import dump_episode, parse_episode
from longshot.formats.source import Files, Imported, Node, json_text, main_file, read_file
from longshot.scene import Scene

read = read_file
MAX_JSON5 = 2**18
"""Characters of JSON5 that are not JSON; reading it takes about 40 microseconds a character."""


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of a story."""
    name, text = main_file(files)
    document = read_json5(text, name)
    return parse_episode(Node(document, document.data), "storymem", {})


def dump(scene: Scene, path: Path) -> Files:
    """Return the story as JSON."""
    return {str(path): json_text(dump_episode(scene, "storymem", {}))}


def read_json5(text: str, name: str) -> Document:
    """Return the value of JSON5: JSON with comments, trailing commas and more. Lines are known only for plain JSON."""
    try:
        return parse_json(text, name)
    except UserError as error:
        if len(text) > MAX_JSON5:
            raise UserError(f"{error}; JSON5 is read only up to {MAX_JSON5 // 1024} KiB") from error
        return Document(name, _json5(text, name))


def _json5(text: str, name: str) -> Any:
    import json5  # takes a while to load, and most files are plain JSON

    try:
        value = json5.loads(text, allow_duplicate_keys=False)
    except RecursionError as error:
        raise UserError(f"{name}: is nested too deeply") from error
    except ValueError as error:
        line = re.match(r"<string>:(\d+) ", str(error))
        place = f"{name}:{line[1]}" if line else name
        problem = str(error)[line.end() :] if line else str(error)
        hint = "; is the file whole?" if "end of input" in problem else ""
        raise UserError(f"{place}: is not valid JSON5 ({' '.join(problem.split())}){hint}") from error
    _refuse_odd_values(value, name)
    return value


def _refuse_odd_values(value: Any, name: str) -> None:
    """Refuse what no JSON file can hold: numbers that are not finite, halves of characters."""
    if isinstance(value, dict):
        for key, child in value.items():
            _refuse_odd_values(key, name)
            _refuse_odd_values(child, name)
    elif isinstance(value, list):
        for child in value:
            _refuse_odd_values(child, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: holds a number that is not finite")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{name}: holds half of a character (a lone surrogate)")
