"""One global caption instead of characters, place and story: written so that it can be taken apart again."""

import re

from longshot.scene import Character, Scene

_PARTS = re.compile(
    r"\A(?P<people>.*?)(?:^Setting: (?P<place>.*?))?(?:^Story: (?P<story>.*))?\Z", re.DOTALL | re.MULTILINE
)
_PERSON = re.compile(r"^Character (\d{1,4})(?: \(([^()\n]+)\))?(?: is |$)", re.MULTILINE)


def compose(scene: Scene) -> str:
    """Return characters, environment and story as one caption, a line each; a story alone stands bare."""
    lines = [_introduction(character) for character in scene.characters]
    if scene.environment:
        lines.append(f"Setting: {scene.environment}")
    if scene.story:
        lines.append(f"Story: {scene.story}" if lines else scene.story)
    return "\n".join(lines)


def split(caption: str) -> tuple[list[Character], str, str]:
    """Return characters, environment and story of a caption; one that `compose` did not write is all story."""
    parts = _PARTS.match(caption)
    assert parts is not None  # every text has this shape
    people = parts["people"]
    starts = [start for start in _PERSON.finditer(caption) if start.start() < len(people)]
    numbers = [int(start[1]) for start in starts]
    foreign = people and (not starts or starts[0].start() > 0)
    if foreign or 0 in numbers or len(set(numbers)) < len(numbers):
        return [], "", caption
    bounds = [*(start.start() for start in starts), len(people)]
    characters = [
        Character(id=int(at[1]), name=at[2] or "", description=people[at.end() : end].removesuffix("\n"))
        for at, end in zip(starts, bounds[1:], strict=True)
    ]
    return characters, (parts["place"] or "").removesuffix("\n"), parts["story"] or ""


def _introduction(character: Character) -> str:
    name = f" ({character.name})" if character.name else ""
    look = f" is {character.description}" if character.description else ""
    return f"Character {character.id}{name}{look}"
