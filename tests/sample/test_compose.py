"""Composition: who sees whom."""

import pytest

from commands import no_frames, picture, quick_base, scene_of
from longshot.errors import UserError
from longshot.sample.compose import composition
from longshot.sample.story import tell


@pytest.fixture(scope="module")
def base():
    return quick_base()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [picture(folder / f"{name}.png", 40 * i) for i, name in enumerate(("place", "one", "other"))]


def composed(base, tmp_path, pictures, shots: int, swap: dict[int, int], window: int = 6):
    """The plan, and whom each planned shot sees by name: P the place, 1 2 the people, and scene shots in brackets."""
    story = tell(scene_of(shots), base, tmp_path)
    people = {1: pictures[1]} | {number: pictures[who] for number, who in swap.items()}
    plan, story = composition(base, story, people, pictures[0], window, 0.1)
    labels, people_met = {}, 0
    for shot, number in zip(plan.shots, story.numbers, strict=True):
        people_met += "identity" in shot.label
        label = f"({number})" if number else ("P" if "environment" in shot.label else str(people_met))
        labels[shot.shot] = label
    return plan, [" ".join(labels[s] for s in (*r.given, *r.denoise)) for r in plan.rounds]


def test_every_shot_sees_the_place_and_the_person_and_the_shots_with_that_person(base, tmp_path, pictures):
    _, seen = composed(base, tmp_path, pictures, 4, {})
    assert seen == ["P 1 (1)", "P 1 (1) (2)", "P 1 (1) (2) (3)", "P 1 (1) (2) (3) (4)"]


def test_after_a_swap_no_shot_sees_the_person_before(base, tmp_path, pictures):
    plan, seen = composed(base, tmp_path, pictures, 4, {3: 2})
    assert seen == ["P 1 (1)", "P 1 (1) (2)", "P 2 (3)", "P 2 (3) (4)"]
    assert [s.label for s in plan.shots if s.given is not None] == [
        "the environment image",
        "the identity image for shot 1",
        "the identity image for shot 3",
    ]


@pytest.mark.parametrize(
    ("window", "last"), [(5, "P 1 (2) (3) (4)"), (4, "P 1 (3) (4)"), (3, "P 1 (4)"), (1, "P 1 (4)")]
)
def test_the_place_and_the_person_stay_when_the_window_rolls_on(base, tmp_path, pictures, window, last):
    assert composed(base, tmp_path, pictures, 4, {}, window)[1][-1] == last


def test_a_swap_at_a_shot_that_is_not_there_is_refused(base, tmp_path, pictures):
    with pytest.raises(UserError, match="no shot 5 to swap the person at; the scene has shots 1 to 4"):
        composed(base, tmp_path, pictures, 4, {5: 2})


def test_a_picture_that_is_none_is_refused(base, tmp_path, pictures):
    (tmp_path / "words.png").write_text("a red puppet")
    for path in (tmp_path / "words.png", no_frames(tmp_path / "empty.mp4"), tmp_path / "absent.png"):
        with pytest.raises(UserError, match=path.name):
            composed(base, tmp_path, [pictures[0], path], 2, {})
