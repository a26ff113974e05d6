"""What is left out and why: every filter takes what it is for, keeps its score, and leaves the rest."""

import json
from pathlib import Path

import pytest

from longshot.data.engine import LocalEngine
from longshot.data.filters import Filter, FilterSettings
from longshot.data.journal import read_rows
from longshot.data.records import Origin, Sample, SceneRow, SceneShot
from longshot.data.runner import run_stage
from longshot.data.stage import Place

GOOD = {"luma": 0.5, "spread": 0.2, "change": 0.01, "still": 0.1, "shake": 0.002, "text": 0.0}


def shot(
    n: int, seconds: float = 3.0, film: str = "a.mp4", cut: bool = True, code: str | None = None, **measured
) -> SceneShot:
    start = 3.0 * n
    samples = tuple(
        Sample(
            frame=round((start + k) * 24),
            second=start + k,
            hash=code or f"{(n * 7919 + k + len(film)) * 0x9E3779B97F4A7C15 % 2**64:016x}",
            **GOOD | measured,
        )
        for k in range(3)
    )
    return SceneShot(
        id=f"{film}-{n}", film=Origin(path=film, sha256=film * 4), fps="24", index=n, begins="cut", cut=cut, width=64, height=36,
        start_frame=round(start * 24), stop_frame=round((start + seconds) * 24), start_s=start, stop_s=start + seconds,
        samples=samples,
    )  # fmt: skip


def scene(*shots: SceneShot, kind: str = "cuts") -> SceneRow:
    name = f"{shots[0].film.path}-{shots[0].start_frame}-{kind}"
    return SceneRow(id=name, film=shots[0].film, kind=kind, shots=shots)


def filtered(out: Path, *scenes: SceneRow, **settings) -> list[SceneRow]:
    report = run_stage(
        Filter(FilterSettings(**settings), Place(out, out)), [s.row() for s in scenes], LocalEngine()
    )
    assert not report.failures, report.failures
    return [SceneRow.of(row) for row in read_rows(out / "filter" / "rows.jsonl")]


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("black", {"luma": 0.02, "spread": 0.01}),
        ("frozen", {"still": 1.0, "change": 0.0}),
        ("still", {"change": 0.0003}),
        ("shaky", {"shake": 0.05}),
        ("text", {"text": 0.02}),
        ("short", {"seconds": 0.5}),
    ],
)
def test_a_shot_with_a_fault_is_left_out_with_its_reason_and_the_scene_goes_on(tmp_path, reason, fault):
    result = filtered(tmp_path, scene(shot(0), shot(1, **fault), shot(2)))[0]
    assert result.kept and [s.kept for s in result.shots] == [True, False, True]
    assert result.shots[1].reasons == (reason,) and result.shots[0].reasons == ()
    assert (
        result.shots[1].scores["seconds" if reason == "short" else reason]
        != result.shots[0].scores["seconds" if reason == "short" else reason]
    )
    off = {"short_s" if reason == "short" else reason: None}
    again = filtered(tmp_path, scene(shot(0), shot(1, **fault), shot(2)), **off)[0]
    assert reason not in again.shots[1].reasons and again.shots[1].scores == result.shots[1].scores
    report = json.loads((tmp_path / "filter" / "report.json").read_text())
    assert report["scenes"] == 1 and report["kept"] == 1


def test_a_scene_without_a_good_shot_is_left_out_and_the_report_names_it(tmp_path):
    bad, good = scene(shot(0, text=0.1), shot(1, text=0.2)), scene(shot(0, film="b.mp4"))
    results = filtered(tmp_path, bad, good)
    assert [(r.kept, r.reasons) for r in results] == [(False, ("text",)), (True, ())]
    report = json.loads((tmp_path / "filter" / "report.json").read_text())
    entry = report["reasons"]["text"]
    assert (entry["shots"], entry["scenes"], entry["seconds"]) == (2, 1, 6.0)
    assert [e["shot"] for e in entry["examples"]] == ["a.mp4-0", "a.mp4-1"] and entry["examples"][1][
        "score"
    ] == 0.2


def test_of_a_take_the_longest_run_without_a_fault_is_kept(tmp_path):
    parts = [shot(n, cut=n == 0, text=0.1 if n == 1 else 0.0) for n in range(4)]
    result = filtered(tmp_path, scene(*parts, kind="take"))[0]
    assert [s.kept for s in result.shots] == [False, False, True, True]
    assert [s.reasons for s in result.shots] == [("gap",), ("text",), (), ()]


def test_a_near_duplicate_anywhere_in_the_corpus_is_found_and_the_first_one_stays(tmp_path):
    first = scene(shot(0, code="0f0f0f0f0f0f0f0f"))
    twin = scene(
        shot(0, film="copy.mp4", code="0f0f0f0f0f0f0f0d")
    )  # one bit apart, as after another encoding
    other = scene(shot(0, film="else.mp4", code="f0f0a5a5f0f0a5a5"))
    results = filtered(tmp_path, first, other, twin)
    assert [r.kept for r in results] == [True, True, False]
    assert results[2].reasons == ("duplicate",) and results[2].duplicate_of == first.id
    assert [r.scores["duplicate"] for r in results] == [0.0, 0.0, 1.0]
    assert all(r.kept for r in filtered(tmp_path, first, other, twin, duplicate=None))


def test_a_take_is_no_duplicate_of_the_scene_it_was_taken_from(tmp_path):
    whole, take = scene(shot(0)), scene(shot(0), kind="take")
    assert [r.kept for r in filtered(tmp_path, whole, take)] == [True, True]


def test_flat_pictures_are_no_duplicates_of_each_other(tmp_path):
    flat = {"spread": 0.01, "code": "0" * 16}
    results = filtered(tmp_path, scene(shot(0, **flat)), scene(shot(0, film="b.mp4", **flat)))
    assert [r.kept for r in results] == [True, True]
