"""What a drawn scene always is, and that a seed gives it again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot.puppets import world
from longshot.puppets.world import Fish, Puppet, draw_scene, is_legal, screen_x, theme_of, walk_direction

arguments = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.sampled_from([(8,), (4, 8, 12), (16, 32), (1,)]),
    st.sampled_from(["puppets", "reef"]),
)


def _scene(drawn):
    seed, shots, frames, theme = drawn
    return draw_scene(np.random.default_rng(seed), shots, frames, theme=theme)


@given(arguments)
@settings(deadline=None)
def test_every_shot_is_legal_and_its_cast_exists(drawn):
    scene = _scene(drawn)
    for shot in scene.shots:
        who = [acting.who for acting in shot.cast]
        assert is_legal(shot)
        assert len(set(who)) == len(who) <= 2
        assert all(0 <= k < len(scene.characters) for k in who)
        assert not (len(who) == 2 and shot.camera == "close")


@given(arguments)
@settings(deadline=None)
def test_a_hat_or_tail_never_has_its_bodys_colour_and_characters_differ(drawn):
    scene = _scene(drawn)
    for character in scene.characters:
        crown = character.tail_color if isinstance(character, Fish) else character.hat_color
        assert crown != character.body
    assert len({character.body for character in scene.characters}) == len(scene.characters)
    assert len({character.name for character in scene.characters}) == len(scene.characters)


@given(arguments)
@settings(deadline=None)
def test_a_shot_without_a_cut_starts_where_the_one_before_ended(drawn):
    scene = _scene(drawn)
    assert scene.shots[0].cut
    for before, shot in zip(scene.shots, scene.shots[1:], strict=False):
        if shot.cut:
            continue
        assert shot.camera == before.camera
        assert shot.offset == before.offset + before.pan * before.frames
        assert [a.who for a in shot.cast] == [a.who for a in before.cast]
        for then, now in zip(before.cast, shot.cast, strict=True):
            assert now.x == screen_x(then, before, before.frames)
            assert now.facing_before == then.facing


def test_in_a_take_people_mostly_do_something_else_and_now_and_then_go_on():
    rng = np.random.default_rng(0)
    pairs = [
        (then.action, now.action)
        for _ in range(400)
        for before, shot in pairwise(draw_scene(rng, 3, p_empty=0.0, p_continue=1.0).shots)
        for then, now in zip(before.cast, shot.cast, strict=True)
    ]
    goes_on = np.mean([then == now for then, now in pairs])
    assert 0.03 < goes_on < 0.25


@given(arguments)
@settings(deadline=None)
def test_who_walks_looks_that_way(drawn):
    scene = _scene(drawn)
    for shot in scene.shots:
        for acting in shot.cast:
            assert walk_direction(acting.action) in (0, acting.facing)


@given(arguments)
@settings(deadline=None)
def test_fish_are_on_the_reef_and_people_on_land(drawn):
    scene = _scene(drawn)
    kind = Fish if scene.environment == "reef" else Puppet
    assert (drawn[-1] == "reef") == (kind is Fish)
    assert {type(c) for c in scene.characters} == {kind}
    assert theme_of(scene.characters) == drawn[-1]
    if kind is Fish:
        assert all(acting.action != "wave" for shot in scene.shots for acting in shot.cast)


def test_the_same_seed_draws_the_same_scene():
    assert draw_scene(np.random.default_rng(7), 6) == draw_scene(np.random.default_rng(7), 6)
    assert draw_scene(np.random.default_rng(7), 6) != draw_scene(np.random.default_rng(8), 6)


def test_characters_place_and_time_can_be_chosen():
    mia = Puppet("Mia", "red", "spots", "top", "blue")
    scene = draw_scene(
        np.random.default_rng(0), 3, characters=[mia], environment="cafe", time="night", p_empty=0.0
    )
    assert scene.characters == (mia,)
    assert (scene.environment, scene.time) == ("cafe", "night")
    assert all(len(shot.cast) == 1 for shot in scene.shots)


def test_long_scenes_show_every_camera_action_pan_pairs_empty_shots_and_returns():
    rng = np.random.default_rng(0)
    shots = [shot for _ in range(60) for shot in draw_scene(rng, 5).shots]
    assert {shot.camera for shot in shots} == set(world.CAMERAS)
    assert {shot.pan for shot in shots} == {-1, 0, 1}
    assert {acting.action for shot in shots for acting in shot.cast} == set(world.ACTIONS)
    assert {len(shot.cast) for shot in shots} == {0, 1, 2}
    assert {shot.cut for shot in shots} == {True, False}
    assert any(_someone_returns(draw_scene(rng, 5)) for _ in range(20))


def _someone_returns(scene) -> bool:
    """Whether a character is seen, then not, then again."""
    for k in range(len(scene.characters)):
        seen = "".join("x" if any(acting.who == k for acting in shot.cast) else "." for shot in scene.shots)
        if "." in seen.strip("."):
            return True
    return False


@pytest.mark.parametrize("p_two", [0.0, 1.0])
def test_p_two_decides_whether_both_are_shown(p_two):
    rng = np.random.default_rng(1)
    counts = {
        len(shot.cast)
        for _ in range(20)
        for shot in draw_scene(rng, 3, p_pair=1.0, p_two=p_two, p_empty=0.0).shots
    }
    assert counts == {2 if p_two else 1}
