"""Pretrained bases in miniature: diffusers pipelines with random weights and tokenizers made on the spot, a few MB each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = (
    "a dog waves in the snow walks out of an old house Character 1 2 cat red hat. , and then Story".split()
)


def tokenizer(pad: str = "<pad>", eos: str = "</s>"):
    """A tokenizer that knows some letters and words, and ends every text with `eos`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=[pad, eos, "<unk>"])
    made.train_from_iterator([" ".join(WORDS), "abcdefghijklmnopqrstuvwxyz[]"], trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, made.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token=eos, unk_token="<unk>")


@torch.no_grad()
def fill(*networks: torch.nn.Module, seed: int = 0) -> None:
    """Random weights everywhere, also where a fresh network has zeros and would agree with anything."""
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        network.eval()
        for name, weight in network.named_parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 10
            weight.copy_(torch.randn(weight.shape, generator=generator) * min(fan**-0.5, 0.3))
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight.add_(1)


def wan(second: bool = False) -> Any:
    """Wan2.2 TI2V-5B in small: the residual VAE with its own patches; `second` gives the kind of Wan 2.1."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    words = tokenizer()
    z = 4
    kind: dict[str, Any] = (
        {} if second else {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
        in_channels=3 if second else 12,
        out_channels=3 if second else 12,
        **kind,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=z,
        out_channels=z,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        qk_norm="rms_norm_across_heads",
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    )
    fill(transformer, vae, text)
    return WanPipeline(
        tokenizer=words,
        text_encoder=text,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        expand_timesteps=not second,
    )


def chat_tokenizer():
    """A tokenizer with a chat template whose instruction is as long as Qwen's: 108 tokens."""
    words = tokenizer(pad="<|endoftext|>", eos="<|im_end|>")
    said = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    words.chat_template = "{{ 'a ' * 108 }}" + said + " ."
    return words


def hunyuan15() -> Any:
    """HunyuanVideo-1.5 (text to video) in small."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        T5Config,
        T5EncoderModel,
    )

    words = chat_tokenizer()
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=6,
        rope_axes_dim=(4, 4, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, scaling_factor=0.8
    )
    text = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    glyphs = T5EncoderModel(T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    fill(transformer, vae, text, glyphs)
    return HunyuanVideo15Pipeline(
        text_encoder=text,
        tokenizer=words,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=glyphs,
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


@torch.no_grad()
def hunyuan15_velocity(pipe, latent: torch.Tensor, prompt: str, sigma: float) -> torch.Tensor:
    """One forward as diffusers' own pipeline makes it: all text padded, no picture."""
    text, mask, glyphs, glyph_mask = pipe.encode_prompt(prompt)
    cond, first = pipe.prepare_cond_latents_and_mask(latent, latent.dtype, latent.device)
    return pipe.transformer(
        torch.cat([latent, cond, first], 1),
        torch.tensor([sigma * 1000]),
        text,
        mask,
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=glyph_mask,
        image_embeds=torch.zeros(1, 5, pipe.vision_states_dim),
        return_dict=False,
    )[0]


def hunyuan15_film(pipe, latent, prompt: str, frames: int, steps: int, guidance: float, output: str):
    """diffusers' own pipeline, from given noise."""
    from diffusers.guiders import ClassifierFreeGuidance

    pipe.guider = ClassifierFreeGuidance(guidance_scale=guidance)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt,
        height=latent.shape[3] * 16,
        width=latent.shape[4] * 16,
        num_frames=frames,
        num_inference_steps=steps,
        latents=latent,
        output_type=output,
        return_dict=False,
    )[0]
    return made[0]


@torch.no_grad()
def wan_velocity(pipe, latent: torch.Tensor, prompt: str, sigma: float) -> torch.Tensor:
    """One forward as diffusers' own pipeline makes it: text padded to 512 rows, a noise level for every token."""
    text, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
    t = torch.tensor(sigma * 1000)
    if pipe.config.expand_timesteps:
        t = t.expand(latent[0, 0, :, ::2, ::2].numel())
    return pipe.transformer(latent, t[None], text, return_dict=False)[0]


def wan_film(pipe, latent: torch.Tensor, prompt: str, frames: int, steps: int, guidance: float, output: str):
    """diffusers' own pipeline, from given noise, over the noise levels of Wan's own sampler (1 down to 1/steps, shifted).

    Its Euler scheduler would put the last level at shift / 1000 instead; that is the one thing set here.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Levels(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, count=None, device=None):
            super().set_timesteps(sigmas=np.linspace(1, 0, count + 1)[:-1], device=device)

    own, pipe.scheduler = pipe.scheduler, Levels(shift=pipe.scheduler.config.shift)
    pipe.set_progress_bar_config(disable=True)
    factor = pipe.vae_scale_factor_spatial
    made = pipe(
        prompt,
        height=latent.shape[3] * factor,
        width=latent.shape[4] * factor,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latent,
        output_type=output,
        return_dict=False,
    )[0]
    pipe.scheduler = own
    return made[0]


def ltx2(**network) -> Any:
    """LTX-2 in small, sound and all, and the VAE's real strides. network: what else its config says."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    words = tokenizer()
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        decoder_spatial_padding_mode="zeros",  # a reflection takes two pixels at least
    )
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    vae.latents_std.copy_(torch.tensor([1.0, 2.0, 0.5, 1.5]))
    sound = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    sizes: dict[str, Any] = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
        rope_type="split",
    )
    transformer = LTX2VideoTransformer3DModel(**sizes | network)
    newer = not transformer.config.use_prompt_embeddings
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16 if newer else 8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        video_gated_attn=newer,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        audio_gated_attn=newer,
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=32,
        audio_hidden_dim=16,
    )
    text = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=dict(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=1,
            ),
            vision_config=dict(
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            ),
            mm_tokens_per_image=4,
            image_token_index=3,
            boi_token_index=4,
            eoi_token_index=5,
        )
    )
    fill(transformer, vae, connectors, text, sound, vocoder)
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        audio_vae=sound,
        text_encoder=text,
        tokenizer=words,
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
    )


@torch.no_grad()
def ltx2_velocity(pipe, latent: torch.Tensor, prompt: str, sigma: float) -> torch.Tensor:
    """One forward as diffusers' own pipeline makes it where it keeps sound apart, beside a sound that says nothing to it."""
    rows, mask, *_ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    video_text, audio_text, seen = pipe.connectors(rows, mask, padding_side="left")
    _, channels, t, h, w = latent.shape
    t_ = torch.tensor([sigma * 1000])
    v, _ = pipe.transformer(
        hidden_states=latent.flatten(2).mT,
        audio_hidden_states=torch.randn(1, 5, 4),
        encoder_hidden_states=video_text,
        audio_encoder_hidden_states=audio_text,
        timestep=t_,
        sigma=t_,
        encoder_attention_mask=seen,
        audio_encoder_attention_mask=seen,
        num_frames=t,
        height=h,
        width=w,
        fps=24.0,
        audio_num_frames=5,
        isolate_modalities=True,
        return_dict=False,
    )
    return v.mT.reshape(1, channels, t, h, w)


def ltx2_film(pipe, latent, prompt: str, frames: int, steps: int, guidance: float, output: str):
    """diffusers' own pipeline, sound and all, from given noise, with sound and video kept apart by the network's own switch.

    Its three other guidances, which longshot doesn't have, are off.
    """
    plain = type(pipe.transformer).forward
    pipe.transformer.forward = lambda *args, **kwargs: plain(
        pipe.transformer, *args, **kwargs | {"isolate_modalities": True}
    )
    pipe.set_progress_bar_config(disable=True)
    try:
        made = pipe(
            prompt,
            height=latent.shape[3] * 32,
            width=latent.shape[4] * 32,
            num_frames=frames,
            frame_rate=24.0,
            num_inference_steps=steps,
            guidance_scale=guidance,
            stg_scale=0.0,
            modality_scale=1.0,
            guidance_rescale=0.0,
            audio_guidance_scale=guidance,
            audio_stg_scale=0.0,
            audio_modality_scale=1.0,
            audio_guidance_rescale=0.0,
            latents=latent.flatten(2).mT,
            output_type=output,
            return_dict=False,
        )[0]
    finally:
        del pipe.transformer.forward
    if output == "latent":  # the pipeline hands them out as its VAE knows them
        vae = pipe.vae
        made = pipe._normalize_latents(made, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return made[0]


@dataclass(frozen=True)
class Small:
    """One base of the suite. size: pixels (width, height) of its small frames; velocity, film: diffusers' own way."""

    name: str
    make: Callable[[], Any]
    size: tuple[int, int]
    velocity: Callable[..., torch.Tensor]
    film: Callable[..., Any]


SMALL = [
    Small("wan2.2", wan, (64, 32), wan_velocity, wan_film),
    Small("wan2.1", lambda: wan(second=True), (32, 16), wan_velocity, wan_film),
    Small("hunyuan1.5", hunyuan15, (32, 16), hunyuan15_velocity, hunyuan15_film),
    Small("ltx2", ltx2, (64, 32), ltx2_velocity, ltx2_film),
]


def saved(small: Small, folder: Path) -> Path:
    """The pipeline as a folder that `load_base` opens."""
    path = folder / f"small-{small.name}"
    small.make().save_pretrained(path)
    return path
