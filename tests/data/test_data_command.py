"""`longshot data` on folders as people have them: bad files among good ones, runs that are killed, the page to look at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from films import Film, Take, written

from commands import done, refused
from longshot.data.journal import read_rows

KEY = "76a6c65c5ea762046bd749a2e632ccbb"


def film_in(folder: Path, name: str, seed: int, faulty: bool = False) -> Path:
    takes = [Take(seed, 30), Take(seed, 30, start=1.4, zoom=1.6), Take(seed + 1, 30)]
    film = Film()
    for take in takes:
        film.cut(take)
    if faulty:
        film.frames[30:60] = [written(f, "NOT FOR RESALE OR RENTAL", 14) for f in film.frames[30:60]]
    return film.write(folder / name)


def config_in(folder: Path, films: str = "films", out: str = "out") -> Path:
    path = folder / f"{out.replace('/', '-')}.yaml"
    path.write_text(f"films: [{films}]\nout: {out}\nlicence: CC0\nsource: tests\n")
    return path


def rows(folder: Path, stage: str) -> list[dict]:
    return list(read_rows(folder / stage / "rows.jsonl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two good films, and one of every kind of bad file."""
    folder = tmp_path_factory.mktemp("corpus")
    films = folder / "films"
    films.mkdir()
    good = film_in(films, "good.mp4", 10)
    film_in(films, "titled <b>.mp4", 20, faulty=True)
    (films / "empty.mp4").write_bytes(b"")
    (films / "text.mp4").write_text("I am a film, believe me. " * 50)
    (films / "half.mp4").write_bytes(good.read_bytes()[:4000])
    (films / "notes.txt").write_text("not counted as a film")
    with zipfile.ZipFile(films / "locked.mp4", "w") as archive:
        archive.write(good, "film.mp4")
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": KEY, "encryption_kid": KEY}
    with av.open(str(films / "protected.mp4"), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(10):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), n, np.uint8), format="rgb24"))
            )
        container.mux(stream.encode())
    done("data", "run", config_in(folder), "--workers", 1)
    return folder


def test_bad_files_are_named_with_their_reason_and_the_rest_goes_through(folder):
    report = json.loads((folder / "out" / "report.json").read_text())
    said = {
        failure["name"].removeprefix("films/"): failure["error"] for failure in report["probe"]["failures"]
    }
    assert set(said) == {"empty.mp4", "text.mp4", "half.mp4", "locked.mp4", "protected.mp4"}
    assert (
        "0 bytes" in said["empty.mp4"]
        and "not a video" in said["text.mp4"]
        and "only half" in said["half.mp4"]
    )
    assert "ZIP archive" in said["locked.mp4"] and "password-protected" in said["protected.mp4"]
    assert all(name in error and "\n" not in error for name, error in said.items())
    assert not any(failure["trace"] for failure in report["probe"]["failures"])
    films = {row["film"]["path"] for row in rows(folder / "out", "filter")}
    assert films == {"films/good.mp4", "films/titled <b>.mp4"}
    assert not [p for p in (folder / "out").rglob(".*") if p.name != ".lock"]


def test_provenance_is_in_every_row(folder):
    import hashlib

    for stage in ("probe", "shots", "scenes", "filter"):
        for row in rows(folder / "out", stage):
            content = (folder / row["film"]["path"]).read_bytes()
            assert row["film"]["sha256"] == hashlib.sha256(content).hexdigest()
            assert (row["film"]["licence"], row["film"]["source"]) == ("CC0", "tests")
    shot = rows(folder / "out", "shots")[1]
    assert (shot["start_frame"], shot["start_s"]) == (30, 1.25)


def test_running_again_makes_nothing_again(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.jpg")}
    result = done("data", "run", folder / "out.yaml", "--workers", 1)
    assert "shots: 2 in, 6 out, 2 as they were" in result.out
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.jpg")}


def test_a_run_killed_on_the_way_ends_with_the_same_rows(folder, tmp_path):
    shutil.copytree(folder / "films", tmp_path / "films")
    config = config_in(tmp_path)
    command = [sys.executable, "-m", "longshot", "data", "run", config, "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out" / "shots" / "journal.jsonl"
    while not (journal.exists() and journal.stat().st_size) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done("data", "run", config, "--workers", 1)
    for stage in ("probe", "shots", "scenes", "filter"):
        ours = (tmp_path / "out" / stage / "rows.jsonl").read_text()
        assert ours == (folder / "out" / stage / "rows.jsonl").read_text()


class Page(HTMLParser):
    """What a page shows: its text, the pictures it asks for, and tags left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.pictures, self.tags = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        style = dict(attributes).get("style") or ""
        if "url('" in style:
            self.pictures.append(style.split("url('")[1].split("'")[0])

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_scenes_scores_reasons_and_pictures_that_are_there(folder):
    index = Path(done("data", "look", folder / "out.yaml").out.strip())
    assert index == folder / "out" / "look" / "index.html"
    page = Page(index.read_text())
    assert "films/titled <b>.mp4" in page.text and "b" not in page.tags[: page.tags.index("article")][:3]
    assert page.tags.count("article") == len(rows(folder / "out", "filter"))
    assert page.pictures and all((index.parent / os.fspath(name)).is_file() for name in page.pictures)
    assert "protected.mp4: is encrypted" in page.text and "frames 30 to 59" in page.text
    assert "script" not in page.tags and page.tags.count("svg") >= 6
    done("data", "look", folder / "out.yaml", "--per-page", 1)
    assert len(list(index.parent.glob("*.html"))) == len(rows(folder / "out", "filter"))
    done("data", "look", folder / "out.yaml")
    assert [p.name for p in index.parent.iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out: out\n", "films: missing"),
        ("films: [films]\n", "out: missing"),
        ("films: [nowhere]\nout: out\n", "nowhere: no such file or folder"),
        ("films: [../..]\nout: out\n", "lies outside"),
        ("films: [films]\nout: out\nshots:\n  ratoi: 3\n", ":4: shots, ratoi: unknown; use"),
        (
            "films: [films]\nout: out\nshots:\n  ratio: high\n",
            ":4: shots, ratio: Input should be a valid number",
        ),
        ("films: [films]\nout: out\nshot: {}\n", "unknown; use films"),
        ("films: [films/empty.mp4]\nout: nothing\n", "probe: nothing came through"),
    ],
)
def test_a_config_that_is_wrong_is_refused_in_one_line(folder, text, said):
    config = folder / "wrong.yaml"
    config.write_text(text)
    assert said in refused("data", "run", config)


def test_a_stage_before_its_turn_says_which_one_to_run_first(folder):
    config = config_in(folder, out="fresh")
    assert "run the stage shots first" in refused("data", "scenes", config)
    assert "holds no scenes yet" in refused("data", "look", config)
    assert "there is no stage 'cut'" in refused("data", "run", config, "--until", "cut")


def test_names_of_any_kind_go_through_and_links_to_nowhere_are_named(folder, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    good = (folder / "films" / "good.mp4").read_bytes()
    names = ["with spaces.mp4", "Привет ☃.mp4", "-x$(y) 100%.MP4", "n" * 200 + ".mp4"]
    for name in (
        *names,
        *map(os.fsdecode, (b"caf\xe9.mp4", b"caf\xe8.mp4", b"\\xe9\xe9.mp4", b"\xe9\\xe9.mp4")),
    ):
        (films / name).write_bytes(good)
    (films / "alias.mp4").symlink_to(names[0])
    (films / "gone.mp4").symlink_to("nowhere.mp4")
    (films / "loop.mp4").symlink_to("loop.mp4")
    (films / "out.mp4").symlink_to(folder / "films" / "good.mp4")
    (films / "disc").symlink_to(folder / "films")
    os.mkfifo(films / "pipe.mp4")
    done("data", "probe", config_in(tmp_path), "--workers", 1)
    found = {row["film"]["path"] for row in rows(tmp_path / "out", "probe")}
    assert found == {f"films/{name}" for name in (*names, "alias.mp4")}
    said = {f["name"]: f["error"] for f in read_rows(tmp_path / "out" / "probe" / "failures.jsonl")}
    coded = [r"caf\xe9.mp4", r"caf\xe8.mp4", r"\\xe9\xe9.mp4", r"\xe9\\xe9.mp4"]
    others = ["gone.mp4", "loop.mp4", "out.mp4", "disc", "pipe.mp4"]
    assert set(said) == {f"films/{name}" for name in (*coded, *others)}
    assert all("isn't UTF-8" in said[f"films/{name}"] for name in coded)
    assert "isn't there" in said["films/gone.mp4"]
    assert said["films/loop.mp4"].endswith("can't be read (Too many levels of symbolic links)")
    assert "lies outside" in said["films/out.mp4"] and "isn't followed" in said["films/disc"]


def test_a_film_that_changes_between_two_stages_is_named_and_the_next_run_takes_it_as_it_is(folder, tmp_path):
    (tmp_path / "films").mkdir()
    film = tmp_path / "films" / "film.mp4"
    shutil.copy(folder / "films" / "good.mp4", film)
    config = config_in(tmp_path)
    done("data", "probe", config)
    shutil.copy(folder / "films" / "titled <b>.mp4", film)
    assert "film.mp4: has changed since it was probed" in refused("data", "shots", config)
    done("data", "run", config, "--until", "shots", "--workers", 1)
    assert len(rows(tmp_path / "out", "shots")) == len(rows(folder / "out", "shots")) / 2


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(folder):
    config = config_in(folder, out="films/notes.txt/x")
    assert "could not be written (Not a directory)" in refused("data", "run", config)


def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on_when_there_is_room(folder, tmp_path):
    small = tmp_path / "out"
    small.mkdir()
    disk = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(disk, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (tmp_path / "films").mkdir()
        shutil.copy(folder / "films" / "good.mp4", tmp_path / "films")
        config = config_in(tmp_path)
        said = refused("data", "run", config, "--until", "shots", "--workers", 1)
        assert "could not be written (No space left on device)" in said and "goes on from there" in said
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        done("data", "run", config, "--until", "shots", "--workers", 1)
        assert len(rows(small, "shots")) == 3
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_one_bad_file_in_a_thousand_is_named_and_the_others_go_through(folder, tmp_path):
    (tmp_path / "films").mkdir()
    for n in range(1000):
        (tmp_path / "films" / f"{n:04d}.mp4").hardlink_to(
            folder / "films" / ("empty.mp4" if n == 500 else "good.mp4")
        )
    done("data", "probe", config_in(tmp_path), "--workers", 2)
    assert len(rows(tmp_path / "out", "probe")) == 999
    assert [f["name"] for f in read_rows(tmp_path / "out" / "probe" / "failures.jsonl")] == ["films/0500.mp4"]
