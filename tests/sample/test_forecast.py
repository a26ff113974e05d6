"""`longshot plan`: what is forecast is what a run then does."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core_fixtures import SMALL, DoubleBase, network, small_base
from longshot.bases.native import PRESETS, TINY_SPEC, tiny
from longshot.errors import UserError
from longshot.model.cost import Machine, kv_bytes
from longshot.sample.denoise import Sampling, denoise
from longshot.sample.forecast import MODES, NativeCosts, forecast_plan, forecast_scene, lines
from longshot.sample.plan import PlannedShot, autoregressive, together
from longshot.scene import Scene, load_scene, save_scene

CAFE = Path(__file__).resolve().parents[2] / "examples" / "cafe.yaml"
MACHINE = Machine("a machine", matmul=1e12, attention=1e12, traffic=1e12, calls=1e6)
EULER = Sampling(steps=2, guidance=2.0)


def shots(given: bool) -> list[PlannedShot]:
    """Four shots of two sizes; the first may be a pinned image."""
    grids = [(1, 2, 2), (2, 2, 1), (1, 2, 2), (1, 1, 2)]
    prompts = ["A cafe.", "[SHOT CUT] Character 1 waves.", "It goes on.", "[SHOT CUT] Wide shot."]
    made = [
        PlannedShot(k, f"shot {k}", prompt, grid, (0, str(k), 0))
        for k, (prompt, grid) in enumerate(zip(prompts, grids, strict=True), start=1)
    ]
    if given:
        made[0] = replace(made[0], given=torch.zeros(4, 24, dtype=torch.float64), pinned=True)
    return made


PLANS = {
    "joint": lambda given: together("[Story] Two friends.", shots(given)),
    "joint without a global prompt": lambda given: together("", shots(given)),
    "recomputed": lambda given: autoregressive(
        "[Story] Two friends.", shots(given), visibility="scene", memory="recompute"
    ),
    "cached": lambda given: autoregressive("[Story] Two friends.", shots(given), window=3),
}


@pytest.mark.parametrize("given", [False, True], ids=["made", "one given"])
@pytest.mark.parametrize("name", PLANS)
def test_the_flops_of_a_film_are_those_that_torch_counts_while_it_is_made(name, given):
    assert_counted(PLANS[name](given), EULER)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=2, guidance=1.0),
        Sampling(steps=2, solver="heun"),
        Sampling(steps=2, reuse_steps=True),
        Sampling(steps=2, share_history=True),
        Sampling(steps=2, share_history=True, reuse_steps=True),
    ],
    ids=["no guidance", "heun", "steps reused", "history shared", "both"],
)
def test_the_flops_follow_the_solver_guidance_and_cache(sampling):
    assert_counted(PLANS["cached"](True), sampling)


@pytest.mark.parametrize(("memory", "reuse_steps"), [("cache", False), ("cache", True), ("recompute", False)])
@pytest.mark.parametrize("moves", [(), ((0, 0, 0), (1, 0, 0))], ids=["alone", "goes on"])
def test_a_refiner_is_counted_in_the_steps_that_ask_it(memory, reuse_steps, moves):
    sizes = {"predicts": "clean", "patch": (2, 2, 2), "refiner_width": 8, "refines_below": 0.5}
    config = replace(SMALL, network=replace(SMALL.network, **sizes, refiner_moves=moves))
    base = DoubleBase(
        config, network(**{f.name: getattr(config.network, f.name) for f in fields(config.network)})
    )
    grids = [(4, 2, 2), (1, 2, 2), (1, 2, 1), (1, 2, 1)]
    takes = [replace(shot, grid=grid) for shot, grid in zip(shots(given=False), grids, strict=True)]
    plan = autoregressive("", takes, memory=memory)
    sampling = Sampling(steps=8, guidance=1.0, shift=1.0, reuse_steps=reuse_steps)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        finished = list(denoise(base, plan, sampling))
    rounds = forecast_plan(NativeCosts(config), plan, sampling, base.table.count)
    assert sum(r.total.flops for r in rounds) == pytest.approx(counter.get_total_flops(), rel=0.02)
    held = sum(context.nbytes for context in finished[-1].contexts)
    assert rounds[-1].cache == held // 2  # the forecast is in fp32, this base in fp64


def assert_counted(plan, sampling) -> None:
    base = small_base()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        finished = list(denoise(base, plan, sampling))
    rounds = forecast_plan(NativeCosts(base.config), plan, sampling, base.table.count)
    assert sum(r.total.flops for r in rounds) == counter.get_total_flops()
    held = sum(context.nbytes for context in finished[-1].contexts)
    assert rounds[-1].cache == held // 2  # the forecast is in fp32, this base in fp64


def test_history_is_reckoned_at_the_level_that_is_best_for_the_base_in_each_mode(monkeypatch):
    def flops(under_all: float, under_causal: float) -> dict[str, int]:
        spec = replace(TINY_SPEC, context_sigma=under_all, causal_context_sigma=under_causal)
        monkeypatch.setitem(PRESETS, "odd", lambda: replace(tiny(), spec=spec))
        forecast = forecast_scene(load_scene(CAFE), "odd", folder=CAFE.parent, machine=MACHINE)
        return {m.mode: m.total.flops for m in forecast.modes}

    both, causal_noisy, all_noisy = flops(0.1, 0.1), flops(0.1, 0.9), flops(0.9, 0.1)  # 0.9: no refiner
    assert causal_noisy["causal"] < both["causal"] == all_noisy["causal"]
    assert all_noisy["bidirectional"] < both["bidirectional"] == causal_noisy["bidirectional"]


@pytest.mark.parametrize("base", ["tiny", "native-3b"])
def test_a_scene_is_forecast_shot_by_shot_in_every_mode(base):
    forecast = forecast_scene(load_scene(CAFE), base, folder=CAFE.parent, machine=MACHINE)
    num_shots = len(load_scene(CAFE).shots)
    assert len(forecast.shots) == num_shots and [m.mode for m in forecast.modes] == list(MODES)
    joint, recomputed, cached = forecast.modes
    together_, last = joint.rounds[0].step, recomputed.rounds[-1].step
    assert (together_.attention, together_.calls) == (last.attention, last.calls)
    asks_more = base == "tiny"  # its refiner, in every step that goes on from a finished shot
    assert together_.flops < last.flops if asks_more else together_ == last
    assert cached.total.flops < recomputed.total.flops
    assert cached.rounds[-1].cache > cached.rounds[0].cache > joint.rounds[0].cache == 0
    printed = lines(forecast)
    assert sum(line.startswith("shot ") and line[5].isdigit() for line in printed) == num_shots
    for word in (base, "parameters", "FLOPs", "KV", "peak memory", "predicted time", "a machine", *MODES):
        assert any(word in line for line in printed), word


def test_the_bytes_a_shot_keeps_follow_its_tokens():
    forecast = forecast_scene(load_scene(CAFE), "native-3b", folder=CAFE.parent, machine=MACHINE)
    shot = forecast.shots[0]
    assert shot.grid == (30, 22, 40) and shot.tokens == 26_400 + shot.text
    assert shot.kv == 2 * 24 * 2048 * shot.tokens * 4
    assert 2.95e9 < forecast.parameters < 3.05e9


def test_a_scene_longer_than_the_window_says_why_it_cannot_be_made_jointly():
    scene = load_scene(CAFE)
    long = Scene(title="long", shots=scene.shots * 3, characters=scene.characters)
    forecast = forecast_scene(long, "tiny", machine=MACHINE)
    assert "can't all see each other" in (forecast.modes[0].problem or "")
    assert all(m.problem is None and len(m.rounds) == len(long.shots) for m in forecast.modes[1:])
    assert any("can't all see each other" in line for line in lines(forecast))


def test_one_mode_can_be_asked_for():
    forecast = forecast_scene(load_scene(CAFE), "tiny", "causal", CAFE.parent, MACHINE)
    assert [m.mode for m in forecast.modes] == ["causal"]


def test_the_config_of_a_weights_file_is_forecast_without_reading_its_weights(tmp_path):
    base = small_base()
    base.save(tmp_path / "mine.safetensors")
    scene = load_scene(CAFE)
    forecast = forecast_scene(scene, str(tmp_path / "mine.safetensors"), folder=CAFE.parent, machine=MACHINE)
    assert forecast.parameters == sum(p.numel() for p in base.network.parameters())
    assert forecast.shots[0].kv == kv_bytes(base.config.network, forecast.shots[0].tokens, 4)


@pytest.mark.parametrize(
    ("base", "mode", "message"),
    [
        ("huge", "auto", "no base 'huge': use tiny, or a .safetensors file"),
        ("tiny", "backwards", "no mode 'backwards': use auto, joint"),
        ("missing.safetensors", "auto", "missing.safetensors: there is no such weights file"),
    ],
)
def test_what_cannot_be_forecast_is_named(base, mode, message):
    with pytest.raises(UserError, match=message):
        forecast_scene(load_scene(CAFE), base, mode, machine=MACHINE)


def test_other_safetensors_files_are_refused(tmp_path):
    from longshot.tensors import save_tensors

    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    save_scene(load_scene(CAFE), tmp_path / "scene.yaml")
    with pytest.raises(UserError, match="not the weights of a native base"):
        forecast_scene(load_scene(CAFE), str(tmp_path / "other.safetensors"), machine=MACHINE)
