"""What is predicted from a config is what torch counts, allocates and keeps."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memory import peak_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from wide import (
    interleaved_ltx2,
    narrow_hunyuan15,
    narrow_ltx2,
    narrow_wan,
    wide_hunyuan15,
    wide_ltx2,
    wide_wan,
)

from longshot.bases.economy import Economy, economise, weight_bytes
from longshot.bases.hub import open_folder
from longshot.bases.shape import known_shapes, shape_of
from longshot.errors import UserError
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.model.cost import Machine
from longshot.sample.denoise import Sampling
from longshot.sample.forecast import Savings, check_room, forecast_scene, lines, outline_of
from longshot.sample.plan import autoregressive, together
from longshot.sample.story import tell
from longshot.scene import Scene, Shot, load_scene

CAFE = Path(__file__).resolve().parents[2] / "examples" / "cafe.yaml"
PUBLISHED = {
    "wan2.2-ti2v-5b": 5.0,
    "wan2.1-t2v-1.3b": 1.42,
    "wan2.1-t2v-14b": 14.29,
    "hunyuanvideo-1.5": 8.33,
    "ltx-2": 18.88,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_base_has_the_number_of_parameters_it_was_published_with(name):
    assert known_shapes()[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.003)


def test_the_parameters_counted_from_a_config_are_those_of_the_network(folder, base):
    shape = shape_of(open_folder(str(folder)))
    assert shape.parameters == sum(p.numel() for p in base.network.parameters())
    assert shape.others[1] == sum(t.numel() for t in base.pipe.vae.state_dict().values())


def grown(base, shots: int, past: int, grid, text=None):
    """A scene of some size, of which some shots are remembered: arguments of `velocity`."""
    text = base.encode_text(["a dog waves in the snow"])[0] if text is None else text
    groups = tuple(Group(i + 1, len(text), grid) for i in range(shots))

    def given(layout: Layout):
        z = torch.randn(layout.num_video, base.spec.channels)
        return z, text.repeat(len(layout.groups), 1), torch.rand(len(layout.groups)), layout

    context = Context()
    if past:
        before = Layout.single(*groups[:past], rope=base.spec.rope)
        _, (context,) = base.remember(*given(before), "causal", [context])
    layout = Layout.single(*context.groups, *groups[past:], past=past, rope=base.spec.rope)
    return *given(layout), "causal", [context]


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 1])
def test_flops_of_a_pass_are_those_that_torch_counts(folder, base, past):
    shape = shape_of(open_folder(str(folder)))
    args = grown(base, 2, past, (2, 4, 4))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        base.velocity(*args)
    predicted = shape.forward_work(args[3], "causal").flops
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shots", "past", "grid"),
    [(1, 0, (4, 12, 16)), (2, 0, (4, 12, 16)), (2, 1, (4, 12, 16)), (3, 2, (2, 6, 8)), (1, 0, (2, 2, 2))],
)
@pytest.mark.parametrize(
    "made",
    [wide_wan, wide_hunyuan15, wide_ltx2, interleaved_ltx2, narrow_wan, narrow_hunyuan15, narrow_ltx2],
)
def test_peak_memory_of_a_pass_is_predicted_within_a_tenth(made, shots, past, grid):
    base, shape, words = made()
    shape = replace(shape, itemsize=4, threads=torch.get_num_threads())
    args = grown(base, shots, past, grid, words)
    assert shape.activation_bytes(args[3]) == pytest.approx(peak_of(base, args), rel=0.1)


@torch.no_grad()
def test_the_bytes_of_a_cache_are_those_of_a_context(folder, base):
    shape = replace(shape_of(open_folder(str(folder))), itemsize=4)
    (context,) = grown(base, 3, 2, (2, 2, 2))[-1]
    assert context.nbytes == sum(shape.shot_bytes(g) for g in context.groups)


def test_a_shot_of_wan_at_480p_costs_what_was_measured():
    # 832x480, 81 frames: 8,190 tokens (padded to multiples of 32) and 2.8 GiB of keys and values in bf16.
    shape = known_shapes()["wan2.2-ti2v-5b"]
    group = Group(1, 0, shape.spec.grid(81, 832, 480))
    assert group.video == 8190 and shape.shot_bytes(group) / 2**30 == pytest.approx(2.81, abs=0.01)


def test_plan_needs_no_network_folder_or_tokenizer_for_a_known_base():
    text = "\n".join(lines(forecast_scene(load_scene(CAFE), "wan2.2-ti2v-5b", "causal", size=(832, 480))))
    assert "5B parameters" in text and "with text encoder and VAE" in text


IDLE = Machine("none", 1, 1, 1, 1)
SCENE = Scene(shots=[Shot(prompt="a dog waves", frames=121), *[Shot(prompt="it walks", frames=121)] * 4])


def room_of(mode: str, free: int, name: str = "wan2.2-ti2v-5b", **savings) -> None:
    """Checks the room of five shots on a machine with so many bytes free."""
    outline = outline_of(name, savings=Savings(**savings))
    story = tell(SCENE, outline.codec, Path())
    spec = outline.codec.spec
    sampling = Sampling(spec.steps, spec.shift, spec.guidance, cache_dtype=savings.get("cache_dtype", "own"))

    def plan_for(mode: str, window: int | None):
        if mode == "joint":
            return together(story.global_prompt, story.shots, window=window or spec.max_shots)
        how = ("causal", "cache") if mode == "causal" else ("scene", "recompute")
        return autoregressive(
            story.global_prompt,
            story.shots,
            visibility=how[0],
            memory=how[1],
            window=window or spec.max_shots,
        )

    check_room(outline, plan_for, mode, sampling, others=("causal", "bidirectional"), free=free)


@pytest.mark.parametrize("name", ["wan2.2-ti2v-5b", "ltx-2"])
def test_more_shots_than_memory_allows_is_said_with_what_fits(name):
    def needs(mode: str, window: int | None = None) -> int:
        f = forecast_scene(SCENE, name, mode, machine=IDLE, window=window)
        return f.weights + f.modes[0].working_bytes

    def check(mode: str, free: int) -> None:
        room_of(mode, free, name)

    check("joint", needs("joint"))
    with pytest.raises(
        UserError,
        match=rf"5 shots and images, mode joint, need \S+ GiB on {name}; .* are free: use --",
    ):
        check("joint", needs("joint") - 1)
    with pytest.raises(UserError, match=r"use --mode bidirectional --window 1$"):
        check("joint", needs("bidirectional", 1))
    with pytest.raises(UserError, match="not even one shot fits"):
        check("causal", 8 * 2**30)


@pytest.mark.parametrize("weights", ["own", "fp8", "int8"])
@pytest.mark.parametrize("wide", [wide_wan, wide_hunyuan15, wide_ltx2])
def test_the_bytes_of_a_network_are_those_it_takes_also_in_fp8_and_int8(wide, weights):
    base, shape, _ = wide()
    shape = replace(shape, itemsize=4, is_narrow=weights != "own", has_scales=weights == "int8")
    base.pipe = SimpleNamespace(transformer=base.network, to=lambda device: None)
    economise(base, Economy(weights), "cpu")
    assert shape.network_bytes == pytest.approx(weight_bytes(base.network), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("wide", [wide_wan, wide_hunyuan15, wide_ltx2])
def test_peak_memory_of_a_pass_with_fp8_weights_is_predicted_within_a_tenth(wide):
    base, shape, words = wide()
    shape = replace(shape, itemsize=4, is_narrow=True, threads=torch.get_num_threads())
    base.pipe = SimpleNamespace(transformer=base.network, to=lambda device: None)
    args = grown(base, 2, 0, (4, 12, 16), words)
    economise(base, Economy("fp8"), "cpu")
    assert shape.activation_bytes(args[3]) == pytest.approx(peak_of(base, args), rel=0.1)


def needs(mode: str = "causal", **savings) -> tuple[int, int, int]:
    """Bytes of weights, of the cache, and of all but the weights, of five shots on one small machine."""
    f = forecast_scene(SCENE, "wan2.2-ti2v-5b", mode, machine=IDLE, savings=Savings(**savings))
    return f.weights, max(r.cache for r in f.modes[0].rounds), f.modes[0].working_bytes


def test_a_plan_knows_what_is_done_to_need_less_memory():
    weights, cache, working = needs()
    assert needs(cache_dtype="bf16") == (weights, cache // 2, working - cache // 2)
    assert needs(cache_dtype="fp8")[1] == cache // 4 and needs(cache_dtype="fp32")[1] == cache
    assert needs(share_history=True)[1] == cache // 2
    assert needs(cache_elsewhere=True) == (weights, cache, working - cache)
    saved = weights - needs(economy=Economy("fp8"))[0]
    assert saved == pytest.approx(3 * known_shapes()["wan2.2-ti2v-5b"].parameters, rel=0.02)
    assert weights - needs(economy=Economy("int8"))[0] == pytest.approx(saved, rel=0.01)


def test_on_a_gpu_only_the_networks_that_are_at_work_count():
    shape = replace(known_shapes()["wan2.2-ti2v-5b"], itemsize=2)
    plain, group, model = (
        outline_of("wan2.2-ti2v-5b", "cuda", savings=Savings(Economy(offload=offload))).weights
        for offload in ("none", "group", "model")
    )
    assert group < model < plain == shape.weight_bytes
    assert model == 2 * shape.others[0]  # the text encoder is the largest one


def test_more_room_by_a_narrow_cache_lets_a_scene_through():
    weights, cache, working = needs()
    free = weights + working - cache // 4
    with pytest.raises(UserError, match="need"):
        room_of("causal", free)
    room_of("causal", free, cache_dtype="bf16")
