"""Shots in, scenes out: what belongs together is together, nothing is longer than the window, takes split at their events."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from films import place
from hypothesis import given
from hypothesis import strategies as st

from longshot.data.encoders import colours, encoder
from longshot.data.engine import LocalEngine
from longshot.data.journal import read_rows
from longshot.data.records import Origin, Sample, SceneRow, ShotRow
from longshot.data.runner import run_stage
from longshot.data.scenes import Scenes, SceneSettings, events, likenesses, linked_groups, split
from longshot.data.stage import Place
from longshot.errors import UserError
from longshot.video import write_image

TILE = (96, 54)


def picture(seed: int, left: float = 0.1) -> np.ndarray:
    """A view of a place; `left` moves the camera by so many picture widths."""
    canvas = place(seed, TILE)
    box = (left * TILE[0], 20, (left + 1) * TILE[0], 20 + TILE[1])
    return np.asarray(canvas.crop(tuple(round(x) for x in box)))


def shot(
    out: Path, index: int, views: list[np.ndarray], seconds: float = 3.0, start: float | None = None
) -> ShotRow:
    start = index * seconds if start is None else start
    strip = f"shots/files/{index}.jpg"
    write_image(out / strip, np.concatenate(views, axis=1))
    step = seconds / len(views)
    samples = tuple(
        Sample(frame=round((start + k * step) * 24), second=start + k * step, luma=0.5, spread=0.2)
        for k in range(len(views))
    )
    return ShotRow(
        id=f"s{index}", film=Origin(path="film.mp4", sha256="0" * 64), fps="24", index=index, begins="cut",
        start_frame=round(start * 24), stop_frame=round((start + seconds) * 24), start_s=start, stop_s=start + seconds,
        width=TILE[0], height=TILE[1], strips=(strip,), tile_width=TILE[0], tiles=len(views), samples=samples,
    )  # fmt: skip


def scenes_of(out: Path, shots: list[ShotRow], **settings) -> list[SceneRow]:
    stage = Scenes(SceneSettings(**settings), Place(out, out))
    report = run_stage(stage, [s.row() for s in shots], LocalEngine())
    assert not report.failures, report.failures
    return [SceneRow.of(row) for row in read_rows(out / "scenes" / "rows.jsonl")]


def indices(scenes: list[SceneRow]) -> list[list[int]]:
    return [[s.index for s in scene.shots] for scene in scenes if scene.kind == "cuts"]


def test_shots_that_alternate_between_two_views_are_one_scene_and_another_place_is_another(tmp_path):
    views = [(1, 0.1), (2, 0.1), (1, 0.12), (2, 0.1), (3, 0.1), (4, 0.1), (3, 0.11), (4, 0.12), (4, 0.1)]
    shots = [shot(tmp_path, n, [picture(*view)]) for n, view in enumerate(views)]
    assert indices(scenes_of(tmp_path, shots)) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]


def test_the_same_place_long_after_is_another_scene(tmp_path):
    shots = [shot(tmp_path, n, [picture(1)], start=100.0 * n) for n in range(2)]
    assert indices(scenes_of(tmp_path, shots)) == [[0], [1]]
    assert indices(scenes_of(tmp_path, shots, reach_s=200)) == [[0, 1]]


def test_a_scene_longer_than_the_window_is_split_where_its_shots_are_least_alike(tmp_path):
    shots = [shot(tmp_path, n, [picture(1, 0.1 if n < 5 else 0.45)]) for n in range(12)]
    parts = indices(scenes_of(tmp_path, shots, similarity=0.1))
    assert parts == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]
    assert indices(scenes_of(tmp_path, shots, similarity=0.1, max_s=9.5))[0] == [0, 1, 2]


def test_a_take_that_changes_is_split_at_its_events_and_goes_on_without_a_cut(tmp_path):
    views = [picture(1)] * 4 + [picture(2)] * 5 + [picture(3)] * 3
    scenes = scenes_of(tmp_path, [shot(tmp_path, 0, views, seconds=12.0)])
    assert [scene.kind for scene in scenes] == ["cuts", "take"]
    parts = scenes[1].shots
    assert [p.start_frame for p in parts] == [0, 96, 216] and [p.cut for p in parts] == [True, False, False]
    assert [p.stop_frame for p in parts] == [96, 216, 288] and [p.begins for p in parts] == [
        "cut",
        "event",
        "event",
    ]
    assert [(p.first_tile, len(p.samples)) for p in parts] == [(0, 4), (4, 5), (9, 3)]
    other = tmp_path / "other"
    still = [shot(other, 0, [picture(1)] * 12, seconds=12.0)]
    assert [scene.kind for scene in scenes_of(other, still)] == ["cuts"]


def test_parts_of_a_take_have_the_lengths_allowed_and_its_scenes_fit_the_window(tmp_path):
    views = [picture(n // 3) for n in range(48)]
    strips = [shot(tmp_path, 0, views, seconds=48.0)]
    takes = [s for s in scenes_of(tmp_path, strips, max_shots=5) if s.kind == "take"]
    parts = [part for take in takes for part in take.shots]
    assert all(len(take.shots) <= 5 for take in takes) and all(2.0 <= p.seconds <= 10.0 for p in parts)
    assert parts[0].start_frame == 0 and parts[-1].stop_frame == 48 * 24
    assert all(a.stop_frame == b.start_frame for a, b in zip(parts, parts[1:], strict=False))  # noqa: RUF007
    assert [take.shots[0].cut for take in takes] == [True] + [False] * (len(takes) - 1)


@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_every_shot_is_in_exactly_one_scene_no_longer_than_the_window(count, max_shots, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=12))
    links = np.zeros((count, count), bool)
    for a, b in pairs:
        links[min(a, b), max(a, b)] |= a != b
    groups = list(linked_groups(onward(links, False)))
    assert [n for group in groups for n in group] == list(range(count))
    # A boundary is where no link crosses, and only there.
    crossed = [any(links[a, b] for a in range(k) for b in range(k, count)) for k in range(1, count)]
    assert [group.start for group in groups[1:]] == [k for k, c in enumerate(crossed, 1) if not c]
    alike = np.triu(np.random.default_rng(count).random((count, count)), 1)
    for group in groups:
        parts = split(group, onward(alike, -1.0), [1.0] * count, max_shots, None)
        assert [n for part in parts for n in part] == list(group) and max(map(len, parts)) <= max_shots
        assert len(parts) == -(-len(group) // max_shots)


def onward(square: np.ndarray, none) -> np.ndarray:
    """Of a matrix over pairs of shots, a row a shot: its pairs with the next one, the one after that, ..."""
    count = len(square)
    return np.array([[*square[n, n + 1 :], *[none] * (n + 1)] for n in range(count)], square.dtype)


def test_likeness_is_that_of_the_two_most_similar_pictures():
    a, b, c = (colours([picture(n)]) for n in (1, 2, 3))
    alike = likenesses([np.concatenate([a, b]), c, np.concatenate([c, b])], reach=2)
    assert alike[0, 1] == pytest.approx(1) and alike[1, 0] == pytest.approx(1) and alike[0, 0] < 0.6
    assert (alike[1, 1], *alike[2]) == (-1, -1, -1)
    assert likenesses([a, c, a], reach=1).shape == (3, 1)


def test_of_a_long_film_only_the_vectors_of_the_shots_in_reach_are_held():
    alive: list[weakref.ref] = []
    most = 0

    def seen():
        nonlocal most
        for n in range(200):
            vector = np.full((1, 2), n % 2, np.float32)
            alive.append(weakref.ref(vector))
            most = max(most, sum(reference() is not None for reference in alive))
            yield vector

    assert likenesses(seen(), reach=3).shape == (200, 3)
    assert most <= 5


def test_a_division_that_no_lengths_allow_is_none():
    settings = SceneSettings(event_min_s=4, event_max_s=5)
    assert events(np.ones((7, 2), np.float32), [float(n) for n in range(7)], 7.0, settings) == []


def test_a_model_from_a_folder_encodes_and_one_that_is_missing_is_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    vectors = encoder("dinov2", str(tmp_path / "dino"))([picture(1), picture(2), picture(1)])
    assert vectors.shape == (3, 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(
        vectors[0], vectors[1], atol=1e-3
    )
    with pytest.raises(UserError, match=r"dinov2: .*nowhere: can't be loaded"):
        encoder("dinov2", str(tmp_path / "nowhere"))
