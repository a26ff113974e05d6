"""From scene files to planned shots: what references, given files, seeds and takes become."""

from fractions import Fraction

import numpy as np
import pytest

from commands import bomb, clip, grey, no_frames, picture, quick_base, scene_of, variable_rate_clip
from longshot.errors import UserError
from longshot.sample.story import still, tell
from longshot.scene import Reference, Shot
from longshot.video import read_frames, write_video


@pytest.fixture(scope="module")
def base():
    return quick_base()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of the greys 10 to 50, and a clip of 12 frames."""
    made = tmp_path_factory.mktemp("references")
    for i, name in enumerate(("identity", "place", "first", "last"), start=1):
        picture(made / f"{name}.png", 10 * i)
    clip(made / "clip.mp4", 12)
    return made


ALL = [
    Reference(role="last_frame", path="last.png"),
    Reference(role="first_frame", path="first.png"),
    Reference(role="environment", path="place.png"),
    Reference(role="identity", path="identity.png", character=1),
]


def with_references(*references: Reference, **fields):
    shots = scene_of(3).shots
    return scene_of(
        shots=[
            shots[0],
            Shot(prompt="Close shot. Character 1 waves.", references=list(references), **fields),
            shots[2],
        ]
    )


def test_images_become_shots_of_their_own_around_the_shot(base, folder):
    story = tell(with_references(*ALL), base, folder)
    assert [s.label for s in story.shots] == [
        "shot 1",
        "shot 2's identity image",
        "shot 2's environment image",
        "shot 2's first frame image",
        "shot 2",
        "shot 2's last frame image",
        "shot 3",
    ]
    assert story.numbers == (1, None, None, None, 2, None, 3)
    assert [s.pinned for s in story.shots] == [False, True, True, False, False, False, False]
    levels = [float((s.given.mean() + 1) * 127.5) for s in story.shots if s.given is not None]
    assert levels == pytest.approx([10, 20, 30, 40], abs=1)


def test_only_the_first_picture_of_a_take_begins_with_a_cut(base, folder):
    prompts = [s.prompt for s in tell(with_references(*ALL), base, folder).shots]
    assert prompts[1:6] == [
        "[SHOT CUT] Character 1.",
        "[SHOT CUT] Nobody is there.",
        "[SHOT CUT] Close shot. Character 1 waves.",
        "Close shot. Character 1 waves.",
        "Close shot. Character 1 waves.",
    ]


def test_a_clip_stands_for_its_shot(base, folder):
    story = tell(with_references(Reference(role="video", path="clip.mp4"), ALL[3]), base, folder)
    assert story.numbers == (1, None, 2, 3) and story.shots[1].pinned
    assert story.shots[2].given is not None and base.spec.frames(story.shots[2].grid) == 12
    assert not story.notes


def test_a_part_of_a_clip_is_that_part(base, tmp_path):
    frames = np.concatenate([grey(20 * i) for i in range(12)])

    write_video(tmp_path / "ramp.mp4", frames, Fraction(8))
    story = tell(
        with_references(Reference(role="video", path="ramp.mp4", start=0.5, stop=1.1)), base, tmp_path
    )
    shown = base.decode(story.shots[1].given, story.shots[1].grid)
    assert [round(float(f.mean()) / 20) for f in shown] == [4, 5, 6, 7]
    assert story.notes == ("shot 2: 4 frames (0.5 s) of ramp.mp4 are used, from 0.5 s on",)


def test_of_several_clips_one_is_used_and_that_is_said(base, folder):
    videos = [Reference(role="video", path="clip.mp4"), Reference(role="video", path="clip.mp4", start=0.5)]
    story = tell(with_references(*videos), base, folder)
    assert story.numbers == (1, 2, 3) and "clip.mp4 isn't used" in story.notes[0]


def test_a_file_given_for_a_shot_counts_more_than_its_reference(base, folder):
    story = tell(
        with_references(Reference(role="video", path="clip.mp4")), base, folder, {2: folder / "last.png"}
    )
    assert base.spec.frames(story.shots[1].grid) == 4 and "isn't used" in story.notes[0]


def test_a_picture_given_for_a_shot_stands_still_for_the_shortest_clip(base, folder):
    shot = tell(scene_of(3), base, folder, {3: folder / "first.png"}).shots[2]
    frames = base.decode(shot.given, shot.grid)
    assert len(frames) == 4 and np.ptp(frames.astype(int), axis=0).max() == 0


def test_a_given_shot_that_is_not_there_is_refused(base, folder):
    for number in (0, 4):
        with pytest.raises(UserError, match=f"no shot {number} to give; the scene has shots 1 to 3"):
            tell(scene_of(3), base, folder, {number: folder / "first.png"})


def test_a_longer_clip_is_used_as_far_as_the_base_holds_and_that_is_said(base, film):
    story = tell(scene_of(3), base, film.parent, {1: film})
    assert base.spec.frames(story.shots[0].grid) == base.spec.max_frames
    assert story.notes == (f"shot 1: 16 frames (2 s) of {film.name} are used, from 0 s on",)
    wanted = read_frames(film, stop_s=2, fps=base.spec.fps, size=base.spec.size)
    shown = base.decode(story.shots[0].given, story.shots[0].grid)
    assert np.array_equal(shown, wanted)


def test_a_clip_of_variable_rate_is_shown_at_its_own_speed(base, tmp_path):
    made = variable_rate_clip(tmp_path / "uneven.mp4", [0, 500, 625, 750, 1000])
    shot = tell(scene_of(3), base, tmp_path, {1: made}).shots[0]
    levels = [round((float(f.mean()) - 20) / 20) for f in base.decode(shot.given, shot.grid)]
    assert levels == [0, 0, 0, 0, 1, 2, 3, 3]


def test_a_clip_shorter_than_a_shot_is_refused(base, tmp_path):
    made = clip(tmp_path / "short.mp4", 3)
    with pytest.raises(UserError, match=r"shot 2: .*short.mp4 gives 3 frames at 8 fps; tiny needs 4 or more"):
        tell(scene_of(3), base, tmp_path, {2: made})


@pytest.mark.parametrize("make", [no_frames, bomb, lambda path: path.write_bytes(b"\xff\xd8 no") and path])
def test_what_is_neither_picture_nor_video_is_refused_by_name(base, tmp_path, make):
    path = make(tmp_path / "given.png" if make is bomb else tmp_path / "given.mp4")
    with pytest.raises(UserError, match="given") as error:
        tell(scene_of(3), base, tmp_path, {1: path})
    assert "\n" not in str(error.value)


def test_a_reference_outside_the_scenes_folder_is_refused(base, folder):
    with pytest.raises(UserError, match="outside"):
        tell(with_references(Reference(role="identity", path="../secret.png")), base, folder)


def test_an_identity_can_be_the_first_frame_of_a_clip(base, folder):
    assert np.array_equal(still(folder / "clip.mp4", base.spec), read_frames(folder / "clip.mp4")[:1])


def test_noise_is_a_function_of_seed_number_and_take(base, folder):
    noise = [s.noise for s in tell(with_references(seed=9, take=2), base, folder).shots]
    assert noise == [(4, "1", 0), (9, "2", 2), (4, "3", 0)]
    assert [s.noise[0] for s in tell(scene_of(3), base, folder, seed=7).shots] == [7, 7, 7]
