"""What is remembered: caches that equal a mask, contexts as values, and files of them."""

import json
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from core_fixtures import few, inputs, levels, network, noise, quiet, scene_groups, seeds
from longshot.errors import UserError
from longshot.layout import Group, Layout, global_group
from longshot.model.context import Context, Memory, join_past
from longshot.model.mmdit import MMDiT, memories_from

pytestmark = quiet
NET = network().requires_grad_(False)
GROUPS = (global_group(2), Group(1, 3, (2, 2, 1)), Group(2, 1, (1, 2, 2)), Group(3, 2, (1, 1, 3)))


def rows(groups: tuple[Group, ...], start: int, stop: int, seed: int) -> tuple[torch.Tensor, ...]:
    """z, text and sigma of groups start..stop of one scene."""
    whole = Layout.single(*groups)
    z, text, sigma = inputs(whole, NET, seed)
    group = torch.arange(start, stop)
    in_video = torch.isin(torch.from_numpy(whole.group_of_video), group)
    in_text = torch.isin(torch.from_numpy(whole.group_of_text), group)
    return z[in_video], text[in_text], sigma[start:stop]


def remember(
    groups: tuple[Group, ...],
    context: Context,
    stop: int,
    seed: int = 0,
    visibility: str = "causal",
    net: MMDiT = NET,
) -> tuple[torch.Tensor, Context]:
    """The prediction for the groups from the context's end up to `stop`, and the context that holds them too."""
    start = len(context.memories)
    layout = Layout.single(*groups[:stop], past=start)
    z, text, sigma = rows(groups, start, stop, seed)
    kept: list = []
    out = net(z, text, sigma, layout, visibility, [context], keep=kept)
    return out, context.extended(memories_from(kept, layout, sigma)[0])


def story(stop: int = 4, visibility: str = "causal", net: MMDiT = NET) -> Context:
    return remember(GROUPS, Context(), stop, visibility=visibility, net=net)[1]


def same(a: Context, b: Context, atol: float = 1e-10) -> bool:
    return a.groups == b.groups and all(
        x.sigma == y.sigma
        and torch.allclose(x.keys, y.keys, rtol=0, atol=atol)
        and torch.allclose(x.values, y.values, rtol=0, atol=atol)
        for x, y in zip(a.memories, b.memories, strict=True)
    )


# -- caches -----------------------------------------------------------------------------------------------------------------
@few
@given(scene_groups(max_shots=4, min_shots=2), st.sets(st.integers(1, 4)), seeds)
def test_a_cache_equals_the_causal_mask_however_the_story_is_split(groups, cuts, seed):
    edges = [0, *sorted(c for c in cuts if c < len(groups)), len(groups)]
    whole, all_at_once = remember(groups, Context(), len(groups), seed)
    context, pieces = Context(), []
    for _, stop in pairwise(edges):
        out, context = remember(groups, context, stop, seed)
        pieces.append(out)
    assert torch.allclose(torch.cat(pieces), whole, rtol=0, atol=1e-10)
    assert same(context, all_at_once)


@few
@given(scene_groups(min_shots=2), scene_groups(min_shots=2), st.booleans(), seeds)
def test_caches_of_packed_scenes_do_not_mix(first, second, both, seed):
    # As in guided sampling: two branches, of which only one may remember something yet.
    past = (len(first) - 1, len(second) - 1 if both else 0)
    layout = Layout((first, second), past, pad=2)
    contexts, alone, parts = [], [], []
    for groups, n in zip((first, second), past, strict=True):
        contexts.append(remember(groups, Context(), n, seed)[1] if n else Context())
        alone.append(remember(groups, contexts[-1], len(groups), seed)[0])
        parts.append(rows(groups, n, len(groups), seed))
    z, text, sigma = (torch.cat(p) for p in zip(*parts, strict=True))
    for kernel in ("prefix", "dense"):
        packed = NET(z, text, sigma, layout, "causal", contexts, kernel)
        assert torch.allclose(packed, torch.cat(alone), rtol=0, atol=1e-10)


def test_what_is_remembered_does_not_depend_on_shots_that_come_later():
    assert same(story(4).before(3), story(3))


def test_the_noise_level_of_history_changes_what_is_remembered_and_is_written_down():
    z, text, sigma = rows(GROUPS, 0, 4, 0)
    layout = Layout.single(*GROUPS)
    kept: list = []
    NET(z, text, sigma, layout, "causal", keep=kept)
    memories = memories_from(kept, layout, sigma)[0]
    assert [m.sigma for m in memories] == sigma.tolist()
    other: list = []
    NET(z, text, sigma * 0.5, layout, "causal", keep=other)
    assert not torch.allclose(kept[0][0], other[0][0])


def test_a_context_without_its_first_shots_is_placed_as_if_they_had_never_been():
    # Under `shot` visibility what a shot leaves behind doesn't depend on the others, and keys are kept unrotated: a chosen
    # history must equal one that was made of those shots alone, and take positions without gaps.
    chosen = story(4, "shot").select([2, 3])
    new = Group(4, 2, (1, 2, 1))
    z, text, sigma = noise(1, 2, 6), noise(2, 2, 24), levels(3, 1)
    layout = Layout.single(*chosen.groups, new, past=2)
    assert layout.keys.position[0].tolist() == [0, 0, 0]
    after_choice = NET(z, text, sigma, layout, "causal", [chosen])
    parts = [rows(GROUPS, k, k + 1, 0) for k in (2, 3)]
    own_z, own_text, own_sigma = (torch.cat(p) for p in zip(*parts, strict=True))
    own_layout = Layout.single(*GROUPS[2:])
    kept: list = []
    NET(own_z, own_text, own_sigma, own_layout, "shot", keep=kept)
    made_alone = Context().extended(memories_from(kept, own_layout, own_sigma)[0])
    # The fp32 rotations of other coordinates: 6e-8 an entry.
    assert same(chosen, made_alone, atol=3e-6)
    expected = NET(z, text, sigma, layout, "causal", [made_alone])
    assert torch.allclose(after_choice, expected, rtol=0, atol=3e-6)


def test_the_history_that_is_seen_matters():
    new = Group(4, 2, (1, 2, 1))
    z, text, sigma = noise(1, 2, 6), noise(2, 2, 24), levels(3, 1)
    outs = []
    for shots in ([0, 1, 2, 3], [0, 1], [0, 3], []):
        context = story().select(shots)
        outs.append(
            NET(z, text, sigma, Layout.single(*context.groups, new, past=len(shots)), "causal", [context])
        )
    assert not any(torch.allclose(a, b) for i, a in enumerate(outs) for b in outs[:i])


def test_remembered_rows_come_before_the_new_ones_of_their_scene_and_padding_comes_last():
    def row(*values):
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)

    joined = join_past(row(1, 2, 3, 9), [row(10, 11), None], [1, 2])
    assert joined.flatten().tolist() == [10, 11, 1, 2, 3, 9]


# -- contexts are values ----------------------------------------------------------------------------------------------------
def test_a_context_is_a_value_that_no_operation_changes():
    context = story()
    before = [m.keys.clone() for m in context.memories]
    context.select([1]), context.before(2), context.extended(story(2).memories)
    remember((*GROUPS, Group(4, 1, (1, 1, 1))), context, 5)
    assert context.shots == (0, 1, 2, 3)
    assert all(torch.equal(a, m.keys) for a, m in zip(before, context.memories, strict=True))


def test_select_keeps_story_order_and_before_keeps_what_a_branch_starts_from():
    context = story()
    assert context.select([3, 0, 1]).shots == (0, 1, 3)
    assert context.before(2).shots == (0, 1) and context.before(0).shots == ()
    assert context.select([]).memories == ()


def test_select_of_a_shot_that_is_not_remembered_names_it():
    with pytest.raises(KeyError, match=r"not in the context: shots \[7, 9\]; it holds \[0, 1, 2, 3\]"):
        story().select([1, 9, 7])


def test_extended_puts_shots_in_story_order_and_replaces_what_is_there():
    context = story()
    louder = replace(context.memories[2], keys=context.memories[2].keys * 2)
    again = context.select([0, 3]).extended([louder, context.memories[1]])
    assert again.shots == (0, 1, 2, 3) and torch.equal(again.memories[2].keys, louder.keys)
    assert torch.equal(context.extended([louder]).memories[2].keys, louder.keys)


def test_the_size_of_a_context_is_that_of_its_keys_and_values():
    tokens = sum(g.tokens for g in GROUPS)
    assert story().nbytes == 2 * 2 * tokens * 24 * 8  # keys and values, layers, tokens, width, float64


# -- files ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_context_comes_back_from_disk_bit_for_bit(tmp_path, dtype):
    context = story(net=NET if dtype == torch.float64 else network(dtype=dtype).requires_grad_(False))
    context.save(tmp_path / "a" / "context.safetensors")
    loaded = Context.load(tmp_path / "a" / "context.safetensors")
    assert loaded.groups == context.groups
    for a, b in zip(loaded.memories, context.memories, strict=True):
        assert a.sigma == b.sigma and a.keys.dtype == dtype
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["context.safetensors"]


def with_pictures(context: Context) -> Context:
    """The same, with a last picture of each shot."""
    sizes = [(g.grid[1] * g.grid[2], 24) for g in context.groups]
    pairs = zip(context.memories, sizes, strict=True)
    return Context(tuple(replace(m, last=noise(m.group.shot, *size)) for m, size in pairs))


def test_the_last_pictures_come_back_from_disk_and_count_in_the_size(tmp_path):
    context = with_pictures(story())
    context.save(tmp_path / "context.safetensors")
    loaded = Context.load(tmp_path / "context.safetensors")
    assert all(torch.equal(a.last, b.last) for a, b in zip(loaded.memories, context.memories, strict=True))
    assert all(m.last is None for m in story().memories)
    pixels = sum(g.grid[1] * g.grid[2] for g in GROUPS) * 24
    assert context.nbytes == story().nbytes + 8 * pixels  # float64


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_last_picture_stays_exact_in_a_narrower_cache(dtype):
    context = with_pictures(story())
    stored = context.stored(dtype, "cpu")
    assert all(torch.equal(a.last, b.last) for a, b in zip(stored.memories, context.memories, strict=True))
    assert all(m.last.is_meta for m in context.stored(dtype, "meta").memories)


def test_ten_shots_and_more_come_back_in_story_order(tmp_path):
    memory = story().memories[1]
    many = Context().extended(
        Memory(replace(memory.group, shot=k), 0.1, memory.keys + k, memory.values - k) for k in range(12)
    )
    many.save(tmp_path / "context.safetensors")
    assert same(Context.load(tmp_path / "context.safetensors"), many, atol=0)


def test_an_empty_context_and_a_selected_one_can_be_saved(tmp_path):
    for context in (Context(), story().select([0, 2])):
        context.save(tmp_path / "context.safetensors")
        assert same(Context.load(tmp_path / "context.safetensors"), context, atol=0)


def damage(path: Path, kind: str) -> None:
    """Makes one kind of bad file at `path`, where a good context lies."""
    good = path.read_bytes()
    keys, values = torch.zeros(2, 5, 2, 12), torch.ones(2, 5, 2, 12)
    pair = {"1.keys": keys, "1.values": values}
    format_ = {"format": "longshot-context-1"}
    match kind:
        case "truncated":
            path.write_bytes(good[: len(good) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text(json.dumps({"format": "longshot-context-1"}))
        case "pickle":
            path.write_bytes(pickle.dumps({"keys": [1, 2, 3]}))
        case "torch":
            torch.save({"1.keys": keys}, path)
        case "foreign":
            save_file(pair, path, {"format": "pt"})
        case "bare":
            save_file(pair, path)
        case "no tensors":
            save_file({}, path, format_ | {"1": "1 1 2 2 0.1"})
        case "short line":
            save_file(pair, path, format_ | {"1": "1 4 0.1"})
        case "no number":
            save_file(pair, path, format_ | {"one": "1 1 2 2 0.1"})
        case "other tokens":
            save_file(pair, path, format_ | {"1": "1 3 2 2 0.1"})
        case "unlike":
            save_file({"1.keys": keys, "1.values": values[:1].clone()}, path, format_ | {"1": "1 1 2 2 0.1"})
        case "flat":
            save_file(
                {"1.keys": keys[0, 0].clone(), "1.values": values[0, 0].clone()},
                path,
                format_ | {"1": "1 1 2 2 0.1"},
            )
        case "layers":
            fewer = {"2.keys": keys[:1].clone(), "2.values": values[:1].clone()}
            save_file(pair | fewer, path, format_ | {"1": "1 1 2 2 0.1", "2": "1 1 2 2 0.1"})
        case "half a picture":
            save_file(pair | {"1.last": torch.zeros(3, 24)}, path, format_ | {"1": "1 1 2 2 0.1"})
        case "missing":
            path.unlink()


BAD = """
truncated, empty, text, pickle, torch, foreign, bare, no tensors, short line, no number, other tokens, unlike, flat,
layers, half a picture, missing
"""


@pytest.mark.parametrize("kind", BAD.replace("\n", " ").strip().split(", "))
def test_a_file_that_is_no_context_gives_one_clear_line_that_names_it(tmp_path, kind):
    path = tmp_path / "context.safetensors"
    story().save(path)
    damage(path, kind)
    with pytest.raises(UserError, match=r"context\.safetensors: not a (readable )?saved context") as caught:
        Context.load(path)
    assert "\n" not in str(caught.value)


def test_a_context_of_another_network_is_refused_in_one_line():
    other = network(depth=1).requires_grad_(False)
    layout = Layout.single(*GROUPS, past=3)
    with pytest.raises(UserError, match="remembered by another network") as caught:
        other(*rows(GROUPS, 3, 4, 0), layout, "causal", [story(3)])
    assert "\n" not in str(caught.value)


def test_a_context_of_other_shots_than_the_layout_says_is_refused():
    layout = Layout.single(*GROUPS, past=3)
    memories = story(3).memories
    moved = Context((*memories[:2], replace(memories[2], group=Group(2, 1, (1, 4, 1)))))
    with pytest.raises(ValueError, match="other groups than the layout's past"):
        NET(*rows(GROUPS, 3, 4, 0), layout, "causal", [moved])


def test_a_memory_holds_keys_and_values_of_every_layer_for_every_token_of_its_group():
    for memory in story().memories:
        assert isinstance(memory, Memory)
        assert memory.keys.shape == memory.values.shape == (2, memory.group.tokens, 2, 12)


# -- how it is kept ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def off(dtype: str) -> float:
    """How far the prediction of the last shot moves when the cache is kept in a dtype, in parts of its spread."""
    context = story(3)
    exact = remember(GROUPS, context, 4)[0]
    return float((remember(GROUPS, context.stored(dtype), 4)[0] - exact).abs().max() / exact.std())


def test_a_narrower_cache_costs_the_precision_of_its_dtype_and_no_more():
    assert off("own") == 0
    # Rounding: 2^-24 for fp32, 2^-9 for bf16, 2^-4 for e4m3, spread over what a query attends to, with room of 4.
    assert 0 < off("fp32") < 2**-22
    assert off("fp32") < off("bf16") < 2**-7
    assert off("bf16") < off("fp8") < 2**-2


@few
@given(st.integers(-20, 20), seeds)
def test_fp8_keeps_its_relative_precision_whatever_the_size_of_the_numbers(power, seed):
    keys = noise(seed, 2, 9, 3, 4, dtype=torch.float32) * 2.0**power
    memory = Memory(Group(1, 1, (2, 2, 2)), 0.1, keys, 3 * keys).stored("fp8")
    for i in range(2):
        k, v = memory.layer(i)
        peak = keys[i].abs().amax((0, 2))[None, :, None]
        # e4m3 has 3 bits after the leading one, and below 2^-6 of 448 a fixed step.
        assert ((k - keys[i]).abs() <= keys[i].abs() * 2**-4 + peak * 2**-15).all()
        assert ((v - 3 * keys[i]).abs() <= 3 * keys[i].abs() * 2**-4 + 3 * peak * 2**-15).all()


def test_bytes_of_a_cache_follow_its_dtype():
    one = Context(tuple(m.stored("fp32") for m in story(3).memories))
    tokens, (layers, heads, _) = sum(g.tokens for g in one.groups), one.memories[0].network
    assert one.stored("bf16").nbytes == one.nbytes / 2
    scales = len(one.memories) * 2 * layers * heads * 4
    assert one.stored("fp8").nbytes == one.nbytes / 4 + scales and tokens > 0


def test_what_is_kept_narrow_is_never_widened_in_storage_and_storing_twice_is_storing_once():
    narrow = story(3).stored("fp8")
    for dtype in ("own", "fp32", "bf16", "fp8"):
        again = narrow.stored(dtype)
        assert all(m.keys.dtype == torch.float8_e4m3fn for m in again.memories)
        assert same_bits(again, narrow)


def same_bits(a: Context, b: Context) -> bool:
    return a.groups == b.groups and all(
        torch.equal(x, y)
        for m, n in zip(a.memories, b.memories, strict=True)
        for x, y in zip(m.layer(0) + m.layer(1), n.layer(0) + n.layer(1), strict=True)
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_narrow_cache_survives_its_file(tmp_path, dtype):
    kept = story(3).stored(dtype)
    kept.save(tmp_path / "c.safetensors")
    loaded = Context.load(tmp_path / "c.safetensors")
    assert same_bits(loaded, kept) and loaded.nbytes == kept.nbytes


def test_an_fp8_cache_without_its_scales_is_damaged(tmp_path):
    from safetensors import safe_open

    story(2).stored("fp8").save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        meta, names = file.metadata(), [n for n in file.keys() if "scales" not in n]  # noqa: SIM118
        tensors = {n: file.get_tensor(n).clone() for n in names}
    save_file(tensors, tmp_path / "c.safetensors", meta)
    with pytest.raises(UserError, match="not a readable saved context"):
        Context.load(tmp_path / "c.safetensors")


def test_a_place_on_the_timeline_survives_the_file(tmp_path):
    (first, second) = story(2).memories
    kept = Context(
        (
            replace(first, group=replace(first.group, at=0)),
            replace(second, group=replace(second.group, at=12)),
        )
    )
    kept.save(tmp_path / "c.safetensors")
    assert [g.at for g in Context.load(tmp_path / "c.safetensors").groups] == [0, 12]
