"""The order of training: each scene once an epoch, the same for any number of workers and ranks, and from any step on."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot.data.loader import Draw, TokenBuckets, epoch_packs
from longshot.errors import UserError

counts = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(counts, st.integers(0, 9), st.integers(0, 3), st.integers(50, 200))
def test_an_epoch_has_every_scene_once_in_packs_that_fit(tokens, seed, epoch, budget):
    packs = epoch_packs(tokens, seed, epoch, budget)
    assert sorted(i for pack in packs for i in pack) == list(range(len(tokens)))
    assert all(0 < sum(tokens[i] for i in pack) <= budget for pack in packs)


@given(counts, st.sampled_from([1, 2, 4, 6]), st.integers(0, 5))
def test_a_step_is_the_same_for_any_number_of_ranks(tokens, packs, start):
    whole = TokenBuckets(tokens, 3, 60, packs)
    for ranks in (r for r in (1, 2, 3, 6) if packs % r == 0):
        shares = [TokenBuckets(tokens, 3, 60, packs) for _ in range(ranks)]
        for step in range(start, start + 3):
            draws = [d for r, share in enumerate(shares) for d in share.draws(step, r, ranks)]
            assert sorted(draws, key=lambda d: d.place) == whole.draws(step)
            assert all(share.draws(step, r, ranks) for r, share in enumerate(shares))


@given(counts, st.integers(1, 4), st.integers(0, 40))
def test_a_run_goes_on_from_any_step_without_having_seen_those_before(tokens, packs, step):
    straight = TokenBuckets(tokens, 5, 64, packs)
    for k in range(step):
        straight.draws(k)
    resumed = TokenBuckets(tokens, 5, 64, packs)
    assert resumed.draws(step) == straight.draws(step)
    assert resumed.position(step) == straight.position(step)


@given(counts, st.integers(1, 4))
def test_the_steps_of_three_epochs_show_each_scene_three_times_and_none_a_fourth(tokens, packs):
    buckets = TokenBuckets(tokens, 1, 70, packs)
    seen: list[Draw] = []
    for step in itertools.count():
        if buckets.position(step)[0] >= 3:
            break
        seen += buckets.draws(step)
    for epoch in range(3):
        assert sorted(d.scene for d in seen if d.epoch == epoch) == list(range(len(tokens)))
    late = [d for d in seen if d.epoch == 3]  # a step may reach into the next epoch
    assert len({d.scene for d in late}) == len(late)


def test_a_position_counts_the_packs_of_its_epoch():
    buckets = TokenBuckets([10] * 10, 0, 20, packs=2)  # five packs an epoch
    assert [buckets.position(k) for k in range(6)] == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (2, 0)]
    assert [d.epoch for d in buckets.draws(2)] == [0, 0, 1, 1]


def test_seeds_and_epochs_order_differently():
    tokens = [1] * 200
    orders = [np.concatenate(epoch_packs(tokens, s, e, 10)) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_packs_are_full_and_hold_scenes_of_similar_length():
    tokens = np.random.default_rng(0).integers(100, 5000, 20_000).tolist()
    packs = epoch_packs(tokens, 0, 0, 20_000)
    fill = np.mean([sum(tokens[i] for i in pack) / 20_000 for pack in packs])
    spread = np.mean([max(tokens[i] for i in p) / min(tokens[i] for i in p) for p in packs])
    assert fill > 0.9 and spread < 1.1


def test_a_scene_longer_than_the_budget_is_named():
    with pytest.raises(
        UserError, match="scene number 1 has 99 tokens, more than the 64 of a pack; use a budget of 99"
    ):
        TokenBuckets([10, 99], 0, 64).draws(0)


def test_ranks_that_cannot_share_a_step_are_refused():
    with pytest.raises(UserError, match="4 packs a step can't be shared evenly by 3 processes"):
        TokenBuckets([10], 0, 64, 4).draws(0, 0, 3)


@pytest.mark.parametrize(("tokens", "packs", "says"), [([], 1, "no scenes"), ([1], 0, "use 1 or more")])
def test_nothing_to_do_is_refused(tokens, packs, says):
    with pytest.raises(UserError, match=says):
        TokenBuckets(tokens, 0, 64, packs)
