"""LongLive 2.0: what a chunk sees, against a cache that rolls step by step.

That its own network gives the same is shown by benchmarks/peers/longlive.py, which needs its code.
"""

from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import many
from longshot.bases.longlive import history


def rolled(chunks: int, cuts: set[int], room: int) -> list[tuple[int, ...]]:
    """What each chunk sees of a cache that holds `room` chunks: the oldest that isn't kept makes way for each new one."""
    cache: list[int] = []
    pinned, seen = None, []
    for n in range(1, chunks + 1):
        if len(cache) == room:
            cache.remove(next(c for c in cache if c not in (1, pinned)))
        seen.append(tuple(cache))
        cache.append(n)
        if n in cuts:
            pinned = n
    return seen


@many
@given(st.sets(st.integers(2, 25)), st.integers(3, 6))
def test_a_chunk_sees_what_a_rolling_cache_holds_where_cuts_leave_it_time_to_roll(cuts, room):
    far = {c for c in cuts if all(abs(c - other) >= room for other in cuts - {c})}
    expected = rolled(25, far, room)
    assert [history(n, far, room) for n in range(1, 26)] == expected


def test_the_history_of_a_film_with_two_cuts_is_the_one_worked_out_by_hand():
    seen = {n: history(n, (3, 7), 4) for n in range(1, 10)}
    assert seen[4] == (1, 2, 3) and seen[5] == (1, 3, 4) and seen[6] == (1, 3, 5)
    assert seen[7] == (1, 3, 6) and seen[8] == (1, 6, 7) and seen[9] == (1, 7, 8)
