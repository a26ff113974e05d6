"""What the formats share: files as text, fields that know their line, and the comparison behind `not held`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot.document import Document, Where, field_words, parse_json, read_text
from longshot.errors import UserError
from longshot.scene import Character, Scene, Shot

Files = dict[str, str]
"""Path -> text, the file a person names first. Formats read and write these, so they need no disk."""

Imported = tuple[Scene, list[str]]
"""A scene, and what the file holds that a scene has no place for."""


@dataclass(frozen=True)
class Node:
    """A value of a document that knows where it stands, so that a mistake can be named."""

    document: Document
    value: Any
    where: Where = ()

    def error(self, problem: str) -> UserError:
        line = self.document.line(self.where)
        place = self.document.name if line is None else f"{self.document.name}:{line}"
        return UserError(f"{place}: {field_words(self.where) if self.where else 'the file'} {problem}")

    def mapping(self) -> dict[str, Any]:
        """Return the value as names with values; UserError where it is something else."""
        if not isinstance(self.value, dict):
            raise self.error("must be names with values")
        return self.value

    def get(self, key: str) -> "Node | None":
        """Return the value under `key`, or None where there is none."""
        if self.mapping().get(key) is None:
            return None
        return Node(self.document, self.value[key], (*self.where, key))

    def need(self, key: str) -> "Node":
        """Return the value under `key`; UserError where there is none."""
        found = self.get(key)
        if found is None:
            raise self.error(f"lacks {key!r}; is this the right format, and is the file whole?")
        return found

    def items(self) -> "list[Node]":
        """Return the values of a list; UserError where it is something else."""
        if not isinstance(self.value, list):
            raise self.error("must be a list")
        return [Node(self.document, value, (*self.where, i)) for i, value in enumerate(self.value)]

    def text(self) -> str:
        """Return the value as text; UserError where it is something else."""
        if not isinstance(self.value, str):
            raise self.error("must be text")
        return self.value

    def count(self, least: int = 0) -> int:
        """Return the value as a whole number of `least` or more; UserError where it is something else."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            raise self.error(f"must be a whole number of {least} or more")
        return self.value

    def text_or(self, key: str, default: str = "") -> str:
        """Return the text under `key`, or `default` where there is none."""
        found = self.get(key)
        return default if found is None else found.text()


def read_file(path: Path, index: int | None = None) -> tuple[Files, list[str]]:
    """Return the text of the one file at `path`, for formats that consist of one file."""
    return {str(path): read_text(path)}, []


def main_file(files: Files) -> tuple[str, str]:
    """Return name and text of the file a person named."""
    return next(iter(files.items()))


def json_root(files: Files) -> Node:
    """Return the JSON of the file a person named."""
    name, text = main_file(files)
    document = parse_json(text, name)
    return Node(document, document.data)


def json_text(value: Any) -> str:
    """Return `value` as a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def choose(name: str, what: str, count: int, index: int | None) -> int:
    """Return which of `count` things to import, from zero; `index` counts from one and is needed where there are more."""
    if not count:
        raise UserError(f"{name}: holds no {what}s")
    if index is None and count > 1:
        raise UserError(f"{name}: holds {count} {what}s; choose one with an index from 1 to {count}")
    if index is not None and not 1 <= index <= count:
        raise UserError(f"{name}: holds {count} {what}s; the index {index} names none of them")
    return (index or 1) - 1


def the_others(what: str, count: int, chosen: int) -> list[str]:
    """Return the note that only one of `count` things was imported."""
    return [f"{what}s other than {chosen + 1} of {count}"] if count > 1 else []


def kept_of(thing: Scene | Shot, format: str) -> dict[str, Any]:
    """Return what an import from `format` kept with a scene or shot; changing it changes nothing."""
    kept = thing.extra.get(format)
    return dict(kept) if isinstance(kept, dict) else {}


def kept_text(shot: Shot, format: str, key: str) -> str | None:
    """Return a text that an import from `format` kept with a shot."""
    kept = kept_of(shot, format).get(key)
    return kept if isinstance(kept, str) else None


def extra(format: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Return what to put in `extra`: nothing where nothing was kept."""
    return {format: kept} if kept else {}


def unused(keys: Iterator[str] | list[str]) -> list[str]:
    """Return the note that these names were kept for the way back and are not used."""
    names = list(keys)
    return [f"{', '.join(names)}: kept for export, not used"] if names else []


def not_held(scene: Scene, again: Scene, format: str) -> list[str]:
    """Return, in words, what of `scene` is lost in `again`, which came back from the exported files."""
    lost = [
        name
        for name in ("title", "style", "seed", "environment", "story", "notes")
        if _differs(scene, again, name)
    ]
    lost += _lost_characters(scene.characters, again.characters)
    if len(scene.shots) != len(again.shots):
        return [*lost, f"the number of shots ({len(scene.shots)} became {len(again.shots)})"]
    for name in ("prompt", "cut", "seconds", "frames", "references", "seed", "take", "audio"):
        pairs = enumerate(zip(scene.shots, again.shots, strict=True), start=1)
        if changed := [k for k, (shot, other) in pairs if _differs(shot, other, name)]:
            lost.append(f"{name} of {shot_numbers(changed)}")
    return lost + [
        _KEPT.get(key, f"what was kept from {key}")
        for key in sorted(_kept_keys(scene) - _kept_keys(again) - {format, "shot"})
    ]


def shot_numbers(numbers: list[int]) -> str:
    """Return `shot 3` or `shots 1, 2, 5`."""
    return f"shot{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


_KEPT = {"scene": "where one scene of the story ends and the next begins"}


def _kept_keys(scene: Scene) -> set[str]:
    return {key for thing in (scene, *scene.shots) for key in thing.extra}


def _differs(one: Scene | Shot, other: Scene | Shot, name: str) -> bool:
    return getattr(one, name) != getattr(other, name)


def _lost_characters(characters: list[Character], again: list[Character]) -> list[str]:
    if [character.id for character in characters] != [character.id for character in again]:
        return ["the list of characters" if characters else "that there are no characters"]
    pairs = list(zip(characters, again, strict=True))
    lost = []
    for name in ("name", "description"):
        if changed := [str(one.id) for one, other in pairs if getattr(one, name) != getattr(other, name)]:
            lost.append(f"{name} of character{'s' if len(changed) > 1 else ''} {', '.join(changed)}")
    return lost


CHARACTER = re.compile(r"\bCharacter (\d{1,4})\b")
"""How a prompt names a person."""
