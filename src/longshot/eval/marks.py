"""Judges puppet shots: what was told of them against what is seen in them, and shots of one scene against each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from jaxtyping import UInt8

from longshot.eval.metrics import Mark
from longshot.puppets.score import read_shot
from longshot.puppets.world import Fish, Puppet, PuppetScene, look

LOOK = tuple(dict.fromkeys(Puppet.LOOK + Fish.LOOK))
"""All that can be seen of a character; a person has no tail, and a fish no hat."""
PLACE = ("environment", "time", "camera")
ATTRIBUTES = (*LOOK, *PLACE, "action")
Values = Mapping[str, str | None]


@dataclass(frozen=True)
class View:
    """One shot as attribute values; None is unreadable. who: who each person is, for a shot that was told; else empty."""

    place: Values
    people: tuple[Values, ...]
    who: tuple[int, ...] = ()


Views = Mapping[int, View]  # of one scene, by shot number


def told(scene: PuppetScene, number: int) -> View:
    """What is true of shot `number` (from 1)."""
    shot = scene.shots[number - 1]
    people = [look(scene.characters[a.who]) | {"action": a.action} for a in shot.cast]
    place = {"environment": scene.environment, "time": scene.time, "camera": shot.camera}
    return View(place, tuple(people), tuple(a.who for a in shot.cast))


def seen(frames: UInt8[np.ndarray, "frames 32 48 3"]) -> View:
    """What the scorer reads in a shot."""
    reading = read_shot(frames)
    people = [{name: getattr(person, name) for name in (*LOOK, "action")} for person in reading.people]
    return View({name: getattr(reading, name) for name in PLACE}, tuple(people))


def match(truth: View, view: View) -> tuple[Values | None, ...]:
    """For each person of the truth the person seen.

    Words don't say who of two stands on which side, so the pairing with most right looks counts, left to right on a tie.
    Where another number of people is seen nobody is matched.
    """
    if len(view.people) != len(truth.people):
        return (None,) * len(truth.people)

    def right(order: tuple[Values, ...]) -> int:
        return sum(a[n] == b[n] for a, b in zip(truth.people, order, strict=True) for n in a if n in LOOK)

    return max(permutations(view.people), key=right)  # the first of equals: as they stand


def _mark(name: str, scene: int, shot: int, truth: str, value: str | None) -> Mark:
    return Mark(name, scene, shot, value == truth, value is not None)


def attribute_marks(scene: int, truth: Views, views: Views) -> Iterator[Mark]:
    """Every attribute of every shot against what was told. `look` is all that can be seen of somebody at once, `people`
    their number."""
    for number, told_view in truth.items():
        view = views[number]
        for name in PLACE:
            yield _mark(name, scene, number, told_view.place[name] or "", view.place[name])
        known = view.place["environment"] is not None
        same = len(view.people) == len(told_view.people)
        yield Mark("people", scene, number, known and same, known)
        for person, found in zip(told_view.people, match(told_view, view), strict=True):
            values = found or dict.fromkeys(person)
            for name, value in person.items():
                yield _mark(name, scene, number, value or "", values[name])
            seen_of = [name for name in person if name in LOOK]
            readable = all(values[name] is not None for name in seen_of)
            right = readable and all(values[name] == person[name] for name in seen_of)
            yield Mark("look", scene, number, right, readable)


# --- shots against each other -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """What is seen of one thing that should stay the same, shot after shot: a character's look, or the place."""

    scene: int
    shots: tuple[int, ...]
    values: tuple[Values | None, ...]


def look_tracks(scene: int, truth: Views, views: Views) -> list[Track]:
    """One track a character that is told of in two shots or more."""
    found: dict[int, dict[int, Values | None]] = {}
    for number, told_view in truth.items():
        for who, person in zip(told_view.who, match(told_view, views[number]), strict=True):
            found.setdefault(who, {})[number] = person
    return [Track(scene, tuple(f), tuple(f.values())) for _, f in sorted(found.items()) if len(f) > 1]


def place_tracks(scene: int, truth: Views, views: Views) -> list[Track]:
    """The track of the scene's place, if it has two shots or more."""
    shots = tuple(truth)
    return [Track(scene, shots, tuple(views[k].place for k in shots))] if len(shots) > 1 else []


def _agree(a: Values | None, b: Values | None, names: Sequence[str]) -> tuple[bool, bool]:
    """(same, readable)."""
    readable = a is not None and b is not None and all(a[n] is not None and b[n] is not None for n in names)
    return readable and all(a[n] == b[n] for n in names), readable


def agreement_marks(
    tracks: Sequence[Track], names: Sequence[str], whole: str, all_pairs: bool = True
) -> Iterator[Mark]:
    """Agreement within tracks, filed under the later shot of a pair.

    `same_<name>` judges pairs of shots in one attribute, `same_<whole>` in all of them, `same_<whole>_throughout` a whole
    track at once. all_pairs: else only pairs with the track's first shot.
    """
    for track in tracks:
        shots = list(zip(track.shots, track.values, strict=True))
        judged: dict[str, Sequence[str]] = {f"same_{n}": (n,) for n in names} | {f"same_{whole}": names}
        for (a, first), (b, second) in combinations(shots, 2):
            if not all_pairs and a != track.shots[0]:
                continue
            for name, which in judged.items():
                right, readable = _agree(first, second, which)
                yield Mark(name, track.scene, b, right, readable)
        verdicts = [_agree(track.values[0], value, names) for value in track.values[1:]]
        right, readable = (all(v[k] for v in verdicts) for k in (0, 1))
        yield Mark(f"same_{whole}_throughout", track.scene, track.shots[-1], right, readable)


def strangers(tracks: Sequence[Track]) -> list[Track]:
    """The control of agreement: each track's first shot, followed by shots of the next track of another scene."""
    out = []
    for index, track in enumerate(tracks):
        others = [t for t in (*tracks[index + 1 :], *tracks[:index]) if t.scene != track.scene]
        if others:
            foreign = [others[0].values[k % len(others[0].values)] for k in range(1, len(track.shots))]
            out.append(Track(track.scene, track.shots, (track.values[0], *foreign)))
    return out


# --- guesses -------------------------------------------------------------------------------------------------------


class Guesses:
    """Wrong answers from the labels' own distribution: `pool` are scenes drawn like the ones that are scored."""

    def __init__(self, pool: Sequence[PuppetScene]):
        self.pool = pool
        self.shots: dict[int, list[View]] = {}
        for scene in pool:
            for k in range(1, len(scene.shots) + 1):
                view = told(scene, k)
                self.shots.setdefault(len(view.people), []).append(view)
        self.looks = [look(character) for scene in pool for character in scene.characters]

    def another(self, truth: Views, rng: np.random.Generator) -> dict[int, View]:
        """Answers of the same form, for other characters in another place who do other things."""
        needed = 1 + max((who for view in truth.values() for who in view.who), default=-1)
        cast = [self.looks[int(k)] for k in rng.integers(len(self.looks), size=needed)]
        place = self.pool[int(rng.integers(len(self.pool)))]
        out = {}
        for number, view in truth.items():
            alike = self.shots.get(len(view.people)) or [view]
            shot = alike[int(rng.integers(len(alike)))]
            people = [
                {**cast[who], "action": person["action"]}
                for who, person in zip(view.who, shot.people, strict=True)
            ]
            values = {"environment": place.environment, "time": place.time, "camera": shot.place["camera"]}
            out[number] = View(values, tuple(people), view.who)
        return out

    def chance(
        self, truths: Sequence[Views], rng: np.random.Generator, draws: int = 4000
    ) -> dict[str, float]:
        """How often a guess is right, for every name that `attribute_marks` gives."""
        right: dict[str, int] = {}
        total: dict[str, int] = {}
        for _ in range(max(1, draws // max(1, sum(len(t) for t in truths)))):
            for index, truth in enumerate(truths):
                for mark in attribute_marks(index, truth, self.another(truth, rng)):
                    right[mark.name] = right.get(mark.name, 0) + mark.right
                    total[mark.name] = total.get(mark.name, 0) + 1
        return {name: right[name] / total[name] for name in total if name != "people"}

    def agreement(self, names: Sequence[str], whole: str, lengths: Sequence[int]) -> dict[str, float]:
        """How often shots drawn independently would agree; lengths: of the tracks that are judged."""
        if whole == "place":
            labels = [{n: getattr(scene, n) for n in names} for scene in self.pool]
        else:
            labels = self.looks
        out = {f"same_{n}": _coincidence([label[n] for label in labels]) for n in names}
        out[f"same_{whole}"] = _coincidence([tuple(label[n] for n in names) for label in labels])
        if lengths:
            chances = [out[f"same_{whole}"] ** (length - 1) for length in lengths]
            out[f"same_{whole}_throughout"] = float(np.mean(chances))
        return out


def _coincidence(labels: Sequence) -> float:
    """The chance that two different draws are equal."""
    counts: dict = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    n = len(labels)
    return sum(c * (c - 1) for c in counts.values()) / max(1, n * (n - 1))
