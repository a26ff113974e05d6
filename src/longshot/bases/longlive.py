"""LongLive 2.0 over Wan2.2-TI2V-5B: its weights, its places in time, and what each of its chunks sees.

LongLive makes a film chunk by chunk, a chunk being 8 latent frames of one shot. Here a chunk is a group of a `Layout` with the
rope mode `timeline`: time runs on through the film, with a jump of 8 before each cut. Attention is context-causal; history is
read clean, and of it a chunk sees the film's first chunk, the first chunk of the last finished cut, and the latest ones, so many
in all. The latents of a film are one stream, through all cuts, which the VAE decodes as one clip.

Source: NVlabs/LongLive (Apache-2.0), `configs/inference.yaml`, `pipeline/causal_diffusion_inference.py`,
`wan_5b/utils/fm_solvers_unipc.py`; `benchmarks/peers/longlive.py` shows that its own network and ours give the same.
"""

from collections.abc import Collection
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from longshot.bases.base import MultiShot
from longshot.bases.shots import ScenePass
from longshot.bases.wan import WAN22_5B, WanBase

CHUNK_FRAMES = 8  # latent frames
JUMP = 8  # latent frames of time before a cut
SEEN_CHUNKS = 4  # its own included: 32 latent frames
CUT = "The scene transitions. "
LEVELS = tuple(0.999 * n / 4 for n in (4, 3, 2, 1))  # noise levels of its four steps, before the shift

LONGLIVE2 = replace(
    WAN22_5B,
    name="longlive2",
    frame_offset=0,
    default_frames=128,
    max_frames=512,
    max_shots=16,
    guidance=1.0,
    steps=len(LEVELS),
    shift=5.0,
    solver="unipc",
    rope="timeline",
    cut=CUT,
    multishot=MultiShot(
        ("causal",),
        jump=JUMP,
        levels=LEVELS,
        block=CHUNK_FRAMES,
        history="blocks",
        stream=True,
        takes="nothing",
    ),
)


class LongLiveBase(WanBase):
    """A `Base` around LongLive 2.0's weights in diffusers' Wan pipeline. Its shots are one stream of latents."""

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        return super().run(scene.at_whole_timesteps())


def history(chunk: int, cuts: Collection[int], seen: int = SEEN_CHUNKS) -> tuple[int, ...]:
    """The earlier chunks that a chunk sees. chunk: its number from 1. cuts: numbers of the chunks that begin with a cut."""
    if chunk <= seen:
        return tuple(range(1, chunk))
    pinned = max((c for c in cuts if c < chunk), default=None)
    kept = [1] if pinned is None or pinned == 1 else [1, pinned]
    latest = [c for c in range(chunk - 1, 0, -1) if c not in kept][: max(seen - 1 - len(kept), 0)]
    return tuple(sorted({*kept, *latest}))
