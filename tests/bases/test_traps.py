"""The traps of running scenes on networks made for single shots, one test each."""

import pytest
import torch
import torch.nn.functional as F

from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Sampling, denoise
from longshot.sample.plan import PlannedShot, autoregressive

GRID = (2, 2, 2)


def scene(base, count: int = 2, prompts=("a dog waves", "a cat walks out"), grid=GRID):
    text = base.encode_text([prompts[i % len(prompts)] for i in range(count)])
    groups = [Group(i + 1, len(t), grid) for i, t in enumerate(text)]
    layout = Layout.single(*groups, rope=base.spec.rope)
    z = torch.randn(layout.num_video, base.spec.channels, generator=torch.Generator().manual_seed(1))
    return z, torch.cat(text), torch.linspace(0.2, 0.9, count), layout


@torch.no_grad()
def test_no_mask_over_the_scene_is_ever_built(base, monkeypatch):
    """diffusers' dispatcher turns a block-causal mask into all True, and a dense one is 11 GiB at 110k tokens."""
    masks = []
    plain = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        masks.append((key.shape[-2], attn_mask))
        return plain(query, key, value, attn_mask, *args, **kwargs)

    z, text, sigma, layout = scene(base, 3)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    base.velocity(z, text, sigma, layout, "causal")
    over_the_scene = [mask for keys, mask in masks if keys >= layout.num_video]
    assert over_the_scene and all(mask is None for mask in over_the_scene)


@torch.no_grad()
def test_the_noise_level_is_embedded_once_a_shot_and_not_once_a_token(base):
    seen = []
    embed = (
        base.network.condition_embedder
        if hasattr(base.network, "condition_embedder")
        else base.network.time_embed
    )
    hook = embed.register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        base.velocity(*scene(base, 3), "scene")
    finally:
        hook.remove()
    assert all(out.shape == (3, base.sizes[1] * base.sizes[2]) for out in seen) and seen


@torch.no_grad()
def test_shots_far_along_the_diagonal_are_what_they_are_at_its_start(base):
    """Frequencies are computed for any position: Wan's own table ends (here at 32 rows, in the real one at 1024)."""
    z, text, sigma, layout = scene(base, 24)
    assert layout.queries.position.max() > 40
    v = base.velocity(z, text, sigma, layout, "shot")
    last = layout.groups[-1]
    alone = Layout.single(last, rope=base.spec.rope)
    own = base.velocity(z[-last.video :], text[-last.text :], sigma[-1:], alone, "scene")
    assert torch.allclose(v[-last.video :], own, atol=2e-5)


def test_nine_shots_stay_within_a_turn_of_the_slowest_axis():
    """Hunyuan's slowest axis wraps near 1,300 positions: anchored text spends 53 a 480p shot, diagonal text over 300."""
    shots = [Group(i + 1, 256, (31, 30, 53)) for i in range(9)]
    assert Layout.single(*shots, rope="anchor").queries.position.max() < 9 * 53
    assert Layout.single(*shots, rope="interleaved").queries.position.max() > 1300


@torch.no_grad()
def test_a_later_prompt_cannot_reach_an_earlier_shot(base):
    """A text refiner over all rows would carry it there, whatever attention masks."""
    z, text, sigma, layout = scene(base)
    first = base.velocity(z, text, sigma, layout, "causal")[: layout.groups[0].video]
    text = text.clone()
    text[-layout.groups[1].text :] *= 2
    assert torch.equal(base.velocity(z, text, sigma, layout, "causal")[: len(first)], first)


@torch.no_grad()
def test_padding_in_the_batch_changes_no_shot(base):
    z, text, sigma, layout = scene(base)
    long = Group(3, layout.groups[0].text, (5, 2, 3))
    more = torch.randn(long.video, base.spec.channels)
    wider = Layout.single(*layout.groups, long, rope="anchor")
    words = torch.cat([text, text[: long.text]])
    v = base.velocity(torch.cat([z, more]), words, torch.tensor([*sigma, 0.5]), wider, "causal")
    assert torch.allclose(v[: len(z)], base.velocity(z, text, sigma, layout, "causal"), atol=2e-5)


@torch.no_grad()
def test_what_is_remembered_depends_on_the_noise_level_it_was_read_at(base):
    z, text, _, layout = scene(base, 1)
    read = [
        base.remember(z, text, torch.tensor([s]), layout, "causal", [Context()])[1][0] for s in (0.1, 0.5)
    ]
    assert [m.sigma for c in read for m in c.memories] == pytest.approx([0.1, 0.5])
    assert not torch.allclose(read[0].memories[0].keys, read[1].memories[0].keys, atol=1e-3)


def test_history_is_written_once_a_finished_shot_and_never_again(base):
    written = []

    class Counting(type(base)):
        def remember(self, z, text, sigma, layout, visibility, past=None):
            written.append([g.shot for g in layout.groups])
            return super().remember(z, text, sigma, layout, visibility, past)

    counting = object.__new__(Counting)
    counting.__dict__ = base.__dict__
    shots = [PlannedShot(i, f"shot {i}", "a dog", (1, 1, 1), (0, str(i), 0)) for i in (1, 2, 3)]
    list(denoise(counting, autoregressive("", shots), Sampling(steps=3, guidance=2.0)))
    assert written == [[1, 1], [2, 2], [3, 3]]  # both branches of guidance in one go


@torch.no_grad()
def test_a_picture_beside_a_clip_brings_no_image_tokens_into_the_batch(base, small):
    """HunyuanVideo-1.5 decides over the whole batch whether image tokens count; a picture is a one-frame shot instead."""
    if small.name != "hunyuan1.5":
        pytest.skip("only HunyuanVideo-1.5 has image tokens in its text")
    seen = []
    block = base.network.transformer_blocks[0]
    hook = block.register_forward_pre_hook(
        lambda module, args: seen.append((args[1].shape[1], args[3].sum(1).tolist()))
    )
    try:
        z, text, sigma, layout = scene(base)
        base.velocity(z, text, sigma, layout, "scene")
    finally:
        hook.remove()
    assert seen == [(max(g.text for g in layout.groups), [g.text for g in layout.groups])]


@torch.no_grad()
def test_quoted_text_is_read_by_the_glyph_encoder_too(base, small):
    if small.name != "hunyuan1.5":
        pytest.skip("only HunyuanVideo-1.5 has one")
    plain, quoted = base.encode_text(["a dog", 'a dog "in"'])
    assert not plain[:, 0].any() and quoted[:, 0].any()
