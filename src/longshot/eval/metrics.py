"""Scores with 95% intervals, from marks: single right-or-wrong judgements, some of which belong together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

Z_95 = NormalDist().inv_cdf(0.975)
RESAMPLES = 2000


@dataclass(frozen=True)
class Mark:
    """One judgement. name: what was judged; scene: marks of one scene are correlated; shot: its number in the scene, from 1.

    What can't be read is wrong, too: `right` implies `readable`.
    """

    name: str
    scene: int
    shot: int
    right: bool
    readable: bool

    def __post_init__(self):
        if self.right and not self.readable:
            raise ValueError(f"{self} can't be right and unreadable")


@dataclass(frozen=True)
class Score:
    """The share of marks that are right, and what it must be seen beside.

    n: marks; scenes: scenes they come from. low, high: the 95% interval; interval: how it was made ("wilson", or "bootstrap"
    over scenes, or "wilson over scenes"). unreadable: share of marks that couldn't be read (they count as wrong). ceiling: the
    score of the ground truth's own pixels; control: of output whose condition was wrong; chance: of a guess drawn from the
    labels' distribution. None where there is no such number.
    """

    value: float
    n: int
    scenes: int
    low: float
    high: float
    interval: str
    unreadable: float
    ceiling: float | None = None
    control: float | None = None
    chance: float | None = None

    def to_json(self) -> dict:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Difference:
    """A paired difference of two scores over the same scenes, with its 95% bootstrap interval over scenes."""

    value: float
    low: float
    high: float
    scenes: int

    def to_json(self) -> dict:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def wilson(right: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, sound for small n and for 0 or n right (Wilson 1927)."""
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n} is no proportion")
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def cluster_bootstrap(
    sums: Sequence[float], counts: Sequence[int], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of sum(sums) / sum(counts) when whole clusters are drawn again with replacement."""
    total, weight = np.asarray(sums, float), np.asarray(counts, float)
    n = len(total)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    weights = drawn @ weight
    ratios = (drawn @ total)[weights > 0] / weights[weights > 0]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def _by_scene(marks: Iterable[Mark]) -> dict[int, list[Mark]]:
    scenes: dict[int, list[Mark]] = {}
    for mark in marks:
        scenes.setdefault(mark.scene, []).append(mark)
    return scenes


def score(
    marks: Sequence[Mark],
    *,
    ceiling: float | None = None,
    control: float | None = None,
    chance: float | None = None,
) -> Score:
    """The score of marks of one name.

    The interval is Wilson's where every scene gave one mark; else scenes are resampled. Where all marks agree a bootstrap
    would claim certainty, so there it is Wilson's with the number of scenes as n.
    """
    n, right = len(marks), sum(m.right for m in marks)
    scenes = _by_scene(marks)
    if len(scenes) == n:
        interval, (low, high) = "wilson", wilson(right, n)
    elif right in (0, n):
        interval, (low, high) = "wilson over scenes", wilson(len(scenes) * (right > 0), len(scenes))
    else:
        interval = "bootstrap"
        sums = [sum(m.right for m in scene) for scene in scenes.values()]
        low, high = cluster_bootstrap(sums, [len(scene) for scene in scenes.values()])
    unreadable = sum(not m.readable for m in marks) / n
    return Score(right / n, n, len(scenes), low, high, interval, unreadable, ceiling, control, chance)


def rate(marks: Sequence[Mark]) -> float | None:
    """The share that is right; None where there is no mark."""
    return sum(m.right for m in marks) / len(marks) if marks else None


def difference(first: Sequence[Mark], second: Sequence[Mark]) -> Difference:
    """How much higher the first run scores than the second on the same scenes. Raises ValueError when scenes differ."""
    a, b = _by_scene(first), _by_scene(second)
    if a.keys() != b.keys() or any(len(a[k]) != len(b[k]) for k in a):
        raise ValueError("a paired difference needs the same marks of the same scenes")
    sums = [sum(m.right for m in a[k]) - sum(m.right for m in b[k]) for k in a]
    counts = [len(a[k]) for k in a]
    low, high = cluster_bootstrap(sums, counts)
    return Difference(sum(sums) / sum(counts), low, high, len(a))
