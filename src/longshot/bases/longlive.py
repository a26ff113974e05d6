"""LongLive 2.0 over Wan2.2-TI2V-5B: its weights, its places in time, and what each of its chunks sees.

LongLive makes a film chunk by chunk, a chunk being 8 latent frames of one shot. Here a chunk is a group of a `Layout` with the
rope mode `timeline`: time runs on through the film, with a jump of 8 before each cut. Attention is context-causal; history is
read clean (context_sigma 0), and of it a chunk sees the film's first chunk, the first chunk of the last finished cut, and the
latest ones, so many in all.

Source: NVlabs/LongLive (Apache-2.0), `configs/inference.yaml`; `benchmarks/peers/longlive.py` shows that its own network and
ours give the same.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longshot.bases.native import check_shapes
from longshot.bases.wan_names import diffusers_state
from longshot.errors import UserError

CHUNK_FRAMES = 8  # latent frames
JUMP = 8  # latent frames of time before a cut
SEEN_CHUNKS = 4  # its own included: 32 latent frames
CUT = "The scene transitions. "
STEPS = 4
SHIFT = 5.0


def history(chunk: int, cuts: Collection[int], seen: int = SEEN_CHUNKS) -> tuple[int, ...]:
    """The earlier chunks that a chunk sees. chunk: its number from 1. cuts: numbers of the chunks that begin with a cut."""
    if chunk <= seen:
        return tuple(range(1, chunk))
    pinned = max((c for c in cuts if c < chunk), default=None)
    kept = [1] if pinned is None or pinned == 1 else [1, pinned]
    latest = [c for c in range(chunk - 1, 0, -1) if c not in kept][: max(seen - 1 - len(kept), 0)]
    return tuple(sorted({*kept, *latest}))


def converted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """A LongLive state dict in the names of a diffusers transformer, every tensor there and of the right shape.

    wanted: the state dict of that transformer. place: what to call the weights in an error. Raises UserError.
    """
    renamed = diffusers_state(state, place)
    check_shapes(Path(place), dict(wanted), renamed)
    return {name: tensor.to(wanted[name].dtype) for name, tensor in renamed.items()}


def load_weights(base: Any, path: Path) -> None:
    """Puts LongLive's network into a loaded Wan2.2-TI2V-5B base, from a safetensors file of its state dict, strictly.

    The published file is a pickle, which longshot doesn't open: whoever trusts it saves its `generator` as safetensors first.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); of a .pt file, save the state dict under `generator` as one"
        ) from error
    with torch.no_grad():
        base.network.load_state_dict(converted(state, base.network.state_dict(), str(path)), strict=True)
