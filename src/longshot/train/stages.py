"""The recipe of the tiny base: which stage starts from what."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from longshot.bases.native import NativeBase, tiny
from longshot.data.shards import ShardDataset
from longshot.errors import UserError
from longshot.train.config import STAGES, StageConfig
from longshot.train.loop import WEIGHTS, Trainer
from longshot.train.parallel import Ranks
from longshot.train.puppets import StreamConfig
from longshot.train.shards import ShardStream, check_base

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
    _run(out, _configs(stage, steps), init, workers, device, checkpoint_seconds)


def train_shards(
    out: Path,
    shards: Path,
    stage: str,
    steps: int | None,
    init: Path | None,
    budget: int,
    packs: int,
    workers: int,
    device: str,
    checkpoint_seconds: float,
) -> None:
    """The same stages on scenes out of shards. Raises UserError also when those were made for a base of other sizes."""
    dataset = ShardDataset(shards)
    configs = _configs(stage, steps)
    base = _start(out, next(iter(configs)), init)
    check_base(shards, dataset.base, base.spec)
    stream = ShardStream(str(shards), dataset.fingerprint(), budget, packs)
    stored = {name: on_shards(config, stream) for name, config in configs.items()}
    _run(out, stored, init, workers, device, checkpoint_seconds)


def on_shards(config: StageConfig, shards: ShardStream) -> StageConfig:
    """A stage of the puppet world with its scenes out of shards; whole scenes and single shots mix as there."""
    drawn = config.stream
    if not isinstance(drawn, StreamConfig):
        raise TypeError("a stage of the puppet world is asked for")
    stream = replace(
        shards,
        single=1.0 if drawn.shots[1] == 1 else drawn.single,
        image=drawn.image,
        drop_text=drawn.drop_text,
        drop_global=drawn.drop_global,
    )
    return replace(config, stream=stream, attributes=0.0)  # only drawn scenes know their attributes


def _configs(stage: str, steps: int | None) -> dict[str, StageConfig]:
    names = list(STAGES) if stage == "all" else [stage]
    return {name: STAGES[name]() if steps is None else STAGES[name](steps) for name in names}


def _run(
    out: Path,
    configs: Mapping[str, StageConfig],
    init: Path | None,
    workers: int,
    device: str,
    checkpoint_seconds: float,
) -> None:
    ranks = Ranks.from_torchrun()
    if ranks.count > 1:
        torch.set_num_threads(1)
    for place, (name, config) in enumerate(configs.items()):
        base = _start(out, name, init if place == 0 else None).to(device)
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
