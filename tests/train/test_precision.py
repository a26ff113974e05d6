"""Training in bf16: products are rounded, and nothing else is."""

from dataclasses import replace

import pytest
import torch
from small_run import STREAM, stage
from test_refine_stage import REFINING, same, with_refiner

from longshot.bases.native import NativeBase
from longshot.train.loop import Trainer
from longshot.train.puppets import PuppetSteps

STAGES = [stage(4), replace(REFINING, steps=4), replace(stage(4), worn=1.0)]


@pytest.mark.parametrize("config", STAGES, ids=["transformer", "refiner", "transformer, worn"])
def test_the_loss_and_gradients_are_those_of_fp32_within_rounding_and_weights_stay_fp32(config, tmp_path):
    rows, weights, learned = {}, {}, {}
    for precision in ("fp32", "bf16"):
        trainer = Trainer(with_refiner(), replace(config, precision=precision), tmp_path / precision)
        rows[precision] = trainer.train_step(PuppetSteps(STREAM, seed=5)[0])
        learned[precision] = {k for k, p in trainer.network.named_parameters() if p.grad is not None}
        weights[precision] = {k: p.detach() for k, p in trainer.network.named_parameters()}
        moments = [v for state in trainer.optimizer.state.values() for v in state.values()]
        assert {v.dtype for v in (*weights[precision].values(), *moments)} == {torch.float32}
    exact, rounded = rows["fp32"], rows["bf16"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.05)
    # Passes without gradients come first in one autocast, whose casts of weights must not be taken for the learning pass.
    assert learned["bf16"] == learned["fp32"]
    # Rounded gradients move weights otherwise.
    assert any(not torch.equal(weights["bf16"][k], w) for k, w in weights["fp32"].items())


def test_a_run_in_bf16_goes_on_bit_for_bit(tmp_path):
    config = replace(stage(4), precision="bf16")
    straight = Trainer(with_refiner(), config, tmp_path / "straight").run(workers=0)
    Trainer(with_refiner(), config, tmp_path / "halved").run(workers=0, until=2)
    halved = Trainer(with_refiner(), config, tmp_path / "halved").run(workers=0)
    assert same(*(NativeBase.load(path).network.state_dict() for path in (straight, halved)))
