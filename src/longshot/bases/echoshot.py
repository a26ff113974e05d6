"""EchoShot over Wan 2.1 1.3B: several shots of one person, made together.

All shots share one timeline, on which each begins 4 latent frames later than the one before it ends. Every shot reads the
prompts of all shots, joined, and is told its own apart by a rotation: the heads of a shot's queries, and those of its prompt's
keys, turn by 4 positions a shot in cross-attention too; the zero rows after the last prompt lie 10 positions past the last shot.

Source: D2I-ai/EchoShot (arXiv 2506.15838), `models/model.py`, `generate.py`; `benchmarks/peers/echoshot.py` shows that its own
network, and its network and sampler together, give the same as ours.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from longshot.bases.base import MultiShot, Spec
from longshot.bases.shots import ScenePass, turn_pairs
from longshot.bases.wan import THETA, WAN21_1B, WanBase
from longshot.errors import UserError
from longshot.model.rope import rotations

JUMP = 4  # latent frames between two shots, and positions of a shot in cross-attention
BEYOND = 10  # positions from the last shot to the zero rows after the prompts
SCENE_TEXT_ROWS = 2048

ECHOSHOT = replace(
    WAN21_1B,
    name="echoshot",
    licence="none given",
    default_frames=29,
    max_frames=77,
    max_shots=6,
    shift=5.0,
    solver="dpm++",
    rope="timeline",
    multishot=MultiShot(("joint",), jump=JUMP),
)


class EchoShotBase(WanBase):
    """A `Base` around EchoShot's weights in diffusers' Wan pipeline. Its shots see each other: no cache, no causal mode."""

    def __init__(self, pipe: Any, spec: Spec):
        super().__init__(pipe, spec)
        self.reading = _Reading(self.network.config.attention_head_dim)
        for block in self.network.blocks:
            block.attn2.set_processor(_CrossAttention(self.reading))

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        if scene.visibility != "scene" or scene.past.memories:
            raise UserError(
                f"{self.spec.name}: every shot reads all prompts, so there is no cache: give --mode joint"
            )
        self.reading.begin([len(rows) for rows in scene.text], SCENE_TEXT_ROWS, self.spec.name)
        return super().run(scene.at_whole_timesteps())

    def read(self, scene: ScenePass) -> Float[Tensor, "shots rows width"]:
        rows = torch.cat(scene.text)
        return F.pad(rows, (0, 0, 0, SCENE_TEXT_ROWS - len(rows))).expand(len(scene.text), -1, -1)


class _Reading:
    """Where the shots of one pass, and the rows of their joined prompts, lie in cross-attention. head_dim: one axis of it."""

    def __init__(self, head_dim: int):
        self.head_dim = head_dim
        self.shots = self.rows = torch.zeros(0, 0, 2)

    def begin(self, lengths: list[int], rows: int, name: str) -> None:
        """lengths: of each shot's prompt. Raises UserError where they have more than `rows` rows together."""
        if sum(lengths) > rows:
            raise UserError(
                f"{name} reads {rows} tokens a scene; its prompts have {sum(lengths)} together: shorten them"
            )
        count = len(lengths)
        places = [JUMP * shot for shot, length in enumerate(lengths) for _ in range(length)]
        places += [count - 1 + BEYOND] * (rows - len(places))
        self.shots, self.rows = self._table([JUMP * shot for shot in range(count)]), self._table(places)

    def _table(self, places: list[int]) -> Tensor:
        position = torch.zeros(len(places), 3, dtype=torch.int64)
        position[:, 0] = torch.tensor(places)
        return rotations(position, (self.head_dim, 0, 0), THETA)


class _CrossAttention:
    """Takes the place of `WanAttnProcessor` in the cross-attention of one block."""

    def __init__(self, reading: _Reading):
        self.reading = reading

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ) -> Tensor:
        assert encoder_hidden_states is not None
        words = encoder_hidden_states[:1]  # the same rows for every shot
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k, v = attn.norm_k(attn.to_k(words)), attn.to_v(words)
        k, v = (x.unflatten(2, (attn.heads, -1))[0] for x in (k, v))
        shots, rows = (table.to(q.device) for table in (self.reading.shots, self.reading.rows))
        q = turn_pairs(q.flatten(0, 1), shots.repeat_interleave(q.shape[1], 0)).view_as(q)
        k = turn_pairs(k, rows)
        q, k, v = q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(q, k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1))
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2, 3)))
