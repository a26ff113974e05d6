"""The auxiliary loss: its labels are the world's own truth, and it teaches what words mean."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_run import tiny_base

from longshot.puppets.world import Acting, Fish, Puppet, PuppetScene, PuppetShot
from longshot.train.attributes import ATTRIBUTES, UNSAID, AttributeReaders, said, shown
from longshot.train.config import StageConfig
from longshot.train.loop import batch_loss, collate, draw_noise, make_optimizer
from longshot.train.puppets import Example, PuppetSteps, StreamConfig, Truth

MIA = Puppet("Mia", "red", "plain", "top", "blue")
BEN = Puppet("Ben", "green", "spots", "cone", "pink")
WAVING = PuppetShot("wide", 0, (Acting(1, "wave", 10.0, 1, 1), Acting(0, "stand", 38.0, -1, -1)), 8, True)
EMPTY = PuppetShot("wide", 0, (), 8, True)
SCENE = PuppetScene((MIA, BEN), "beach", "dusk", (WAVING, EMPTY))
GLOBAL = "[Character] Character 1: a red puppet. Character 2: a green puppet. [Environment] a beach at dusk."
PROMPTS = ("[SHOT CUT] Wide shot. Character 2 waves, Character 1 stands.", "[SHOT CUT] Wide shot. Nobody.")


def example(prompts=PROMPTS, stills=(None, None)) -> Example:
    frames = tuple(np.zeros((8, 32, 48, 3), np.uint8) for _ in PROMPTS)
    return Example(frames, GLOBAL if prompts[0] else "", prompts, Truth(SCENE, stills))


def names(row) -> dict[str, str]:
    return {
        name: options[k] for (name, options), k in zip(ATTRIBUTES.items(), row, strict=True) if k != UNSAID
    }


def test_a_global_prompt_says_how_people_look_and_where_they_are():
    ends, labels = said(example(), 0, GLOBAL)
    assert [GLOBAL[:end].split()[-1] for end in ends] == ["1", "2", "[Environment]"]
    assert names(labels[0]) == {"body": "red", "pattern": "plain", "hat": "top", "hat_color": "blue"}
    assert names(labels[1])["body"] == "green" and names(labels[2]) == {
        "environment": "beach",
        "time": "dusk",
    }


def test_a_shot_prompt_says_what_people_do_and_no_look_that_is_told_elsewhere():
    _, labels = said(example(), 1, PROMPTS[0])
    assert [names(row) for row in labels] == [{"action": "wave"}, {"action": "stand"}]


def test_each_token_shows_the_person_nearest_to_it():
    labels = shown(example(), 1, (2, 4, 6), tiny_base().spec).reshape(2, 4, 6, -1)
    row = [names(token) for token in labels[0, 0]]
    assert [token.get("body") for token in row] == ["green", "green", None, None, "red", "red"]
    assert row[0]["action"] == "wave"
    assert {names(token)["environment"] for token in labels.reshape(-1, len(ATTRIBUTES))} == {"beach"}


def test_a_fish_has_a_tail_and_no_hat():
    fish, shot = Fish("Nora", "pink", "stripes", "white"), replace(WAVING, cast=WAVING.cast[1:])
    scene = PuppetScene((fish,), "reef", "day", (shot,))
    frames = (np.zeros((8, 32, 48, 3), np.uint8),)
    told = Example(frames, "", ("Character 1 floats.",), Truth(scene, (None,)))
    (look,) = {tuple(names(token).items()) for token in shown(told, 1, (2, 4, 6), tiny_base().spec)} - {
        (("environment", "reef"), ("time", "day"))
    }
    assert dict(look) == {
        "body": "pink",
        "pattern": "stripes",
        "tail_color": "white",
        "action": "stand",
        "environment": "reef",
        "time": "day",
    }


def test_a_shot_without_people_shows_the_place_alone():
    labels = shown(example(), 2, (2, 4, 6), tiny_base().spec)
    assert all(set(names(row)) == {"environment", "time"} for row in labels)


def test_a_scene_without_words_is_asked_nothing():
    wordless = example(prompts=("", ""))
    assert (shown(wordless, 1, (2, 4, 6), tiny_base().spec) == UNSAID).all()
    assert said(wordless, 1, "")[0] == []


def test_a_shot_that_became_an_image_shows_where_people_are_in_that_frame():
    left = PuppetShot("wide", 0, (Acting(0, "walk_right", 10.0, 1, 1),), 16, True)
    scene = PuppetScene((MIA,), "beach", "day", (left,))
    picture = np.zeros((1, 32, 48, 3), np.uint8)
    shots = [Example((picture,), "", ("Character 1 walks.",), Truth(scene, (k,))) for k in (0, 15)]
    columns = [
        np.flatnonzero(shown(e, 1, (1, 4, 6), tiny_base().spec)[:6, 0] != UNSAID).mean() for e in shots
    ]
    assert columns[1] - columns[0] == pytest.approx(15 / 8, abs=1)  # 15 pixels to the right


def test_what_words_say_is_learned_within_eighty_steps():
    torch.manual_seed(0)  # the readers start from torch's own random numbers
    stream = StreamConfig(scenes=16, frames=(4,), pair=0.0, drop_text=0.0)
    base, config = tiny_base(width=48, depth=2), StageConfig("test", 80, stream, lr=3e-3, attributes=1.0)
    readers = AttributeReaders(48)
    optimizer = make_optimizer(torch.nn.ModuleList([base.network, readers]), config)
    base.network.train().requires_grad_(True)
    losses = []
    for step in range(80):
        batch = collate(base, PuppetSteps(stream, seed=1)[step])
        sigma, eps = draw_noise(batch.layout, base.spec.channels, config, step, range(stream.scenes))
        loss = batch_loss(base, batch, sigma, eps, "scene", readers)
        optimizer.zero_grad()
        (loss.flow + loss.attributes).backward()
        optimizer.step()
        losses.append(float(loss.attributes.detach()))
    # Guessing costs about 30 nats a shot. Places and actions come first, looks take some hundred steps.
    assert np.mean(losses[-5:]) < 0.75 * losses[0]  # 0.63 to 0.64 for three starts
