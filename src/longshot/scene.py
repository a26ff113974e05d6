"""The scene file a person writes: characters, a place, a story, and shots; and the two-tier prompts made of it."""

import difflib
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    ValidationError,
    model_validator,
)

from longshot.document import Document, Where, field_words, read_document
from longshot.errors import UserError
from longshot.files import write_text

SHOT_CUT = "[SHOT CUT]"
"""Prefix of the prompt of a shot that begins with a real cut (METHOD sec. 1)."""
PLACE_PROMPT = f"{SHOT_CUT} Nobody is there."
"""The prompt of an environment image."""

Role = Literal["identity", "environment", "first_frame", "last_frame", "video"]
ROLES: tuple[str, ...] = get_args(Role)


def identity_prompt(character: int) -> str:
    """The prompt of an identity image: it names the character and nothing else, no camera, no action and no place."""
    return f"{SHOT_CUT} Character {character}."


class _Part(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", validate_assignment=True, allow_inf_nan=False, ser_json_inf_nan="strings"
    )


class Character(_Part):
    """Someone who recurs. Prompts call them `Character <id>`."""

    id: PositiveInt
    name: str = ""
    description: str = ""


class Reference(_Part):
    """A picture or clip given with a shot; `path` is relative to the folder of the scene file.

    `start` and `stop` (seconds) choose a part of a video. `character` says whose identity is shown.
    """

    role: Role
    path: str = Field(min_length=1)
    character: PositiveInt | None = None
    start: float | None = Field(default=None, ge=0)
    stop: PositiveFloat | None = None

    @model_validator(mode="after")
    def _has_an_order(self) -> "Reference":
        if self.stop is not None and self.stop <= (self.start or 0.0):
            raise ValueError(f"stop ({self.stop} s) must come after start ({self.start or 0.0} s)")
        return self


class Shot(_Part):
    """One continuous take. `cut: false` means it continues the shot before it.

    Length is `seconds` or `frames`, or the base's default. `take` re-rolls the noise of this shot only. `audio` is kept
    word for word and not used. `extra` keeps what an import could not place.
    """

    prompt: str
    cut: StrictBool = True
    seconds: PositiveFloat | None = None
    frames: PositiveInt | None = None
    references: list[Reference] = Field(default_factory=list)
    seed: int | None = Field(default=None, ge=0)
    take: int = Field(default=0, ge=0)
    audio: str | None = None
    extra: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_length(self) -> "Shot":
        if self.seconds is not None and self.frames is not None:
            raise ValueError("gives both seconds and frames; keep one of them")
        return self


class Scene(_Part):
    """Shots that share characters, a place and a story."""

    title: str = ""
    style: str = ""
    seed: int = Field(default=0, ge=0)
    characters: list[Character] = Field(default_factory=list)
    environment: str = ""
    story: str = ""
    shots: list[Shot] = Field(min_length=1)
    notes: str = ""
    extra: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_character_an_id(self) -> "Scene":
        ids = [character.id for character in self.characters]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"two characters have the id {twice[0]}; give each its own")
        return self

    def global_prompt(self) -> str:
        """Return `[Character] ... [Environment] ... [Story] ...` (METHOD sec. 1), or "" when nothing is given.

        Parts that are empty are left out. Characters read `Character 1: name, description.`; the style joins the
        environment.
        """
        characters = " ".join(_sentence(_introduction(character)) for character in self.characters)
        place = " ".join(_sentence(text) for text in (self.environment, self.style) if text.strip())
        parts = [("[Character]", characters), ("[Environment]", place), ("[Story]", _sentence(self.story))]
        return " ".join(f"{tag} {text}" for tag, text in parts if text)

    def shot_prompts(self) -> list[str]:
        """Return one prompt a shot, on one line, with `[SHOT CUT]` in front where the shot begins with a cut."""
        texts = [" ".join(shot.prompt.split()) for shot in self.shots]
        return [
            f"{SHOT_CUT} {text}" if shot.cut else text for shot, text in zip(self.shots, texts, strict=True)
        ]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a scene file: its line (from 1), the field in words, and what to do."""

    line: int | None
    field: str
    message: str


class SceneFileError(UserError):
    """A file that is not a scene. `str` is one line that tells the first of `problems`."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.problems = problems
        first = problems[0]
        place = name if first.line is None else f"{name}:{first.line}"
        more = f" (and {len(problems) - 1} more; `longshot lint` lists them)" if len(problems) > 1 else ""
        super().__init__(f"{place}: {first.field}: {first.message}{more}")


def load_scene(path: str | os.PathLike[str]) -> Scene:
    """Return the scene in a YAML or JSON file; UserError names file, line and field of what is wrong."""
    return parse_scene(read_document(path))


def parse_scene(document: Document) -> Scene:
    """Return the scene that `document` describes; SceneFileError where it describes none."""
    if document.data is None:
        raise UserError(f"{document.name}: is empty; a scene needs at least `shots:` with one prompt")
    if not isinstance(document.data, dict):
        raise UserError(
            f"{document.name}:1: is not a scene; it should begin with names such as `title:` and `shots:`"
        )
    try:
        return Scene.model_validate(document.data)
    except ValidationError as error:
        present_first = sorted(error.errors(), key=lambda details: details["type"] == "missing")
        problems = [_problem(document, details) for details in present_first]
        raise SceneFileError(document.name, problems) from error


def save_scene(scene: Scene, path: str | os.PathLike[str]) -> None:
    """Write `scene` as a YAML file that `load_scene` reads back equal; whole or not at all."""
    write_text(path, dump_scene(scene))


def dump_scene(scene: Scene) -> str:
    """Return `scene` as YAML in a person's order, with defaults left out and every shot's `cut` spelled out."""
    content = scene.model_dump(exclude_defaults=True)
    content["shots"] = [
        {
            "prompt": shot.prompt,
            "cut": shot.cut,
            **shot.model_dump(exclude_defaults=True, exclude={"prompt", "cut"}),
        }
        for shot in scene.shots
    ]
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Text of several lines is written as a block, and nothing is written as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    odd_line_end = any(
        character in text for character in "\r\x85\u2028\u2029"
    )  # YAML would change these to \n
    style = '"' if odd_line_end else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _introduction(character: Character) -> str:
    look = ", ".join(text.strip() for text in (character.name, character.description) if text.strip())
    return f"Character {character.id}: {look}" if look else f"Character {character.id}"


def _sentence(text: str) -> str:
    """Return `text` on one line, with a full stop unless it ends in a mark already."""
    line = " ".join(text.split())
    return line if not line or line[-1] in ".!?;:…。！？" else line + "."


def _problem(document: Document, details: Any) -> Problem:
    where: Where = details["loc"]
    message = _message(details, where)
    return Problem(document.line(where), field_words(where), message)


_WANTED = {
    "bool_type": "must be true or false without quotes",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "dict_type": "must be names with values",
    "model_type": "must be names with values",
}


def _message(details: Any, where: Where) -> str:
    kind, value = details["type"], details["input"]
    if kind in _WANTED:
        hint = "; put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
        return f"{_WANTED[kind]}, not {_shown(value)}{hint}"
    if kind == "missing":
        return "is missing; is the file whole?" if where == ("shots",) else "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(where)
    if kind == "too_short":
        return "is empty; a scene needs at least one shot"
    if kind == "literal_error":
        return f"must be one of {', '.join(ROLES)}, not {_shown(value)}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}, not {_shown(value)}"


def _unknown_key(where: Where) -> str:
    known = list(_part_at(where[:-1]).model_fields)
    close = difflib.get_close_matches(str(where[-1]), known, n=1)
    advice = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
    return f"is not known; {advice}"


def _part_at(where: Where) -> type[_Part]:
    parts: dict[str | int, type[_Part]] = {"characters": Character, "shots": Shot, "references": Reference}
    lists = [parts[step] for step in where if step in parts]
    return lists[-1] if lists else Scene


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "names with values"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f'the text "{value if len(value) <= 40 else value[:39] + "…"}"'
    return str(value).lower() if isinstance(value, bool) else str(value)
