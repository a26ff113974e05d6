"""Captions name exactly who is in a shot, use known words only, and stay short."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot.puppets import world
from longshot.puppets.words import MEANINGS, VOCABULARY, caption, shot_caption, single_caption
from longshot.puppets.world import draw_scene

seeds = st.integers(0, 2**32 - 1)
themes = st.sampled_from(["puppets", "reef"])


def _named(text: str) -> set[int]:
    return {int(k) - 1 for k in re.findall(r"Character (\d+)", text)}


@given(seeds, themes)
@settings(deadline=None)
def test_a_shots_caption_names_exactly_its_cast(seed, theme):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, 4, theme=theme)
    together, shots = caption(scene, rng)
    assert _named(together) == set(range(len(scene.characters)))
    for shot, text in zip(scene.shots, shots, strict=True):
        assert _named(text) == {acting.who for acting in shot.cast}


@given(seeds, themes)
@settings(deadline=None)
def test_only_a_shot_after_a_cut_says_so(seed, theme):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, 4, theme=theme)
    for shot, text in zip(scene.shots, caption(scene, rng)[1], strict=True):
        assert text.startswith("[SHOT CUT] ") == shot.cut


@given(seeds, themes)
@settings(deadline=None)
def test_a_single_caption_describes_who_is_in_the_shot_and_the_place(seed, theme):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, 2, theme=theme)
    text = single_caption(scene, 1, rng)
    assert _named(text) == {acting.who for acting in scene.shots[1].cast}
    assert "[Environment]" in text
    assert ("[Character]" in text) == bool(scene.shots[1].cast)
    assert "[SHOT CUT]" not in text


@given(seeds, themes)
@settings(deadline=None)
def test_every_word_of_a_caption_is_in_the_vocabulary(seed, theme):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, 3, theme=theme)
    together, shots = caption(scene, rng)
    words = set(re.findall(r"[a-z]+", " ".join([together, *shots, single_caption(scene, 0, rng)]).lower()))
    assert words - VOCABULARY - {name.lower() for name in world.NAMES} == set()


def test_each_character_is_described_by_its_own_words():
    rng = np.random.default_rng(0)
    for round_ in range(200):
        scene = draw_scene(rng, 1, theme=("puppets", "reef")[round_ % 2])
        together, _ = caption(scene, rng)
        for number, character in enumerate(scene.characters, start=1):
            sentence = re.search(rf"Character {number}: ([^.]*)\.", together)
            assert sentence is not None
            for value in (getattr(character, name) for name in character.LOOK if name != "pattern"):
                assert any(word in sentence[1] for word in MEANINGS[value]), (value, sentence[1])


def test_every_value_has_words_and_no_word_means_two_values_of_one_kind():
    kinds = [world.COLORS, world.PATTERNS, world.HATS, world.TIMES, world.CAMERAS, world.ACTIONS]
    kinds += [(*world.ENVIRONMENTS, world.REEF), ("float", "swim_left", "swim_right")]
    for kind in [*kinds, ("pan_left", "pan_right")]:
        words = [word for value in kind for word in MEANINGS[value]]
        assert len(words) == len(set(words)) >= 3 * len(kind)


def test_about_half_of_the_colours_are_plain_words():
    rng = np.random.default_rng(0)
    plain = total = 0
    for _ in range(400):
        scene = draw_scene(rng, 1, p_pair=0.0)
        words = set(re.findall(r"[a-z]+", caption(scene, rng)[0].lower()))
        plain += scene.characters[0].body in words
        total += 1
    assert 0.4 < plain / total < 0.7


def test_captions_are_short():
    rng = np.random.default_rng(0)
    both, shots = [], []
    for _ in range(300):
        together, texts = caption(draw_scene(rng, 3, p_pair=1.0), rng)
        both.append(len(re.findall(r"\w+|[^\w\s]", together)))
        shots += [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    assert np.mean(both) <= 45 and max(both) <= 58
    assert np.mean(shots) <= 18 and max(shots) <= 26


def test_the_same_seed_writes_the_same_caption():
    scene = draw_scene(np.random.default_rng(1), 3)
    assert caption(scene, np.random.default_rng(2)) == caption(scene, np.random.default_rng(2))


def test_a_prompt_says_where_somebody_stands_unless_it_is_the_middle():
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = draw_scene(rng, 1, p_pair=0.0, p_empty=0.0, actions=("stand", "wave"))
        text, x = shot_caption(scene, 0, rng), scene.shots[0].cast[0].x
        assert (" the left" in text) == (x < 24), text
        assert (" the right" in text) == (x > 24), text


def test_two_people_are_told_from_left_to_right():
    rng = np.random.default_rng(6)
    for _ in range(100):
        scene = draw_scene(rng, 1, p_pair=1.0, p_two=1.0, p_empty=0.0)
        first, second = (f"Character {acting.who + 1}" for acting in scene.shots[0].cast)
        text = shot_caption(scene, 0, rng)
        assert text.index(first) < text.index(second)
        assert scene.shots[0].cast[0].x < scene.shots[0].cast[1].x
