"""Planned shots in one line, and a sampler that runs a plan the slow way."""

from itertools import pairwise

import torch
from torch import Tensor

from longshot.bases.base import Base
from longshot.bases.native import NativeBase
from longshot.layout import Group, Layout, global_group
from longshot.sample.denoise import Sampling, noise_of
from longshot.sample.plan import Plan, PlannedShot

GRIDS = ((1, 2, 2), (2, 1, 2), (1, 1, 1), (1, 2, 1))
PROMPTS = ("Character 1 waves", "Character 2 walks", "a quiet street", "Character 1 jumps up")


def shot(
    number: int,
    prompt: str | None = None,
    *,
    given: Tensor | None = None,
    pinned: bool = False,
    take: int = 0,
    grid: tuple[int, int, int] | None = None,
) -> PlannedShot:
    i = (number - 1) % 4
    noise = (5, f"shot {number}", take)
    words = PROMPTS[i] if prompt is None else prompt
    return PlannedShot(number, f"shot {number}", words, grid or GRIDS[i], noise, given, pinned)


def clip(number: int, channels: int = 24) -> Tensor:
    """Some clean latent for `shot(number)`."""
    t, h, w = GRIDS[(number - 1) % 4]
    return torch.randn(t * h * w, channels, generator=torch.Generator().manual_seed(100 + number))


def story(count: int = 4, given: tuple[int, ...] = ()) -> list[PlannedShot]:
    return [shot(k, given=clip(k) if k in given else None) for k in range(1, count + 1)]


def by_hand(base: Base, plan: Plan, sampling: Sampling) -> dict[int, Tensor]:
    """What `denoise` must make, without its machinery: no packed branches, no cache, history recomputed in every step."""
    done = {s.shot: s.given for s in plan.shots if s.given is not None}
    noise = {s.shot: noise_of(s, base.spec.channels) for s in plan.shots}
    line = torch.linspace(1, 0, sampling.steps + 1, dtype=torch.float64)
    sigmas = (sampling.shift * line / (1 + (sampling.shift - 1) * line)).float().tolist()
    c = plan.context_sigma

    for todo in plan.rounds:
        shots = sorted((*todo.denoise, *todo.given))
        held = {s: (1 - c) * done[s] + c * noise[s] for s in todo.given}

        def one_branch(z: dict[int, Tensor], sigma: float, words: bool) -> dict[int, Tensor]:
            groups, rows, text, level = [], [], [], []
            if words and plan.global_prompt and base.spec.prompts == "group":
                text.append(base.encode_text([plan.global_prompt])[0])
                groups.append(global_group(len(text[0])))
                rows.append(torch.zeros(1, base.spec.channels))
                level.append(0.0)
            for s in shots:  # noqa: B023 (called within the round)
                prompt = base.spec.wording(plan.global_prompt, plan[s].prompt) if words else ""
                text.append(base.encode_text([prompt])[0])
                groups.append(Group(s, len(text[-1]), plan[s].grid))
                rows.append(z[s] if s in z else held[s])  # noqa: B023
                level.append(sigma if s in z else c)
            layout = Layout.single(*groups, rope=base.spec.rope)
            args = (torch.cat(rows), torch.cat(text), torch.tensor(level), layout, plan.visibility)
            more = {}
            if isinstance(base, NativeBase) and base.goes_on:
                ends = enumerate(layout.groups)
                more["endings"] = {i: done[g.shot][-g.frame_tokens :] for i, g in ends if g.shot in held}  # noqa: B023
            v = base.velocity(*args, **more)
            return {g.shot: v[span.slice] for g, span in zip(groups, layout.video_spans, strict=True)}

        def velocity(z: dict[int, Tensor], sigma: float) -> dict[int, Tensor]:
            worded = one_branch(z, sigma, True)
            if sampling.guidance == 1:
                return worded
            wordless = one_branch(z, sigma, False)
            return {s: wordless[s] + sampling.guidance * (worded[s] - wordless[s]) for s in z}

        z = {s: noise[s] for s in todo.denoise}
        for now, after in pairwise(sigmas):
            v = velocity(z, now)
            ahead = {s: z[s] + (after - now) * v[s] for s in z}
            if sampling.solver == "stochastic":
                fresh = {s: noise_of(plan[s], base.spec.channels, sigmas.index(now) + 1) for s in z}
                ahead = {s: (1 - after) * (z[s] - now * v[s]) + after * fresh[s] for s in z}
            if sampling.solver == "heun" and after > 0:
                w = velocity(ahead, after)
                ahead = {s: z[s] + (after - now) * 0.5 * (v[s] + w[s]) for s in z}
            z = ahead
        done |= z
    return {s: z for s, z in done.items() if plan[s].given is None}
