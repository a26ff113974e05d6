"""What every pretrained base must do, on small random copies of each, in fp32. The oracle is diffusers' own code."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longshot.bases.base import Base
from longshot.cli import main
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Sampling, denoise, noise_of
from longshot.sample.plan import PlannedShot, autoregressive, together
from longshot.scene import Scene, Shot, save_scene
from sample.planned import by_hand

EXACT = 2e-5  # two orders of the same fp32 sums; values are about 4

GRIDS = [(2, 1, 2), (1, 1, 2), (3, 1, 2)]  # shots of different lengths: the batch is padded
PROMPTS = ["a dog waves", "", "Character 2 walks out of the old house in the snow"]
SIGMAS = [0.9, 0.1, 0.45]


def rows(grid: tuple[int, int, int], channels: int, seed: int) -> torch.Tensor:
    return torch.randn(int(np.prod(grid)), channels, generator=torch.Generator().manual_seed(seed))


def scene(base: Base, shots=(0, 1, 2)):
    """z, text, sigma and layout of some shots of the test scene, none of them remembered."""
    text = base.encode_text([PROMPTS[i] for i in shots])
    groups = [Group(i + 1, len(t), GRIDS[i]) for i, t in zip(shots, text, strict=True)]
    z = torch.cat([rows(GRIDS[i], base.spec.channels, i) for i in shots])
    sigma = torch.tensor([SIGMAS[i] for i in shots])
    return z, torch.cat(text), sigma, Layout.single(*groups, rope=base.spec.rope)


def after(base: Base, context: Context, shots):
    """The same shots, while those in `context` are remembered."""
    z, text, sigma, layout = scene(base, shots)
    groups = (*context.groups, *layout.groups)
    return z, text, sigma, Layout.single(*groups, past=len(context.groups), rope=base.spec.rope)


def of_shot(v: torch.Tensor, layout: Layout) -> dict[int, torch.Tensor]:
    return {g.shot: v[span.slice] for g, span in zip(layout.groups, layout.video_spans, strict=True)}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=EXACT)


# -- the network --------------------------------------------------------------------------------------------------------
def test_it_is_a_base(base):
    assert isinstance(base, Base)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [1.0, 0.37])
def test_one_shot_equals_the_networks_own_forward(small, base, pipe, sigma):
    from longshot.bases.shots import pack, unpack

    grid, prompt = (3, 1, 2), PROMPTS[2]
    z = rows(grid, base.spec.channels, 5)
    (text,) = base.encode_text([prompt])
    layout = Layout.single(Group(1, len(text), grid), rope=base.spec.rope)
    v = base.velocity(z, text, torch.tensor([sigma]), layout, "scene")
    own = small.velocity(pipe, unpack(z, grid, base.patch), prompt, sigma)
    assert v.std() > 0.1
    assert close(v, pack(own, grid, base.patch))


@torch.no_grad()
def test_shots_that_see_only_themselves_equal_separate_calls(base):
    together_ = of_shot(base.velocity(*scene(base), "shot"), scene(base)[3])
    for i in range(3):
        z, text, sigma, layout = scene(base, (i,))
        assert close(together_[i + 1], base.velocity(z, text, sigma, layout, "scene"))


@torch.no_grad()
def test_shots_that_see_each_other_differ_from_separate_calls(base):
    joint = of_shot(base.velocity(*scene(base), "scene"), scene(base)[3])
    for i in range(3):
        z, text, sigma, layout = scene(base, (i,))
        assert not torch.allclose(joint[i + 1], base.velocity(z, text, sigma, layout, "scene"), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("parts", [((0,), (1,), (2,)), ((0, 1), (2,)), ((0,), (1, 2))])
def test_the_cache_equals_the_causal_mask_however_the_scene_is_split(base, parts):
    whole = of_shot(base.velocity(*scene(base), "causal"), scene(base)[3])
    context = Context()
    for shots in parts:
        z, text, sigma, layout = after(base, context, shots)
        v, (context,) = base.remember(z, text, sigma, layout, "causal", [context])
        for shot, rows_ in of_shot(v, layout).items():
            assert close(rows_, whole[shot])
    assert context.shots == (1, 2, 3)


@torch.no_grad()
def test_a_context_survives_its_file(base, tmp_path):
    z, text, sigma, layout = after(base, Context(), (0, 1))
    _, (context,) = base.remember(z, text, sigma, layout, "causal", [Context()])
    context.save(tmp_path / "context.safetensors")
    loaded = Context.load(tmp_path / "context.safetensors")
    step = after(base, loaded, (2,))
    assert torch.equal(base.velocity(*step, "causal", [loaded]), base.velocity(*step, "causal", [context]))


@torch.no_grad()
def test_a_later_shot_cannot_change_an_earlier_one_under_causal_visibility(base):
    z, text, sigma, layout = scene(base)
    first = of_shot(base.velocity(z, text, sigma, layout, "causal"), layout)
    other_z, other_text = z.clone(), text.clone()
    other_z[layout.video_spans[2].slice] += 1
    other_text[-layout.groups[2].text :] *= 1.5
    later = of_shot(
        base.velocity(other_z, other_text, sigma * torch.tensor([1, 1, 0.5]), layout, "causal"), layout
    )
    assert torch.equal(first[1], later[1]) and torch.equal(first[2], later[2])
    assert not torch.allclose(first[3], later[3], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("visibility", ["scene", "causal", "shot"])
def test_dense_attention_over_the_scene_gives_the_same(base, visibility):
    fast = base.velocity(*scene(base), visibility)
    base.attention.kernel = "dense"
    try:
        slow = base.velocity(*scene(base), visibility)
    finally:
        base.attention.kernel = "prefix"
    assert close(fast, slow)


@torch.no_grad()
def test_packed_scenes_do_not_see_each_other(base):
    z, text, sigma, layout = scene(base)
    (groups,) = layout.scenes
    packed = Layout((groups, groups[:1]), (0, 0), base.spec.rope)
    v = base.velocity(
        torch.cat([z, z[: groups[0].video]]),
        torch.cat([text, text[: groups[0].text]]),
        torch.cat([sigma, sigma[:1]]),
        packed,
        "scene",
    )
    assert close(v[: len(z)], base.velocity(z, text, sigma, layout, "scene"))
    assert close(v[len(z) :], base.velocity(*scene(base, (0,)), "scene"))


def test_gradients_of_a_scene_reach_every_shot_and_every_self_attention(base):
    z, text, sigma, layout = scene(base)
    queries = [name for name, _ in base.network.named_parameters() if "to_q.weight" in name]
    # LTX-2's sound is unused.
    weights = [base.network.get_parameter(name) for name in queries if "audio" not in name]
    for w in weights:
        w.requires_grad_(True)
    z.requires_grad_(True)
    try:
        base.velocity(z, text, sigma, layout, "causal").square().mean().backward()
        assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)
        assert (z.grad.abs().sum(1) > 0).all()
    finally:
        for w in weights:
            w.requires_grad_(False)
            w.grad = None


# -- text and pixels ----------------------------------------------------------------------------------------------------
def test_the_features_of_a_prompt_do_not_depend_on_the_prompts_beside_it(base):
    alone = [base.encode_text([p])[0] for p in PROMPTS]
    assert all(torch.equal(a, b) for a, b in zip(alone, base.encode_text(PROMPTS), strict=True))


def test_a_prompt_is_never_cut_off(base):
    long = "dog " * (base.spec.max_text_tokens + 5)
    assert len(base.tokenise(long)) > base.spec.max_text_tokens
    with pytest.raises(ValueError, match=rf"reads {base.spec.max_text_tokens} tokens; a prompt has \d+"):
        base.encode_text([long])


def test_clips_and_pictures_have_as_many_latent_rows_as_their_grid(base):
    width, height = base.spec.size
    rng = np.random.default_rng(0)
    for frames in (1, base.spec.stride[0] + 1):
        clip = rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
        grid = base.spec.grid(frames, width, height)
        z = base.encode(clip)
        assert z.shape == (np.prod(grid), base.spec.channels) and z.std() > 0
        assert base.decode(z, grid).shape == clip.shape


def test_frames_that_may_not_be_written_are_encoded_without_a_warning(base):
    width, height = base.spec.size
    clip = np.random.default_rng(2).integers(0, 255, (1, height, width, 3), dtype=np.uint8)
    z = base.encode(clip)
    clip.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(base.encode(clip), z)


def test_a_first_frame_alone_has_the_latent_it_has_in_a_clip(base):
    """The VAE is causal, so a picture given as a one-frame shot is what the model knows as the start of a clip."""
    width, height = base.spec.size
    clip = np.random.default_rng(1).integers(
        0, 255, (base.spec.stride[0] + 1, height, width, 3), dtype=np.uint8
    )
    alone, whole = base.encode(clip[:1]), base.encode(clip)
    assert torch.allclose(whole[: len(alone)], alone, atol=1e-5)


# -- the whole pipeline -------------------------------------------------------------------------------------------------
STEPS, GUIDANCE = 3, 4.0


def options(small, folder, *more: str) -> list[str]:
    width, height = small.size
    return [
        "--base",
        str(folder),
        "--size",
        f"{width}x{height}",
        "--steps",
        str(STEPS),
        "--guidance",
        str(GUIDANCE),
        *more,
    ]


def run(*args) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code == 0


def test_one_shot_from_the_command_line_equals_diffusers_own_pipeline(small, base, pipe, folder, tmp_path):
    from longshot.bases.shots import pack, unpack

    prompt, frames = "a dog waves in the snow", 2 * base.spec.stride[0] + 1
    save_scene(Scene(shots=[Shot(prompt=prompt, frames=frames)], seed=7), tmp_path / "scene.yaml")
    run("sample", tmp_path / "scene.yaml", "--out", tmp_path / "film", *options(small, folder))
    made = load_file(tmp_path / "film/latents/shot_01.safetensors")["z"]

    grid = base.spec.grid(frames, *small.size)
    shot = PlannedShot(1, "shot 1", prompt, grid, (7, "1", 0))
    noise = unpack(noise_of(shot, base.spec.channels), grid, base.patch)
    latent = small.film(pipe, noise, prompt, frames, STEPS, GUIDANCE, "latent")
    assert torch.allclose(made, pack(latent[None], grid, base.patch), rtol=0, atol=2e-4)

    pixels = small.film(pipe, noise, prompt, frames, STEPS, GUIDANCE, "np")
    off = np.abs(base.decode(made, grid).astype(int) - (pixels * 255).round().astype(int))
    assert off.max() <= 1 and off.mean() < 0.01  # a value that lies between two bytes may round either way


def test_the_noise_levels_are_those_of_the_pipelines_scheduler(base, pipe):
    from longshot.flow import sigma_table

    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 6)[:-1])
    assert torch.allclose(scheduler.sigmas, sigma_table(5, base.spec.shift), atol=1e-6)


# -- every mode ---------------------------------------------------------------------------------------------------------
def story(base: Base, given=()) -> list[PlannedShot]:
    return [
        PlannedShot(
            shot=i + 1,
            label=f"shot {i + 1}",
            prompt=PROMPTS[i],
            grid=GRIDS[i],
            noise=(3, str(i + 1), 0),
            given=rows(GRIDS[i], base.spec.channels, 30 + i) if i + 1 in given else None,
        )
        for i in range(3)
    ]


MODES = {
    "joint": lambda b: together("a red hat", story(b)),
    "given image between two shots": lambda b: together("a red hat", story(b, (2,)), 0.2),
    "interpolation": lambda b: together("", story(b, (1, 3)), 0.1),
    "causal with a cache": lambda b: autoregressive("a red hat", story(b)),
    "causal after a given shot": lambda b: autoregressive("", story(b, (1,)), context_sigma=0.3),
    "causal with a chosen history": lambda b: autoregressive("", story(b), history={3: [1]}),
    "bidirectional": lambda b: autoregressive("a red hat", story(b), visibility="scene", memory="recompute"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_mode_equals_a_sampler_written_by_hand(base, mode, guidance):
    plan, sampling = MODES[mode](base), Sampling(steps=2, shift=3.0, guidance=guidance)
    made: dict[int, torch.Tensor] = {}
    for finished in denoise(base, plan, sampling):
        made |= finished.latents
    with torch.no_grad():
        expected = by_hand(base, plan, sampling)
    assert made.keys() == expected.keys()
    for shot, z in expected.items():
        assert torch.allclose(made[shot], z, rtol=0, atol=5e-5)
