"""What is wrong with a scene before anything is rendered, and what a director would rather know now.

Errors stop a render; warnings do not. Findings name the line, the field in words, and what to do.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

from longshot.document import Document, Where, field_words, read_document
from longshot.errors import UserError
from longshot.files import inside
from longshot.scene import SHOT_CUT, Scene, SceneFileError, Shot, parse_scene

Level = Literal["error", "warning"]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Limits:
    """What a base can do. A shot has `frame_step * n + frame_offset` frames, at least 1 and at most `max_frames`.

    `count_tokens` counts the tokens of a prompt as the base sees it, at most `max_text_tokens`. `outside_words` returns
    the words of a prompt that mean nothing to the base; None for a base that knows all words.
    """

    name: str
    fps: Fraction
    frame_step: int
    frame_offset: int
    max_frames: int
    default_frames: int
    max_text_tokens: int
    count_tokens: Callable[[str], int]
    outside_words: Callable[[str], list[str]] | None = None

    def rule(self) -> str:
        """Return the legal frame counts as a person writes them, for example `4n+1`."""
        step = "n" if self.frame_step == 1 else f"{self.frame_step}n"
        return f"{step}+{self.frame_offset}" if self.frame_offset else step

    def is_legal(self, frames: int) -> bool:
        """Tell whether a shot may have so many frames."""
        return 1 <= frames <= self.max_frames and (frames - self.frame_offset) % self.frame_step == 0

    def nearest(self, frames: float) -> list[int]:
        """Return the legal frame counts just below and above `frames`, the nearest first: one or two numbers."""
        below = self.frame_offset + self.frame_step * ((int(frames) - self.frame_offset) // self.frame_step)
        near = {count for k in range(-1, 3) if self.is_legal(count := below + k * self.frame_step)}
        around = {
            max((n for n in near if n <= frames), default=None),
            min((n for n in near if n > frames), default=None),
        }
        legal = [count for count in around if count is not None] or [self._largest()]
        return sorted(legal, key=lambda count: abs(count - frames))

    def _largest(self) -> int:
        return self.max_frames - (self.max_frames - self.frame_offset) % self.frame_step


@dataclass(frozen=True)
class Finding:
    """One thing to put right (`error`) or to think about (`warning`)."""

    level: Level
    line: int | None
    field: str
    message: str

    def text(self, name: str | os.PathLike[str]) -> str:
        """Return the finding as one line that begins with the file's name."""
        place = os.fspath(name) if self.line is None else f"{os.fspath(name)}:{self.line}"
        return f"{place}: {self.level}: {self.field}: {self.message}"


def frames_of(shot: Shot, limits: Limits) -> int:
    """Return how many frames `shot` has: as given, or the base's default.

    Frames must be legal as given. Seconds become the nearest legal number of frames, since hardly any round time is one
    (`lint` says so where that is not what was asked); more than the window holds is an error in either.
    """
    if shot.frames is not None:
        if limits.is_legal(shot.frames):
            return shot.frames
        nearest = " or ".join(str(count) for count in sorted(limits.nearest(shot.frames)))
        most = f", {limits.max_frames} at most" if shot.frames > limits.max_frames else ""
        raise UserError(
            f"asks for {shot.frames} frames; {limits.name} needs {limits.rule()}{most}: use {nearest}"
        )
    if shot.seconds is None:
        return limits.default_frames
    wanted = float(shot.seconds * limits.fps)
    nearest = limits.nearest(wanted)[0]
    if wanted > limits.max_frames and wanted - nearest >= min(1, limits.frame_step / 2):
        longest = float(limits.max_frames / limits.fps)
        raise UserError(
            f"asks for {shot.seconds:g} s, {round(wanted)} frames at {_shown_rate(limits.fps)} fps; {limits.name} holds "
            f"{limits.max_frames} frames a shot: use {longest:.4g} s or less, or go on in another shot with cut: false"
        )
    return nearest


def scene_frames(scene: Scene, limits: Limits) -> list[int]:
    """Return how many frames each shot has (see `frames_of`); UserError names the shot."""
    counts = []
    for k, shot in enumerate(scene.shots, start=1):
        try:
            counts.append(frames_of(shot, limits))
        except UserError as error:
            raise UserError(f"shot {k} {error}") from error
    return counts


def lint_file(
    path: str | os.PathLike[str],
    limits: Limits | None = None,
    readable: Callable[[Path], str | None] | None = None,
) -> tuple[Scene | None, list[Finding]]:
    """Return the scene at `path` (None where the file holds none) and all findings; never raises on bad input."""
    try:
        scene = parse_scene(read_document(path))
    except SceneFileError as error:
        return None, [
            Finding("error", problem.line, problem.field, problem.message) for problem in error.problems
        ]
    except UserError as error:
        return None, [_unread(str(error), str(path))]
    return scene, lint(scene, path, limits, readable)


def lint(
    scene: Scene,
    source_path: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    readable: Callable[[Path], str | None] | None = None,
) -> list[Finding]:
    """Return what is wrong with `scene`, errors and warnings in the order of the file.

    `source_path` is where the scene was loaded from: it gives the lines, and its folder holds the references. Without
    `limits` nothing is checked that depends on a base. `readable` looks into a reference and returns what is wrong with
    it, or None.
    """
    check = _Check(scene, _document(source_path), limits)
    folder = Path(source_path).parent if source_path is not None else None
    findings = [
        *check.first_cut(),
        *check.characters(),
        *check.global_texts(),
        *check.shots(),
        *check.names(),
        *check.references(folder, readable),
    ]
    return sorted(findings, key=lambda finding: finding.line or 0)


def _document(source_path: str | os.PathLike[str] | None) -> Document:
    if source_path is None:
        return Document("scene", None)
    try:
        return read_document(source_path)
    except UserError:  # the scene is in memory; only the lines are missing
        return Document(os.fspath(source_path), None)


def _unread(message: str, name: str) -> Finding:
    found = re.match(r":(\d+)?:? ?(.*)", message.removeprefix(name), re.DOTALL)
    line, problem = (found[1], found[2]) if found else (None, message)
    return Finding("error", int(line) if line else None, "file", problem)


def _shown_rate(fps: Fraction) -> str:
    return f"{float(fps):.5g}"


_REFERENCE = re.compile(r"\bcharacters? (\d{1,6})(?: and (\d{1,6})\b)?", re.IGNORECASE)
_VAGUE = re.compile(
    r"\b(?:the|this|that) (?:(?:old|young|older|younger|tall|short|little|same) )?"
    r"(?:man|woman|boy|girl|person|guy|lady|gentleman|kid|child|fellow)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\b(?:he|she|him)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_TOKEN = re.compile(rf"{_WORD.pattern}|\d+|[,;]")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")
_INNER_CAPITAL = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")

# Verbs that fill a shot. Seeing, holding, wearing and waiting are left out: they go on beside anything.
_ACTIONS = frozenset(
    """walk run jump wave sit stand turn open close pick put take throw catch climb fall drop push pull lift carry enter
    leave exit approach cross dance sing shout cry laugh hug kiss kick hit punch fight shoot drive ride fly swim dive eat
    drink pour cook write read draw paint play lean kneel crouch crawl stroll wander march hop leap skip spin bow nod
    shake point reach grab raise lower knock ring call dial type press blow whisper speak talk ask answer pause stop
    start wake rise step rush hurry chase flee hide search dig plant cut build break fix wash clean sweep pack unpack
    unlock lock greet return arrive sneak slide roll stumble trip bend stretch clap give receive offer show examine
    inspect head go come glance peel tear fold""".split()
)
_NOT_VERB_AFTER = frozenset(
    """the a an of his her their its my your our these those on in by with no some two three many several few all both
    """.split()
)
_ING_AFTER = frozenset(", ; and while then is are starts begins keeps before after who he she they".split())

# Words that begin a sentence and lie a letter away from some name.
_COMMON = frozenset(
    """the then them they there their these this that those and any all are but for from has have her here his him how
    into its just last late later light low man men many more most near next night no not now of off old on one only
    other our out over own pan past same see she side sit slow small so some soon still sun than three time to too top
    two under until up very was wide when where which while who will with yet you your above after again along also
    another around as at back before behind below beside between big both by camera clear close cold cut dark day dim
    down each early even every eye face far fast few finally first four front full half hand hands hard he high if in
    inside it large left long medium mid middle morning new red sea sky soft static street suddenly sunny warm we what
    white wind window winter wood young""".split()
)


def _stem(word: str) -> str | None:
    """Return the verb that `word` is a form of (walks, waving, tries), or None."""
    lower = word.lower()
    candidates = [lower.removesuffix("s"), lower.removesuffix("es"), lower.removesuffix("ies") + "y"]
    if lower.endswith("ing"):
        root = lower.removesuffix("ing")
        candidates = [root, root + "e", root[:-1] if root[-2:-1] == root[-1:] else root]
    elif not lower.endswith("s"):
        return None
    return next((candidate for candidate in candidates if candidate in _ACTIONS), None)


def actions_in(prompt: str) -> list[str]:
    """Return the words of `prompt` that name an action, each verb once, in order.

    A word list, not a grammar: it takes `walks`, and `walking` where a clause can begin (`the walking stick` is none).
    """
    found: dict[str, str] = {}
    previous = ""
    for token in _TOKEN.findall(_QUOTED.sub(" ", prompt)):
        begins = previous in _ING_AFTER or previous.isdigit()
        if (verb := _stem(token)) and (begins if token.endswith("ing") else previous not in _NOT_VERB_AFTER):
            found.setdefault(verb, token)
        previous = token.lower()
    return list(found.values())


def vague_words(prompt: str) -> list[str]:
    """Return words such as `the man` and `she` that leave open who is meant.

    A pronoun is clear in a prompt that names exactly one character before it.
    """
    vague = _VAGUE.findall(prompt)
    for pronoun in _PRONOUN.finditer(prompt):
        if len({number for _, number in _references(prompt[: pronoun.start()])}) != 1:
            vague.append(pronoun[0])
    return _unique(vague)


def edit_distance(one: str, other: str) -> int:
    """Return how many letters must be put in, left out, changed, or swapped with a neighbour."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, partner in enumerate(other, start=1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != partner))
            if i > 1 and j > 1 and letter == other[j - 2] and partner == one[i - 2]:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def is_misspelling(word: str, name: str) -> bool:
    """Tell whether `word` is probably meant to be `name`: one letter off, or two in a name of seven and more."""
    if word == name or word.lower() in (name.lower() + "s", name.lower() + "'s"):
        return False
    if word.lower() == name.lower():
        return True
    if word[0].lower() != name[0].lower() or abs(len(word) - len(name)) > 2:
        return False
    return edit_distance(word.lower(), name.lower()) <= (2 if len(name) >= 7 else 1)


@dataclass(frozen=True)
class _Check:
    """The checks on one scene."""

    scene: Scene
    document: Document
    limits: Limits | None

    def found(self, level: Level, where: Where, message: str) -> Finding:
        return Finding(level, self.document.line(where), field_words(where), message)

    def first_cut(self) -> Iterator[Finding]:
        if not self.scene.shots[0].cut:
            message = "the first shot has nothing to continue; leave cut out, or set it to true"
            yield self.found("warning", ("shots", 0, "cut"), message)

    def characters(self) -> Iterator[Finding]:
        used = self.used_characters()
        for k, character in enumerate(self.scene.characters):
            where, who = ("characters", k), f"Character {character.id}"
            who += f" ({character.name})" if character.name else ""
            if not _WORD.search(character.description):
                message = f"the look of {who} is never described; say body, clothes, colours"
                yield self.found("warning", (*where, "description"), message)
            if character.id not in used:
                yield self.found("warning", where, f"{who} is declared, but no shot names them")

    def used_characters(self) -> set[int]:
        used: set[int] = set()
        for shot in self.scene.shots:
            used |= {number for _, number in _references(shot.prompt)}
            used |= {reference.character for reference in shot.references if reference.character}
            used |= {c.id for c in self.scene.characters if c.name and _has_word(shot.prompt, c.name)}
        return used

    def global_texts(self) -> Iterator[Finding]:
        scene = self.scene
        for key in ("environment", "story"):
            yield from self.unknown_characters(getattr(scene, key), (key,))
        if self.limits is None:
            return
        count = self.limits.count_tokens(scene.global_prompt()) if scene.global_prompt() else 0
        if count > self.limits.max_text_tokens:
            parts = "characters, environment, story and style"
            yield self.found("error", ("characters",), self.too_long(f"the global prompt ({parts})", count))
        for where, text in [
            *((("characters", k, "description"), one.description) for k, one in enumerate(scene.characters)),
            (("environment",), scene.environment),
            (("story",), scene.story),
            (("style",), scene.style),
        ]:
            yield from self.outside(text, where, "the global prompt")

    def shots(self) -> Iterator[Finding]:
        nameless: list[int] = []
        for k, (shot, prompt) in enumerate(zip(self.scene.shots, self.scene.shot_prompts(), strict=True)):
            where = ("shots", k, "prompt")
            if not shot.prompt.strip():
                yield self.found("error", where, f"shot {k + 1} has an empty prompt; say what it shows")
                continue
            yield from self.unknown_characters(shot.prompt, where)
            yield from self.wording(shot, where)
            if vague := vague_words(shot.prompt):
                if self.scene.characters:
                    first = self.scene.characters[0].id
                    message = f"says {_quoted(vague)}; name people by number, such as `Character {first}`"
                    yield self.found("warning", where, message)
                else:
                    nameless.append(k + 1)
            yield from self.length(shot, k)
            yield from self.prompt_limits(prompt, shot.prompt, k)
        if nameless:
            numbers = ", ".join(map(str, nameless))
            message = (
                f"shots {numbers} speak of people, but no character is declared; declare them under `characters:` "
                "and write `Character 1`, so that they look the same in every shot"
            )
            yield self.found("warning", ("shots", nameless[0] - 1, "prompt"), message)

    def wording(self, shot: Shot, where: Where) -> Iterator[Finding]:
        if SHOT_CUT.lower() in shot.prompt.lower():
            yield self.found(
                "error", where, f"holds {SHOT_CUT}, which `cut: true` adds by itself; take it out"
            )
        if lower := [text for text, _ in _references(shot.prompt) if text.startswith("c")]:
            yield self.found(
                "warning", where, f"write `{lower[0].capitalize()}` with a capital, not `{lower[0]}`"
            )
        if len(actions := actions_in(shot.prompt)) >= 3:
            message = (
                f"tells {len(actions)} actions ({', '.join(actions)}); one or two fit in a shot, so split it"
            )
            yield self.found("warning", where, message)

    def length(self, shot: Shot, k: int) -> Iterator[Finding]:
        if self.limits is None:
            return
        where = ("shots", k, "frames" if shot.frames is not None else "seconds")
        try:
            frames = frames_of(shot, self.limits)
        except UserError as error:
            yield self.found("error", where, f"shot {k + 1} {error}")
            return
        if shot.seconds is not None and abs(frames - shot.seconds * self.limits.fps) >= 1:
            message = (
                f"{shot.seconds:g} s is not a length that {self.limits.name} has ({self.limits.rule()} frames at "
                f"{_shown_rate(self.limits.fps)} fps): it becomes {frames} frames, {float(frames / self.limits.fps):.4g} s"
            )
            yield self.found("warning", where, message)

    def prompt_limits(self, prompt: str, words: str, k: int) -> Iterator[Finding]:
        if self.limits is None:
            return
        where, name = ("shots", k, "prompt"), f"shot {k + 1}"
        if (count := self.limits.count_tokens(prompt)) > self.limits.max_text_tokens:
            yield self.found("error", where, self.too_long(name, count))
        yield from self.outside(words, where, name)

    def too_long(self, name: str, count: int) -> str:
        assert self.limits is not None
        most = self.limits.max_text_tokens
        return f"{name} has {count} tokens; {self.limits.name} reads {most}: shorten it by {count - most}"

    def outside(self, text: str, where: Where, name: str) -> Iterator[Finding]:
        if self.limits is None or self.limits.outside_words is None or not text.strip():
            return
        names = {word.lower() for one in self.scene.characters for word in _WORD.findall(one.name)}
        if words := [word for word in self.limits.outside_words(text) if word.lower() not in names]:
            message = f"{name} uses words outside the world of {self.limits.name}: {', '.join(words)}"
            yield self.found("warning", where, message)

    def unknown_characters(self, text: str, where: Where) -> Iterator[Finding]:
        declared = {character.id for character in self.scene.characters}
        for number in _unique(number for _, number in _references(text) if number not in declared):
            known = ", ".join(map(str, sorted(declared)))
            there = f"declared: {known}" if known else "no characters are declared"
            yield self.found("error", where, f"names Character {number}, who is not declared ({there})")

    def names(self) -> Iterator[Finding]:
        """Find names that a prompt should give as numbers, and names spelled two ways."""
        texts: list[tuple[Where, str]] = [
            (("shots", k, "prompt"), s.prompt) for k, s in enumerate(self.scene.shots)
        ]
        names = {
            word: one for one in self.scene.characters for word in _WORD.findall(one.name) if len(word) > 2
        }
        for where, text in texts:
            for character in self.scene.characters:
                if character.name and _has_word(text, character.name):
                    message = f"names {character.name}; write `Character {character.id}`"
                    yield self.found("warning", where, message)
        yield from self.two_spellings(texts, list(names))

    def two_spellings(self, texts: list[tuple[Where, str]], names: list[str]) -> Iterator[Finding]:
        texts = [*texts, (("environment",), self.scene.environment), (("story",), self.scene.story)]
        for k, character in enumerate(self.scene.characters):
            texts.append((("characters", k, "description"), character.description))
        capitals: list[str] = []
        told: set[str] = set()
        for where, text in texts:
            inner = set(_INNER_CAPITAL.findall(text))
            for word in _unique(_WORD.findall(text)):
                if len(word) < 3 or word in names or word in told or (word.isupper() and len(word) > 1):
                    continue
                known = [*names, *capitals] if word in inner else names
                if twin := next(
                    (name for name in known if _is_second_spelling(word, name, word in inner)), None
                ):
                    told.add(word)
                    yield self.found(
                        "warning", where, f"spells a name two ways: {word!r} here, {twin!r} elsewhere"
                    )
                elif word in inner:
                    capitals.append(word)

    def references(
        self, folder: Path | None, readable: Callable[[Path], str | None] | None
    ) -> Iterator[Finding]:
        declared = {character.id for character in self.scene.characters}
        for k, shot in enumerate(self.scene.shots):
            for j, reference in enumerate(shot.references):
                where = ("shots", k, "references", j)
                if reference.character is not None and reference.character not in declared:
                    message = f"names Character {reference.character}, who is not declared"
                    yield self.found("error", (*where, "character"), message)
                if folder is not None and (problem := _trouble_with(reference.path, folder, readable)):
                    yield self.found("error", (*where, "path"), problem)


def _trouble_with(path: str, folder: Path, readable: Callable[[Path], str | None] | None) -> str | None:
    """Return what is wrong with a reference file, or None."""
    try:
        file = inside(folder, path)
        if not file.exists():
            return f"{path} is not there; paths are relative to the folder of the scene file"
        if not file.is_file():
            return f"{path} is not a file"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return readable(file) if readable is not None else None


def _references(text: str) -> list[tuple[str, int]]:
    """Return how `text` names characters: the words, and the number."""
    found = []
    for match in _REFERENCE.finditer(text):
        found += [(match[0], int(number)) for number in match.groups() if number]
    return found


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _is_second_spelling(word: str, name: str, inner: bool) -> bool:
    """Tell whether `word` is `name` but for a slip; at the start of a sentence a common word is only itself."""
    if word.islower():
        return word == name.lower()
    return is_misspelling(word, name) and (inner or word.lower() not in _COMMON)


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _unique(items: Iterable[_Item]) -> list[_Item]:
    """Return the items without repetition, in order."""
    return list(dict.fromkeys(items))
