"""LTX-2 through diffusers: the video half of a network that makes video and sound, with text cross-attended.

Sound is left out. The network has a stream for each, joined by cross-attention in every block; `isolate_modalities`, a switch
of its own forward (which its pipeline throws for one branch of guidance), takes those joins away, and what is left of the video
stream depends on no sound at all. So a shot is video only, and the sound stream runs over one token that nothing reads.

A shot's text is 1024 rows: the connectors, which stand between the text encoder and the network, put registers of their
own in the place of padding, and the network attends to them all.

Positions are seconds and pixels as fractions of (20 s, 2048 px), and only seconds are shifted from shot to shot.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from longshot.bases.base import Spec
from longshot.bases.hub import Folder, load_parts
from longshot.bases.pipeline import PipelineBase, single_shot_spec
from longshot.bases.shots import SceneAttention, ScenePass
from longshot.errors import UserError
from longshot.layout import Tokens

TEXT_ROWS = 1024

LTX2 = single_shot_spec(
    name="ltx-2",
    licence="LTX-2 community, free below $10M of yearly revenue",
    size=(768, 512),
    stride=(8, 32, 32),
    channels=128,
    max_frames=473,  # of 20 s, where its positions end
    max_text_tokens=TEXT_ROWS,
    guidance=3.0,
    steps=30,
    shift=16.2,
    rope="timeline",
    last_level=0.1,
    shifts=((1024, 0.95), (4096, 2.05)),
)


def spec_of(folder: Folder) -> Spec:
    """The facts of an LTX-2 pipeline, from its configs. Raises UserError for one that longshot can't run."""
    index, network, vae = (folder.config(part) for part in ("", "transformer", "vae"))
    encoder = (index.get("text_encoder") or [None, None])[1]
    if encoder != "Gemma3ForConditionalGeneration":
        raise UserError(
            f"{folder.path}: reads text with {encoder}; longshot runs LTX-2 with Gemma3ForConditionalGeneration"
        )
    if vae.get("timestep_conditioning"):
        raise UserError(f"{folder.path}: its VAE denoises while it decodes; use an LTX-2 whose VAE doesn't")
    try:
        if (int(network.get("patch_size", 1)), int(network.get("patch_size_t", 1))) != (1, 1):
            raise ValueError("patches of several latent pixels")
        time, height, width = (int(n) for n in network.get("vae_scale_factors", LTX2.stride))
        channels, seconds = int(network["in_channels"]), int(network.get("pos_embed_max_pos", 20))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path}: its config can't be read ({error!r})") from error
    spec = replace(LTX2, name=folder.name, stride=(time, height, width), channels=channels)
    most = (int(seconds * spec.fps) - 1) // time * time + 1
    w, h = spec.size
    tokens = (-(-spec.default_frames // time)) * (h // height) * (w // width)
    scheduler = folder.config("scheduler")
    last = float(scheduler.get("shift_terminal") or 0)
    spec = replace(spec, max_frames=most, shifts=_shifts(scheduler), last_level=last)
    fixed = float(scheduler.get("shift") or LTX2.shift)
    return replace(spec, shift=spec.shift_at(tokens) if spec.shifts else fixed)


def _shifts(scheduler: dict) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """Where its pipeline has the shift grow with the tokens of a shot, and how; see `Spec.shifts`."""
    if not scheduler.get("use_dynamic_shifting"):
        return None
    few, many = scheduler.get("base_image_seq_len", 1024), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.95), scheduler.get("max_shift", 2.05)
    return (int(few), float(low)), (int(many), float(high))


class LTX2Base(PipelineBase):
    """A `Base` around diffusers' LTX-2 pipeline, without its sound: neither that VAE nor the vocoder is loaded."""

    TEXT_TAKES_PART = False
    ENCODERS = ("text_encoder", "connectors")

    def __init__(self, pipe: Any, spec: Spec):
        network = pipe.transformer
        config = network.config
        sizes = (config.num_layers, config.num_attention_heads, config.attention_head_dim)
        super().__init__(pipe, spec, (1, 1, 1), sizes, _Attention(network, float(spec.fps)))
        for layer, block in enumerate(network.transformer_blocks):
            block.attn1.set_processor(_SelfAttention(self.attention, layer))

    @staticmethod
    def spec_of(folder: Folder) -> Spec:
        return spec_of(folder)

    @classmethod
    def load(cls, folder: Folder, dtype: torch.dtype = torch.float32, read_text: bool = True) -> "LTX2Base":
        """The base in a diffusers folder, see `hub.load_parts`. Raises UserError."""
        from diffusers import AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
        from diffusers.pipelines.ltx2 import LTX2TextConnectors
        from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
        from transformers import Gemma3ForConditionalGeneration

        spec = spec_of(folder)
        parts = load_parts(
            folder,
            dtype,
            read_text,
            text_encoder=Gemma3ForConditionalGeneration,
            connectors=LTX2TextConnectors,
            transformer=LTX2VideoTransformer3DModel,
            vae=AutoencoderKLLTX2Video,
        )
        no_sound: dict[str, Any] = {"audio_vae": None, "vocoder": None}
        scheduler = FlowMatchEulerDiscreteScheduler(shift=spec.shift)
        pipe = LTX2Pipeline(**parts, **no_sound, scheduler=scheduler)
        return cls(pipe, spec)

    # -- text -----------------------------------------------------------------------------------------------------------
    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        return np.asarray(self.pipe.tokenizer(prompt.strip()).input_ids, np.int64)

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        return [self._features(prompt) for prompt in prompts]

    @torch.no_grad()
    def _features(self, prompt: str) -> Float[Tensor, "tokens width"]:
        self.check_length(prompt, TEXT_ROWS)
        rows, is_word, *_ = self.pipe.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=TEXT_ROWS, device=self.device
        )
        side = self.pipe.tokenizer.padding_side
        for_video, _, is_seen = self.pipe.connectors(rows, is_word, padding_side=side)
        return for_video[0][is_seen[0].bool()]

    # -- pixels and the network -----------------------------------------------------------------------------------------
    def scale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        mean, std = self._moments(latent)
        return (latent - mean) * self.pipe.vae.config.scaling_factor / std

    def unscale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        mean, std = self._moments(latent)
        return latent * std / self.pipe.vae.config.scaling_factor + mean

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and spread of latents, a channel each."""
        vae = self.pipe.vae
        mean, std = (x.view(1, -1, 1, 1, 1).to(like) for x in (vae.latents_mean, vae.latents_std))
        return mean, std

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        dtype, config = self.network.dtype, self.network.config
        lengths = torch.tensor([len(rows) for rows in scene.text], device=self.device)
        words = scene.texts(int(lengths.max())).to(dtype)
        videos, levels = scene.videos(self.patch).to(dtype), scene.sigma * 1000
        shots, (t, h, w) = len(scene.groups), scene.box
        width = config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim
        with self.attention.during(scene, 0, self.device):
            out = self.network(
                hidden_states=rearrange(videos, "s c t h w -> s (t h w) c"),
                audio_hidden_states=videos.new_zeros(shots, 1, config.audio_in_channels),
                encoder_hidden_states=words,
                audio_encoder_hidden_states=words.new_zeros(shots, 1, width),
                timestep=levels,
                sigma=levels,
                encoder_attention_mask=torch.arange(words.shape[1], device=self.device) < lengths[:, None],
                num_frames=t,
                height=h,
                width=w,
                fps=float(self.spec.fps),
                audio_num_frames=1,
                isolate_modalities=True,
                return_dict=False,
            )[0]
        return scene.rows(rearrange(out.float(), "s (t h w) c -> s c t h w", t=t, h=h), self.patch)


class _Attention(SceneAttention):
    """Self-attention whose heads turn at frequencies of their own, by seconds and pixels.

    Inside a shot angles are the network's own, bit for bit: they are rounded in fp32, and at its fastest frequency, 16,000
    radians a turn of the axis, that rounding is what it knows. A shot's place in the film is added to them in fp64, so that
    a shot is the same wherever it lies.
    """

    def __init__(self, network: Any, fps: float):
        rope, config = network.rope, network.config
        turn = _turn_halves if rope.rope_type == "split" else _turn_neighbours
        super().__init__(turn, table=lambda position: position)
        self.rope, self.fps = rope, fps
        self.heads, self.half = config.num_attention_heads, config.attention_head_dim // 2
        speeds = rope.theta ** torch.linspace(0, 1, rope.dim // 6, dtype=torch.float64) * torch.pi / 2
        axes = torch.zeros(
            rope.dim // 6, 3, dtype=torch.float64
        )  # only time is shifted, not height nor width
        axes[:, 0] = speeds * 2 / rope.base_num_frames  # of a second
        unturned = torch.zeros(self.heads * self.half - axes.numel(), dtype=torch.float64)
        self.speeds = torch.cat([unturned, axes.flatten()])

    def _table(self, tokens: Tokens, device: torch.device) -> Float[Tensor, "tokens heads half 2"]:
        shots = (
            tokens.position[tokens.shot == shot] for shot in np.unique(tokens.shot)
        )  # in the layout's order
        tables = [self._shot(p.max(0) - p.min(0) + 1, int(p[0, 0]), device) for p in shots if len(p)]
        return torch.cat(tables) if tables else torch.zeros(0, self.heads, self.half, 2, device=device)

    def _shot(
        self, grid: Int64[np.ndarray, " 3"], start: int, device: torch.device
    ) -> Float[Tensor, "tokens heads half 2"]:
        """(cos, sin) of a shot's tokens. start: where in time it begins, in latent frames."""
        coords = self.rope.prepare_video_coords(1, *(int(n) for n in grid), device, fps=self.fps)
        cos, sin = (self._by_head(x) for x in self.rope(coords, device=device))
        if start:
            shift = start * self.rope.scale_factors[0] / self.fps * self.speeds.to(device)
            c, s = (x.unflatten(0, (self.heads, self.half)) for x in (shift.cos(), shift.sin()))
            cos, sin = cos.double() * c - sin.double() * s, sin.double() * c + cos.double() * s
        return torch.stack([cos, sin], -1).float()

    def _by_head(self, x: Tensor) -> Float[Tensor, "tokens heads half"]:
        """The network's own table, of which the interleaved kind holds each number twice."""
        if self.rope.rope_type == "split":
            return x[0].transpose(0, 1)
        return x[0, :, ::2].unflatten(1, (self.heads, self.half))


def _turn_neighbours(
    x: Float[Tensor, "tokens heads dim"], table: Float[Tensor, "tokens heads half 2"]
) -> Float[Tensor, "tokens heads dim"]:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


def _turn_halves(
    x: Float[Tensor, "tokens heads dim"], table: Float[Tensor, "tokens heads half 2"]
) -> Float[Tensor, "tokens heads dim"]:
    first, second = x.chunk(2, -1)
    cos, sin = table.unbind(-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)


class _SelfAttention:
    """Takes the place of LTX-2's processors in the self-attention of one block's video stream."""

    def __init__(self, attention: SceneAttention, layer: int):
        self.attention, self.layer = attention, layer

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        query_rotary_emb=None,
        key_rotary_emb=None,
        perturbation_mask=None,
        all_perturbed=None,
    ) -> Tensor:
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        heads = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        out = self.attention.attend(self.layer, *heads)
        if attn.to_gate_logits is not None:  # LTX-2.3: how much of each head is let through
            out = out * (2 * torch.sigmoid(attn.to_gate_logits(hidden_states))).unsqueeze(-1)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3)))
