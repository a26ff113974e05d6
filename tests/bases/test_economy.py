"""Less memory, and what each way of saving it costs."""

import re

import pytest
import torch
from pipelines import SMALL, Small, saved

from core_fixtures import small_base
from longshot.bases import load_base
from longshot.bases.economy import Economy, economise, weight_bytes
from longshot.bases.native import NativeBase
from longshot.bases.tune import adapted
from longshot.errors import UserError
from longshot.layout import Group, Layout

GRIDS = [(2, 1, 2), (1, 1, 2)]


@pytest.fixture(scope="module", params=SMALL, ids=lambda small: small.name)
def small(request) -> Small:
    return request.param


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    return saved(small, tmp_path_factory.mktemp("bases"))


@torch.no_grad()
def run(base) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The velocity of two shots while a third is remembered, the text of a prompt, and the pixels of a latent."""
    (text,) = base.encode_text(["a dog waves"])
    groups = [Group(i + 1, len(text), grid) for i, grid in enumerate(GRIDS)]
    rope = base.spec.rope
    first, second = Layout.single(groups[0], rope=rope), Layout.single(*groups, past=1, rope=rope)
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(g.video, base.spec.channels, generator=generator) for g in groups]
    _, past = base.remember(z[0], text, torch.tensor([0.1]), first, "causal")
    v = base.velocity(z[1], text, torch.tensor([0.7]), second, "causal", past)
    pixels = torch.from_numpy(base.decode(z[0], GRIDS[0])).float()
    return v, text, pixels


@pytest.fixture(scope="module")
def plain(folder):
    return run(load_base(str(folder)))


@pytest.mark.parametrize("offload", ["group", "model"])
def test_weights_that_wait_on_the_cpu_give_the_same_to_the_last_bit(folder, plain, offload):
    base = load_base(str(folder))
    economise(base, Economy(offload=offload), "cpu")
    assert base.device == torch.device("cpu")
    assert all(torch.equal(a, b) for a, b in zip(run(base), plain, strict=True))


@pytest.mark.parametrize("offload", ["none", "group"])
def test_fp8_weights_take_a_byte_each_and_move_a_velocity_by_their_precision(folder, plain, offload):
    base = load_base(str(folder))
    before = weight_bytes(base.network)
    economise(base, Economy("fp8", offload), "cpu")
    narrow = {n: w for n, w in base.network.named_parameters() if w.dtype == torch.float8_e4m3fn}
    assert before - weight_bytes(base.network) == 3 * sum(w.numel() for w in narrow.values())
    in_blocks = [
        n for n, w in base.network.named_parameters() if re.match(r"(\w+_)?blocks\.", n) and w.ndim == 2
    ]
    assert in_blocks and sum(n in narrow for n in in_blocks) > 0.75 * len(in_blocks)
    v, text, pixels = run(base)
    error = float((v - plain[0]).pow(2).mean().sqrt() / plain[0].std())
    assert 1e-3 < error < 0.15
    assert torch.equal(text, plain[1]) and torch.equal(pixels, plain[2])
    assert base.network.dtype == torch.float32  # what it computes in


@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_int8_weights_take_a_byte_each_and_move_a_velocity_less_than_fp8(folder, plain, offload):
    base = load_base(str(folder))
    before, was = weight_bytes(base.network), base.fingerprint()
    economise(base, Economy("int8", offload), "cpu")
    layers = [base.network.get_submodule(name).weight for name in adapted(base.network)]
    scales = sum((4 + 1) * len(weight) for weight in layers)  # and a zero point
    assert before - weight_bytes(base.network) == 3 * sum(weight.numel() for weight in layers) - scales
    assert base.fingerprint() != was
    v, text, pixels = run(base)
    error = float((v - plain[0]).pow(2).mean().sqrt() / plain[0].std())
    assert 1e-4 < error < 0.05
    assert torch.equal(text, plain[1]) and torch.equal(pixels, plain[2])


def test_int8_weights_that_travel_block_by_block_give_the_same_to_the_last_bit(folder):
    made = []
    for offload in ("none", "group"):
        base = load_base(str(folder))
        economise(base, Economy("int8", offload), "cpu")
        made.append(run(base))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_tiles_of_the_vae_leave_a_small_frame_alone(folder, plain):
    base = load_base(str(folder))
    economise(base, Economy(tile_vae=True), "cpu")
    assert base.pipe.vae.use_tiling and torch.equal(run(base)[2], plain[2])


def test_the_native_base_says_that_it_runs_whole():
    base = small_base(kind=NativeBase)
    economise(base, Economy(), "cpu")
    with pytest.raises(UserError, match="are for pretrained bases"):
        economise(base, Economy(offload="group"), "cpu")
