"""Rotary positions: angles by hand, and scores that know distances only."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import noise, seeds, some
from longshot.model.rope import rotate, rotations, split_axes

POSITION = st.tuples(*[st.integers(0, 400)] * 3)


@pytest.mark.parametrize(
    ("head_dim", "axes"),
    [(6, (2, 2, 2)), (8, (4, 2, 2)), (48, (16, 16, 16)), (64, (24, 20, 20)), (128, (44, 42, 42))],
)
def test_a_head_is_split_into_even_parts_with_what_is_left_for_time(head_dim, axes):
    assert split_axes(head_dim) == axes


@pytest.mark.parametrize("head_dim", [4, 7, 0])
def test_a_head_too_small_or_odd_for_three_axes_is_refused(head_dim):
    with pytest.raises(ValueError, match=f"an even head size of 6 or more, got {head_dim}"):
        split_axes(head_dim)


def test_the_angles_of_a_token_are_those_worked_out_by_hand():
    table = rotations(torch.tensor([[3, 5, 7]]), (4, 2, 2), theta=100.0)
    angles = [3 / 100 ** (0 / 4), 3 / 100 ** (2 / 4), 5.0, 7.0]
    expected = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    assert torch.allclose(table[0], expected, rtol=0, atol=1e-7)


def test_one_quarter_turn_takes_the_first_half_of_a_head_into_the_second():
    table = torch.tensor([[[0.0, 1.0]] * 3])
    x = torch.arange(6.0).reshape(1, 1, 6)
    assert rotate(x, table).flatten().tolist() == [-3.0, -4.0, -5.0, 0.0, 1.0, 2.0]


@some
@given(POSITION, POSITION, st.integers(0, 500), seeds)
def test_a_score_depends_on_the_distance_of_two_tokens_not_on_where_they_are(a, b, shift, seed):
    q, k = noise(seed, 1, 2, 12), noise(seed + 1, 1, 2, 12)

    def score(offset):
        at = torch.tensor([a, b]) + offset
        table = rotations(at, split_axes(12), 1000.0)
        return (rotate(q, table[:1]) * rotate(k, table[1:])).sum(-1)

    # The table is fp32: every cosine is good to 6e-8, and a score sums twelve products of numbers of size one.
    assert torch.allclose(score(0), score(shift), rtol=0, atol=1e-5)


@some
@given(POSITION, seeds)
def test_a_rotation_keeps_lengths_and_dtype_and_position_zero_changes_nothing(position, seed):
    x = noise(seed, 1, 3, 8)
    turned = rotate(x, rotations(torch.tensor([position]), (4, 2, 2), 1000.0))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6)
    assert torch.equal(rotate(x, rotations(torch.zeros(1, 3, dtype=torch.int64), (4, 2, 2), 1000.0)), x)
    assert rotate(x.bfloat16(), rotations(torch.tensor([position]), (4, 2, 2), 10.0)).dtype == torch.bfloat16
