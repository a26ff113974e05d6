"""LongLive 2.0: what a chunk sees, against a cache that rolls step by step, and weights that load strictly.

That its own network gives the same is shown by benchmarks/peers/longlive.py, which needs its code.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import wan
from safetensors.torch import save_file

from core_fixtures import many
from longshot.bases.longlive import converted, history, load_weights
from longshot.bases.wan_names import wan_name
from longshot.errors import UserError


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


@pytest.fixture(scope="module")
def network():
    return wan().transformer


THEIRS = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn1.to_": "self_attn.",
    "attn2.to_": "cross_attn.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}


def their_state(network) -> dict[str, torch.Tensor]:
    """A state dict as LongLive saves it."""
    out = {}
    for name, weight in network.state_dict().items():
        for ours, theirs in THEIRS.items():
            name = name.replace(ours, theirs)
        name = "head.modulation" if name == "modulation" else name
        out[f"model.{name}"] = weight.clone()
    return out


def test_every_tensor_finds_its_place_whatever_order_the_file_has(network, tmp_path):
    state = their_state(network)
    assert sum(wan_name(k.removeprefix("model.").rpartition(".")[0]) in k for k in state) < len(state)
    found = converted(dict(reversed(state.items())), network.state_dict(), "x")
    assert all(torch.equal(found[k], w) for k, w in network.state_dict().items())

    class Base:
        pass

    other = Base()
    other.network = wan().transformer
    with torch.no_grad():
        for weight in other.network.parameters():
            weight.zero_()
    save_file(state, tmp_path / "longlive.safetensors")
    load_weights(other, tmp_path / "longlive.safetensors")
    for a, b in zip(other.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.head.head.bias"), r"the tensor proj_out.bias is missing"),
        (lambda s: s.update({"model.head.head.bias": torch.zeros(3)}), r"proj_out.bias has shape \[3\]"),
        (
            lambda s: s.update({"model.extra.weight": torch.zeros(3)}),
            "extra.weight belongs to another network",
        ),
        (lambda s: s.update({"head.head.bias": torch.zeros(16)}), "is there twice"),
    ],
)
def test_weights_that_do_not_fit_are_named(network, change, message):
    state = their_state(network)
    change(state)
    with pytest.raises(UserError, match=message):
        converted(state, network.state_dict(), "longlive.safetensors")


def test_a_pickle_is_not_opened(tmp_path, network):
    torch.save(their_state(network), tmp_path / "generator.pt")
    with pytest.raises(UserError, match="save the state dict under `generator` as one"):
        load_weights(None, tmp_path / "generator.pt")
