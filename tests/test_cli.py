"""The commands on scene files, and every way their input can be bad: one line, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from commands import (
    QUICK,
    bomb,
    done,
    longshot,
    no_frames,
    pickled,
    picture,
    quick_base,
    refused,
    scene_of,
    write_scene,
)
from longshot.cli.films import mode_for
from longshot.cli.options import FormatName, Options
from longshot.formats import FORMATS
from longshot.scene import Reference, Shot, load_scene


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.yaml", scene_of(3))


def test_help_needs_neither_torch_nor_any_other_heavy_thing():
    heavy = "torch", "numpy", "av", "PIL", "pydantic", "yaml"
    code = f"""
import sys
from longshot.cli import main
try:
    main(["--help"])
except SystemExit as left:
    print([name for name in {heavy} if name in sys.modules], left.code, file=sys.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert ran.stderr.strip() == "[] 0"
    for command in (
        "lint",
        "plan",
        "import",
        "export",
        "sample",
        "extend",
        "interpolate",
        "compose",
        "reshoot",
    ):
        assert f"    {command} " in ran.stdout or f" {command} " in ran.stdout
    assert "train" in ran.stdout and "eval" in ran.stdout


# -- lint ---------------------------------------------------------------------------------------------------------------
def test_lint_leaves_with_0_when_there_is_no_error(scene):
    assert "nothing to say" in done("lint", scene).out


def test_lint_leaves_with_0_and_names_the_words_outside_the_base_world(tmp_path):
    path = write_scene(tmp_path / "s.yaml", scene_of(shots=[Shot(prompt="Character 1 rides a motorcycle.")]))
    out = done("lint", path).out
    assert "shot 1 uses words outside the world of tiny" in out and "motorcycle" in out
    assert f"{path}: 0 errors, 1 warnings" in out


def test_lint_leaves_with_1_and_lists_every_error_by_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        'shots:\n  - prompt: Character 7 waves.\n  - prompt: Wide shot.\n    frames: 5\n  - prompt: ""\n'
    )
    result = longshot("lint", path)
    assert result.code == 1 and f"{path}: 3 errors" in result.out
    for line in (2, 4, 5):
        assert f"{path}:{line}: error: " in result.out


def test_lint_names_references_that_cannot_be_read(tmp_path):
    (tmp_path / "words.png").write_text("a red puppet")
    bomb(tmp_path / "bomb.png")
    references = [
        Reference(role="identity", path=name, character=1)
        for name in ("words.png", "bomb.png", "no.png", "../x.png")
    ]
    shots = [Shot(prompt="Wide shot. Character 1 waves.", references=references)]
    result = longshot("lint", write_scene(tmp_path / "s.yaml", scene_of(shots=shots)))
    assert result.code == 1 and "4 errors" in result.out
    for words in (
        "words.png: not a picture that can be read",
        "pixels",
        "no.png is not there",
        "lies outside",
    ):
        assert words in result.out


BAD_SCENES = {
    "empty": b"",
    "cut off": b"title: A\nshots:\n  - prompt: 'Wide sh",
    "cut off before the shots": b"title: A\ncharacters:\n  - id: 1\n",
    "binary": bytes(range(256)),
    "a list": b"- a\n- b\n",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "cut in quotes": b'shots:\n  - prompt: a\n    cut: "False"\n',
    "deep": b"[" * 5000,
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c]\n"
    b"e: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n",
}


@pytest.mark.parametrize("content", BAD_SCENES.values(), ids=BAD_SCENES)
def test_a_scene_file_that_is_none_is_refused_in_one_line_before_anything_is_made(tmp_path, content):
    path, out = tmp_path / "bad.yaml", tmp_path / "film"
    path.write_bytes(content)
    assert refused("sample", path, "--out", out).startswith(f"{path}:")
    assert refused("export", path, "--format", "lines", "--out", out).startswith(f"{path}:")
    assert longshot("lint", path).code == 1
    assert not out.exists()


def test_a_scene_file_that_is_not_there_is_refused(tmp_path):
    assert "no such file" in refused("sample", tmp_path / "no.yaml", "--out", tmp_path / "film")
    assert "not a file" in refused("sample", tmp_path, "--out", tmp_path / "film")


# -- import and export --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FORMATS)
def test_a_scene_goes_out_to_every_format_and_comes_back(tmp_path, scene, name):
    out = tmp_path / (
        "script" if name == "longlive" else "script.csv" if name == "shotstream" else "script.json"
    )
    assert f"written as {name}" in done("export", scene, "--format", name, "--out", out).out
    back = tmp_path / "back.yaml"
    assert "3 shots" in done("import", out, "--format", name, "--out", back).out
    again = load_scene(back)
    for shot, old in zip(again.shots, load_scene(scene).shots, strict=True):
        assert "waves" in shot.prompt and old.prompt.split(".")[0] in shot.prompt


def test_every_format_can_be_named_on_the_command_line():
    assert set(FORMATS) == set(FormatName.__args__)


def test_an_import_of_something_else_is_refused_and_writes_nothing(tmp_path):
    script, out = tmp_path / "script.json", tmp_path / "s.yaml"
    script.write_text('{"hello": [1, 2')
    for name in ("entitybench", "storymem", "holocine", "shotstream", "longlive"):
        refused("import", script, "--format", name, "--out", out)
    assert not out.exists()
    script.write_text("A cat.")
    assert "must end in .yaml" in refused("import", script, "--format", "lines", "--out", tmp_path / "s.json")


def test_an_imported_scene_cannot_read_outside_its_folder(tmp_path, weights):
    secret = picture(tmp_path / "secret.png")
    folder = tmp_path / "project"
    folder.mkdir()
    for path in ("../secret.png", str(secret)):
        shots = [Shot(prompt="Wide shot.", references=[Reference(role="environment", path=path)])]
        scene = write_scene(folder / "s.yaml", scene_of(shots=shots))
        line = refused("sample", scene, "--out", folder / "film", "--base", weights)
        assert "lies outside" in line and "secret.png" in line
    assert not (folder / "film").exists()


def test_an_export_never_leaves_half_a_file(tmp_path, scene):
    (tmp_path / "taken").mkdir()
    assert "is a folder" in refused("export", scene, "--format", "lines", "--out", tmp_path / "taken")


# -- what a command is asked for ----------------------------------------------------------------------------------------
BAD_OPTIONS = {
    "--window 0": "--window 0",
    "--scale 0": "--scale 0",
    "--scale -1": "--scale -1",
    "--guidance nan": "--guidance nan",
    "--guidance -1": "guidance -1",
    "--shift 0": "shift 0",
    "--steps 0": "0 steps make no picture",
    "--context-sigma 2": "context sigma 2.0 isn't a noise level",
    "--device nonsense": "--device nonsense",
    "--device cuda:77": "--device cuda:77",
    "--given x.png": "write NUMBER=FILE",
    "--given 1=": "write NUMBER=FILE",
    "--given -1=x.png": "write NUMBER=FILE",
    "--given ²=x.png": "write NUMBER=FILE",
    "--given 7=x.png": "no shot 7",
    "--given 1=nothing.png": "nothing.png: no such file",
    "--given 1=a.png 1=b.png": "shot 1 has a.png already",
    "--given 1=a.png --given 01=b.png": "shot 1 has a.png already",
    "--mode causal --history nonsense": "write SHOT:SHOT,SHOT",
    "--mode causal --history 2:x": "write SHOT:SHOT,SHOT",
    "--mode causal --history 9:1": "no shot 9",
    "--mode causal --history 2:3": "isn't an earlier shot",
    "--mode causal --history=": "say recent, relevant, or which",
    "--mode joint --history relevant": "--history: in joint mode",
    "--mode joint --save-context": "--save-context is about the KV cache",
    "--mode bidirectional --reuse-steps": "--reuse-steps is about the KV cache",
    "--mode joint --cache-dtype bf16": "--cache-dtype is about the KV cache, which joint hasn't: give --mode causal",
    "--mode bidirectional --cache-device cpu": "--cache-device is about the KV cache",
    "--mode joint --context-sigma 0.2": "--context-sigma: all shots are made at once and none is given",
    "--mode joint --window 2": "can't all see each other",
}


@pytest.mark.parametrize(("asked", "told"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_what_cannot_be_asked_is_refused_before_anything_is_made(
    tmp_path, scene, weights, monkeypatch, asked, told
):
    monkeypatch.chdir(tmp_path)
    assert told in refused("sample", scene, "--out", tmp_path / "film", "--base", weights, *asked.split())
    assert not (tmp_path / "film").exists()


def test_weights_that_are_none_are_refused(tmp_path, scene, weights):
    def line(name: str) -> str:
        return refused("sample", scene, "--out", tmp_path / "film", "--base", name)

    assert "no base 'nope': use tiny, or a .safetensors file" in line("nope")
    assert "no such weights file" in line(tmp_path / "no.safetensors")
    (tmp_path / "half.safetensors").write_bytes(weights.read_bytes()[:5000])
    assert "not a readable safetensors file" in line(tmp_path / "half.safetensors")
    mark = tmp_path / "exploded"
    assert "not a readable safetensors file" in line(pickled(tmp_path / "pickle.safetensors", mark))
    assert not mark.exists()
    other = quick_base()
    other.config = replace(other.config, network=replace(other.config.network, width=48))
    other.save(tmp_path / "other.safetensors")
    assert "has shape" in line(tmp_path / "other.safetensors")
    assert not (tmp_path / "film").exists()
    assert "no base 'nope'" in refused("lint", scene, "--base", "nope")
    for command in (["sample", scene, "--out", tmp_path / "film"], ["lint", scene], ["plan", scene]):
        line = refused(*command, "--base", tmp_path / "no.safetensors")
        assert line == f"{tmp_path / 'no.safetensors'}: there is no such weights file"
    assert "no weights of it ship" in refused("sample", scene, "--out", tmp_path / "f", "--base", "native-3b")


def test_the_config_of_a_weights_file_is_enough_to_lint_and_to_choose_a_mode(tmp_path, scene, weights):
    """All numbers of a weights file but its header are gone; only loading it fails."""
    raw = weights.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    (tmp_path / "hollow.safetensors").write_bytes(raw[:header] + b"\xff" * (len(raw) - header))
    assert "nothing to say" in done("lint", scene, "--base", tmp_path / "hollow.safetensors").out
    options = Options(base=str(tmp_path / "hollow.safetensors"))
    assert mode_for("auto", load_scene(scene), options, "recent") == "joint"


GIVEN = {
    "no picture": lambda path: path.write_text("a red puppet") and path,
    "half a picture": lambda path: (
        picture(path.with_suffix(".jpg")).write_bytes(picture(path.with_suffix(".jpg")).read_bytes()[:200])
        and path.with_suffix(".jpg")
    ),
    "a bomb": bomb,
    "a video without frames": lambda path: no_frames(path.with_suffix(".mp4")),
    "nothing": lambda path: path.write_bytes(b"") or path,
    "a folder": lambda path: path.mkdir() or path,
}


@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
def test_a_given_file_that_cannot_be_shown_is_refused_by_name(tmp_path, scene, weights, make):
    path = make(tmp_path / "given.png")
    line = refused("sample", scene, "--out", tmp_path / "film", "--base", weights, "--given", f"2={path}")
    assert str(path) in line and not (tmp_path / "film").exists()


def test_a_film_folder_that_cannot_be_one_is_refused(tmp_path, scene, weights):
    (tmp_path / "film").write_text("I am a file")
    line = refused("sample", scene, "--out", tmp_path / "film", "--base", weights, *QUICK)
    assert "could not be written" in line and (tmp_path / "film").read_text() == "I am a file"


def test_films_that_are_none_are_refused(tmp_path, weights):
    for command in (["reshoot", tmp_path, "--shot", 1], ["extend", tmp_path, "--prompt", "A."]):
        assert "no film here" in refused(*command, "--base", weights)
    assert "--prompt: say what happens" in refused("extend", tmp_path, "--prompt", "--base", weights)


def test_interpolation_needs_something_between(tmp_path, weights):
    two = write_scene(tmp_path / "two.yaml", scene_of(2))
    assert "a first, a last and one between" in refused(
        "interpolate", two, "--out", tmp_path / "f", "--base", weights
    )
    seven = write_scene(tmp_path / "seven.yaml", scene_of(7))
    assert "the window holds 6 at once" in refused(
        "interpolate", seven, "--out", tmp_path / "f", "--base", weights
    )


def test_the_first_person_of_a_composition_cannot_be_swapped_at_once(tmp_path, scene, weights):
    one = picture(tmp_path / "one.png")
    pictures = ["--identity", one, "--environment", one, "--swap", f"1={one}"]
    assert "swap from shot 2 on" in refused(
        "compose", scene, "--out", tmp_path / "f", "--base", weights, *pictures
    )


# -- auto ---------------------------------------------------------------------------------------------------------------
IMAGE = Reference(role="identity", path="x.png")


@pytest.mark.parametrize(
    ("shots", "images", "window", "history", "mode", "said"),
    [
        (6, 0, None, "recent", "joint", "the 6 shots and images are made together, in a window of 6"),
        (5, 1, None, "recent", "joint", "the 6 shots and images are made together, in a window of 6"),
        (6, 1, None, "recent", "causal", "7 shots and images are more than the window of 6"),
        (3, 0, 2, "recent", "causal", "each seeing the last 1 before it"),
        (3, 0, None, "3:1", "causal", "each seeing the history you chose"),
        (22, 0, None, "relevant", "causal", "each seeing the history you chose"),
    ],
)
def test_auto_says_what_it_chooses_and_why(capsys, shots, images, window, history, mode, said):
    made = scene_of(shots)
    made.shots[0].references = [IMAGE] * images
    assert mode_for("auto", made, Options(window=window), history) == mode
    printed = capsys.readouterr().out
    assert printed.startswith(f"mode {mode}: ") and said in printed


def test_bases_are_listed(weights):
    out = done("bases").out
    assert out.startswith("tiny: 48x32 at 8 fps") and "native-3b" in out and "ships with longshot" in out


def test_plan_forecasts_a_scene_without_weights(tmp_path, weights):
    picture(tmp_path / "where.png")
    shots = [Shot(prompt="Wide shot.", references=[Reference(role="environment", path="where.png")])] * 2
    scene = write_scene(tmp_path / "scene.yaml", scene_of(shots))
    for base in ("native-3b", weights):
        out = done("plan", scene, "--base", base).out
        assert "shot 1's environment image" in out and "shot 2" in out and "4 shots and images" in out
    assert "no base 'nope'" in refused("plan", scene, "--base", "nope")


def test_a_plan_refuses_what_would_change_nothing(tmp_path):
    scene = write_scene(tmp_path / "scene.yaml", scene_of([Shot(prompt="Wide shot.")]))
    assert "--cache-dtype is about the KV cache" in refused(
        "plan", scene, "--mode", "joint", "--cache-dtype", "bf16"
    )
    assert "give --lora RANK" in refused(
        "train", "puppets", "--out", tmp_path / "run", "--recompute", "always"
    )


def test_a_reader_that_has_had_enough_is_no_error(tmp_path, scene):
    export = f"{sys.executable} -m longshot export {scene} --format lines --out {tmp_path / 'lines.txt'}"
    command = f"{export} | sleep 0; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert ran.stderr == "" and ran.stdout in ("0\n", "1\n")


def test_a_manifest_is_json_that_names_its_scene(tmp_path, scene, weights):
    done("sample", scene, "--out", tmp_path / "film", "--base", weights, *QUICK)
    manifest = json.loads((tmp_path / "film" / "manifest.json").read_text())
    assert manifest["title"] == "A test" and manifest["mode"] == "joint" and manifest["outside_words"] == []
    assert manifest["scene"] == load_scene(scene).model_dump(mode="json")
