"""The training loop: batch -> noise levels -> velocity -> loss, the same for every stage."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longshot.bases import tune
from longshot.bases.base import Base
from longshot.bases.lora import save_adapter
from longshot.bases.native import NativeBase, check_shapes, hash_weights
from longshot.errors import UserError
from longshot.files import write_text
from longshot.flow import flow_loss
from longshot.layout import GLOBAL, Group, Layout, Visibility, global_group
from longshot.model.mmdit import MMDiT
from longshot.train.attributes import DEPTH, AttributeReaders
from longshot.train.checkpoint import TrainingState
from longshot.train.config import StageConfig
from longshot.train.evidence import (
    AHEAD,
    Earlier,
    false_evidence,
    grain,
    noise_over,
    noised,
    own_guess,
    worn_history,
)
from longshot.train.parallel import Parallel, Ranks, clip_gradients, local, share_out, sliced, whole
from longshot.train.puppets import Example, stream
from longshot.train.shards import StoredExample

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
ADAPTER = "lora.safetensors"
MAY_CHANGE = ("steps", "decay", "stream.folder")
"""Settings that a run may be gone on with otherwise: its length, and where the same shards lie."""
SINCE = {"worn": 0.0, "sigma.exact": 0.0}
"""What older checkpoints don't name, and were made with."""


@dataclass(frozen=True)
class Batch:
    """A packed training batch: clean latents, the prompt of each group, where every token is, and what it was made of.

    texts: the features of each prompt, where the base's text encoder doesn't learn.
    """

    z_0: Tensor
    prompts: tuple[str, ...]
    layout: Layout
    examples: tuple[Example | StoredExample, ...]
    texts: tuple[Tensor, ...] | None = None


def collate(base: Base, examples: Sequence[Example | StoredExample]) -> Batch:
    """Packs examples; a scene without a global prompt has no group 0, so that one shot alone is the single-shot model.

    Each shot is worded as sampling words it (`Spec.wording`).
    """
    wanted: list[list[tuple[int, str, tuple[int, int, int]]]] = []  # of each scene: shot, prompt, grid
    latents = []
    packed: Sequence[Any] = examples  # a drawn one is of native bases only, which its type says
    for example in packed:
        groups = []
        if example.global_prompt and base.spec.prompts == "group":
            groups.append((GLOBAL, example.global_prompt, global_group(0).grid))
            latents.append(torch.zeros(1, base.spec.channels))
        shots = zip(example.latents(base), example.prompts, strict=True)
        for k, ((z, grid), prompt) in enumerate(shots, start=1):
            groups.append((k, base.spec.wording(example.global_prompt, prompt, k), grid))
            latents.append(z)
        wanted.append(groups)
    prompts = [prompt for groups in wanted for _, prompt, _ in groups]
    texts = None
    if isinstance(base, NativeBase):
        lengths = iter([len(base.tokenise(prompt)) for prompt in prompts])
    else:
        texts = _features(base, packed, prompts)
        lengths = iter([len(features) for features in texts])
    scenes = tuple(tuple(Group(k, next(lengths), grid) for k, _, grid in groups) for groups in wanted)
    layout = Layout(scenes, rope=base.spec.rope)
    z_0 = torch.cat([z.to(latents[-1].device) for z in latents])
    return Batch(z_0, tuple(prompts), layout, tuple(examples), texts)


def _features(base: Base, examples: Sequence[StoredExample], prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """What a frozen text encoder makes of each prompt: as it was stored, or read now."""
    stored = [example.texts for example in examples if example.texts is not None]
    if stored and len(stored) == len(examples):
        device = getattr(base, "device")  # noqa: B009
        return tuple(rows.to(device).float() for texts in stored for rows in texts)
    with torch.no_grad():
        return tuple(base.encode_text(prompts))


def draw_noise(
    layout: Layout, channels: int, config: StageConfig, step: int, indices: Sequence[int], salt: int = 0
) -> tuple[Tensor, Tensor]:
    """Noise levels [groups] and noise [video, channels] of a packed batch whose scenes are examples `indices` of a step.

    An example's noise depends on (seed, step, index) alone, so it is the same on any number of ranks; another salt, other noise.
    Of a seed, torch's generator on a CPU takes the low 32 bits only.
    """
    sigmas, noises = [], []
    for groups, index in zip(layout.scenes, indices, strict=True):
        generator = torch.Generator().manual_seed(
            ((config.seed * 1_000_003 + step) << 16) + index + salt * 2_654_435_761
        )
        scene = Layout.single(*groups)
        levels = config.sigma(scene, generator)
        sigmas.append(levels)
        for g, level in zip(groups, levels.tolist(), strict=True):
            noise = torch.randn(g.video, channels, generator=generator)
            if config.grain:
                noise *= grain(g.video, level, config.grain, generator)
            noises.append(noise if g.shot != GLOBAL else torch.zeros_like(noise))
    return torch.cat(sigmas), torch.cat(noises)


@dataclass(frozen=True)
class BatchLoss:
    """flow: the loss of a batch (LCT sec. 3.2.2). each: every group's part of it. attributes: the auxiliary loss, or 0."""

    flow: Tensor
    each: Tensor
    attributes: Tensor


def batch_loss(
    base: Base,
    batch: Batch,
    sigma: Tensor,
    eps: Tensor,
    visibility: Visibility,
    readers: AttributeReaders | None = None,
    earlier: Earlier | None = None,
    refine: bool = True,
) -> BatchLoss:
    """The losses of a batch at given noise. earlier: from where the network guesses at first, what the noise then lies over.

    refine: False leaves a native base's refiner of pixels out.
    """
    texts = base.encode_text(batch.prompts) if batch.texts is None else batch.texts
    text = torch.cat(list(texts))
    more: dict[str, Any] = {"refine": refine} if isinstance(base, NativeBase) else {}
    if earlier is not None:
        guess = own_guess(base, batch.z_0, text, batch.layout, visibility, earlier, **more)
        z_t, v = noise_over(guess, batch.z_0, batch.layout, sigma, eps)
    else:
        evidence = None
        if isinstance(base, NativeBase):
            evidence = false_evidence(base, batch.examples, batch.z_0, batch.layout)
        z_t, v = noised(batch.z_0, evidence, batch.layout, sigma, eps)
    features: list[Tensor] = []
    if readers is not None:
        more["features"] = features
    v_hat = base.velocity(z_t, text, sigma, batch.layout, visibility, **more)
    predicts_clean = isinstance(base, NativeBase) and base.config.network.predicts == "clean"
    weighted = predicts_clean or earlier is not None  # from a guess the velocity grows with 1 / sigma, too
    flow, each = flow_loss(v_hat, v, batch.layout, sigma if weighted else None)
    attributes = torch.zeros((), device=flow.device)
    if readers is not None:
        middle = features[round(DEPTH * len(features)) - 1]
        attributes = readers(batch.examples, list(texts), middle, batch.layout, base)
    return BatchLoss(flow, each, attributes)


def make_optimizer(modules: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW over all weights that learn; only matrices decay."""
    learn = [p for p in modules.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learn if p.ndim >= 2], [p for p in learn if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    sharded = any(
        local(p) is not p for p in learn
    )  # slices and whole weights don't go into one fused operation
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), foreach=False if sharded else None)


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


def _choose_what_learns(network: MMDiT, config: StageConfig) -> None:
    """Freezes the other part, if any.

    UserError for a refiner that isn't there, and, where no shot goes on from another one's pixels, for noise levels at which it
    isn't asked: nothing would learn from them.
    """
    refiner_learns = config.learns == "refiner"
    network.requires_grad_(not refiner_learns)
    if network.refiner is not None:
        network.refiner.requires_grad_(config.learns != "transformer")
    elif refiner_learns:
        raise UserError(
            "this network has no pixel refiner to train; give --init and another --stage than refine"
        )
    asked_above = network.config.goes_on  # by shots that go on from a clean one
    if refiner_learns and not asked_above and config.sigma.most > network.config.refines_below:
        raise UserError(
            f"stage {config.name}: draws noise levels up to {config.sigma.most:g}, and this network asks its refiner only up to "
            f"{network.config.refines_below:g}; set sigma.most to that, or give it moves (recipes/grow.py --moves)"
        )


def _fingerprint_of_frozen(network: MMDiT) -> str | None:
    """A hash of the weights that don't learn, which a checkpoint doesn't hold; None where all do."""
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    return hash_weights(frozen) if frozen else None


class Trainer:
    """One stage of one run in one folder: `log.jsonl`, `checkpoint.safetensors`, and at the end `weights.safetensors`.

    A folder that holds a checkpoint is gone on with, bit for bit where the processor and the number of threads are the same:
    examples and noise are functions of (seed, step). With `lora`
    only low-rank layers learn, only they are saved, and `lora.safetensors` is what comes out. parallel: how several processes
    share the run; a checkpoint is the same for all ways and goes on under another one, with rounding of its own.

    Raises UserError when the checkpoint was made by other settings, a step has too few scenes for the ranks, or the base can't
    be trained so.
    """

    def __init__(
        self,
        base: Base,
        config: StageConfig,
        folder: Path,
        ranks: Ranks | None = None,
        lora: tune.LoraConfig | None = None,
        parallel: Parallel = "ddp",
    ):
        self.base, self.config, self.folder, self.lora = base, config, Path(folder), lora
        self.network: Any = getattr(base, "network")  # noqa: B009 - every base has one
        self.device: torch.device = getattr(base, "device")  # noqa: B009
        self.ranks = ranks or Ranks()
        self.refine = lora is not None or config.learns != "transformer"
        if lora is None and not isinstance(base, NativeBase):
            raise UserError(f"{base.spec.name}: a pretrained base is trained by LoRA; give --lora RANK")
        if "ulysses" in parallel and self.ranks.count > 1 and config.attributes:
            raise UserError(
                f"--parallel {parallel}: the auxiliary loss of drawn scenes reads whole sequences; give --attributes 0"
            )
        if lora is None:
            _choose_what_learns(self.network.train(), config)
        else:
            tune.attach(self.network, lora.rank, config.seed)
        self.frozen = None if lora else _fingerprint_of_frozen(self.network)
        sharing = share_out(base, parallel, self.ranks)
        self.steps = config.stream.steps(config.seed, sharing.rank, sharing.count)
        self.shared = sharing
        self.folder.mkdir(parents=True, exist_ok=True)
        self.readers = None
        if config.attributes:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.readers = AttributeReaders(self.network.config.width).to(self.device)
        parts = {"network": self.network} | ({"readers": self.readers} if self.readers else {})
        self.modules = nn.ModuleDict(parts)
        self.optimizer = make_optimizer(self.modules, config)
        self.average = {k: v.detach().clone() for k, v in self._learned(self.network).items()}
        self.step = 0
        self.whole = True  # whether weights, average and optimizer are all those of `step`
        if (self.folder / CHECKPOINT).exists():
            self.resume(TrainingState.load(self.folder / CHECKPOINT))

    def resume(self, state: TrainingState) -> None:
        """Takes over a saved state. Raises UserError when it was made by another config (other than `MAY_CHANGE`)."""
        mine, theirs = (_settings(json.loads(json.dumps(c))) for c in (self.settings(), state.config))
        theirs = SINCE | theirs
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key) and key not in MAY_CHANGE:
                raise UserError(
                    f"{self.folder / CHECKPOINT}: was trained with {key}={theirs.get(key)!r}, not {mine.get(key)!r}; "
                    "use another folder or the same settings"
                )
        weights = self._learned(self.modules)
        check_shapes(self.folder / CHECKPOINT, weights, state.weights)
        with torch.no_grad():
            for name, weight in weights.items():
                local(weight).copy_(local(sliced(state.weights[name], weight)))
            self.average = {k: sliced(v, self.average[k]) for k, v in state.average.items()}
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            i: {k: sliced(v, order[i]) if isinstance(v, Tensor) and v.ndim else v for k, v in entry.items()}
            for i, entry in state.optimizer["state"].items()
        }
        self.optimizer.load_state_dict(state.optimizer | {"state": moments})
        self.step = state.step

    def settings(self) -> dict:
        """What a run must be gone on with."""
        beside = {} if self.frozen is None else {"frozen": self.frozen}
        return self.config.to_json() | beside | ({} if self.lora is None else {"lora": asdict(self.lora)})

    @staticmethod
    def _learned(modules: nn.Module) -> dict[str, Tensor]:
        """The weights that learn, by name."""
        return {name: p for name, p in modules.named_parameters() if p.requires_grad}

    def save(self) -> None:
        """Writes the checkpoint of the current step. Every process must call it; rank 0 writes."""
        optimizer = self.optimizer.state_dict()
        moments = {
            i: {k: whole(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
            for i, entry in optimizer["state"].items()
        }
        state = TrainingState(
            self.step,
            self.settings(),
            {k: whole(v) for k, v in self._learned(self.modules).items()},
            {k: whole(v) for k, v in self.average.items()},
            optimizer | {"state": moments},
        )
        if self.ranks.rank == 0:
            state.save(self.folder / CHECKPOINT)

    def train_step(self, examples: Sequence[Example | StoredExample]) -> dict[str, float]:
        """One optimizer step; noise depends on (seed, step) alone. Returns what the log holds."""
        config, ranks = self.config, self.ranks
        factor = lr_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        batch = collate(self.base, examples)
        indices = self.steps.places(self.step)
        sigma, eps = self._noise(batch.layout, config, indices)
        earlier = self._earlier(batch.layout, sigma, indices)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = batch_loss(
                self.base, batch, sigma, eps, config.visibility, self.readers, earlier, self.refine
            )
        num_shots = sum(g.shot != GLOBAL for g in batch.layout.groups)
        share = num_shots / self.shared.sum(torch.tensor(float(num_shots))).item()
        ((loss.flow + config.attributes * loss.attributes) * share).backward()
        ranks.sum_gradients(self.modules)
        norm = clip_gradients(self.modules, config.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for k, v in self._learned(self.network).items():
                local(self.average[k]).lerp_(local(v), 1 - keep)
        noisy = sigma > 0.5
        return {
            "step": self.step,
            "loss": self.shared.sum(loss.flow.detach() * share).item(),
            "loss_noisy": (loss.each[noisy].mean() if noisy.any() else loss.flow).item(),
            "loss_attributes": self.shared.sum(loss.attributes.detach() * share).item(),
            "grad_norm": norm,
            "lr": config.lr * factor,
            "tokens": len(batch.layout.queries),
        }

    def _noise(
        self, layout: Layout, config: StageConfig, indices: Sequence[int], salt: int = 0
    ) -> tuple[Tensor, Tensor]:
        sigma, eps = draw_noise(layout, self.base.spec.channels, config, self.step, indices, salt)
        return sigma.to(self.device), eps.to(self.device)

    def _earlier(self, layout: Layout, sigma: Tensor, indices: Sequence[int]) -> Earlier | None:
        """From where the network guesses in this step, None where it is shown the truth. The same kind of step on all ranks."""
        config = self.config
        chance = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        kind = torch.rand((), generator=chance).item()
        # Grain would be sized by the level drawn here, which isn't where a guess begins.
        even = replace(config, grain=0.0)
        if kind < config.guessed:
            ahead, eps = self._noise(layout, even, indices, salt=1)
            began = sigma + AHEAD * ahead * (1 - sigma)
            return Earlier(torch.where(sigma > 0, began, 0.0), eps)  # what has no noise was given
        if kind < config.guessed + config.worn:
            each = replace(even, sigma=replace(config.sigma, shared=0.0, history=0.0))
            return worn_history(layout, sigma, *self._noise(layout, each, indices, salt=1))
        return None

    def run(
        self,
        workers: int = 1,
        checkpoint_seconds: float = 180,
        until: int | None = None,
        on_step: Callable[[dict[str, float]], None] | None = None,
    ) -> Path:
        """Trains to the end (or to step `until`), saving every `checkpoint_seconds`; returns the file of what was learned.

        Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; the same call goes on from there.
        """
        stop = min(self.config.steps, until or self.config.steps)
        try:
            self._steps(stop, workers, checkpoint_seconds, on_step)
        except KeyboardInterrupt:
            if self.whole:
                self.save()
                log.warning(
                    "%s: stopped at step %d of %d and saved; the same command goes on from there",
                    self.folder,
                    self.step,
                    self.config.steps,
                )
            raise
        self.save()
        return self.export()

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
            write_text(self.folder / "config.json", json.dumps(self.settings(), indent=1))
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
                if self.ranks.any(time.monotonic() - saved > checkpoint_seconds):
                    self.save()
                    saved = time.monotonic()

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

    def export(self) -> Path:
        """Writes the averaged weights as a base that `load_base` opens, or as a LoRA. Every process must call it."""
        average = {k: whole(v) for k, v in self.average.items()}
        path = self.folder / (WEIGHTS if self.lora is None else ADAPTER)
        frozen = {}
        if self.lora is None:  # a LoRA's frozen weights are a whole base, which nobody needs in one piece
            frozen = {k: whole(p) for k, p in self.network.named_parameters() if k not in average}
        if self.ranks.rank == 0 and self.lora is None:
            assert isinstance(self.base, NativeBase)
            self.base.save(path, torch.float32, frozen | average)
        elif self.ranks.rank == 0:
            save_adapter(path, tune.as_adapter(str(path), average), torch.float32)
        return path


def _settings(config: dict, prefix: str = "") -> dict:
    """A nested config as one level of `outer.inner` keys."""
    flat = {}
    for key, value in config.items():
        flat |= _settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
