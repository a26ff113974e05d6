"""Training over a pretrained base reads the text features that its shards hold, and leaves the text encoder on disk."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bases.pipelines import fill, hunyuan15, wan
from commands import done
from longshot.bases import load_base, load_spec, text_identity, tune
from longshot.data.latents import Latents, LatentSettings
from longshot.data.shards import Sample, ShardDataset, write_shards
from longshot.data.stage import Place
from longshot.errors import UserError
from longshot.flow import SigmaDraw
from longshot.train.config import StageConfig
from longshot.train.loop import ADAPTER, Trainer
from longshot.train.shards import ShardStream, draw_stored, features_for

PROMPTS = [["[SHOT CUT] a dog waves", "it walks"], ["[SHOT CUT] a cat", '[SHOT CUT] a house "in" snow']]


@pytest.fixture(scope="module", params=[wan, hunyuan15], ids=["wan", "hunyuan"])
def folder(request, tmp_path_factory) -> Path:
    """A small pretrained base."""
    folder = tmp_path_factory.mktemp("base") / "small"
    request.param().save_pretrained(folder)
    return folder


def shards(folder: Path, out: Path, **settings) -> Path:
    """Shards of two scenes whose pictures are noise and whose texts the stage `latents` has read."""
    base, generator = load_base(str(folder)), torch.Generator().manual_seed(0)
    stage = Latents(LatentSettings(base=str(folder), **settings), Place(out, out))
    (unit,) = stage.units([{"id": "any"}])
    samples = []
    for n, prompts in enumerate(PROMPTS):
        alone = [prompt.removeprefix("[SHOT CUT] ") for prompt in prompts]
        tensors, groups = stage._texts(base, "a scene", "snow and red", prompts, alone)
        tensors = {name: t.to(getattr(torch, stage.settings.dtype)) for name, t in tensors.items()}
        record: list = [group.row() for group in groups]
        for k, grid in enumerate([(2, 1, 2), (1, 2, 1)], start=1):
            tensors[f"video.{k}"] = torch.randn(int(np.prod(grid)), base.spec.channels, generator=generator)
            tensors[f"image.{k}"] = tensors[f"video.{k}"][: grid[1] * grid[2]].clone()
            record.append({"text": len(tensors[f"text.{k}"]), "grid": list(grid)})
        shots = [{"prompt": p, "alone": a} for p, a in zip(prompts, alone, strict=True)]
        samples.append(
            Sample(f"scene-{n}", {"groups": record, "global_prompt": "snow and red", "shots": shots}, tensors)
        )
    write_shards(samples, out / "shards", unit.rows[1])
    return out / "shards"


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory) -> Path:
    return shards(folder, tmp_path_factory.mktemp("data"), dtype="float32")


def stream(stored: Path, features: str | None, **chances) -> ShardStream:
    dataset = ShardDataset(stored)
    budget = 4 * max(entry.tokens for entry in dataset.entries)
    return ShardStream(str(stored), dataset.fingerprint(), budget, features=features, **chances)


def test_every_way_to_word_a_shot_has_its_features(folder, stored):
    base, (sample, *_) = load_base(str(folder)), ShardDataset(stored)
    seen = set()
    for chances in (
        dict(single=0.0, drop_text=0.0),
        dict(single=1.0, drop_text=0.0),
        dict(drop_text=1.0),
        dict(drop_text=0.0, drop_global=1.0),
    ):
        drawn = draw_stored(sample, np.random.default_rng(0), stream(stored, "x", image=0.0, **chances))
        worded = [base.spec.wording(drawn.global_prompt, prompt) for prompt in drawn.prompts]
        assert drawn.texts is not None and len(drawn.texts) == len(worded)
        for text, read in zip(drawn.texts, base.encode_text(worded), strict=True):
            assert torch.equal(text, read)
        seen.add(tuple(worded))
    assert len(seen) == 4


def test_a_lora_trained_on_stored_features_is_the_one_trained_on_prompts(folder, stored, tmp_path):
    chances = dict(single=0.3, image=0.3, drop_text=0.2, drop_global=0.3)
    made = {}
    for features in (text_identity(str(folder)), None):
        base = load_base(str(folder), read_text=features is None)
        assert (base.pipe.text_encoder is None) == (features is not None)
        config = StageConfig("lct", 4, stream(stored, features, **chances), warmup=1, sigma=SigmaDraw())
        run = tmp_path / ("read" if features is None else "stored")
        Trainer(base, config, run, lora=tune.LoraConfig(rank=2)).run(workers=0)
        made[features] = load_file(run / ADAPTER)
    one, two = made.values()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_command_reads_no_prompt_where_features_are_stored_and_every_one_where_none_are(
    folder, stored, tmp_path
):
    """The encoder's weights are taken away but for what tells which they are: that changes nothing."""
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    for file in (spoilt / "text_encoder").glob("*.safetensors"):
        state = load_file(file)
        for weight in state.values():
            weight[1:-1] = float("nan")
        save_file(state, file, {"format": "pt"})

    def learned(base: Path, data: Path, *more) -> dict[str, torch.Tensor]:
        out = tmp_path / f"run-{base.name}-{data.parent.name}"
        asked = ["train", "shards", "--data", data, "--lora", 2, "--stage", "lct", "--steps", 1]
        done(*asked, "--workers", 0, "--base", base, "--out", out, *more)
        return load_file(out / "lct" / ADAPTER)

    plain = learned(folder, stored)
    assert all(torch.equal(plain[k], t) for k, t in learned(spoilt, stored, "--recompute", "always").items())
    prompts = shards(folder, tmp_path / "prompts", text="prompts")
    assert "text" not in ShardDataset(prompts).base
    assert all(t.isfinite().all() for t in learned(folder, prompts).values())
    assert not all(t.isfinite().all() for t in learned(spoilt, prompts).values())


def test_features_of_another_text_encoder_or_wording_are_refused(folder, stored, tmp_path):
    name, spec, facts = str(folder), load_spec(str(folder)), ShardDataset(stored).base
    assert features_for(stored, facts, name, spec) == facts["text"] == text_identity(name)
    assert features_for(stored, facts | {"text": None}, name, spec) is None
    other = tmp_path / "other"
    pipe = (wan if "Wan" in (folder / "model_index.json").read_text() else hunyuan15)()
    fill(pipe.text_encoder, seed=1)
    pipe.save_pretrained(other)
    with pytest.raises(UserError, match=r"made by another text encoder \(.*Run `longshot data latents`"):
        features_for(stored, facts, str(other), spec)
    with pytest.raises(UserError, match="made with cut ''; small has 'Cut! '"):
        features_for(stored, facts, name, replace(spec, cut="Cut! "))
    pipe.text_encoder.save_pretrained(tmp_path / "again", max_shard_size="1KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    shutil.rmtree(other / "text_encoder")
    shutil.copytree(tmp_path / "again", other / "text_encoder")
    whole = tmp_path / "whole"
    pipe.save_pretrained(whole)
    assert text_identity(str(other)) == text_identity(str(whole)) != text_identity(name)


def test_features_that_are_missing_are_named(stored):
    (sample, *_) = ShardDataset(stored)
    bare = Sample(sample.key, sample.record, {k: t for k, t in sample.tensors.items() if k != "none"})
    with pytest.raises(UserError, match="scene scene-0 has no features none; run `longshot data latents`"):
        draw_stored(bare, np.random.default_rng(0), stream(stored, "x", drop_text=1.0))
