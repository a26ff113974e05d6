"""What a captioner is asked, and what makes its answer a caption: the two tiers of METHOD sec. 1. No network here.

An answer is checked, and small things are put right, each with a note: words around the JSON, ids that begin at 0, `character1`
for `Character 1`. What can't be put right without guessing is a problem, told in words that go back to the captioner.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longshot.data.records import Record
from longshot.errors import UserError
from longshot.lint import vague_words
from longshot.scene import SHOT_CUT, Character, Scene, Shot

MAX_TEXT = 4000
"""Characters of one text of an answer: a longer one is a captioner that can't stop."""


class Person(Record):
    """Someone who recurs in a scene."""

    id: int
    description: str


class Caption(Record):
    """The two tiers of a scene's prompts; `prompts` has one a shot, without `[SHOT CUT]`."""

    characters: tuple[Person, ...] = ()
    environment: str = ""
    story: str = ""
    prompts: tuple[str, ...]

    def scene(self, cuts: Sequence[bool]) -> Scene:
        """Return the scene as a person would write it; its `global_prompt()` and `shot_prompts()` are what training reads."""
        shots = [Shot(prompt=p, cut=c) for p, c in zip(self.prompts, cuts, strict=True)]
        people = [Character(id=p.id, description=p.description) for p in self.characters]
        return Scene(characters=people, environment=self.environment, story=self.story, shots=shots)

    def alone(self, shot: int) -> str:
        """Return a prompt for shot `shot` (from 0) by itself: who is in it, where, and what happens."""
        prompt = self.prompts[shot]
        named = {int(number) for number in _NAMED.findall(prompt)}
        people = tuple(p for p in self.characters if p.id in named)
        scene = Caption(characters=people, environment=self.environment, prompts=(prompt,)).scene([False])
        return " ".join(filter(None, [scene.global_prompt(), *scene.shot_prompts()]))


class AnswerError(UserError):
    """An answer that isn't a caption; `problems` are told to the captioner."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")


# -- the question -------------------------------------------------------------------------------------------------------
def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    names = list(properties)
    return {
        "type": "object",
        "properties": dict(properties),
        "required": names,
        "additionalProperties": False,
    }


_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
SCHEMA: dict[str, Any] = _object(
    {
        "characters": {"type": "array", "items": _object({"id": _NUMBER, "description": _TEXT})},
        "environment": _TEXT,
        "story": _TEXT,
        "shots": {"type": "array", "items": _object({"shot": _NUMBER, "prompt": _TEXT})},
    }
)
"""JSON schema of an answer. Plain on purpose, without references or bounds: servers differ in what else they know."""

INSTRUCTION = """\
You write captions for training a video model that makes whole scenes. You see frames of one scene, shot by shot, in order.
Answer with one JSON object and nothing else:
- "characters": everyone who matters, people and animals, each with an "id" (1, 2, 3, ... in order of appearance) and a
  "description" of how they look all through the scene: build, age, hair or fur, face, clothes, colours. No names, no actions.
  An empty list when nobody is seen.
- "environment": the place, the light, the time of day, the style of the picture.
- "story": one or two sentences on what happens over the whole scene.
- "shots": one entry a shot, in order, with its number "shot" (from 1) and a "prompt": shot size and camera, who does what,
  where in the frame. Write `Character 1` whenever character 1 is meant, in every shot, never "the man" or "she" alone.
Describe what is seen and nothing else; what you can't see, leave out."""


def question(num_shots: int, cuts: Sequence[bool]) -> str:
    """Return the words that go before the frames: how many shots there are, and which continue the one before."""
    joined = [str(k) for k, cut in enumerate(cuts, start=1) if not cut]
    text = f"The scene has {num_shots} shot{'s' if num_shots > 1 else ''}."
    if joined:
        text += (
            f" There is no cut before shot {', '.join(joined)}: it goes on from the shot before, and its prompt says "
            "what changes."
        )
    return text


def complaint(problems: Sequence[str]) -> str:
    """Return what a captioner is told of an answer that can't be used."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    return f"This answer can't be used:\n{listed}\nAnswer again with the whole corrected JSON object and nothing else."


# -- the answer ---------------------------------------------------------------------------------------------------------
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_CALLED = re.compile(r"[\[<(]?\bchar(?:acter)?[ _#-]{0,2}(\d{1,4})\b[\])>]?", re.IGNORECASE)
_SEVERAL = re.compile(r"\bcharacters (\d{1,4}(?:(?:, | and | & |, and )\d{1,4})*)\b", re.IGNORECASE)
_NAMED = re.compile(r"\bCharacter (\d{1,4})\b")


def read_answer(text: str, num_shots: int) -> tuple[Caption, list[str]]:
    """Return the caption in an answer, and notes on what was put right. AnswerError lists all that can't be."""
    data, notes = _json_in(text)
    return caption_of(data, num_shots, notes)


def caption_of(data: Any, num_shots: int, notes: list[str] | None = None) -> tuple[Caption, list[str]]:
    """Return the caption that JSON values of the schema hold, and notes. AnswerError lists all that can't be put right."""
    notes = [] if notes is None else notes
    if not isinstance(data, dict):
        raise AnswerError([f"it is {_kind(data)}, not a JSON object"])
    problems: list[str] = []
    if unknown := sorted(set(data) - set(SCHEMA["properties"])):
        notes.append(f"left out: {', '.join(map(str, unknown))}")
    environment = _text(data.get("environment"), "environment", problems)
    story = _text(data.get("story"), "story", problems)
    people = _people(data.get("characters"), problems, notes)
    prompts = _prompts(data.get("shots"), num_shots, problems, notes)
    if problems:
        raise AnswerError(problems)
    numbers = _renumbered([number for number, _ in people], problems, notes)

    def told(text: str, where: str) -> str:
        return _with_names(text, numbers, where, problems, notes)

    caption = Caption(
        characters=tuple(
            Person(id=numbers[number], description=told(look, f"character {number}"))
            for number, look in people
        ),
        environment=told(environment, "environment"),
        story=told(story, "story"),
        prompts=tuple(told(prompt, f"shot {k}") for k, prompt in enumerate(prompts, start=1)),
    )
    if caption.characters and not any(_NAMED.search(prompt) for prompt in caption.prompts):
        problems.append(
            "no shot's prompt names a character; write `Character 1` wherever character 1 is meant"
        )
    if problems:
        raise AnswerError(problems)
    for k, prompt in enumerate(caption.prompts, start=1):
        if caption.characters and (vague := vague_words(prompt)):
            notes.append(f"shot {k} says {vague[0]!r}, which may be any character")
    return caption, list(dict.fromkeys(notes))


def _json_in(text: str) -> tuple[Any, list[str]]:
    """The JSON object in a text, and a note when there was more around it."""
    bare = _THOUGHTS.sub("", text).strip()
    start = bare.find("{")
    if start < 0:
        raise AnswerError(
            ["it holds no JSON object" if bare else "it is empty"],
        )
    try:
        data, end = json.JSONDecoder().raw_decode(bare, start)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise AnswerError([f"it isn't whole JSON ({reason})"]) from None
    around = bare[:start] + bare[end:]
    return data, ["took the JSON out of the words around it"] if around.strip() else []


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")


def _text(value: Any, where: str, problems: list[str], may_be_empty: bool = True) -> str:
    """One line of text."""
    if not isinstance(value, str):
        problems.append(f'"{where}" is {"missing" if value is None else f"{_kind(value)}, not a text"}')
        return ""
    line = " ".join(value.encode("utf-8", "replace").decode().replace("\x00", " ").split())
    if not line and not may_be_empty:
        problems.append(f'"{where}" is empty')
    if len(line) > MAX_TEXT:
        problems.append(f'"{where}" has {len(line)} characters; {MAX_TEXT} at most')
    return line


def _number(value: Any) -> int | None:
    """A whole number, also of `"1"` or `"Character 1"`."""
    if isinstance(value, str) and (found := re.fullmatch(r"\D{0,12}(\d{1,4})", value.strip())):
        return int(found[1])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _people(value: Any, problems: list[str], notes: list[str]) -> list[tuple[int, str]]:
    """(id, description) of each character."""
    if isinstance(value, dict):
        notes.append("read characters given as an object of ids")
        value = [{"id": number, "description": look} for number, look in value.items()]
    if not isinstance(value, list):
        problems.append(f'"characters" is {"missing" if value is None else _kind(value)}, not a list')
        return []
    people = []
    for k, entry in enumerate(value, start=1):
        where = f"character entry {k}"
        number = _number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or number < 0:
            problems.append(f'{where} has no "id" that is a whole number')
            continue
        people.append(
            (number, _text(entry.get("description"), f"{where}, description", problems, may_be_empty=False))
        )
    numbers = [number for number, _ in people]
    problems += [
        f"two characters have the id {number}"
        for number in sorted({n for n in numbers if numbers.count(n) > 1})
    ]
    return people


def _renumbered(numbers: Sequence[int], problems: list[str], notes: list[str]) -> dict[int, int]:
    """What each id becomes: 1, 2, 3, ... in the order of the list."""
    new = {number: k for k, number in enumerate(numbers, start=1)}
    if any(old != k for old, k in new.items()):
        notes.append(f"renumbered the characters {', '.join(map(str, numbers))} from 1 on")
    return new


def _prompts(value: Any, num_shots: int, problems: list[str], notes: list[str]) -> list[str]:
    """One prompt a shot, in order."""
    if not isinstance(value, list):
        problems.append(f'"shots" is {"missing" if value is None else _kind(value)}, not a list')
        return []
    if len(value) != num_shots:
        problems.append(f'"shots" has {len(value)} entries; the scene has {num_shots} shots')
        return []
    numbered: dict[int, str] = {}
    for k, entry in enumerate(value, start=1):
        if isinstance(entry, str):
            notes.append("read shots given as texts in order")
            entry = {"shot": k, "prompt": entry}
        number = _number(entry.get("shot")) if isinstance(entry, dict) else None
        if number is None or number in numbered:
            problems.append(
                f'shot entry {k} has no "shot" number'
                if number is None
                else f"two entries are for shot {number}"
            )
            continue
        prompt = _text(entry.get("prompt"), f"shot {number}, prompt", problems, may_be_empty=False)
        if prompt.upper().startswith(SHOT_CUT):
            prompt = prompt[len(SHOT_CUT) :].lstrip()
            notes.append(f"took {SHOT_CUT} away, which is put there by the film's own cuts")
        numbered[number] = prompt
    if sorted(numbered) == list(range(num_shots)) and num_shots:
        notes.append("renumbered the shots from 1 on")
        numbered = {number + 1: prompt for number, prompt in numbered.items()}
    if not problems and sorted(numbered) != list(range(1, num_shots + 1)):
        problems.append(
            f"the shots are numbered {', '.join(map(str, sorted(numbered)))}, not 1 to {num_shots}"
        )
    return [numbered[number] for number in sorted(numbered)]


def _with_names(
    text: str, numbers: Mapping[int, int], where: str, problems: list[str], notes: list[str]
) -> str:
    """The text with every mention as `Character k`, by the new numbers."""

    def mention(found: re.Match[str]) -> str:
        number = int(found[1])
        if number not in numbers:
            problems.append(f"{where} names Character {number}, who isn't among the characters")
            return found[0]
        new = f"Character {numbers[number]}"
        if new != found[0] and numbers[number] == number:
            notes.append(f"wrote {found[0]!r} as {new!r}")
        return new

    each = _SEVERAL.sub(lambda found: re.sub(r"\d+", r"Character \g<0>", found[1]), text)
    return _CALLED.sub(mention, each)
