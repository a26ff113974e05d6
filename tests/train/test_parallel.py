"""Invariant 6: two processes that share a run give the loss and gradients of one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
import two_ranks
from two_ranks import REFINING, STAGE, loss_and_gradients, small_base

from commands import done
from longshot.bases.tune import LoraConfig
from longshot.errors import UserError
from longshot.layout import VISIBILITIES
from longshot.train.loop import ADAPTER, Trainer
from longshot.train.parallel import Ranks, share_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder, alone):
    """What two real processes returned for every job, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks.main, (folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_what_ends_well_leaves_its_process_group(results, folder):
    """A process that ends inside one may abort when all its work is done, while threads of gloo still run."""
    assert [(folder / f"{rank} parted").read_text() for rank in (0, 1)] == ["True", "True"]


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


def test_a_weight_that_only_one_rank_uses_gets_its_gradient_on_both(results):
    for rank in (0, 1):
        found = results[rank]["some take no part"]
        assert {name: g.tolist() for name, g in found.items()} == {"both": [2.0] * 3, "second": [1.0] * 3}


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


WAYS = ["ddp", "fsdp", "ulysses", "fsdp+ulysses"]


def same_weights(found, expected):
    """fp32 sums in another order, through steps of Adam, which divides by small numbers."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(folder):
    """A run of one process, stopped after two steps in `folder / one`, and then its end: the weights of both."""
    weights = []
    for out, until in ((folder / "one", 2), (folder / "whole", 4)):
        one = Trainer(small_base(torch.float32), STAGE, out)
        one.run(workers=0, until=until)
        weights.append({name: p.detach().clone() for name, p in one.network.named_parameters()})
    return weights


@pytest.mark.parametrize("way", WAYS)
def test_a_run_of_two_ranks_makes_the_weights_of_a_run_of_one(results, alone, way):
    for rank in (0, 1):
        same_weights(results[rank]["trainer" if way == "ddp" else f"trainer, {way}"], alone[0])


def test_two_ranks_train_a_refiner_as_one_does(results, tmp_path):
    before = {n: p.detach().clone() for n, p in small_base(torch.float32).network.named_parameters()}
    one = Trainer(small_base(torch.float32), REFINING, tmp_path)
    one.run(workers=0, until=2)
    expected = {name: p.detach() for name, p in one.network.named_parameters()}
    moved = {name for name, p in expected.items() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("refiner.") for name in moved)
    for way in WAYS:
        for rank in (0, 1):
            same_weights(results[rank][f"refiner, {way}"], expected)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_run_of_one_process_goes_on_in_two_and_the_other_way_round(results, alone, folder, way):
    same_weights(results[0][f"resumed, {way}"], alone[1])
    one = Trainer(small_base(torch.float32), STAGE, folder / way)
    assert one.step == 2
    one.run(workers=0)
    same_weights(dict(one.network.named_parameters()), alone[1])


def test_a_lora_is_trained_over_sharded_weights(results, tmp_path):
    one = Trainer(small_base(torch.float32), STAGE, tmp_path, lora=LoraConfig(2))
    one.run(workers=0, until=2)
    same_weights(results[0]["trainer, lora"], dict(one.network.named_parameters()))
    assert (tmp_path / ADAPTER).is_file()


def test_what_context_parallelism_cannot_do_is_said_in_one_line(tmp_path):
    two = Ranks(0, 2)
    with pytest.raises(UserError, match="give --attributes 0"):
        Trainer(small_base(), replace(STAGE, attributes=0.1), tmp_path, two, parallel="ulysses")
    with pytest.raises(UserError, match="3 heads can't be shared by 2 processes"):
        share_out(small_base(heads=3), "ulysses", two)


def test_torchrun_trains_with_sharded_weights_and_one_process_goes_on(tmp_path):
    """As a person starts it: two processes of `longshot train` that meet through torchrun."""
    small_base(torch.float32).save(tmp_path / "small.safetensors")
    order = ["train", "puppets", "--stage", "causal", "--out", str(tmp_path / "run"), "--workers", "0"]
    order += ["--init", str(tmp_path / "small.safetensors")]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    two = subprocess.run(
        [*run, "longshot", *order, "--steps", "1", "--parallel", "fsdp"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stderr
    done(*order, "--steps", "2")
    log = (tmp_path / "run/causal/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
