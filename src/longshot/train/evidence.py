"""What a noisy training shot shows: the truth, or what a sampler's first guesses may look like.

A network that is only ever shown even noise over the truth learns to believe what it faintly sees more than what it was told. In
sampling, what it faintly sees is its own first guess, so early errors stay ("exposure bias"; Ning et al. 2023, arXiv 2301.11706,
train with more noise than is said against it). Here some scenes are shown with people who look otherwise or stand twice, some
shots with grain, some as the network itself guessed them under more noise, and some history as the network itself makes it; what
is to be predicted stays the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longshot.bases.base import Base
from longshot.bases.native import NativeBase
from longshot.flow import add_noise, per_token, velocity, velocity_from_clean
from longshot.layout import GLOBAL, Layout, Visibility
from longshot.train.puppets import Example
from longshot.train.shards import StoredExample

DOUBTFUL = 0.5
"""The noise level above which a shot may be shown otherwise than it is."""
AHEAD = 0.6
"""How far towards pure noise the network's own guess is made: this share of the way there times a level that the stage draws."""
WORN = 0.8
"""The same of history that the network makes again. From higher up people no longer stand where the truth has them, and what
comes next couldn't be told from it."""
REMADE_IN = 3  # steps: of one step, history would be a blur that no sampler leaves
GRAINLESS = 0.02
"""The noise level below which a shot counts as clean and has no grain."""


def false_evidence(
    base: NativeBase,
    examples: Sequence[Example | StoredExample],
    z_0: Float[Tensor, "video channels"],
    layout: Layout,
) -> Float[Tensor, "video channels"] | None:
    """z_0 with the shots of those examples that have a `seen_as` in place of their own; None where none has."""
    if not any(isinstance(e, Example) and e.seen_as for e in examples):
        return None
    rows, spans = z_0.clone(), iter(layout.video_spans)
    for example, groups in zip(examples, layout.scenes, strict=True):
        for group in groups:
            span = next(spans)
            if group.shot != GLOBAL and isinstance(example, Example) and example.seen_as:
                rows[span.slice] = base.encode(example.seen_as[group.shot - 1])
    return rows


def is_misleading(layout: Layout, sigma: Float[Tensor, " groups"]) -> list[bool]:
    """For each group, whether it may show false evidence: a shot above `DOUBTFUL`, where something tells the truth.

    That is the global prompt, the prompt of a shot that is alone, or a shot below `DOUBTFUL`.
    """
    out: list[bool] = []
    levels = iter(sigma.tolist())
    for groups in layout.scenes:
        own = [next(levels) for _ in groups]
        shots = [level for g, level in zip(groups, own, strict=True) if g.shot != GLOBAL]
        told = len(shots) < len(groups) or len(shots) == 1 or min(shots) < DOUBTFUL
        out += [told and g.shot != GLOBAL and s > DOUBTFUL for g, s in zip(groups, own, strict=True)]
    return out


def noised(
    z_0: Float[Tensor, "video channels"],
    evidence: Float[Tensor, "video channels"] | None,
    layout: Layout,
    sigma: Float[Tensor, " groups"],
    eps: Float[Tensor, "video channels"],
) -> tuple[Float[Tensor, "video channels"], Float[Tensor, "video channels"]]:
    """z_t, and the velocity (z_t - z_0) / sigma that leads from it to z_0, whatever the noise lies over."""
    level = per_token(sigma, layout)
    z_t, v = add_noise(z_0, eps, level), velocity(z_0, eps)
    if evidence is None:
        return z_t, v
    false = per_token(torch.tensor(is_misleading(layout, sigma), device=sigma.device), layout)
    z_t = torch.where(false, add_noise(evidence, eps, level), z_t)
    return z_t, torch.where(false, (z_t - z_0) / level.clamp(min=DOUBTFUL), v)


@dataclass(frozen=True)
class Earlier:
    """Where a sampler was before it came to what a step is trained on: noise levels [groups] and noise [video, channels].

    From there the network goes to clean latents in `steps` of Euler's method, all shots at once, each in equal parts of its own
    level. shows: of which groups what it comes to is shown, of all where None; the others show the truth.
    """

    sigma: Float[Tensor, " groups"]
    eps: Float[Tensor, "video channels"]
    steps: int = 1
    shows: Bool[Tensor, " groups"] | None = None


def worn_history(
    layout: Layout,
    sigma: Float[Tensor, " groups"],
    ahead: Float[Tensor, " groups"],
    eps: Float[Tensor, "video channels"],
) -> Earlier:
    """What a roll-out sees: shots below `DOUBTFUL`, made again by the network from higher levels. Resampling Forcing's history
    (Guo et al. 2025, arXiv 2512.15702), made in few steps and all shots at once.

    Shots above begin as pure noise meanwhile, so that no history is made by what comes after it. A shot below that nothing goes
    on from is made again, too: of all of them the loss asks the truth, as a sampler's last steps are asked for it. ahead: how far
    towards `WORN` they begin, from 0 to 1.
    """
    is_shot = torch.tensor([g.shot != GLOBAL for g in layout.groups], device=sigma.device)
    is_history = (sigma < DOUBTFUL) & is_shot
    began = torch.where(is_history, sigma + WORN * ahead * (1 - sigma), is_shot.to(sigma))
    return Earlier(began, eps, REMADE_IN, is_history)


@torch.no_grad()
def own_guess(
    base: Base,
    z_0: Float[Tensor, "video channels"],
    text: Float[Tensor, "text width"],
    layout: Layout,
    visibility: Visibility,
    earlier: Earlier,
    **more: Any,
) -> Float[Tensor, "video channels"]:
    """What the network takes the clean latents for from where a sampler was earlier; z_0 itself where that isn't shown.

    more: what `Base.velocity` takes besides.
    """
    level = per_token(earlier.sigma, layout)
    z_t = add_noise(z_0, earlier.eps, level)
    for taken in range(earlier.steps):
        sigma = earlier.sigma * (1 - taken / earlier.steps)
        z_t = z_t - level / earlier.steps * base.velocity(z_t, text, sigma, layout, visibility, **more)
    if earlier.shows is None:
        return z_t
    return torch.where(per_token(earlier.shows, layout), z_t, z_0)


def noise_over(
    guess: Float[Tensor, "video channels"],
    z_0: Float[Tensor, "video channels"],
    layout: Layout,
    sigma: Float[Tensor, " groups"],
    eps: Float[Tensor, "video channels"],
) -> tuple[Float[Tensor, "video channels"], Float[Tensor, "video channels"]]:
    """z_t, noise over a guess as the stochastic solver lays it, and the velocity that leads from it to z_0."""
    level = per_token(sigma, layout)
    z_t = add_noise(guess, eps, level)
    return z_t, velocity_from_clean(z_t, z_0, level)


def grain(count: int, sigma: float, chance: float, generator: torch.Generator) -> Float[Tensor, "video 1"]:
    """By how much the noise of each of a shot's `count` tokens is stronger than its level says: 1, or in a `chance` of shots
    for half of the tokens so that up to half the size of the clean part comes on top."""
    hit, amount = torch.rand(2, generator=generator).tolist()
    where = torch.rand(count, 1, generator=generator) < 0.5
    if hit >= chance or sigma < GRAINLESS:
        return torch.ones(count, 1)
    return torch.where(where, (1 + (0.5 * amount * (1 - sigma) / sigma) ** 2) ** 0.5, 1.0)
