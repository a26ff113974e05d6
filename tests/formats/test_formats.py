"""Scripts of other projects: what comes in goes out the same, and nothing is lost without being named."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshot.errors import UserError
from longshot.formats import FORMATS, export_scene, import_scene
from longshot.formats.source import not_held
from longshot.lint import lint
from longshot.scene import Character, Reference, Scene, Shot, load_scene, save_scene
from strategies import plain_scenes, scenes

# What each format holds of a scene, by the ending of the exported file.
HELD = {
    ("entitybench", "x.json"): dict(cast=True, place=True, story=True, cuts=True, frames=False),
    ("storymem", "x.json"): dict(cast=True, place=True, story=True, cuts=True, frames=False),
    ("holocine", "x.json"): dict(cast=True, place=True, story=True, cuts=False, frames=True),
    ("holocine", "x.txt"): dict(cast=True, place=True, story=True, cuts=False, frames=False),
    ("shotstream", "x.csv"): dict(cast=True, place=True, story=True, cuts=False, frames=True),
    ("shotstream", "x.json"): dict(cast=True, place=True, story=True, cuts=False, frames=False),
    ("longlive", "x"): dict(cast=False, place=False, story=False, cuts=True, frames=False),
    ("echoshot", "x.json"): dict(cast=False, place=False, story=False, cuts=False, frames=False),
    ("echoshot", "x.txt"): dict(cast=False, place=False, story=True, cuts=False, frames=False),
    ("cinetrans", "x.yaml"): dict(cast=False, place=False, story=False, cuts=False, frames=False),
    ("lines", "x.txt"): dict(cast=False, place=False, story=False, cuts=True, frames=False),
}
CAFE = Scene(
    title="The cafe",
    seed=3,
    characters=[
        Character(id=1, name="Mia", description="a girl in red"),
        Character(id=2, description="an old man"),
    ],
    environment="A cafe by day",
    story="Character 1 waits.",
    shots=[
        Shot(prompt="Character 1 sits.", seconds=2.0),
        Shot(prompt="Character 2 enters.", cut=False, audio="hm", take=2),
        Shot(prompt="They talk.", references=[Reference(role="environment", path="cafe.png")]),
    ],
)


def reread(scene: Scene, format: str, name: str) -> tuple[Scene, list[str]]:
    """Export and import without a disk."""
    module = FORMATS[format]
    again, _ = module.parse(module.dump(scene, Path(name)))
    return again, not_held(scene, again, format)


@pytest.mark.parametrize(("format", "name"), HELD)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_scene_comes_back_whole_from_a_format_that_holds_its_parts(
    format: str, name: str, data: st.DataObject
):
    scene = data.draw(plain_scenes(**HELD[format, name]))
    again, lost = reread(scene, format, name)
    assert lost == []
    bare = [shot.model_copy(update={"extra": {}}) for shot in again.shots]
    assert again.model_copy(update={"shots": bare, "extra": {}}) == scene


@pytest.mark.parametrize(("format", "name"), HELD)
@given(scene=scenes())
@settings(max_examples=25, deadline=None)
def test_any_scene_is_exported_with_all_losses_named_or_refused_in_one_line(
    format: str, name: str, scene: Scene
):
    try:
        again, lost = reread(scene, format, name)
    except UserError:
        return
    if not lost:
        bare = {"extra": {}}
        shots = [[shot.model_copy(update=bare) for shot in one.shots] for one in (scene, again)]
        assert shots[0] == shots[1]
        assert scene.characters == again.characters and scene.story == again.story


FILES = {"longlive": "000001.json", "shotstream": "x.csv", "cinetrans": "x.yaml", "lines": "x.txt"}


@pytest.mark.parametrize("format", FORMATS)
@given(
    content=st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "ignore"))
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_makes_an_import_fail_in_another_way_than_a_user_error(
    tmp_path: Path, format: str, content: bytes
):
    folder = tmp_path / "sample"
    folder.mkdir(exist_ok=True)
    file = folder / FILES.get(format, "x.json")
    file.write_bytes(content)
    try:
        import_scene(folder if format == "longlive" else file, format)
    except UserError as error:
        assert "\n" not in str(error)


@st.composite
def damaged(draw: st.DrawFn, content: Any) -> Any:
    """A JSON value with one part replaced, dropped or doubled."""
    odd = st.sampled_from([None, True, -1, 0, 2**70, 1.5, "", "x", "[1]", [], [[]], {}, {"name": 1}])
    if not isinstance(content, (list, dict)) or not content or draw(st.integers(0, 4)) == 0:
        return draw(odd)
    if isinstance(content, list):
        k = draw(st.integers(0, len(content) - 1))
        return draw(
            st.sampled_from([content[:k], content + content[k:], [*content[:k], draw(damaged(content[k]))]])
        )
    key = draw(st.sampled_from(sorted(content)))
    return {**content, key: draw(damaged(content[key]))}


@pytest.mark.parametrize("format", ["entitybench", "storymem", "holocine", "shotstream", "echoshot"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_script_with_a_part_damaged_is_read_or_refused_in_one_line(format: str, data: st.DataObject):
    module = FORMATS[format]
    (text,) = module.dump(CAFE, Path("x.json")).values()
    try:
        scene, _ = module.parse({"x.json": json.dumps(data.draw(damaged(json.loads(text))))})
    except UserError as error:
        assert "\n" not in str(error)
    else:
        reread(scene, format, "x.json")


def test_a_scene_of_every_part_tells_what_each_format_loses(tmp_path: Path):
    losses = {
        (format, name): export_scene(CAFE, tmp_path / f"{format}-{name}", format) for format, name in HELD
    }
    always = {"seed", "seconds of shot 1", "references of shot 3", "take of shot 2", "audio of shot 2"}
    for lost in losses.values():
        assert always <= set(lost)
    assert set(losses["entitybench", "x.json"]) == always
    assert set(losses["lines", "x.txt"]) == always | {
        "title",
        "environment",
        "story",
        "the list of characters",
    }
    assert "cut of shot 2" in losses["holocine", "x.json"]
    assert "cut of shot 2" not in losses["longlive", "x"]


@pytest.mark.parametrize("format", ["entitybench", "storymem", "shotstream"])
def test_the_samples_come_back_word_for_word_even_by_way_of_a_scene_file(
    shared_data: Path, tmp_path: Path, format: str
):
    for sample in sorted((shared_data / "scripts" / format).glob("*.json")):
        scene, _ = import_scene(sample, format)
        save_scene(scene, tmp_path / "scene.yaml")
        assert load_scene(tmp_path / "scene.yaml") == scene
        assert export_scene(load_scene(tmp_path / "scene.yaml"), tmp_path / "out.json", format) == []
        assert json.loads((tmp_path / "out.json").read_text()) == json.loads(sample.read_text())
        assert not [finding for finding in lint(scene) if finding.level == "error"]


def test_an_episode_of_several_scenes_keeps_order_and_cuts(shared_data: Path):
    for sample in sorted((shared_data / "scripts" / "entitybench").glob("*.json")):
        content = json.loads(sample.read_text())
        scene, notes = import_scene(sample, "entitybench")
        assert [shot.cut for shot in scene.shots] == [
            cut for part in content["scenes"] for cut in part["cut"]
        ]
        bodies = [text for part in content["scenes"] for text in part["action_descriptions"]]
        names = {one.id: one.name for one in scene.characters}
        for shot, body in zip(scene.shots, bodies, strict=True):
            told = shot.prompt
            for number, name in names.items():
                told = told.replace(f"Character {number}", name)
            assert told.endswith(body)
        people = [
            one["name"] for label, one in content["entity_descriptions"].items() if label.startswith("Char")
        ]
        assert [one.name for one in scene.characters] == people
        assert any("entity_schedule" in note for note in notes)


def test_a_table_gives_the_lengths_and_finds_the_captions_beside_it(shared_data: Path, tmp_path: Path):
    scene, _ = import_scene(shared_data / "scripts" / "shotstream" / "sample.csv", "shotstream")
    assert [shot.frames for shot in scene.shots] == [56, 58, 16, 25, 80]
    assert export_scene(scene, tmp_path / "out.csv", "shotstream") == []
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert json.loads(row["frame_number"])[-1] == [170, 250]
    assert row["video_path"] == "demo/data/sample/0001.mp4"
    assert import_scene(tmp_path / "out.csv", "shotstream")[0] == scene


def test_one_of_several_lists_is_chosen_by_its_index(shared_data: Path, tmp_path: Path):
    sample = shared_data / "scripts" / "echoshot" / "eval_en_first3.json"
    with pytest.raises(UserError, match="holds 3 lists; choose one with an index from 1 to 3"):
        import_scene(sample, "echoshot")
    with pytest.raises(UserError, match="the index 4 names none of them"):
        import_scene(sample, "echoshot", index=4)
    scene, notes = import_scene(sample, "echoshot", index=2)
    assert notes == ["lists other than 2 of 3"]
    assert export_scene(scene, tmp_path / "out.json", "echoshot") == []
    assert json.loads((tmp_path / "out.json").read_text()) == [json.loads(sample.read_text())[1]]


# -- stories in scenes -------------------------------------------------------------------------------------------------

STORY = """{
  // JSON5: comments, single quotes, trailing commas
  story_name: 'Rain', story_overview: "Ann meets Bo.", author: "x",
  scenes: [
    {scene_num: 7, mood: "grey", video_prompts: [
      "Ann: Woman in a blue coat.\\nThe Old Pier: A wooden pier in the rain.\\nthe lamp: A brass lamp.\\n\\nAnn lights the lamp.",
      "Bo: Man in a hat.\\nBo waves to Ann. Annabel's boat passes."],
     cut: ["True", "False"], first_frame_prompt: ["a", "b"]},
    {scene_num: 8, video_prompts: ["Camera: slow pan.\\nThe sea."], cut: [false,]},
  ],
}"""


def story(text: str = STORY) -> tuple[Scene, list[str]]:
    return FORMATS["storymem"].parse({"story.json": text})


def test_definitions_become_characters_and_places_and_objects_stay_with_their_prompt():
    scene, _ = story()
    assert [(one.id, one.name, one.description) for one in scene.characters] == [
        (1, "Ann", "Woman in a blue coat."),
        (2, "Bo", "Man in a hat."),
    ]
    assert scene.environment == "The Old Pier: A wooden pier in the rain."
    assert scene.story == "Character 1 meets Character 2."
    assert [shot.prompt for shot in scene.shots] == [
        "the lamp: A brass lamp.\nCharacter 1 lights the lamp.",
        "Character 2 waves to Character 1. Annabel's boat passes.",
        "Camera: slow pan.\nThe sea.",
    ]


def test_the_texts_true_and_false_of_a_story_are_read_as_flags_and_said():
    scene, notes = story()
    assert [shot.cut for shot in scene.shots] == [True, False, False]
    assert "the cut flag of shots 1, 2 is a text; it was read as true or false" in notes
    with pytest.raises(UserError, match=r"scene 1, cut 2 must be true or false"):
        story(STORY.replace('"False"', '"no"'))


def test_a_story_comes_back_as_it_was_and_an_edit_changes_only_its_shot():
    scene, _ = story()
    dump = FORMATS["storymem"].dump
    original = json.loads(dump(scene, Path("x.json"))["x.json"])
    assert original["author"] == "x"
    assert original["scenes"][0]["mood"] == "grey" and original["scenes"][0]["scene_num"] == 7
    assert original["scenes"][0]["cut"] == ["True", "False"]
    scene.shots[1].prompt = "Character 2 leaves."
    edited = json.loads(dump(scene, Path("x.json"))["x.json"])
    assert edited["scenes"][0]["video_prompts"][1] == "Bo: Man in a hat.\nBo leaves."
    edited["scenes"][0]["video_prompts"][1] = original["scenes"][0]["video_prompts"][1]
    assert edited == original


def test_a_second_look_of_the_same_person_and_what_people_say_stay_in_the_prompt(shared_data: Path):
    scene, _ = story(
        STORY.replace("The sea.", "Ann sits.").replace("Camera: slow pan.", "Ann: Woman in a red dress.")
    )
    assert scene.characters[0].description == "Woman in a blue coat."
    assert scene.shots[2].prompt == "Character 1: Woman in a red dress.\nCharacter 1 sits."
    sample = min((shared_data / "scripts" / "entitybench").glob("*.json"))
    content = json.loads(sample.read_text())
    content["scenes"][0]["video_prompts"][1] = "Victor: Good evening.\nVictor bows."
    scene, _ = FORMATS["entitybench"].parse({"x": json.dumps(content)})
    assert scene.shots[1].prompt == "Character 2: Good evening.\nCharacter 2 bows."


def test_a_new_look_is_written_into_the_definitions():
    scene, _ = story()
    scene.characters[0].description = "Woman in a red coat."
    again, lost = reread(scene, "storymem", "x.json")
    assert again.characters[0].description == "Woman in a red coat."
    assert lost == []


def test_what_was_kept_for_another_format_is_named_as_lost():
    scene, _ = story()
    assert {"what was kept from storymem", "where one scene of the story ends and the next begins"} <= set(
        reread(scene, "holocine", "x.json")[1]
    )
    assert reread(scene, "entitybench", "x.json")[1] == ["what was kept from storymem"]


def test_shots_that_are_added_stay_in_the_scene_of_the_shot_before():
    scene, _ = story()
    scene.shots.insert(2, Shot(prompt="Character 1 smiles.", cut=False))
    content = json.loads(FORMATS["storymem"].dump(scene, Path("x.json"))["x.json"])
    assert [len(part["video_prompts"]) for part in content["scenes"]] == [3, 1]
    assert content["scenes"][0]["video_prompts"][2] == "Ann smiles."


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("cut: [false,]", "cut: []", "scene 2, cut gives 0 flags for 1 video_prompts"),
        ("scenes:", "parts:", "lacks 'scenes'"),
        ("first_frame_prompt", "fi rst", "x.json:8: is not valid JSON5"),
        ("],\n}", "", "is the file whole"),
        ("author:", "story_name:", "Duplicate key"),
        ("'Rain'", "Infinity", "not finite"),
        ("'Rain'", "7", "story_name must be text"),
    ],
)
def test_a_broken_story_is_told_in_one_line(tmp_path: Path, old: str, new: str, expected: str):
    (tmp_path / "x.json").write_text(STORY.replace(old, new))
    with pytest.raises(UserError) as caught:
        import_scene(tmp_path / "x.json", "storymem")
    assert expected in str(caught.value)


# -- HoloCine ----------------------------------------------------------------------------------------------------------

BALL = {
    "global_caption": "The scene is set in a lavish ballroom. [character1] is a woman with a sleek bob. Her mask is silver. "
    "A dapper gentleman, [character2], in a black tuxedo. They dance all night. This scene contains 3 shots.",
    "shot_captions": [
        "[character1] stands by a pillar. ",
        "[character2] bows to [Character 1].",
        "[character3] claps.",
    ],
    "num_frames": 81,
    "shot_cut_frames": [37, 60],
    "seed": 4,
}
PAINTER = (
    "[global caption] A painter, [character1], with red hair. This scene contains 3 shots. [per shot caption] "
    "[character1] paints. | [shot cut] Her hand. [shot cut] A smile."
)


def holocine(content: Any) -> Scene:
    text = content if isinstance(content, str) else json.dumps(content)
    return FORMATS["holocine"].parse({"x": text})[0]


def test_the_sentences_of_a_global_caption_become_who_where_and_what():
    scene = holocine(BALL)
    assert [(one.id, one.description) for one in scene.characters] == [
        (1, "a woman with a sleek bob. Her mask is silver."),
        (2, "A dapper gentleman in a black tuxedo. They dance all night."),
        (3, ""),
    ]
    assert scene.environment == "The scene is set in a lavish ballroom."
    assert [shot.prompt for shot in scene.shots] == [
        "Character 1 stands by a pillar. ",
        "Character 2 bows to Character 1.",
        "Character 3 claps.",
    ]
    assert [shot.frames for shot in scene.shots] == [37, 23, 21]


def test_structured_and_raw_captions_come_back_word_for_word():
    assert json.loads(FORMATS["holocine"].dump(holocine(BALL), Path("x.json"))["x.json"]) == BALL
    assert FORMATS["holocine"].dump(holocine(PAINTER), Path("x.txt"))["x.txt"].strip() == PAINTER
    raw = {"prompt": PAINTER, "num_frames": 81}
    assert json.loads(FORMATS["holocine"].dump(holocine(raw), Path("x.json"))["x.json"]) == raw


def test_a_bar_before_a_cut_is_not_part_of_the_shot():
    assert [shot.prompt for shot in holocine(PAINTER).shots] == [
        "Character 1 paints.",
        "Her hand.",
        "A smile.",
    ]
    assert holocine(PAINTER).characters == [Character(id=1, description="A painter with red hair.")]


def test_an_edited_caption_is_written_anew_with_marks():
    scene = holocine(BALL)
    scene.story = "Character 1 leaves at midnight."
    caption = json.loads(FORMATS["holocine"].dump(scene, Path("x.json"))["x.json"])["global_caption"]
    assert "[character1] is a woman with a sleek bob." in caption
    assert caption.endswith("Story: [character1] leaves at midnight. This scene contains 3 shots.")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"shot_cut_frames": [37]},
            "shot_cut_frames gives 1 cuts for 3 shots; it needs one fewer than shots",
        ),
        ({"shot_cut_frames": [60, 37]}, "must go up"),
        ({"shot_cut_frames": [37, 90]}, "must go up"),
        ({"num_frames": "81"}, "num_frames must be a whole number"),
        ({"shot_captions": []}, "holds no shots"),
        ({"shot_captions": ["a", 2, "c"]}, "shot_caption 2 must be text"),
    ],
)
def test_lengths_that_do_not_fit_the_shots_are_refused(change: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        holocine({**BALL, **change})
    assert expected in str(caught.value)


# -- the others --------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, path: str, frames: str = "") -> Path:
    (tmp_path / "t.csv").write_text(f'shot_num_from_caption,json_path,frame_number\n2,{path},"{frames}"\n')
    (tmp_path / "c.json").write_text('{"global_caption": "g", "shot2": "b", "shot1": "a"}')
    return tmp_path / "t.csv"


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.json", "~/../../x.json"])
def test_a_table_cannot_name_captions_outside_its_folder(tmp_path: Path, path: str):
    with pytest.raises(UserError, match=r"lies outside|is not there"):
        import_scene(table(tmp_path, path), "shotstream")


def test_a_link_in_the_folder_cannot_lead_out_of_it(tmp_path: Path):
    (tmp_path / "secret.json").write_text('{"shot1": "secret"}')
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="lies outside"):
        import_scene(table(tmp_path / "in", "link.json"), "shotstream")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("[[0, 5]]", "frame_number gives 1 spans for 2 shots"),
        ("[[0, 5], [9, 7]]", "not a list of spans"),
        ("[[0, 5], [5", "not a list of spans"),
        ("__import__('os')", "not a list of spans"),
    ],
)
def test_spans_that_do_not_fit_are_refused(tmp_path: Path, frames: str, expected: str):
    with pytest.raises(UserError, match=expected):
        import_scene(table(tmp_path, "c.json", frames), "shotstream")


def test_spans_may_be_written_as_python_tuples(tmp_path: Path):
    scene, _ = import_scene(table(tmp_path, "some/where/c.json", "[(0, 5), (5, 12)]"), "shotstream")
    assert [(shot.prompt, shot.frames) for shot in scene.shots] == [("a", 5), ("b", 7)]


def test_a_gap_in_the_numbers_of_shots_is_refused():
    with pytest.raises(UserError, match="goes on with shot3 where shot2 should come"):
        FORMATS["shotstream"].parse({"x.json": '{"shot1": "a", "shot3": "b"}'})


def longlive(root: Path, captions: dict[str, Any], durations: str | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, caption in captions.items():
        (root / f"{name}.json").write_text(
            json.dumps(caption if isinstance(caption, dict) else {"caption": caption})
        )
    if durations is not None:
        (root / "shot_durations.txt").write_text(durations)
    return root


CAPTIONS = {
    "0": "A lab.",
    "1": "It rolls.",
    "2": "The scene transitions. A roof.",
    "10": {"caption": "A bird.", "fps": 16},
}


def test_captions_sort_by_number_and_a_prefix_is_a_cut(tmp_path: Path):
    folder = longlive(tmp_path / "set" / "caption" / "one", CAPTIONS, "2, 2 4\n1")
    (tmp_path / "set" / "video" / "one").mkdir(parents=True)
    scene, notes = import_scene(tmp_path / "set", "longlive")
    assert [(shot.prompt, shot.cut) for shot in scene.shots] == [
        ("A lab.", True),
        ("It rolls.", False),
        ("A roof.", True),
        ("A bird.", False),
    ]
    assert any("shot_durations.txt" in note for note in notes) and any("videos" in note for note in notes)
    assert export_scene(scene, tmp_path / "out", "longlive") == []
    for file in sorted(folder.glob("*.json")):
        assert json.loads((tmp_path / "out" / file.name).read_text()) == json.loads(file.read_text())
    assert (tmp_path / "out" / "shot_durations.txt").read_text().split() == ["2", "2", "4", "1"]


def test_one_sample_of_several_is_chosen_by_its_index(tmp_path: Path):
    longlive(tmp_path / "a", {"0": "first"})
    longlive(tmp_path / "b", {"0": "second"})
    with pytest.raises(UserError, match="holds 2 samples"):
        import_scene(tmp_path, "longlive")
    assert import_scene(tmp_path, "longlive", index=2)[0].shots[0].prompt == "second"


@pytest.mark.parametrize(
    ("captions", "durations", "expected"),
    [
        ({"0": "a"}, "1 2", "gives 2 durations for 1 captions"),
        ({"0": "a"}, "x", "'x' is not a whole number"),
        ({"0": {"text": "a"}}, None, "lacks 'caption'"),
        ({}, None, "holds no samples"),
    ],
)
def test_a_sample_that_is_not_whole_is_refused(
    tmp_path: Path, captions: Any, durations: str | None, expected: str
):
    with pytest.raises(UserError, match=expected):
        import_scene(longlive(tmp_path / "a", captions, durations), "longlive")


def test_an_export_does_not_mix_with_the_captions_of_another(tmp_path: Path):
    longlive(tmp_path / "out", {"000009": "old"})
    with pytest.raises(UserError, match=r"holds 000009\.json, which is not of this scene"):
        export_scene(CAFE, tmp_path / "out", "longlive")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["000009.json"]


@pytest.mark.parametrize(
    "text",
    ["[1] A cat. [2] A dog.\n", "[1]A cat.[2]A dog.", '"[1] A cat. [2] A dog."', '["A cat.", "A dog."]'],
)
def test_numbered_and_listed_prompts_say_the_same(text: str):
    scene, _ = FORMATS["echoshot"].parse({"x": text})
    assert [shot.prompt for shot in scene.shots] == ["A cat.", "A dog."]


def test_numbers_out_of_order_are_refused():
    with pytest.raises(UserError, match=r"has \[3\] where \[2\] should come"):
        FORMATS["echoshot"].parse({"x": "[1] a [3] b"})


def test_a_file_of_cap_list_keeps_its_times():
    text = '{"inner_t": [[7, 8]], "cap_list": [["a", "b"]]}'
    scene, notes = FORMATS["echoshot"].parse({"x.json": text})
    assert notes == ["inner_t: kept for export, not used"]
    assert json.loads(FORMATS["echoshot"].dump(scene, Path("x.json"))["x.json"]) == json.loads(text)
    with pytest.raises(UserError, match="one number for each of the 2 prompts"):
        FORMATS["echoshot"].parse({"x.json": '{"inner_t": [[7]], "cap_list": [["a", "b"]]}'})


@pytest.mark.parametrize(
    "content",
    [
        {"task": "t2v", "size": "832*480", "prompt": ["She stands.", "She sits."], "seed": 42, "image": None},
        {"shot_mask": [[False]], "prompt": {"general_caption": "A flower.", "shot_info": [32, 32]}},
    ],
)
def test_a_configuration_comes_back_with_everything_beside_the_prompts(content: dict[str, Any]):
    scene, notes = FORMATS["cinetrans"].parse({"x.yaml": yaml.safe_dump(content)})
    assert len(scene.shots) == 2 and notes
    assert yaml.safe_load(FORMATS["cinetrans"].dump(scene, Path("x.yaml"))["x.yaml"]) == content


def test_lines_continue_where_others_are_marked_as_cuts():
    parse: Callable[..., Any] = FORMATS["lines"].parse
    assert [shot.cut for shot in parse({"x": "a\n\n  b \n"})[0].shots] == [True, True]
    scene, _ = parse({"x": "[SHOT CUT] a\nb\n"})
    assert [(shot.prompt, shot.cut) for shot in scene.shots] == [("a", True), ("b", False)]


def test_an_unknown_format_and_a_missing_file_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="'avi' is not a format; choose one of entitybench"):
        import_scene(tmp_path, "avi")
    for format in FORMATS:
        with pytest.raises(UserError, match=r"no such file|is not a folder"):
            import_scene(tmp_path / "absent", format)


def test_a_scene_that_would_not_be_read_back_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written as echoshot"):
        export_scene(Scene(shots=[Shot(prompt="see [7]")]), tmp_path / "out.txt", "echoshot")
    assert list(tmp_path.iterdir()) == []
