"""What counts as a caption, what is put right with a note, and what goes back to the captioner."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot.data.captions_answer import (
    SCHEMA,
    AnswerError,
    Caption,
    Person,
    caption_of,
    complaint,
    question,
    read_answer,
)
from strategies import json_values

GOOD = {
    "characters": [
        {"id": 1, "description": "A large grey rabbit with small ears"},
        {"id": 2, "description": "A yellow butterfly"},
    ],
    "environment": "A green meadow under trees, morning light, 3D animation.",
    "story": "Character 1 wakes up and meets Character 2.",
    "shots": [
        {"shot": 1, "prompt": "Wide shot. Character 1 stretches before the burrow."},
        {"shot": 2, "prompt": "Close-up. Character 2 lands on the nose of Character 1."},
    ],
}


def changed(**changes) -> dict:
    return copy.deepcopy(GOOD) | changes


def test_a_good_answer_is_taken_word_for_word_without_notes():
    caption, notes = read_answer(json.dumps(GOOD), 2)
    assert notes == []
    assert caption == Caption(
        characters=tuple(Person(**c) for c in GOOD["characters"]),
        environment=GOOD["environment"],
        story=GOOD["story"],
        prompts=tuple(s["prompt"] for s in GOOD["shots"]),
    )


def test_a_caption_becomes_the_two_tiers_of_the_paper():
    caption, _ = caption_of(GOOD, 2)
    scene = caption.scene([True, False])
    assert scene.global_prompt() == (
        "[Character] Character 1: A large grey rabbit with small ears. Character 2: A yellow butterfly. "
        "[Environment] A green meadow under trees, morning light, 3D animation. "
        "[Story] Character 1 wakes up and meets Character 2."
    )
    assert scene.shot_prompts() == [
        "[SHOT CUT] Wide shot. Character 1 stretches before the burrow.",
        "Close-up. Character 2 lands on the nose of Character 1.",
    ]


def test_a_shot_alone_is_told_with_those_who_are_in_it():
    caption, _ = caption_of(GOOD, 2)
    assert caption.alone(0) == (
        "[Character] Character 1: A large grey rabbit with small ears. "
        "[Environment] A green meadow under trees, morning light, 3D animation. "
        "Wide shot. Character 1 stretches before the burrow."
    )


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("```json\n%s\n```", "took the JSON out of the words around it"),
        ("Here you are: %s Hope that helps!", "took the JSON out of the words around it"),
        ("<think>{is it a rabbit?}</think>%s", None),
    ],
)
def test_words_around_the_json_are_taken_away(text, note):
    caption, notes = read_answer(text % json.dumps(GOOD), 2)
    assert caption == caption_of(GOOD, 2)[0]
    assert notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"characters": {"1": GOOD["characters"][0]["description"], "2": "A yellow butterfly"}},
            "as an object of ids",
        ),
        ({"characters": [c | {"id": f"Character {c['id']}"} for c in GOOD["characters"]]}, None),
        ({"shots": [s | {"shot": s["shot"] - 1} for s in GOOD["shots"]]}, "renumbered the shots from 1 on"),
        ({"shots": [s["prompt"] for s in GOOD["shots"]]}, "shots given as texts in order"),
        ({"shots": GOOD["shots"][::-1]}, None),
        (
            {"shots": [s | {"prompt": "[SHOT CUT] " + s["prompt"]} for s in GOOD["shots"]]},
            r"took [SHOT CUT] away",
        ),
        ({"story": "character1 wakes up\n and meets  [Character 2]."}, "wrote 'character1' as 'Character 1'"),
        ({"mood": "happy"}, "left out: mood"),
    ],
)
def test_small_things_are_put_right_with_a_note(changes, note):
    caption, notes = caption_of(changed(**changes), 2)
    assert caption == caption_of(GOOD, 2)[0]
    assert (note is None and notes == []) or any(note in n for n in notes)


def test_ids_that_begin_at_0_are_renumbered_wherever_they_stand():
    data = json.loads(
        json.dumps(GOOD).replace("Character 1", "Character 0").replace("Character 2", "Character 1")
    )
    for entry in data["characters"]:
        entry["id"] -= 1
    caption, notes = caption_of(data, 2)
    assert caption == caption_of(GOOD, 2)[0]
    assert notes == ["renumbered the characters 0, 1 from 1 on"]


def test_several_characters_named_at_once_are_named_one_by_one():
    shots = [GOOD["shots"][0], {"shot": 2, "prompt": "Characters 1, 2 and 1 play; (character 2) wins."}]
    caption, _ = caption_of(changed(shots=shots), 2)
    assert caption.prompts[1] == "Character 1, Character 2 and Character 1 play; Character 2 wins."


def test_a_vague_word_is_noted():
    shots = [GOOD["shots"][0], {"shot": 2, "prompt": "The man looks at Character 2."}]
    assert caption_of(changed(shots=shots), 2)[1] == ["shot 2 says 'The man', which may be any character"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shots": GOOD["shots"][:1]}, '"shots" has 1 entries; the scene has 2 shots'),
        ({"shots": [GOOD["shots"][0]] * 2}, "two entries are for shot 1"),
        ({"shots": [GOOD["shots"][0], {"shot": 7, "prompt": "x"}]}, "numbered 1, 7, not 1 to 2"),
        ({"shots": [GOOD["shots"][0], {"shot": 2, "prompt": " "}]}, '"shot 2, prompt" is empty'),
        ({"shots": [GOOD["shots"][0], {"shot": 2}]}, '"shot 2, prompt" is missing'),
        ({"shots": [GOOD["shots"][0], {"shot": 2, "prompt": "Character 3 waves."}]}, "shot 2 names Character 3, who isn't"),
        ({"shots": "none"}, '"shots" is a text, not a list'),
        ({"characters": [GOOD["characters"][0]] * 2}, "two characters have the id 1"),
        ({"characters": [{"id": "Rabbit", "description": "x"}]}, 'character entry 1 has no "id"'),
        ({"characters": [{"id": 1, "description": 3}]}, '"character entry 1, description" is a number, not a text'),
        ({"characters": []}, "names Character 1, who isn't among the characters"),
        ({"characters": None}, '"characters" is missing'),
        ({"environment": ["a", "b"]}, '"environment" is a list, not a text'),
        ({"story": "na " * 3000}, '"story" has 8999 characters; 4000 at most'),
        ({"shots": [{"shot": k, "prompt": "A meadow."} for k in (1, 2)], "story": ""}, "no shot's prompt names a character"),
    ],
)  # fmt: skip
def test_what_would_need_guessing_is_a_problem(changes, problem):
    with pytest.raises(AnswerError) as caught:
        caption_of(changed(**changes), 2)
    assert any(problem in p for p in caught.value.problems), caught.value.problems


def test_all_problems_are_told_at_once():
    with pytest.raises(AnswerError) as caught:
        caption_of({"environment": 3}, 2)
    assert len(caught.value.problems) == 4
    told = complaint(caught.value.problems)
    assert all(f"- {problem}\n" in told for problem in caught.value.problems)


@given(st.integers(0, 400))
def test_half_an_answer_is_never_taken_for_a_whole_one(length):
    text = json.dumps(GOOD)
    with pytest.raises(AnswerError):
        read_answer(text[: min(length, len(text) - 1)], 2)


@given(json_values, st.integers(1, 3))
def test_any_json_is_a_caption_or_a_problem_in_words(data, num_shots):
    with pytest.raises(AnswerError) as caught:
        read_answer(json.dumps(data), num_shots)
    assert str(caught.value)


@given(st.fixed_dictionaries(dict.fromkeys(SCHEMA["properties"], json_values)), st.integers(1, 3))
def test_any_values_in_the_right_fields_are_a_caption_or_a_problem(data, num_shots):
    try:
        caption, _ = caption_of(data, num_shots)
    except AnswerError:
        return
    assert len(caption.prompts) == num_shots and all(caption.prompts)
    caption.scene([True] * num_shots)


def test_the_question_says_where_no_cut_is():
    assert question(3, [True, True, True]) == "The scene has 3 shots."
    assert "no cut before shot 2, 3:" in question(3, [True, False, False])
