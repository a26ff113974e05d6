"""The network that corrects pixels against a slow one, frame by frame, and what it may and may not see."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import few, inputs, network, noise, quiet, seeds
from longshot.layout import GLOBAL, Group, Layout, global_group
from longshot.model.mmdit import MMDiT
from longshot.model.refine import FEATURES, FOLD, PixelRefiner

pytestmark = quiet

PATCH = (2, 4, 2)
CHANNELS = 2 * 4 * 2 * 3
NET = network(channels=CHANNELS, patch=PATCH, refiner_width=8, refiner_depth=2)
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


def slow(refiner: PixelRefiner, coarse, z, told, cond, strength, grid) -> torch.Tensor:
    """One shot's corrected pixels, one frame after the other."""
    folded_patch = (PATCH[0], PATCH[1] // FOLD, PATCH[2] // FOLD)
    maps = [fold(pixels(x, grid, PATCH, 3)) for x in (coarse, z)]
    x = torch.cat([*maps, pixels(told, grid, folded_patch, FEATURES)], 1)
    x = torch.stack([refiner.enter(frame) for frame in x])
    for block in refiner.blocks:
        quarter, out = x.shape[1] // 4, []
        shift, scale = block.modulation(F.silu(cond)).chunk(2)
        normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        for k, frame in enumerate(x):
            mixed = normed[k].clone()
            mixed[:quarter] = normed[k - 1, :quarter] if k else 0
            mixed[quarter : 2 * quarter] = normed[k + 1, quarter : 2 * quarter] if k + 1 < len(x) else 0
            inner = block.first(mixed) * (1 + scale[:, None, None]) + shift[:, None, None]
            out.append(frame + block.second(F.silu(inner)))
        x = torch.stack(out)
    x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    change = strength * torch.stack([refiner.leave(F.silu(frame)) for frame in x])
    picture = pixels(coarse, grid, PATCH, 3)
    for i, (p, q) in enumerate((p, q) for p in range(FOLD) for q in range(FOLD)):
        picture[:, :, p::FOLD, q::FOLD] += change[:, 3 * i : 3 * i + 3]
    return picture


@few
@given(scenes, seeds)
def test_packed_shots_of_any_sizes_equal_the_slow_reference_shot_by_shot(groups, seed):
    layout, refiner = Layout((groups, groups[1:])), refined(NET)
    coarse, z = (noise(seed + k, layout.num_video, CHANNELS) for k in (0, 1))
    told = noise(seed + 2, layout.num_video, refiner.told.out_features)
    cond = noise(seed + 3, len(layout.groups), NET.config.cond_width)
    strength = noise(seed + 4, len(layout.groups))
    chosen = [k % 3 > 0 and g.shot != GLOBAL for k, g in enumerate(layout.groups)]
    out = refiner(coarse, z, told, cond, strength, layout, chosen)
    for i, (group, span) in enumerate(zip(layout.groups, layout.video_spans, strict=True)):
        rows = [x[span.slice] for x in (coarse, z, told)]
        if not chosen[i]:
            assert torch.equal(out[span.slice], rows[0])
            continue
        wanted = slow(refiner, *rows, cond[i], strength[i], group.grid)
        found = pixels(out[span.slice], group.grid, PATCH, 3)
        assert torch.allclose(found, wanted, rtol=0, atol=EXACT)


def test_a_fresh_refiner_changes_nothing():
    layout = Layout.single(global_group(2), Group(1, 3, (2, 1, 2)))
    fresh = MMDiT(NET.config).double()
    fresh.initialise()
    fresh.load_state_dict(PLAIN.state_dict(), strict=False)
    given_ = inputs(layout, PLAIN)
    assert torch.equal(fresh(*given_, layout), PLAIN(*given_, layout))


def test_a_refiner_that_is_left_out_changes_nothing():
    layout = Layout.single(Group(1, 3, (2, 1, 2)))
    net = network(channels=CHANNELS, patch=PATCH, refiner_width=8)
    net.load_state_dict(PLAIN.state_dict(), strict=False)
    given_ = inputs(layout, net)
    assert not torch.equal(net(*given_, layout), PLAIN(*given_, layout))
    assert torch.equal(net(*given_, layout, refine=False), PLAIN(*given_, layout))


def test_only_shots_below_a_noise_level_are_corrected():
    layout = Layout.single(Group(1, 3, (2, 1, 2)), Group(2, 3, (1, 1, 2)))
    net = network(channels=CHANNELS, patch=PATCH, refiner_width=8, refines_below=0.5)
    net.load_state_dict(PLAIN.state_dict(), strict=False)
    z, text, _ = inputs(layout, net)
    sigma = torch.tensor([0.5, 0.6])
    found, plain = net(z, text, sigma, layout), PLAIN(z, text, sigma, layout)
    assert torch.equal(found[4:], plain[4:]) and not torch.equal(found[:4], plain[:4])
    assert torch.equal(*(n(z, text, sigma + 0.2, layout) for n in (net, PLAIN)))


def test_no_shot_is_corrected_by_what_another_one_shows():
    layout, refiner = Layout.single(*(Group(k, 1, (1, 1, 2)) for k in (1, 2))), refined(NET)
    coarse, z = noise(1, 4, CHANNELS), noise(2, 4, CHANNELS)
    told, cond = noise(3, 4, refiner.told.out_features), noise(4, 2, NET.config.cond_width)
    one = torch.ones(2)
    before = refiner(coarse, z, told, cond, one, layout, [True] * 2)
    z[2:] += 1
    after = refiner(coarse, z, told, cond, one, layout, [True] * 2)
    assert torch.equal(before[:2], after[:2]) and not torch.equal(before[2:], after[2:])


def test_a_patch_is_corrected_by_what_the_one_beside_it_shows():
    layout, refiner = Layout.single(Group(1, 1, (1, 1, 2))), refined(NET)
    coarse, z = noise(1, 2, CHANNELS), noise(2, 2, CHANNELS)
    told, cond = noise(3, 2, refiner.told.out_features), noise(4, 1, NET.config.cond_width)
    before = refiner(coarse, z, told, cond, torch.ones(1), layout, [True])
    z[1] += 1
    assert not torch.equal(before[0], refiner(coarse, z, told, cond, torch.ones(1), layout, [True])[0])


def test_patches_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="even height and width"):
        PixelRefiner((4, 3, 8), 8, 1, 16, 8)


@pytest.mark.parametrize(("predicts", "share"), [("clean", 0.5), ("velocity", 1.0)])
def test_a_clean_answer_is_corrected_in_proportion_to_the_noise_and_a_velocity_is_not(predicts, share):
    layout = Layout.single(Group(1, 3, (1, 1, 2)))
    net = network(channels=CHANNELS, patch=PATCH, refiner_width=8, predicts=predicts)
    z, text, _ = inputs(layout, net)
    seen = []
    refined(net).leave.register_forward_hook(lambda module, given_, made: seen.append(made))
    sigma = torch.tensor([0.5])
    change = net(z, text, sigma, layout) - net(z, text, sigma, layout, refine=False)
    assert change.abs().max().item() == pytest.approx(share * seen[0].abs().max().item(), abs=EXACT)
