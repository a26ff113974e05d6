"""Many plans in one forward pass: what `sample.denoise` makes plan by plan, made side by side.

Small scenes leave a processor half idle, so their tokens are packed end to end. The slow reference is `denoise` itself.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from longshot.bases.base import Base
from longshot.layout import Layout
from longshot.model.context import Context
from longshot.sample.denoise import Contexts, Runner, Sampling, denoise, seen_last
from longshot.sample.plan import Plan

Latents = dict[int, Tensor]


@torch.no_grad()
def denoise_packed(
    base: Base,
    plans: Sequence[Plan],
    sampling: Sampling,
    *,
    device: torch.device | str = "cpu",
    max_tokens: int = 1536,
    on_plan: Callable[[int], None] | None = None,
) -> list[Latents]:
    """The clean latents of every shot of every plan, given ones included.

    max_tokens: roughly how many video tokens, branches included, share a pass. on_plan: told how many plans were finished
    since it was last told.
    """
    out: list[Latents] = [{} for _ in plans]
    for indices in _packs(plans, sampling, max_tokens):
        runners = [Runner(base, plans[i], sampling, device) for i in indices]
        if sampling.solver != "heun" and not sampling.reuse_steps:
            _run(base, runners)
            made = [runner.latents for runner in runners]
        else:
            made = [_one_by_one(base, runner, device) for runner in runners]
        for i, latents in zip(indices, made, strict=True):
            out[i] = dict(latents)
        if on_plan:
            on_plan(len(indices))
    return out


def _packs(plans: Sequence[Plan], sampling: Sampling, max_tokens: int) -> list[list[int]]:
    """Plans that go together: those with the same visibility, memory and number of rounds, as many as fit."""
    packs: list[list[int]] = []
    open_packs: dict[tuple, tuple[list[int], int]] = {}
    for i, plan in enumerate(plans):
        like = (plan.visibility, plan.memory, len(plan.rounds))
        size = sampling.branches * max(_tokens(plan, number) for number in range(len(plan.rounds)))
        pack, filled = open_packs.get(like, ([], max_tokens))
        if filled + size > max_tokens:
            pack, filled = [], 0
            packs.append(pack)
        pack.append(i)
        open_packs[like] = (pack, filled + size)
    return packs


def _tokens(plan: Plan, number: int) -> int:
    todo = plan.rounds[number]
    shots = todo.denoise if plan.memory == "cache" else (*todo.denoise, *todo.given)
    grids = [plan[s].grid for s in shots]
    return sum(t * h * w for t, h, w in grids)


def _one_by_one(base: Base, runner: Runner, device: torch.device | str) -> Latents:
    latents = dict(runner.latents)
    for finished in denoise(base, runner.plan, runner.sampling, device=device):
        latents |= finished.latents
    return latents


def _run(base: Base, runners: Sequence[Runner]) -> None:
    """Runs plans of one kind in lock step; leaves the results in `runner.latents`."""
    cached = runners[0].plan.memory == "cache"
    contexts: list[Contexts] = [(Context(),) * len(r.branches) for r in runners]
    for number in range(len(runners[0].plan.rounds)):
        if cached:
            contexts = [r.recall(c, number) for r, c in zip(runners, contexts, strict=True)]
        _round(base, runners, number, contexts)
        last = number + 1 == len(runners[0].plan.rounds)
        if cached and not last:
            contexts = [
                r.remembered(c, r.plan.rounds[number]) for r, c in zip(runners, contexts, strict=True)
            ]


def _round(base: Base, runners: Sequence[Runner], number: int, contexts: Sequence[Contexts]) -> None:
    """One round of every runner, as `Runner.round` does it for one."""
    first = runners[0]
    cached = first.plan.memory == "cache"
    rounds = [r.plan.rounds[number] for r in runners]
    seen = [r.seen(c, todo) if cached else c for r, c, todo in zip(runners, contexts, rounds, strict=True)]
    layouts = [
        r.layout(tuple(sorted(todo.denoise if cached else (*todo.denoise, *todo.given))), c)
        for r, c, todo in zip(runners, seen, rounds, strict=True)
    ]
    whole = Layout(
        tuple(chain.from_iterable(layout.scenes for layout in layouts)),
        tuple(chain.from_iterable(layout.past for layout in layouts)),
        base.spec.rope,
    )
    text = torch.cat([r.text(layout) for r, layout in zip(runners, layouts, strict=True)])
    past = tuple(chain.from_iterable(seen))
    held = [
        {} if cached else {s: r.noised(s) for s in todo.given}
        for r, todo in zip(runners, rounds, strict=True)
    ]
    z = [{s: r.noise[s] for s in todo.denoise} for r, todo in zip(runners, rounds, strict=True)]
    sizes = [layout.num_video for layout in layouts]
    endings: dict[int, torch.Tensor] = {}
    first_group = 0
    for r, layout, h in zip(runners, layouts, held, strict=True):
        endings |= {first_group + i: rows for i, rows in r.endings(layout, h).items()}
        first_group += len(layout.groups)
    more = seen_last(endings)

    for i in range(first.sampling.steps):
        sigma = float(first.sigmas[i])
        rows, levels = [], []
        for r, layout, todo, h, own in zip(runners, layouts, rounds, held, z, strict=True):
            level = dict.fromkeys(todo.denoise, sigma) | dict.fromkeys(h, r.plan.context_sigma)
            rows.append(r.rows(layout, {**own, **h}))
            levels.append(r.levels(layout, level))
        args = (torch.cat(rows), text, torch.cat(levels), whole, first.plan.visibility, past)
        v = base.velocity(*args, **more)
        for k, (r, layout, todo, part) in enumerate(
            zip(runners, layouts, rounds, v.split(sizes), strict=True)
        ):
            guided = r.guided(part, layout, todo.denoise)
            z[k] = {s: r.advanced(s, z[k][s], guided[s]) for s in todo.denoise}
    for r, own in zip(runners, z, strict=True):
        r.latents |= own
