"""The traps of running scenes on networks made for single shots, each with tests of its own."""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapters import write_peft

import longshot
from longshot.bases.lora import apply, restore
from longshot.flow import add_noise, sigma_table
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Sampling, denoise, noise_of
from longshot.sample.plan import PlannedShot, autoregressive, together

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
    over_the_scene = [mask for keys, mask in masks if keys == layout.num_video or keys == len(layout.keys)]
    assert over_the_scene and all(mask is None for mask in over_the_scene)
    words = max(
        g.text for g in layout.groups
    )  # some networks mask the padding of a text, by itself or as keys
    assert all(mask is None or keys <= words for keys, mask in masks)


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
    assert all(out.ndim == 2 and len(out) == 3 for out in seen) and seen


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
    wider = Layout.single(*layout.groups, long, rope=base.spec.rope)
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


@torch.no_grad()
def test_every_shot_steps_by_its_own_noise_level_and_no_scheduler_of_diffusers_is_asked(base, monkeypatch):
    """Its Euler steps the wrong way when every token has a timestep, and can't noise to a level between its own."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    def refuse(*_, **__):
        raise AssertionError("a scheduler was asked")

    for scheduler in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler):
        for name in ("step", "set_timesteps", "scale_noise", "add_noise"):
            monkeypatch.setattr(scheduler, name, refuse, raising=False)
    calls = []

    class Noting(type(base)):
        def velocity(self, z, text, sigma, layout, visibility, past=None):
            v = super().velocity(z, text, sigma, layout, visibility, past)
            calls.append((z, sigma, v, layout))
            return v

    noting = object.__new__(Noting)
    noting.__dict__ = base.__dict__
    given = torch.randn(2, base.spec.channels, generator=torch.Generator().manual_seed(3))
    shots = [
        PlannedShot(1, "shot 1", "a dog", (2, 1, 1), (0, "1", 0), given=given),
        PlannedShot(2, "shot 2", "a cat", (1, 1, 2), (0, "2", 0)),
    ]
    between, levels = 0.37, sigma_table(2, 3.0)
    assert not (levels == between).any()
    (finished,) = denoise(noting, together("", shots, between), Sampling(steps=2, shift=3.0, guidance=1.0))
    held = add_noise(given, noise_of(shots[0], base.spec.channels), torch.tensor(between))
    z = noise_of(shots[1], base.spec.channels)
    for i, (seen, sigma, v, layout) in enumerate(calls):
        first, second = (span.slice for span in layout.video_spans)
        assert sigma.tolist() == pytest.approx([between, float(levels[i])])
        assert torch.equal(seen[first], held) and torch.allclose(seen[second], z, atol=1e-6)
        z = z + (levels[i + 1] - levels[i]) * v[second]
    assert len(calls) == 2 and torch.allclose(finished.latents[2], z, atol=1e-6)


@torch.no_grad()
def test_both_branches_of_guidance_can_read_one_history(base):
    """What the wordless branch then sees differs, since its own history read no words: so by default it keeps its own."""
    z, text, sigma, layout = scene(base)
    (history, new), (words, more) = layout.groups, text.split([g.text for g in layout.groups])
    nothing = base.encode_text([""])[0]
    silent = Group(1, len(nothing), history.grid)

    def remember(group: Group, rows: torch.Tensor) -> Context:
        alone = Layout.single(group, rope=base.spec.rope)
        return base.remember(z[: history.video], rows, sigma[:1], alone, "causal", [Context()])[1][0]

    worded, wordless = remember(history, words), remember(silent, nothing)
    after = z[history.video :]

    def branch(group: Group, rows: torch.Tensor, context: Context) -> torch.Tensor:
        one = Layout.single(*context.groups, group, past=1, rope=base.spec.rope)
        return base.velocity(after, rows, sigma[1:], one, "causal", [context])

    bare = Group(2, len(nothing), new.grid)
    both = Layout(((history, new), (history, bare)), (1, 1), base.spec.rope)
    v = base.velocity(
        torch.cat([after, after]),
        torch.cat([more, nothing]),
        sigma[1:].repeat(2),
        both,
        "causal",
        [worded, worded],
    )
    assert torch.allclose(v[: len(after)], branch(new, more, worded), atol=2e-5)
    assert torch.allclose(v[len(after) :], branch(bare, nothing, worded), atol=2e-5)
    assert not torch.allclose(v[len(after) :], branch(bare, nothing, wordless), atol=5e-5)


@torch.no_grad()
def test_a_lora_needs_nothing_of_diffusers_pipelines_which_not_all_can_load_one(base, small, tmp_path):
    """HunyuanVideo-1.5's has no LoRA loader at all."""
    if small.name == "hunyuan1.5":
        assert not hasattr(base.pipe, "load_lora_weights")
    query = next(
        n
        for n, _ in base.network.named_modules()
        if n.endswith(("attn1.to_q", "transformer_blocks.0.attn.to_q"))
    )
    made = write_peft(tmp_path / "one.safetensors", base.network, [query], seed=2)
    args = scene(base)
    before = base.velocity(*args, "scene")
    replaced = apply(base.network, [(str(tmp_path / "one.safetensors"), 0.5)], base.spec.name)
    try:
        changed = base.velocity(*args, "scene")
    finally:
        restore(base.network, replaced)
    weight, (down, up) = base.network.get_submodule(query).weight, made[query]
    own = weight.clone()
    weight.add_(0.5 * up @ down)
    by_hand = base.velocity(*args, "scene")
    weight.copy_(own)
    assert torch.allclose(changed, by_hand, atol=2e-5)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(base.velocity(*args, "scene"), before)


def test_torchao_which_prints_where_there_is_no_gpu_is_imported_only_inside_what_asks_for_it():
    for file in Path(longshot.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "torchao" for name in names), file
