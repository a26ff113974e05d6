"""Invariant 6: two processes that share a run give the loss and gradients of one."""

import pytest
import torch
import torch.multiprocessing
import two_ranks
from two_ranks import STAGE, loss_and_gradients, small_base

from longshot.layout import VISIBILITIES
from longshot.train.loop import Trainer


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two real processes returned for every job, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(two_ranks.main, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(found, expected):
    """float64, but noise levels and rotation tables are fp32 and sums run in another order."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("way", ["data", "sharded"])
def test_two_ranks_that_share_the_scenes_give_the_loss_and_gradients_of_one(results, way):
    expected = loss_and_gradients(small_base())
    for rank in (0, 1):
        assert_same(results[rank][way], expected)


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_two_ranks_that_share_each_sequence_give_the_loss_and_gradients_of_one(results, visibility):
    expected = loss_and_gradients(small_base(), visibility)
    for rank in (0, 1):
        assert_same(results[rank][f"context {visibility}"], expected)


def test_a_shared_sequence_goes_with_sharded_weights(results):
    assert_same(results[0]["context sharded"], loss_and_gradients(small_base(), "causal"))


def test_a_shared_sequence_goes_with_any_kernel_and_with_recomputed_activations(results):
    assert_same(results[0]["context dense"], loss_and_gradients(small_base(), "causal"))
    assert_same(results[0]["context recomputed"], loss_and_gradients(small_base(), "scene"))


def test_the_gradients_that_are_compared_are_not_zero():
    for name, gradient in loss_and_gradients(small_base()).items():
        if not name.startswith("blocks.1.text"):  # nothing reads what the last block makes of the text
            assert gradient.abs().max() > 1e-9, name


def test_heads_that_cannot_be_shared_evenly_are_named(results):
    message = bytes(results[0]["three heads"]["message"].tolist()).decode()
    assert message.startswith("3 heads can't be shared by 2 context-parallel processes")


def test_a_run_of_two_ranks_makes_the_weights_of_a_run_of_one(results, tmp_path):
    one = Trainer(small_base(torch.float32), STAGE, tmp_path, None)
    one.run(workers=0, until=2)
    for rank in (
        0,
        1,
    ):  # fp32 sums in another order, through two steps of Adam, which divides by small numbers
        torch.testing.assert_close(
            results[rank]["trainer"], dict(one.base.network.state_dict()), rtol=1e-3, atol=1e-5
        )
