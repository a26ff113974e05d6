"""Random layouts, small networks with weights that matter everywhere, and bases that tests can reason about."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from longshot.bases.base import Base, Spec
from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig
from longshot.flow import per_token, velocity_from_clean
from longshot.layout import Group, Layout, Visibility, global_group
from longshot.model.context import Context
from longshot.model.mmdit import MMDiT, MMDiTConfig

few = settings(max_examples=6, deadline=None)
some = settings(max_examples=15, deadline=None)
many = settings(max_examples=40, deadline=None)

# beartype samples long tuples at random when a strategy builds a Layout; that can't change what is drawn.
quiet = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

SIZES = MMDiTConfig(
    channels=6, text_dim=5, width=24, depth=2, heads=2, cond_width=10, mlp_ratio=2, text_depth=1
)


# -- layouts ------------------------------------------------------------------------------------------------------------
@st.composite
def scene_groups(
    draw: st.DrawFn, max_shots: int = 3, min_shots: int = 1, min_text: int = 0
) -> tuple[Group, ...]:
    """One scene: maybe a global prompt, then shots of any sizes, numbered with or without gaps."""
    texts, sides = st.integers(min_text, 4), st.integers(1, 3)
    groups = [global_group(draw(texts))] if draw(st.booleans()) else []
    shot = 0
    for _ in range(draw(st.integers(min_shots, max_shots))):
        shot += draw(st.integers(1, 2))
        groups.append(Group(shot, draw(texts), draw(st.tuples(sides, sides, sides))))
    return tuple(groups)


@st.composite
def layouts(draw: st.DrawFn, past: bool = True, pad: bool = True) -> Layout:
    """Packs of up to three scenes, of which leading groups may lie in the past, with or without padding."""
    scenes = tuple(draw(st.lists(scene_groups(), min_size=1, max_size=3)))
    num_past = tuple(draw(st.integers(0, len(s) - 1)) if past else 0 for s in scenes)
    rope = draw(st.sampled_from(["interleaved", "aligned", "anchor"]))
    return Layout(scenes, num_past, rope, draw(st.integers(0, 4)) if pad else 0)


visibilities = st.sampled_from(["scene", "causal", "shot"])
seeds = st.integers(0, 2**31)


# -- networks -----------------------------------------------------------------------------------------------------------
def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def levels(seed: int, count: int) -> Tensor:
    """Noise levels in (0, 1) that fp32 holds exactly."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 0.98 + 0.01


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights everywhere: a fresh network's gates are closed, so it would agree with anything."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        scale = 0.3 if weight.ndim < 2 else weight.shape[1] ** -0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + ("norm" in name))


def network(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> MMDiT:
    """A network of a few thousand weights, all of them random."""
    made = MMDiT(replace(SIZES, **changes))
    fill(made, seed)
    return made.to(dtype)


def inputs(layout: Layout, net: MMDiT, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z, text features and sigma for a layout."""
    dtype = net.embed.weight.dtype
    z = noise(seed, layout.num_video, net.config.channels, dtype=dtype)
    text = noise(seed + 1, layout.num_text, net.config.width, dtype=dtype)
    return z, text, levels(seed + 2, len(layout.groups))


# -- bases --------------------------------------------------------------------------------------------------------------
SMALL_SPEC = replace(
    TINY_SPEC,
    name="small",
    size=(4, 4),
    stride=(2, 2, 2),
    channels=24,
    guidance=1.3,
    default_frames=2,
    max_frames=8,
)
SMALL = NativeConfig(SMALL_SPEC, replace(SIZES, channels=24, text_dim=128, predicts="velocity"))


class DoubleBase(NativeBase):
    """The native base in float64 throughout, so that two ways to one result can be told from two results."""

    def velocity(self, z, text, sigma, layout, visibility, past=None, keep=None, **more):
        out = self.network(z, text, sigma, layout, visibility, past, self.kernel, keep, **more)
        if self.config.network.predicts == "velocity":
            return out
        return velocity_from_clean(z, out, per_token(sigma, layout).double())


def small_base(
    seed: int = 0, kind: type[NativeBase] = DoubleBase, config: NativeConfig = SMALL
) -> NativeBase:
    """A base of 2x2x2-pixel patches with random weights; its velocities are small enough to integrate."""
    base = kind.fresh(config)
    fill(base.network, seed)
    with torch.no_grad():
        base.network.head.weight.mul_(0.5)
    base.network.to(torch.float64 if issubclass(kind, DoubleBase) else torch.float32).requires_grad_(False)
    return base


class FieldBase(Base):
    """An oracle: a base whose velocity is a known function of (z, sigma, shot). It has two channels and reads no words."""

    spec = Spec(
        name="oracle",
        licence="Apache-2.0",
        fps=Fraction(8),
        size=(1, 1),
        stride=(1, 1, 1),
        channels=2,
        frame_offset=0,
        default_frames=1,
        max_frames=9,
        max_shots=9,
        max_text_tokens=9,
        display_scale=1,
        guidance=1.0,
        steps=1,
        shift=1.0,
        rope="interleaved",
    )

    def __init__(self, field):
        self.field = field

    def encode_text(self, prompts: Sequence[str]) -> list[Tensor]:
        return [torch.zeros(1, 2) for _ in prompts]

    def velocity(self, z, text, sigma, layout: Layout, visibility: Visibility, past=None):
        pairs = zip(layout.groups, layout.video_spans, strict=True)
        return torch.cat([self.field(z[span.slice], sigma[i], g.shot) for i, (g, span) in enumerate(pairs)])

    def remember(self, z, text, sigma, layout, visibility, past=None):
        return self.velocity(z, text, sigma, layout, visibility), [Context() for _ in layout.scenes]
