"""Scenes out of shards train a base: each once an epoch, the same for any workers and ranks, from any step on."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import stage, tiny_base
from torch.nn.functional import mse_loss

from commands import done, refused
from longshot.data.latents import base_facts, text_features
from longshot.data.shards import Sample, ShardDataset, write_shards
from longshot.errors import UserError
from longshot.puppets.render import render
from longshot.puppets.words import caption, single_caption
from longshot.puppets.world import draw_scene
from longshot.train.checkpoint import TrainingState
from longshot.train.config import STAGES
from longshot.train.loop import CHECKPOINT, Trainer, batch_loss, collate, draw_noise
from longshot.train.puppets import Example, StreamConfig, stream
from longshot.train.shards import ShardSteps, ShardStream, draw_stored
from longshot.train.stages import Order, on_shards, train_shards

BASE = tiny_base()


def puppet_sample(number: int) -> tuple[Sample, Example]:
    """A scene of the puppet world, as a shard holds it and as it is drawn."""
    rng = np.random.default_rng(number)
    scene = draw_scene(rng, 2, (4, 8))
    global_prompt, prompts = caption(scene, rng)
    alone = [single_caption(scene, k, rng) for k in range(2)]
    frames = render(scene)
    texts = {"text.0": global_prompt} | {f"text.{k}": p for k, p in enumerate(prompts, start=1)}
    tensors = dict(zip(texts, text_features(BASE, list(texts.values())), strict=True))
    groups = [{"text": len(tensors["text.0"]), "grid": [1, 1, 1]}]
    for k, shot in enumerate(frames, start=1):
        tensors |= {f"video.{k}": BASE.encode(shot).half(), f"image.{k}": BASE.encode(shot[:1]).half()}
        groups.append({"text": len(tensors[f"text.{k}"]), "grid": list(BASE.spec.grid(len(shot), 48, 32))})
    shots = [{"prompt": p, "alone": a} for p, a in zip(prompts, alone, strict=True)]
    record = {"groups": groups, "global_prompt": global_prompt, "shots": shots}
    return Sample(f"scene-{number}", record, tensors), Example(tuple(frames), global_prompt, tuple(prompts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards((puppet_sample(k)[0] for k in range(9)), folder, base_facts(BASE.spec), max_bytes=400_000)
    assert len(list(folder.glob("*.tar"))) > 1
    return folder


def shards(folder: Path, **changes) -> ShardStream:
    budget = 2 * max(entry.tokens for entry in ShardDataset(folder).entries)
    config = ShardStream(str(folder), ShardDataset(folder).fingerprint(), budget, packs=2)
    return replace(config, **{"single": 0.3, "image": 0.3, "drop_text": 0.2, "drop_global": 0.2} | changes)


def whole(folder: Path) -> ShardStream:
    return shards(folder, single=0.0, image=0.0, drop_text=0.0, drop_global=0.0)


def content(example) -> tuple:
    return (
        tuple((z.numpy().tobytes(), grid) for z, grid in example.shots),
        example.global_prompt,
        example.prompts,
    )


def steps_of(
    config: ShardStream, ranks: int, workers: int, start: int = 0, stop: int = 5
) -> list[list[tuple]]:
    """Each step's examples, put together from all ranks by their places."""
    steps = []
    shares = [config.steps(7, r, ranks) for r in range(ranks)]
    streams = [list(stream(share, start, stop, workers)) for share in shares]
    for k in range(start, stop):
        placed = {
            place: content(example)
            for share, examples in zip(shares, streams, strict=True)
            for place, example in zip(share.places(k), examples[k - start], strict=True)
        }
        steps.append([placed[i] for i in range(len(placed))])
    return steps


@pytest.fixture(scope="module")
def reference(folder) -> list[list[tuple]]:
    return steps_of(shards(folder), ranks=1, workers=0)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (2, 1)])
def test_the_examples_of_a_step_are_the_same_for_any_number_of_workers_and_ranks(
    folder, reference, ranks, workers
):
    assert steps_of(shards(folder), ranks, workers) == reference


def test_a_run_goes_on_mid_epoch_on_another_number_of_ranks_and_workers(folder, reference):
    assert steps_of(shards(folder), ranks=2, workers=1, start=3) == reference[3:]


def test_each_scene_is_seen_once_an_epoch(folder):
    steps = whole(folder).steps(seed=7)
    seen: list[str] = []
    for k in range(20):
        draws = steps.draws(k)
        for draw, example in zip(draws, steps[k], strict=True):
            if draw.epoch == 0:
                seen.append(example.global_prompt)
                assert content(example)[1] == steps.dataset[draw.scene].record["global_prompt"]
    assert len(seen) == 9 and sorted(seen) == sorted(puppet_sample(k)[1].global_prompt for k in range(9))


def test_a_scene_comes_otherwise_in_another_epoch(folder):
    config, sample = shards(folder, single=0.5), ShardDataset(folder)[0]
    drawn = {
        content(draw_stored(sample, np.random.default_rng([7, epoch, 0]), config)) for epoch in range(12)
    }
    assert len(drawn) > 4


def test_a_scene_out_of_a_shard_is_the_scene_that_went_in(folder):
    base, (sample, drawn) = BASE, puppet_sample(3)
    stored = draw_stored(sample, np.random.default_rng(0), whole(folder))
    one, other = collate(base, [drawn]), collate(base, [stored])
    assert one.layout == other.layout and one.prompts == other.prompts
    assert mse_loss(one.z_0, other.z_0) < 1e-7  # float16
    config = stage(1)
    sigma, eps = draw_noise(one.layout, base.spec.channels, config, 0, [0])
    losses = [batch_loss(base, batch, sigma, eps, "scene").flow for batch in (one, other)]
    assert torch.allclose(*losses, rtol=1e-3)


def test_single_shots_are_told_by_their_own_prompts(folder):
    sample, _ = puppet_sample(3)
    config = replace(whole(folder), single=1.0)
    example = draw_stored(sample, np.random.default_rng(0), config)
    assert len(example.shots) == 1 and example.global_prompt == ""
    assert example.prompts[0] in [shot["alone"] for shot in sample.record["shots"]]


def test_an_image_is_one_step_of_the_base_that_stands_still(folder):
    sample, _ = puppet_sample(3)
    example = draw_stored(sample, np.random.default_rng(0), replace(whole(folder), image=1.0))
    assert [grid for _, grid in example.shots] == [(1, 4, 6)] * 2
    assert all(len(z) == 24 for z, _ in example.shots)


# -- training -----------------------------------------------------------------------------------------------------------
def test_a_base_trains_from_shards_and_goes_on_bit_for_bit(folder, tmp_path):
    config = replace(stage(6), stream=shards(folder), attributes=0.0)
    Trainer(tiny_base(), config, tmp_path / "straight").run(workers=0)
    Trainer(tiny_base(), config, tmp_path / "two").run(workers=0, until=3)
    Trainer(tiny_base(), config, tmp_path / "two").run(workers=1)
    one, two = (TrainingState.load(tmp_path / name / CHECKPOINT) for name in ("straight", "two"))
    assert one.step == two.step == 6
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    log = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) and row["tokens"] > 0 for row in log)


def test_the_loss_falls_on_scenes_that_come_again(folder, tmp_path):
    config = replace(stage(24), stream=whole(folder), lr=5e-3, attributes=0.0)
    base, losses = tiny_base(), []
    Trainer(base, config, tmp_path).run(workers=0, on_step=lambda row: losses.append(row["loss"]))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_a_run_goes_on_where_the_shards_were_moved_to_and_not_with_others(folder, tmp_path):
    import shutil

    config = replace(stage(4), stream=shards(folder), attributes=0.0)
    Trainer(tiny_base(), config, tmp_path / "run").run(workers=0, until=2)
    shutil.copytree(folder, tmp_path / "moved")
    moved = replace(config, stream=replace(config.stream, folder=str(tmp_path / "moved")))
    Trainer(tiny_base(), moved, tmp_path / "run").run(workers=0, until=3)
    write_shards((puppet_sample(k)[0] for k in range(4)), tmp_path / "moved", base_facts(BASE.spec))
    with pytest.raises(UserError, match="holds other scenes than the run began with"):
        Trainer(tiny_base(), moved, tmp_path / "run")
    other = replace(moved, stream=shards(tmp_path / "moved", budget=config.stream.budget))
    with pytest.raises(UserError, match=r"was trained with stream\.fingerprint="):
        Trainer(tiny_base(), other, tmp_path / "run")


def test_the_stages_of_lct_run_on_shards(folder, tmp_path, weights):
    train_shards(Order(tmp_path, "lct", 2, str(weights), workers=0), folder, budget=600, packs=1)
    assert (tmp_path / "lct" / "weights.safetensors").is_file()
    saved = json.loads((tmp_path / "lct" / "config.json").read_text())
    assert saved["stream"]["single"] == STAGES["lct"]().stream.single and saved["attributes"] == 0


def test_the_command_trains_from_shards_and_says_what_is_missing(folder, tmp_path, weights):
    train = [
        "train",
        "shards",
        "--out",
        tmp_path,
        "--stage",
        "causal",
        "--init",
        weights,
        "--workers",
        0,
        "--steps",
        1,
    ]
    done(*train, "--data", folder, "--budget", 600)
    assert (tmp_path / "causal" / "weights.safetensors").is_file()
    assert refused(*train) == "--data: say where the shards lie"
    assert "more than the 50 of a pack; use a budget of " in refused(*train, "--data", folder, "--budget", 50)


def test_a_stage_keeps_its_mix_on_shards(folder):
    for name, make in STAGES.items():
        drawn, stored = make().stream, on_shards(make(), whole(folder)).stream
        assert isinstance(drawn, StreamConfig) and isinstance(stored, ShardStream)
        assert stored.single == (1.0 if name == "single" else drawn.single)
        assert (stored.image, stored.drop_text) == (drawn.image, drawn.drop_text)


def test_shards_for_another_base_are_refused(folder, tmp_path):
    facts = base_facts(replace(BASE.spec, name="quick", fps=Fraction(24)))
    write_shards([puppet_sample(0)[0]], tmp_path / "shards", facts)
    with pytest.raises(
        UserError, match=r"was made for quick with fps 24; tiny has 8\. Run `longshot data latents`"
    ):
        train_shards(Order(tmp_path, "single", 1, workers=0), tmp_path / "shards", budget=600, packs=1)


def test_ranks_that_cannot_share_the_packs_are_refused(folder):
    with pytest.raises(UserError, match="2 packs a step can't be shared evenly by 3 processes"):
        ShardSteps(shards(folder), 0, 0, 3)
