"""A LoRA learns over a native base and over pretrained ones, leaves the base alone, and comes back as it was learned."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import STREAM, tiny_base

from commands import done, refused
from longshot.bases import load_base, tune
from longshot.bases.lora import load_adapters
from longshot.bases.native import NativeBase
from longshot.data.latents import base_facts
from longshot.data.shards import Sample, ShardDataset, write_shards
from longshot.errors import UserError
from longshot.flow import SigmaDraw
from longshot.train.config import StageConfig
from longshot.train.evidence import worn_history
from longshot.train.loop import ADAPTER, CHECKPOINT, Trainer, batch_loss, collate, draw_noise
from longshot.train.shards import ShardStream
from longshot.train.stages import REPORT_EVERY

LORA = tune.LoraConfig(rank=2)
STEPS = 4
SHOWN = {"guessed": 0.5, "worn": 0.5}  # by seed 0, steps of both kinds


@cache
def opened(folder: Path | None):
    if folder is None:
        torch.manual_seed(0)
        base = tiny_base(depth=2)
        with torch.no_grad():
            for p in base.network.parameters():
                p.add_(0.05 * torch.randn(p.shape))
        return base
    return load_base(str(folder))


def fresh(folder: Path | None):
    """The base again, so that one test's layers are not another's: the native one, or the pipeline in a folder."""
    if folder is not None:
        return load_base(str(folder))
    base = NativeBase(opened(None).config, tiny_base(depth=2).network)
    base.network.load_state_dict(opened(None).network.state_dict())
    return base


def pipeline_shards(folder: Path, base) -> Path:
    """Shards of three scenes of noise, two shots each, made for a pretrained base."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for k in range(3):
        grids, tensors = [(2, 1, 2), (1, 2, 1)], {}
        for n, (t, h, w) in enumerate(grids, start=1):
            tensors[f"video.{n}"] = torch.randn(t * h * w, base.spec.channels, generator=generator)
            tensors[f"image.{n}"] = tensors[f"video.{n}"][: h * w].clone()
        shots = [
            {"prompt": f"[SHOT CUT] a dog {k}", "alone": "a dog"},
            {"prompt": "it walks", "alone": "a dog walks"},
        ]
        groups = [{"text": 0, "grid": [0, 0, 0]}, *({"text": 4, "grid": list(g)} for g in grids)]
        samples.append(
            Sample(f"scene-{k}", {"groups": groups, "global_prompt": "snow", "shots": shots}, tensors)
        )
    write_shards(samples, folder, base_facts(base.spec))
    return folder


@pytest.fixture(scope="module", params=["native", "wan", "hunyuan"])
def place(request, tmp_path_factory):
    """(the folder of a base or None for the native one, the stage of a run over it)."""
    if request.param == "native":
        return None, StageConfig("lct", STEPS, STREAM, warmup=1, lr=1e-2, decay=0.1, **SHOWN)
    from bases.pipelines import hunyuan15, wan

    folder = tmp_path_factory.mktemp("base") / f"small-{request.param}"
    {"wan": wan, "hunyuan": hunyuan15}[request.param]().save_pretrained(folder)
    shards = pipeline_shards(tmp_path_factory.mktemp("data") / "shards", opened(folder))
    dataset = ShardDataset(shards)
    budget = 2 * max(entry.tokens for entry in dataset.entries)
    stream = ShardStream(str(shards), dataset.fingerprint(), budget, single=0.3, image=0.3, drop_text=0.2)
    return folder, StageConfig("lct", STEPS, stream, warmup=1, lr=1e-2, decay=0.1, sigma=SigmaDraw(), **SHOWN)


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """A finished run: its base with the low-rank layers in it, and its folder."""
    folder, config = place
    trainer = Trainer(fresh(folder), config, tmp_path_factory.mktemp("run"), lora=LORA)
    trainer.run(workers=0)
    return trainer


@torch.no_grad()
def loss_of(base, config: StageConfig) -> tuple[float, torch.Tensor]:
    """The loss of one fixed batch, and the velocity there."""
    steps = config.stream.steps(config.seed)
    batch = collate(base, steps[0])
    sigma, eps = draw_noise(batch.layout, base.spec.channels, config, 0, steps.places(0))
    z_t = torch.lerp(batch.z_0, eps, 0.5)
    texts = base.encode_text(batch.prompts) if batch.texts is None else batch.texts
    v = base.velocity(z_t, torch.cat(list(texts)), torch.full_like(sigma, 0.5), batch.layout, "scene")
    return float(batch_loss(base, batch, sigma, eps, "scene").flow), v


def test_a_lora_changes_the_loss_and_no_weight_of_the_base(place, run):
    folder, config = place
    before, after = fresh(folder), run.base
    weights = dict(after.network.named_parameters())
    for name, weight in before.network.named_parameters():
        assert torch.equal(weight, weights[name]) and not weights[name].requires_grad, name
    assert loss_of(before, config)[0] != pytest.approx(loss_of(after, config)[0], rel=1e-4)
    losses = [json.loads(line)["loss"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert len(losses) == STEPS and all(loss == loss for loss in losses)


def test_the_loss_of_worn_history_stays_small_where_there_is_hardly_any_noise(place):
    """A velocity from a guess to the truth grows without bound as sigma falls; the loss counts the latents' error."""
    folder, config = place
    base = fresh(folder)
    steps = config.stream.steps(config.seed)
    batch = collate(base, steps[0])
    sigma, eps = draw_noise(batch.layout, base.spec.channels, config, 0, steps.places(0))
    earlier = worn_history(batch.layout, torch.full_like(sigma, 1e-5), torch.ones_like(sigma), eps)
    with torch.no_grad():
        loss = batch_loss(base, batch, torch.full_like(sigma, 1e-5), eps, "causal", earlier=earlier).flow
    assert 1e-6 < float(loss) < 100


def test_a_lora_that_has_learned_nothing_yet_changes_nothing(place):
    folder, config = place
    base = fresh(folder)
    expected = loss_of(base, config)[1]
    tune.attach(base.network, 2)
    assert torch.equal(loss_of(base, config)[1], expected)


def test_a_lora_that_is_loaded_gives_the_velocities_it_was_trained_to(place, run):
    """Merging adds B A to W where training adds B (A x) to W x: fp32 rounding apart, the same."""
    folder, config = place
    base, trained = fresh(folder), run.base
    with torch.no_grad():
        for name, weight in trained.network.named_parameters():
            if weight.requires_grad:
                weight.copy_(run.average[name])
    plain = loss_of(base, config)[1]
    load_adapters(base, [str(run.folder / ADAPTER)])
    expected, found = loss_of(trained, config)[1], loss_of(base, config)[1]
    assert (expected - plain).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    half = fresh(folder)
    load_adapters(half, [f"{run.folder / ADAPTER}:0.5"])
    assert (loss_of(half, config)[1] - plain).abs().max() > 1e-5


def test_the_file_of_a_lora_is_in_the_layout_that_peft_and_diffusers_read(place, run):
    folder, _ = place
    tensors = load_file(run.folder / ADAPTER)
    layers = tune.adapted(fresh(folder).network)
    wanted = {f"transformer.{layer}.lora_{half}.weight" for layer in layers for half in "AB"}
    assert tensors.keys() == wanted and all(2 in t.shape for t in tensors.values())


def test_n_steps_and_a_resumed_run_are_2n_steps_bit_for_bit(place, run, tmp_path):
    folder, config = place
    Trainer(fresh(folder), config, tmp_path, lora=LORA).run(workers=0, until=STEPS // 2)
    kept = load_file(tmp_path / CHECKPOINT)
    assert all("lora" in key for key in kept if key.startswith("weights/"))
    Trainer(fresh(folder), config, tmp_path, lora=LORA).run(workers=0)
    assert load_file(tmp_path / ADAPTER).keys() == load_file(run.folder / ADAPTER).keys()
    for key, tensor in load_file(run.folder / CHECKPOINT).items():
        assert torch.equal(load_file(tmp_path / CHECKPOINT)[key], tensor), key


def test_a_run_goes_on_over_its_own_base_and_rank_only(place, run):
    folder, config = place
    for other in (replace(LORA, rank=3), replace(LORA, base="another")):
        with pytest.raises(UserError, match=r"was trained with lora\."):
            Trainer(fresh(folder), config, run.folder, lora=other)
    with pytest.raises(UserError, match="use a rank from 1 to"):
        tune.attach(fresh(folder).network, 1000)


def test_the_commands_train_a_lora_and_sample_with_it(tmp_path):
    """The native base by its name; what can't be asked is refused in one line."""
    tiny_base().save(tmp_path / "base.safetensors")
    base = ["--base", tmp_path / "base.safetensors"]
    order = ["train", "puppets", "--out", tmp_path / "run", "--workers", 0, *base]
    done(*order, "--stage", "lct", "--steps", 1, "--lora", 2, "--lr", 0.01)
    assert (tmp_path / "run/lct" / ADAPTER).is_file() and REPORT_EVERY > 1
    assert "trained in one stage" in refused(*order, "--lora", 2)
    assert "a LoRA has no part in" in refused(*order, "--lora", 2, "--stage", "refine")
    assert "for a LoRA give --stage lct" in refused(*order, "--lora", 2, "--stage", "lct-again")
    assert "names what a LoRA is trained over" in refused(*order, "--stage", "lct")
    settings = json.loads((tmp_path / "run/lct/config.json").read_text())
    assert settings["lora"]["rank"] == 2 and len(settings["lora"]["base"]) == 24 and settings["lr"] == 0.01
