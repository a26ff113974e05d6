"""The JSON of a story in scenes, which EntityBench and StoryMem share: lists of `video_prompts` with `cut` flags.

A prompt may begin with lines that define who and what is new, `Name: description`. On import people become characters
and are named `Character 1` in the prompts, places become the environment, and objects stay with the prompt that brings
them in. The file is kept whole in `Scene.extra`; on export a shot that still says the same gets its own words back.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from longshot.document import Document
from longshot.errors import UserError
from longshot.formats.source import CHARACTER, Imported, Node, kept_of, shot_numbers, unused
from longshot.scene import Character, Scene, Shot

Kind = Literal["person", "place", "object"]

_DEFINITION = re.compile(r"([^\s:.!?][^:.!?\n]{0,59}): +(\S.*)")
_NOT_NAMES = re.compile(
    r"(?:scene|shot|camera|action|setting|style|mood|lighting|light|audio|sound|music|dialogue|narration|location|time"
    r"|note|background|foreground|environment|atmosphere|prompt|negative prompt|transition|angle|framing|.*\bshot"
    r"|.*\bclose-?up|.*\bview)(?: ?\d+)?\Z",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"\b(?:man|woman|boy|girl|person|child|male|female|lady|gentleman|people|guy|teenager|toddler|baby|human|racer"
    r"|actor|actress|father|mother|brother|sister|son|daughter|husband|wife|king|queen|prince|princess|soldier|officer"
    r"|detective|doctor|nurse|teacher|student|artist|musician|chef|farmer|warrior|knight|robot|puppet|creature|dog|cat)\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:room|interior|exterior|house|home|kitchen|street|road|city|town|village|office|study|hall|hallway|corridor"
    r"|bathroom|bedroom|attic|basement|garage|forest|park|garden|field|beach|mountain|lake|river|sea|ocean|desert|cafe"
    r"|restaurant|bar|shop|store|market|school|church|station|airport|circuit|racetrack|area|space|place|setting"
    r"|building|apartment|castle|stage|studio|library|hospital|entrance|indoor|outdoor|settings)\b",
    re.IGNORECASE,
)


SETTING = "The setting"
"""The name under which an environment without a name of its own is defined."""
PROMPTS, CUTS, ACTIONS = "video_prompts", "cut", "action_descriptions"


@dataclass(frozen=True)
class Entity:
    """Who or what a prompt, or the list in the file, defines."""

    name: str
    description: str
    kind: Kind

    def line(self) -> str:
        return f"{self.name}: {self.description}"


Cast = dict[str, Entity]
"""Name -> entity; the people stand in the order of their numbers."""

Place = tuple[int, int]
"""Scene and shot of a story, counted from one. Kept with a shot as `extra: {scene: 2, shot: 1}`."""

Row = dict[str, Node]
"""What a story says of one shot: the entries of all lists of its scene that have one a shot."""


def parse_episode(root: Node, format: str, listed: Cast) -> Imported:
    """Return the scene of a story; `listed` is the cast that the file itself lists, by which its prompts are read."""
    rows = _rows(root)
    if not rows:
        raise root.need("scenes").error("hold no video_prompts")
    cast = _cast((row[PROMPTS].text() for row in rows.values()), listed)
    characters, told = _characters(cast), _told(cast)
    scene = Scene(
        title=root.text_or("story_name"),
        characters=characters,
        environment=_environment(cast),
        story=_with_numbers(root.text_or("story_overview"), characters),
        shots=[
            Shot(
                prompt=_with_numbers(_take_apart(row[PROMPTS].text(), listed, told)[1], characters),
                cut=_read_cut(row),
                extra={"scene": place[0], "shot": place[1]},
            )
            for place, row in rows.items()
        ],
        extra={format: {"document": root.mapping()}},
    )
    return scene, _notes(root, rows, scene, listed)


def dump_episode(scene: Scene, format: str, listed: Cast) -> dict[str, Any]:
    """Return the JSON of a story.

    With a `listed` cast a prompt defines only who is new in it; without, the first prompt defines everyone in order.
    """
    root = kept_document(scene, format)
    return _Writer(scene, listed, root, _kept_rows(root)).story()


def kept_document(scene: Scene, format: str) -> Node:
    """Return the file that `scene` was imported from, or an empty one."""
    document = kept_of(scene, format).get("document")
    return Node(Document("extra", None), document if isinstance(document, dict) else {})


def cast_of(scene: Scene) -> Cast:
    """Return the people and places of `scene`."""
    return {entity.name: entity for entity in [*_people(scene), *_places(scene.environment)]}


def cast_is_unchanged(scene: Scene, format: str, listed: Cast) -> bool:
    """Tell whether the cast is still what an import from `format` makes of the file that was kept."""
    rows = _kept_rows(kept_document(scene, format))
    return bool(rows) and _is_cast(scene, _cast(_originals(scene, rows), listed))


def kind_of(name: str, description: str) -> Kind:
    """Guess what a name stands for: EntityBench writes `Julian`, `The Gothic Study`, `the ornate writing desk`."""
    if CHARACTER.fullmatch(name):
        return "person"
    if name.startswith("the "):
        return "object"
    opening = re.split(r"[,.;]| with | wearing ", description)[0]
    if _PERSON.search(opening) and not name.startswith("The "):
        return "person"
    if name.startswith("The ") or _PLACE.search(opening):
        return "place"
    return "person" if len(name.split()) <= 2 and name[:1].isupper() else "object"


def definitions(prompt: str, listed: Cast) -> tuple[list[Entity], str]:
    """Return what the first lines of `prompt` define, and the prompt after them.

    With a listed cast only its own entries count. Without, a line `Name: text` is a definition unless the name is a
    word of the trade (`Camera: ...`). The last line is never a definition.
    """
    lines = prompt.split("\n")
    found: list[Entity] = []
    for k, line in enumerate(lines):
        match = _DEFINITION.fullmatch(line.strip())
        if match is None or not any(rest.strip() for rest in lines[k + 1 :]):
            break
        name, description = match[1].strip(), match[2].strip()
        if listed and (name not in listed or listed[name].description != " ".join(description.split())):
            break  # perhaps somebody speaks
        if _NOT_NAMES.match(name) or len(name.split()) > 8:
            break
        found.append(listed[name] if listed else Entity(name, description, kind_of(name, description)))
    return found, "\n".join(lines[len(found) :]).strip() if found else prompt


def _rows(root: Node) -> dict[Place, Row]:
    """Return what a story says of each of its shots, in order."""
    rows: dict[Place, Row] = {}
    for number, scene in enumerate(root.need("scenes").items(), start=1):
        prompts = scene.need(PROMPTS).items()
        cuts = scene.get(CUTS)
        if cuts is not None and len(cuts.items()) != len(prompts):
            raise cuts.error(f"gives {len(cuts.items())} flags for {len(prompts)} video_prompts")
        lists = [key for key in scene.mapping() if _is_list_of(scene, key, len(prompts))]
        for k in range(len(prompts)):
            rows[number, k + 1] = {key: scene.need(key).items()[k] for key in lists}
    return rows


def _is_list_of(scene: Node, key: str, length: int) -> bool:
    value = scene.mapping()[key]
    return isinstance(value, list) and len(value) == length


def _kept_rows(root: Node) -> dict[Place, Row]:
    try:
        rows = _rows(root)
        return {place: row for place, row in rows.items() if isinstance(row[PROMPTS].value, str)}
    except UserError:  # nothing was imported, or a person changed what was kept
        return {}


def _read_cut(row: Row) -> bool:
    """Return the flag of a shot. ST-Bench's own instructions ask for the texts "True" and "False"."""
    if CUTS not in row:
        return True
    value = row[CUTS].value
    word = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(word, bool) and word not in ("true", "false"):
        raise row[CUTS].error("must be true or false")
    return word in (True, "true")


def _notes(root: Node, rows: dict[Place, Row], scene: Scene, listed: Cast) -> list[str]:
    """Return what the file holds that the scene does not use."""
    notes = unused([key for key in root.mapping() if key not in ("story_name", "story_overview", "scenes")])
    lists = {key: None for row in rows.values() for key in row if key not in (PROMPTS, CUTS, ACTIONS)}
    notes += unused(list(lists))
    if texts := [
        k for k, row in enumerate(rows.values(), start=1) if CUTS in row and isinstance(row[CUTS].value, str)
    ]:
        notes.append(f"the cut flag of {shot_numbers(texts)} is a text; it was read as true or false")
    if any(CUTS not in row for row in rows.values()):
        notes.append("some scenes have no cut flags; their shots were taken as cuts")
    brought = {entity.name for row in rows.values() for entity in definitions(row[PROMPTS].text(), listed)[0]}
    if absent := [one.name for one in listed.values() if one.kind == "object" and one.name not in brought]:
        notes.append(f"the looks of {', '.join(absent)}: no prompt brings them in")
    return notes


def _cast(prompts: Iterable[str], listed: Cast) -> Cast:
    """Return the listed cast and everyone whom the prompts define; the first definition of a name counts."""
    cast = dict(listed)
    for prompt in prompts:
        for entity in definitions(prompt, listed)[0]:
            cast.setdefault(entity.name, entity)
    return cast


def _characters(cast: Cast) -> list[Character]:
    people = [entity for entity in cast.values() if entity.kind == "person"]
    return [
        Character(id=k, name="" if CHARACTER.fullmatch(one.name) else one.name, description=one.description)
        for k, one in enumerate(people, start=1)
    ]


def _environment(cast: Cast) -> str:
    """Return the places, a line each."""
    places = [entity for entity in cast.values() if entity.kind == "place"]
    return "\n".join(place.description if place.name == SETTING else place.line() for place in places)


def _people(scene: Scene) -> list[Entity]:
    return [Entity(_shown_name(one), one.description, "person") for one in scene.characters]


def _places(environment: str) -> list[Entity]:
    """Return the places of an environment: its lines `Name: description`, or all of it as the setting."""
    matches = [_DEFINITION.fullmatch(line) for line in environment.split("\n")]
    named = [Entity(match[1], match[2], "place") for match in matches if match]
    return named if len(named) == len(matches) else _setting(environment)


def _guessable_places(environment: str) -> list[Entity]:
    """Return the places, where a reader without a list would take all of them for places; else the setting."""
    places = _places(environment)
    guessed = all(kind_of(one.name, one.description) == "place" for one in places)
    return places if guessed else _setting(environment)


def _setting(environment: str) -> list[Entity]:
    return [Entity(SETTING, " ".join(environment.split()), "place")] if environment.strip() else []


def _is_cast(scene: Scene, cast: Cast) -> bool:
    return _characters(cast) == scene.characters and _environment(cast) == scene.environment


def _take_apart(prompt: str, listed: Cast, told: Cast) -> tuple[list[Entity], str]:
    """Return whom `prompt` defines as `told` has them, and the rest: objects, other looks of the same, what happens."""
    found, body = definitions(prompt, listed)
    known = [entity for entity in found if told.get(entity.name) == entity]
    rest = [entity.line() for entity in found if told.get(entity.name) != entity]
    return known, "\n".join([*rest, body])


def _told(cast: Cast) -> Cast:
    """Return the people and places, whom a scene tells of by itself; objects stay in the prompts."""
    return {name: entity for name, entity in cast.items() if entity.kind != "object"}


def _shown_name(character: Character) -> str:
    return character.name or f"Character {character.id}"


def _with_numbers(text: str, characters: list[Character]) -> str:
    numbers = {_shown_name(character): character.id for character in reversed(characters)}
    names = "|".join(re.escape(name) for name in sorted(numbers, key=len, reverse=True))
    if not names:
        return text
    return re.sub(rf"(?<!\w)(?:{names})(?!\w)", lambda found: f"Character {numbers[found[0]]}", text)


def _with_names(text: str, characters: list[Character]) -> str:
    names = {character.id: _shown_name(character) for character in characters}
    return CHARACTER.sub(lambda found: names.get(int(found[1]), found[0]), text)


def _original(shot: Shot, rows: dict[Place, Row]) -> Row:
    scene, number = shot.extra.get("scene"), shot.extra.get("shot")
    return rows.get((scene, number), {}) if isinstance(scene, int) and isinstance(number, int) else {}


def _originals(scene: Scene, rows: dict[Place, Row]) -> list[str]:
    found = [_original(shot, rows) for shot in scene.shots]
    return [row[PROMPTS].text() for row in found if row]


@dataclass(frozen=True)
class _Writer:
    """Writes a story, with the words of the file it came from where nothing changed."""

    scene: Scene
    listed: Cast
    root: Node
    rows: dict[Place, Row]

    def story(self) -> dict[str, Any]:
        kept = self.root.mapping()
        overview = kept.get("story_overview")
        characters = self.scene.characters
        if not isinstance(overview, str) or _with_numbers(overview, characters) != self.scene.story:
            overview = _with_names(self.scene.story, characters)
        others = {
            key: value for key, value in kept.items() if key not in ("story_name", "story_overview", "scenes")
        }
        entries = zip(self.scene_numbers(), self.scene.shots, self.prompts(), strict=True)
        groups = groupby(entries, key=lambda entry: entry[0])
        scenes = [
            self.one_scene(number, [(shot, prompt) for _, shot, prompt in group]) for number, group in groups
        ]
        return {"story_name": self.scene.title, "story_overview": overview, "scenes": scenes, **others}

    def scene_numbers(self) -> list[int]:
        """Return the number of the scene of each shot; a new shot belongs to the scene of the shot before."""
        numbers, current = [], 1
        for shot in self.scene.shots:
            number = shot.extra.get("scene")
            current = number if isinstance(number, int) else current
            numbers.append(current)
        return numbers

    def prompts(self) -> list[str]:
        cast = _cast(_originals(self.scene, self.rows), self.listed)
        same_cast = _is_cast(self.scene, cast)
        introduced: set[str] = set()
        prompts = []
        for k, shot in enumerate(self.scene.shots):
            row = _original(shot, self.rows) if same_cast else {}
            original = row[PROMPTS].text() if row else ""
            new, rest = _take_apart(original, self.listed, _told(cast))
            if row and _with_numbers(rest, self.scene.characters) == shot.prompt:
                prompts.append(original)
                continue
            new = [one for one in (new if row else self.newcomers(shot, k)) if one.name not in introduced]
            introduced |= {one.name for one in new}
            text = _with_names(shot.prompt, self.scene.characters)
            prompts.append("\n".join([*(one.line() for one in new if one.description), text]))
        return prompts

    def newcomers(self, shot: Shot, k: int) -> list[Entity]:
        """Return whom prompt k has to define: the people it names, or all at the start; the places at the start."""
        if not self.listed:
            return [*_people(self.scene), *_guessable_places(self.scene.environment)] if k == 0 else []
        named = {int(found[1]) for found in CHARACTER.finditer(shot.prompt)}
        names = {_shown_name(one) for one in self.scene.characters if one.id in named}
        return [one for one in self.listed.values() if one.name in names or (k == 0 and one.kind == "place")]

    def one_scene(self, number: int, shots: list[tuple[Shot, str]]) -> dict[str, Any]:
        kept = self.root.mapping().get("scenes")
        kept = kept[number - 1] if isinstance(kept, list) and 0 < number <= len(kept) else {}
        rows = [_original(shot, self.rows) for shot, _ in shots]
        lists = {key for row in rows for key in row} - {PROMPTS, CUTS} or (
            {ACTIONS} if self.listed else set()
        )
        others = (
            {key: value for key, value in kept.items() if key not in lists} if isinstance(kept, dict) else {}
        )
        entries = list(zip(rows, shots, strict=True))
        return {
            "scene_num": number,
            **others,
            PROMPTS: [prompt for _, prompt in shots],
            CUTS: [self.cut(row, shot) for row, (shot, _) in entries],
            **{key: [self.entry(key, row, prompt) for row, (_, prompt) in entries] for key in sorted(lists)},
        }

    def cut(self, row: Row, shot: Shot) -> Any:
        """Return the flag as the file had it ("False" for false), while it still says the same."""
        kept = row[CUTS].value if CUTS in row else None
        return kept if str(kept).strip().lower() == str(shot.cut).lower() else shot.cut

    def entry(self, key: str, row: Row, prompt: str) -> Any:
        """Return a shot's entry in another list of its scene."""
        if key in row and (key != ACTIONS or prompt == row[PROMPTS].value):
            return row[key].value
        return definitions(prompt, self.listed)[1] if key == ACTIONS else ""
