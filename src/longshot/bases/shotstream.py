"""ShotStream over Wan 2.1 1.3B: one shot after the other, each in blocks of 3 latent frames, in four steps.

Of the shots before it, a shot sees six frames, spread over them as evenly as can be, more of them from the latest; each is
encoded by itself and read clean, with the prompt of its own shot. They lie at times 0 to 5 and see each other; the shot's own
frames follow from 6 on, block after block, each seeing the six and the blocks before it. All time angles of a shot turn by
another 1/6 a shot, a jump of phase at every cut. The first shot sees six frames of zeros, and counts as the second. Each shot's
prompt follows the global one without a space, and begins with its number.

Source: KlingAIResearch/ShotStream (arXiv 2603.25746), `pipeline/causal_inference_ar.py`, `wan/modules/causal_model.py`,
`utils/dataset.py`, `tools/train/config/4_dmd_long.yaml`; `benchmarks/peers/shotstream.py` shows that its own network, and its
whole pipeline, give the same as ours.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from longshot.bases.base import MultiShot, Spec
from longshot.bases.wan import WAN21_1B, WanBase
from longshot.layout import Group

BLOCK_FRAMES = 3  # latent frames
SEEN_FRAMES = 6  # of earlier shots, one latent frame each
PHASE = 1 / 6  # radians a shot
LEVELS = (1.0, 0.74, 0.5, 0.26)  # noise levels of its four steps, before the shift

SHOTSTREAM = replace(
    WAN21_1B,
    name="shotstream",
    licence="unclear",
    guidance=1.0,
    steps=len(LEVELS),
    shift=8.0,
    solver="stochastic",
    rope="timeline",
    multishot=MultiShot(
        ("causal",), levels=LEVELS, block=BLOCK_FRAMES, history="frames", takes="clips", between="shot{}:"
    ),
)


class ShotStreamBase(WanBase):
    """A `Base` around ShotStream's weights in diffusers' Wan pipeline: its groups have a phase."""

    def __init__(self, pipe: Any, spec: Spec):
        super().__init__(pipe, spec)
        dim = self.network.config.attention_head_dim
        self.attention.time_pairs = (dim - 4 * (dim // 6)) // 2

    def encode_still(
        self, picture: UInt8[np.ndarray, "height width 3"]
    ) -> Float[torch.Tensor, "video channels"]:
        """The clean latent of one picture by itself, which is shorter than any shot."""
        single = copy(self)
        single.spec = replace(self.spec, multishot=None)
        return single.encode(picture[None])


def seen_frames(lengths: Sequence[int], seen: int = SEEN_FRAMES) -> list[tuple[int, int]]:
    """Which frames of the earlier shots a shot sees: (shot, frame), both from 0. lengths: frames of each earlier shot.

    Where there are more shots than frames to see, the first shots give none.
    """
    share, left = divmod(seen, len(lengths))
    chosen = []
    for shot, frames in enumerate(lengths):
        count = share + (shot >= len(lengths) - left)
        places = np.rint(np.linspace(0, frames - 1, count)).astype(int)
        chosen += [(shot, int(frame)) for frame in places]
    return chosen


def remembered_groups(shots: Sequence[int], texts: Sequence[int], grid: tuple[int, int]) -> list[Group]:
    """The groups of the frames that are seen. shots: of each the shot it is from, from 0. texts: tokens of its prompt.

    grid: tokens along (height, width).
    """
    return [
        Group(n + 1, text, (1, *grid), at=n, phase=PHASE * shot)
        for n, (shot, text) in enumerate(zip(shots, texts, strict=True))
    ]


def block_group(block: int, shot: int, text: int, grid: tuple[int, int], frames: int = BLOCK_FRAMES) -> Group:
    """The group of one block of a shot, both from 0; the first shot counts as the second."""
    at = SEEN_FRAMES + block * frames
    return Group(SEEN_FRAMES + 1 + block, text, (frames, *grid), at=at, phase=PHASE * max(shot, 1))
