"""Every command on every pretrained base, text encoders and VAE and all: real files in, a film out."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longshot.cli import main
from longshot.scene import Character, Reference, Scene, Shot, save_scene
from longshot.video import probe, write_image, write_video


def run(*args) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code == 0


def short(base) -> int:
    """Frames of a shot of two latent frames."""
    return base.spec.stride[0] + 1


def clip_frames(base) -> int:
    return 2 * base.spec.stride[0] + 1


@pytest.fixture(scope="module")
def options(small, folder) -> list[str]:
    width, height = small.size
    return ["--base", str(folder), "--size", f"{width}x{height}", "--steps", "2", "--guidance", "2"]


@pytest.fixture(scope="module")
def place(small, base, tmp_path_factory):
    """A folder with a scene of three shots, two pictures and a clip."""
    path = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    width, height = small.size
    for name in ("person", "street"):
        write_image(path / f"{name}.png", rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    clip = rng.integers(0, 255, (clip_frames(base), 2 * height, 2 * width, 3), dtype=np.uint8)
    write_video(path / "clip.mp4", clip, base.spec.fps)
    shots = [Shot(prompt=p, frames=short(base)) for p in ("a dog waves", "a cat walks", "the dog walks out")]
    save_scene(Scene(story="a dog and a cat", shots=shots), path / "scene.yaml")
    shots = [
        Shot(
            prompt="a dog",
            frames=short(base),
            references=[Reference(role="first_frame", path="street.png")],
        ),
        Shot(prompt="a cat", references=[Reference(role="video", path="clip.mp4")]),
        Shot(prompt="Character 1", frames=1, references=[Reference(role="identity", path="person.png")]),
    ]
    save_scene(Scene(shots=shots, characters=[Character(id=1, description="a cat")]), path / "given.yaml")
    return path


def latents(film) -> dict[str, torch.Tensor]:
    return {p.stem: load_file(p)["z"] for p in sorted((film / "latents").glob("*.safetensors"))}


@pytest.fixture(scope="module")
def film(place, options):
    """A film made shot by shot with a cache, which is kept."""
    run(
        "sample",
        place / "scene.yaml",
        "--out",
        place / "film",
        "--mode",
        "causal",
        "--save-context",
        *options,
    )
    return place / "film"


def whole(film, shots: int) -> None:
    """The film has so many shots, with finite latents, and a video that plays."""
    made = latents(film)
    assert len([name for name in made if "image" not in name]) == shots
    assert all(torch.isfinite(z).all() and z.std() > 0 for z in made.values())
    entries = json.loads((film / "manifest.json").read_text())["shots"]
    assert probe(film / "scene.mp4").frames == sum(e["frames"] for e in entries if e["number"])


@pytest.mark.parametrize("mode", ["joint", "bidirectional"])
def test_a_scene_is_made_with_pictures_and_clips_given_through_the_vae(place, options, base, mode, tmp_path):
    run("sample", place / "given.yaml", "--out", tmp_path / "film", "--mode", mode, *options)
    whole(tmp_path / "film", 3)
    clip = latents(tmp_path / "film")["shot_02"]
    assert clip.shape == (np.prod(base.spec.grid(clip_frames(base), *base.spec.size)), base.spec.channels)


def test_a_film_goes_on_from_its_cache_as_it_goes_on_from_its_latents(film, options, base, tmp_path):
    """A cache on disk and one made again from cached latents are the same: nothing is decoded and encoded again."""
    before = latents(film)
    for name in ("kept", "again"):
        shutil.copytree(film, tmp_path / name)
    shutil.rmtree(tmp_path / "again/context")
    for name in ("kept", "again"):
        run("extend", tmp_path / name, "--prompt", "the dog walks on", "--frames", short(base), *options)
        whole(tmp_path / name, 4)
    kept, again = latents(tmp_path / "kept"), latents(tmp_path / "again")
    assert all(torch.equal(kept[name], z) for name, z in before.items())
    assert torch.allclose(kept["shot_04"], again["shot_04"], atol=1e-4)


def test_a_shot_is_made_again_between_its_neighbours(film, options, tmp_path):
    shutil.copytree(film, tmp_path / "film")
    run("reshoot", tmp_path / "film", "--shot", 2, *options)
    before, now = latents(film), latents(tmp_path / "film")
    assert torch.equal(before["shot_01"], now["shot_01"]) and torch.equal(before["shot_03"], now["shot_03"])
    assert not torch.allclose(before["shot_02"], now["shot_02"], atol=1e-2)


def test_the_middle_is_made_between_a_first_picture_and_a_last(place, options, tmp_path):
    ends = ["--first", place / "person.png", "--last", place / "street.png"]
    run("interpolate", place / "scene.yaml", "--out", tmp_path / "film", *ends, *options)
    whole(tmp_path / "film", 3)


def test_a_person_and_a_place_are_composed(place, options, tmp_path):
    images = ["--identity", place / "person.png", "--environment", place / "street.png"]
    run("compose", place / "scene.yaml", "--out", tmp_path / "film", *images, *options)
    whole(tmp_path / "film", 3)


def test_every_command_says_that_there_is_no_room_before_it_loads_anything(
    film, place, folder, base, options, capsys, tmp_path
):
    """The config is made that of a far larger network, and the weights are taken away."""
    huge = tmp_path / folder.name
    shutil.copytree(folder, huge)
    config = json.loads((huge / "transformer/config.json").read_text())
    (huge / "transformer/config.json").write_text(json.dumps(config | {"num_attention_heads": 10**5}))
    for weights in huge.rglob("*.safetensors"):
        weights.unlink()
    shutil.copytree(film, tmp_path / "film")
    before = sorted(p.name for p in (tmp_path / "film").rglob("*"))
    picture, new = place / "person.png", ["--out", tmp_path / "new"]
    for command in (
        ["sample", place / "scene.yaml", *new],
        ["interpolate", place / "scene.yaml", *new],
        ["compose", place / "scene.yaml", *new, "--identity", picture, "--environment", picture],
        ["reshoot", tmp_path / "film", "--shot", 2],
        ["extend", tmp_path / "film", "--prompt", "the dog walks on", "--frames", short(base)],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in (*command, *options[:1], huge, *options[2:])])
        told = capsys.readouterr().err
        assert stop.value.code == 2 and told.count("\n") == 1
        assert "shots and images" in told and f"on {folder.name}; " in told and "are free" in told
    assert not (tmp_path / "new").exists()
    assert sorted(p.name for p in (tmp_path / "film").rglob("*")) == before
