"""The recipe of the tiny base, and LoRAs over any base: which stage starts from what."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from longshot.bases import is_native, load_base, load_spec
from longshot.bases.base import Base
from longshot.bases.lora import load_adapters
from longshot.bases.native import NativeBase, read_config, tiny
from longshot.bases.tune import LoraConfig
from longshot.data.shards import ShardDataset
from longshot.errors import UserError
from longshot.train.config import STAGES, Precision, StageConfig
from longshot.train.loop import WEIGHTS, Trainer
from longshot.train.parallel import Parallel, Ranks
from longshot.train.puppets import StreamConfig
from longshot.train.shards import ShardStream, check_base, features_for

REPORT_EVERY = 20
LARGE = 1_000_000_000
"""Parameters from which on activations are made again rather than kept."""


@dataclass(frozen=True)
class Order:
    """What is to be trained, and how. See `longshot train`.

    stage: one of `STAGES`, or all. init: weights that the first stage starts from; of a LoRA, another one that is merged into the
    base before. steps, lr, attributes, precision: instead of the recipe's. lora: the rank of a LoRA over `base`, 0 to train all
    weights.
    recompute: whether a pretrained base's activations are made again in the backward pass, auto where it is large.
    """

    out: Path
    stage: str = "all"
    steps: int | None = None
    init: str | None = None
    workers: int = 1
    device: str = "cpu"
    checkpoint_seconds: float = 180
    lr: float | None = None
    attributes: float | None = None
    precision: Precision | None = None
    lora: int = 0
    base: str = "tiny"
    parallel: Parallel = "ddp"
    recompute: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self):
        if self.lora < 0:
            raise UserError(f"--lora {self.lora}: use a rank from 1 on")
        if self.lora and self.stage == "all":
            raise UserError(
                "--lora: is trained in one stage: give --stage lct, or --stage causal for sampling with a cache"
            )
        if self.lora and STAGES[self.stage]().learns == "refiner":
            raise UserError(f"--stage {self.stage}: trains a refiner of pixels, which a LoRA has no part in")
        if self.lora and self.stage == "lct-again":
            raise UserError(
                f"--stage {self.stage}: goes on from weights of stage causal; for a LoRA give --stage lct"
            )
        if not self.lora and self.recompute == "always":
            raise UserError("--recompute always: is for a LoRA over a pretrained base; give --lora RANK")
        if not self.lora and self.base != "tiny":
            raise UserError(
                f"--base {self.base}: names what a LoRA is trained over; give --lora RANK, or --init"
            )

    def configs(self) -> dict[str, StageConfig]:
        """The stages, by name."""
        names = list(STAGES) if self.stage == "all" else [self.stage]
        made = {name: STAGES[name]() if self.steps is None else STAGES[name](self.steps) for name in names}
        if self.lora:
            made = {name: replace(config, attributes=0.0) for name, config in made.items()}
        changed = {"lr": self.lr, "attributes": self.attributes, "precision": self.precision}
        told = {key: value for key, value in changed.items() if value is not None}
        return {name: replace(config, **told) for name, config in made.items()}

    def recomputes(self, base: Base) -> bool:
        """Whether a base's activations are to be made again. Raises UserError for a native base, which keeps them."""
        if isinstance(base, NativeBase):
            if self.recompute == "always":
                raise UserError(
                    f"--recompute always: is for pretrained bases; {self.base} keeps its activations"
                )
            return False
        network = getattr(base, "network")  # noqa: B009 - every base has one
        is_large = sum(p.numel() for p in network.parameters()) >= LARGE
        return self.recompute == "always" or (self.recompute == "auto" and is_large)

    def start(self, stage: str, is_first: bool = True, read_text: bool = True) -> Base:
        """What a stage starts from. read_text: see `load_base`. Raises UserError where there is nothing."""
        if self.lora:
            which = "causal" if stage == "causal" else "bidirectional"
            base = load_base(self.base, which, read_text=read_text)
            if self.init is not None:
                load_adapters(base, [self.init])
            if self.recomputes(base):
                getattr(base, "recompute")()  # noqa: B009 - every pretrained base has it
            return base
        if self.init is not None and is_first:
            return NativeBase.load(Path(self.init))
        order = list(STAGES)
        if stage == order[0]:
            return NativeBase.fresh(tiny())
        before = self.out / order[order.index(stage) - 1] / WEIGHTS
        if not before.exists():
            raise UserError(
                f"{before}: stage {stage} starts from these weights; train the stage before it, or give --init"
            )
        return NativeBase.load(before)


def train_puppets(order: Order) -> None:
    """Runs one stage or all of them in the order's folder, one folder a stage. Raises UserError where there is nothing to start
    from, and for a base that isn't of the puppet world."""
    if order.lora and not is_native(order.base):
        raise UserError(f"--base {order.base}: the puppets are drawn for native bases; train from shards")
    _run(order, order.configs())


def train_shards(order: Order, shards: Path, budget: int, packs: int) -> None:
    """The same stages on scenes out of shards. Raises UserError also when those were made for a base of other sizes."""
    dataset = ShardDataset(shards)
    configs = order.configs()
    spec = load_spec(order.base) if order.lora else order.start(next(iter(configs))).spec
    check_base(shards, dataset.base, spec)
    features = features_for(shards, dataset.base, order.base, spec) if order.lora else None
    stream = ShardStream(str(shards), dataset.fingerprint(), budget, packs, features=features)
    _run(order, {name: on_shards(config, stream) for name, config in configs.items()})


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


def _run(order: Order, configs: Mapping[str, StageConfig]) -> None:
    refines = any(config.learns == "refiner" for config in configs.values())
    if refines and order.init is not None and not read_config(Path(order.init)).network.refiner_width:
        raise UserError(
            f"{order.init}: has no pixel refiner to train; give the other stages one by one, each with --init"
        )
    with Ranks.from_torchrun() as ranks:
        if ranks.count > 1:
            torch.set_num_threads(1)
        for place, (name, config) in enumerate(configs.items()):
            reads = not (isinstance(config.stream, ShardStream) and config.stream.features)
            base = order.start(name, place == 0, reads).to(order.device)
            lora = LoraConfig(order.lora, base.fingerprint()) if order.lora else None
            trainer = Trainer(base, config, order.out / name, ranks, lora, order.parallel)
            if trainer.step < config.steps:
                report = _reporter(name, config.steps, ranks.rank)
                trainer.run(order.workers, order.checkpoint_seconds, on_step=report)


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
