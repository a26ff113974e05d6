"""Networks of pretrained bases wider than those of `pipelines`, without VAE and text encoder: what a block holds is what counts.

Each comes as its base, its shape, and the text of a prompt.
"""

from dataclasses import replace
from types import SimpleNamespace

import torch
from diffusers import HunyuanVideo15Transformer3DModel, LTX2VideoTransformer3DModel, WanTransformer3DModel

from longshot.bases.hunyuan15 import HUNYUAN15, Hunyuan15Base
from longshot.bases.ltx2 import LTX2, TEXT_ROWS, LTX2Base
from longshot.bases.shape import hunyuan15_shape, ltx2_shape, wan_shape
from longshot.bases.wan import WAN22_5B, WanBase


def wide_wan(heads: int = 4, dim: int = 24, mlp: int = 384, text: int = 64, layers: int = 2):
    """Wan with a network wide enough that what a block holds outweighs what a pass holds."""
    config = dict(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=dim, in_channels=4, out_channels=4
    )
    config |= dict(
        text_dim=text, freq_dim=16, ffn_dim=mlp, num_layers=layers, cross_attn_norm=True, rope_max_seq_len=64
    )
    spec = replace(WAN22_5B, channels=16)
    base = WanBase(SimpleNamespace(transformer=WanTransformer3DModel(**config).eval()), spec)
    return base, wan_shape(spec, config, 512), torch.zeros(20, text)


def narrow_wan():
    """Wan so small that what a pass holds outweighs what a block holds."""
    return wide_wan(heads=2, dim=12, mlp=32, text=16)


def wide_hunyuan15(heads: int = 4, dim: int = 24, ratio: float = 4.0, layers: int = 2):
    config = dict(
        num_attention_heads=heads,
        attention_head_dim=dim,
        num_layers=layers,
        num_refiner_layers=1,
        mlp_ratio=ratio,
    )
    config |= dict(patch_size=1, patch_size_t=1, in_channels=9, out_channels=4, text_embed_dim=16)
    config |= dict(text_embed_2_dim=8, image_embed_dim=6)
    network = HunyuanVideo15Transformer3DModel(**config, rope_axes_dim=(dim // 3,) * 3).eval()
    spec = replace(HUNYUAN15, channels=4)
    base = Hunyuan15Base(SimpleNamespace(transformer=network), spec)
    return base, hunyuan15_shape(spec, config), torch.zeros(20, 17)


def narrow_hunyuan15():
    return wide_hunyuan15(heads=2, dim=12, ratio=2.0)


def wide_ltx2(heads: int = 4, dim: int = 24, text: int = 64, rope: str = "split", layers: int = 2):
    config: dict = dict(
        in_channels=4, out_channels=4, audio_in_channels=4, audio_out_channels=4, num_layers=layers
    )
    config |= dict(num_attention_heads=heads, attention_head_dim=dim, cross_attention_dim=heads * dim)
    config |= dict(audio_num_attention_heads=heads, audio_attention_head_dim=dim // 2)
    config |= dict(audio_cross_attention_dim=heads * dim // 2, caption_channels=text, rope_type=rope)
    spec = replace(LTX2, channels=4)
    base = LTX2Base(SimpleNamespace(transformer=LTX2VideoTransformer3DModel(**config).eval()), spec)
    return base, ltx2_shape(spec, config), torch.zeros(TEXT_ROWS, text)


def narrow_ltx2():
    return wide_ltx2(heads=2, dim=16, text=16)


def interleaved_ltx2():
    return wide_ltx2(rope="interleaved")
