from fractions import Fraction

import numpy as np
import pytest

from longshot.sheet import BACKGROUND, contact_sheet, film_strip

EIGHT = Fraction(8)


def shot(grey: int, count: int = 8, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((count, height, width, 3), grey, np.uint8)


def is_there(sheet: np.ndarray, grey: int) -> int:
    """How many pixels have exactly this grey."""
    return int((sheet == grey).all(axis=-1).sum())


def test_every_shot_is_a_row_of_its_frames():
    sheet = contact_sheet([shot(50), shot(100), shot(200)], ["one", "two", "three"], fps=EIGHT)
    rows = [np.flatnonzero((sheet == grey).all(axis=-1).any(axis=1)) for grey in (50, 100, 200)]
    assert rows[0].max() < rows[1].min() < rows[1].max() < rows[2].min()
    areas = [is_there(sheet, grey) for grey in (50, 100, 200)]
    assert areas == pytest.approx([5 * 288 * 192] * 3, rel=0.01)


def test_a_shot_shorter_than_its_row_shows_each_frame_once():
    sheet = contact_sheet([shot(50, count=1), shot(100, count=3)])
    assert is_there(sheet, 50) == pytest.approx(288 * 192, rel=0.01)
    assert is_there(sheet, 100) == pytest.approx(3 * 288 * 192, rel=0.01)


def test_shots_of_different_sizes_keep_their_shapes():
    sheet = contact_sheet([shot(50, height=32, width=48), shot(100, height=48, width=48)])
    assert is_there(sheet, 100) == pytest.approx(1.5 * is_there(sheet, 50), rel=0.01)


def test_a_long_prompt_takes_no_more_room_than_two_lines():
    short = contact_sheet([shot(50)], ["a few words"])
    two = contact_sheet([shot(50)], ["many words " * 20])
    many = contact_sheet([shot(50)], ["many words " * 500])
    endless = contact_sheet([shot(50)], ["x" * 5000])
    assert short.shape[0] < two.shape[0] == many.shape[0] == endless.shape[0]
    assert short.shape[1] == many.shape[1]


def test_accents_are_drawn_as_plain_letters_not_as_boxes():
    assert np.array_equal(
        contact_sheet([shot(50)], ["Café – Straße…"]), contact_sheet([shot(50)], ["Cafe - Strasse..."])
    )


def test_a_prompt_for_every_shot_or_none():
    with pytest.raises(ValueError, match="zip"):
        contact_sheet([shot(50), shot(100)], ["one"])


def test_a_title_comes_first():
    plain, titled = contact_sheet([shot(50)]), contact_sheet([shot(50)], title="A long day")
    assert titled.shape[0] > plain.shape[0]
    assert (titled[:60] != BACKGROUND).any()


def test_the_strip_shows_the_middle_of_every_shot_side_by_side():
    frames = np.concatenate([shot(50, 2), shot(100, 1), shot(50, 2)])
    strip = film_strip([frames, shot(200)], height=64)
    assert strip.shape[0] == 64 + 2 * 2
    assert is_there(strip, 50) == 0
    assert is_there(strip, 100) == is_there(strip, 200) == pytest.approx(64 * 96, rel=0.02)
