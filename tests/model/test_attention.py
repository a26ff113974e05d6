"""Three ways to attend, and one answer."""

import pytest
import torch
from hypothesis import given

from core_fixtures import few, layouts, many, noise, quiet, seeds, visibilities
from longshot.layout import Group, Layout
from longshot.model.attention import attend

pytestmark = quiet


def qkv(layout: Layout, seed: int):
    num_keys = len(layout.keys)
    return (
        noise(seed, len(layout.queries), 2, 6),
        noise(seed + 1, num_keys, 2, 6),
        noise(seed + 2, num_keys, 2, 6),
    )


@many
@given(layouts(), visibilities, seeds)
def test_prefix_attention_equals_attention_under_a_dense_mask(layout, visibility, seed):
    q, k, v = qkv(layout, seed)
    prefix, dense = (attend(q, k, v, layout, visibility, kernel) for kernel in ("prefix", "dense"))
    assert torch.allclose(prefix, dense, rtol=0, atol=1e-12)


@few
@given(layouts(), visibilities, seeds)
def test_flex_attention_equals_attention_under_a_dense_mask(layout, visibility, seed):
    q, k, v = (x.float() for x in qkv(layout, seed))
    flex, dense = (attend(q, k, v, layout, visibility, kernel) for kernel in ("flex", "dense"))
    assert torch.allclose(flex, dense, rtol=0, atol=1e-5)  # fp32: sums of up to 400 products in another order


@many
@given(layouts(pad=False), visibilities, seeds)
def test_attention_is_a_softmax_over_what_the_mask_shows(layout, visibility, seed):
    q, k, v = qkv(layout, seed)
    score = torch.einsum("qhd,khd->hqk", q, k) / 6**0.5
    score = score.masked_fill(~torch.from_numpy(layout.visible(visibility)), -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", score.softmax(-1), v)
    assert torch.allclose(attend(q, k, v, layout, visibility), expected, rtol=0, atol=1e-12)


@many
@given(layouts(past=False), visibilities, seeds)
def test_padding_changes_nothing_whatever_it_holds(layout, visibility, seed):
    bare = Layout(layout.scenes, layout.past, layout.rope)
    q, k, v = qkv(layout, seed)
    n = len(bare.queries)
    k[n:], v[n:] = 1e6, -1e6
    with_padding = attend(q, k, v, layout, visibility)
    assert len(with_padding) == len(q) and with_padding.isfinite().all()
    assert torch.equal(with_padding[:n], attend(q[:n], k[:n], v[:n], bare, visibility))


def test_a_kernel_that_does_not_exist_is_refused():
    # Past the type checker of the tests, as a caller without one would come.
    from longshot.model import attention

    x = torch.zeros(2, 1, 6)
    plain = getattr(attention.attend, "__wrapped__", attention.attend)
    layout = Layout.single(Group(1, 1, (1, 1, 1)))
    with pytest.raises(ValueError, match="no attention kernel 'flash': use prefix, dense or flex"):
        plain(x, x, x, layout, "scene", "flash")
