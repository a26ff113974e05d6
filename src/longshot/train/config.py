"""The configuration of a training stage, and the three stages of LCT as presets, with those of the pixel refiner between."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from longshot.flow import SigmaDraw
from longshot.layout import Visibility
from longshot.puppets.world import ACTIONS
from longshot.train.puppets import StreamConfig
from longshot.train.shards import ShardStream

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class StageConfig:
    """One stage: what it sees, how noise is drawn, how long and how fast it learns.

    lr: peak learning rate; it warms up over `warmup` steps, and falls linearly to 0 over the last `decay` share of `steps`.
    ema: decay of the weight average that is kept and shipped. attributes: weight of the auxiliary loss of
    `train/attributes.py`, 0 for none. grain: chance that a shot's noise is stronger in places than its level says
    (`train/evidence.py`). guessed: chance that a step's noise lies over what the network guessed under more noise (there, too).
    worn: chance that a step's history is what the network itself makes of it (`worn_history`, there); with `guessed` at most 1,
    and no scene of either kind of step is misled. A step then takes one forward pass more, or three.
    precision: of products and convolutions; weights, sums and the optimizer stay fp32 (`torch.autocast`).
    learns: the transformer, while a pixel refiner is left aside, that refiner alone (`model/refine.py`), which is cheaper and
    needs other noise levels, or both; a network without a refiner then trains its transformer.
    """

    name: str
    steps: int
    stream: StreamConfig | ShardStream
    visibility: Visibility = "scene"
    sigma: SigmaDraw = field(default_factory=SigmaDraw)
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    attributes: float = 0.0
    grain: float = 0.0
    guessed: float = 0.0
    worn: float = 0.0
    precision: Precision = "fp32"
    learns: Literal["transformer", "refiner", "both"] = "transformer"
    seed: int = 0

    def __post_init__(self):
        if self.attributes and isinstance(self.stream, ShardStream):
            raise ValueError(
                "only drawn scenes know their attributes; scenes out of shards need attributes=0"
            )

        if self.guessed + self.worn > 1:
            raise ValueError(
                f"a step shows guesses or worn history, not both; guessed {self.guessed:g} and worn {self.worn:g} make over 1"
            )

    def to_json(self) -> dict:
        return asdict(self)


FILM = StreamConfig(
    scenes=10,
    single=0.3,
    shots=(2, 5),
    frames=(4, 8, 12),
    actions=(*ACTIONS, "wave"),
    pan=0.5,
    pair=0.4,
    reef=0.2,
    takes=0.6,
    drop_global=0.35,
    portraits=0.2,
    misled=0.3,
)
"""What the shipped weights saw in the end: scenes as everywhere, but for waves, the hardest action, twice as often, pans in half
of the shots, and takes, three of five scenes."""
NEAR = ("wide", "medium", "medium", "close")
"""Cameras of the first stage: near ones more often, since that is where people are learned."""


def single_shot(steps: int = 3000) -> StageConfig:
    """Stage 1: the single-shot base, its text with rotary positions."""
    stream = StreamConfig(
        scenes=32, frames=(4, 4, 8, 8), image=0.05, cameras=NEAR, pan=0.0, pair=0.35, reef=0.2
    )
    sigma = SigmaDraw(mean=2.0, std=1.4)  # towards noise: that is where words decide what will be there
    return StageConfig("single", steps, stream, sigma=sigma, decay=0.7, ema=0.995, attributes=0.05)


def lct(steps: int = 9000) -> StageConfig:
    """Stage 2: Long Context Tuning, bidirectional, with single shots mixed in (LCT sec. 3.2)."""
    sigma = SigmaDraw(mean=1.3, std=1.65, shared=0.3, history=0.5)
    return StageConfig(
        "lct",
        steps,
        FILM,
        sigma=sigma,
        lr=6e-4,
        decay=0.95,
        ema=0.998,
        attributes=0.05,
        grain=0.25,
        guessed=0.3,
        seed=2,
    )


def refine(steps: int = 2000) -> StageConfig:
    """The pixel refiner, over a transformer that stays as it is: at the noise levels where details are decided, and at all levels
    where a shot goes on from one that is known, mostly without a cut and from a picture without noise, as sampling has it: from
    blurred ones it learns that none is to be trusted."""
    stream = replace(FILM, scenes=4, single=0.15, shots=(2, 4), takes=0.7, misled=0.0, portraits=0.1)
    sigma = SigmaDraw(
        mean=0.4, std=1.7, shared=0.1, history=0.75, history_max=0.2, exact=0.6, causal_history=True
    )
    return StageConfig(
        "refine",
        steps,
        stream,
        sigma=sigma,
        lr=1.5e-3,
        warmup=40,
        decay=0.9,
        ema=0.99,
        guessed=0.5,
        learns="refiner",
        seed=4,
    )


def causal(steps: int = 4800) -> StageConfig:
    """Stage 3: the context-causal fine-tune (LCT sec. 3.3), on the scenes of stage 2, mostly as a roll-out meets them: what came
    before is nearly clean. In most scenes it goes on without a cut: where somebody stands is decided under strong noise, and
    copied from history, which is learned last. Most history has no noise at all, as finished shots are held for these weights.
    The refiner learns along, so that what it can copy is left to it. In a third of the steps history is worn, as a long take's
    is: else what is copied is the copy, until nothing of it is left.
    Of the shipped weights it was two runs, the second from the end of the first."""
    before = lct(steps)
    return replace(
        before,
        name="causal",
        stream=replace(FILM, scenes=6, single=0.25, shots=(2, 6), takes=0.7),
        visibility="causal",
        sigma=SigmaDraw(
            mean=1.0, std=1.6, shared=0.1, history=0.8, history_max=0.3, exact=0.6, causal_history=True
        ),
        warmup=50,
        decay=0.9,
        ema=0.99,
        worn=0.35,
        learns="both",
        seed=3,
    )


def causal_refine(steps: int = 2200) -> StageConfig:
    """The pixel refiner once more, over the context-causal transformer, history worn in a fifth of the steps: what ships for a
    cache."""
    before = refine(steps)
    return replace(
        before,
        name="causal-refine",
        visibility="causal",
        stream=replace(before.stream, single=0.1, takes=0.75),
        sigma=replace(before.sigma, mean=0.6, history=0.85, exact=0.7),
        guessed=0.4,
        worn=0.2,
        seed=6,
    )


def lct_again(steps: int = 1400) -> StageConfig:
    """Stage 2 once more, from the context-causal weights, transformer and refiner together."""
    before = lct(steps)
    return replace(
        before,
        name="lct-again",
        stream=replace(FILM, scenes=6),
        sigma=replace(before.sigma, mean=1.1),
        lr=5e-4,
        warmup=20,
        ema=0.99,
        worn=0.25,
        learns="both",
        seed=5,
    )


def lct_refine(steps: int = 2200) -> StageConfig:
    """The pixel refiner over the transformer of full attention, to the end: what ships for that."""
    return replace(refine(steps), name="lct-refine", seed=7)


STAGES = {
    "single": single_shot,
    "lct": lct,
    "refine": refine,
    "causal": causal,
    "causal-refine": causal_refine,
    "lct-again": lct_again,
    "lct-refine": lct_refine,
}
