"""Stages on a Ray cluster of two workers give the rows that they give on one machine, also when a worker is killed."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from captioner import captioner
from made_scenes import colour_scenes
from toy_stage import calls, numbers, toy

from longshot.data.captions import Captions, CaptionSettings
from longshot.data.engine import LocalEngine
from longshot.data.journal import read_rows
from longshot.data.latents import Latents, LatentSettings
from longshot.data.ray_engine import RayEngine
from longshot.data.runner import run_stage
from longshot.data.shards import Shards, ShardSettings
from longshot.data.stage import Place
from longshot.errors import UserError

ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="module")
def engine():
    """A local cluster whose workers import what the tests import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield RayEngine(workers=2)
        ray.shutdown()


def results(out: Path) -> tuple[str, str]:
    """What a run leaves: its rows, and its failures without traces."""
    rows = (out / "toy" / "rows.jsonl").read_text()
    failures = [json.loads(line) for line in (out / "toy" / "failures.jsonl").read_text().splitlines()]
    return rows, json.dumps([[f["name"], f["error"]] for f in failures])


@pytest.mark.slow
def test_a_cluster_of_two_workers_of_which_one_is_killed_gives_the_same_rows(engine, tmp_path):
    rows = numbers(*range(20, 36), 13, 14)
    run_stage(toy(tmp_path / "local", wait=0.2), rows, LocalEngine())
    out = tmp_path / "ray"
    killed: list[int] = []

    def kill_one() -> None:
        """Kill the process of a worker that is at work, once a few units are through."""
        while len(calls(out)) < 5 or not (busy := workers_at_work()):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGKILL)
        killed.append(busy[0])

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    report = run_stage(toy(out, wait=0.2), rows, engine)
    killer.join(timeout=10)
    assert killed and killed[0] not in workers_at_work()
    assert len(calls(out)) > 5 and (report.units, report.rows, len(report.failures)) == (18, 16, 2)
    assert results(out) == results(tmp_path / "local")


@pytest.mark.slow
def test_a_unit_that_kills_its_process_is_named_and_the_rest_goes_through(engine, tmp_path):
    report = run_stage(toy(tmp_path), numbers(1, 15, 2), engine)
    assert [row["value"] for row in read_rows(tmp_path / "toy" / "rows.jsonl")] == [1, 2]
    assert [f.error for f in report.failures] == ["n15: the process that ran toy on it died, 3 times"]
    assert calls(tmp_path).count(15) == 3


@pytest.mark.slow
def test_captions_latents_and_shards_of_a_cluster_are_those_of_one_machine(engine, tmp_path):
    here, rows = colour_scenes(tmp_path, 4)
    there = Place(tmp_path / "ray", here.films_root)
    with captioner() as book:
        settings = CaptionSettings(endpoint=book.url, model="little")
        for place, runner in ((here, LocalEngine()), (there, engine)):
            made = rows
            for stage in (
                Captions(settings, place),
                Latents(LatentSettings(), place),
                Shards(ShardSettings(max_mb=0.05), place),
            ):
                report = run_stage(stage, made, runner)
                assert not report.failures, report.failures
                made = list(read_rows(place.folder(stage.name) / "rows.jsonl"))
    for name in ("captions/rows.jsonl", "latents/rows.jsonl", "shards/rows.jsonl", "shards/shards.json"):
        assert (here.out / name).read_bytes() == (there.out / name).read_bytes(), name
    tars = sorted(here.folder("shards").glob("shard-*.tar"))
    assert len(tars) == 4
    assert all(tar.read_bytes() == (there.folder("shards") / tar.name).read_bytes() for tar in tars)


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    lost = RayEngine(address="127.0.0.1:1")
    with pytest.raises(UserError, match=r"^--engine ray: no Ray cluster at 127\.0\.0\.1:1 \("):
        run_stage(toy(tmp_path), numbers(1), lost)


def workers_at_work() -> list[int]:
    """Processes of Ray's workers that run a unit now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith("ray::") and "map" in title.lower():
                found.append(int(entry.name))
    return found
