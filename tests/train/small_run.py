"""A training run in a process of its own: `small_run.py FOLDER STEPS`, for tests that kill or interrupt it."""

import sys
from dataclasses import replace
from pathlib import Path

from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig
from longshot.model.mmdit import MMDiTConfig
from longshot.train.config import StageConfig
from longshot.train.loop import Trainer
from longshot.train.puppets import StreamConfig

STREAM = StreamConfig(scenes=2, single=0.5, shots=(2, 2), frames=(4,))


def stage(steps: int) -> StageConfig:
    return StageConfig("test", steps, STREAM, warmup=2, lr=3e-3, decay=0.3, attributes=0.05)


def tiny_base(width: int = 24, depth: int = 1) -> NativeBase:
    sizes = MMDiTConfig(
        TINY_SPEC.channels, text_dim=128, width=width, depth=depth, heads=2, cond_width=8, text_depth=1
    )
    return NativeBase.fresh(NativeConfig(replace(TINY_SPEC, name="small"), sizes))


if __name__ == "__main__":
    trainer = Trainer(tiny_base(), stage(int(sys.argv[2])), Path(sys.argv[1]))
    trainer.run(workers=1, checkpoint_seconds=0, on_step=lambda row: print(row["step"], flush=True))
