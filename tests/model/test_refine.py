"""The network that corrects pixels against a slow one, frame by frame, and what it may and may not see."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import few, inputs, levels, network, noise, quiet, seeds
from longshot.errors import UserError
from longshot.layout import GLOBAL, VISIBILITIES, Group, Layout, global_group
from longshot.model.context import Context, Memory
from longshot.model.mmdit import MMDiT, memories_from
from longshot.model.refine import (
    DOUBT,
    FEATURES,
    FOLD,
    LEAST,
    MOVED,
    NOISIEST,
    SURE,
    Before,
    PixelRefiner,
    shots_before,
)

pytestmark = quiet

PATCH = (2, 4, 2)
CHANNELS = 2 * 4 * 2 * 3
MOVES = ((0, 0, 0), (-1, 2, 1), (1, 1, -1))
SIZES = {"channels": CHANNELS, "patch": PATCH, "refiner_width": 8}
ALONE = network(**SIZES)
NET = network(**SIZES, refiner_moves=MOVES)
PLAIN = network(channels=CHANNELS)
EXACT = 1e-10  # float64, another order of sums

sizes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
scenes = st.lists(sizes, min_size=1, max_size=3).map(
    lambda grids: (global_group(2), *(Group(k, 1, grid) for k, grid in enumerate(grids, start=1)))
)


def refined(net: MMDiT) -> PixelRefiner:
    assert net.refiner is not None
    return net.refiner


def pixels(rows: torch.Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int], depth: int):
    """[frames, depth, height, width] of one shot's rows, pixel by pixel."""
    (T, H, W), (t, h, w) = grid, patch
    out = rows.new_zeros(T * t, depth, H * h, W * w)
    for row, numbers in enumerate(rows):
        a, b, c = row // (H * W), row // W % H, row % W
        block = numbers.reshape(t, h, w, depth).permute(0, 3, 1, 2)
        out[a * t : (a + 1) * t, :, b * h : (b + 1) * h, c * w : (c + 1) * w] = block
    return out


def fold(picture: torch.Tensor) -> torch.Tensor:
    """Each 2x2 pixels become one, whose channels are (row, column, colour)."""
    parts = [picture[:, :, p::FOLD, q::FOLD] for p in range(FOLD) for q in range(FOLD)]
    return torch.cat(parts, 1)


def moved(picture: torch.Tensor, by: int, up: int) -> torch.Tensor:
    """A picture [RGB, height, width] moved to the right and up; its edges stay behind."""
    height, width = picture.shape[1:]
    picture = torch.stack([picture[:, min(max(y + up, 0), height - 1)] for y in range(height)], 1)
    return torch.stack([picture[:, :, min(max(x - by, 0), width - 1)] for x in range(width)], 2)


def slow(refiner: PixelRefiner, coarse, z, told, cond, sigma, grid, seen=None) -> torch.Tensor:
    """One shot's corrected pixels, one frame after the other. seen: the last picture of the shot before [RGB, height, width], and
    the noise level at which it was seen."""
    folded_patch, k = (PATCH[0], PATCH[1] // FOLD, PATCH[2] // FOLD), len(refiner.moves)
    rough, noisy = (pixels(x, grid, PATCH, 3) for x in (coarse, z))
    said = pixels(told[:, : refiner.told.out_features], grid, folded_patch, FEATURES)
    parts = told[:, refiner.told.out_features :].chunk(1 + k, dim=1)
    gates = torch.cat([pixels(part, grid, folded_patch, 1) for part in parts], 1)
    last = [
        torch.stack([moved(seen[0], start + speed * n, up) if seen else x for n, x in enumerate(rough)])
        for start, speed, up in refiner.moves
    ]
    clear = 1 - min(float(sigma), NOISIEST)
    ours, theirs = DOUBT[0] + DOUBT[1] * float(sigma), 1 / clear - 1
    of_noisy = ours**2 / (ours**2 + theirs**2)
    maps = [fold(rough), fold(noisy), said]
    missed = []
    for picture in last:
        error = ours**2 * (1 - of_noisy) + LEAST**2
        from_likely = (picture - rough - of_noisy * (noisy / clear - rough)).square()
        missed.append(fold(from_likely).mean(1, keepdim=True) / error)
        badly = torch.log1p(missed[-1])
        maps += [fold((picture - rough) / MOVED), badly if seen else torch.zeros_like(badly)]
    if k:
        maps.append(torch.full_like(said[:, :1], 1 - seen[1] if seen else 0))
    x = torch.stack([refiner.enter(frame) for frame in torch.cat(maps, 1)])
    for block in refiner.blocks:
        quarter, out = x.shape[1] // 4, []
        shift, scale = block.modulation(F.silu(cond)).chunk(2)
        normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        for n, frame in enumerate(x):
            mixed = normed[n].clone()
            mixed[:quarter] = normed[n - 1, :quarter] if n else 0
            mixed[quarter : 2 * quarter] = normed[n + 1, quarter : 2 * quarter] if n + 1 < len(x) else 0
            inner = block.first(mixed) * (1 + scale[:, None, None]) + shift[:, None, None]
            out.append(frame + block.second(F.silu(inner)))
        x = torch.stack(out)
    x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    heard = torch.stack([refiner.leave(F.silu(frame)) for frame in x])
    places = [(p, q) for p in range(FOLD) for q in range(FOLD)]
    answer = rough.clone()
    for i, (p, q) in enumerate(places):
        part = (slice(None), slice(None), slice(p, None, FOLD), slice(q, None, FOLD))
        answer[part] += sigma * heard[:, 3 * i : 3 * i + 3]
        gate = gates + heard[:, 12 + i :: 4]
        better = answer[part] + of_noisy * (1 + gate[:, :1]) * (noisy[part] / clear - answer[part])
        answer[part] = better
        odds = [(gate[:, n + 1 : n + 2] - miss).exp() for n, miss in enumerate(missed)]
        odds = odds if seen and sigma <= SURE else []
        for picture, odd in zip(last, odds, strict=False):
            answer[part] += odd / (1 + sum(odds)) * (picture[part] - better)
    return answer


@few
@given(scenes, seeds, st.sampled_from([ALONE, NET]), st.sampled_from(VISIBILITIES))
def test_packed_shots_of_any_sizes_equal_the_slow_reference_shot_after_shot(groups, seed, net, visibility):
    layout, refiner = Layout((groups, groups[1:])), refined(net)
    coarse, z = (noise(seed + k, layout.num_video, CHANNELS) for k in (0, 1))
    told = noise(seed + 2, layout.num_video, refiner.told.out_features + refiner.gates.out_features)
    cond = noise(seed + 3, len(layout.groups), net.config.cond_width)
    sigma = levels(seed + 4, len(layout.groups))
    sigma[::3] = 0
    chosen = [k % 4 > 0 and g.shot != GLOBAL for k, g in enumerate(layout.groups)]
    before = shots_before(layout, visibility, sigma, [Context()] * 2)
    out = refiner(coarse, z, told, cond, sigma, layout, chosen, before)
    for i, (group, span) in enumerate(zip(layout.groups, layout.video_spans, strict=True)):
        if not chosen[i]:
            assert torch.equal(out[span.slice], coarse[span.slice])
            continue
        seen, earlier = None, layout.groups[i - 1]
        if i and 0 < earlier.shot < group.shot and earlier.grid[1:] == group.grid[1:]:
            shown = z if sigma[i - 1] == 0 else out
            rows = shown[layout.video_spans[i - 1].slice]
            seen = pixels(rows, earlier.grid, PATCH, 3)[-1], float(sigma[i - 1])
        seen = seen if refiner.moves and visibility != "shot" else None
        rows = [x[span.slice] for x in (coarse, z, told)]
        wanted = slow(refiner, *rows, cond[i], sigma[i], group.grid, seen)
        found = pixels(out[span.slice], group.grid, PATCH, 3)
        assert torch.allclose(found, wanted, rtol=0, atol=EXACT)


def test_a_fresh_refiner_goes_to_the_noisy_picture_by_the_share_that_its_error_makes_best():
    layout = Layout.single(global_group(2), Group(1, 3, (2, 1, 2)))
    fresh = MMDiT(NET.config).double()
    fresh.initialise()
    fresh.load_state_dict(PLAIN.state_dict(), strict=False)
    z, text, _ = inputs(layout, PLAIN)
    for sigma in (0.02, 0.3, 0.999):
        level = torch.tensor([0.0, sigma])
        plain, clear = PLAIN(z, text, level, layout), max(1 - sigma, 1 - NOISIEST)
        ours, theirs = DOUBT[0] + DOUBT[1] * sigma, 1 / clear - 1
        wanted = plain + ours**2 / (ours**2 + theirs**2) * (z / clear - plain)
        found = fresh(z, text, level, layout)
        assert torch.equal(found[:1], plain[:1])
        torch.testing.assert_close(found[1:], wanted[1:], rtol=0, atol=1e-6)  # levels are fp32


def test_a_refiner_that_is_left_out_changes_nothing():
    layout = Layout.single(Group(1, 3, (2, 1, 2)))
    net = network(**SIZES)
    net.load_state_dict(PLAIN.state_dict(), strict=False)
    given_ = inputs(layout, net)
    assert not torch.equal(net(*given_, layout), PLAIN(*given_, layout))
    assert torch.equal(net(*given_, layout, refine=False), PLAIN(*given_, layout))


@pytest.mark.parametrize("moves", [(), MOVES])
def test_only_shots_below_a_noise_level_are_corrected_or_those_that_go_on_from_such_a_one(moves):
    layout = Layout.single(*(Group(k, 3, (1, 1, 2)) for k in (1, 2, 3)))
    net = network(**SIZES, refiner_moves=moves, refines_below=0.5)
    net.load_state_dict(PLAIN.state_dict(), strict=False)
    z, text, _ = inputs(layout, net)
    sigma = torch.tensor([0.5, 0.6, 0.7])
    found, plain = net(z, text, sigma, layout), PLAIN(z, text, sigma, layout)
    assert not torch.equal(found[:2], plain[:2])
    assert torch.equal(found[2:4], plain[2:4]) != bool(moves)
    assert torch.equal(found[4:], plain[4:])
    assert torch.equal(*(n(z, text, sigma + 0.2, layout) for n in (net, PLAIN)))


def corrected(refiner: PixelRefiner, layout: Layout, z: torch.Tensor, visibility="scene") -> torch.Tensor:
    """Some answer, corrected at noise level 0.5."""
    sigma = torch.full((len(layout.groups),), 0.5)
    told = noise(3, layout.num_video, refiner.told.out_features + refiner.gates.out_features)
    cond = noise(4, len(layout.groups), NET.config.cond_width)
    before = shots_before(layout, visibility, sigma, [Context()] * len(layout.scenes))
    return refiner(
        noise(1, *z.shape), z, told, cond, sigma, layout, [g.shot != GLOBAL for g in layout.groups], before
    )


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_a_shot_is_corrected_by_the_last_picture_of_the_one_before_it_and_by_no_other(visibility):
    layout = Layout.single(*(Group(k, 1, (2, 1, 2)) for k in (1, 2, 3)))
    z = noise(2, 12, CHANNELS)

    def changed(row: int, net: MMDiT) -> list[bool]:
        """Which shots come out otherwise when a row of z does."""
        other = z.clone()
        other[row] += 1
        out = [corrected(refined(net), layout, x, visibility) for x in (z, other)]
        return [not torch.equal(*(x[span.slice] for x in out)) for span in layout.video_spans]

    goes_on = visibility != "shot"
    assert changed(2, ALONE) == [True, False, False]
    assert changed(2, NET) == [True, goes_on, goes_on]  # the second's picture is what it was corrected to
    assert changed(4, NET) == [False, True, goes_on]
    assert changed(11, NET) == [False, False, True]


def test_a_shot_after_one_of_another_size_or_after_the_global_prompt_has_nothing_before_it():
    layout = Layout.single(global_group(1), *(Group(k, 1, (1, 1, w)) for k, w in enumerate((2, 2, 1), 1)))
    before = shots_before(layout, "causal", torch.tensor([0.0, 0.25, 0.5, 0.75]), [Context()])
    assert before == [None, None, Before(0.25, 1), None]


@few
@given(st.lists(st.integers(1, 2), min_size=2, max_size=4), seeds, st.just(0.0) | st.floats(0.01, 0.9))
def test_a_shot_goes_on_from_a_remembered_one_as_from_one_that_is_computed(lengths, seed, level):
    groups = (global_group(2), *(Group(k, 2, (t, 1, 2)) for k, t in enumerate(lengths, 1)))
    net, whole = network(**SIZES, refiner_moves=MOVES), Layout.single(*groups)
    z, text, _ = inputs(whole, net, seed)
    sigma = torch.full((len(groups),), float(level))
    sigma[0] = 0
    expected = net(z, text, sigma, whole, "causal")
    context, rows, words = Context(), 0, 0
    for i, group in enumerate(groups):
        layout = Layout.single(*groups[: i + 1], past=i)
        own_z, own_text = z[rows : rows + group.video], text[words : words + group.text]
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        out = net(own_z, own_text, sigma[i : i + 1], layout, "causal", [context], keep=kept)
        torch.testing.assert_close(out, expected[rows : rows + group.video], rtol=0, atol=1e-9)
        clean = out if level else own_z
        context = context.extended(memories_from(kept, layout, sigma[i : i + 1], clean)[0])
        rows, words = rows + group.video, words + group.text


def test_of_a_finished_shot_the_film_says_what_was_seen_last_and_not_what_is_made_of_it():
    groups = tuple(Group(k, 2, (1, 1, 2)) for k in (1, 2, 3))
    layout, ending, other = Layout.single(*groups), noise(1, 2, CHANNELS), noise(2, 2, CHANNELS)
    z, text, _ = inputs(layout, NET)
    sigma = torch.tensor([0.1, 0.5, 0.5])
    assert shots_before(layout, "scene", sigma, [Context()], {0: ending})[1:] == [
        Before(sigma[0].item(), None, ending),
        Before(0.5, 1),
    ]
    first, again, otherwise = (
        NET(z, text, sigma, layout, "scene", endings={0: rows}) for rows in (ending, ending, other)
    )
    assert torch.equal(first, again) and torch.equal(first[:2], otherwise[:2])
    assert not torch.equal(first[2:4], otherwise[2:4])


def test_a_shot_remembered_without_its_last_picture_is_named():
    memory = Memory(Group(1, 2, (1, 1, 2)), 0.1, *torch.zeros(2, 2, 4, 2, 4))
    layout = Layout.single(memory.group, Group(2, 2, (1, 1, 2)), past=1)
    with pytest.raises(UserError, match="shot 1 was remembered without its last picture"):
        shots_before(layout, "causal", torch.tensor([0.5]), [Context((memory,))])


def test_no_gradient_flows_into_the_picture_that_a_shot_goes_on_from():
    layout, refiner = Layout.single(*(Group(k, 1, (1, 1, 2)) for k in (1, 2))), refined(NET)
    sigma = torch.tensor([0.1, 0.9])
    coarse, z = noise(1, 4, CHANNELS).requires_grad_(), noise(2, 4, CHANNELS).requires_grad_()
    said = noise(3, 4, refiner.told.out_features + refiner.gates.out_features)
    before = shots_before(layout, "causal", sigma, [Context()])
    out = refiner(coarse, z, said, noise(4, 2, NET.config.cond_width), sigma, layout, [True] * 2, before)
    out[2:].sum().backward()
    for x in (coarse, z):
        assert x.grad is not None and x.grad[:2].abs().max() == 0 and x.grad[2:].abs().max() > 0


def test_all_weights_of_a_refiner_that_learns_have_a_gradient_even_where_nothing_asks_it():
    layout = Layout.single(Group(1, 3, (1, 1, 2)))
    net = network(**SIZES, refiner_moves=MOVES, refines_below=0.1)
    z, text, _ = inputs(layout, net)
    net(z, text, torch.tensor([0.9]), layout).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in refined(net).parameters())


def test_a_patch_is_corrected_by_what_the_one_beside_it_shows():
    layout = Layout.single(Group(1, 1, (1, 1, 2)))
    z = noise(2, 2, CHANNELS)
    other = torch.cat([z[:1], z[1:] + 1])
    a, b = (corrected(refined(ALONE), layout, x) for x in (z, other))
    assert not torch.equal(a[0], b[0])


def test_patches_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="even height and width"):
        PixelRefiner((4, 3, 8), 8, 1, 16, 8)


def test_what_convolutions_add_is_in_proportion_to_the_noise():
    layout = Layout.single(Group(1, 3, (1, 1, 2)))
    net = network(**SIZES)
    refiner = refined(net)
    with torch.no_grad():  # gates that stay where they are: nothing of the noisy picture
        refiner.gates.weight.zero_()
        refiner.gates.bias.fill_(-1)
        refiner.leave.weight[12:] = 0
        refiner.leave.bias[12:] = 0
    z, text, _ = inputs(layout, net)
    seen = []
    refiner.leave.register_forward_hook(lambda module, given_, made: seen.append(made[:, :12]))
    sigma = torch.tensor([0.5])
    change = net(z, text, sigma, layout) - net(z, text, sigma, layout, refine=False)
    assert change.abs().max().item() == pytest.approx(0.5 * seen[0].abs().max().item(), abs=EXACT)


def test_a_network_that_predicts_the_velocity_has_no_refiner():
    with pytest.raises(ValueError, match="corrects clean answers"):
        network(**SIZES, predicts="velocity")
