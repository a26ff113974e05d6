"""Invariant 7, for scenes drawn on the fly: any number of workers and ranks see the same examples, each once."""

from dataclasses import replace

import numpy as np
import pytest

from longshot.puppets.render import render_place, render_portrait
from longshot.puppets.world import Fish
from longshot.scene import PLACE_PROMPT, identity_prompt
from longshot.train.puppets import LONGEST, Example, PuppetSteps, StreamConfig, stream

CONFIG = StreamConfig(
    scenes=5, single=0.3, shots=(2, 3), frames=(4, 8), image=0.3, drop_text=0.2, drop_global=0.2
)


def content(example: Example) -> tuple:
    return tuple(shot.tobytes() for shot in example.shots), example.global_prompt, example.prompts


def steps_of(ranks: int, workers: int, start: int = 0, stop: int = 4) -> list[list[tuple]]:
    """Each step's examples, put together from all ranks: example i comes from rank i mod ranks."""
    by_rank = [
        [
            [content(e) for e in step]
            for step in stream(PuppetSteps(CONFIG, 7, r, ranks), start, stop, workers)
        ]
        for r in range(ranks)
    ]
    return [[by_rank[i % ranks][k][i // ranks] for i in range(CONFIG.scenes)] for k in range(stop - start)]


@pytest.fixture(scope="module")
def reference() -> list[list[tuple]]:
    return steps_of(ranks=1, workers=0)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (5, 0)])
def test_the_examples_of_a_step_are_the_same_for_any_number_of_workers_and_ranks(reference, ranks, workers):
    assert steps_of(ranks, workers) == reference


def test_every_example_is_yielded_once(reference):
    everything = [example for step in reference for example in step]
    assert len(set(everything)) == len(everything) == 4 * CONFIG.scenes


def test_each_rank_gets_its_share_and_no_more():
    shares = [len(PuppetSteps(CONFIG, 7, rank, 2)[0]) for rank in (0, 1)]
    assert shares == [3, 2]


def test_a_stream_that_starts_later_yields_what_it_would_have(reference):
    assert steps_of(1, 1, start=2) == reference[2:]


def test_another_seed_gives_other_examples():
    assert content(PuppetSteps(CONFIG, 8)[0][0]) != content(PuppetSteps(CONFIG, 7)[0][0])


def test_the_mix_of_examples_is_the_one_asked_for():
    many = [e for k in range(20) for e in PuppetSteps(CONFIG, 1)[k]]
    one_frame = np.mean([len(shot) == 1 for e in many for shot in e.shots])
    wordless = np.mean([not any(e.prompts) for e in many])
    single = np.mean([len(e.shots) == 1 for e in many])
    # 100 examples: three standard errors are 0.14 at most
    assert abs(one_frame - 0.3) < 0.14 and abs(wordless - 0.2) < 0.14 and abs(single - 0.3) < 0.14


def test_a_share_of_examples_is_of_the_reef_with_portraits_of_fish():
    config = replace(CONFIG, reef=0.5, portraits=0.5, drop_text=0.0)
    truths = [e.truth for k in range(20) for e in PuppetSteps(config, 3)[k] if e.truth is not None]
    reefs = [t for t in truths if t.scene.environment == "reef"]
    assert abs(len(reefs) / len(truths) - 0.5) < 0.15  # of 100
    assert all(isinstance(c, Fish) for t in reefs for c in t.scene.characters)
    assert any(t.portrait is not None for t in reefs)


def test_a_scene_with_a_portrait_shows_one_of_its_people_and_maybe_its_place_before_its_shots():
    config = replace(CONFIG, single=0.0, shots=(2, 5), drop_text=0.0, portraits=1.0)
    orders = set()
    for k in range(20):
        for example in PuppetSteps(config, 2)[k]:
            truth = example.truth
            assert len(truth.stills) == len(truth.scene.shots) == len(example.shots) == len(example.prompts)
            if truth.portrait is None:
                assert len(example.shots) > LONGEST
                continue
            (acting,) = truth.scene.shots[truth.portrait].cast
            assert example.prompts[truth.portrait] == identity_prompt(acting.who + 1)
            person = truth.scene.characters[acting.who]
            (picture,) = example.shots[truth.portrait]
            assert np.array_equal(picture, render_portrait(person, facing=acting.facing))
            number = 1 + (PLACE_PROMPT in example.prompts[:2])
            if number == 2:
                (place,) = example.shots[1 - truth.portrait]
                assert np.array_equal(place, render_place(truth.scene.environment, truth.scene.time))
            orders.add((number, truth.portrait))
    assert orders == {(1, 0), (2, 0), (2, 1)}


def test_a_share_of_scenes_is_one_take_from_beginning_to_end():
    takes = replace(CONFIG, single=0.0, image=0.0, takes=1.0)
    truths = [e.truth for k in range(4) for e in PuppetSteps(takes, 7)[k]]
    assert all(t is not None and t.scene.shots[0].cast for t in truths)
    assert all(not shot.cut for t in truths if t is not None for shot in t.scene.shots[1:])
