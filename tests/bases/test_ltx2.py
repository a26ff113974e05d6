"""LTX-2's own ways: sound kept apart, heads that turn at frequencies of their own, two generations of its network."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipelines import SMALL, ltx2, ltx2_film, ltx2_velocity, saved
from safetensors.torch import load_file

from commands import done, write_scene
from longshot.bases import load_base, load_spec
from longshot.bases.hub import open_folder
from longshot.bases.ltx2 import LTX2, LTX2Base
from longshot.bases.shape import ltx2_shape
from longshot.bases.shots import pack, unpack
from longshot.errors import UserError
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Sampling, denoise, levels_of, noise_of
from longshot.sample.plan import PlannedShot, autoregressive, together
from longshot.scene import Scene, Shot

EXACT = 2e-5
NEWER = dict(  # LTX-2.3
    gated_attn=True,
    cross_attn_mod=True,
    audio_gated_attn=True,
    audio_cross_attn_mod=True,
    use_prompt_embeddings=False,
    perturbed_attn=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(next(s for s in SMALL if s.make is ltx2), tmp_path_factory.mktemp("ltx2"))


@torch.no_grad()
def test_a_shot_is_what_diffusers_own_pipeline_makes_for_itself_where_it_isolates_the_picture(folder):
    """Its call has that switch only for a guidance; with weight 0 on the full network, nothing but that branch is left."""
    base, pipe = load_base(str(folder)), ltx2()
    grid, steps = (2, 2, 2), 2
    shot = PlannedShot(1, "shot 1", "a dog waves", grid, (7, "1", 0))
    sampling = Sampling(steps=steps, shift=base.spec.shift, guidance=1.0)
    (finished,) = denoise(base, together("", [shot]), sampling)
    pipe.set_progress_bar_config(disable=True)
    noise = unpack(noise_of(shot, base.spec.channels), grid, base.patch)
    made = pipe(
        "a dog waves",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=1.0,
        audio_guidance_scale=1.0,
        modality_scale=0.0,
        audio_modality_scale=2.0,
        stg_scale=0.0,
        audio_stg_scale=0.0,
        guidance_rescale=0.0,
        audio_guidance_rescale=0.0,
        latents=noise.flatten(2).mT,
        output_type="latent",
        return_dict=False,
    )[0]
    assert torch.allclose(base.unscale(unpack(finished.latents[1], grid, base.patch)), made, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [NEWER, {"rope_type": "interleaved"}], ids=["2.3", "interleaved"])
def test_the_other_kinds_of_network_equal_their_own_forward_and_their_cache_the_causal_mask(kind):
    pipe, own = ltx2(**kind), ltx2(**kind)
    base = LTX2Base(pipe, replace(LTX2, channels=4))
    texts, grids = base.encode_text(["a dog waves", "a cat"]), [(2, 1, 2), (3, 2, 1)]
    zs = [torch.randn(int(np.prod(grid)), 4, generator=torch.Generator().manual_seed(5)) for grid in grids]
    groups = [Group(i + 1, len(t), g) for i, (t, g) in enumerate(zip(texts, grids, strict=True))]
    sigma = torch.tensor([0.3, 0.8])
    alone = base.velocity(zs[1], texts[1], sigma[1:], Layout.single(groups[1], rope="timeline"), "scene")
    forward = ltx2_velocity(own, unpack(zs[1], grids[1], base.patch), "a cat", 0.8)
    assert alone.std() > 0.1 and torch.allclose(
        alone, pack(forward, grids[1], base.patch), rtol=0, atol=EXACT
    )

    both = Layout.single(*groups, rope="timeline")
    whole = base.velocity(torch.cat(zs), torch.cat(texts), sigma, both, "causal")
    first = Layout.single(groups[0], rope="timeline")
    v, (context,) = base.remember(zs[0], texts[0], sigma[:1], first, "causal", [Context()])
    second = Layout.single(*groups, past=1, rope="timeline")
    w = base.velocity(zs[1], texts[1], sigma[1:], second, "causal", [context])
    assert torch.allclose(whole, torch.cat([v, w]), rtol=0, atol=EXACT)
    assert not torch.allclose(w, alone, atol=1e-3)
    shape = ltx2_shape(base.spec, dict(pipe.transformer.config))
    assert shape.parameters == sum(p.numel() for p in pipe.transformer.parameters())


@pytest.mark.parametrize("rope", ["timeline", "anchor"])
def test_a_later_shot_is_shifted_in_seconds_only(folder, rope):
    """Its places are fractions of (20 s, 2048 px): a shot shifted in height and width would leave the frame."""
    base = load_base(str(folder))
    groups = [Group(1, 0, (2, 3, 2)), Group(2, 0, (2, 3, 2))]
    tokens = Layout.single(*groups, rope=rope).queries
    table = base.attention._table(tokens, base.device)
    first, second = table.view(2, 12, -1, 2).double()
    cos = (first * second).sum(-1)
    turned = torch.atan2(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0], cos)
    assert turned.std(0).max() < 1e-5  # the whole shot turns alike
    moves = turned.abs().mean(0) > 1e-6
    unturned = moves.numel() - 3 * (moves.numel() // 3)
    axis = (torch.arange(moves.numel()) - unturned) % 3
    assert moves.any() and (axis[moves] == 0).all() and moves.nonzero().min() >= unturned


def change(folder, part: str, **values) -> None:
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


PUBLISHED = dict(  # of its scheduler
    use_dynamic_shifting=True,
    base_image_seq_len=1024,
    max_image_seq_len=4096,
    base_shift=0.95,
    max_shift=2.05,
    shift_terminal=0.1,
)


def test_noise_levels_are_those_of_its_scheduler_for_a_shot_of_the_default_size(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy, "scheduler/scheduler_config.json", **PUBLISHED)
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift

    mu = calculate_shift(16 * 16 * 24, 1024, 4096, 0.95, 2.05)  # of 121 frames of 768x512
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(copy / "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=mu)
    spec = load_spec(str(copy))
    for sampling in (Sampling(steps=30, shift=spec.shift), Sampling(steps=30, shift=None)):
        levels = levels_of(spec, sampling, 16 * 16 * 24)
        assert torch.allclose(levels, scheduler.sigmas, atol=1e-6) and float(levels[-2]) == pytest.approx(0.1)
    assert LTX2.shift == pytest.approx(spec.shift, rel=0.01) and LTX2.last_level == spec.last_level
    assert LTX2.shifts == spec.shifts
    assert load_spec(str(folder)).shifts is None and load_spec(str(folder)).shift == 3.0


FEW_TOKENS = PUBLISHED | dict(base_image_seq_len=4, max_image_seq_len=16)  # so that small shots differ


@pytest.mark.parametrize(("frames", "size"), [(9, (64, 32)), (17, (64, 64)), (33, (96, 64))])
def test_the_shift_follows_the_tokens_of_a_shot_as_diffusers_own_pipeline_has_it(
    folder, tmp_path, frames, size
):
    from diffusers import FlowMatchEulerDiscreteScheduler

    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy, "scheduler/scheduler_config.json", **FEW_TOKENS)
    base, pipe, (width, height) = load_base(str(copy)), ltx2(), size
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(copy / "scheduler")
    scene = write_scene(
        tmp_path / "scene.yaml", Scene(shots=[Shot(prompt="a dog waves", frames=frames)], seed=7)
    )
    asked = ["--base", copy, "--size", f"{width}x{height}", "--steps", 3, "--guidance", 4]
    done("sample", scene, "--out", tmp_path / "film", *asked)
    made = load_file(tmp_path / "film/latents/shot_01.safetensors")["z"]
    grid = base.spec.grid(frames, width, height)
    shot = PlannedShot(1, "shot 1", "a dog waves", grid, (7, "1", 0))
    noise = unpack(noise_of(shot, base.spec.channels), grid, base.patch)
    latent = ltx2_film(pipe, noise, "a dog waves", frames, 3, 4.0, "latent")
    assert torch.allclose(made, pack(latent[None], grid, base.patch), rtol=0, atol=2e-4)
    assert abs(base.spec.shift_at(int(np.prod(grid))) / base.spec.shift - 1) > 0.1


def test_shots_that_are_made_at_once_share_the_levels_of_the_largest_and_a_given_shift_stays():
    spec = replace(LTX2, shifts=((4, 0.95), (16, 2.05)))
    sampling = Sampling(steps=4, shift=None)
    assert torch.equal(
        levels_of(spec, sampling, 4), levels_of(spec, replace(sampling, shift=spec.shift_at(4)))
    )
    assert not torch.allclose(levels_of(spec, sampling, 4), levels_of(spec, sampling, 16))
    fixed = replace(sampling, shift=5.0)
    assert torch.equal(levels_of(spec, fixed, 4), levels_of(spec, fixed, 16))

    class Noting(LTX2Base):
        def velocity(self, z, text, sigma, layout, visibility, past=None):
            seen.append(sigma.max().item())
            return super().velocity(z, text, sigma, layout, visibility, past)

    base = Noting(ltx2(), replace(spec, channels=4))
    shots = [
        PlannedShot(i + 1, f"shot {i + 1}", "a dog", (n, 2, 2), (7, str(i), 0)) for i, n in enumerate((1, 4))
    ]
    for plan, tokens in ((together("", shots), [16]), (autoregressive("", shots), [4, 16])):
        seen: list[float] = []
        list(denoise(base, plan, replace(sampling, guidance=1.0)))
        expected = [float(s) for n in tokens for s in levels_of(spec, sampling, n)[:-1]]
        assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "model_index.json",
            {"text_encoder": ["transformers", "Gemma4UnifiedForConditionalGeneration"]},
            r"reads text with Gemma4Unified\S+; longshot runs LTX-2 with Gemma3",
        ),
        ("vae/config.json", {"timestep_conditioning": True}, "its VAE denoises while it decodes"),
        ("transformer/config.json", {"patch_size": 2}, "can't be read .*patches of several latent pixels"),
    ],
)
def test_an_ltx2_that_cannot_be_run_is_refused_with_the_reason(folder, tmp_path, part, values, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy, part, **values)
    with pytest.raises(UserError, match=message):
        LTX2Base.spec_of(open_folder(str(copy)))


def test_single_files_beside_the_pipeline_are_not_fetched_with_it():
    """LTX-2's repository holds the same weights three times over."""
    from huggingface_hub.utils import filter_repo_objects

    from longshot.bases.hub import _CONFIGS, _WEIGHTS

    parts = ["model_index.json", "transformer/config.json", "transformer/model-00001-of-00002.safetensors"]
    files = [*parts, "ltx-2-19b-dev.safetensors", "ltx-2-19b-lora.safetensors"]
    assert list(filter_repo_objects(files, allow_patterns=[*_CONFIGS, *_WEIGHTS])) == parts
