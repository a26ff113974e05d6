"""A real film end to end: thirty seconds of Big Buck Bunny become shards, and a native base trains from them."""

import hashlib
import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from captioner import captioner

from commands import done
from longshot.bases import load_base
from longshot.data.journal import read_rows
from longshot.data.shards import ShardDataset
from longshot.video import read_frames

CONFIG = """
films: [{{path: {film}, source: www.bigbuckbunny.org, licence: CC BY 3.0}}]
films_root: {root}
out: out
captions: {{endpoint: "{url}", model: little-captioner}}
latents: {{base: {base}}}
shards: {{max_mb: 1}}
"""
CUTS = (0, 285, 378, 553, 720)


@pytest.fixture(scope="module")
def run(film, weights, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("data")
    with captioner() as book:
        text = CONFIG.format(film=film.name, root=film.parent, url=book.url, base=weights)
        (folder / "config.yaml").write_text(text)
        done("data", "run", folder / "config.yaml", "--workers", 1)
        assert book.requests
    return folder


def test_the_films_scenes_are_in_the_shards_with_their_words_and_sources(run, film):
    dataset = ShardDataset(run / "out" / "shards")
    digest = hashlib.sha256(film.read_bytes()).hexdigest()
    for k in range(len(dataset)):
        record = dataset[k].record
        assert record["film"] == {
            "path": film.name, "sha256": digest, "source": "www.bigbuckbunny.org", "licence": "CC BY 3.0"
        }  # fmt: skip
        assert record["caption_model"] == "little-captioner-1"
        assert record["global_prompt"].startswith("[Character] Character 1: A figure. [Environment] A ")
        assert record["shots"][0]["prompt"].startswith("[SHOT CUT] Character 1 in ")
        spans = [tuple(shot["film_frames"]) for shot in record["shots"]]
        assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
        # a span lies within one take of the film: none runs over a cut
        assert all(any(a <= start and stop <= b for a, b in pairwise(CUTS)) for start, stop in spans)
        for shot in record["shots"]:
            assert shot["prompt"].startswith("[SHOT CUT]") == shot["cut"]
            assert (
                4 <= shot["frames"] <= 16
                and shot["film_seconds"][0] - 0.3 < shot["start_s"] < shot["film_seconds"][1]
            )


def test_what_was_kept_is_in_the_shards_and_the_rest_is_named(run):
    filtered = list(read_rows(run / "out" / "filter" / "rows.jsonl"))
    kept = {row["id"] for row in filtered if row["kept"] and any(shot["kept"] for shot in row["shots"])}
    failed = json.loads((run / "out" / "report.json").read_text())
    set_aside = [f for stage in failed.values() for f in stage["failures"]]
    dataset = ShardDataset(run / "out" / "shards")
    assert not set_aside and {entry.key for entry in dataset.entries} == kept


def test_a_latent_is_the_films_own_picture(run, film):
    base = load_base(str(base_of(run)))
    sample = ShardDataset(run / "out" / "shards")[0]
    shot, group = sample.record["shots"][-1], sample.record["groups"][-1]
    clip = base.decode(sample.tensors[f"video.{len(sample.record['shots'])}"].float(), tuple(group["grid"]))
    start, frames = shot["start_s"], shot["frames"]
    seen = read_frames(film, start_s=start, stop_s=start + (frames - 0.5) / 8, fps=Fraction(8), size=(48, 32))
    assert clip.shape == seen.shape == (frames, 32, 48, 3)
    if shot["crop"] is None:
        assert np.array_equal(clip, seen)


def base_of(run: Path) -> Path:
    line = next(line for line in (run / "config.yaml").read_text().splitlines() if line.startswith("latents"))
    return Path(line.partition("base: ")[2].rstrip("}"))


def test_a_second_run_makes_nothing_again_and_needs_no_captioner(run):
    files = {p: p.stat().st_mtime_ns for p in (run / "out").rglob("*.tar")}
    result = done("data", "run", run / "config.yaml", "--workers", 1)
    reports = json.loads((run / "out" / "report.json").read_text())
    assert all(report["reused"] == report["units"] for report in reports.values()), result.out
    assert files == {p: p.stat().st_mtime_ns for p in (run / "out").rglob("*.tar")}


def test_a_native_base_trains_from_the_films_scenes(run, weights, tmp_path):
    done(
        "train", "shards", "--data", run / "out" / "shards", "--out", tmp_path, "--stage", "lct", "--steps", 3,
        "--init", weights, "--budget", 4000, "--workers", 0,
    )  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "lct" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3] and all(np.isfinite(row["loss"]) for row in log)
    assert (
        load_base(str(tmp_path / "lct" / "weights.safetensors")).fingerprint()
        != load_base(str(weights)).fingerprint()
    )
