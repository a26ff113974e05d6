"""The native base: pixels in and out, files that load strictly, and velocities."""

import json
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from core_fixtures import SMALL, SMALL_SPEC, few, inputs, noise, seeds, small_base, some
from longshot.bases import load_base
from longshot.bases.native import FORMAT, PRESETS, TINY_SPEC, NativeBase, native_3b, read_config, tiny
from longshot.errors import UserError
from longshot.flow import per_token, velocity
from longshot.layout import Group, Layout, global_group
from longshot.model.mmdit import MMDiT

BASE = small_base(kind=NativeBase)
LAYOUT = Layout.single(global_group(2), Group(1, 3, (1, 2, 2)), Group(2, 1, (2, 1, 1)))


def pixels(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


# -- pixels -----------------------------------------------------------------------------------------------------------------
@some
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), seeds)
def test_clips_of_any_legal_size_come_back_from_a_latent_to_the_last_bit(T, H, W, seed):
    frames = pixels(2 * T, 2 * H, 2 * W, seed)
    grid = SMALL_SPEC.grid(2 * T, 2 * W, 2 * H)
    z = BASE.encode(frames)
    assert grid == (T, H, W) and z.shape == (T * H * W, SMALL_SPEC.channels) and z.abs().max() <= 1
    assert np.array_equal(BASE.decode(z, grid), frames)


def test_a_token_holds_the_pixels_of_its_own_patch_in_the_order_of_the_layout():
    frames = np.zeros((4, 4, 6, 3), np.uint8)
    frames[2:4, 0:2, 4:6] = 255  # t=1, h=0, w=2 of a (2, 2, 3) grid
    bright = (BASE.encode(frames) > 0).all(1)
    assert bright.nonzero().flatten().tolist() == [1 * 6 + 0 * 3 + 2]


def test_an_image_is_a_clip_of_the_shortest_length_that_stands_still():
    image = pixels(1, 4, 4)
    assert torch.equal(BASE.encode(image), BASE.encode(np.repeat(image, 2, axis=0)))


def test_values_outside_the_pixels_are_clipped_when_they_are_shown():
    z = torch.full((1, 24), 3.0)
    assert (BASE.decode(z, (1, 1, 1)) == 255).all() and (BASE.decode(-z, (1, 1, 1)) == 0).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 4), r"3 frames; small needs 2n\+0: use 2 or 4"),
        ((0, 4, 4), r"0 frames; small needs 2n\+0: use 2 or 4"),
        ((2, 4, 5), "5x4 pixels; small needs multiples of 2x2"),
        ((2, 0, 4), "4x0 pixels; small needs multiples of 2x2"),
    ],
)
def test_clips_of_sizes_that_the_base_cannot_hold_are_refused_with_the_nearest_that_it_can(shape, message):
    with pytest.raises(UserError, match=message):
        BASE.encode(pixels(*shape))


def test_a_base_of_4n_plus_1_frames_names_the_nearest_legal_lengths():
    spec = replace(TINY_SPEC, name="wan2.2-ti2v-5b", frame_offset=1, stride=(4, 8, 8))
    with pytest.raises(UserError, match=r"50 frames; wan2.2-ti2v-5b needs 4n\+1: use 49 or 53"):
        spec.grid(50, 48, 32)
    assert spec.grid(49, 48, 32) == (13, 4, 6) and spec.min_frames == 1


@some
@given(st.integers(0, 1), st.integers(1, 5), st.integers(1, 20))
def test_frames_and_tokens_in_time_are_each_others_inverse(offset, stride, n):
    spec = replace(TINY_SPEC, frame_offset=offset, stride=(stride, 8, 8))
    frames = stride * n + offset
    assert spec.frames(spec.grid(frames, 48, 32)) == frames
    assert spec.frames(spec.grid(spec.min_frames, 48, 32)) == spec.min_frames


# -- text -------------------------------------------------------------------------------------------------------------------
def test_prompts_become_one_feature_a_token_each_by_itself_and_an_empty_one_is_a_prompt_too():
    prompts = ["Character 1 waves", "", "a red hat on a green puppet"]
    features = BASE.encode_text(prompts)
    assert [len(f) for f in features] == [len(BASE.tokenise(p)) for p in prompts]
    for prompt, feature in zip(prompts, features, strict=True):
        # fp32: matrices of another height may be multiplied in another order.
        assert torch.allclose(BASE.encode_text([prompt])[0], feature, rtol=0, atol=1e-5)


def test_the_limits_of_a_base_are_those_of_its_spec_and_tokenizer():
    limits = BASE.limits()
    assert (limits.name, limits.fps, limits.frame_step, limits.frame_offset) == ("small", Fraction(8), 2, 0)
    assert limits.count_tokens("a red hat") == len(BASE.tokenise("a red hat"))


# -- velocities -------------------------------------------------------------------------------------------------------------
@few
@given(st.floats(0.01, 1), seeds)
def test_a_network_that_predicts_the_clean_latent_exactly_gives_the_exact_velocity(sigma, seed):
    config = replace(SMALL, network=replace(SMALL.network, predicts="clean"))
    base = NativeBase.fresh(config)  # a fresh network predicts its head's bias, whatever it sees
    z_0 = noise(seed, 1, 24, dtype=torch.float32)
    with torch.no_grad():
        base.network.head.bias.copy_(z_0[0])
    eps = noise(seed + 1, LAYOUT.num_video, 24, dtype=torch.float32)
    level = torch.tensor([0.0, sigma, sigma])
    spread = per_token(level, LAYOUT)
    z_t = (1 - spread) * z_0 + spread * eps
    text = noise(0, LAYOUT.num_text, 24, dtype=torch.float32)
    v = base.velocity(z_t, text, level, LAYOUT, "scene")
    assert (v[0] == 0).all()  # sigma 0 is given, and stands still
    # fp32: the difference of two numbers of size one, divided by sigma >= 0.01.
    assert torch.allclose(v[1:], velocity(z_0, eps[1:]), rtol=0, atol=1e-4)


def test_remember_returns_the_velocity_and_the_past_with_the_new_groups():
    z, text, sigma = inputs(LAYOUT, BASE.network)
    v, (context,) = BASE.remember(z, text, sigma, LAYOUT, "causal")
    assert torch.equal(v, BASE.velocity(z, text, sigma, LAYOUT, "causal"))
    assert context.shots == (0, 1, 2) and [m.sigma for m in context.memories] == sigma.tolist()
    more = Layout.single(*context.groups, Group(5, 1, (1, 1, 1)), past=3)
    _, (longer,) = BASE.remember(*inputs(more, BASE.network), more, "causal", [context])
    assert longer.shots == (0, 1, 2, 5) and longer.memories[:3] == context.memories


def test_fresh_bases_of_one_seed_are_equal_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, other = (NativeBase.fresh(SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert a.fingerprint() == b.fingerprint() != other.fingerprint()


# -- presets ----------------------------------------------------------------------------------------------------------------
def parameters(network) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in MMDiT(network).parameters())


def test_presets_are_of_the_sizes_they_promise():
    assert parameters(tiny().network) < 12.5e6  # two sets of weights in bf16: under 48 MiB
    assert 2.9e9 < parameters(native_3b().network) < 3.1e9


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_together(preset):
    spec, network = PRESETS[preset]().spec, PRESETS[preset]().network
    t, h, w = spec.stride
    assert (
        spec.name == preset
        and spec.channels == network.channels == t * h * w * 3
        and spec.rope == network.rope
    )
    assert spec.default_frames <= spec.max_frames
    assert spec.grid(spec.default_frames, *spec.size)[0] * t == spec.default_frames


# -- files ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    BASE.save(path, torch.float32)
    return path


def read(path: Path) -> tuple[dict, dict]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k).clone() for k in file.keys()}, dict(file.metadata())  # noqa: SIM118


def test_a_base_comes_back_from_disk_bit_for_bit_with_its_config(weights):
    loaded = NativeBase.load(weights)
    assert loaded.config == BASE.config and loaded.fingerprint() == BASE.fingerprint()
    assert not loaded.network.training and not any(p.requires_grad for p in loaded.network.parameters())
    z, text, sigma = inputs(LAYOUT, BASE.network)
    assert torch.equal(
        loaded.velocity(z, text, sigma, LAYOUT, "scene"), BASE.velocity(z, text, sigma, LAYOUT, "scene")
    )
    assert load_base(str(weights)).config == BASE.config


def test_weights_are_stored_in_half_the_space_by_default_and_read_into_full_precision(tmp_path, weights):
    BASE.save(tmp_path / "half.safetensors")
    half = NativeBase.load(tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * weights.stat().st_size
    for name, weight in half.network.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, BASE.network.state_dict()[name].bfloat16().float())


def test_a_weights_file_that_is_cut_short_after_it_was_read_does_no_harm(weights):
    # A tensor that still lay in the file would end the process, without a word.
    loaded = NativeBase.load(weights)
    weights.write_bytes(b"")
    assert loaded.fingerprint() == BASE.fingerprint()


def change_config(path: Path, change) -> None:
    tensors, meta = read(path)
    config = json.loads(meta["config"])
    change(config)
    save_file(tensors, path, meta | {"config": json.dumps(config)})


def damage(path: Path, kind: str) -> None:
    """Makes one kind of bad file at `path`, where good weights lie."""
    tensors, meta = read(path)
    match kind:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
        case "half a header":
            path.write_bytes(path.read_bytes()[:100])
        case "empty":
            path.write_bytes(b"")
        case "pickle":
            path.write_bytes(pickle.dumps({"head.weight": [1.0]}))
        case "torch pickle":
            torch.save(tensors, path)
        case "no file":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "foreign":
            save_file(tensors, path, {"format": "pt"})
        case "no metadata":
            save_file(tensors, path)
        case "no config":
            save_file(tensors, path, {"format": FORMAT})
        case "no json":
            save_file(tensors, path, {"format": FORMAT, "config": "{"})
        case "missing":
            del tensors["blocks.0.text.qkv.weight"]
            save_file(tensors, path, meta)
        case "unknown":
            save_file(tensors | {"blocks.9.text.qkv.weight": torch.zeros(1)}, path, meta)
        case "shape":
            save_file(tensors | {"head.weight": tensors["head.weight"][:-1].clone()}, path, meta)
        case "wider":
            change_config(path, lambda c: c["network"].update(width=48))
        case "deeper":
            change_config(path, lambda c: c["network"].update(depth=3))


BAD_FILES = {
    "truncated": "not a readable safetensors file",
    "half a header": "not a readable safetensors file",
    "empty": "not a readable safetensors file",
    "pickle": "not a readable safetensors file .*; weights load from safetensors only",
    "torch pickle": "not a readable safetensors file .*; weights load from safetensors only",
    "no file": "there is no such weights file",
    "folder": "there is no such weights file",
    "foreign": "a safetensors file, but not the weights of a native base",
    "no metadata": "a safetensors file, but not the weights of a native base",
    "no config": "its config can't be read",
    "no json": "its config can't be read",
    "missing": "the tensor blocks.0.text.qkv.weight is missing",
    "unknown": "the tensor blocks.9.text.qkv.weight belongs to another network",
    "shape": r"the tensor head.weight has shape \[23, 24\]; this network needs \[24, 24\]",
    "wider": r"has shape \[.*\]; this network needs \[.*\]",
    "deeper": "the tensor blocks.2.* is missing",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_base_gives_one_clear_line_that_names_it(weights, kind):
    damage(weights, kind)
    with pytest.raises(UserError, match=BAD_FILES[kind]) as caught:
        NativeBase.load(weights)
    assert "weights.safetensors: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_pickle_in_a_weights_file_is_never_run(weights, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    weights.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError):
        NativeBase.load(weights)
    torch.save(Trap(), weights)
    with pytest.raises(UserError):
        load_base(str(weights))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["network"].update(heads=0),
        lambda c: c["network"].update(heads=5),
        lambda c: c["network"].update(width=-24),
        lambda c: c["network"].update(colour="red"),
        lambda c: c["network"].update(width="wide"),
        lambda c: c["network"].update(predicts="the future"),
        lambda c: c["network"].update(channels=48),
        lambda c: c["network"].update(refiner_moves=[[1]]),
        lambda c: c["network"].update(refiner_moves=[[0, 0.5, 0]]),
        lambda c: c["network"].update(refiner_moves=[[0, 0, 1, 1]]),
        lambda c: c["network"].update(refiner_width=8, predicts="velocity"),
        lambda c: c.update(network=[1, 2]),
        lambda c: c.pop("spec"),
        lambda c: c["spec"].update(fps="1/0"),
        lambda c: c["spec"].update(fps="fast"),
        lambda c: c["spec"].update(size=None),
        lambda c: c["spec"].update(rope="spiral"),
    ],
)
def test_a_config_that_makes_no_network_is_a_user_error_that_names_the_file(weights, change):
    change_config(weights, change)
    with pytest.raises(UserError, match=r"weights.safetensors: its config can't be read"):
        NativeBase.load(weights)


def test_moves_of_two_numbers_as_older_files_have_them_lead_to_the_side_only(weights):
    change_config(weights, lambda c: c["network"].update(refiner_moves=[[1, -2], [0, 1, -1]]))
    assert read_config(weights).network.refiner_moves == ((1, -2, 0), (0, 1, -1))


def test_a_base_that_does_not_exist_is_named_with_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"no base 'huge': use tiny, or a .safetensors file"):
        load_base("huge")
    with pytest.raises(UserError, match=r"nowhere.safetensors: there is no such weights file"):
        load_base(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UserError, match=r"no base 'weights.pt': use tiny, or a .safetensors file"):
        load_base("weights.pt")
