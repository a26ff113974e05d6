"""Whole commands on whole scenes: every mode, real input, runs that are stopped, and going on from a finished film."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from commands import (
    QUICK,
    clip,
    done,
    file_size_limit,
    files_of,
    longshot,
    picture,
    quick_base,
    refused,
    scene_of,
    takes_of,
    write_scene,
)
from longshot.bases.native import NativeBase
from longshot.scene import Reference, Scene, Shot, load_scene
from longshot.video import probe, read_frames, write_image


def manifest_of(film: Path) -> dict:
    return json.loads((film / "manifest.json").read_text())


def shots_of(film: Path) -> list[dict]:
    """The manifest's entries of the scene's own shots."""
    return [entry for entry in manifest_of(film)["shots"] if entry["number"] is not None]


def whole(film: Path, shots: int) -> bool:
    """Whether a folder holds a film of so many shots, and nothing half-written."""
    entries = manifest_of(film)["shots"]
    numbers = [e["number"] for e in entries if e["number"] is not None]
    frames = sum(e["frames"] for e in entries if e["number"] is not None)
    videos = all(probe(film / e["video"]).frames == e["frames"] for e in entries)
    scene = probe(film / "scene.mp4").frames == frames and (film / "sheet.png").stat().st_size > 0
    return numbers == list(range(1, shots + 1)) and videos and scene and not list(film.rglob(".*"))


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.yaml", scene_of(4))


@pytest.fixture(scope="session")
def causal_film(scene, weights, tmp_path_factory) -> Path:
    """A film of four shots, one by one, with the cache kept."""
    film = tmp_path_factory.mktemp("causal") / "film"
    done("sample", scene, "--out", film, "--base", weights, "--mode", "causal", "--save-context", *QUICK)
    return film


@pytest.fixture
def film(causal_film, tmp_path) -> Path:
    shutil.copytree(causal_film, tmp_path / "film")
    return tmp_path / "film"


# -- sampling -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "histories"),
    [
        ("--mode joint --previews", [[], [], [], []]),
        ("--mode bidirectional --history 4:1", [[], [1], [1, 2], [1]]),
        ("--mode causal --solver heun --window 2", [[], [1], [2], [3]]),
        ("--mode causal --reuse-steps --guidance 1", [[], [1], [1, 2], [1, 2, 3]]),
    ],
)
def test_every_mode_makes_a_film(tmp_path, scene, weights, asked, histories):
    film = tmp_path / "film"
    result = done("sample", scene, "--out", film, "--base", weights, *QUICK, *asked.split())
    assert whole(film, 4) and result.out.split() == [
        str(film / name) for name in ("scene.mp4", "sheet.png", "manifest.json")
    ]
    assert [line.split(" after")[0] for line in result.err.splitlines()] == [
        f"shot {k} finished" for k in range(1, 5)
    ]
    seen = [[int(name.removeprefix("shot_")) for name in e["history"]] for e in shots_of(film)]
    assert seen == histories and manifest_of(film)["mode"] == asked.split()[1]
    assert (film / "preview.png").exists() == ("--previews" in asked)


def test_references_of_every_role_take_part(tmp_path, weights):
    for name, level in (("who", 50), ("where", 100), ("first", 150), ("last", 200)):
        picture(tmp_path / f"{name}.png", level)
    clip(tmp_path / "clip.mp4", 12)
    roles = {
        "identity": "who.png",
        "environment": "where.png",
        "first_frame": "first.png",
        "last_frame": "last.png",
    }
    references = [
        Reference(role=role, path=path, character=1 if role == "identity" else None)
        for role, path in roles.items()
    ]
    shots = [
        Shot(prompt="Wide shot. Character 1 waves.", references=references),
        Shot(prompt="Close shot. Character 1 waves.", references=[Reference(role="video", path="clip.mp4")]),
    ]
    scene, film = write_scene(tmp_path / "s.yaml", scene_of(shots)), tmp_path / "film"
    out = done("sample", scene, "--out", film, "--base", weights, *QUICK).out
    assert "mode joint: the 6 shots and images are made together" in out and whole(film, 2)
    entries = manifest_of(film)["shots"]
    assert [e["label"].removeprefix("shot 1's ") for e in entries] == [
        "identity image",
        "environment image",
        "first frame image",
        "shot 1",
        "last frame image",
        "shot 2",
    ]
    assert [e["given"] for e in entries] == [True, True, True, False, True, True]
    assert len(entries[3]["history"]) == 5  # all others
    assert read_frames(film / "shot_02.mp4").mean() == pytest.approx(120, abs=3)


def test_frames_and_a_clip_of_a_real_film_stand_for_shots(tmp_path, scene, weights, real):
    write_image(tmp_path / "frame.png", read_frames(real, start_s=20, stop_s=20.1)[0])
    film = tmp_path / "film"
    given = ["--given", f"2={real}", f"4={tmp_path / 'frame.png'}"]
    out = done("sample", scene, "--out", film, "--base", weights, *QUICK, *given).out
    assert f"shot 2: 16 frames (2 s) of {real.name} are used, from 0 s on" in out and whole(film, 4)
    assert [e["given"] for e in shots_of(film)] == [False, True, False, True]
    assert [e["frames"] for e in shots_of(film)] == [4, 16, 4, 4]
    wanted = read_frames(real, start_s=20, stop_s=20.1, size=(48, 32))[0].mean()
    assert read_frames(film / "shot_04.mp4").mean() == pytest.approx(wanted, abs=3)


@pytest.fixture(scope="session")
def real(shared_data) -> Path:
    return shared_data / "big-buck-bunny-480p-30s.mp4"


def test_an_episode_of_twenty_shots_and_more_rolls_on_with_a_window(tmp_path, weights, shared_data):
    episode = json.loads(min((shared_data / "scripts" / "entitybench").glob("0008*.json")).read_text())
    episode["scenes"] = [s | {"scene_num": k} for k, s in enumerate(episode["scenes"] * 2, start=1)]
    (tmp_path / "episode.json").write_text(json.dumps(episode))
    scene, film = tmp_path / "scene.yaml", tmp_path / "film"
    assert (
        "24 shots" in done("import", tmp_path / "episode.json", "--format", "entitybench", "--out", scene).out
    )
    assert [s.cut for s in load_scene(scene).shots] == [c for s in episode["scenes"] for c in s["cut"]]
    linted = done("lint", scene).out
    options = ["--mode", "causal", "--window", 4, "--guidance", 1, *QUICK]
    out = done("sample", scene, "--out", film, "--base", weights, *options).out
    assert whole(film, 24)
    names = [e["name"] for e in shots_of(film)]
    assert [e["history"] for e in shots_of(film)] == [names[max(k - 3, 0) : k] for k in range(24)]
    told = "\n".join(manifest_of(film)["outside_words"])
    for number in range(1, 25):
        words = f"shot {number} uses words outside the world of tiny: "
        line = next(line for line in linted.splitlines() if words in line)
        assert line in out and words + line.split(words)[1] in told
    assert not any(word in told for word in ("Arthur", "Silas", "Marcus"))  # names are known from the cast


@pytest.mark.parametrize(
    ("mode", "said", "level"), [("causal", (), 0.05), ("bidirectional", (), 0.2), ("causal", (0.3,), 0.3)]
)
def test_history_is_held_at_the_level_that_is_good_for_the_weights_unless_one_is_said(
    tmp_path, scene, mode, said, level
):
    base = quick_base()
    spec = replace(base.spec, context_sigma=0.2, causal_context_sigma=0.05)
    weights, film = tmp_path / "weights.safetensors", tmp_path / "film"
    NativeBase(replace(base.config, spec=spec), base.network).save(weights)
    options = [x for sigma in said for x in ("--context-sigma", sigma)]
    done("sample", scene, "--out", film, "--base", weights, "--mode", mode, *options, *QUICK)
    assert {e["how"]["context_sigma"] for e in shots_of(film)} == {level}


# -- runs that are stopped ----------------------------------------------------------------------------------------------
STEPS = ("--steps", 25, "--scale", 1, "--mode", "causal", "--previews")


@pytest.fixture(scope="session")
def five(tmp_path_factory, weights) -> tuple[Path, Path]:
    """A scene of five shots and its film, made without a stop."""
    folder = tmp_path_factory.mktemp("five")
    scene = write_scene(folder / "scene.yaml", scene_of(5))
    done("sample", scene, "--out", folder / "film", "--base", weights, *STEPS)
    return scene, folder / "film"


def stopped(command: list, number: int, after: str) -> tuple[int, str]:
    """Runs a command in a process of its own and sends it a signal as soon as it has said something on stderr."""
    arguments = [sys.executable, "-m", "longshot", *map(str, command)]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and children inherit that; a person's terminal doesn't.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(after):
                process.send_signal(number)
        return process.wait(timeout=300), said


def test_a_film_whose_process_is_killed_goes_on_as_if_nothing_had_happened(tmp_path, five, weights):
    scene, uninterrupted = five
    film = tmp_path / "film"
    command = ["sample", scene, "--out", film, "--base", weights, *STEPS]
    code, _ = stopped(command, signal.SIGKILL, "shot 2 finished")
    assert code == -signal.SIGKILL and not (film / "manifest.json").exists()
    finished = {name: data for name, data in files_of(film).items() if "01" in name or "02" in name}
    assert len(finished) == 4 and not (film / "shot_05.mp4").exists()
    result = done(*command)
    assert "shot 1 was finished before\nshot 2 was finished before\n" in result.err
    assert "shot 5 finished after" in result.err
    after = files_of(film)
    assert {name: after[name] for name in finished} == finished
    assert after == files_of(uninterrupted)
    assert (film / "scene.mp4").read_bytes() == (uninterrupted / "scene.mp4").read_bytes()
    assert shots_of(film) == shots_of(uninterrupted)


def test_ctrl_c_leaves_finished_shots_and_one_line_and_the_same_command_goes_on(tmp_path, five, weights):
    scene, uninterrupted = five
    film = tmp_path / "film"
    command = ["sample", scene, "--out", film, "--base", weights, *STEPS]
    code, said = stopped(command, signal.SIGINT, "shot 1 finished")
    lines = said.splitlines()
    assert code == 130
    assert (
        lines[-1]
        == "longshot: stopped; what was finished is on disk, and the same command goes on from there"
    )
    assert all(line.startswith("shot ") for line in lines[:-1])
    assert (film / "shot_01.mp4").exists() and not (film / "manifest.json").exists()
    assert not list(film.rglob(".*"))
    assert "shot 1 was finished before" in done(*command).err
    assert files_of(film) == files_of(uninterrupted) and whole(film, 5)


def test_a_full_disk_leaves_finished_shots_and_the_same_command_goes_on(
    tmp_path, causal_film, scene, weights
):
    latent, sheet = (causal_film / name for name in ("latents/shot_01.safetensors", "sheet.png"))
    room = sheet.stat().st_size - 1
    assert latent.stat().st_size < room
    film = tmp_path / "film"
    command = ["sample", scene, "--out", film, "--base", weights, "--mode", "causal", *QUICK]
    with file_size_limit(room):
        assert "sheet.png: could not be written" in refused(*command)
    assert files_of(film) == files_of(causal_film)
    assert not list(film.rglob(".*")) and not (film / "manifest.json").exists()
    assert done(*command).err.count("was finished before") == 4 and whole(film, 4)


# -- going on from a film -----------------------------------------------------------------------------------------------
def test_a_film_is_extended_without_touching_what_is_there(film, causal_film, weights):
    base = ["--base", weights, *QUICK]
    done(
        "extend",
        film,
        "--prompt",
        "Character 1 stands.",
        "Character 1 waves.",
        "--prompt",
        "Wide shot.",
        *base,
    )
    assert whole(film, 7)
    before, after = files_of(causal_film), files_of(film)
    assert {name: after[name] for name in before} == before
    entries = shots_of(film)
    assert (
        entries[:4] == shots_of(causal_film)
        and [e["how"]["mode"] for e in entries[4:]] == ["extend, causal"] * 3
    )
    assert [e["prompt"] for e in entries[4:]] == ["Character 1 stands.", "Character 1 waves.", "Wide shot."]
    assert entries[6]["history"] == [e["name"] for e in entries[1:6]]
    scene = Scene.model_validate(manifest_of(film)["scene"])
    assert [s.cut for s in scene.shots[4:]] == [False] * 3
    done("extend", film, "--prompt", "Close shot.", "--cut", "--frames", 8, "--mode", "bidirectional", *base)
    assert whole(film, 8) and shots_of(film)[7]["prompt"] == "[SHOT CUT] Close shot."
    assert shots_of(film)[7]["frames"] == 8 and shots_of(film)[:7] == entries


def test_a_saved_context_and_a_history_read_again_lead_on_from_the_same_film(film, weights):
    saved = json.loads((film / "context" / "context.json").read_text())
    done("extend", film, "--prompt", "Character 1 stands.", "--base", weights, *QUICK)
    again = json.loads((film / "context" / "context.json").read_text())
    assert again["shots"][:4] == saved["shots"] and len(again["shots"]) == 5
    shutil.rmtree(film / "context")
    done("extend", film, "--prompt", "Character 1 waves.", "--base", weights, *QUICK)
    assert whole(film, 6) and not (film / "context").exists()


def test_an_extension_that_cannot_be_leaves_the_film_as_it_was(film, causal_film, weights):
    def line(*arguments):
        return refused("extend", film, "--base", weights, *QUICK, *arguments)

    assert "shot 5 asks for 20 frames; tiny needs 4n, 16 at most" in line("--prompt", "A.", "--frames", 20)
    assert "frames" in line("--prompt", "A.", "--frames", 0)
    assert "names Character 3, who is not declared" in line("--prompt", "Character 3 waves.")
    assert "shot 5 has an empty prompt" in line("--prompt", " ")
    assert "those of its new shots, are 48x32" in line("--prompt", "A.", "--size", "96x64")
    cached = line("--prompt", "A.", "--mode", "bidirectional", "--cache-dtype", "bf16")
    assert "the KV cache, which bidirectional hasn't: give --mode causal" in cached
    assert "tokens; tiny reads 512" in line("--prompt", "red " * 600)
    (film / "context" / "branch_1.safetensors").write_bytes(b"half")
    assert "branch_1.safetensors: not a readable saved context" in line("--prompt", "Character 1 waves.")
    facts = film / "context" / "context.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"weights": "others"}))
    assert "was remembered by other weights" in line("--prompt", "Character 1 waves.")
    assert files_of(film) == files_of(causal_film) and manifest_of(film) == manifest_of(causal_film)


def test_a_shot_is_made_again_between_its_neighbours_and_the_old_take_is_kept(
    film, causal_film, scene, weights
):
    base = ["--base", weights, *QUICK]
    before = files_of(film)
    out = done(
        "reshoot", film, "--shot", 2, "--prompt", "Wide shot. Character 1 rides a motorcycle.", *base
    ).out
    assert "shot 2 uses words outside the world of tiny" in out and "motorcycle" in out
    changed = {name for name, data in files_of(film).items() if data != before[name]}
    assert changed == {"shot_02.mp4", "latents/shot_02.safetensors"} and whole(film, 4)
    assert sorted(takes_of(film)) == sorted(before[name] for name in changed)
    entry = shots_of(film)[1]
    assert entry["prompt"] == "[SHOT CUT] Wide shot. Character 1 rides a motorcycle." and entry["take"] == 1
    assert entry["history"] == ["shot_01", "shot_03", "shot_04"] and entry["how"]["mode"] == "reshoot"
    assert "motorcycle" in "".join(manifest_of(film)["outside_words"])
    new_take = files_of(film)["shot_02.mp4"]
    done("sample", scene, "--out", film, "--mode", "causal", *base)
    assert files_of(film) == before and shots_of(film) == shots_of(causal_film)
    assert new_take in takes_of(film)


def test_a_shot_that_cannot_be_made_again_leaves_the_film_as_it_was(film, causal_film, weights):
    base = ["--base", weights, *QUICK]
    assert "has no shot 9; it has shots 1 to 4" in refused("reshoot", film, "--shot", 9, *base)
    assert "take" in refused("reshoot", film, "--shot", 1, "--take", -1, *base)
    assert "empty prompt" in refused("reshoot", film, "--shot", 1, "--prompt", "", *base)
    assert files_of(film) == files_of(causal_film)


def test_a_damaged_film_is_refused_and_healed_by_the_command_that_made_it(film, causal_film, scene, weights):
    latent = film / "latents" / "shot_03.safetensors"
    latent.write_bytes(latent.read_bytes()[:-10])
    (film / "manifest.json").write_text((film / "manifest.json").read_text()[:200])
    assert "manifest.json: damaged" in refused("extend", film, "--prompt", "A.", "--base", weights)
    done("sample", scene, "--out", film, "--mode", "causal", "--base", weights, *QUICK)
    assert files_of(film) == files_of(causal_film) and shots_of(film) == shots_of(causal_film)


# -- interpolation and composition --------------------------------------------------------------------------------------
def test_the_shots_between_two_ends_are_made_from_both(tmp_path, scene, weights):
    ends = ["--first", clip(tmp_path / "first.mp4"), "--last", picture(tmp_path / "last.png")]
    given, made = tmp_path / "given", tmp_path / "made"
    done("interpolate", scene, "--out", given, "--base", weights, *QUICK, *ends)
    done("interpolate", scene, "--out", made, "--base", weights, *QUICK, "--guidance", 1)
    both = ["shot_01", "shot_04"]
    assert whole(given, 4) and whole(made, 4)
    assert (
        [e["history"] for e in shots_of(given)]
        == [[], both, both, []]
        == [e["history"] for e in shots_of(made)]
    )
    assert [e["given"] for e in shots_of(given)] == [True, False, False, True]
    assert not any(e["given"] for e in shots_of(made))


def test_a_person_and_a_place_are_joined_and_the_person_swapped(tmp_path, scene, weights):
    one, other, place = (picture(tmp_path / f"{name}.png", 80) for name in ("one", "other", "place"))
    film = tmp_path / "film"
    pictures = ["--identity", one, "--environment", place, "--swap", f"3={other}"]
    done("compose", scene, "--out", film, "--base", weights, *QUICK, *pictures)
    assert whole(film, 4) and manifest_of(film)["mode"] == "compose"
    assert [len(e["history"]) for e in shots_of(film)] == [2, 3, 2, 3]
    assert [e["label"] for e in manifest_of(film)["shots"] if e["number"] is None] == [
        "the environment image",
        "the identity image for shot 1",
        "the identity image for shot 3",
    ]
    done("reshoot", film, "--shot", 2, "--base", weights, *QUICK)
    assert whole(film, 4) and len(list((film / "takes").iterdir())) == 2


# -- training and scoring -----------------------------------------------------------------------------------------------
def test_training_goes_on_where_it_stopped_and_its_weights_make_a_film(tmp_path, scene, weights):
    run = tmp_path / "run"
    train = ["train", "puppets", "--out", run, "--stage", "causal", "--init", weights, "--workers", 0]
    assert "train the stage before it, or give --init" in refused(*train[:6])
    done(*train, "--steps", 1)
    done(*train, "--steps", 2)
    steps = [json.loads(line)["step"] for line in (run / "causal" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    film = tmp_path / "film"
    done("sample", scene, "--out", film, "--base", run / "causal" / "weights.safetensors", *QUICK)
    assert whole(film, 4)
    half = run / "causal" / "checkpoint.safetensors"
    half.write_bytes(half.read_bytes()[:1000])
    assert "checkpoint.safetensors: not a readable training checkpoint" in refused(*train, "--steps", 3)


@pytest.mark.slow
def test_scores_are_written(tmp_path, weights):
    both = ["--bidirectional", weights, "--causal", weights]
    done(
        "eval", "puppets", "--scenes", 2, "--seed", 3, "--tasks", "single", "--out", tmp_path / "eval", *both
    )
    alone = ["--bidirectional", "none", *both[both.index("--causal") :]]
    done(
        "eval",
        "puppets",
        "--scenes",
        2,
        "--seed",
        3,
        "--tasks",
        "single",
        "--out",
        tmp_path / "alone",
        *alone,
    )
    scored, only = (
        json.loads((tmp_path / out / "scores.json").read_text())["tasks"]["single"]["runs"]
        for out in ("eval", "alone")
    )
    assert set(scored) == {"bidirectional", "causal"} and set(only) == {"causal"}
    assert {**only["causal"], "seconds": 0} == {**scored["causal"], "seconds": 0}
    assert "no task 'nothing'" in refused(
        "eval", "puppets", "--tasks", "nothing", "--out", tmp_path / "e", *both
    )
    assert longshot("eval", "puppets", "--scenes", 0, "--out", tmp_path / "e", *both).code == 2
