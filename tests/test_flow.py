"""Rectified flow: the straight path, its velocity, noise levels and the loss."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import layouts, levels, many, noise, quiet, seeds, some
from longshot.flow import (
    LOSS_FLOOR,
    SigmaDraw,
    add_noise,
    flow_loss,
    per_token,
    shift_sigma,
    sigma_table,
    velocity,
    velocity_from_clean,
)
from longshot.layout import Group, Layout, global_group

pytestmark = quiet
SHIFTS = st.floats(0.1, 20)


@many
@given(seeds, st.floats(0.001, 1))
def test_one_euler_step_along_the_true_velocity_lands_on_the_clean_latent(seed, sigma):
    z_0, eps = noise(seed, 5, 3), noise(seed + 1, 5, 3)
    z_t = add_noise(z_0, eps, torch.tensor(sigma, dtype=torch.float64))
    assert torch.allclose(z_t + (0 - sigma) * velocity(z_0, eps), z_0, rtol=0, atol=1e-12)


@many
@given(seeds, st.floats(0.001, 1))
def test_a_predicted_clean_latent_gives_the_same_velocity_as_the_noise_does(seed, sigma):
    z_0, eps = noise(seed, 4, 3), noise(seed + 1, 4, 3)
    level = torch.tensor(sigma, dtype=torch.float64)
    v = velocity_from_clean(add_noise(z_0, eps, level), z_0, level)
    assert torch.allclose(v, velocity(z_0, eps), rtol=0, atol=1e-11)


def test_a_clean_sample_is_given_and_does_not_move_whatever_is_predicted():
    z_t, clean = torch.ones(3, 1), torch.zeros(3, 1)
    v = velocity_from_clean(z_t, clean, torch.tensor([[0.5], [0.01], [0.0]]))
    assert v.flatten().tolist() == pytest.approx([2.0, 100.0, 0.0])


def test_path_ends_are_the_clean_latent_and_pure_noise():
    z_0, eps = noise(0, 4, 3), noise(1, 4, 3)
    assert torch.equal(add_noise(z_0, eps, torch.tensor(0.0)), z_0)
    assert torch.equal(add_noise(z_0, eps, torch.tensor(1.0)), eps)


@some
@given(layouts(), seeds)
def test_every_video_token_gets_the_noise_level_of_its_own_shot(layout, seed):
    sigma = levels(seed, len(layout.groups))
    spread = per_token(sigma, layout)
    assert spread.shape == (layout.num_video, 1)
    for i, span in enumerate(layout.video_spans):
        assert (spread[span.slice] == sigma[i]).all()


@many
@given(st.integers(1, 60), SHIFTS)
def test_a_sigma_table_falls_from_pure_noise_to_clean_in_the_steps_asked_for(steps, shift):
    table = sigma_table(steps, shift)
    assert len(table) == steps + 1 and table[0] == 1 and table[-1] == 0
    assert (table[1:] < table[:-1]).all()


@many
@given(SHIFTS, SHIFTS)
def test_shifts_keep_the_ends_multiply_and_can_be_undone(a, b):
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_sigma(sigma, a)
    assert shifted[0] == 0 and shifted[-1] == pytest.approx(1)
    assert torch.allclose(shift_sigma(shifted, b), shift_sigma(sigma, a * b))
    assert torch.allclose(shift_sigma(shifted, 1 / a), sigma)
    assert ((shifted >= sigma - 1e-12) if a >= 1 else (shifted <= sigma + 1e-12)).all()


def test_a_table_without_steps_is_refused():
    with pytest.raises(ValueError, match="a sampler needs at least 1 step, got 0"):
        sigma_table(0)


# -- the loss -----------------------------------------------------------------------------------------------------------
@some
@given(layouts(past=False, pad=False), seeds)
def test_the_loss_is_zero_for_the_true_velocity(layout, seed):
    v = noise(seed, layout.num_video, 4)
    loss, each = flow_loss(v, v, layout)
    assert loss == 0 and (each == 0).all() and len(each) == len(layout.groups)


def test_every_shot_weighs_the_same_in_the_loss_however_long_it_is():
    layout = Layout.single(Group(1, 1, (1, 1, 1)), Group(2, 1, (4, 5, 5)))
    v = torch.zeros(layout.num_video, 3)
    for shot in range(2):
        v_hat = v.clone()
        v_hat[layout.video_spans[shot].slice] = 2.0
        loss, each = flow_loss(v_hat, v, layout)
        assert loss.item() == pytest.approx(2.0) and each[shot].item() == pytest.approx(4.0)


def test_every_shot_of_a_pack_weighs_the_same_in_the_loss_whatever_scene_it_is_in():
    pair = (Group(1, 0, (1, 1, 1)), Group(2, 0, (1, 2, 2)))
    layout = Layout((pair, (Group(1, 0, (3, 1, 1)),)))
    v_hat = torch.cat([torch.full((n, 2), e) for n, e in ((1, 1.0), (4, 2.0), (3, 3.0))])
    assert flow_loss(v_hat, torch.zeros_like(v_hat), layout)[0].item() == pytest.approx((1 + 4 + 9) / 3)


def test_the_loss_of_a_clean_prediction_stops_growing_below_the_floor():
    # An error of e in z_0 is e / sigma in v; the loss counts it as e / max(sigma, LOSS_FLOOR).
    layout = Layout.single(*(Group(k, 1, (1, 1, 1)) for k in (1, 2, 3, 4)))
    sigma = torch.tensor([1.0, LOSS_FLOOR, LOSS_FLOOR / 10, 0.0])
    v = torch.zeros(4, 2)
    v_hat = velocity_from_clean(torch.full((4, 2), 0.5), torch.zeros(4, 2), sigma[:, None])
    _, each = flow_loss(v_hat, v, layout, sigma)
    most = (0.5 / LOSS_FLOOR) ** 2
    assert each.tolist() == pytest.approx([0.25, most, most, 0.0])
    assert flow_loss(v, v, layout, sigma)[0] == 0


def test_the_dummy_video_of_a_global_prompt_has_no_loss_and_no_gradient():
    layout = Layout.single(global_group(2), Group(1, 1, (1, 2, 2)))
    v_hat = torch.ones(5, 3, requires_grad=True)
    loss, each = flow_loss(v_hat, torch.zeros(5, 3), layout)
    loss.backward()
    assert loss == 1 and each.tolist() == [0.0, 1.0]
    assert v_hat.grad is not None and (v_hat.grad[0] == 0).all() and (v_hat.grad[1:] != 0).all()


# -- training noise -----------------------------------------------------------------------------------------------------
SCENE = Layout.single(global_group(3), *(Group(k, 1, (1, 1, 1)) for k in range(1, 6)))


def draws(draw: SigmaDraw, count: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw(SCENE, generator) for _ in range(count)])


def test_training_noise_leaves_the_global_prompt_clean_and_every_shot_between_the_ends():
    sigma = draws(SigmaDraw())
    assert (sigma[:, 0] == 0).all() and (sigma[:, 1:] >= 0).all() and (sigma[:, 1:] < 1).all()


def test_independent_training_noise_gives_every_shot_a_level_of_its_own():
    sigma = draws(SigmaDraw(mean=0.0, std=1.0, shared=0, history=0), 400)[:, 1:]
    assert all(len(set(row.tolist())) == 5 for row in sigma)
    logit = torch.logit(sigma)  # SD3's logit-normal(0, 1); 2000 draws: 0.1 is over four standard errors
    assert abs(logit.mean()) < 0.1 and abs(logit.std() - 1) < 0.1


def test_shared_training_noise_gives_all_shots_of_a_scene_one_level():
    sigma = draws(SigmaDraw(shared=1, history=0))[:, 1:]
    assert (sigma == sigma[:, :1]).all() and len(set(sigma[:, 0].tolist())) > 50


@pytest.mark.parametrize("causal", [False, True])
def test_history_training_noise_gives_some_shots_nearly_clean_and_the_rest_one_level(causal):
    # The mean is far out, so that a noisy shot can't be mistaken for a given one.
    draw = SigmaDraw(mean=6, shared=0, history=1, history_max=0.5, causal_history=causal)
    sigma = draws(draw)[:, 1:]
    given = sigma <= 0.5
    assert given.any(1).all() and not given.all(1).any()
    for row, mask in zip(sigma, given, strict=True):
        assert len(set(row[~mask].tolist())) == 1
    prefixes = (given[:, 1:] <= given[:, :-1]).all(1)
    assert prefixes.all() if causal else not prefixes.all()


def test_a_share_of_history_has_no_noise_at_all():
    draw = SigmaDraw(mean=6, shared=0, history=1, history_max=0.5, exact=0.25)
    sigma = draws(draw, 400)[:, 1:]
    given = sigma[sigma <= 0.5]
    assert (given == 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert (draws(replace(draw, exact=0.0), 400)[:, 1:] > 0).all()


def test_training_noise_is_the_same_for_the_same_generator_and_a_single_shot_is_never_history():
    assert torch.equal(draws(SigmaDraw()), draws(SigmaDraw()))
    one = Layout.single(Group(1, 1, (1, 1, 1)))
    draw = SigmaDraw(mean=6, shared=0, history=1, history_max=0.1)
    assert draw(one, torch.Generator().manual_seed(0)).item() > 0.5
