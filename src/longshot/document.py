"""YAML and JSON files read into plain values, with the line on which every field stands."""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshot.errors import UserError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 16 * 2**20
"""No script or scene file comes near this; a larger file is something else."""
MAX_DEPTH = 40
MAX_VALUES = 20_000
"""Bound on values in one file, so that nested YAML aliases cannot grow without end."""

Where = tuple[str | int, ...]
"""The way to a value: keys and zero-based positions, for example `("shots", 2, "cut")`."""


@dataclass(frozen=True)
class Document:
    """What a file says, and where it says it."""

    name: str
    data: Any
    lines: dict[Where, int] = field(default_factory=dict)

    def line(self, where: Where) -> int | None:
        """Return the line (from 1) of the field at `where`, or of the nearest thing around it that has one."""
        for end in range(len(where), -1, -1):
            if (line := self.lines.get(where[:end])) is not None:
                return line
        return None


def field_words(where: Where) -> str:
    """Return the way to a field in words, counted from one: `("shots", 2, "cut")` is `shot 3, cut`."""
    words: list[str] = []
    for step in where:
        if isinstance(step, int):
            words[-1:] = [f"{words[-1].removesuffix('s') if words else 'item'} {step + 1}"]
        else:
            words.append(step)
    return ", ".join(words) or "scene"


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the UTF-8 text of the file at `path`; UserError where it is absent, too large or not text."""
    source = Path(path)
    try:
        kind = "file" if source.is_file() else "other" if source.exists() else "absent"
        content = _first_bytes(source) if kind == "file" else b""
    except OSError as error:
        raise UserError(f"{source}: could not be read ({error.strerror or error})") from error
    if kind != "file":
        raise UserError(
            f"{source}: {'no such file' if kind == 'absent' else 'is not a file that can be read'}"
        )
    if len(content) > MAX_BYTES:
        raise UserError(f"{source}: is larger than {MAX_BYTES // 2**20} MiB; this is not a script")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}:{line}: is not UTF-8 text; is this the right file?") from error


def _first_bytes(source: Path) -> bytes:
    with source.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def read_document(path: str | os.PathLike[str]) -> Document:
    """Return the values of the YAML or (by the ending `.json`) JSON file at `path`; UserError names file and line."""
    text = read_text(path)
    parse = parse_json if Path(path).suffix.lower() == ".json" else parse_yaml
    return parse(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Return the one YAML document in `text`: mappings, lists, text, numbers, booleans, null.

    Dates stay text. Refused with a line number: a key given twice, a key that is not text, tags, more than one
    document. `name` is the file to name in errors.
    """
    import yaml  # takes longer to load than all else here, and JSON does without
    from yaml.reader import ReaderError

    reader = _YamlReader(name)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        data = None if node is None else reader.value(loader, node, (), 0)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"holds the character {error.character!r}, which YAML does not allow"
        raise UserError(f"{name}:{line}: {problem}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(_yaml_message(name, text, error)) from error
    except RecursionError as error:
        raise UserError(f"{name}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: is not valid YAML ({error})") from error
    return Document(name, data, reader.lines)


def parse_json(text: str, name: str) -> Document:
    """Return the JSON value in `text`; UserError names the line of a mistake or of a key given twice."""
    reader = _JsonReader(text, name)
    data, end = reader.value(reader.skip(0), (), 0)
    if reader.skip(end) < len(text):
        raise reader.error(reader.skip(end), "holds more after the end of its value")
    return Document(name, data, reader.lines)


def _yaml_message(name: str, text: str, error: "yaml.MarkedYAMLError") -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = error.problem or "is not valid YAML"
    if mark and not text[mark.index :].strip():
        return f"{name}:{line}: ends in the middle ({problem}); is the file whole?"
    return f"{name}:{line}: is not valid YAML here ({problem})"


class _YamlReader:
    """Turns a YAML node tree into values and notes the lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Where, int] = {}
        self.count = 0

    def value(self, loader: "yaml.SafeLoader", node: "yaml.Node", where: Where, depth: int) -> Any:
        import yaml

        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            raise self.error(node, "is nested too deeply or repeats itself too often")
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return {
                key: self.value(loader, child, (*where, key), depth + 1)
                for key, child in self.pairs(node, where)
            }
        if isinstance(node, yaml.SequenceNode):
            return [self.value(loader, child, (*where, i), depth + 1) for i, child in enumerate(node.value)]
        return self.scalar(loader, node)

    def pairs(self, node: "yaml.MappingNode", where: Where) -> Iterator[tuple[str, "yaml.Node"]]:
        import yaml

        seen: dict[str, int] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "has a key that is not text")
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen:
                raise self.error(
                    key_node, f"gives {key!r} twice, first on line {seen[key]}; keep one of them"
                )
            seen[key] = self.lines[(*where, key)] = line
            yield key, child

    def scalar(self, loader: "yaml.SafeLoader", node: "yaml.Node") -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        clock = kind in ("int", "float") and ":" in node.value  # YAML 1.1 reads 12:30 as the number 750
        if kind in ("str", "timestamp", "merge", "value") or clock:
            return node.value
        if kind not in ("null", "bool", "int", "float"):
            raise self.error(node, f"uses the tag {node.tag!r}, which is not read")
        value = loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(node, f"holds {node.value}, which is not a finite number")
        return value

    def error(self, node: "yaml.Node", problem: str) -> UserError:
        return UserError(f"{self.name}:{node.start_mark.line + 1}: {problem}")


class _JsonReader:
    """Reads JSON while it notes the lines, which the standard library's decoder does not."""

    scalars = json.JSONDecoder()

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.lines: dict[Where, int] = {}
        self.starts = [0, *(i + 1 for i, character in enumerate(text) if character == "\n")]

    def line(self, at: int) -> int:
        return bisect_right(self.starts, at)

    def skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at] in " \t\r\n":
            at += 1
        return at

    def error(self, at: int, problem: str) -> UserError:
        if at >= len(self.text.rstrip()):
            problem = "ends in the middle; is the file whole?"
        return UserError(f"{self.name}:{self.line(at)}: {problem}")

    def value(self, at: int, where: Where, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise self.error(at, "is nested too deeply")
        self.lines.setdefault(where, self.line(at))
        opening = self.text[at : at + 1]
        if opening == "{":
            return self.object(at + 1, where, depth)
        if opening == "[":
            return self.array(at + 1, where, depth)
        return self.scalar(at)

    def scalar(self, at: int) -> tuple[Any, int]:
        try:
            value, end = self.scalars.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            rest = self.text[error.pos :].strip()
            half_word = any(word.startswith(rest) for word in ("true", "false", "null"))
            cut_short = half_word or error.msg.startswith("Unterminated string")
            raise self.error(
                len(self.text) if cut_short else error.pos, f"is not valid JSON ({error.msg})"
            ) from error
        except ValueError as error:  # a number of thousands of digits
            raise self.error(at, f"is not valid JSON ({error})") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(at, "holds a number that is not finite")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(at, "holds half of a character (a lone surrogate)")
        return value, end

    def array(self, at: int, where: Where, depth: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        at = self.skip(at)
        if self.text[at : at + 1] == "]":
            return values, at + 1
        while True:
            value, at = self.value(self.skip(at), (*where, len(values)), depth + 1)
            values.append(value)
            at = self.skip(at)
            if self.text[at : at + 1] == "]":
                return values, at + 1
            at = self.expect(at, ",")

    def object(self, at: int, where: Where, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        at = self.skip(at)
        if self.text[at : at + 1] == "}":
            return values, at + 1
        while True:
            start = self.skip(at)
            key, at = self.scalar(start)
            if not isinstance(key, str):
                raise self.error(start, "has a key that is not text in double quotes")
            if key in values:
                first = self.lines[(*where, key)]
                raise self.error(start, f"gives {key!r} twice, first on line {first}; keep one of them")
            self.lines[(*where, key)] = self.line(start)
            at = self.expect(self.skip(at), ":")
            values[key], at = self.value(self.skip(at), (*where, key), depth + 1)
            at = self.skip(at)
            if self.text[at : at + 1] == "}":
                return values, at + 1
            at = self.expect(at, ",")

    def expect(self, at: int, character: str) -> int:
        if self.text[at : at + 1] != character:
            raise self.error(at, f"is not valid JSON (expected {character!r})")
        return at + 1
