"""The renderer is a fast, pure function of the scene, without jumps where a take goes on."""

import time

import numpy as np
import pytest

from longshot.puppets import world
from longshot.puppets.render import render, render_place, render_portrait, render_shot
from longshot.puppets.world import Acting, Puppet, PuppetScene, PuppetShot, draw_scene

MIA = Puppet("Mia", "red", "spots", "top", "blue")


def _scene(action="stand", *, camera="medium", pan=0, frames=8, x=24.0) -> PuppetScene:
    facing = world.walk_direction(action) or 1
    shot = PuppetShot(camera, pan, (Acting(0, action, x, facing, facing),), frames, True)
    return PuppetScene((MIA,), "meadow", "day", (shot,))


def test_a_shot_has_its_frames_in_the_size_of_the_world():
    scene = draw_scene(np.random.default_rng(0), 5, (4, 8, 12))
    for shot, frames in zip(scene.shots, render(scene), strict=True):
        assert frames.shape == (shot.frames, world.HEIGHT, world.WIDTH, 3)
        assert frames.dtype == np.uint8
        assert frames.flags.c_contiguous


def test_rendering_twice_gives_the_same_pixels():
    scene = draw_scene(np.random.default_rng(3), 4)
    for first, second in zip(render(scene), render(scene), strict=True):
        assert np.array_equal(first, second)


def test_the_name_of_a_puppet_changes_no_pixel():
    scene = _scene("wave")
    renamed = PuppetScene(
        (Puppet("Ben", *(MIA.body, MIA.pattern, MIA.hat, MIA.hat_color)),), "meadow", "day", scene.shots
    )
    assert np.array_equal(render_shot(scene, 0), render_shot(renamed, 0))


@pytest.mark.parametrize("camera", world.CAMERAS)
@pytest.mark.parametrize("action", ["walk_left", "walk_right", "wave"])
def test_every_action_moves_more_than_standing(action, camera):
    start = 24.0 - 4 * world.walk_direction(action)
    moving, still = (render_shot(_scene(a, camera=camera, x=start), 0).astype(int) for a in (action, "stand"))
    assert np.abs(np.diff(moving, axis=0)).mean() > np.abs(np.diff(still, axis=0)).mean() + 0.2


def test_a_pan_slides_the_place_by_a_pixel_a_frame():
    shot = PuppetShot("wide", 1, (), 8, True)
    frames = render_shot(PuppetScene((), "city", "dusk", (shot,)), 0)
    for k in range(7):
        assert np.array_equal(frames[k, :, 1:], frames[k + 1, :, :-1])


def test_a_continued_take_has_no_jump_at_the_seam():
    rng = np.random.default_rng(5)
    ratios = []
    while len(ratios) < 150:
        scene = draw_scene(rng, 4, (8, 12), p_continue=0.8, p_empty=0.0)
        shots = [frames.astype(np.float32) for frames in render(scene)]
        for k, shot in enumerate(scene.shots[1:], start=1):
            if not shot.cut:
                inside = [
                    np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) for frames in (shots[k - 1], shots[k])
                ]
                seam = np.abs(shots[k][0] - shots[k - 1][-1]).mean()
                ratios.append(seam / max(0.5, float(np.concatenate(inside).max())))
    assert max(ratios) <= 1.5
    assert np.mean(ratios) <= 1.0


def test_a_portrait_shows_the_puppet_before_a_plain_backdrop():
    picture = render_portrait(MIA)
    assert picture.shape == (world.HEIGHT, world.WIDTH, 3)
    assert (picture[:, :8] == picture[0, 0]).all()
    assert (np.abs(picture.astype(int) - world.PALETTE["red"]).sum(-1) < 20).sum() > 40


def test_places_and_times_look_different():
    pictures = {(e, t): render_place(e, t).astype(int) for e in world.ENVIRONMENTS for t in world.TIMES}
    keys = list(pictures)
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            assert np.abs(pictures[a] - pictures[b]).mean() > 8, (a, b)


def test_a_thousand_frames_a_second_are_rendered_on_one_core():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 5) for _ in range(8)]
    rates = []
    for _ in range(8):
        start = time.process_time()
        count = sum(len(frames) for scene in scenes for frames in render(scene))
        rates.append(count / (time.process_time() - start))
    assert max(rates) >= 1000
