"""A network that grew answers as it did, and learns with what is new in it."""

import pytest
import torch

from core_fixtures import fill, inputs, network, quiet
from longshot.layout import Group, Layout, global_group
from longshot.model.grow import grow
from longshot.model.mmdit import MMDiT

pytestmark = quiet

EXACT = 1e-10  # float64, longer sums with zeros in them

SMALL = network(channels=24, depth=3, detail_width=5, patch=(2, 2, 2), refiner_width=8, refiner_depth=1)
OTHER = grow(SMALL, refiner=(8, 1), seed=3)  # the same transformer
LAYOUT = Layout.single(global_group(2), Group(1, 3, (2, 2, 1)), Group(2, 1, (1, 2, 1)))


def answer(net: MMDiT, refine: bool = True) -> torch.Tensor:
    z, text, sigma = inputs(LAYOUT, SMALL)
    return net(z, text, sigma, LAYOUT, refine=refine)


def test_a_network_that_grew_gives_the_same_answer():
    larger = grow(SMALL, doubled=(0, 2), detail_width=11)
    assert larger.config.depth == 5
    assert larger.config.detail_width == 11
    torch.testing.assert_close(answer(larger), answer(SMALL), rtol=0, atol=EXACT)


def test_a_fresh_refiner_knows_nothing_of_the_old_one():
    larger, other = grow(SMALL, doubled=(1,), refiner=(12, 2)), grow(OTHER, refiner=(12, 2))
    torch.testing.assert_close(answer(larger), answer(other), rtol=0, atol=EXACT)
    torch.testing.assert_close(answer(larger, refine=False), answer(SMALL, refine=False), rtol=0, atol=EXACT)
    assert not torch.equal(answer(SMALL), answer(OTHER))


def unlikely(net, moves: int):
    """Its refiner takes the last `moves` pictures for impossible."""
    assert net.refiner is not None
    with torch.no_grad():
        net.refiner.leave.bias[-moves * 4 :] = -1e9
    return net


def test_a_refiner_that_is_shown_a_last_picture_changes_only_what_that_may_explain():
    larger = grow(SMALL, moves=((0, -1, 0), (0, 0, 0)))
    assert larger.config.refiner_moves == ((0, -1, 0), (0, 0, 0))
    assert not torch.equal(answer(larger), answer(SMALL))
    torch.testing.assert_close(answer(unlikely(larger, 2)), answer(SMALL), rtol=0, atol=EXACT)


def test_a_refiner_that_knows_moves_gets_more_of_them():
    some = grow(SMALL, moves=((0, -1, 0), (0, 0, 0)))
    fill(some, 1)
    more = grow(some.double(), moves=((0, -1, 0), (0, 0, 0), (1, 1, 1)))
    assert not torch.equal(answer(more), answer(some))
    torch.testing.assert_close(answer(unlikely(more, 1)), answer(some), rtol=0, atol=EXACT)


def test_what_is_new_learns():
    larger = grow(SMALL, doubled=(0,), detail_width=11)
    answer(larger).square().mean().backward()
    gates = larger.blocks[1].video.modulation.weight.grad.unflatten(0, (6, -1))
    assert gates[2].abs().max() > 0
    assert gates[5].abs().max() > 0
    assert larger.detail_down.weight.grad[:, 5:].abs().max() > 0


def test_what_is_new_in_a_refiner_learns():
    larger = grow(SMALL, moves=((0, -1, 0), (0, 0, 0)))
    answer(larger).square().mean().backward()
    assert larger.refiner.leave.weight.grad[-1].abs().max() > 0
    assert larger.refiner.gates.weight.grad[-1].abs().max() > 0
    assert larger.refiner.enter.weight.grad[:, -1].abs().max() > 0


def test_what_cannot_grow_is_named():
    with pytest.raises(ValueError, match="block 3 can't be doubled: there are blocks 0 to 2"):
        grow(SMALL, doubled=(3,))
    with pytest.raises(ValueError, match=r"can only get more after these, not \(\(1, 1, 1\),\)"):
        grow(grow(SMALL, moves=((0, 0, 0),)), moves=((1, 1, 1),))
    with pytest.raises(ValueError, match="this network has none"):
        grow(network(), moves=((0, 0, 0),))
    with pytest.raises(ValueError, match="5 units can't grow to 4"):
        grow(SMALL, detail_width=4)
