"""Whether the loop learns at all."""

import torch
from small_run import STREAM, stage, tiny_base

from longshot.train.loop import Trainer, batch_loss, collate, draw_noise
from longshot.train.puppets import PuppetSteps


def test_sixty_steps_on_one_example_learn_it(tmp_path):
    base, config = tiny_base(width=48, depth=2), stage(steps=60)
    examples = PuppetSteps(STREAM, seed=5)[0]
    batch = collate(base, examples)
    sigma, eps = draw_noise(batch.layout, base.spec.channels, config, 10_000, range(len(examples)))

    @torch.no_grad()
    def loss() -> float:
        return float(batch_loss(base, batch, sigma, eps, "scene").flow)

    trainer = Trainer(base, config, tmp_path)
    before = loss()
    for _ in range(60):
        trainer.train_step(examples)
    assert loss() < 0.35 * before  # a quarter, at noise that training never saw
