"""HoloCine over Wan2.2 T2V-A14B: a film of several shots as one stream, made together.

Latent frames lie one after the other on one timeline, without a jump at a cut, and all see each other. What tells shots apart is
what they read: all prompts are encoded as one text, of which a shot reads the global part and its own, and the zero rows after
the text. Each part reaches one token further than its words do. Two networks share the work: one for noise levels from 0.875 up,
the other below, so all shots of a pass are at one level.

Source: yihao-meng/HoloCine (arXiv 2510.20822), `pipelines/wan_video_holocine.py`, `prompters/wan_prompter.py`;
`benchmarks/peers/holocine.py` shows that its own network and ours give the same.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from longshot.bases.base import MultiShot, Spec
from longshot.bases.hub import Folder, fingerprint
from longshot.bases.shots import ScenePass
from longshot.bases.wan import TEXT_ROWS, WAN21_14B, WanBase
from longshot.errors import UserError
from longshot.scene import SHOT_CUT

BOUNDARY = 0.875  # the noise level from which the first network is used
_CHARACTER = re.compile(r"\b[Cc]haracter (\d+)\b")


HOLOCINE = replace(
    WAN21_14B,
    name="holocine",
    licence="CC-BY-NC-SA-4.0",
    frame_offset=0,
    default_frames=48,
    max_frames=240,
    shift=5.0,
    rope="timeline",
    multishot=MultiShot(("joint",), stream=True, reads="scene", takes="nothing"),
)


class HoloCineBase(WanBase):
    """A `Base` around HoloCine's weights in diffusers' Wan pipeline: `transformer` for much noise, `transformer_2` for little."""

    def __init__(self, pipe: Any, spec: Spec):
        super().__init__(pipe, spec)
        self.reading = _Reading()
        self.first, self.second = self.network, getattr(pipe, "transformer_2", None)
        for network in (self.first, self.second):
            if network is not None:
                self.join_shots(network)
                for block in network.blocks:
                    block.attn2.set_processor(_CrossAttention(self.reading))

    @classmethod
    def load(
        cls,
        folder: Folder,
        dtype: torch.dtype = torch.float32,
        network: Any = None,
        spec: Spec | None = None,
        read_text: bool = True,
        second: Any = None,
    ) -> "HoloCineBase":
        """See `WanBase.load`. second: the network for noise levels below `BOUNDARY`."""
        pipe = super().load(folder, dtype, network, spec, read_text).pipe
        pipe.register_modules(transformer_2=second)
        return cls(pipe, spec or HOLOCINE)

    def fingerprint(self) -> str:
        networks = [n for n in (self.first, self.second) if n is not None]
        return fingerprint(*networks, self.pipe.vae, self.pipe.text_encoder)

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        """With the zero rows after the text, which it reads too."""
        return [F.pad(rows, (0, 0, 0, TEXT_ROWS - len(rows))) for rows in super().encode_text(prompts)]

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        if scene.visibility != "scene" or scene.past.memories:
            raise UserError(f"{self.spec.name}: its shots are made together: give --mode joint")
        self.reading.lengths = [len(rows) for rows in scene.text]
        is_noisy = scene.sigma >= BOUNDARY
        if self.second is None:
            return super().run(scene)
        if is_noisy.any() and not is_noisy.all():
            raise UserError(
                f"{self.spec.name}: has one network for much noise and one for little, so all its shots are made at once: give "
                "no pictures, clips or finished shots"
            )
        self.network = self.first if is_noisy.any() else self.second
        try:
            return super().run(scene)
        finally:
            self.network = self.first

    def encode_scene(self, global_prompt: str, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        """What each shot reads: its rows of the one text, and the zero rows after it."""
        text, spans = wording(global_prompt, prompts)
        self.check_length(text, TEXT_ROWS)
        words = self.pipe.tokenizer(text, return_offsets_mapping=True)
        shared, own = rows_of(words["offset_mapping"], spans)
        rows = self.encode_text([text])[0]
        rows = F.pad(rows, (0, 0, 0, TEXT_ROWS - len(rows)))
        return [rows[torch.tensor(some)] for some in rows_read(shared, own, TEXT_ROWS)]


def wording(global_prompt: str, prompts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The one text that all shots are read from, and where in it the global part and then each shot's part lie."""
    counted = f"This scene contains {len(prompts)} shots."
    top = (
        global_prompt.strip()
        if "This scene contains" in global_prompt
        else f"{global_prompt} {counted}".strip()
    )
    pieces = [f"[global caption] {top} "]
    for n, prompt in enumerate(prompts):
        start = "[per shot caption] " if n == 0 else " "
        end = " [shot cut]" if n < len(prompts) - 1 else ""
        pieces.append(start + prompt.removeprefix(SHOT_CUT).strip() + end)
    pieces = [_CHARACTER.sub(r"[character\1]", piece) for piece in pieces]
    spans, at = [], 0
    for piece in pieces:
        spans.append((at, at + len(piece)))
        at += len(piece)
    return "".join(pieces), spans


def rows_of(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> tuple[range, list[range]]:
    """The rows of the global part and of each shot's, one further than its last word. offsets: characters of each token."""
    found = []
    for start, stop in spans:
        inside = [n for n, (a, b) in enumerate(offsets) if a < b and b > start and a < stop]
        found.append(range(min(inside), max(inside) + 2))
    return found[0], found[1:]


def rows_read(shared: range, own: Sequence[range], total: int) -> list[list[int]]:
    """Of each shot the rows that it reads: the shared ones, its own, and those after all text."""
    after = range(max(shared.stop, *(r.stop for r in own)), total)
    return [sorted({*shared, *some, *after}) for some in own]


class _Reading:
    """How many rows of text each shot of one pass reads; the batch holds them padded to one length."""

    def __init__(self):
        self.lengths: list[int] = []


class _CrossAttention:
    """Takes the place of `WanAttnProcessor` in the cross-attention of one block."""

    def __init__(self, reading: _Reading):
        self.reading = reading

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ) -> Tensor:
        assert encoder_hidden_states is not None
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(encoder_hidden_states))
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, attn.to_v(encoder_hidden_states))
        )
        out = [
            F.scaled_dot_product_attention(q[n : n + 1], k[n : n + 1, :, :length], v[n : n + 1, :, :length])
            for n, length in enumerate(self.reading.lengths)
        ]
        return attn.to_out[1](attn.to_out[0](torch.cat(out).transpose(1, 2).flatten(2, 3)))
