"""Plans: who is made when, and who sees whom, for every mode."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import clip, shot, story

from longshot.errors import UserError
from longshot.sample.plan import Plan, Round, autoregressive, nearest, reshoot, together


def histories(plan: Plan) -> dict[int, tuple[int, ...]]:
    return {r.denoise[0]: r.given for r in plan.rounds}


# -- together ---------------------------------------------------------------------------------------------------------------
def test_joint_generation_makes_all_shots_in_one_round_that_sees_nothing_else():
    plan = together("a street", story())
    assert plan.rounds == (Round((1, 2, 3, 4), ()),)
    assert (plan.visibility, plan.memory) == ("scene", "recompute")


@settings(deadline=None, max_examples=20)
@given(st.sets(st.integers(1, 5), max_size=4))
def test_given_shots_at_any_positions_condition_the_rest(places):
    plan = together("", story(5, tuple(places)))
    assert plan.rounds == (Round(tuple(sorted({1, 2, 3, 4, 5} - places)), tuple(sorted(places))),)


def test_interpolation_sees_both_ends():
    assert together("", story(4, (1, 4))).rounds == (Round((2, 3), (1, 4)),)


def test_only_chosen_given_shots_take_part_where_a_choice_is_made():
    assert together("", story(5, (1, 2, 4, 5)), seen=[2, 4]).rounds == (Round((3,), (2, 4)),)


def test_more_shots_than_a_base_can_see_at_once_are_refused_unless_fewer_are_chosen():
    with pytest.raises(
        UserError, match="5 shots and images can't all see each other: this base was trained on 3"
    ):
        together("", story(5, (1, 2)), window=3)
    assert together("", story(5, (1, 2, 4, 5)), window=3, seen=[2, 4]).rounds[0].denoise == (3,)


def test_nothing_left_to_make_is_said_in_every_mode():
    for plan in (together, autoregressive):
        with pytest.raises(UserError, match="every shot is given: nothing is left to make"):
            plan("", story(3, (1, 2, 3)))


@pytest.mark.parametrize(
    ("shot_", "window", "expected"),
    [(3, 3, [2, 4]), (3, 4, [1, 2, 4]), (1, 3, [2, 3]), (5, 3, [3, 4]), (3, 1, []), (2, 9, [1, 3, 4, 5])],
)
def test_the_nearest_shots_lie_on_both_sides_and_of_two_as_near_the_earlier_counts(shot_, window, expected):
    assert nearest(5, shot_, window) == expected


# -- auto-regressive --------------------------------------------------------------------------------------------------------
def test_a_roll_out_makes_one_shot_a_round_and_sees_a_sliding_window():
    plan = autoregressive("a street", story(6), window=3)
    assert histories(plan) == {1: (), 2: (1,), 3: (1, 2), 4: (2, 3), 5: (3, 4), 6: (4, 5)}
    assert (plan.visibility, plan.memory) == ("causal", "cache")


def test_a_window_of_one_sees_no_history():
    assert set(histories(autoregressive("", story(4), window=1)).values()) == {()}


def test_given_shots_are_history_and_are_not_made_again():
    plan = autoregressive("", story(5, (1, 3)), window=9)
    assert histories(plan) == {2: (1,), 4: (1, 2, 3), 5: (1, 2, 3, 4)}


def test_a_chosen_history_is_seen_exactly_and_other_shots_keep_their_window():
    plan = autoregressive("", story(5), window=3, history={4: [1], 5: [3, 1, 2, 1]})
    assert histories(plan) == {1: (), 2: (1,), 3: (1, 2), 4: (1,), 5: (1, 2, 3)}


def test_relevant_history_brings_back_the_shots_of_a_character_who_was_away():
    prompts = [
        "Character 1 waves",
        "Character 2 walks",
        "a street",
        "character 2 turns",
        "Character 1 comes back",
    ]
    shots = [shot(k, p) for k, p in enumerate(prompts, start=1)]
    assert histories(autoregressive("", shots, window=3, history="relevant"))[5] == (1, 4)
    assert histories(autoregressive("", shots, window=3, history="recent"))[5] == (3, 4)
    both = [*shots[:4], shot(5, "Character 1 meets Character 2")]
    assert histories(autoregressive("", both, window=3, history="relevant"))[5] == (2, 4)


def test_character_1_is_not_character_12():
    shots = [
        shot(1, "Character 12 waves"),
        shot(2, "Character 1 waves"),
        shot(3, "x"),
        shot(4, "Character 12"),
    ]
    assert histories(autoregressive("", shots, window=2, history="relevant"))[4] == (1,)


@pytest.mark.parametrize("history", ["recent", "relevant", {4: [3], 5: []}])
def test_pinned_images_are_seen_by_every_later_shot_in_every_kind_of_history(history):
    shots = [shot(1, given=clip(1), pinned=True), shot(2, given=clip(2), pinned=True), *story(7)[2:]]
    seen = histories(autoregressive("", shots, window=4, history=history))
    assert all({1, 2} <= set(h) for h in seen.values()) and len(seen) == 5


def test_pinned_images_that_leave_no_room_in_the_window_are_named_not_dropped():
    shots = [shot(1, given=clip(1), pinned=True), shot(2, given=clip(2), pinned=True), shot(3)]
    with pytest.raises(
        UserError, match="shot 3: 2 pinned images and the shot itself need a window of 3, not 2"
    ):
        autoregressive("", shots, window=2)


def test_a_later_shot_or_itself_cannot_be_chosen_as_history():
    for bad in (2, 3, 0, 9):
        with pytest.raises(
            UserError, match=f"shot 2: shot {bad} isn't an earlier shot, so it can't be history"
        ):
            autoregressive("", story(3), history={2: [bad]})


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_room_for_the_shot_itself_is_refused(window):
    with pytest.raises(
        UserError, match=f"a window of {window} shots can't hold even the shot being made; use 1"
    ):
        autoregressive("", story(3), window=window)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from(["recent", "relevant"]), st.data())
def test_no_round_of_a_roll_out_ever_sees_more_than_its_window_or_a_shot_that_is_not_finished(
    n, window, kind, data
):
    given_ = data.draw(st.sets(st.integers(1, n), max_size=n - 1)) if n > 1 else set()
    plan = autoregressive("", story(n, tuple(given_)), window=window, history=kind)
    done = set(given_)
    for r in plan.rounds:
        assert len(r.given) + 1 <= window and set(r.given) <= done and max(r.given, default=0) < r.denoise[0]
        done |= set(r.denoise)
    assert done == set(range(1, n + 1))


# -- re-shooting ------------------------------------------------------------------------------------------------------------
def test_a_reshoot_makes_one_shot_again_between_its_neighbours_and_changes_only_its_take():
    film = story(4, (1, 2, 3, 4))
    shots = reshoot(film, 2, None, take=3)
    assert shots[1] == replace(film[1], given=None, noise=(5, "shot 2", 3))
    assert all(a is b for a, b in zip(shots[2:], film[2:], strict=True)) and shots[0] is film[0]
    assert together("", shots).rounds == (Round((2,), (1, 3, 4)),)


def test_a_reshoot_may_have_other_words_even_none():
    assert reshoot(story(2, (1, 2)), 1, "", take=0)[0].prompt == ""
    assert reshoot(story(2, (1, 2)), 1, "a red hat", take=0)[0].prompt == "a red hat"


@pytest.mark.parametrize("number", [0, 5, -1])
def test_a_shot_that_is_not_there_cannot_be_made_again(number):
    with pytest.raises(
        UserError, match=f"there is no shot {number} to make again; the film has shots 1 to 4"
    ):
        reshoot(story(4, (1, 2, 3, 4)), number, None, 1)


# -- plans that make no sense -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [-0.1, 1.1, float("nan")])
def test_a_context_sigma_that_is_no_noise_level_is_refused(sigma):
    with pytest.raises(UserError, match=r"isn't a noise level; use 0 \(clean\) to 1, best 0.1 to 0.5"):
        together("", story(2), context_sigma=sigma)


@pytest.mark.parametrize(
    ("rounds", "given_", "message"),
    [
        ([Round((1,)), Round((1,)), Round((2, 3))], (), "denoises a shot that is done"),
        ([Round((1, 2, 3))], (2,), "denoises a shot that is done"),
        ([Round((1,), (2,)), Round((2, 3))], (), r"sees one that isn't \(done: \[\]\)"),
        ([Round((1,)), Round(()), Round((2, 3))], (), "denoises a shot that is done, or sees one"),
        ([Round((1,)), Round((2,))], (), "no round makes shot 3"),
        (
            [Round((2,)), Round((1,), (2,)), Round((3,))],
            (),
            "sees a later shot, which causal visibility can't",
        ),
    ],
)
def test_a_plan_that_cannot_be_run_says_why(rounds, given_, message):
    with pytest.raises(ValueError, match=message):
        Plan("", tuple(story(3, given_)), tuple(rounds), "causal", "cache")


def test_a_cache_under_full_visibility_is_refused_since_later_shots_would_change_it():
    with pytest.raises(ValueError, match="a cache needs causal visibility"):
        autoregressive("", story(3), visibility="scene", memory="cache")


def test_shots_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"shots are numbered 1, 2, .* in story order"):
        together("", [shot(2), shot(1)])


def test_a_plan_finds_a_shot_by_its_number():
    plan = together("", story(3))
    assert [plan[k].label for k in (1, 2, 3)] == ["shot 1", "shot 2", "shot 3"]
