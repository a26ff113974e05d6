"""Scenes whose noisy shots show other people than words and clean shots say."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_run import stage, tiny_base

from longshot.flow import Descent, per_token
from longshot.layout import GLOBAL, Group, Layout, global_group
from longshot.train.config import lct
from longshot.train.evidence import (
    DOUBTFUL,
    GRAINLESS,
    REMADE_IN,
    WORN,
    Earlier,
    false_evidence,
    grain,
    is_misleading,
    noise_over,
    noised,
    own_guess,
    worn_history,
)
from longshot.train.loop import Trainer, collate
from longshot.train.puppets import PuppetSteps, StreamConfig

CONFIG = StreamConfig(
    scenes=6,
    single=0.2,
    shots=(2, 4),
    frames=(4, 8),
    pan=0.2,
    image=0.2,
    drop_text=0.2,
    portraits=0.4,
    misled=1.0,
)
BASE = tiny_base()


@pytest.fixture(scope="module")
def examples():
    return [e for k in range(4) for e in PuppetSteps(CONFIG, 3)[k]]


def test_other_people_stand_in_the_same_places_of_the_same_picture(examples):
    misled = [e for e in examples if e.seen_as]
    assert len(misled) > 12
    for example in misled:
        assert [s.shape for s in example.seen_as] == [s.shape for s in example.shots]
        for shot, other, drawn in zip(example.shots, example.seen_as, example.truth.scene.shots, strict=True):
            changed = (shot != other).any(-1)
            assert changed.mean() < 0.75
            if not drawn.cast:
                assert not changed.any()
    changed = [any((a != b).any() for a, b in zip(e.shots, e.seen_as, strict=True)) for e in misled]
    assert np.mean(changed) > 0.9


def test_who_is_only_given_as_a_picture_is_shown_truly(examples):
    portraits = [e for e in examples if e.seen_as and e.truth.portrait is not None]
    assert portraits
    for example in portraits:
        k = example.truth.portrait
        assert np.array_equal(example.shots[k], example.seen_as[k])


def test_an_example_without_words_is_never_misled(examples):
    wordless = [e for e in examples if not any(e.prompts)]
    assert wordless and all(e.seen_as is None for e in wordless)


def test_without_the_setting_the_examples_are_what_they_were():
    plain = PuppetSteps(replace(CONFIG, misled=0.0), 3)[0]
    assert all(e.seen_as is None for e in plain)


def test_only_noisy_shots_of_which_something_tells_the_truth_are_shown_otherwise():
    a, b = Group(1, 2, (1, 2, 2)), Group(2, 2, (1, 2, 2))
    whole, no_words, alone = (global_group(3), a, b), (a, b), (a,)
    layout = Layout((whole, no_words, no_words, alone))
    low, high = DOUBTFUL - 0.1, DOUBTFUL + 0.1
    sigma = torch.tensor([0.0, high, low, high, high, low, high, high])
    assert is_misleading(layout, sigma) == [False, True, False, False, False, False, True, True]


def test_whatever_the_noise_lies_over_the_velocity_leads_to_the_truth(examples):
    batch = collate(BASE, examples[:8])
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(batch.z_0.shape, generator=generator)
    sigma = torch.rand(len(batch.layout.groups), generator=generator)
    other = false_evidence(BASE, batch.examples, batch.z_0, batch.layout)
    assert other is not None
    z_t, v = noised(batch.z_0, other, batch.layout, sigma, eps)
    plain, _ = noised(batch.z_0, None, batch.layout, sigma, eps)
    moved = 0
    for group, span, level, false in zip(
        batch.layout.groups, batch.layout.video_spans, sigma, is_misleading(batch.layout, sigma), strict=True
    ):
        rows = span.slice
        torch.testing.assert_close(z_t[rows] - level * v[rows], batch.z_0[rows], atol=1e-5, rtol=1e-5)
        shown = other if false else batch.z_0
        torch.testing.assert_close(z_t[rows], (1 - level) * shown[rows] + level * eps[rows])
        moved += group.shot != GLOBAL and not torch.equal(z_t[rows], plain[rows])
    assert moved


def test_grain_adds_up_to_half_of_the_clean_part_to_half_of_the_tokens_of_some_shots():
    generator = torch.Generator().manual_seed(4)
    for sigma in (0.05, 0.3, 0.9):
        drawn = [grain(400, sigma, 0.3, generator) for _ in range(300)]
        hit = [d for d in drawn if (d > 1).any()]
        assert abs(len(hit) / 300 - 0.3) < 0.1  # 3.8 standard errors
        assert all(abs((d > 1).float().mean().item() - 0.5) < 0.12 for d in hit)
        more = torch.stack([(d.max() ** 2 - 1).sqrt() * sigma / (1 - sigma) for d in hit])
        assert more.max() <= 0.5 + 1e-2 and more.max() > 0.4 and more.min() < 0.1


def test_a_clean_shot_and_a_run_without_grain_have_none():
    generator = torch.Generator().manual_seed(4)
    assert all(bool((grain(9, GRAINLESS / 2, 1.0, generator) == 1).all()) for _ in range(20))
    assert all(bool((grain(9, 0.3, 0.0, generator) == 1).all()) for _ in range(20))


def test_a_networks_own_guess_without_noise_ahead_is_the_truth():
    layout = Layout.single(global_group(2), Group(1, 2, (1, 2, 2)), Group(2, 1, (2, 1, 1)))
    generator = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, layout.num_video, BASE.spec.channels, generator=generator)
    text = torch.randn(layout.num_text, BASE.config.network.width, generator=generator)
    none, some = torch.zeros(3), torch.tensor([0.0, 0.5, 0.0])
    assert torch.equal(own_guess(BASE, z_0, text, layout, "scene", Earlier(none, eps)), z_0)
    guess = own_guess(BASE, z_0, text, layout, "scene", Earlier(some, eps))
    changed = (guess != z_0).any(1)
    assert changed.tolist() == [g == 1 for g in layout.group_of_video]


def test_from_noise_over_a_guess_the_velocity_leads_to_the_truth():
    layout = Layout.single(global_group(1), Group(1, 1, (1, 2, 2)), Group(2, 1, (1, 1, 1)))
    generator = torch.Generator().manual_seed(1)
    guess, z_0, eps = torch.randn(3, layout.num_video, 6, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.3, 0.001])
    z_t, v = noise_over(guess, z_0, layout, sigma, eps)
    assert torch.equal(z_t[0], guess[0]) and torch.equal(v[0], torch.zeros(6))
    level = per_token(sigma, layout)
    assert torch.allclose((z_t - level * v)[1:], z_0[1:], rtol=0, atol=1e-12)


def test_worn_history_is_what_eulers_steps_make_of_it_and_what_is_to_be_denoised_stays_true():
    """Against the sampler's own steps: `Descent` down to 0, from where each shot begins."""
    layout = Layout.single(*(Group(k, 2, (1, 2, 2)) for k in (1, 2, 3)))
    generator = torch.Generator().manual_seed(2)
    z_0, eps = torch.randn(2, layout.num_video, BASE.spec.channels, generator=generator)
    text = torch.randn(layout.num_text, BASE.config.network.width, generator=generator)
    sigma, ahead = torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0.5, 0.5, 0.7])
    earlier = worn_history(layout, sigma, ahead, eps)
    began = 0.1 + WORN * 0.5 * 0.9
    assert earlier.sigma.tolist() == pytest.approx([began, began, 1.0])
    guess = own_guess(BASE, z_0, text, layout, "causal", earlier)
    history, made = (layout.group_of_video < 2), Layout.single(*layout.groups[:2])
    rows, words = torch.from_numpy(history), made.num_text
    z = (1 - began) * z_0[rows] + began * eps[rows]
    way = Descent("euler", torch.linspace(began, 0, REMADE_IN + 1), lambda k: torch.empty(0))
    for level in way.sigmas[:-1]:
        with torch.no_grad():
            z = way.step(z, BASE.velocity(z, text[:words], level.expand(2), made, "causal"))
    torch.testing.assert_close(guess[rows], z, atol=1e-5, rtol=1e-5)
    assert torch.equal(guess[~rows], z_0[~rows]) and not torch.equal(guess[rows], z_0[rows])


def test_history_is_not_made_by_what_is_to_be_denoised():
    """Under full attention it would be mended by the answer otherwise. The global prompt stays what it is."""
    layout = Layout.single(global_group(2), *(Group(k, 2, (1, 2, 2)) for k in (1, 2)))
    generator = torch.Generator().manual_seed(2)
    z_0, eps, other = torch.randn(3, layout.num_video, BASE.spec.channels, generator=generator)
    text = torch.randn(layout.num_text, BASE.config.network.width, generator=generator)
    earlier = worn_history(layout, torch.tensor([0.0, 0.1, 0.7]), torch.full((3,), 0.5), eps)
    is_target = torch.from_numpy(layout.group_of_video == 2)[:, None]
    guesses = [
        own_guess(BASE, z, text, layout, "scene", earlier) for z in (z_0, torch.where(is_target, other, z_0))
    ]
    changed = (guesses[0] != guesses[1]).any(1)
    assert changed.tolist() == is_target[:, 0].tolist()
    assert torch.equal(guesses[0][0], z_0[0])


def test_the_kind_of_a_step_is_drawn_by_its_number(tmp_path):
    def kinds(**shown):
        trainer = Trainer(BASE, replace(stage(200), stream=CONFIG, **shown), tmp_path)
        layout = Layout.single(Group(1, 1, (1, 1, 1)))
        for trainer.step in range(200):
            earlier = trainer._earlier(layout, torch.tensor([0.1]), [0])
            yield "true" if earlier is None else "guessed" if earlier.shows is None else "worn"

    assert set(kinds()) == {"true"}
    drawn = Counter(kinds(guessed=0.3, worn=0.2))
    assert drawn["guessed"] == pytest.approx(60, abs=24) and drawn["worn"] == pytest.approx(40, abs=24)
    assert list(kinds(guessed=0.3, worn=0.2)) == list(kinds(guessed=0.3, worn=0.2))


def test_what_has_no_noise_is_given_and_never_guessed(tmp_path):
    trainer = Trainer(BASE, replace(stage(200), stream=CONFIG, guessed=1.0), tmp_path)
    layout = Layout.single(global_group(2), *(Group(k, 1, (1, 1, 1)) for k in (1, 2, 3)))
    earlier = trainer._earlier(layout, torch.tensor([0.0, 0.0, 0.1, 0.9]), [0])
    assert earlier is not None and earlier.sigma[:2].tolist() == [0, 0]
    assert 0.1 < earlier.sigma[2] < 1 and 0.9 < earlier.sigma[3] < 1


def test_a_step_cannot_show_guesses_and_worn_history():
    with pytest.raises(ValueError, match="make over 1"):
        replace(lct(10), guessed=0.7, worn=0.4)
