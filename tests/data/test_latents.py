"""What a shard holds is what the base makes of the film's own frames, and says where they come from."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_scenes import colour_film, colour_scenes, scene_row
from safetensors.torch import load_file

from longshot.bases import load_base
from longshot.bases.native import TINY_SPEC
from longshot.data.captions import Captions, CaptionSettings
from longshot.data.engine import LocalEngine
from longshot.data.journal import read_rows
from longshot.data.latents import Clip, Latents, LatentScene, LatentSettings, plan_clips, size_of
from longshot.data.records import Row, SceneRow
from longshot.data.runner import run_stage
from longshot.data.shards import ShardDataset, Shards, ShardSettings
from longshot.data.stage import Place, Stage
from longshot.errors import UserError
from longshot.video import read_frames


def written_captions(path: Path, rows: list[Row], **changes) -> str:
    """A file of captions for scenes of two shots."""
    answer = {
        "characters": [{"id": 1, "description": "A grey rabbit"}],
        "environment": "A meadow.",
        "story": "",
        "shots": [{"shot": 1, "prompt": "Character 1 sits."}, {"shot": 2, "prompt": "Character 1 runs."}],
    } | changes
    lines = [json.dumps({"scene": row["id"], "model": "a person", **answer}) for row in rows]
    path.write_text("\n".join(lines))
    return str(path)


def rows_of(stage: Stage, rows) -> list[Row]:
    report = run_stage(stage, rows, LocalEngine())
    assert not report.failures, report.failures
    return list(read_rows(stage.place.folder(stage.name) / "rows.jsonl"))


def captioned(place: Place, rows: list[Row], **changes) -> list[Row]:
    place.out.mkdir(exist_ok=True)
    file = written_captions(place.out / "captions.jsonl", rows, **changes)
    return rows_of(Captions(CaptionSettings(file=file), place), rows)


def latents(place: Place, **settings) -> Latents:
    return Latents(LatentSettings(**settings), place)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two captioned scenes of two shots, and their latent rows."""
    place, rows = colour_scenes(tmp_path_factory.mktemp("film"), 2)
    rows = captioned(place, rows)
    return place, rows, rows_of(latents(place), rows)


def test_a_latent_is_the_clips_own_frames(made):
    place, _, rows = made
    base = load_base("tiny")
    scene = LatentScene.of(rows[0])
    tensors = load_file(place.file(scene.file))
    film = place.film("film.mp4")
    assert [(c.start_s, c.frames) for c in scene.clips] == [(0.0, 12), (1.5, 8)]
    for k, clip in enumerate(scene.clips, start=1):
        stop = clip.start_s + clip.frames / 8
        frames = read_frames(film, start_s=clip.start_s, stop_s=stop, fps=Fraction(8), size=clip.size)
        grid = scene.groups[k].grid
        assert grid == (clip.frames // 4, 4, 6)
        assert np.array_equal(base.decode(tensors[f"video.{k}"].float(), grid), frames)
        image = base.decode(tensors[f"image.{k}"].float(), (1, *grid[1:]))
        assert any(np.array_equal(image[0], frame) for frame in frames) and (image == image[0]).all()


def test_the_stored_features_are_what_the_base_reads_of_the_prompts(made):
    place, _, rows = made
    base = load_base("tiny")
    scene = LatentScene.of(rows[0])
    tensors = load_file(place.file(scene.file))
    assert scene.global_prompt == "[Character] Character 1: A grey rabbit. [Environment] A meadow."
    assert [c.prompt for c in scene.clips] == ["[SHOT CUT] Character 1 sits.", "[SHOT CUT] Character 1 runs."]
    texts = {"text.0": scene.global_prompt, "text.2": scene.clips[1].prompt, "alone.1": scene.clips[0].alone}
    for name, text in texts.items():
        [read] = base.encode_text([text])
        [stored] = base.network.encode_text([tensors[name].float()])
        assert (stored - read).norm() < 0.01 * read.norm()  # float16 features
    assert [g.text for g in scene.groups] == [len(tensors[f"text.{k}"]) for k in range(3)]


def test_features_are_left_out_where_training_reads_the_prompts(made):
    place, rows, stored = made
    again = Place(place.out / "again", place.films_root)
    [row] = rows_of(latents(again, text="prompts"), rows[:1])
    names = load_file(again.file(row["file"])).keys()
    assert names == {"video.1", "video.2", "image.1", "image.2"}
    assert {k: row[k] for k in ("groups", "clips", "global_prompt")} == {
        k: stored[0][k] for k in ("groups", "clips", "global_prompt")
    }


def test_a_scene_without_characters_and_place_has_no_global_group(tmp_path):
    place, rows = colour_scenes(tmp_path, 1)
    shots = [{"shot": k, "prompt": "A colour."} for k in (1, 2)]
    rows = captioned(place, rows, characters=[], environment="", shots=shots)
    [row] = rows_of(latents(place), rows)
    assert row["groups"][0] == {"text": 0, "grid": [0, 0, 0]}
    assert "text.0" not in load_file(place.file(row["file"]))


# -- clips --------------------------------------------------------------------------------------------------------------
def shots_of(*spans: tuple[float, float]):
    """Shots at spans of seconds."""
    row = scene_row("s", "f.mp4", [(round(a * 8), round(b * 8)) for a, b in spans])
    shots = SceneRow.of(row).shots
    times = zip(shots, spans, strict=True)
    return [shot.model_copy(update={"start_s": a, "stop_s": b}) for shot, (a, b) in times]


@pytest.mark.parametrize(
    ("spans", "cuts", "clips"),
    [
        # a clip is the longest legal one from the shot's beginning: 4n frames at 8 a second, up to 16
        ([(1, 2.4)], [True], [Clip(1, 8, True)]),
        ([(0, 9)], [True], [Clip(0, 16, True)]),
        ([(0, 1), (1, 2)], [True, True], [Clip(0, 8, True), Clip(1, 8, True)]),
        # shots that go on meet: the border moves to the nearest whole step
        ([(0, 1.7), (1.7, 3)], [True, False], [Clip(0, 12, True), Clip(1.5, 12, False)]),
        ([(0, 1.8), (1.8, 3.3)], [True, False], [Clip(0, 16, True), Clip(2.0, 8, False)]),
        # of a long one that is gone on with, the end is taken; of the one that goes on, the beginning
        ([(0, 5), (5, 9)], [True, False], [Clip(3, 16, True), Clip(5, 16, False)]),
        # a long one between two is joined to the first; the third then begins with a cut
        ([(0, 1), (1, 6), (6, 7)], [True, False, False], [Clip(0, 8, True), Clip(1, 16, False), Clip(6, 8, True)]),
        # ... and can be joined to a fourth
        (
            [(0, 5), (5, 9), (9, 14), (14, 15)],
            [True, False, False, False],
            [Clip(3, 16, True), Clip(5, 16, False), Clip(12, 16, True), Clip(14, 8, False)],
        ),
    ],
)  # fmt: skip
def test_clips_of(spans, cuts, clips):
    assert plan_clips(shots_of(*spans), cuts, TINY_SPEC) == clips


lengths = st.lists(st.floats(0.8, 6), min_size=1, max_size=7)


@given(
    lengths,
    st.lists(st.booleans(), min_size=7, max_size=7),
    st.sampled_from([(4, 0, 16), (4, 1, 81), (2, 0, 8)]),
)
def test_clips_are_legal_lie_in_their_take_and_meet_where_there_is_no_cut(seconds, cuts, kind):
    step, offset, most = kind
    spec = replace(TINY_SPEC, stride=(step, 8, 8), frame_offset=offset, max_frames=most)
    edges = np.concatenate([[0], np.cumsum(seconds)]).tolist()
    cuts = [True, *cuts[1 : len(seconds)]]
    clips = plan_clips(shots_of(*pairwise(edges)), cuts, spec)
    half_step = step / 2 / 8 + 1e-6
    for k, clip in enumerate(clips):
        spec.grid(clip.frames, *spec.size)
        assert clip.frames <= most
        assert clip.cut or not cuts[k]
        stop = clip.start_s + clip.frames / 8
        last = k + 1 == len(clips) or cuts[k + 1]
        assert clip.start_s > edges[k] - half_step and stop < edges[k + 1] + (1e-6 if last else half_step)
        if not clip.cut:
            assert clip.start_s == pytest.approx(clips[k - 1].start_s + clips[k - 1].frames / 8)


def test_a_shot_too_short_for_the_base_is_named(tmp_path):
    colour_film(tmp_path / "film.mp4", [("red", 8), ("green", 3)])
    rows = [scene_row("scene-0", "film.mp4", [(0, 8), (8, 11)])]
    place = Place(tmp_path / "out", tmp_path)
    report = run_stage(latents(place), captioned(place, rows), LocalEngine())
    assert report.failures[0].error == (
        "shot scene-0-1: 0.38 s is too short: tiny needs 4 frames at 8 a second; let the filter leave out shots shorter "
        "than 0.50 s"
    )


@pytest.mark.parametrize(
    ("size", "crop", "wanted"),
    [
        ((1920, 1080), None, (56, 32)),
        ((1080, 1920), None, (32, 56)),
        ((1000, 1000), None, (40, 40)),
        ((1000, 1000), (0, 250, 1000, 500), (56, 24)),
        ((9000, 100), None, (368, 8)),
    ],
)
def test_a_film_may_keep_its_shape_at_about_the_bases_area(size, crop, wanted):
    [shot] = SceneRow.of(scene_row("s", "f.mp4", [(0, 8)], size=size, crop=crop)).shots
    assert size_of(shot, TINY_SPEC, LatentSettings(size="aspect")) == wanted
    assert size_of(shot, TINY_SPEC, LatentSettings()) == (48, 32)


def test_a_scene_of_more_shots_than_the_base_holds_is_named(tmp_path):
    colour_film(tmp_path / "film.mp4", [("red", 28)])
    rows = [scene_row("scene-0", "film.mp4", [(4 * k, 4 * k + 4) for k in range(7)])]
    place = Place(tmp_path / "out", tmp_path)
    shots = [{"shot": k, "prompt": "Character 1 sits."} for k in range(1, 8)]
    report = run_stage(latents(place), captioned(place, rows, shots=shots), LocalEngine())
    assert "scene scene-0: has 7 shots; tiny holds 6: " in report.failures[0].error


def test_a_caption_too_long_for_the_base_is_named(tmp_path):
    place, rows = colour_scenes(tmp_path, 1)
    report = run_stage(latents(place), captioned(place, rows, story="a long tale " * 250), LocalEngine())
    assert "scene scene-0: the global prompt has 7" in report.failures[0].error
    assert "tiny reads 512: ask for shorter captions" in report.failures[0].error


def test_another_base_under_the_same_name_gives_other_latents(tmp_path, made, weights):
    place, rows, _ = made
    copy = tmp_path / "base.safetensors"
    copy.write_bytes(weights.read_bytes())
    rows_of(latents(place, base=str(copy)), rows)
    assert run_stage(latents(place, base=str(copy)), rows, LocalEngine()).reused == 2
    from longshot.bases.native import NativeBase, NativeConfig

    base = load_base(str(weights))
    spec = replace(base.spec, fps=Fraction(4))
    NativeBase(NativeConfig(spec, base.config.network), base.network).save(copy)
    report = run_stage(latents(place, base=str(copy)), rows, LocalEngine())
    assert report.reused == 0 and not report.failures


# -- shards -------------------------------------------------------------------------------------------------------------
def test_shards_hold_every_scene_with_its_words_tensors_and_sources(made, tmp_path):
    place, _, rows = made
    made_rows = rows_of(Shards(ShardSettings(max_mb=0.05), place), rows)
    dataset = ShardDataset(place.folder("shards"))
    assert len(made_rows) == len(list(place.folder("shards").glob("shard-*.tar"))) == 2
    assert [entry.key for entry in dataset.entries] == ["scene-0", "scene-1"]
    for k, row in enumerate(rows):
        sample = dataset[k]
        stored = load_file(place.file(row["file"]))
        assert sample.tensors.keys() == stored.keys()
        assert all(torch.equal(sample.tensors[name], stored[name]) for name in stored)
        assert (
            dataset.entries[k].tokens
            == sum(len(v) for n, v in stored.items() if n[:4] in ("text", "vide")) + 1
        )
    record = dataset[0].record
    assert record["film"] == {
        "path": "film.mp4", "sha256": "0" * 64, "source": "made here", "licence": "CC0-1.0"
    }  # fmt: skip
    assert record["caption_model"] == "a person"
    assert record["shots"][1]["film_frames"] == [12, 20] and record["shots"][1]["film_seconds"] == [1.5, 2.5]
    assert record["base"]["name"] == "tiny" and dataset.base == record["base"]


def test_shards_that_are_done_are_kept_and_the_rest_is_made(made, tmp_path):
    place = Place(tmp_path, made[0].films_root)
    for row in made[2]:
        target = place.out / row["file"]
        target.parent.mkdir(parents=True)
        target.write_bytes(made[0].file(row["file"]).read_bytes())
    stage = Shards(ShardSettings(max_mb=0.05), place)
    assert run_stage(stage, made[2][:1], LocalEngine()).reused == 0
    first = (place.folder("shards") / "shard-000000.tar").stat()
    assert run_stage(stage, made[2], LocalEngine()).reused == 1
    assert (place.folder("shards") / "shard-000000.tar").stat().st_mtime_ns == first.st_mtime_ns
    assert len(ShardDataset(place.folder("shards"))) == 2
    assert not list(place.out.rglob(".shard*"))


def test_latents_that_are_gone_or_cut_short_are_named(made, tmp_path):
    place = Place(tmp_path, made[0].films_root)
    stage = Shards(ShardSettings(), place)
    with pytest.raises(
        UserError, match=r"scene\.safetensors: can't be read \(.+\); run the stage latents again"
    ):
        raise UserError(run_stage(stage, made[2], LocalEngine()).failures[0].error)
    for row in made[2]:
        (place.out / row["file"]).parent.mkdir(parents=True)
        (place.out / row["file"]).write_bytes(b"short")
    assert "has 5 bytes, not " in run_stage(stage, made[2], LocalEngine()).failures[0].error
