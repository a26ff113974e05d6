"""The configuration of a training stage, and the three stages of LCT as presets."""

from dataclasses import asdict, dataclass, field

from longshot.flow import SigmaDraw
from longshot.layout import Visibility
from longshot.train.puppets import StreamConfig


@dataclass(frozen=True)
class StageConfig:
    """One stage: what it sees, how noise is drawn, how long and how fast it learns.

    lr: peak learning rate; it warms up over `warmup` steps, and falls linearly to 0 over the last `decay` share of `steps`.
    ema: decay of the weight average that is kept and shipped.
    """

    name: str
    steps: int
    stream: StreamConfig
    visibility: Visibility = "scene"
    sigma: SigmaDraw = field(default_factory=SigmaDraw)
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0

    def to_json(self) -> dict:
        return asdict(self)


def single_shot(steps: int = 2400) -> StageConfig:
    """Stage 1: the single-shot base, its text with rotary positions."""
    stream = StreamConfig(scenes=24, frames=(4, 4, 8, 8, 12, 16), image=0.05)
    return StageConfig("single", steps, stream, lr=1.5e-3, decay=0.1)


def lct(steps: int = 3000) -> StageConfig:
    """Stage 2: Long Context Tuning, bidirectional, with single shots mixed in (LCT sec. 3.2)."""
    stream = StreamConfig(scenes=12, single=0.25, shots=(2, 5), image=0.12, drop_global=0.25)
    return StageConfig("lct", steps, stream, lr=1.5e-3, decay=0.4)


def causal(steps: int = 600) -> StageConfig:
    """Stage 3: the context-causal fine-tune (LCT sec. 3.3)."""
    stream = StreamConfig(scenes=12, single=0.15, shots=(2, 5), image=0.12, drop_global=0.25)
    sigma = SigmaDraw(causal_history=True, shared=0.15, history=0.6)
    return StageConfig("causal", steps, stream, "causal", sigma, lr=8e-4, warmup=50, decay=0.6)


STAGES = {"single": single_shot, "lct": lct, "causal": causal}
