"""The aesthetic score: a head on CLIP, both read from safetensors, on tiny random weights made on the spot."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_filters import scene, shot

from commands import refused
from longshot.data.aesthetics import judge, read_head
from longshot.data.engine import LocalEngine
from longshot.data.filters import Filter, FilterSettings
from longshot.data.journal import read_rows
from longshot.data.runner import run_stage
from longshot.data.stage import Place
from longshot.errors import UserError
from longshot.video import write_image

WIDTH = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=WIDTH)
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def head(path: Path, *widths: int) -> Path:
    """Layers with Dropout between, as LAION numbers them: 0, 2, 4, ..."""
    rng, tensors = np.random.default_rng(0), {}
    for n, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * n}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        tensors[f"layers.{2 * n}.bias"] = rng.normal(size=after).astype(np.float32)
    save_file(tensors, path)
    return path


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]


def test_the_score_is_that_of_transformers_own_reading_and_linear_layers(tmp_path, clip):
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    path = head(tmp_path / "head.safetensors", WIDTH, 8, 1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
    ).eval()
    stored = {name: torch.from_numpy(array) for name, array in load(path).items()}
    layers.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in stored.items()})
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = (
            CLIPVisionModelWithProjection.from_pretrained(clip).eval()(pixel_values=pixels).image_embeds
        )
        expected = layers(torch.nn.functional.normalize(features, dim=-1))[:, 0].numpy()
    assert np.allclose(judge(str(clip), str(path))(pictures()), expected, atol=1e-4)


def load(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_a_filter_keeps_the_score_and_leaves_out_what_is_below_the_limit(tmp_path, clip):
    path = head(tmp_path / "head.safetensors", WIDTH, 1)
    made = []
    for n, picture in enumerate(pictures()):
        write_image(tmp_path / "shots" / f"{n}.png", np.concatenate([picture] * 3, axis=1))
        strips = {"strips": (f"shots/{n}.png",), "tile_width": 32, "tiles": 3}
        made.append(shot(n).model_copy(update=strips))
    scores = judge(str(clip), str(path))(pictures())
    limit = float(np.median(scores))
    settings = FilterSettings(aesthetic=limit + 1e-3, aesthetic_head=str(path), aesthetic_model=str(clip))
    stage = Filter(settings, Place(tmp_path, tmp_path))
    assert not run_stage(stage, [scene(*made).row()], LocalEngine()).failures
    shots = next(read_rows(tmp_path / "filter" / "rows.jsonl"))["shots"]
    assert [s["scores"]["aesthetic"] for s in shots] == pytest.approx(scores.tolist(), abs=1e-3)
    assert [s["reasons"] for s in shots] == [
        ["aesthetic"] if score < limit + 1e-3 else [] for score in scores
    ]
    before = {unit.rows[1]["aesthetic_head"] for unit in stage.units([scene(*made).row()])}
    head(path, WIDTH, 4, 1)
    assert before != {unit.rows[1]["aesthetic_head"] for unit in stage.units([scene(*made).row()])}


def test_heads_that_do_not_fit_are_refused_by_name(tmp_path, clip):
    with pytest.raises(UserError, match=r"reads 7 features; .* has 16"):
        judge(str(clip), str(head(tmp_path / "a.safetensors", 7, 1)))(pictures())
    with pytest.raises(UserError, match="don't lead from one to the next"):
        read_head(head(tmp_path / "b.safetensors", WIDTH, 2))
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_head(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"must be a \.safetensors file"):
        read_head(tmp_path / "head.pth")
    save_file({"running_mean": np.zeros(3, np.float32)}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="other things than the weights"):
        read_head(tmp_path / "d.safetensors")


def test_a_limit_without_a_head_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("films: [.]\nout: out\nfilter:\n  aesthetic: 5\n")
    assert "aesthetic needs aesthetic_head" in refused("data", "run", tmp_path / "c.yaml")
