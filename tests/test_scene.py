"""Scene files: what they say, the prompts made of them, and the one clear line for each mistake."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot.document import MAX_BYTES, parse_json, parse_yaml
from longshot.errors import UserError
from longshot.scene import (
    Character,
    Scene,
    SceneFileError,
    Shot,
    dump_scene,
    load_scene,
    parse_scene,
    save_scene,
)
from strategies import scenes

CAFE = """\
title: The cafe
characters:
  - id: 1
    name: Mia
    description: a girl in a red coat
  - {id: 2, description: "an old man, grey beard"}
environment: A small cafe by day
story: Character 1 waits for Character 2
shots:
  - prompt: Character 1 sits by the window.
    seconds: 2
  - prompt: >
      Character 1 looks up
      and smiles.
    cut: false
    frames: 17
    audio: "She says: at last!"
"""


def load(tmp_path: Path, text: str, name: str = "scene.yaml") -> Scene:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_scene(path)


def complaint(tmp_path: Path, text: str, name: str = "scene.yaml") -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, name)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/")


def test_a_scene_renders_to_the_two_tier_prompts_of_the_paper(tmp_path: Path):
    scene = load(tmp_path, CAFE)
    assert scene.global_prompt() == (
        "[Character] Character 1: Mia, a girl in a red coat. Character 2: an old man, grey beard. "
        "[Environment] A small cafe by day. [Story] Character 1 waits for Character 2."
    )
    assert scene.shot_prompts() == [
        "[SHOT CUT] Character 1 sits by the window.",
        "Character 1 looks up and smiles.",
    ]


def test_the_example_in_the_docs_renders_as_the_docs_say():
    page = (Path(__file__).resolve().parents[1] / "docs" / "scene-file.md").read_text()
    example, prompts = re.search(r"```yaml\n(.*?)```.*?```\n(.*?)```", page, re.DOTALL).groups()
    scene = parse_scene(parse_yaml(example, "docs"))
    assert [scene.global_prompt(), *scene.shot_prompts()] == prompts.splitlines()


def test_parts_that_are_not_given_leave_no_empty_tag():
    assert Scene(shots=[Shot(prompt="a boat")]).global_prompt() == ""
    assert (
        Scene(story="A boat sinks!", shots=[Shot(prompt="a boat")]).global_prompt() == "[Story] A boat sinks!"
    )
    assert (
        Scene(style="ink", environment="a lake", shots=[Shot(prompt="a")]).global_prompt()
        == "[Environment] a lake. ink."
    )
    assert (
        Scene(characters=[Character(id=3)], shots=[Shot(prompt="a")]).global_prompt()
        == "[Character] Character 3."
    )


def test_audio_and_lengths_are_kept_as_written(tmp_path: Path):
    first, second = load(tmp_path, CAFE).shots
    assert (first.seconds, first.frames, first.cut, first.audio) == (2.0, None, True, None)
    assert (second.seconds, second.frames, second.cut) == (None, 17, False)
    assert second.audio == "She says: at last!"


def test_json_and_yaml_say_the_same(tmp_path: Path):
    text = '{"title": "T\\u00e9", "shots": [{"prompt": "a/b \\ud83d\\ude00", "cut": false, "seconds": 1e0}]}'
    assert load(tmp_path, text, "scene.json") == Scene(
        title="Té", shots=[Shot(prompt="a/b 😀", cut=False, seconds=1.0)]
    )


@given(scenes())
@settings(max_examples=80, deadline=None)
def test_a_scene_that_is_written_reads_back_equal(scene: Scene):
    assert parse_scene(parse_yaml(dump_scene(scene), "scene.yaml")) == scene


def test_a_saved_scene_is_one_a_person_would_write(tmp_path: Path):
    save_scene(load(tmp_path, CAFE), tmp_path / "out" / "scene.yaml")
    text = (tmp_path / "out" / "scene.yaml").read_text()
    assert text.startswith("title: The cafe\ncharacters:\n- id: 1\n  name: Mia\n")
    assert "- prompt: Character 1 sits by the window.\n  cut: true\n  seconds: 2.0\n" in text
    assert "take" not in text and "seed" not in text
    assert load_scene(tmp_path / "out" / "scene.yaml") == load(tmp_path, CAFE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'shots:\n- prompt: a\n  cut: "False"\n',
            "scene.yaml:3: shot 1, cut: must be true or false without quotes",
        ),
        ("shots:\n- prompt: a\n- prompt: b\n  cut: 0\n", "scene.yaml:4: shot 2, cut: must be true or false"),
        (
            "shots:\n- prompt: a\n  cutt: false\n",
            "scene.yaml:3: shot 1, cutt: is not known; did you mean `cut`?",
        ),
        ("shotz:\n- prompt: a\n", "scene.yaml:1: shotz: is not known; did you mean `shots`?"),
        ("shots:\n- prompt: 12\n", "scene.yaml:2: shot 1, prompt: must be text, not 12; put it in quotes"),
        ("shots:\n- prompt:\n", "scene.yaml:2: shot 1, prompt: must be text, not nothing"),
        ("shots:\n- cut: true\n", "scene.yaml:2: shot 1, prompt: is missing"),
        ("shots:\n- prompt: a\n  seconds: 2\n  frames: 9\n", "gives both seconds and frames"),
        ("shots:\n- prompt: a\n  seconds: two\n", "scene.yaml:3: shot 1, seconds: must be a number"),
        ("shots:\n- prompt: a\n  seconds: .nan\n", "scene.yaml:3: holds .nan, which is not a finite number"),
        ("shots:\n- prompt: a\n  seconds: -1\n", "shot 1, seconds: input should be greater than 0, not -1"),
        ("shots:\n- prompt: a\n  frames: 1.5\n", "shot 1, frames: must be a whole number"),
        ("shots:\n- prompt: a\n  frames: true\n", "shot 1, frames: must be a whole number, not true"),
        ("shots: []\n", "scene.yaml:1: shots: is empty; a scene needs at least one shot"),
        ("shots: {}\n", "scene.yaml:1: shots: must be a list"),
        ("shots:\n- a boat\n", "scene.yaml:2: shot 1: must be names with values, not the text"),
        ("characters:\n- id: 1\n- id: 1\nshots:\n- prompt: a\n", "two characters have the id 1"),
        ("characters:\n- {id: 0}\nshots:\n- prompt: a\n", "character 1, id"),
        (
            "shots:\n- prompt: a\n  references:\n  - {role: hero, path: a.png}\n",
            "scene.yaml:4: shot 1, reference 1, role: must be one of identity, environment",
        ),
        (
            "shots:\n- prompt: a\n  references:\n  - {role: video, path: a.mp4, start: 3, stop: 2}\n",
            "stop (2.0 s) must come after start (3.0 s)",
        ),
    ],
)
def test_a_mistake_is_named_by_file_line_and_field(tmp_path: Path, text: str, expected: str):
    assert expected in complaint(tmp_path, text)


def test_every_mistake_is_listed_and_the_first_is_told(tmp_path: Path):
    with pytest.raises(SceneFileError) as caught:
        load(tmp_path, 'title: 3\nshots:\n- prompt: a\n  cut: "no"\n')
    assert [problem.line for problem in caught.value.problems] == [1, 4]
    assert str(caught.value).endswith("(and 1 more; `longshot lint` lists them)")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("", "scene.yaml", "is empty"),
        ("just words", "scene.yaml", "scene.yaml:1: is not a scene"),
        ("title: a\n", "scene.yaml", "scene.yaml:1: shots: is missing; is the file whole?"),
        ('shots:\n- prompt: "a bo', "scene.yaml", "scene.yaml:2: ends in the middle"),
        ("shots:\n- prompt: a\n  cu", "scene.yaml", "scene.yaml:3: ends in the middle"),
        ("shots:\n- {prompt: a, cut: ", "scene.yaml", "scene.yaml:2: ends in the middle"),
        (
            "shots:\n- prompt: a\n  prompt: b\n",
            "scene.yaml",
            "scene.yaml:3: gives 'prompt' twice, first on line 2",
        ),
        ("shots:\n\t- prompt: a\n", "scene.yaml", "scene.yaml:2: is not valid YAML here"),
        ("shots: a\n---\nshots: b\n", "scene.yaml", "found another document"),
        ("title: !!python/name:os.system\n", "scene.yaml", "uses the tag"),
        ("title: \x00\n", "scene.yaml", "scene.yaml:1: holds the character"),
        ("? [a]\n: b\n", "scene.yaml", "has a key that is not text"),
        ("title: 2001-99-99x\nshots: 2001-99-99\n", "scene.yaml", "shots: must be a list"),
        ('{"shots": [{"prompt": "a"', "scene.json", "scene.json:1: ends in the middle; is the file whole?"),
        ('{"shots":\n[{"prompt": "a bo', "scene.json", "scene.json:2: ends in the middle"),
        ('{"shots":\n[{"cut": tr', "scene.json", "scene.json:2: ends in the middle"),
        ('{"shots": 1,\n"shots": 2}', "scene.json", "scene.json:2: gives 'shots' twice, first on line 1"),
        ('{"shots": [{"prompt": "a"}]} x', "scene.json", "holds more after the end"),
        ("{'shots': 1}", "scene.json", "scene.json:1: is not valid JSON"),
        ('{"seed": Infinity}', "scene.json", "not finite"),
        ('{"title": "\\ud800"}', "scene.json", "half of a character"),
        ("[" * 100_000, "scene.json", "nested too deeply"),
        ("[" * 1_500, "scene.yaml", "nested too deeply"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*d]\n", "scene.yaml", "too deeply"),
    ],
)
def test_a_file_that_is_broken_or_half_written_gives_one_clear_line(
    tmp_path: Path, text: str, name: str, expected: str
):
    assert expected in complaint(tmp_path, text, name)


def test_a_yaml_bomb_of_aliases_is_refused_before_it_grows(tmp_path: Path):
    levels = "".join(f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 10)}]\n" for k in range(1, 10))
    assert "repeats itself too often" in complaint(tmp_path, "x0: &x0 [a]\n" + levels)


def test_files_that_cannot_be_text_are_named(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, expected in [
        ("absent.yaml", "no such file"),
        (".", "is not a file"),
        ("latin.yaml", "latin.yaml:1: is not UTF-8 text"),
        ("large.yaml", "larger than 16 MiB"),
        ("a\0b", "no such file"),
    ]:
        with pytest.raises(UserError, match=expected):
            load_scene(tmp_path / name)


def test_words_that_yaml_takes_for_times_and_dates_stay_words(tmp_path: Path):
    scene = load(tmp_path, "title: 12:30\nstory: 2024-01-01\nshots:\n- prompt: a\n")
    assert (scene.title, scene.story) == ("12:30", "2024-01-01")


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
@settings(max_examples=150, deadline=None)
def test_no_content_makes_the_readers_fail_in_another_way_than_a_user_error(content: bytes):
    for parse in (parse_yaml, parse_json):
        try:
            parse_scene(parse(content.decode("utf-8", "ignore"), "scene"))
        except UserError:
            continue


@given(scenes(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_short_anywhere_is_a_scene_or_one_clear_line(scene: Scene, data: st.DataObject):
    text = dump_scene(scene)
    try:
        parse_scene(parse_yaml(text[: data.draw(st.integers(0, len(text)))], "scene.yaml"))
    except UserError as error:
        assert "\n" not in str(error)
