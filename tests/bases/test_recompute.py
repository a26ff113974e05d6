"""Training over a pretrained base without keeping the inside of its blocks: the same gradients, less memory."""

import pytest
import torch
from memory import peak
from pipelines import fill
from wide import wide_hunyuan15, wide_ltx2, wide_wan

from longshot.bases import tune
from longshot.bases.lora import apply, save_adapter
from longshot.layout import Group, Layout

MADE = [wide_wan, wide_hunyuan15, wide_ltx2]


def tuned(made, layers: int = 4):
    """A base with low-rank layers that have learned something, and a scene of two shots of different sizes, seen causally."""
    base, _, words = made(layers=layers)
    fill(base.network)
    tune.attach(base.network, 2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in base.network.named_parameters():
            if name.endswith("lora_B"):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    groups = [Group(1, len(words), (2, 12, 16)), Group(2, len(words), (1, 12, 8))]
    layout = Layout.single(*groups, rope=base.spec.rope)
    z = torch.randn(layout.num_video, base.spec.channels, generator=generator)
    return base, (z, words.repeat(2, 1), torch.tensor([0.3, 0.8]), layout, "causal")


def learn(made, again: bool) -> tuple[dict, int]:
    """The gradients of one step, and the peak of its memory."""
    base, args = tuned(made)
    if again:
        base.recompute()
    most = peak(lambda: base.velocity(*args).square().mean().backward())
    return {n: p.grad for n, p in base.network.named_parameters() if p.grad is not None}, most


@pytest.mark.parametrize("made", MADE)
def test_gradients_are_the_same_and_less_is_held(made):
    kept, most = learn(made, again=False)
    again, less = learn(made, again=True)
    assert kept.keys() == again.keys() and all("lora_" in name for name in kept)
    assert len(kept) >= 2 * 4 * 8 and all(torch.equal(again[name], kept[name]) for name in kept)
    assert sum(bool(grad.any()) for grad in kept.values()) > 0.9 * len(kept)
    assert less < 0.6 * most


@pytest.mark.parametrize("made", MADE)
def test_what_was_learned_over_any_base_comes_back_as_a_lora_file(made, tmp_path):
    trained, args = tuned(made, layers=1)
    plain, _, _ = made(layers=1)
    fill(plain.network)
    with torch.no_grad():
        before, expected = plain.velocity(*args), trained.velocity(*args)
        learned = {n: p for n, p in trained.network.named_parameters() if p.requires_grad}
        save_adapter(tmp_path / "a.safetensors", tune.as_adapter("a", learned), torch.float32)
        apply(plain.network, [(str(tmp_path / "a.safetensors"), 1.0)], plain.spec.name)
        torch.testing.assert_close(plain.velocity(*args), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2


@torch.no_grad()
def test_a_pass_without_gradients_is_what_it_was():
    base, args = tuned(wide_wan, layers=1)
    expected = base.velocity(*args)
    base.recompute()
    assert torch.equal(base.velocity(*args), expected)
