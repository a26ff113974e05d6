"""The training loop: batch -> noise levels -> velocity -> loss, the same for every stage."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longshot.bases.native import NativeBase, check_shapes
from longshot.errors import UserError
from longshot.files import write_text
from longshot.flow import add_noise, flow_loss, per_token, velocity
from longshot.layout import GLOBAL, Group, Layout, Visibility, global_group
from longshot.train.attributes import DEPTH, AttributeReaders
from longshot.train.checkpoint import TrainingState
from longshot.train.config import StageConfig
from longshot.train.parallel import Ranks
from longshot.train.puppets import Example, stream
from longshot.train.shards import StoredExample

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
MAY_CHANGE = ("steps", "decay", "stream.folder")
"""Settings that a run may be gone on with otherwise: its length, and where the same shards lie."""


@dataclass(frozen=True)
class Batch:
    """A packed training batch: clean latents, the prompt of each group, where every token is, and what it was made of."""

    z_0: Tensor
    prompts: tuple[str, ...]
    layout: Layout
    examples: tuple[Example | StoredExample, ...]


def collate(base: NativeBase, examples: Sequence[Example | StoredExample]) -> Batch:
    """Packs examples; a scene without a global prompt has no group 0, so that one shot alone is the single-shot model."""
    scenes, latents, prompts = [], [], []
    for example in examples:
        groups = []
        if example.global_prompt:
            groups.append(global_group(len(base.tokenise(example.global_prompt))))
            latents.append(torch.zeros(1, base.spec.channels, device=base.device))
            prompts.append(example.global_prompt)
        shots = zip(example.latents(base), example.prompts, strict=True)
        for k, ((z, grid), prompt) in enumerate(shots, start=1):
            groups.append(Group(k, len(base.tokenise(prompt)), grid))
            latents.append(z)
            prompts.append(prompt)
        scenes.append(tuple(groups))
    layout = Layout(tuple(scenes), rope=base.spec.rope)
    return Batch(torch.cat(latents), tuple(prompts), layout, tuple(examples))


def draw_noise(
    layout: Layout, channels: int, config: StageConfig, step: int, indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Noise levels [groups] and noise [video, channels] of a packed batch whose scenes are examples `indices` of a step.

    An example's noise depends on (seed, step, index) alone, so it is the same on any number of ranks.
    """
    sigmas, noises = [], []
    for groups, index in zip(layout.scenes, indices, strict=True):
        generator = torch.Generator().manual_seed(((config.seed * 1_000_003 + step) << 16) + index)
        scene = Layout.single(*groups)
        sigmas.append(config.sigma(scene, generator))
        for g in groups:
            noise = torch.randn(g.video, channels, generator=generator)
            noises.append(noise if g.shot != GLOBAL else torch.zeros_like(noise))
    return torch.cat(sigmas), torch.cat(noises)


@dataclass(frozen=True)
class BatchLoss:
    """flow: the loss of a batch (LCT sec. 3.2.2). each: every group's part of it. attributes: the auxiliary loss, or 0."""

    flow: Tensor
    each: Tensor
    attributes: Tensor


def batch_loss(
    base: NativeBase,
    batch: Batch,
    sigma: Tensor,
    eps: Tensor,
    visibility: Visibility,
    readers: AttributeReaders | None = None,
) -> BatchLoss:
    """The losses of a batch at given noise."""
    texts = base.encode_text(batch.prompts)
    z_t = add_noise(batch.z_0, eps, per_token(sigma, batch.layout))
    features: list[Tensor] | None = None if readers is None else []
    v_hat = base.velocity(
        z_t, torch.cat(texts), sigma, batch.layout, visibility, keep=None, features=features
    )
    weighted = sigma if base.config.network.predicts == "clean" else None
    flow, each = flow_loss(v_hat, velocity(batch.z_0, eps), batch.layout, weighted)
    attributes = torch.zeros((), device=flow.device)
    if readers is not None and features:
        middle = features[round(DEPTH * len(features)) - 1]
        attributes = readers(batch.examples, texts, middle, batch.layout, base)
    return BatchLoss(flow, each, attributes)


def make_optimizer(modules: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW over all weights; only matrices decay."""
    matrices = [p for p in modules.parameters() if p.ndim >= 2]
    vectors = [p for p in modules.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))


def lr_factor(step: int, config: StageConfig) -> float:
    """The share of the peak learning rate at a step: linear warm-up, constant, linear decay to 0."""
    decay_steps = max(int(config.decay * config.steps), 1)
    return max(min((step + 1) / max(config.warmup, 1), 1.0, (config.steps - step) / decay_steps), 0.0)


@contextmanager
def deferred_interrupt() -> Generator[Callable[[], bool]]:
    """Yields a question: has Ctrl-C been pressed? The first time only sets the answer; the second time interrupts at once.

    Only the main thread can take the signal over; elsewhere the answer stays no.
    """
    pressed = threading.Event()

    def handler(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Trainer:
    """One stage of one run in one folder: `log.jsonl`, `checkpoint.safetensors`, and at the end `weights.safetensors`.

    A folder that holds a checkpoint is gone on with, bit for bit: examples and noise are functions of (seed, step). Raises
    UserError when the checkpoint was made by other settings, or a step has too few scenes for the ranks.
    """

    def __init__(self, base: NativeBase, config: StageConfig, folder: Path, ranks: Ranks | None = None):
        self.base, self.config, self.folder = base, config, Path(folder)
        self.ranks = ranks or Ranks()
        self.steps = config.stream.steps(config.seed, self.ranks.rank, self.ranks.count)
        self.folder.mkdir(parents=True, exist_ok=True)
        base.network.train().requires_grad_(True)
        self.readers = None
        if config.attributes:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.readers = AttributeReaders(base.config.network.width).to(base.device)
        parts = {"network": base.network} | ({"readers": self.readers} if self.readers else {})
        self.modules = nn.ModuleDict(parts)
        self.optimizer = make_optimizer(self.modules, config)
        self.average = {k: v.detach().clone() for k, v in base.network.state_dict().items()}
        self.step = 0
        self.whole = True  # whether weights, average and optimizer are all those of `step`
        if (self.folder / CHECKPOINT).exists():
            self.resume(TrainingState.load(self.folder / CHECKPOINT))

    def resume(self, state: TrainingState) -> None:
        """Takes over a saved state. Raises UserError when it was made by another config (other than `MAY_CHANGE`)."""
        mine, theirs = (_settings(json.loads(json.dumps(c))) for c in (self.config.to_json(), state.config))
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key) and key not in MAY_CHANGE:
                raise UserError(
                    f"{self.folder / CHECKPOINT}: was trained with {key}={theirs.get(key)!r}, not {mine.get(key)!r}; "
                    "use another folder or the same settings"
                )
        check_shapes(self.folder / CHECKPOINT, self.modules.state_dict(), state.weights)
        self.modules.load_state_dict(state.weights, strict=True)
        self.average = {k: v.to(self.base.device) for k, v in state.average.items()}
        self.optimizer.load_state_dict(state.optimizer)
        self.step = state.step

    def save(self) -> None:
        """Writes the checkpoint of the current step."""
        TrainingState(
            self.step,
            self.config.to_json(),
            self.modules.state_dict(),
            self.average,
            self.optimizer.state_dict(),
        ).save(self.folder / CHECKPOINT)

    def train_step(self, examples: Sequence[Example | StoredExample]) -> dict[str, float]:
        """One optimizer step; noise depends on (seed, step) alone. Returns what the log holds."""
        config, network, ranks = self.config, self.base.network, self.ranks
        factor = lr_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        batch = collate(self.base, examples)
        indices = self.steps.places(self.step)
        sigma, eps = (
            x.to(self.base.device)
            for x in draw_noise(batch.layout, self.base.spec.channels, config, self.step, indices)
        )
        loss = batch_loss(self.base, batch, sigma, eps, config.visibility, self.readers)
        num_shots = sum(g.shot != GLOBAL for g in batch.layout.groups)
        share = num_shots / ranks.sum(torch.tensor(float(num_shots))).item()
        ((loss.flow + config.attributes * loss.attributes) * share).backward()
        ranks.sum_gradients(self.modules)
        norm = nn.utils.clip_grad_norm_(self.modules.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        for k, v in network.state_dict().items():
            self.average[k].lerp_(v, 1 - keep)
        noisy = sigma > 0.5
        return {
            "step": self.step,
            "loss": ranks.sum(loss.flow.detach() * share).item(),
            "loss_noisy": (loss.each[noisy].mean() if noisy.any() else loss.flow).item(),
            "loss_attributes": ranks.sum(loss.attributes.detach() * share).item(),
            "grad_norm": float(norm),
            "lr": config.lr * factor,
            "tokens": len(batch.layout.queries),
        }

    def run(
        self,
        workers: int = 1,
        checkpoint_seconds: float = 180,
        until: int | None = None,
        on_step: Callable[[dict[str, float]], None] | None = None,
    ) -> Path:
        """Trains to the end (or to step `until`), saving every `checkpoint_seconds`; returns the averaged weights' file.

        Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; the same call goes on from there.
        """
        stop = min(self.config.steps, until or self.config.steps)
        try:
            self._steps(stop, workers, checkpoint_seconds, on_step)
        except KeyboardInterrupt:
            if self.whole:
                self._save_on_rank_0()
                log.warning(
                    "%s: stopped at step %d of %d and saved; the same command goes on from there",
                    self.folder,
                    self.step,
                    self.config.steps,
                )
            raise
        self._save_on_rank_0()
        if self.ranks.rank == 0:
            self.export()
        return self.folder / WEIGHTS

    def _steps(
        self,
        stop: int,
        workers: int,
        checkpoint_seconds: float,
        on_step: Callable[[dict[str, float]], None] | None,
    ) -> None:
        saved = start = time.monotonic()
        if self.ranks.rank == 0:
            half_written = self.folder.glob(f".{Path(CHECKPOINT).stem}.*")  # by a process that was killed
            for path in half_written:
                path.unlink()
            write_text(self.folder / "config.json", json.dumps(self.config.to_json(), indent=1))
        with self._log().open("a") as lines, deferred_interrupt() as interrupted:
            for examples in stream(self.steps, self.step, stop, workers):
                self.whole = False
                row = self.train_step(examples)
                self.whole = True
                row["seconds"] = round(time.monotonic() - start, 2)
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                if on_step:
                    on_step(row)
                if self.ranks.any(interrupted()):
                    raise KeyboardInterrupt
                if time.monotonic() - saved > checkpoint_seconds:
                    self._save_on_rank_0()
                    saved = time.monotonic()

    def _save_on_rank_0(self) -> None:
        if self.ranks.rank == 0:
            self.save()

    def _log(self) -> Path:
        """The log, without the steps after the checkpoint, which will be made again, and without a half-written line."""
        path = self.folder / self.ranks.named("log.jsonl")
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_text(path, "".join(kept))
        return path

    def export(self) -> None:
        """Writes the averaged weights as a base that `load_base` opens."""
        live = {k: v.detach().clone() for k, v in self.base.network.state_dict().items()}
        self.base.network.load_state_dict(self.average)
        self.base.save(self.folder / WEIGHTS, torch.float32)
        self.base.network.load_state_dict(live)


def _settings(config: dict, prefix: str = "") -> dict:
    """A nested config as one level of `outer.inner` keys."""
    flat = {}
    for key, value in config.items():
        flat |= _settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
