"""Film folders: what is finished stays, what is damaged is made again, and no take is lost."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import file_size_limit, files_of, picture, quick_base, scene_of, takes_of
from longshot.errors import UserError
from longshot.sample.denoise import Sampling
from longshot.sample.film import FilmFolder, shot_keys
from longshot.sample.make import Order, film_to_continue, make_film, names_for
from longshot.sample.plan import PlannedShot, autoregressive, reshoot, together
from longshot.sample.story import tell
from longshot.video import probe


@pytest.fixture(scope="module")
def base():
    return quick_base()


FACTS = {"scene": scene_of(3).model_dump(mode="json")}


def order_of(base, folder, given=None, steps: int = 1, **changes) -> Order:
    """Three shots, one after the other."""
    story = tell(scene_of(3), base, folder, given)
    plan = autoregressive(story.global_prompt, story.shots)
    sampling = Sampling(steps=steps, guidance=1.0)
    order = Order(plan, sampling, names_for(story.numbers), story.numbers, "causal", FACTS, 1)
    return replace(order, **changes)


def made(base, order, folder, **more) -> list[tuple[str, bool]]:
    """Makes a film; returns what was told of each shot."""
    told = []
    make_film(base, order, folder, base.fingerprint(), on_shot=lambda *what: told.append(what), **more)
    return told


@pytest.fixture(scope="module")
def film(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    made(base, order_of(base, folder), folder)
    return folder


@pytest.fixture
def copy(film, tmp_path):
    shutil.copytree(film, tmp_path / "film")
    return tmp_path / "film"


def test_a_film_folder_holds_what_its_manifest_says(base, film):
    manifest = json.loads((film / "manifest.json").read_text())
    assert [e["video"] for e in manifest["shots"]] == ["shot_01.mp4", "shot_02.mp4", "shot_03.mp4"]
    assert [e["history"] for e in manifest["shots"]] == [[], ["shot_01"], ["shot_01", "shot_02"]]
    assert all(e["how"]["mode"] == "causal" and e["how"]["sampling"]["steps"] == 1 for e in manifest["shots"])
    assert probe(film / "scene.mp4").frames == sum(e["frames"] for e in manifest["shots"]) == 12
    assert not list(film.rglob(".*"))


def test_what_is_finished_is_not_made_again(base, film, copy):
    again = made(base, order_of(base, copy), copy)
    assert again == [("shot 1", True), ("shot 2", True), ("shot 3", True)]
    assert files_of(copy) == files_of(film)
    before, after = (json.loads((f / "manifest.json").read_text()) for f in (film, copy))
    assert {k: v for k, v in before.items() if k != "seconds_of_last_run"} == {
        k: v for k, v in after.items() if k != "seconds_of_last_run"
    }


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def another_shape(path):
    with_meta = FilmFolder(path.parent.parent)
    key, shot = with_meta.finished(path.stem)
    meta = {"key": key, "label": shot.label, "prompt": shot.prompt, "grid": json.dumps(shot.grid)}
    save_file({"z": torch.zeros(5, 7)}, path, meta | {"noise": json.dumps(shot.noise), "pinned": "false"})


def without_facts(path):
    save_file(load_file(path), path, {"key": "k"})


@pytest.mark.parametrize(
    "damage", [truncate, another_shape, without_facts, lambda p: p.unlink(), lambda p: p.write_bytes(b"")]
)
def test_a_damaged_latent_is_made_again_as_it_was(base, film, copy, damage):
    damage(copy / "latents" / "shot_02.safetensors")
    with pytest.raises(UserError, match=r"shot_02.safetensors: not a finished shot"):
        film_to_continue(copy, base)
    assert made(base, order_of(base, copy), copy) == [("shot 1", True), ("shot 3", True), ("shot 2", False)]
    assert files_of(copy) == files_of(film)


def test_a_video_that_is_missing_damaged_or_of_another_size_is_written_again(base, film, copy):
    (copy / "shot_01.mp4").unlink()
    truncate(copy / "shot_02.mp4")
    made(base, order_of(base, copy), copy)
    assert files_of(copy) == files_of(film)
    made(base, order_of(base, copy, scale=2), copy)
    assert {probe(p).width for p in copy.glob("*.mp4")} == {96}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"shots": []}', '{"shots": [3]}', '{"shots": [{"name": "../../x", "key": "k"}]}'],
)
def test_a_damaged_manifest_is_refused_and_written_again_from_the_shots(base, film, copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(
        UserError, match=r"manifest.json: damaged \(.*`longshot sample` writes it again"
    ) as error:
        film_to_continue(copy, base)
    assert "\n" not in str(error.value)
    assert not [shot for shot, there in made(base, order_of(base, copy), copy) if not there]
    assert film_to_continue(copy, base).keys == film_to_continue(film, base).keys


def test_where_there_is_no_film_that_is_said(base, tmp_path):
    with pytest.raises(UserError, match="no film here"):
        film_to_continue(tmp_path, base)


def test_a_film_of_another_base_is_not_gone_on_with(base, film):
    other = quick_base()
    other.spec = replace(other.spec, name="other")
    with pytest.raises(UserError, match="was made by the base tiny, not other"):
        film_to_continue(film, other)


def retaken(base, folder, take: int) -> Order:
    reel = film_to_continue(folder, base)
    plan = together("", reshoot(reel.shots, 2, None, take))
    return Order(plan, Sampling(steps=1, guidance=1.0), reel.names, reel.numbers, "reshoot", FACTS, 1)


def test_a_new_take_leaves_the_other_shots_and_keeps_the_old_take(base, film, copy):
    made(base, retaken(base, copy, 1), copy)
    before, after = files_of(film), files_of(copy)
    assert {name for name in before if before[name] != after[name]} == {
        "shot_02.mp4",
        "latents/shot_02.safetensors",
    }
    assert takes_of(copy) == [before["shot_02.mp4"], before["latents/shot_02.safetensors"]]
    entries = json.loads((copy / "manifest.json").read_text())["shots"]
    assert [e["how"]["mode"] for e in entries] == ["causal", "reshoot", "causal"]
    assert [e["take"] for e in entries] == [0, 1, 0] and not any(e["given"] for e in entries)
    assert entries[1]["history"] == ["shot_01", "shot_03"] and entries[2]["history"] == ["shot_01", "shot_02"]


def test_no_take_is_ever_lost(base, film, copy):
    first = files_of(film)["latents/shot_02.safetensors"]
    made(base, retaken(base, copy, 1), copy)
    second = files_of(copy)["latents/shot_02.safetensors"]
    made(base, retaken(base, copy, 2), copy)
    made(base, order_of(base, copy), copy)  # the first take again
    assert files_of(copy) == files_of(film)
    kept = takes_of(copy)
    assert first in kept and second in kept and len(kept) == 6


@pytest.mark.parametrize("room", [300, 20_000])
def test_a_full_disk_leaves_what_is_finished_whole(base, film, copy, room):
    """300 bytes hold no video; 20,000 hold the shot's video but not its latent."""
    assert (
        (copy / "shot_02.mp4").stat().st_size < 20_000 < (copy / "latents/shot_02.safetensors").stat().st_size
    )
    manifest = (copy / "manifest.json").read_bytes()
    order = retaken(base, copy, 1)
    FilmFolder(copy).keep_take("shot_02", "a new one")
    with file_size_limit(room), pytest.raises(UserError, match="could not be written") as error:
        made(base, order, copy)
    assert "\n" not in str(error.value)
    assert files_of(copy) == files_of(film) and (copy / "manifest.json").read_bytes() == manifest
    assert not list(copy.rglob(".*"))
    made(base, order, copy)
    assert files_of(copy) != files_of(film)


def test_a_full_disk_before_the_old_take_is_kept_leaves_it_in_its_place(base, film, copy):
    order = retaken(base, copy, 1)
    with file_size_limit(300), pytest.raises(UserError, match="could not be written"):
        made(base, order, copy)
    assert files_of(copy) == files_of(film)


# -- contexts -----------------------------------------------------------------------------------------------------------
def test_a_context_is_kept_also_of_a_film_that_was_finished_without(base, film, copy):
    assert made(base, order_of(base, copy, save_context=True), copy)[-1] == ("shot 3", False)
    assert files_of(copy) == files_of(film)  # making the last shot again made the same one
    keys = film_to_continue(copy, base).keys
    (context,) = FilmFolder(copy).load_contexts(base.fingerprint(), 1, keys)
    assert context.shots == (0, 1, 2, 3)
    assert made(base, order_of(base, copy, save_context=True), copy)[-1] == ("shot 3", True)


def test_a_context_of_other_weights_or_a_damaged_one_is_refused(base, copy):
    made(base, order_of(base, copy, save_context=True), copy)
    folder, keys = FilmFolder(copy), film_to_continue(copy, base).keys
    with pytest.raises(UserError, match="was remembered by other weights"):
        folder.load_contexts("another", 1, keys)
    truncate(folder.context(0))
    with pytest.raises(UserError, match=r"branch_0.safetensors: not a readable saved context"):
        folder.load_contexts(base.fingerprint(), 1, keys)
    folder.context_facts.write_text("{")
    with pytest.raises(UserError, match=r"context.json: damaged"):
        folder.load_contexts(base.fingerprint(), 1, keys)


def test_a_context_of_a_take_that_was_replaced_is_not_used(base, copy):
    made(base, order_of(base, copy, save_context=True), copy)
    made(base, retaken(base, copy, 1), copy)
    keys = film_to_continue(copy, base).keys
    assert FilmFolder(copy).load_contexts(base.fingerprint(), 1, keys) is None


def test_a_new_take_that_the_manifest_does_not_know_yet_is_not_read_from_the_context(base, copy):
    made(base, order_of(base, copy, save_context=True), copy)
    manifest = (copy / "manifest.json").read_bytes()
    made(base, retaken(base, copy, 1), copy)
    (copy / "manifest.json").write_bytes(manifest)  # as if the run had been killed before it wrote its own
    reel = film_to_continue(copy, base)
    assert reel.shots[1].noise[2] == 1
    assert FilmFolder(copy).load_contexts(base.fingerprint(), 1, reel.keys) is None


def test_a_context_for_another_number_of_branches_is_not_used(base, copy):
    made(base, order_of(base, copy, save_context=True), copy)
    keys = film_to_continue(copy, base).keys
    assert FilmFolder(copy).load_contexts(base.fingerprint(), 2, keys) is None


# -- given shots --------------------------------------------------------------------------------------------------------
def test_a_given_shot_is_in_the_film_and_changes_what_comes_after(base, film, tmp_path):
    given = picture(tmp_path / "given.png", 200)
    made(base, order_of(base, tmp_path, {2: given}), tmp_path)
    entries = json.loads((tmp_path / "manifest.json").read_text())["shots"]
    assert [e["given"] for e in entries] == [False, True, False] and entries[1]["how"] is None
    old = json.loads((film / "manifest.json").read_text())["shots"]
    assert [a["key"] == b["key"] for a, b in zip(entries, old, strict=True)] == [True, False, False]


def test_keys_of_shots_are_those_of_films_made_before_the_cache_had_a_dtype_and_a_narrow_cache_has_its_own():
    plan = autoregressive("g", [PlannedShot(i, f"shot {i}", "p", (1, 2, 2), (0, str(i), 0)) for i in (1, 2)])
    keys = shot_keys(plan, Sampling(), "f")
    assert keys == {1: "e59f28c7c74a04c670b54690", 2: "2045e4fd77e0b01a70b31e1d"}
    assert keys != shot_keys(plan, Sampling(cache_dtype="fp8"), "f")


def test_names_say_the_shot_and_count_the_images_after_it():
    assert names_for([None, 1, None, None, 2]) == (
        "shot_00_image_1",
        "shot_01",
        "shot_01_image_1",
        "shot_01_image_2",
        "shot_02",
    )
