"""The recipe of the tiny base: which stage starts from what."""

import sys
from pathlib import Path

import torch
from rich.console import Console

from longshot.bases.native import NativeBase, tiny
from longshot.errors import UserError
from longshot.train.config import STAGES
from longshot.train.loop import WEIGHTS, Trainer
from longshot.train.parallel import Ranks

REPORT_EVERY = 20


def train_puppets(
    out: Path,
    stage: str,
    steps: int | None,
    init: Path | None,
    workers: int,
    device: str,
    checkpoint_seconds: float,
) -> None:
    """Runs one stage or all three in `out`, one folder a stage. Raises UserError where a stage has nothing to start from."""
    names = list(STAGES) if stage == "all" else [stage]
    ranks = Ranks.from_torchrun()
    if ranks.count > 1:
        torch.set_num_threads(1)
    for name in names:
        config = STAGES[name]() if steps is None else STAGES[name](steps)
        base = _start(out, name, init if name == names[0] else None).to(device)
        trainer = Trainer(base, config, out / name, ranks)
        if trainer.step >= config.steps:
            continue
        trainer.run(workers, checkpoint_seconds, on_step=_reporter(name, config.steps, ranks.rank))


def _start(out: Path, stage: str, init: Path | None) -> NativeBase:
    if init is not None:
        return NativeBase.load(init)
    order = list(STAGES)
    if stage == order[0]:
        return NativeBase.fresh(tiny())
    before = out / order[order.index(stage) - 1] / WEIGHTS
    if not before.exists():
        raise UserError(
            f"{before}: stage {stage} starts from these weights; train the stage before it, or give --init"
        )
    return NativeBase.load(before)


def _reporter(stage: str, steps: int, rank: int):
    console, losses = Console(file=sys.stderr), []

    def report(row: dict[str, float]) -> None:
        losses.append(row["loss"])
        if rank == 0 and (row["step"] % REPORT_EVERY == 0 or row["step"] == steps):
            mean = sum(losses[-REPORT_EVERY:]) / len(losses[-REPORT_EVERY:])
            console.print(
                f"{stage} step {row['step']}/{steps} loss {mean:.4f} after {row['seconds']:.0f} s",
                highlight=False,
            )

    return report
