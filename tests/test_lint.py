"""What lint says of a scene: errors that stop a render, and warnings a director wants."""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot.errors import UserError
from longshot.lint import (
    Finding,
    Limits,
    actions_in,
    frames_of,
    is_misspelling,
    lint,
    lint_file,
    scene_frames,
)
from longshot.scene import Character, Reference, Scene, Shot

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.yaml"))
LIMITS = Limits(
    name="tiny",
    fps=Fraction(8),
    frame_step=4,
    frame_offset=1,
    max_frames=49,
    default_frames=17,
    max_text_tokens=24,
    count_tokens=lambda text: len(text.split()),
    outside_words=lambda text: [
        word for word in text.replace(".", "").split() if word in ("Mia", "dragon", "castle")
    ],
)
MIA = Character(id=1, name="Mia", description="a girl in red")
BEN = Character(id=2, name="Ben", description="a boy in blue")


def scene_of(*prompts: str, characters: tuple[Character, ...] = (MIA,)) -> Scene:
    return Scene(characters=list(characters), shots=[Shot(prompt=prompt) for prompt in prompts])


def told(scene: Scene, level: str, *, limits: Limits | None = None) -> list[str]:
    return [f"{one.field}: {one.message}" for one in lint(scene, limits=limits) if one.level == level]


def only(findings: list[str], part: str) -> str:
    (found,) = [finding for finding in findings if part in finding]
    return found


def test_a_good_scene_has_no_findings():
    assert lint(scene_of("Character 1 sits.", "Character 1 waves."), limits=LIMITS) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_have_no_findings_even_for_the_smallest_base(path: Path):
    from longshot.bases.text import TokenTable, outside_words
    from longshot.puppets.words import VOCABULARY

    limits = Limits(
        "tiny",
        Fraction(8),
        4,
        0,
        16,
        12,
        128,
        TokenTable.load().count,
        lambda text: outside_words(text, VOCABULARY),
    )
    assert lint_file(path, limits)[1] == []


def test_a_file_that_holds_no_scene_gives_all_its_problems_as_findings(tmp_path: Path):
    path = tmp_path / "scene.yaml"
    path.write_text('title: 3\nshots:\n- prompt: a\n  cut: "False"\n')
    scene, findings = lint_file(path)
    assert scene is None
    assert [finding.text("scene.yaml") for finding in findings] == [
        "scene.yaml:1: error: title: must be text, not 3; put it in quotes",
        'scene.yaml:4: error: shot 1, cut: must be true or false without quotes, not the text "False"',
    ]
    path.write_text("shots: [")
    assert lint_file(path)[1][0].text("x") == (
        "x:1: error: file: ends in the middle (expected the node content, but found '<stream end>'); is the file whole?"
    )
    assert lint_file(tmp_path / "absent.yaml")[1] == [Finding("error", None, "file", "no such file")]


def test_findings_stand_on_the_line_of_their_field(tmp_path: Path):
    path = tmp_path / "scene.yaml"
    path.write_text(
        "characters:\n- {id: 1, description: red}\nshots:\n- prompt: Character 1 sits.\n"
        "- frames: 50\n  prompt: >\n    Character 3 waits\n    with Character 1.\n"
    )
    _, findings = lint_file(path, LIMITS)
    assert [finding.text("s") for finding in findings] == [
        "s:5: error: shot 2, frames: shot 2 asks for 50 frames; tiny needs 4n+1, 49 at most: use 49",
        "s:6: error: shot 2, prompt: names Character 3, who is not declared (declared: 1)",
    ]


# -- people ------------------------------------------------------------------------------------------------------------


def test_every_way_to_name_an_unknown_character_is_an_error():
    scene = scene_of("Characters 1 and 3 sit. character 4 waves.")
    scene.story = "Character 5 leaves."
    scene.shots[0].references = [Reference(role="identity", path="a.png", character=6)]
    errors = told(scene, "error")
    for number in (3, 4, 5, 6):
        only(errors, f"names Character {number}, who is not declared")
    assert len(errors) == 4
    assert "no characters are declared" in only(
        told(scene_of("Character 1 sits.", characters=()), "error"), "names"
    )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("The man sits.", "`The man`"),
        ("Character 1 greets the old woman.", "`the old woman`"),
        ("He waves.", "`He`"),
        ("Character 1 and Character 2 dance. She smiles.", "`She`"),
    ],
)
def test_people_without_a_number_are_a_warning(prompt: str, words: str):
    warnings = told(scene_of(prompt, "Character 1 with Character 2", characters=(MIA, BEN)), "warning")
    assert f"says {words}; name people by number, such as `Character 1`" in only(
        warnings, "name people by number"
    )


@pytest.mark.parametrize(
    "prompt", ["Character 1 sits. He smiles.", "The manor burns.", "Her hat. Character 1 sits."]
)
def test_a_pronoun_after_one_character_and_words_that_only_look_like_people_are_fine(prompt: str):
    assert told(scene_of(prompt, "Character 1"), "warning") == []


def test_a_script_without_characters_is_told_once_for_all_shots():
    warnings = told(scene_of("The man sits.", "A boat.", "She leaves.", characters=()), "warning")
    assert "shots 1, 3 speak of people, but no character is declared" in only(warnings, "speak of people")


def test_a_look_that_is_never_described_and_a_character_who_is_never_used_are_warnings():
    scene = scene_of("Character 1 sits.", characters=(Character(id=1, name="Mia"), BEN))
    warnings = told(scene, "warning")
    assert "the look of Character 1 (Mia) is never described" in only(warnings, "look")
    assert only(warnings, "declared").startswith(
        "character 2: Character 2 (Ben) is declared, but no shot names them"
    )


def test_a_character_who_is_only_in_a_reference_is_used():
    scene = scene_of("Character 1 sits.", "A field.", characters=(MIA, BEN))
    scene.shots[1].references = [Reference(role="identity", path="ben.png", character=2)]
    assert told(scene, "warning") == []


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("Mya waves to Character 1.", "Mya", "Mia"),
        ("Character 1, mia, sits.", "mia", "Mia"),
        ("Character 1 sees Viktor. Then to Victor goes Character 1.", "Victor", "Viktor"),
    ],
)
def test_a_name_spelled_two_ways_is_a_warning(text: str, first: str, second: str):
    warnings = told(scene_of(text), "warning")
    assert f"spells a name two ways: {first!r} here, {second!r} elsewhere" in only(warnings, "two ways")


@pytest.mark.parametrize(
    "text", ["Then Character 1 sits. The end.", "Mia's hat. Character 1 sits.", "Character 1, Ben."]
)
def test_common_words_and_other_people_are_not_a_second_spelling(text: str):
    theo = Character(id=3, name="Theo", description="a man")
    scene = scene_of(text, "Character 2 and Character 3", characters=(MIA, BEN, theo))
    assert not [finding for finding in told(scene, "warning") if "two ways" in finding]


def test_a_name_in_a_prompt_is_a_warning_that_gives_the_number():
    assert "names Mia; write `Character 1`" in only(
        told(scene_of("Mia sits with Character 1."), "warning"), "names Mia"
    )


@given(st.text("abcdeéß", min_size=3, max_size=10))
def test_a_word_is_never_a_misspelling_of_itself_and_one_more_letter_is(word: str):
    assert not is_misspelling(word, word)
    assert is_misspelling(word + "x", word)


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "actions"),
    [
        ("Character 1 walks in, sits down and opens a letter.", ["walks", "sits", "opens"]),
        ("Character 1 runs, then is waving, then tries to leave.", ["runs", "waving"]),
        ("Character 1 sits at the writing desk beside the walking stick.", ["sits"]),
        ("The waves roll. His runs are long.", []),
        ('A sign says "STOPS HERE, turns, jumps". Character 1 waits.', []),
        ("Character 1 carries a box and walks left.", ["carries", "walks"]),
    ],
)
def test_actions_are_counted_by_their_verbs(prompt: str, actions: list[str]):
    assert actions_in(prompt) == actions


def test_three_actions_in_one_prompt_are_a_warning():
    warnings = told(scene_of("Character 1 walks in, sits down and opens a letter."), "warning")
    assert "tells 3 actions (walks, sits, opens)" in only(warnings, "actions")


def test_an_empty_prompt_and_a_cut_mark_in_a_prompt_are_errors():
    errors = told(scene_of(" ", "[SHOT CUT] Character 1 sits."), "error")
    only(errors, "shot 1 has an empty prompt")
    only(errors, "holds [SHOT CUT], which `cut: true` adds by itself")


def test_a_first_shot_that_continues_nothing_is_a_warning():
    scene = scene_of("Character 1 sits.")
    scene.shots[0].cut = False
    assert "the first shot has nothing to continue" in only(told(scene, "warning"), "shot 1, cut")


# -- what depends on a base --------------------------------------------------------------------------------------------


def test_more_tokens_than_the_base_reads_is_an_error_that_names_the_shot_and_the_counts():
    scene = scene_of("Character 1 sits.", "Character 1 waits " + "very " * 30 + "long.")
    scene.story = "so " * 30
    errors = told(scene, "error", limits=LIMITS)
    assert "shot 2 has 36 tokens; tiny reads 24: shorten it by 12" in only(errors, "shot 2")
    assert "the global prompt" in only(errors, "global prompt") and "tiny reads 24" in only(
        errors, "global prompt"
    )


def test_words_outside_the_world_of_a_base_are_named_shot_by_shot_without_the_names_of_people():
    scene = scene_of("Character 1 sees a dragon.", "Mia meets Character 1.")
    scene.environment = "a castle"
    warnings = told(scene, "warning", limits=LIMITS)
    assert [finding for finding in warnings if "outside the world" in finding] == [
        "environment: the global prompt uses words outside the world of tiny: castle",
        "shot 1, prompt: shot 1 uses words outside the world of tiny: dragon",
    ]


def test_frames_are_taken_as_given_or_refused_with_the_nearest_legal_numbers():
    assert frames_of(Shot(prompt="a"), LIMITS) == 17
    assert frames_of(Shot(prompt="a", frames=21), LIMITS) == 21
    with pytest.raises(UserError, match=r"asks for 20 frames; tiny needs 4n\+1: use 17 or 21"):
        frames_of(Shot(prompt="a", frames=20), LIMITS)
    with pytest.raises(UserError, match="49 at most: use 49"):
        frames_of(Shot(prompt="a", frames=500), LIMITS)
    with pytest.raises(UserError, match="shot 2 asks for 20 frames"):
        scene_frames(Scene(shots=[Shot(prompt="a"), Shot(prompt="b", frames=20)]), LIMITS)


def test_seconds_become_the_nearest_legal_length_and_lint_says_so():
    scene = scene_of("Character 1 sits.", "Character 1 waits.")
    scene.shots[0].seconds, scene.shots[1].seconds = 2.0, 2.125
    assert scene_frames(scene, LIMITS) == [17, 17]
    warning = only(told(scene, "warning", limits=LIMITS), "shot 1, seconds")
    assert (
        "2 s is not a length that tiny has (4n+1 frames at 8 fps): it becomes 17 frames, 2.125 s" in warning
    )
    assert not [finding for finding in told(scene, "warning", limits=LIMITS) if "shot 2" in finding]


def test_a_shot_longer_than_the_window_is_an_error():
    scene = scene_of("Character 1 sits.")
    scene.shots[0].seconds = 10.0
    error = only(told(scene, "error", limits=LIMITS), "shot 1")
    assert "asks for 10 s, 80 frames at 8 fps; tiny holds 49 frames a shot: use 6.125 s or less" in error


@given(st.integers(1, 12), st.integers(0, 11), st.integers(12, 200), st.integers(1, 400))
def test_the_nearest_legal_lengths_are_the_legal_ones_on_both_sides(
    step: int, offset: int, most: int, frames: int
):
    limits = Limits("x", Fraction(8), step, offset % step, most, step, 9, len)
    legal = [count for count in range(1, most + 1) if limits.is_legal(count)]
    below = [count for count in legal if count <= frames][-1:]
    above = [count for count in legal if count > frames][:1]
    assert sorted(limits.nearest(frames)) == sorted(below + above)
    distances = [abs(count - frames) for count in limits.nearest(frames)]
    assert distances == sorted(distances)


# -- references --------------------------------------------------------------------------------------------------------


def referring(
    tmp_path: Path, path: str, readable: Callable[[Path], str | None] | None = None
) -> list[Finding]:
    file = tmp_path / "project" / "scene.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"shots:\n- prompt: a\n  references:\n  - role: environment\n    path: {path!r}\n")
    return lint_file(file, readable=readable)[1]


def test_a_reference_that_is_missing_is_an_error_on_its_line(tmp_path: Path):
    (finding,) = referring(tmp_path, "room.png")
    assert finding.text("s") == (
        "s:5: error: shot 1, reference 1, path: room.png is not there; "
        "paths are relative to the folder of the scene file"
    )
    (folder,) = referring(tmp_path, ".")
    assert folder.message == ". is not a file"


@pytest.mark.parametrize("path", ["/etc/passwd", "../room.png", "a/../../room.png", "out/room.png"])
def test_a_reference_outside_the_folder_of_the_scene_is_refused(tmp_path: Path, path: str):
    (tmp_path / "room.png").touch()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "out").symlink_to(tmp_path)
    (finding,) = referring(tmp_path, path)
    assert finding.level == "error" and "lies outside" in finding.message


def test_what_the_reader_of_pictures_says_is_passed_on(tmp_path: Path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "room.png").touch()
    assert referring(tmp_path, "room.png", lambda path: None) == []
    (finding,) = referring(tmp_path, "room.png", lambda path: f"{path.name} is not a picture")
    assert finding.message == "room.png is not a picture"


def test_lint_and_the_formats_do_without_torch():
    code = "import sys, longshot.lint, longshot.formats; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
