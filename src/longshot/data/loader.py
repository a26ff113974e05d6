"""The order in which training sees shards: packs of scenes up to a budget of tokens, whatever the number of workers and ranks.

An epoch is a shuffle of all scenes, cut into *packs* of at most `budget` tokens whose scenes are of similar length. The packs of
epoch 0, then of epoch 1, and so on, are one endless row, and step k of a run takes `packs` of them, those from k * packs on. So a
step is a pure function of (seed, k): it doesn't know how many workers read ahead or how many ranks share it, and a run goes on
from step k on any number of either. Rank r of R takes the packs r, r + R, ... of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from longshot.errors import UserError

POOL = 4096
"""Scenes of a shuffle that are sorted by length together: enough to fill packs well, few enough to leave the order random."""


@dataclass(frozen=True)
class Draw:
    """One scene of a step: its number in the dataset, the epoch it is seen in, and its place in the step (over all ranks)."""

    scene: int
    epoch: int
    place: int


def epoch_packs(tokens: Sequence[int], seed: int, epoch: int, budget: int) -> list[list[int]]:
    """The packs of an epoch: every scene number once, at most `budget` tokens a pack, in a random order."""
    if any(count > budget for count in tokens):
        longest = int(np.argmax(tokens))
        raise UserError(
            f"scene number {longest} has {tokens[longest]} tokens, more than the {budget} of a pack; "
            f"use a budget of {tokens[longest]} or more, or fewer shots a scene"
        )
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(tokens))
    packs: list[list[int]] = []
    for start in range(0, len(order), POOL):
        pool = sorted(order[start : start + POOL].tolist(), key=lambda i: tokens[i])
        left = -1
        for i in pool:
            if left < tokens[i]:
                packs.append([])
                left = budget
            packs[-1].append(i)
            left -= tokens[i]
    return [packs[i] for i in rng.permutation(len(packs))]


@dataclass
class TokenBuckets:
    """Steps of `packs` packs over scenes of the given token counts; `steps.draws(k, rank, ranks)` is a rank's share of step k."""

    tokens: Sequence[int]
    seed: int
    budget: int
    packs: int = 1
    _epoch: tuple[int, list[list[int]]] | None = field(default=None, repr=False)
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)

    def __post_init__(self):
        if not self.tokens:
            raise UserError("there are no scenes to train on")
        if self.packs < 1:
            raise UserError(f"{self.packs} packs a step: use 1 or more")

    def draws(self, step: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
        """The scenes of a step that a rank trains on. Raises UserError when the ranks can't share a step evenly."""
        if self.packs % ranks:
            raise UserError(
                f"{self.packs} packs a step can't be shared evenly by {ranks} processes; use a multiple of {ranks}"
            )
        chosen, place = [], 0
        for p in range(self.packs):
            epoch, pack = self._pack(step * self.packs + p)
            if p % ranks == rank:
                chosen += [Draw(scene, epoch, place + i) for i, scene in enumerate(pack)]
            place += len(pack)
        return chosen

    def position(self, step: int) -> tuple[int, int]:
        """Where a step begins: the epoch, and the number of packs of it that are seen already."""
        number = step * self.packs
        epoch = self._epoch_of(number)
        return epoch, number - self._starts[epoch]

    def _pack(self, number: int) -> tuple[int, list[int]]:
        epoch = self._epoch_of(number)
        return epoch, self._packs_of(epoch)[number - self._starts[epoch]]

    def _epoch_of(self, number: int) -> int:
        """The epoch of a pack. Epochs differ in their number of packs, so those before it are planned once."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self._packs_of(len(self._starts) - 1)))
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _packs_of(self, epoch: int) -> list[list[int]]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_packs(self.tokens, self.seed, epoch, self.budget)
        return self._epoch[1]
