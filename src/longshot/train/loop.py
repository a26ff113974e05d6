"""The training loop: batch -> noise levels -> velocity -> loss, the same for every stage."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longshot.bases.native import NativeBase
from longshot.errors import UserError
from longshot.files import write_text
from longshot.flow import add_noise, flow_loss, per_token, velocity
from longshot.layout import GLOBAL, Group, Layout, Visibility, global_group
from longshot.train.checkpoint import TrainingState
from longshot.train.config import StageConfig
from longshot.train.parallel import Ranks
from longshot.train.puppets import Example, PuppetSteps, stream

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Batch:
    """A packed training batch: clean latents, the prompt of each group, and where every token is."""

    z_0: Tensor
    prompts: tuple[str, ...]
    layout: Layout


def collate(base: NativeBase, examples: Sequence[Example]) -> Batch:
    """Packs examples; a scene without a global prompt has no group 0, so that one shot alone is the single-shot model."""
    scenes, latents, prompts = [], [], []
    for example in examples:
        groups = []
        if example.global_prompt:
            groups.append(global_group(len(base.tokenise(example.global_prompt))))
            latents.append(torch.zeros(1, base.spec.channels, device=base.device))
            prompts.append(example.global_prompt)
        for k, (frames, prompt) in enumerate(zip(example.shots, example.prompts, strict=True), start=1):
            z = base.encode(frames)
            length = max(len(frames), base.spec.min_frames)
            grid = base.spec.grid(length, frames.shape[2], frames.shape[1])
            groups.append(Group(k, len(base.tokenise(prompt)), grid))
            latents.append(z)
            prompts.append(prompt)
        scenes.append(tuple(groups))
    return Batch(torch.cat(latents), tuple(prompts), Layout(tuple(scenes), rope=base.spec.rope))


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


def batch_loss(
    base: NativeBase, batch: Batch, sigma: Tensor, eps: Tensor, visibility: Visibility
) -> tuple[Tensor, Tensor]:
    """The flow loss of a batch at given noise, and each group's part of it."""
    text = torch.cat(base.encode_text(batch.prompts))
    z_t = add_noise(batch.z_0, eps, per_token(sigma, batch.layout))
    v_hat = base.velocity(z_t, text, sigma, batch.layout, visibility)
    weighted = sigma if base.config.network.predicts == "clean" else None
    return flow_loss(v_hat, velocity(batch.z_0, eps), batch.layout, weighted)


def make_optimizer(network: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW over all weights; only matrices decay."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))


def lr_factor(step: int, config: StageConfig) -> float:
    """The share of the peak learning rate at a step: linear warm-up, constant, linear decay to 0."""
    decay_steps = max(int(config.decay * config.steps), 1)
    return max(min((step + 1) / max(config.warmup, 1), 1.0, (config.steps - step) / decay_steps), 0.0)


class Trainer:
    """One stage of one run in one folder: `log.jsonl`, `checkpoint.safetensors`, and at the end `weights.safetensors`."""

    def __init__(self, base: NativeBase, config: StageConfig, folder: Path, ranks: Ranks | None = None):
        self.base, self.config, self.folder = base, config, Path(folder)
        self.ranks = ranks or Ranks()
        self.folder.mkdir(parents=True, exist_ok=True)
        base.network.train().requires_grad_(True)
        self.optimizer = make_optimizer(base.network, config)
        self.average = {k: v.detach().clone() for k, v in base.network.state_dict().items()}
        self.step = 0
        if (self.folder / CHECKPOINT).exists():
            self.resume(TrainingState.load(self.folder / CHECKPOINT))

    def resume(self, state: TrainingState) -> None:
        """Takes over a saved state. Raises UserError when it was made by another config (other than its length)."""
        mine = json.loads(json.dumps(self.config.to_json()))
        for key in mine.keys() | state.config.keys():
            if mine.get(key) != state.config.get(key) and key not in ("steps", "decay"):
                raise UserError(
                    f"{self.folder / CHECKPOINT}: was trained with {key}={state.config.get(key)!r}, not {mine.get(key)!r}; "
                    "use another folder or the same settings"
                )
        self.base.network.load_state_dict(state.weights, strict=True)
        self.average = {k: v.to(self.base.device) for k, v in state.average.items()}
        self.optimizer.load_state_dict(state.optimizer)
        self.step = state.step

    def save(self) -> None:
        """Writes the checkpoint of the current step."""
        TrainingState(
            self.step,
            self.config.to_json(),
            self.base.network.state_dict(),
            self.average,
            self.optimizer.state_dict(),
        ).save(self.folder / CHECKPOINT)

    def train_step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimizer step; noise depends on (seed, step) alone. Returns what the log holds."""
        config, network, ranks = self.config, self.base.network, self.ranks
        factor = lr_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        batch = collate(self.base, examples)
        indices = range(ranks.rank, config.stream.scenes, ranks.count)
        sigma, eps = (
            x.to(self.base.device)
            for x in draw_noise(batch.layout, self.base.spec.channels, config, self.step, indices)
        )
        mean, each = batch_loss(self.base, batch, sigma, eps, config.visibility)
        num_shots = sum(g.shot != GLOBAL for g in batch.layout.groups)
        share = num_shots / ranks.sum(torch.tensor(float(num_shots))).item()
        (mean * share).backward()
        ranks.sum_gradients(network)
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        for k, v in network.state_dict().items():
            self.average[k].lerp_(v, 1 - keep)
        noisy = sigma > 0.5
        return {
            "step": self.step,
            "loss": ranks.sum(mean.detach() * share).item(),
            "loss_noisy": (each[noisy].mean() if noisy.any() else mean).item(),
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
        """Trains to the end (or to step `until`), saving every `checkpoint_seconds`; returns the averaged weights' file."""
        stop = min(self.config.steps, until or self.config.steps)
        steps = PuppetSteps(self.config.stream, self.config.seed, self.ranks.rank, self.ranks.count)
        saved = start = time.monotonic()
        write_text(self.folder / "config.json", json.dumps(self.config.to_json(), indent=1))
        with (self.folder / self.ranks.named("log.jsonl")).open("a") as lines:
            for examples in stream(steps, self.step, stop, workers):
                row = self.train_step(examples)
                row["seconds"] = round(time.monotonic() - start, 2)
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                if on_step:
                    on_step(row)
                if self.ranks.rank == 0 and time.monotonic() - saved > checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        if self.ranks.rank == 0:
            self.save()
            self.export()
        return self.folder / WEIGHTS

    def export(self) -> None:
        """Writes the averaged weights as a base that `load_base` opens."""
        live = {k: v.detach().clone() for k, v in self.base.network.state_dict().items()}
        self.base.network.load_state_dict(self.average)
        self.base.save(self.folder / WEIGHTS, torch.float32)
        self.base.network.load_state_dict(live)
