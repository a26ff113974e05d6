"""HunyuanVideo-1.5 (text to video) through diffusers: an MMDiT whose text and video meet in one self-attention.

A shot's text has two parts: glyphs (ByT5, only where the prompt quotes text) and words (Qwen2.5-VL). Both are rows of one
feature tensor here: a flag, then the features, padded to the wider encoder's width. Image tokens (SigLIP) are
left out: the network decides over a whole batch whether it sees any, so a batch of shots can't mix (see `run`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from longshot.bases.base import Spec
from longshot.bases.hub import Folder, load_parts
from longshot.bases.pipeline import PipelineBase, single_shot_spec
from longshot.bases.shots import SceneAttention, ScenePass, turn_pairs
from longshot.errors import UserError
from longshot.model.rope import rotations

HUNYUAN15 = single_shot_spec(
    name="hunyuanvideo-1.5",
    licence="Tencent Hunyuan Community, limited by territory",
    size=(848, 480),
    stride=(4, 16, 16),
    channels=32,
    max_frames=121,
    max_text_tokens=1000,
    guidance=6.0,
    steps=50,
    shift=5.0,
    rope="anchor",
)


def spec_of(folder: Folder) -> Spec:
    """The facts of a HunyuanVideo-1.5 pipeline, from its configs."""
    from dataclasses import replace

    network, vae = folder.config("transformer"), folder.config("vae")
    try:
        patch = (int(network["patch_size_t"]), int(network["patch_size"]), int(network["patch_size"]))
        time, space = int(vae["temporal_compression_ratio"]), int(vae["spatial_compression_ratio"])
        channels = int(vae["latent_channels"]) * int(np.prod(patch))
        stride = (time * patch[0], space * patch[1], space * patch[2])
        if int(network["in_channels"]) != 2 * int(vae["latent_channels"]) + 1:
            raise ValueError(
                f"in_channels {network['in_channels']} for {vae['latent_channels']} latent channels"
            )
        if network.get("use_meanflow"):
            raise UserError(
                f"{folder.path}: is a MeanFlow model, made for super-resolution; use a text-to-video one"
            )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder.path}: its config can't be read ({error!r})") from error
    scheduler, guider = folder.config("scheduler"), _guider(folder)
    return replace(
        HUNYUAN15,
        name=folder.name,
        stride=stride,
        channels=channels,
        shift=float(scheduler.get("shift") or HUNYUAN15.shift),
        guidance=float(guider.get("guidance_scale") or HUNYUAN15.guidance),
    )


def _guider(folder: Folder) -> dict:
    import json

    file = folder.path / "guider" / "guider_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Hunyuan15Base(PipelineBase):
    """A `Base` around diffusers' HunyuanVideo-1.5 pipeline."""

    TEXT_TAKES_PART = True
    ENCODERS = ("text_encoder", "text_encoder_2")

    def __init__(self, pipe: Any, spec: Spec):
        config = pipe.transformer.config
        axes, theta = tuple(config.rope_axes_dim), config.rope_theta
        super().__init__(
            pipe,
            spec,
            patch=(config.patch_size_t, config.patch_size, config.patch_size),
            sizes=(config.num_layers, config.num_attention_heads, config.attention_head_dim),
            attention=SceneAttention(turn_pairs, lambda position: rotations(position, axes, theta)),
        )
        for layer, block in enumerate(self.network.transformer_blocks):
            block.attn.set_processor(_JointAttention(self.attention, layer))
        self.widths = (config.text_embed_dim, config.text_embed_2_dim)

    @staticmethod
    def spec_of(folder: Folder) -> Spec:
        return spec_of(folder)

    @classmethod
    def load(
        cls, folder: Folder, dtype: torch.dtype = torch.float32, read_text: bool = True
    ) -> "Hunyuan15Base":
        """The base in a diffusers folder, see `hub.load_parts`. Raises UserError."""
        from diffusers import (
            AutoencoderKLHunyuanVideo15,
            HunyuanVideo15Pipeline,
            HunyuanVideo15Transformer3DModel,
        )
        from diffusers.guiders import ClassifierFreeGuidance
        from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
        from transformers import Qwen2_5_VLTextModel, T5EncoderModel

        spec = spec_of(folder)
        parts = load_parts(
            folder,
            dtype,
            read_text,
            text_encoder=Qwen2_5_VLTextModel,
            text_encoder_2=T5EncoderModel,
            transformer=HunyuanVideo15Transformer3DModel,
            vae=AutoencoderKLHunyuanVideo15,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=spec.shift)
        guider = ClassifierFreeGuidance(guidance_scale=spec.guidance)
        pipe = HunyuanVideo15Pipeline(**parts, scheduler=scheduler, guider=guider)
        return cls(pipe, spec)

    # -- text -----------------------------------------------------------------------------------------------------------
    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        """The ids of the words as the encoder's chat template holds them, the fixed instruction in front left out."""
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input

        chat = format_text_input([prompt], self.pipe.system_message)
        out = self.pipe.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return np.asarray(out["input_ids"][0][self.pipe.prompt_template_encode_start_idx :], np.int64)

    def _check_lengths(self, prompt: str) -> None:
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts

        self.check_length(prompt, self.pipe.tokenizer_max_length)
        glyphs, room = extract_glyph_texts(prompt), self.pipe.tokenizer_2_max_length
        if glyphs and (count := len(self.pipe.tokenizer_2(glyphs).input_ids)) > room:
            raise UserError(
                f"{self.spec.name} reads {room} tokens of quoted text; a prompt quotes {count}: {glyphs[:60]!r}..."
            )

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        return [self._features(prompt) for prompt in prompts]

    @torch.no_grad()
    def _features(self, prompt: str) -> Float[Tensor, "tokens width"]:
        self._check_lengths(prompt)
        words, is_word, glyphs, is_glyph = self.pipe.encode_prompt(prompt, device=self.device)
        width = max(self.widths)
        words, glyphs = words[0][is_word[0].bool()], glyphs[0][is_glyph[0].bool()]
        rows = [F.pad(x, (0, width - x.shape[1])) for x in (glyphs, words)]  # the order of the network
        flag = torch.cat([torch.ones_like(rows[0][:, :1]), torch.zeros_like(rows[1][:, :1])])
        return torch.cat([flag, torch.cat(rows)], 1)

    # -- pixels and the network -----------------------------------------------------------------------------------------
    def scale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        return latent * self.pipe.vae.config.scaling_factor

    def unscale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        return latent / self.pipe.vae.config.scaling_factor

    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        dtype, config = self.network.dtype, self.network.config
        videos = scene.videos(self.patch).to(dtype)
        words, is_word = self._texts(scene, glyphs=False)
        glyphs, is_glyph = self._texts(scene, glyphs=True)
        shots, _, *size = videos.shape
        # Text to video: no first frame beside the latent, and no image tokens. The network drops image tokens only where all of
        # a batch's are zero, so one shot with a picture here would make every other shot attend to zeros: none has one.
        empty = videos.new_zeros(shots, videos.shape[1] + 1, *size)
        no_image = videos.new_zeros(shots, 0, config.image_embed_dim)
        with self.attention.during(scene, words.shape[1] + glyphs.shape[1], self.device):
            out = self.network(
                hidden_states=torch.cat([videos, empty], 1),
                timestep=(scene.sigma * 1000).to(dtype),
                encoder_hidden_states=words.to(dtype),
                encoder_attention_mask=is_word,
                encoder_hidden_states_2=glyphs.to(dtype),
                encoder_attention_mask_2=is_glyph,
                image_embeds=no_image,
                return_dict=False,
            )[0]
        return scene.rows(out.float(), self.patch)

    def _texts(self, scene: ScenePass, glyphs: bool) -> tuple[Tensor, Tensor]:
        """One kind of text of every shot, padded to the longest, and which rows are real."""
        width = self.widths[glyphs]
        kind = [rows[rows[:, 0].bool() == glyphs][:, 1 : 1 + width] for rows in scene.text]
        length = max(len(rows) for rows in kind)
        padded = torch.stack([F.pad(rows, (0, 0, 0, length - len(rows))) for rows in kind])
        real = torch.tensor([len(rows) for rows in kind], device=padded.device)[:, None]
        return padded, torch.arange(length, device=padded.device)[None] < real


class _JointAttention:
    """Takes the place of `HunyuanVideo15AttnProcessor2_0` in one dual-stream block (not in the text refiner).

    The network has put the real text rows of every shot first, so the layout's rows are all that attention needs: no mask, where
    the processor it replaces builds one of [tokens, tokens] in every layer.
    """

    def __init__(self, attention: SceneAttention, layer: int):
        self.attention, self.layer = attention, layer

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        image_rotary_emb=None,
    ) -> tuple[Tensor, Tensor]:
        video: Tensor = hidden_states
        text: Any = encoder_hidden_states

        def heads(layer_v, layer_t, norm_v=None, norm_t=None) -> Tensor:
            v, t = layer_v(video).unflatten(2, (attn.heads, -1)), layer_t(text).unflatten(2, (attn.heads, -1))
            return torch.cat([v if norm_v is None else norm_v(v), t if norm_t is None else norm_t(t)], 1)

        q = heads(attn.to_q, attn.add_q_proj, attn.norm_q, attn.norm_added_q)
        k = heads(attn.to_k, attn.add_k_proj, attn.norm_k, attn.norm_added_k)
        v = heads(attn.to_v, attn.add_v_proj)
        out = self.attention.attend(self.layer, q, k, v).flatten(2, 3).to(q.dtype)
        video, text = out[:, : video.shape[1]], out[:, video.shape[1] :]
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)
