"""Captions from a server that fails in every way servers do; nothing is lost, nothing is paid for twice."""

import json
import logging
import time
from itertools import pairwise
from pathlib import Path

import pytest
from captioner import (
    Book,
    captioner,
    changes,
    describe,
    described,
    fails,
    hangs,
    hangs_up,
    says,
    sends,
)
from made_scenes import colour_film, colour_scenes, scene_row

from longshot.data.captions import CaptionedScene, Captions, CaptionSettings, cuts_of
from longshot.data.engine import LocalEngine
from longshot.data.journal import read_rows
from longshot.data.records import SceneRow
from longshot.data.runner import StageReport, run_stage
from longshot.data.stage import Place
from longshot.errors import UserError

KEY = "sk-very-secret-0123456789"
QUICK = {"model": "little", "first_wait_s": 0.01, "timeout_s": 5, "attempts": 4, "concurrency": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return colour_scenes(tmp_path_factory.mktemp("film"), 4)


@pytest.fixture
def place(made, tmp_path) -> Place:
    return Place(tmp_path / "out", made[0].films_root)


@pytest.fixture
def rows(made):
    return made[1]


@pytest.fixture
def book():
    with captioner() as book:
        yield book


def stage(place: Place, book: Book | None = None, **settings) -> Captions:
    address = {"endpoint": book.url} if book else {}
    return Captions(CaptionSettings(**(QUICK | address | settings)), place, api_key=KEY)


def run(stage: Captions, rows) -> tuple[StageReport, list[CaptionedScene]]:
    report = run_stage(stage, rows, LocalEngine())
    return report, [
        CaptionedScene.of(row) for row in read_rows(stage.place.folder("captions") / "rows.jsonl")
    ]


def test_every_scene_gets_the_captions_of_its_own_frames(place, rows, book):
    report, scenes = run(stage(place, book), rows)
    assert not report.failures and len(scenes) == 4
    assert [scene.caption.prompts for scene in scenes[:2]] == [
        ("Character 1 in red.", "Character 1 in green."),
        ("Character 1 in blue.", "Character 1 in grey."),
    ]
    assert scenes[0].caption_model == "little-captioner-1"
    assert scenes[0].film.licence == "CC0-1.0" and scenes[0].shots == SceneRow.of(rows[0]).shots
    request = book.requests[0]
    pictures = [part for part in request["messages"][1]["content"] if part["type"] == "image_url"]
    assert len(pictures) == 6 and request["model"] == "little"
    assert request["response_format"]["json_schema"]["schema"]["required"] == [
        "characters", "environment", "story", "shots"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "failure",
    [
        fails(500),
        fails(503, headers={"retry-after": "0"}),
        fails(429, headers={"retry-after": "0.05"}),
        hangs_up,
        sends(b'{"choices": [{"mess'),
        sends(b"{}"),
        sends(b'{"choices": []}'),
        sends(b"[1, 2]"),
        sends(b"<html>busy</html>", "text/html"),
    ],
)
def test_a_failure_that_passes_is_tried_again(place, rows, book, failure):
    book.acts = [failure, failure]
    report, scenes = run(stage(place, book, concurrency=1), rows[:1])
    assert not report.failures and len(scenes) == 1
    assert len(book.requests) == 3


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(place, rows, book):
    book.acts = [hangs(1.5)]
    report, scenes = run(stage(place, book, timeout_s=0.3), rows[:1])
    assert not report.failures and len(scenes) == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (fails(500, "out of memory"), "the last: 500 out of memory"),
        (hangs_up, r"the last: the connection failed \(.+\)"),
        (sends(b'{"choices": [{"mess'), r"the last: its answer isn't JSON \(.+\)"),
        (sends(b"{}"), "the last: its answer holds no choices: is this an OpenAI-compatible endpoint"),
    ],
)
def test_a_server_that_keeps_failing_is_named_with_the_scene_and_the_next_run_asks_again(
    place, rows, book, failure, reason
):
    book.acts = [failure] * 4
    report, scenes = run(stage(place, book, concurrency=1), rows[:2])
    assert [f.name for f in report.failures] == ["scene-0"] and [s.id for s in scenes] == ["scene-1"]
    with pytest.raises(UserError, match=rf"^no answer from {book.url} after 4 attempts; {reason}"):
        raise UserError(report.failures[0].error)
    report, scenes = run(stage(place, book, concurrency=1), rows[:2])
    assert not report.failures and report.reused == 1 and [s.id for s in scenes] == ["scene-0", "scene-1"]


def test_a_server_that_is_not_there_is_named(place, rows):
    with captioner() as book:
        url = book.url
    report, _ = run(stage(place, None, endpoint=url, attempts=2), rows[:1])
    assert (
        f"no answer from {url} after 2 attempts; the last: the connection failed" in report.failures[0].error
    )


def no_shot_2(answer):
    del answer["shots"][1]


def wrong_id(answer):
    answer["shots"][0]["prompt"] = "Character 7 waves."


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (changes(no_shot_2), '"shots" has 1 entries; the scene has 2 shots'),
        (changes(wrong_id), "shot 1 names Character 7, who isn't among the characters"),
        (says('{"characters": [{"id": 1, "descr'), "it isn't whole JSON"),
        (says("I can't see any pictures."), "it holds no JSON object"),
        (says(""), "it is empty"),
        (says('{"characters": [', "length"), "it was cut off at 2000 tokens; be shorter"),
    ],
)
def test_an_answer_that_is_no_caption_goes_back_with_what_is_wrong(place, rows, book, bad, told):
    book.acts = [bad]
    report, scenes = run(stage(place, book), rows[:1])
    assert not report.failures and len(scenes) == 1
    assert len(report.notes) == 1 and "was put right by the captioner" in report.notes[0]
    again = book.requests[1]["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert told in again[3]["content"]


def test_a_scene_without_a_usable_answer_is_set_aside_with_all_its_answers(place, rows, book):
    book.acts = [says("no"), says("still no"), says("never")]
    report, scenes = run(stage(place, book, concurrency=1), rows[:2])
    assert [s.id for s in scenes] == ["scene-1"]
    error = report.failures[0].error
    assert error.startswith(
        "scene scene-0: no usable caption in 3 answers; the last: it holds no JSON object."
    )
    file = place.out / error.partition("All are in ")[2]
    assert [entry["answer"] for entry in json.loads(file.read_text())] == ["no", "still no", "never"]


def test_small_repairs_are_noted_in_the_report(place, rows, book):
    book.acts = [changes(lambda answer: answer.update(mood="calm"))]
    report, _ = run(stage(place, book), rows[:1])
    assert report.notes == ["scene scene-0: left out: mood"]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "is the API key right?"),
        (404, "does it serve the model 'little'?"),
        (403, "see what your account may do"),
    ],
)
def test_a_wrong_key_or_model_stops_all_further_requests(place, rows, book, status, hint):
    book.usual = fails(status, "not you")
    report, scenes = run(stage(place, book, concurrency=1), rows)
    assert len(report.failures) == 4 and not scenes
    assert {f.error for f in report.failures} == {f"{book.url} answers {status} not you; {hint}"}
    assert len(book.requests) == 1


def test_a_request_that_the_server_finds_wrong_is_not_repeated(place, rows, book):
    book.acts = [fails(400, "response_format: json_schema is not supported")]
    report, scenes = run(stage(place, book, concurrency=1), rows[:2])
    assert len(scenes) == 1 and len(book.requests) == 2
    assert report.failures[0].error == (
        f"{book.url} answers 400 response_format: json_schema is not supported; try json_mode: object, or text"
    )


def test_no_more_scenes_are_asked_about_at_once_than_allowed(place, rows, book):
    def slow(request):
        time.sleep(0.15)
        describe(request)

    book.usual = slow
    run(stage(place, book, concurrency=3), rows)
    assert book.most_at_once == 3


def test_requests_keep_the_pace_asked_for(place, rows, book):
    run(stage(place, book, concurrency=4, requests_per_minute=300), rows)
    assert len(book.times) == 4 and book.times[-1] - book.times[0] > 0.5  # they leave 0.2 s apart


def test_all_wait_when_one_is_told_to_ask_less_often(place, rows, book):
    book.acts = [fails(429, headers={"retry-after": "0.6"})]
    run(stage(place, book, concurrency=1), rows[:2])
    gaps = [b - a for a, b in pairwise(book.times)]
    assert gaps[0] >= 0.55


# -- what is paid for ---------------------------------------------------------------------------------------------------
def test_an_answer_that_was_paid_for_is_not_asked_for_again(place, rows, book):
    _, before = run(stage(place, book), rows)
    report, after = run(
        stage(place, book, concurrency=1, price_in=1.0), rows
    )  # other settings: all is done anew
    assert report.reused == 0 and after == before
    assert len(book.requests) == 4


def test_what_is_done_is_kept_and_other_questions_are_asked(place, rows, book):
    run(stage(place, book), rows[:3])
    report, _ = run(stage(place, book), rows)
    assert (report.reused, len(book.requests)) == (3, 4)
    run(stage(place, book, frames=1), rows)
    assert len(book.requests) == 8


def test_the_cost_is_told_before_and_after(place, rows, book):
    priced = stage(place, book, price_in=2.0, price_out=10.0, image_tokens=100, concurrency=1)
    [before] = priced.foresee(rows)
    assert before.startswith(f"4 scenes with 8 shots to ask little at {book.url} about: 24 pictures, about ")
    assert "tokens in and 1.1k out, about $0.0" in before
    book.acts = [fails(500), says("no")]
    run(priced, rows)
    assert priced.sum_up() == [
        "captions so far: 6 requests, 1 of them failed, 5.0k tokens in and 500 out, $0.0150"
    ]
    assert priced.foresee(rows) == []  # nothing is left to ask


def test_a_run_that_would_cost_too_much_does_not_start(place, rows, book):
    dear = stage(place, book, price_in=2000.0, price_out=10.0, max_cost=0.5)
    with pytest.raises(UserError, match=r"about \$\d+\.\d\d; that is over max_cost, \$0\.5"):
        dear.foresee(rows)
    with pytest.raises(UserError, match="max_cost needs price_in and price_out"):
        stage(place, book, max_cost=0.5).foresee(rows)


# -- the key ------------------------------------------------------------------------------------------------------------
def test_the_key_reaches_the_server_and_nothing_else(place, rows, book, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-someone")
    caplog.set_level(logging.DEBUG)
    book.acts = [fails(500, f"bad key {KEY}"), fails(400, f"key {KEY} has no credit")]
    captions = stage(place, book, concurrency=1)
    report, _ = run(captions, rows)
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in book.headers)
    assert not any("org-of-someone" in value for headers in book.headers for value in headers.values())
    assert report.failures[0].error.endswith("key [key] has no credit")
    written = "".join(path.read_text() for path in place.out.rglob("*") if path.is_file())
    assert KEY not in written + caplog.text + repr(captions) + repr(captions._endpoint())


# -- captions made elsewhere --------------------------------------------------------------------------------------------
def elsewhere(path: Path, rows, book: Book, **changes) -> Path:
    """A file with the captions that the server would give."""
    entries = []
    for row in rows:
        [unit] = stage(Place(path.parent, path.parent), book).units([row])
        entries.append({"scene": unit.name, "model": "a person"})
    path.write_text("".join(json.dumps(e | changes) + "\n" for e in entries))
    return path


ANSWER = {
    "characters": [{"id": 1, "description": "A figure"}],
    "environment": "A room.",
    "story": "",
    "shots": [{"shot": 1, "prompt": "Character 1 sits."}, {"shot": 2, "prompt": "Character 1 stands."}],
}


def test_captions_made_elsewhere_are_taken_and_the_rest_is_asked_for(place, rows, book, tmp_path):
    file = elsewhere(tmp_path / "captions.jsonl", rows[:1], book, **ANSWER)
    report, scenes = run(stage(place, book, file=str(file)), rows[:2])
    assert not report.failures and len(book.requests) == 1
    assert scenes[0].caption.prompts == ("Character 1 sits.", "Character 1 stands.")
    assert [scene.caption_model for scene in scenes] == ["a person", "little-captioner-1"]


def test_without_a_model_a_scene_that_the_file_lacks_is_named(place, rows, book, tmp_path):
    file = elsewhere(tmp_path / "captions.jsonl", rows[:1], book, **ANSWER)
    report, scenes = run(stage(place, file=str(file), model=""), rows[:2])
    assert len(scenes) == 1
    assert report.failures[0].error == (
        f"scene scene-1: has no caption in {file}; name a model, or bring its caption"
    )


def test_a_caption_that_changed_in_the_file_is_read_again_and_no_other(place, rows, book, tmp_path):
    file = elsewhere(tmp_path / "captions.jsonl", rows, book, **ANSWER)
    run(stage(place, file=str(file)), rows)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].replace("stands", "dances")]))
    file = file.rename(tmp_path / "moved.jsonl")
    report, scenes = run(stage(place, file=str(file)), rows)
    assert report.reused == 3 and scenes[3].caption.prompts[1] == "Character 1 dances."


def test_the_rows_of_one_run_are_captions_for_another(place, rows, book, tmp_path):
    _, before = run(stage(place, book), rows)
    other = Place(tmp_path / "other", place.films_root)
    _, after = run(stage(other, file=str(place.folder("captions") / "rows.jsonl"), model=""), rows)
    assert after == before and len(book.requests) == 4


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], r"captions\.jsonl:1: isn't a row"),
        (['{"scene": "scene-0"}'], r'captions\.jsonl:1: a caption needs "scene", the id of its scene, and "shots"'),
        (['{"scene": "scene-0", "shots": []}'] * 2, r"captions\.jsonl:2: scene scene-0 has a caption above"),
        (['{"scene": "scene-9", "shots": []}'], r"has a caption for scene scene-9, and there is no such scene; its ids"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_as_a_whole_is_refused(place, rows, tmp_path, lines, says):
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=says):
        run(stage(place, file=str(tmp_path / "captions.jsonl")), rows)


def test_a_caption_in_a_file_that_is_wrong_is_named_and_the_rest_goes_through(place, rows, book, tmp_path):
    good = json.loads(elsewhere(tmp_path / "captions.jsonl", rows[:1], book, **ANSWER).read_text())
    bad = [good | {"scene": "scene-1", "shots": good["shots"][:1]}, {"scene": "scene-2", "caption": 3}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [good, *bad]))
    report, scenes = run(stage(place, file=str(tmp_path / "captions.jsonl"), model=""), rows[:3])
    assert [s.id for s in scenes] == ["scene-0"]
    assert [f.error for f in report.failures] == [
        f'{tmp_path / "captions.jsonl"}: scene scene-1: "shots" has 1 entries; the scene has 2 shots',
        f'{tmp_path / "captions.jsonl"}: scene scene-2: "caption" holds no list of prompts',
    ]


# -- shots --------------------------------------------------------------------------------------------------------------
def test_a_shot_after_one_that_was_left_out_begins_with_a_cut():
    row = scene_row("s", "f.mp4", [(0, 8), (8, 16), (16, 24), (24, 32)], [True, False, False, False])
    assert cuts_of(SceneRow.of(row)) == (True, False, False, False)
    row["shots"][1]["kept"] = False
    assert cuts_of(SceneRow.of(row)) == (True, True, False)


def test_scenes_and_shots_that_were_left_out_are_not_asked_about(place, rows, book):
    left_out = rows[0] | {"kept": False}
    half = rows[1] | {"shots": [rows[1]["shots"][0] | {"kept": False}, rows[1]["shots"][1]]}
    _, scenes = run(stage(place, book), [left_out, half])
    assert [scene.caption.prompts for scene in scenes] == [("Character 1 in grey.",)]


def test_the_captioner_sees_what_is_inside_the_letterbox(tmp_path, book):
    colour_film(tmp_path / "film.mp4", [("red", 8)], (64, 64))
    rows = [scene_row("s", "film.mp4", [(0, 8)], size=(64, 64), crop=(0, 16, 64, 32))]
    run(stage(Place(tmp_path / "out", tmp_path), book, longest_side=32), rows)
    import base64
    import io

    from PIL import Image

    url = book.requests[0]["messages"][1]["content"][2]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert picture.size == (32, 16)
    assert described(book.requests[0])["environment"] == "A red room."
