"""An auxiliary loss of the puppet trainer: what the words say and what the pictures show must be readable from the network.

Pixels alone teach slowly which word colours whom: at the noise levels where a colour is decided, little of the picture is there
to be right or wrong about. Two linear readers, one on the text features and one on the video features of a middle block, are
trained with the network to name the attributes of the world, and thrown away after. REPA (Yu et al., ICLR 2025) does so with
the features of a vision model in the place of the world's own truth.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from longshot.bases.base import Base, Spec
from longshot.layout import Layout
from longshot.model.mmdit import layer_norm
from longshot.puppets.world import (
    ACTIONS,
    COLORS,
    ENVIRONMENTS,
    HATS,
    PATTERNS,
    REEF,
    TIMES,
    PuppetScene,
    look,
    screen_x,
)
from longshot.train.puppets import Example

ATTRIBUTES = {
    "body": COLORS,
    "pattern": PATTERNS,
    "hat": HATS,
    "hat_color": COLORS,
    "tail_color": COLORS,
    "action": ACTIONS,
    "environment": (*ENVIRONMENTS, REEF),
    "time": TIMES,
}
UNSAID = -1  # the label of what a token says nothing about
NEAR = {
    "wide": 8,
    "medium": 11,
    "close": 16,
}  # pixels: a token as near as this to a person's middle shows them
_ACTION = list(ATTRIBUTES).index("action")  # a look is what comes before it
DEPTH = 2 / 3  # of the blocks lie before the features that are read
_MENTION = re.compile(r"Character (\d+)|\[Environment\]")

Labels = Int64[np.ndarray, "_ attributes"]


def _labels(scene: PuppetScene, **values: str) -> list[int]:
    values |= {"environment": scene.environment, "time": scene.time}
    return [options.index(values[name]) if name in values else UNSAID for name, options in ATTRIBUTES.items()]


def said(example: Example, group: int, prompt: str) -> tuple[list[int], Labels]:
    """Where a prompt names somebody or a place (each mention's end, in characters), and what it says of them.

    group: 0 for the global prompt, k for shot k. Who is described in the same prompt has a look at every mention; who acts, an
    action; `[Environment]` has the place and the time of day.
    """
    ends: list[int] = []
    rows: list[list[int]] = []
    if example.truth is None:
        return ends, np.empty((0, len(ATTRIBUTES)), np.int64)
    scene = example.truth.scene
    acting = {a.who: a.action for a in scene.shots[group - 1].cast} if group else {}
    for mention in _MENTION.finditer(prompt):
        row = [UNSAID] * len(ATTRIBUTES)
        if mention[1] is None:
            row = _labels(scene)
        else:
            who = int(mention[1]) - 1
            if f"{mention[0]}:" in prompt:
                row[:_ACTION] = _look(scene, who)
            if who in acting:
                row[_ACTION] = ACTIONS.index(acting[who])
        ends.append(mention.end())
        rows.append(row)
    return ends, np.array(rows, np.int64).reshape(-1, len(ATTRIBUTES))


def _look(scene: PuppetScene, who: int) -> list[int]:
    return _labels(scene, **look(scene.characters[who]))[:_ACTION]


def shown(example: Example, shot: int, grid: tuple[int, int, int], spec: Spec) -> Labels:
    """What each video token of shot `shot` (from 1) shows: the nearest character's look and action, the place, the time.

    Nobody's, where none is near or the words were left out, for then nothing could tell.
    """
    T, H, W = grid
    labels = np.full((T, H, W, len(ATTRIBUTES)), UNSAID, np.int64)
    if example.truth is None or not example.prompts[shot - 1]:
        return labels.reshape(-1, len(ATTRIBUTES))
    scene, still = example.truth.scene, example.truth.stills[shot - 1]
    there = scene.shots[shot - 1]
    if shot - 1 != example.truth.portrait:
        labels[:] = _labels(scene)
    middles = (np.arange(W) + 0.5) * spec.stride[2]
    for t in range(T if there.cast else 0):
        frame = still if still is not None else (t + 0.5) * spec.stride[0]
        away = np.abs(np.array([screen_x(a, there, frame) for a in there.cast])[:, None] - middles)
        nearest = away.argmin(0)
        for w in np.flatnonzero(away.min(0) <= NEAR[there.camera]):
            acting = there.cast[nearest[w]]
            labels[t, :, w, :_ACTION] = _look(scene, acting.who)
            labels[t, :, w, _ACTION] = ACTIONS.index(acting.action)
    return labels.reshape(-1, len(ATTRIBUTES))


class AttributeReaders(nn.Module):
    """Two linear classifiers of `ATTRIBUTES`: over the features of a mention, and over those of a video token."""

    def __init__(self, width: int):
        super().__init__()
        self.edges = [0, *accumulate(len(options) for options in ATTRIBUTES.values())]
        self.text = nn.Linear(width, self.edges[-1])
        self.video = nn.Linear(width, self.edges[-1])

    def losses(
        self, scores: Float[Tensor, "rows classes"], labels: Int64[Tensor, "rows attributes"]
    ) -> Tensor:
        """The cross-entropy of each row, summed over what it says; 0 for a row that says nothing."""
        each = (
            F.cross_entropy(scores[:, a:b], labels[:, i], ignore_index=UNSAID, reduction="none")
            for i, (a, b) in enumerate(pairwise(self.edges))
        )
        return torch.stack(list(each)).sum(0)

    def forward(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Float[Tensor, "_ width"]],
        video: Float[Tensor, "video width"],
        layout: Layout,
        base: Base,
    ) -> Tensor:
        """The loss of a packed batch: each shot's mean over its tokens, plus its and its scene's mentions, over all shots.

        prompts: the features of each group's prompt. video: of every video token.
        """
        rows: list[Tensor] = []
        mentions: list[Labels] = []
        tokens: list[Labels] = []
        weights: list[np.ndarray] = []
        group = iter(zip(layout.groups, prompts, strict=True))
        num_shots = 0
        for example in examples:
            texts = ([(0, example.global_prompt)] if example.global_prompt else []) + list(
                enumerate(example.prompts, start=1)
            )
            for k, prompt in texts:
                place, features = next(group)
                ends, labels = said(example, k, prompt)
                rows += [features[len(base.tokenise(prompt[:end])) - 1] for end in ends]
                mentions.append(labels)
                nothing = np.full((place.video, len(ATTRIBUTES)), UNSAID, np.int64)
                tokens.append(shown(example, k, place.grid, base.spec) if k else nothing)
                weights.append(np.full(place.video, 1 / max(place.video, 1), np.float32))
                num_shots += k > 0
        device = video.device

        def tensor(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device)

        total = (self.losses(self.video(layer_norm(video)), tensor(tokens)) * tensor(weights)).sum()
        if rows:
            total = total + self.losses(self.text(layer_norm(torch.stack(rows))), tensor(mentions)).sum()
        return total / num_shots
