"""The suite, run on a base that knows every answer and on one that knows nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from oracle import ignorant, oracle, small

from longshot.bases.native import tiny
from longshot.errors import UserError
from longshot.eval import puppets
from longshot.eval.puppets import TASKS, EvalConfig, Progress, draw_case, evaluate, held_out, seam_marks
from longshot.eval.report import write
from longshot.puppets.render import render
from longshot.puppets.world import draw_scene

SCORE_KEYS = ["value", "n", "scenes", "low", "high", "interval", "unreadable", "ceiling", "control", "chance"]


@pytest.fixture(scope="module")
def known():
    """Scores of the oracle on every task, and the progress it told."""
    config, progress = small(), []
    base = oracle().knows(config)
    return evaluate(base, base, config, progress.append), progress


@pytest.fixture(scope="module")
def unknown():
    """Scores of random weights on every task."""
    return evaluate(ignorant(0), ignorant(1), small())


def _runs(scores):
    return {f"{task}/{run}": r for task, t in scores.tasks.items() for run, r in t.runs.items()}


def test_a_base_that_knows_the_answers_scores_one_in_everything(known):
    scores, _ = known
    assert set(scores.tasks) == set(TASKS)
    for name, run in _runs(scores).items():
        assert run.unreadable_shots == 0, name
        for attribute, s in run.scores.items():
            assert s.value == pytest.approx(s.ceiling), (name, attribute)
            assert s.value >= (0.8 if attribute in ("action", "seam") else 0.99), (name, attribute)
            assert s.low <= s.value <= s.high


def test_a_base_that_follows_a_wrong_picture_does_not_score(known):
    scores, _ = known
    for name in ("given_first/bidirectional", "given_first/causal", "composition/causal", "return/given"):
        run = _runs(scores)[name]
        assert run.scores["look"].control == 0.0
        assert run.scores["body"].control <= 0.5
        assert run.scores["body"].chance == pytest.approx(1 / 8, abs=0.08)
        assert run.scores["action"].control is None


def test_random_weights_are_unreadable_and_nothing_breaks(unknown):
    for name, run in _runs(unknown).items():
        assert run.unreadable_shots >= 0.7, name
        assert run.scores["body"].unreadable >= 0.7, name
        assert run.scores["look"].value == 0.0, name
        assert run.scores["look"].ceiling == 1.0, name


def test_a_base_that_is_right_in_two_of_three_scenes_scores_two_thirds():
    config = small(tasks=("single",), scenes=6, samples=0)
    base = oracle().knows(config, share_right=4 / 6)
    look = evaluate(base, None, config).tasks["single"].runs["bidirectional"].scores["environment"]
    assert look.value >= 4 / 6 and look.n == 6 and look.interval == "wilson"
    assert look.value < 1


def test_scores_are_the_same_twice():
    config = small(tasks=("single", "composition"), scenes=2)

    def once():
        data = evaluate(ignorant(), None, config).to_json()["tasks"]
        for task in data.values():
            for run in task["runs"].values():
                del run["seconds"]
        return data

    assert once() == once()


def test_progress_names_every_run_and_reaches_its_end(known):
    scores, progress = known
    for task, t in scores.tasks.items():
        for run in t.runs:
            told = [p for p in progress if (p.task, p.run) == (task, run)]
            assert told[0].done == 0 and told[-1].done == told[-1].total
    assert all(isinstance(p, Progress) for p in progress)


def test_cached_and_recomputed_runs_are_compared_scene_by_scene(unknown):
    differences = unknown.tasks["causal"].differences
    assert set(differences) == {"cached minus recomputed", "cached minus joint"}
    assert differences["cached minus recomputed"]["body"].value == 0.0
    assert unknown.tasks["causal"].runs["cached"].measures["pixels_from_recomputed"].value < 0.1


def test_weights_that_are_not_there_leave_their_runs_out():
    scores = evaluate(None, ignorant(), small(tasks=("single", "joint"), scenes=2, samples=0))
    assert list(scores.tasks) == ["single"]
    assert list(scores.tasks["single"].runs) == ["causal"]
    assert scores.to_json()["bases"] == {"bidirectional": None, "causal": "tiny"}


def test_the_files_are_whole_and_have_the_documented_form(known, tmp_path):
    scores, _ = known
    paths = write(scores, tmp_path / "out")
    assert {p.name for p in paths} == {"scores.json", "report.md", *(f"{task}.png" for task in TASKS)}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    data = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(data) == ["format", "config", "sampling", "bases", "facts", "seconds", "tasks"]
    assert data["format"] == "longshot-puppet-scores-1"
    for name, task in data["tasks"].items():
        assert list(task) == ["what", "scenes", "runs", "differences"], name
        for run in task["runs"].values():
            assert list(run) == [
                "what",
                "weights",
                "seconds",
                "unreadable_shots",
                "scores",
                "by_shot",
                "measures",
            ]
            for s in [
                *run["scores"].values(),
                *(s for table in run["by_shot"].values() for s in table.values()),
            ]:
                assert list(s) == SCORE_KEYS
    given = data["tasks"]["given_first"]["runs"]["bidirectional"]
    assert list(given["by_shot"]) == ["2", "3"]  # shot 1 is given, so it isn't scored
    report = (tmp_path / "out" / "report.md").read_text()
    for task in TASKS:
        assert f"## {task}:" in report
    assert "nan" not in (tmp_path / "out" / "scores.json").read_text().lower()


def test_held_out_scenes_are_never_training_scenes():
    """Training draws scene i of step k from [seed, k, i]; no such seed gives the numbers of a held-out scene."""
    ours = held_out(0, "single", 0).integers(0, 2**63, 4).tolist()
    for entropy in ([0, 0, 0], [0, 0], [0], [0, puppets.HELD_OUT, 0]):
        assert np.random.default_rng(entropy).integers(0, 2**63, 4).tolist() != ours
    assert held_out(0, "single", 1).integers(0, 2**63) != held_out(0, "joint", 1).integers(0, 2**63)


def test_joint_and_causal_are_asked_the_same_scenes():
    config = EvalConfig(scenes=1)
    assert draw_case(TASKS["joint"], config, 0) == draw_case(TASKS["causal"], config, 0)


def test_the_character_of_the_return_task_is_away_for_two_shots():
    for index in range(20):
        scene = draw_case(TASKS["return"], EvalConfig(), index).scene
        present = [0 in [a.who for a in shot.cast] for shot in scene.shots]
        assert present == [True, False, False, True]


def test_a_cut_is_no_seam_and_a_continued_take_is_one():
    rng = np.random.default_rng(5)
    takes = [
        draw_scene(rng, 3, p_pair=0.0, p_empty=0.0, p_continue=1.0, environment=place)
        for place in ("meadow", "city", "snow", "cafe")
    ]
    films = [dict(enumerate(render(scene), start=1)) for scene in takes]
    assert np.mean([m.right for m in seam_marks(films)]) >= 0.9
    assert np.mean([m.right for m in seam_marks(films, strange=True)]) <= 0.1


def test_a_task_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no task 'jiont'"):
        EvalConfig(tasks=("jiont",))
    with pytest.raises(UserError, match="0 scenes"):
        EvalConfig(scenes=0)
    with pytest.raises(UserError, match="no weights"):
        evaluate(None, None, EvalConfig())


def test_a_base_of_another_size_is_refused():
    base = ignorant()
    base.spec = replace(tiny().spec, name="large", size=(96, 64))
    with pytest.raises(UserError, match="large makes 96x64 pixels"):
        evaluate(base, None, small())
