"""Films in, shots out: every frame in exactly one, cuts where they are, whatever the file is like."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from films import FPS, SIZE, Film, Take, f1, montage, score_cuts, tally, write_film, written

from longshot.data.cuts import Adaptive, CutSettings
from longshot.data.engine import LocalEngine
from longshot.data.journal import read_rows
from longshot.data.measure import picture_inside
from longshot.data.pipeline import film_rows, read_config
from longshot.data.probe import Probe, ProbeSettings
from longshot.data.records import FilmRow, ShotRow
from longshot.data.runner import run_stage
from longshot.data.shots import Shots, ShotSettings, tiles_of
from longshot.data.stage import Place
from longshot.errors import UserError
from longshot.video import probe, read_frames
from test_video import encode


def probed(folder: Path, name: str) -> FilmRow:
    (folder / "config.yaml").write_text(f"films: {name}\nout: out\nlicence: CC0\nsource: a test\n")
    config = read_config(folder / "config.yaml")
    run_stage(Probe(ProbeSettings(), config.place), film_rows(config), LocalEngine())
    return FilmRow.of(next(read_rows(config.place.out / "probe" / "rows.jsonl")))


def shots_of(path: Path, **settings) -> list[ShotRow]:
    """The shots of a film, checked: every frame is in exactly one, times go on without a gap."""
    film = probed(path.parent, path.name)
    place = Place(path.parent / "out", path.parent)
    report = run_stage(Shots(ShotSettings(**settings), place), [film.row()], LocalEngine())
    assert not report.failures
    shots = [ShotRow.of(row) for row in read_rows(place.out / "shots" / "rows.jsonl")]
    assert shots[0].start_frame == 0 and shots[0].start_s == 0
    assert all(a.stop_frame == b.start_frame and a.stop_s == b.start_s for a, b in pairwise(shots))
    assert all(shot.frames > 0 and shot.seconds > 0 and shot.samples for shot in shots)
    assert all(shot.start_frame <= s.frame < shot.stop_frame for shot in shots for s in shot.samples)
    if not film.broken:
        assert shots[-1].stop_frame == film.frames and shots[-1].stop_s == pytest.approx(film.seconds)
    return shots


def cuts_of(shots: list[ShotRow], *kinds: str) -> list[int]:
    return [shot.start_frame for shot in shots if shot.begins in (kinds or ("cut", "fade", "dissolve"))]


# -- what is found
def test_the_cuts_of_the_real_film_are_found_and_nothing_else(film, tmp_path):
    (tmp_path / film.name).symlink_to(film)
    place = Place(tmp_path / "out", film.parent)
    (tmp_path / "config.yaml").write_text(f"films: {film.name}\nfilms_root: {film.parent}\nout: out\n")
    config = read_config(tmp_path / "config.yaml")
    rows = run_and_read(Probe(ProbeSettings(), place), list(film_rows(config)))
    shots = [ShotRow.of(row) for row in run_and_read(Shots(ShotSettings(), place), rows)]
    assert [(s.start_frame, s.stop_frame) for s in shots] == [(0, 285), (285, 378), (378, 553), (553, 720)]
    assert [s.begins for s in shots] == ["film", "cut", "cut", "cut"] and shots[-1].stop_s == 30.0
    assert [s.crop for s in shots] == [None] * 4
    text = [max(sample.text for sample in shot.samples) for shot in shots]
    assert (
        max(text[:2]) < 0.005 < 0.02 < text[2] < 0.1 < text[3]
    )  # no titles; a line of them; the name of the film


def run_and_read(stage, rows: list[dict]) -> list[dict]:
    assert not run_stage(stage, rows, LocalEngine()).failures
    return list(read_rows(stage.place.out / stage.name / "rows.jsonl"))


def test_candidates_and_scores_are_those_of_pyscenedetects_adaptive_detector():
    from cv2 import COLOR_RGB2BGR, cvtColor
    from scenedetect import AdaptiveDetector, FrameTimecode

    settings = CutSettings()
    theirs = AdaptiveDetector(
        adaptive_threshold=settings.ratio,
        min_scene_len=1,
        window_width=2,
        min_content_val=settings.content,
    )
    ours, candidates, expected = Adaptive(settings), [], []
    for n, frame in enumerate(montage(21, 8).frames):
        found, score = ours(n, frame)
        candidates += found
        expected += [
            cut.frame_num
            for cut in theirs.process_frame(FrameTimecode(n, 24.0), cvtColor(frame, COLOR_RGB2BGR))
        ]
        assert score == pytest.approx(theirs._frame_score or 0.0, abs=1e-9)
    assert candidates == expected and len(candidates) >= 5


def test_hard_cuts_are_found_to_the_frame_among_flashes_motion_fades_and_dissolves(tmp_path):
    found, true, wrong = 0, 0, []
    for seed in (20, 22):
        film = montage(seed)
        shots = shots_of(film.write(tmp_path / f"{seed}.mp4"))
        f1, extra, missed = score_cuts(cuts_of(shots, "cut"), film.cuts)
        wrong += [(seed, extra, missed)] if f1 < 1 else []
        true, found = true + len(film.cuts), found + len(cuts_of(shots, "cut"))
    assert true > 20 and not wrong


@pytest.mark.slow
def test_f1_of_hard_cuts_is_at_least_098_over_many_films(tmp_path):
    count = Counter()
    for seed in range(40, 60):
        film = montage(seed)
        shots = shots_of(film.write(tmp_path / f"{seed}.mp4"))
        count += tally(film, [(shot.start_frame, shot.begins) for shot in shots[1:]])
    scores = {kind: f1(count, kind) for kind in ("cut", "fade", "dissolve")}
    assert scores["cut"] >= 0.98 and scores["fade"] >= 0.95 and scores["dissolve"] >= 0.8, count


def test_a_fade_and_a_dissolve_are_each_one_change(tmp_path):
    film = Film().cut(Take(1, 60)).fade(Take(2, 60), out=12, dark=6, into=12).dissolve(Take(3, 70), 24)
    shots = shots_of(film.write(tmp_path / "film.mp4"))
    assert [s.begins for s in shots] == ["film", "fade", "dissolve"]
    for shot, (_, first, last) in zip(shots[1:], film.gradual, strict=True):
        assert first <= shot.start_frame < last


@pytest.mark.parametrize(("out", "dark", "into"), [(6, 3, 12), (16, 11, 16)])
def test_a_fade_of_any_pace_is_one_change_whatever_its_ramps_look_like(tmp_path, out, dark, into):
    film = Film().cut(Take(1, 40, pan=1.5, runner=4))
    film.fade(Take(2, 40, pan=1.5, runner=4), out=out, dark=dark, into=into)
    shots = shots_of(film.write(tmp_path / "film.mp4"))
    assert (
        tally(film, [(shot.start_frame, shot.begins) for shot in shots[1:]])["fade hit"]
        == len(shots) - 1
        == 1
    )


def test_a_fade_in_at_the_start_and_a_flash_are_no_cuts(tmp_path):
    film = Film().cut(Take(5, 80, flash=[40, 41]))
    for n in range(15):
        film.frames[n] = (film.frames[n] * (n / 15)).astype(np.uint8)
    assert len(shots_of(film.write(tmp_path / "film.mp4"))) == 1


def test_long_black_between_two_shots_is_a_shot_of_its_own(tmp_path):
    film = Film().cut(Take(1, 40)).fade(Take(2, 40), dark=60)
    shots = shots_of(film.write(tmp_path / "film.mp4"))
    assert (
        len(shots) == 3 and max(s.luma for s in shots[1].samples[1:]) < 0.05 and 55 <= shots[1].frames <= 70
    )


# -- what the file is like
def test_a_variable_rate_changes_no_cut_and_times_are_those_of_the_file(tmp_path):
    film = Film().cut(Take(1, 40)).cut(Take(2, 40)).cut(Take(3, 30))
    steps = np.random.default_rng(0).choice([0.021, 0.04, 0.1], len(film.frames))
    times = [0.0, *np.cumsum(steps)[:-1].tolist()]
    shots = shots_of(film.write(tmp_path / "film.mkv", times=times))
    assert cuts_of(shots) == [40, 80]
    assert shots[1].start_s == pytest.approx(times[40], abs=0.0011)
    again = read_frames(
        tmp_path / "film.mkv", start_s=shots[1].start_s, stop_s=shots[1].stop_s, fps=Fraction(10)
    )
    assert np.abs(again[0].astype(int) - film.frames[40]).mean() < 12


@pytest.mark.parametrize("how", ["turned", "10 bit", "odd"])
def test_turned_deep_and_odd_films_are_cut_as_they_are_shown(tmp_path, how):
    size = (98, 74) if how != "odd" else (97, 73)
    film = Film(size).cut(Take(1, 30)).cut(Take(2, 30))
    frames = np.stack(film.frames)
    if how == "odd":
        path = write_film(tmp_path / "film.mkv", film.frames, codec="ffv1", pixels="yuv444p")
    elif how == "10 bit":
        path = write_film(tmp_path / "film.mkv", film.frames, codec="ffv1", pixels="yuv420p10le")
    else:
        path = encode(tmp_path / "film.mp4", frames, rotate=90)
    shots = shots_of(path)
    info = probe(path)
    assert cuts_of(shots) == [30] and (shots[0].width, shots[0].height) == (info.width, info.height)
    tile = tiles_of(Place(tmp_path / "out", tmp_path), shots[1])[0]
    shown = read_frames(path)[shots[1].samples[0].frame]
    assert tile.shape == shown.shape and np.abs(tile.astype(int) - shown).mean() < 6


def test_a_film_cut_short_gives_the_shots_before_the_damage_and_says_so(tmp_path):
    film = Film().cut(Take(1, 60)).cut(Take(2, 60)).cut(Take(3, 60))
    path = film.write(tmp_path / "film.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    row = probed(tmp_path, path.name)
    assert row.broken and "cut short" in row.broken
    place = Place(tmp_path / "out", tmp_path)
    report = run_stage(Shots(ShotSettings(), place), [row.row()], LocalEngine())
    shots = [ShotRow.of(r) for r in read_rows(place.out / "shots" / "rows.jsonl")]
    assert cuts_of(shots)[0] == 60 and 100 < shots[-1].stop_frame < 180
    assert len(report.notes) == 1 and "film.mkv" in report.notes[0] and "frames are used" in report.notes[0]
    strict = Probe(ProbeSettings(broken=False), place)
    failures = run_stage(strict, film_rows(read_config(tmp_path / "config.yaml")), LocalEngine()).failures
    assert len(failures) == 1 and "cut short" in failures[0].error


# -- what is measured
def test_letterbox_is_cropped_and_dark_pictures_are_not(tmp_path):
    frames = [np.pad(f[14:-14], ((14, 14), (0, 0), (0, 0))) for f in Film().cut(Take(1, 30)).frames]
    shot = shots_of(write_film(tmp_path / "film.mp4", frames))[0]
    assert shot.crop is not None
    left, top, width, height = shot.crop
    assert (left, width) == (0, SIZE[0]) and 14 <= top <= 18 and SIZE[1] - 36 <= height <= SIZE[1] - 28
    assert picture_inside([(0.0, 0.4, 0.0, 0.0)], 100, 100) is None


def test_subtitles_are_seen_and_pictures_without_any_are_not_taken_for_text(tmp_path):
    big = (480, 270)
    plain = Film(big).cut(Take(4, 30, pan=0.2)).frames
    subtitled = [written(f, "But I was never in Casablanca, Rick.", size=17) for f in plain]
    without = shots_of(write_film(tmp_path / "plain.mp4", plain))[0]
    within = shots_of(write_film(tmp_path / "text.mp4", subtitled))[0]
    assert max(s.text for s in without.samples) < 0.004 < 0.01 < max(s.text for s in within.samples)


def test_shake_and_stillness_are_told_apart(tmp_path):
    def of(take: Take) -> ShotRow:
        return shots_of(Film().cut(take).write(tmp_path / "film.mp4"))[0]

    calm, shaky, frozen = of(Take(1, 48, pan=1.0)), of(Take(1, 48, shake=5.0)), of(Take(1, 48, pan=0.0))
    assert np.mean([s.shake for s in shaky.samples]) > 5 * np.mean([s.shake for s in calm.samples])
    assert np.mean([s.still for s in frozen.samples]) > 0.9 > 0.2 > np.mean([s.still for s in calm.samples])


def test_samples_are_a_second_apart_and_their_pictures_can_be_read_back(tmp_path):
    shots = shots_of(Film().cut(Take(1, 20 * FPS, pan=0.3)).write(tmp_path / "film.mp4"))
    seconds = [s.second for s in shots[0].samples]
    assert len(seconds) == 20 and np.allclose(np.diff(seconds), 1.0, atol=0.05) and len(shots[0].strips) == 2
    place = Place(tmp_path / "out", tmp_path)
    tiles = tiles_of(place, shots[0])
    shown = read_frames(tmp_path / "film.mp4")
    assert len(tiles) == 20
    for tile, sample in zip(tiles, shots[0].samples, strict=True):
        assert np.abs(tile.astype(int) - shown[sample.frame]).mean() < 8
    place.file(shots[0].strips[0]).unlink()
    with pytest.raises(UserError, match="run the stage shots again"):
        tiles_of(place, shots[0])


def test_a_whole_film_of_random_length_shots_has_no_frame_twice(tmp_path):
    take = Take(1, 3)
    film = Film()
    for n, length in enumerate((1, 2, 5, 9, 30, 1)):  # shorter than any detector looks
        film.cut(replace(take, seed=n, frames=length))
    shots_of(film.write(tmp_path / "film.mp4"))
