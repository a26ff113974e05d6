"""What is right, what is unreadable, and who is who."""

from dataclasses import replace

import numpy as np
import pytest

from longshot.eval.marks import (
    Guesses,
    View,
    agreement_marks,
    attribute_marks,
    look_tracks,
    match,
    place_tracks,
    strangers,
    told,
)
from longshot.eval.metrics import rate
from longshot.puppets.world import Fish, Puppet, draw_scene


def _scene(seed=0, shots=4, **options):
    return draw_scene(np.random.default_rng(seed), shots, **options)


def _truth(scene):
    return {k: told(scene, k) for k in range(1, len(scene.shots) + 1)}


def _rates(marks):
    marks = list(marks)
    return {name: rate([m for m in marks if m.name == name]) for name in {m.name for m in marks}}


def _agreement(tracks, names=Puppet.LOOK, **options):
    return _rates(agreement_marks(tracks, names, "look", **options))


@pytest.mark.parametrize(("theme", "kind"), [("puppets", Puppet), ("reef", Fish)])
def test_the_truth_is_right_in_every_attribute(theme, kind):
    truth = _truth(_scene(p_pair=1.0, theme=theme))
    rates = _rates(attribute_marks(0, truth, truth))
    assert set(rates.values()) == {1.0}
    places = {"environment", "time", "camera"}
    assert set(rates) == {"look", "people", "action", *places, *kind.LOOK}


def test_another_number_of_people_makes_them_all_unreadable():
    truth = _truth(_scene(p_pair=0.0, p_empty=0.0, shots=1))
    person = truth[1].people[0]
    crowd = {1: replace(truth[1], people=(person, person))}
    marks = {m.name: m for m in attribute_marks(0, truth, crowd)}
    assert not marks["body"].readable and not marks["body"].right
    assert marks["people"].readable and not marks["people"].right
    assert marks["environment"].right


def test_two_people_may_stand_either_way_round():
    scene = _scene(p_pair=1.0, p_two=1.0, p_empty=0.0, shots=1)
    truth = told(scene, 1)
    swapped = replace(truth, people=truth.people[::-1])
    assert match(truth, swapped) == truth.people


def test_a_shot_that_cannot_be_read_is_wrong_and_unreadable_throughout():
    truth = _truth(_scene(p_empty=0.0))
    dark = View(dict.fromkeys(("environment", "time", "camera")), ())
    marks = list(attribute_marks(0, truth, dict.fromkeys(truth, dark)))
    assert marks and not any(m.readable or m.right for m in marks)


def test_a_wrong_hat_breaks_the_look_but_not_the_body():
    truth = _truth(_scene(p_pair=0.0, p_empty=0.0, shots=1))
    person = dict(truth[1].people[0])
    person["hat"] = "cone" if person["hat"] != "cone" else "top"
    rates = _rates(attribute_marks(0, truth, {1: replace(truth[1], people=(person,))}))
    assert (rates["body"], rates["hat"], rates["look"]) == (1.0, 0.0, 0.0)


def test_a_fish_of_another_tail_is_another_fish():
    truth = _truth(_scene(p_pair=0.0, p_empty=0.0, shots=3, theme="reef"))
    fish = dict(truth[2].people[0])
    fish["tail_color"] = "red" if fish["tail_color"] != "red" else "blue"
    views = {**truth, 2: replace(truth[2], people=(fish,))}
    rates = _rates(attribute_marks(0, truth, views))
    assert (rates["body"], rates["pattern"]) == (1.0, 1.0)
    assert rates["tail_color"] == rates["look"] == pytest.approx(2 / 3)
    agreement = _agreement(look_tracks(0, truth, views), Fish.LOOK)
    assert agreement["same_look"] == agreement["same_tail_color"] == pytest.approx(1 / 3)


def test_one_shot_that_differs_spoils_its_pairs_and_the_whole():
    scene = _scene(p_pair=0.0, p_empty=0.0, shots=4)
    truth = _truth(scene)
    views = dict(truth)
    person = dict(truth[3].people[0])
    person["body"] = "red" if person["body"] != "red" else "blue"
    views[3] = replace(truth[3], people=(person,))
    rates = _agreement(look_tracks(0, truth, views))
    assert rates["same_body"] == rates["same_look"] == pytest.approx(3 / 6)
    assert (rates["same_hat"], rates["same_look_throughout"]) == (1.0, 0.0)


def test_shots_that_are_consistently_wrong_still_agree_with_each_other():
    truth = _truth(_scene(p_pair=0.0, p_empty=0.0))
    other = dict(truth[1].people[0]) | {"body": "none of these"}
    views = {k: replace(v, people=(other,)) for k, v in truth.items()}
    assert _rates(attribute_marks(0, truth, views))["body"] == 0.0
    assert _agreement(look_tracks(0, truth, views))["same_look_throughout"] == 1.0


def test_strangers_agree_as_often_as_chance_says():
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng, 3, p_pair=0.0, p_empty=0.0) for _ in range(150)]
    tracks = [t for k, s in enumerate(scenes) for t in look_tracks(k, _truth(s), _truth(s))]
    control = _agreement(strangers(tracks), all_pairs=False)
    chance = Guesses(scenes).agreement(Puppet.LOOK, "look", [3])
    for name in Puppet.LOOK:
        assert control[f"same_{name}"] == pytest.approx(chance[f"same_{name}"], abs=0.1)
    assert chance["same_body"] == pytest.approx(1 / 8, abs=0.03)
    assert chance["same_look_throughout"] == pytest.approx(chance["same_look"] ** 2)


def test_the_place_is_one_track_a_scene():
    truth = _truth(_scene(shots=3))
    (track,) = place_tracks(0, truth, truth)
    assert track.shots == (1, 2, 3)


def test_chance_is_one_over_the_number_of_equally_likely_labels():
    rng = np.random.default_rng(4)
    scenes = [draw_scene(rng, 1, p_pair=0.0, p_empty=0.0) for _ in range(100)]
    chance = Guesses(scenes).chance([_truth(s) for s in scenes], rng, draws=800)
    for name, expected in {"body": 1 / 8, "hat": 1 / 4, "pattern": 1 / 3, "environment": 1 / 8}.items():
        assert chance[name] == pytest.approx(expected, abs=0.06), name
    assert chance["look"] < 0.02
