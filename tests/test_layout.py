"""Where tokens are: positions by hand, spans that fit together, and two ways to say who sees whom."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_fixtures import layouts, many, quiet, scene_groups, visibilities
from longshot.layout import (
    ALIGNED_GAP,
    GLOBAL,
    PADDING,
    Group,
    Layout,
    global_group,
    positions_of_group,
    timeline,
)

pytestmark = quiet
DIAGONAL = st.sampled_from(["interleaved", "anchor"])  # modes that move a group along all three axes


def test_interleaved_positions_of_a_small_scene_are_those_worked_out_by_hand():
    # LCT sec. 3.2.1: text on the space diagonal, video from offset + T_i, the next group one past the largest coordinate.
    layout = Layout.single(global_group(2), Group(1, 3, (2, 1, 2)), Group(2, 1, (1, 2, 1)))
    text_0, dummy = [(0, 0, 0), (1, 1, 1)], [(2, 2, 2)]
    text_1 = [(3, 3, 3), (4, 4, 4), (5, 5, 5)]
    video_1 = [(6, 6, 6), (6, 6, 7), (7, 6, 6), (7, 6, 7)]
    text_2, video_2 = [(8, 8, 8)], [(9, 9, 9), (9, 10, 9)]
    expected = [*text_0, *dummy, *text_1, *video_1, *text_2, *video_2]
    assert [tuple(p) for p in layout.queries.position.tolist()] == expected


def test_anchored_positions_of_a_small_scene_are_those_worked_out_by_hand():
    layout = Layout.single(global_group(2), Group(1, 2, (2, 1, 3)), Group(2, 1, (1, 1, 1)), rope="anchor")
    video_1 = [(1, 1, 1), (1, 1, 2), (1, 1, 3), (2, 1, 1), (2, 1, 2), (2, 1, 3)]
    expected = [(0, 0, 0)] * 3 + [(1, 1, 1)] * 2 + video_1 + [(4, 4, 4)] * 2
    assert [tuple(p) for p in layout.queries.position.tolist()] == expected


def test_aligned_positions_of_a_small_scene_are_those_worked_out_by_hand():
    # A place in the picture has one (h, w) in every shot, and what was shown last lies 9 before what comes next.
    layout = Layout.single(global_group(2), Group(1, 1, (2, 1, 2)), Group(2, 3, (1, 2, 1)), rope="aligned")
    text_0, dummy = [(-2, -2, -2), (-1, -1, -1)], [(0, 0, 0)]
    text_1, video_1 = [(8, -1, -1)], [(9, 0, 0), (9, 0, 1), (10, 0, 0), (10, 0, 1)]
    text_2, video_2 = [(16, -3, -3), (17, -2, -2), (18, -1, -1)], [(19, 0, 0), (19, 1, 0)]
    expected = [*text_0, *dummy, *text_1, *video_1, *text_2, *video_2]
    assert [tuple(p) for p in layout.queries.position.tolist()] == expected


def test_a_timeline_of_chunks_and_cuts_is_the_one_worked_out_by_hand():
    # Chunks of two latent frames; shot 3 begins with a cut, a jump of 8 (LongLive 2.0). Shot 2 has been left out of history.
    groups = timeline([Group(i, 1, (2, 1, 2)) for i in (1, 2, 3, 4)], cuts={3}, jump=8)
    assert [g.at for g in groups] == [0, 2, 12, 14]
    layout = Layout.single(groups[0], *groups[2:], past=1, rope="timeline")
    first = [(0, 0, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    third = [(12, 0, 0), (12, 0, 0), (12, 0, 1), (13, 0, 0), (13, 0, 1)]
    fourth = [(14, 0, 0), (14, 0, 0), (14, 0, 1), (15, 0, 0), (15, 0, 1)]
    assert [tuple(p) for p in layout.keys.position.tolist()] == [*first, *third, *fourth]
    assert [tuple(p) for p in layout.queries.position.tolist()] == [*third, *fourth]


@many
@given(scene_groups(max_shots=5), st.sets(st.integers(1, 10)), st.integers(0, 9))
def test_a_timeline_equals_frame_numbers_counted_one_by_one(groups, cuts, jump):
    placed = timeline(groups, cuts, jump)
    expected, clock = [], 0
    for g in groups:
        if g.shot in cuts:
            clock += jump
        expected += [(clock, 0, 0)] * g.text
        for t in range(g.grid[0]):
            expected += [(clock + t, y, x) for y in range(g.grid[1]) for x in range(g.grid[2])]
        clock += g.grid[0]
    positions = Layout.single(*placed, rope="timeline").queries.position.tolist()
    assert [tuple(p) for p in positions] == expected
    if not jump:  # then a group that says nothing of its place lies there too
        assert Layout.single(*groups, rope="timeline").queries.position.tolist() == positions


@many
@given(scene_groups(max_shots=5))
def test_an_interleaved_group_starts_one_past_the_largest_coordinate_before_it(groups):
    layout = Layout.single(*groups)
    largest = -1
    for span in layout.group_spans:
        own = layout.queries.position[span.slice]
        assert own.min() == largest + 1
        largest = own.max()


@many
@given(scene_groups(max_shots=5))
def test_an_anchored_group_costs_the_longest_side_of_its_grid_and_no_more(groups):
    layout = Layout.single(*groups, rope="anchor")
    offset = 0
    for group, span in zip(layout.groups, layout.group_spans, strict=True):
        assert layout.queries.position[span.slice].min() == offset
        offset += max(group.grid)


@many
@given(scene_groups(), DIAGONAL, st.integers(0, 50))
def test_inside_a_group_positions_are_those_of_a_single_shot_moved_as_a_whole(groups, rope, offset):
    for group in groups:
        alone, end_alone = positions_of_group(group, 0, rope)
        moved, end_moved = positions_of_group(group, offset, rope)
        assert np.array_equal(moved, alone + offset) and end_moved == end_alone + offset


@many
@given(scene_groups(max_shots=5))
def test_aligned_positions_are_the_interleaved_ones_inside_a_group_and_one_frame_for_all(groups):
    aligned, interleaved = (Layout.single(*groups, rope=rope) for rope in ("aligned", "interleaved"))
    clock = 0
    for group, span in zip(aligned.groups, aligned.group_spans, strict=True):
        own, other = aligned.queries.position[span.slice], interleaved.queries.position[span.slice]
        assert np.array_equal(own - own[0], other - other[0])
        video = own[group.text :]
        assert video.min(axis=0).tolist() == [clock, 0, 0]
        clock = video[:, 0].max() + 1 + ALIGNED_GAP


@many
@given(layouts())
def test_columns_spans_and_groups_all_count_the_same_tokens(layout):
    q = layout.queries
    assert len(q) == layout.num_text + layout.num_video + layout.pad
    assert len(layout.keys) - len(q) == sum(
        g.tokens for groups, n in zip(layout.scenes, layout.past, strict=True) for g in groups[:n]
    )
    for i, (group, span) in enumerate(zip(layout.groups, layout.group_spans, strict=True)):
        assert (q.group[span.slice] == i).all() and (q.shot[span.slice] == group.shot).all()
        assert q.is_text[span.slice].tolist() == [True] * group.text + [False] * group.video
        assert (layout.group_of_video[layout.video_spans[i].slice] == i).all()
    assert len(layout.group_of_text) == layout.num_text
    assert (q.shot[len(q) - layout.pad :] == PADDING).all()
    if layout.groups:
        assert layout.group_spans[-1].stop == len(q) - layout.pad
        assert layout.video_spans[-1].stop == layout.num_video


@many
@given(layouts())
def test_interleaving_puts_each_row_of_text_and_video_in_its_own_group_in_order(layout):
    group_of_source = np.r_[layout.group_of_text, layout.group_of_video]
    computed = len(layout.queries) - layout.pad
    assert sorted(layout.interleave) == list(range(computed))
    assert np.array_equal(group_of_source[layout.interleave], layout.queries.group[:computed])
    is_text = layout.queries.is_text[:computed]
    assert (np.diff(layout.interleave[is_text]) > 0).all() and (
        np.diff(layout.interleave[~is_text]) > 0
    ).all()


@many
@given(layouts(), visibilities)
def test_blocks_say_exactly_what_the_dense_mask_says(layout, visibility):
    mask = np.zeros((len(layout.queries), len(layout.keys)), bool)
    for q, k in layout.blocks(visibility):
        assert not mask[q.slice].any(), "a query is in two blocks"
        mask[q.slice, k.slice] = True
    for j in range(1, layout.pad + 1):
        mask[-j, -j] = True
    assert np.array_equal(mask, layout.visible(visibility))


@many
@given(layouts(), visibilities)
def test_every_token_sees_itself_and_none_sees_padding_or_another_scene(layout, visibility):
    seen, q, k = layout.visible(visibility), layout.queries, layout.keys
    tail = len(k) - len(q)
    if not any(layout.past):
        assert seen.diagonal().all() and tail == 0
    assert not seen[: len(q) - layout.pad][:, k.shot == PADDING].any()
    assert not seen[q.scene[:, None] != k.scene[None]].any()
    assert seen.any(axis=1).all()


@many
@given(layouts(pad=False))
def test_visibility_narrows_from_scene_to_causal_to_shot(layout):
    scene, causal, shot = (layout.visible(v) for v in ("scene", "causal", "shot"))
    assert (causal <= scene).all() and (shot <= causal).all()
    later = layout.keys.shot[None] > layout.queries.shot[:, None]
    assert not causal[later].any()


@many
@given(layouts(pad=False))
def test_groups_in_the_past_keep_their_places_and_only_leave_the_queries(layout):
    whole = Layout(layout.scenes, rope=layout.rope)
    assert np.array_equal(layout.keys.position, whole.queries.position)
    assert np.array_equal(layout.keys.shot, whole.queries.shot)
    new = np.concatenate(
        [
            np.repeat([i >= n for i in range(len(groups))], [g.tokens for g in groups])
            for groups, n in zip(layout.scenes, layout.past, strict=True)
        ]
    )
    assert np.array_equal(layout.queries.position, whole.queries.position[new])


def test_scenes_in_a_pack_each_start_at_position_zero():
    groups = (Group(1, 2, (1, 2, 2)), Group(2, 1, (1, 1, 1)))
    pack = Layout((groups, groups))
    first, second = np.split(pack.queries.position, 2)
    assert np.array_equal(first, second)


def test_a_layout_whose_groups_are_all_in_the_past_computes_nothing():
    layout = Layout.single(Group(1, 2, (1, 1, 1)), past=1)
    assert len(layout.queries) == 0 and len(layout.keys) == 3
    assert layout.groups == () and layout.blocks("causal") == []
    assert len(Layout(()).queries) == 0


def test_the_global_prompt_is_group_zero_with_one_dummy_token_of_video():
    assert global_group(7) == Group(GLOBAL, 7, (1, 1, 1)) and global_group(7).tokens == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(-1, 1, (1, 1, 1)), "a group needs shot >= 0"),
        (lambda: Group(1, -1, (1, 1, 1)), "text >= 0"),
        (lambda: Group(1, 1, (1, -1, 1)), "a grid of three sizes >= 0"),
        (
            lambda: Layout.single(Group(2, 1, (1, 1, 1)), Group(1, 1, (1, 1, 1))),
            "scene 0: shot ids must rise",
        ),
        (
            lambda: Layout.single(Group(1, 1, (1, 1, 1)), Group(1, 1, (1, 1, 1))),
            r"without repeats, got \[1, 1\]",
        ),
        (
            lambda: Layout.single(Group(1, 1, (1, 1, 1)), past=2),
            "scene 0 has 1 groups; 2 of them can't be in the past",
        ),
        (lambda: Layout(((Group(1, 1, (1, 1, 1)),),), past=(0, 0)), "1 scenes but 2 counts of past groups"),
    ],
)
def test_a_layout_that_makes_no_sense_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@quiet
@many
@given(layouts(pad=False))
def test_packed_scenes_are_the_same_scenes_one_by_one(layout):
    parts = layout.one_by_one()
    assert [p.scenes[0] for p in parts] == list(layout.scenes)
    assert sum((p.groups for p in parts), ()) == layout.groups
    assert np.array_equal(np.concatenate([p.keys.position for p in parts]), layout.keys.position)


@quiet
@many
@given(layouts(), st.sampled_from(["anchor", "aligned", "timeline"]))
def test_without_text_the_video_stays_where_it_was_if_text_takes_no_room(layout, rope):
    layout = replace(layout, rope=rope)
    bare, columns = layout.without_text(), layout.queries
    assert bare.num_text == 0 and bare.past == layout.past
    assert np.array_equal(bare.queries.position, columns.position[~columns.is_text])
