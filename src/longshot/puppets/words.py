"""The words of the puppet world: two-tier captions with varied wording, and what every word means."""

from __future__ import annotations

import re

import numpy as np

from longshot.puppets.world import (
    WIDTH,
    Acting,
    Character,
    Fish,
    PuppetScene,
    PuppetShot,
    theme_of,
    walk_direction,
)

# Attribute value -> its words, the plain one first. About half of all captions use the plain one.
MEANINGS: dict[str, tuple[str, ...]] = {
    # body and hat colours
    "red": ("red", "crimson", "scarlet", "ruby", "cherry"),
    "orange": ("orange", "amber", "tangerine", "copper", "pumpkin"),
    "yellow": ("yellow", "golden", "lemon", "gold", "sunny yellow"),
    "green": ("green", "emerald", "olive", "jade", "grass green"),
    "blue": ("blue", "azure", "navy", "cobalt", "sapphire"),
    "purple": ("purple", "violet", "plum", "lavender", "lilac"),
    "pink": ("pink", "rose", "rosy", "salmon", "blush pink"),
    "white": ("white", "ivory", "snow white", "cream", "pale"),
    # patterns
    "plain": ("plain", "solid", "simple", "pure"),
    "stripes": ("striped", "banded", "stripes", "stripy", "bands"),
    "spots": ("spotted", "dotted", "spots", "dots", "polka dots"),
    # hats
    "top": ("top hat", "tall hat", "silk hat", "tall top hat", "magician hat"),
    "cone": ("party hat", "pointed hat", "cone hat", "wizard hat", "pointy cap"),
    "beanie": ("beanie", "woolly hat", "knit cap", "bobble hat", "winter hat"),
    "brim": ("wide hat", "sun hat", "straw hat", "cowboy hat", "broad hat", "wide-brimmed hat"),
    # places
    "meadow": ("meadow", "field", "farm", "grassland", "countryside"),
    "beach": ("beach", "shore", "seaside", "coast", "sea"),
    "forest": ("forest", "woods", "woodland", "wood"),
    "desert": ("desert", "dunes", "canyon", "sand dunes"),
    "snow": ("snowy field", "snow", "winter mountains", "snowy hills", "snowfield"),
    "city": ("city", "street", "town", "downtown", "city street"),
    "cafe": ("cafe", "coffee shop", "bar", "tea room", "restaurant"),
    "bedroom": ("bedroom", "room", "home", "living room", "house"),
    "reef": ("reef", "coral reef", "lagoon", "ocean floor", "underwater garden"),
    # times of day
    "day": ("day", "daytime", "noon", "morning", "afternoon"),
    "dusk": ("dusk", "sunset", "evening", "twilight", "sundown"),
    "night": ("night", "midnight", "moonlight", "dark", "night time"),
    # cameras
    "wide": ("wide shot", "long shot", "full shot", "distant shot"),
    "medium": ("medium shot", "mid shot", "half shot"),
    "close": ("close shot", "close-up", "tight shot", "portrait shot"),
    # actions (third person)
    "stand": ("stands", "waits", "rests", "stays still", "pauses", "stands still"),
    "walk_left": ("walks left", "strolls left", "goes left", "wanders left", "heads left", "marches left"),
    "walk_right": (
        "walks right",
        "strolls right",
        "goes right",
        "wanders right",
        "heads right",
        "marches right",
    ),
    "float": ("floats", "rests", "hovers", "stays still", "pauses"),
    "swim_left": ("swims left", "glides left", "goes left", "drifts left", "heads left"),
    "swim_right": ("swims right", "glides right", "goes right", "drifts right", "heads right"),
    "wave": ("waves", "greets", "says hello", "waves a hand", "raises an arm", "waves goodbye"),
    # camera pans
    "pan_left": (
        "the camera pans left",
        "panning left",
        "pan left",
        "the camera moves left",
        "the view slides left",
    ),
    "pan_right": (
        "the camera pans right",
        "panning right",
        "pan right",
        "the camera moves right",
        "the view slides right",
    ),
}

_NOUNS = ("puppet", "puppet", "puppet", "doll", "figure", "felt puppet", "person")
_FISH = ("fish", "fish", "fish", "little fish", "reef fish")
_SWIMMING = {"stand": "float", "walk_left": "swim_left", "walk_right": "swim_right"}
_EMPTY = ("nobody", "no people", "empty", "nobody is there", "the place is empty")
_EMPTY_REEF = ("no fish", "no fish is there", "empty", "the place is empty")
_SIDES = {
    -1: ("on the left", "at the left", "to the left side"),
    0: ("in the middle", "in the center"),
    1: ("on the right", "at the right", "to the right side"),
}
_FACING = {-1: ("facing left", "looking left"), 1: ("facing right", "looking right")}
_AT_TIME = {
    "day": ("by day", "at noon", "in the morning", "in daytime", "on a sunny day", "in the afternoon"),
    "dusk": ("at dusk", "at sunset", "in the evening", "at twilight", "at sundown"),
    "night": ("at night", "at midnight", "in the dark", "in moonlight", "at night time"),
}
_STORIES_ONE = (
    "A little walk.",
    "A day alone.",
    "A small adventure.",
    "Somebody waits for a friend.",
    "A good day.",
    "A quiet moment.",
)
_STORIES_TWO = ("Two friends meet.", "Two friends play.", "A day together.", "A meeting.", "They meet again.")


def _words_of(*texts: str) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


VOCABULARY: frozenset[str] = frozenset(
    _words_of(
        *(text for texts in MEANINGS.values() for text in texts),
        *_NOUNS,
        *_FISH,
        *_EMPTY,
        *_EMPTY_REEF,
        *(text for table in (_SIDES, _FACING, _AT_TIME) for texts in table.values() for text in texts),
        *_STORIES_ONE,
        *_STORIES_TWO,
        "character environment story shot cut with and in wears wearing a an the of at to tail",
    )
)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def say(rng: np.random.Generator, value: str) -> str:
    """A word for an attribute's value: the plain one half of the time."""
    words = MEANINGS[value]
    return words[0] if rng.random() < 0.5 else _pick(rng, words[1:])


def _an(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" and not phrase.startswith("uni") else "a ") + phrase


def describe(character: Character, rng: np.random.Generator, *, named: bool | None = None) -> str:
    """`Mia, a crimson puppet with spots and a blue top hat`, or `a yellow fish with a red tail`: half of the time without the
    name."""
    named = rng.random() < 0.5 if named is None else named
    body = say(rng, character.body)
    if isinstance(character, Fish):
        crown, has, noun = f"{say(rng, character.tail_color)} tail", ("with",), _pick(rng, _FISH)
    else:
        crown, has = f"{say(rng, character.hat_color)} {say(rng, character.hat)}", ("with", "in", "wearing")
        noun = _pick(rng, _NOUNS)
    if character.pattern == "plain":
        pattern = "" if rng.random() < 0.5 else say(rng, "plain")
        text = _an(f"{pattern} {body} {noun}".strip()) + f" {_pick(rng, has)} {_an(crown)}"
    else:
        pattern = say(rng, character.pattern)
        if pattern in ("stripes", "bands", "spots", "dots", "polka dots"):
            text = f"{_an(body)} {noun} with {pattern} and {_an(crown)}"
        elif rng.random() < 0.5:
            text = f"{_an(pattern)} {body} {noun} {_pick(rng, has)} {_an(crown)}"
        else:
            text = f"{_an(body)} {pattern} {noun} {_pick(rng, has)} {_an(crown)}"
    return f"{character.name}, {text}" if named else text


def place_text(environment: str, time: str, rng: np.random.Generator) -> str:
    """`a snowy field at dusk`; day goes without saying half of the time."""
    place = say(rng, environment)
    text = place if place in ("snow", "dunes", "downtown", "home", "winter mountains", "snowy hills") else ""
    if not text:
        text = (
            f"the {place}"
            if place in ("woods", "countryside", "seaside", "sea", "coast", "shore")
            else _an(place)
        )
    if time == "day" and rng.random() < 0.5:
        return text
    times = _AT_TIME[time]
    return f"{text} {times[0] if rng.random() < 0.5 else _pick(rng, times[1:])}"


def _characters_text(scene: PuppetScene, who: tuple[int, ...], rng: np.random.Generator) -> str:
    people = [f"Character {k + 1}: {describe(scene.characters[k], rng)}." for k in who]
    return " ".join(["[Character]", *people]) + " " if people else ""


def _acting_text(acting: Acting, shot: PuppetShot, swims: bool, rng: np.random.Generator) -> str:
    """What somebody does and, where the shot doesn't follow from another, where: who stands in the middle and looks right needs
    no word for it, nor who walks in from the side, nor two people, who are told from left to right."""
    text = f"Character {acting.who + 1} {say(rng, _SWIMMING[acting.action] if swims else acting.action)}"
    if len(shot.cast) > 1 or not shot.cut or walk_direction(acting.action):
        return text
    side = int(np.sign(round(acting.x - WIDTH / 2)))
    if side or rng.random() < 0.15:
        text += f" {_pick(rng, _SIDES[side])}"
    if not side and (acting.facing < 0 or rng.random() < 0.1):
        text += f" {_pick(rng, _FACING[acting.facing])}"
    return text


def _shot_text(scene: PuppetScene, k: int, rng: np.random.Generator, *, with_camera: bool) -> str:
    shot, swims = scene.shots[k], theme_of(scene.characters) == "reef"
    nobody = _EMPTY if not swims else _EMPTY_REEF
    parts = [_acting_text(acting, shot, swims, rng) for acting in shot.cast] or [_pick(rng, nobody)]
    if shot.pan:
        parts.append(say(rng, "pan_left" if shot.pan < 0 else "pan_right"))
    text = ", ".join(parts)
    text = text[0].upper() + text[1:] + "."
    if not with_camera:
        return text
    camera = say(rng, shot.camera)
    return f"{camera[0].upper()}{camera[1:]}. {text}"


def global_caption(scene: PuppetScene, rng: np.random.Generator) -> str:
    """The global prompt: every character of the scene, the place, and sometimes a story (LCT sec. 3.2)."""
    text = _characters_text(scene, tuple(range(len(scene.characters))), rng)
    text += f"[Environment] {place_text(scene.environment, scene.time, rng)}."
    if len(scene.characters) == 1 and rng.random() < 0.25:
        walks = theme_of(scene.characters) == "puppets"
        text += f" [Story] {_pick(rng, _STORIES_ONE if walks else _STORIES_ONE[1:])}"
    elif len(scene.characters) > 1 and rng.random() < 0.12:
        text += f" [Story] {_pick(rng, _STORIES_TWO)}"
    return text


def shot_caption(scene: PuppetScene, k: int, rng: np.random.Generator) -> str:
    """The prompt of shot k: `[SHOT CUT] Medium shot. Character 1 waves.`; a shot that continues has no prefix."""
    shot = scene.shots[k]
    text = _shot_text(scene, k, rng, with_camera=shot.cut or rng.random() < 0.3)
    return f"[SHOT CUT] {text}" if shot.cut else text


def caption(scene: PuppetScene, rng: np.random.Generator) -> tuple[str, list[str]]:
    """The global prompt and one prompt a shot."""
    return global_caption(scene, rng), [shot_caption(scene, k, rng) for k in range(len(scene.shots))]


def single_caption(scene: PuppetScene, k: int, rng: np.random.Generator) -> str:
    """One self-contained prompt of shot k for single-shot training: only who is in it, the place, the shot."""
    shot = scene.shots[k]
    people = _characters_text(scene, tuple(sorted(acting.who for acting in shot.cast)), rng)
    place = f"[Environment] {place_text(scene.environment, scene.time, rng)}."
    return f"{people}{place} {_shot_text(scene, k, rng, with_camera=True)}"
