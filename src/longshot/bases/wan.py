"""Wan 2.1 and Wan2.2 TI2V-5B through diffusers: self-attention over the scene, cross-attention to each shot's own text.

Text has no place in self-attention here, so the global prompt is written before each shot's prompt and every shot reads both
(`Spec.prompts = "joined"`). Text is padded with zero features to 512 rows, which the network attends to: it was trained so.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from longshot.bases.base import Spec
from longshot.bases.hub import Folder, load_parts
from longshot.bases.pipeline import PipelineBase, single_shot_spec
from longshot.bases.shots import SceneAttention, ScenePass, turn_pairs
from longshot.errors import UserError
from longshot.model.rope import rotations

TEXT_ROWS = 512
THETA = 10000.0

WAN22_5B = single_shot_spec(
    name="wan2.2-ti2v-5b",
    licence="Apache-2.0",
    size=(1280, 704),
    stride=(4, 32, 32),
    channels=192,
    max_frames=121,
    max_text_tokens=TEXT_ROWS,
    guidance=5.0,
    steps=50,
    shift=5.0,
    rope="anchor",
)
WAN21_1B = replace(
    WAN22_5B,
    name="wan2.1-t2v-1.3b",
    fps=Fraction(16),
    size=(832, 480),
    stride=(4, 16, 16),
    channels=64,
    default_frames=81,
    max_frames=81,
    shift=3.0,
)
WAN21_14B = replace(WAN21_1B, name="wan2.1-t2v-14b", shift=5.0)


def spec_of(folder: Folder) -> Spec:
    """The facts of a Wan pipeline, from its configs. Raises UserError for one that can't be a scene model."""
    index, network, vae = (folder.config(part) for part in ("", "transformer", "vae"))
    if (index.get("transformer_2") or [None])[0] is not None or index.get("boundary_ratio") is not None:
        raise UserError(
            f"{folder.path}: has two transformers, one for high and one for low noise; shots at different noise levels in "
            "one pass can't use it. Use Wan2.2-TI2V-5B or Wan 2.1"
        )
    if network.get("image_dim") is not None or network.get("added_kv_proj_dim") is not None:
        raise UserError(f"{folder.path}: needs an image for every shot; use a text-to-video model of Wan")
    family = WAN22_5B if index.get("expand_timesteps") else WAN21_1B
    try:
        patch = tuple(int(n) for n in network["patch_size"])
        time, space = int(vae.get("scale_factor_temporal", 4)), int(vae.get("scale_factor_spatial", 8))
        channels = int(network["in_channels"]) * int(np.prod(patch))
        stride = (time * patch[0], space * patch[1], space * patch[2])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{folder.path}: its config can't be read ({error!r})") from error
    scheduler = folder.config("scheduler")
    shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or family.shift)
    return replace(family, name=folder.name, stride=stride, channels=channels, shift=shift)


class WanBase(PipelineBase):
    """A `Base` around diffusers' Wan pipeline."""

    TEXT_TAKES_PART = False

    def __init__(self, pipe: Any, spec: Spec):
        network = pipe.transformer
        dim = network.config.attention_head_dim
        side = 2 * (dim // 6)
        axes = (dim - 2 * side, side, side)
        super().__init__(
            pipe,
            spec,
            patch=tuple(network.config.patch_size),
            sizes=(network.config.num_layers, network.config.num_attention_heads, dim),
            attention=SceneAttention(turn_pairs, lambda position: rotations(position, axes, THETA)),
        )
        self.join_shots(network)

    def join_shots(self, network: Any) -> None:
        """Has the self-attention of a network run over the scene."""
        for layer, block in enumerate(network.blocks):
            block.attn1.set_processor(_SelfAttention(self.attention, layer))

    @staticmethod
    def spec_of(folder: Folder) -> Spec:
        return spec_of(folder)

    @classmethod
    def load(
        cls,
        folder: Folder,
        dtype: torch.dtype = torch.float32,
        network: Any = None,
        spec: Spec | None = None,
        read_text: bool = True,
    ) -> "WanBase":
        """The base in a diffusers folder, see `hub.load_parts`. Raises UserError.

        network, spec: published weights in place of the folder's own transformer, and what is known of them.
        """
        from diffusers import (
            AutoencoderKLWan,
            FlowMatchEulerDiscreteScheduler,
            WanPipeline,
            WanTransformer3DModel,
        )
        from transformers import UMT5EncoderModel

        spec = spec or spec_of(folder)
        kinds = {"text_encoder": UMT5EncoderModel, "vae": AutoencoderKLWan}
        own = {"transformer": WanTransformer3DModel} if network is None else {}
        parts = load_parts(folder, dtype, read_text, **kinds, **own)
        pipe = WanPipeline(
            **({} if network is None else {"transformer": network}),
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=spec.shift),
            expand_timesteps=bool(folder.config("").get("expand_timesteps")),
        )
        return cls(pipe, spec)

    # -- text -----------------------------------------------------------------------------------------------------------
    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return np.asarray(self.pipe.tokenizer(prompt_clean(prompt)).input_ids, np.int64)

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        features = []
        for prompt in prompts:
            count = self.check_length(prompt, TEXT_ROWS)
            rows, _ = self.pipe.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=TEXT_ROWS, device=self.device
            )
            features.append(rows[0, :count])
        return features

    # -- pixels and the network -----------------------------------------------------------------------------------------
    def scale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        mean, std = self._moments(latent)
        return (latent - mean) / std

    def unscale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        mean, std = self._moments(latent)
        return latent * std + mean

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and spread of latents, a channel each."""
        config = self.pipe.vae.config
        mean, std = (
            like.new_tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def read(self, scene: ScenePass) -> Float[Tensor, "shots rows width"]:
        """The rows of text that the shots of one pass attend to."""
        return scene.texts(TEXT_ROWS)

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        dtype = self.network.dtype
        with self.attention.during(scene, 0, self.device):
            out = self.network(
                hidden_states=scene.videos(self.patch).to(dtype),
                # One level a shot, not one a token as diffusers' own pipeline has it: that makes modulation
                # [tokens, 6, width] in fp32 in every block, 2 GB for a shot of 704p.
                timestep=scene.sigma * 1000,
                encoder_hidden_states=self.read(scene).to(dtype),
                return_dict=False,
            )[0]
        return scene.rows(out.float(), self.patch)


class _SelfAttention:
    """Takes the place of `WanAttnProcessor` in the self-attention of one block."""

    def __init__(self, attention: SceneAttention, layer: int):
        self.attention, self.layer = attention, layer

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ) -> Tensor:
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        heads = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        out = self.attention.attend(self.layer, *heads).flatten(2, 3)
        return attn.to_out[1](attn.to_out[0](out))
