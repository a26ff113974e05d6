"""Composition: a person from one picture, a place from another, and another person from some shot on (LCT sec. 4.3)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from longshot.bases.base import Codec
from longshot.errors import UserError
from longshot.sample.plan import Plan, PlannedShot, autoregressive
from longshot.sample.story import Story, still
from longshot.scene import PLACE_PROMPT, identity_prompt


def composition(
    base: Codec,
    story: Story,
    people: Mapping[int, Path],
    environment: Path,
    window: int,
    context_sigma: float,
) -> tuple[Plan, Story]:
    """A plan in which every shot sees the place, the person who is in force, and the shots made with that person.

    people: from which scene shot on whose picture counts; shot 1 must be among them. Returns the plan and the story with the
    pictures in it, as one-frame shots before the shots that first need them.
    """
    last = max(n for n in story.numbers if n is not None)
    if bad := sorted(n for n in people if not 1 <= n <= last):
        raise UserError(f"there is no shot {bad[0]} to swap the person at; the scene has shots 1 to {last}")
    shots: list[PlannedShot] = []
    numbers: list[int | None] = []
    sees: dict[int, list[int]] = {}
    place = 0
    era: list[int] = []  # the place, the person in force, and the shots made with that person
    room = max(window - 3, 0)  # beside the two images and the shot being made

    def add(shot: PlannedShot, number: int | None) -> int:
        shots.append(replace(shot, shot=len(shots) + 1))
        numbers.append(number)
        return len(shots)

    for shot, number in zip(story.shots, story.numbers, strict=True):
        if number == 1 and not place:
            place = add(_image(base, environment, "the environment image", PLACE_PROMPT), None)
        if number is not None and number in people:
            label = f"the identity image for shot {number}"
            era = [place, add(_image(base, people[number], label, identity_prompt(1)), None)]
        at = add(shot, number)
        sees[at] = era[:2] + era[max(len(era) - room, 2) :]
        era.append(at)
    plan = autoregressive(
        story.global_prompt,
        shots,
        visibility="scene",
        window=window,
        history=sees,
        context_sigma=context_sigma,
    )
    return plan, replace(story, shots=tuple(shots), numbers=tuple(numbers))


def _image(base: Codec, path: Path, label: str, prompt: str) -> PlannedShot:
    grid = base.spec.grid(base.spec.min_frames, *base.spec.size)
    return PlannedShot(1, label, prompt, grid, (0, label, 0), base.encode(still(path, base.spec)))
