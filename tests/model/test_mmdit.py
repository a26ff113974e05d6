"""The native network against a slow oracle, and what must not change its answer."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import Pair, Reference, Sizes

from core_fixtures import (
    SIZES,
    few,
    inputs,
    layouts,
    levels,
    network,
    noise,
    quiet,
    scene_groups,
    seeds,
    some,
    visibilities,
)
from longshot.layout import Group, Layout, global_group
from longshot.model.context import Context
from longshot.model.mmdit import MMDiT

pytestmark = quiet

# Where both sides are float64 and differ only in the order of sums.
EXACT = 1e-10
# Where two fp32 tables (rotations, sinusoids of sigma) are computed in two ways, or at two places: 6e-8 an entry, times
# attention scores and weights of size one.
TABLES = 3e-6

NET = network()
ANCHORED = network(rope="anchor", detail_width=7)
ALIGNED = network(rope="aligned")
NETS = st.sampled_from([NET, ANCHORED, ALIGNED])
SHOTS = (global_group(2), Group(1, 3, (2, 2, 1)), Group(2, 1, (1, 2, 2)), Group(3, 2, (1, 1, 3)))
STORY = Layout.single(*SHOTS)


def pairs_of(layout: Layout, seed: int) -> list[list[Pair]]:
    """Random prompts, videos and noise levels for every group of every scene."""
    out, sigma = [], iter(levels(seed, len(layout.groups)).tolist())
    for s, groups in enumerate(layout.scenes):
        out.append([])
        for g in groups:
            key = seed + 97 * s + 7 * g.shot
            prompt, video = noise(key, g.text, SIZES.text_dim), noise(key + 1, *g.grid, SIZES.channels)
            out[-1].append(Pair(g.shot, prompt, video, next(sigma)))
    return out


def reference(net: MMDiT) -> Reference:
    return Reference(
        net.state_dict(keep_vars=True), Sizes(net.config.heads, net.config.theta, net.config.rope)
    )


def run(
    net: MMDiT, scenes: list[list[Pair]], visibility: str, kernel: str = "prefix", pad: int = 0
) -> torch.Tensor:
    """The network on the same groups: packed, from token vectors to predictions."""
    pairs = [pair for scene in scenes for pair in scene]
    T = [[Group(p.shot, len(p.prompt), tuple(p.video.shape[:3])) for p in scene] for scene in scenes]
    layout = Layout(tuple(map(tuple, T)), rope=net.config.rope, pad=pad)
    z = torch.cat([p.video.flatten(0, 2) for p in pairs])
    text = torch.cat(net.text_refiner([p.prompt for p in pairs]))
    sigma = torch.tensor([p.sigma for p in pairs])
    return net(z, text, sigma, layout, visibility, kernel=kernel)


def by_reference(net: MMDiT, scenes: list[list[Pair]], visibility: str) -> torch.Tensor:
    slow = reference(net)
    return torch.cat([out.flatten(0, 2) for scene in scenes for out in slow.scene(scene, visibility)])


# -- invariant 1: the network is the network ------------------------------------------------------------------------------
@few
@given(
    st.integers(1, 4),
    st.tuples(*[st.integers(1, 3)] * 3),
    NETS,
    visibilities,
    seeds,
)
def test_one_shot_alone_equals_the_plain_single_shot_network(text, grid, net, visibility, seed):
    scene = pairs_of(Layout.single(Group(1, text, grid)), seed)
    fast, slow = run(net, scene, visibility), by_reference(net, scene, "scene")
    assert torch.allclose(fast, slow, rtol=0, atol=TABLES)


@some
@given(
    st.lists(scene_groups(min_text=1), min_size=1, max_size=2),
    visibilities,
    NETS,
    seeds,
)
def test_packs_of_scenes_equal_the_slow_reference_scene_by_scene(scenes, visibility, net, seed):
    pairs = pairs_of(Layout(tuple(scenes)), seed)
    fast, slow = run(net, pairs, visibility), by_reference(net, pairs, visibility)
    assert torch.allclose(fast, slow, rtol=0, atol=TABLES)


@few
@given(scene_groups(min_text=1, min_shots=2), seeds)
def test_shots_that_see_only_themselves_equal_separate_calls(groups, seed):
    # In the scene a shot has other coordinates than alone; scores depend on distances only, so nothing else may change.
    (pairs,) = pairs_of(Layout.single(*groups), seed)
    together = run(NET, [pairs], "shot")
    alone = torch.cat([run(NET, [[replace(pair, shot=1)]], "scene") for pair in pairs])
    assert torch.allclose(together, alone, rtol=0, atol=TABLES)


@few
@given(scene_groups(min_text=1, min_shots=2), visibilities, st.floats(0, 1, width=32), seeds)
def test_the_same_sigma_in_every_shot_equals_a_network_with_one_scalar_timestep(
    groups, visibility, sigma, seed
):
    (pairs,) = pairs_of(Layout.single(*groups), seed)
    pairs = [replace(p, sigma=sigma) for p in pairs]
    slow = reference(NET)
    once = slow.noise_level(sigma)
    slow.noise_level = lambda _: once
    expected = torch.cat([out.flatten(0, 2) for out in slow.scene(pairs, visibility)])
    assert torch.allclose(run(NET, [pairs], visibility), expected, rtol=0, atol=TABLES)


def test_a_shot_is_modulated_by_its_own_sigma():
    z, text, sigma = inputs(STORY, NET)
    moved = sigma.clone()
    moved[2] = 1 - moved[2]
    before, after = (NET(z, text, s, STORY, "shot") for s in (sigma, moved))
    same = [torch.equal(before[s.slice], after[s.slice]) for s in STORY.video_spans]
    assert same == [True, True, False, True]


def test_noise_levels_are_embedded_as_sines_and_cosines_of_a_thousand_sigma():
    sigma = torch.tensor([0.0, 0.1, 0.37, 1.0])
    seen = {}
    hook = NET.time[0].register_forward_pre_hook(lambda _, args: seen.update(features=args[0]))
    NET.condition(sigma)
    hook.remove()
    angle = 1000 * sigma.double()[:, None] * torch.exp(-8 * torch.arange(128).double() / 128)
    # An angle near 1000 in fp32 is good to 6e-5.
    expected = torch.cat([angle.cos(), angle.sin()], 1)
    assert torch.allclose(seen["features"].double(), expected, rtol=0, atol=2e-4)


# -- invariant 2: who can change whom ---------------------------------------------------------------------------------------
@few
@given(st.integers(0, 3), seeds)
def test_a_later_shot_cannot_change_an_earlier_one_under_causal_visibility_by_a_single_bit(changed, seed):
    z, text, sigma = inputs(STORY, NET, seed)
    z2, text2, sigma2 = z.clone(), text.clone(), sigma.clone()
    z2[STORY.video_spans[changed].slice] += 1
    text2[torch.from_numpy(STORY.group_of_text == changed)] -= 1
    sigma2[changed] = 1 - sigma2[changed]
    before, after = NET(z, text, sigma, STORY, "causal"), NET(z2, text2, sigma2, STORY, "causal")
    for i, span in enumerate(STORY.video_spans):
        assert torch.equal(before[span.slice], after[span.slice]) == (i < changed)


def test_under_full_visibility_every_shot_changes_every_other_one():
    z, text, sigma = inputs(STORY, NET)
    for changed in range(4):
        z2 = z.clone()
        z2[STORY.video_spans[changed].slice] += 1
        before, after = NET(z, text, sigma, STORY, "scene"), NET(z2, text, sigma, STORY, "scene")
        assert not any(torch.equal(before[s.slice], after[s.slice]) for s in STORY.video_spans)


def test_a_prompt_is_refined_without_seeing_any_other():
    prompts = [noise(k, n, SIZES.text_dim) for k, n in enumerate((3, 1, 5))]
    together = NET.text_refiner(prompts)
    for prompt, features in zip(prompts, together, strict=True):
        assert torch.allclose(NET.text_refiner([prompt])[0], features, rtol=0, atol=EXACT)


# -- invariant 3: ways of computing it --------------------------------------------------------------------------------------
@some
@given(layouts(past=False), visibilities, seeds)
def test_padding_and_the_kernel_change_nothing(layout, visibility, seed):
    bare = Layout(layout.scenes, rope=layout.rope)
    z, text, sigma = inputs(layout, NET, seed)
    plain = NET(z, text, sigma, bare, visibility)
    padded = NET(z, text, sigma, layout, visibility)
    dense = NET(z, text, sigma, layout, visibility, kernel="dense")
    assert torch.allclose(padded, plain, rtol=0, atol=EXACT)
    assert torch.allclose(dense, plain, rtol=0, atol=EXACT)


def test_a_whole_network_on_flex_attention_equals_one_on_prefix_attention():
    net = network(dtype=torch.float32).requires_grad_(False)  # on a CPU flex has no backward pass
    z, text, sigma = inputs(STORY, net)
    flex, prefix = (net(z, text, sigma, STORY, "causal", kernel=kernel) for kernel in ("flex", "prefix"))
    assert torch.allclose(flex, prefix, rtol=0, atol=1e-4)  # fp32, two layers


@few
@given(
    st.lists(scene_groups(), min_size=2, max_size=3), visibilities, st.randoms(use_true_random=False), seeds
)
def test_the_order_of_scenes_in_a_pack_changes_nothing(scenes, visibility, random, seed):
    order = list(range(len(scenes)))
    random.shuffle(order)

    def one(s: int) -> tuple:
        return inputs(Layout.single(*scenes[s]), NET, seed + s)

    def pack(indices: list[int]) -> list[torch.Tensor]:
        layout = Layout(tuple(scenes[s] for s in indices))
        z, text, sigma = (torch.cat(parts) for parts in zip(*(one(s) for s in indices), strict=True))
        return list(NET(z, text, sigma, layout, visibility).split([len(one(s)[0]) for s in indices]))

    packed, shuffled = pack(list(range(len(scenes)))), pack(order)
    for place, s in enumerate(order):
        alone = NET(*one(s), Layout.single(*scenes[s]), visibility)
        assert torch.allclose(shuffled[place], packed[s], rtol=0, atol=EXACT)
        assert torch.allclose(alone, packed[s], rtol=0, atol=EXACT)


def test_bfloat16_stays_close_to_full_precision():
    wide = network(dtype=torch.float32)
    narrow = network(dtype=torch.bfloat16)
    z, text, sigma = inputs(STORY, wide)
    full, half = wide(z, text, sigma, STORY, "scene"), narrow(z, text, sigma, STORY, "scene")
    assert half.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits, 0.4% a rounding; weights, activations and ten matrices in a row make a few percent.
    assert (half.float() - full).pow(2).mean().sqrt() < 0.04 * full.pow(2).mean().sqrt()


# -- gradients --------------------------------------------------------------------------------------------------------------
def loss_of(out: torch.Tensor) -> torch.Tensor:
    return (out * noise(5, *out.shape)).sum()


@pytest.mark.parametrize("visibility", ["scene", "causal"])
def test_gradients_of_every_weight_equal_those_of_the_slow_reference(visibility):
    net = network(seed=3)
    pairs = pairs_of(Layout((SHOTS[:3], SHOTS[1:2])), 11)
    weights = dict(net.named_parameters())
    fast, slow = (
        torch.autograd.grad(loss_of(way(net, pairs, visibility)), list(weights.values()), allow_unused=True)
        for way in (run, by_reference)
    )
    for name, a, b in zip(weights, fast, slow, strict=True):
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-5 * (1 + b.abs().max()), name
        # Only the text stream goes unread somewhere: after the last attention.
        assert b.abs().max() > 0 or name.startswith("blocks.1.text."), name


@torch.no_grad()
def test_gradients_equal_finite_differences_along_random_directions():
    net = network(seed=4)
    z, text, sigma = inputs(STORY, net)
    weights = list(net.parameters())
    with torch.enable_grad():
        z.requires_grad_(True)
        grads = torch.autograd.grad(
            loss_of(net(z, text, sigma, STORY, "causal")), [z, *weights], allow_unused=True
        )
    z.requires_grad_(False)
    for seed in range(3):
        steps = [noise(seed * 1000 + i, *w.shape) for i, w in enumerate([z, *weights])]
        slope = sum((g * d).sum() for g, d in zip(grads, steps, strict=True) if g is not None)
        values = []
        for sign in (1, -1):
            for w, d in zip([z, *weights], steps, strict=True):
                w.add_(d, alpha=sign * 1e-6)
            values.append(loss_of(net(z, text, sigma, STORY, "causal")))
            for w, d in zip([z, *weights], steps, strict=True):
                w.sub_(d, alpha=sign * 1e-6)
        assert torch.allclose((values[0] - values[1]) / 2e-6, slope, rtol=1e-5)


def test_recomputed_activations_give_the_same_gradients_bit_for_bit():
    found = []
    for recompute in (False, True):
        net = network(seed=5)
        net.recompute_activations = recompute
        z, text, sigma = inputs(STORY, net)
        loss_of(net(z, text, sigma, STORY, "causal")).backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# -- the rest ---------------------------------------------------------------------------------------------------------------
def test_a_fresh_network_starts_with_closed_gates_and_predicts_zero():
    net = MMDiT(SIZES)
    net.initialise()
    z, text, sigma = inputs(STORY, net)
    assert (net(z, text, sigma, STORY) == 0).all()
    route = net.route(STORY, "scene", "prefix")
    rows = net.embed(z)
    after = net.blocks[0](text, rows, net.condition(sigma), route, [None])
    assert torch.equal(after[0], text) and torch.equal(after[1], rows)


@pytest.mark.parametrize("part", ["z", "text", "sigma"])
def test_tensors_that_do_not_fit_the_layout_are_refused_with_both_counts(part):
    z, text, sigma = inputs(STORY, NET)
    given_ = {"z": z, "text": text, "sigma": sigma} | {
        part: {"z": z, "text": text, "sigma": sigma}[part][:-1]
    }
    with pytest.raises(ValueError, match="the layout has 12 video tokens, 8 text tokens and 4 groups; got"):
        NET(**given_, layout=STORY)


def test_a_layout_with_a_past_needs_a_context_of_as_many_groups():
    layout = Layout.single(*SHOTS, past=2)
    with pytest.raises(ValueError, match=r"the layout has \[2\] past groups; the contexts \[0\]"):
        NET(*inputs(layout, NET), layout, "causal", past=[Context()])


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 25 isn't a multiple of 2 heads"):
        replace(SIZES, width=25)
