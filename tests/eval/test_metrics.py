"""Intervals and scores, against values computed by hand and by scipy."""

import numpy as np
import pytest

from longshot.eval.metrics import Mark, cluster_bootstrap, difference, rate, score, wilson


def _marks(rights, scenes, name="body"):
    return [Mark(name, int(scene), 1, bool(right), True) for right, scene in zip(rights, scenes, strict=True)]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        (8, 10, 0.4901625, 0.9433178),
        (0, 20, 0.0, 0.1611252),
        (20, 20, 0.8388748, 1.0),
        (190, 200, 0.9104219, 0.9726174),
    ],
)
def test_wilsons_interval_is_the_one_in_the_books(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-6)


def test_a_proportion_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no proportion"):
        wilson(0, 0)


def test_a_bootstrap_of_single_marks_is_about_as_wide_as_wilson():
    rng = np.random.default_rng(0)
    rights = rng.random(400) < 0.7
    low, high = cluster_bootstrap(rights.astype(float).tolist(), [1] * 400)
    expected = wilson(int(rights.sum()), 400)
    assert (low, high) == pytest.approx(expected, abs=0.015)


def test_shots_of_one_scene_that_fail_together_widen_the_interval():
    rng = np.random.default_rng(1)
    scenes = np.repeat(np.arange(80), 5)
    together = np.repeat(rng.random(80) < 0.6, 5)
    apart = rng.permutation(together)
    wide, narrow = (score(_marks(rights, scenes)) for rights in (together, apart))
    assert wide.interval == narrow.interval == "bootstrap"
    assert wide.value == narrow.value and wide.scenes == 80 and wide.n == 400
    assert wide.high - wide.low > 1.7 * (narrow.high - narrow.low)
    assert wide.low < wide.value < wide.high


def test_the_bootstrap_gives_the_same_answer_twice():
    sums, counts = [1.0, 0.0, 2.0, 5.0], [5, 5, 3, 5]
    assert cluster_bootstrap(sums, counts) == cluster_bootstrap(sums, counts)


def test_all_right_is_not_certainty_and_scenes_count_not_shots():
    everything = score(_marks([True] * 50, np.repeat(np.arange(10), 5)))
    assert everything.interval == "wilson over scenes"
    assert (everything.low, everything.high) == wilson(10, 10)
    nothing = score(_marks([False] * 50, np.repeat(np.arange(10), 5)))
    assert (nothing.low, nothing.high) == wilson(0, 10)


def test_what_cannot_be_read_is_wrong_and_is_counted():
    marks = [Mark("hat", k, 1, k < 2, k < 3) for k in range(4)]
    found = score(marks, ceiling=1.0, control=0.1, chance=0.25)
    assert (found.value, found.unreadable, found.n, found.interval) == (0.5, 0.25, 4, "wilson")
    assert (found.ceiling, found.control, found.chance) == (1.0, 0.1, 0.25)
    with pytest.raises(ValueError, match="right and unreadable"):
        Mark("hat", 0, 1, True, False)


def test_a_paired_difference_forgets_what_both_runs_share():
    scenes = np.repeat(np.arange(60), 3)
    rng = np.random.default_rng(2)
    first = rng.random(180) < 0.5
    second = first.copy()
    second[:9] = False
    d = difference(_marks(first, scenes), _marks(second, scenes))
    assert d.value == pytest.approx(first[:9].sum() / 180)
    assert d.high - d.low < 0.1  # unpaired it would be 0.2
    same = difference(_marks(first, scenes), _marks(first, scenes))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same scenes"):
        difference(_marks(first, scenes), _marks(first[3:], scenes[3:]))


def test_the_rate_of_no_marks_is_none():
    assert rate([]) is None
