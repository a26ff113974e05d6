"""Bases that make a shot block by block, one shot after the other: LongLive 2.0 and ShotStream.

A block is denoised by itself, then read clean into the cache. Two kinds of history, as the weights were trained:
"blocks": all shots are one stream of blocks; a block sees the film's first one, the first of the last finished cut, and the
latest. "frames": a shot sees single frames spread over the earlier shots, and its own earlier blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from longshot.bases.base import Base
from longshot.errors import UserError
from longshot.flow import Descent
from longshot.layout import Group, Layout
from longshot.model.context import Context
from longshot.sample.denoise import Finished, Sampling, Step, check_length, levels_of, noise_of
from longshot.sample.plan import Plan, PlannedShot
from longshot.scene import SHOT_CUT

OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Block:
    """One block of a shot: where it lies, what it reads, and its rows in the shot's latent."""

    group: Group
    text: Tensor
    rows: slice


class BlockRunner:
    """Runs a plan on a base whose `Spec.multishot.history` isn't "shots"."""

    def __init__(
        self,
        base: Base,
        plan: Plan,
        sampling: Sampling,
        device: torch.device | str,
        cache_device: torch.device | str | None = None,
    ):
        name = base.spec.name
        assert base.spec.multishot
        self.base, self.plan, self.sampling, self.device = base, plan, sampling, device
        self.cache_device = cache_device or device
        self.habits, self.block = base.spec.multishot, base.spec.multishot.block
        self.sigmas = levels_of(base.spec, sampling).to(device)
        self.latents = {s.shot: s.given.to(device) for s in plan.shots if s.given is not None}
        for shot in plan.shots:
            if shot.grid[0] % self.block:
                raise UserError(
                    f"{shot.label}: has {shot.grid[0]} latent frames; {name} makes {self.block} at a time"
                )

    @torch.no_grad()
    def film(self, done: Mapping[int, Tensor], on_step: OnStep | None) -> Iterator[Finished]:
        """Yields each shot that isn't `done` or given, as it is finished."""
        memory = _Stream(self) if self.habits.history == "blocks" else _Frames(self)
        made = {r.denoise[0]: number for number, r in enumerate(self.plan.rounds, start=1)}
        self.latents |= {k: z.to(self.device) for k, z in done.items()}
        for shot in self.plan.shots:
            blocks = memory.blocks(shot)
            is_new = shot.shot not in self.latents
            if is_new:
                t, h, w = shot.grid
                self.latents[shot.shot] = torch.zeros(t * h * w, self.base.spec.channels, device=self.device)
            z = self.latents[shot.shot]
            for number, block in enumerate(blocks):
                if is_new:
                    at = (made[shot.shot], number, len(blocks))
                    z[block.rows] = self.denoised(shot, block, memory.context(block), z, at, on_step)
                memory.add(block, z[block.rows])
            if is_new:
                yield Finished({shot.shot: z}, ())

    def denoised(
        self,
        shot: PlannedShot,
        block: Block,
        context: Context,
        film: Tensor,
        at: tuple[int, int, int],
        on_step: OnStep | None,
    ) -> Tensor:
        """A block's clean rows. film: the shot's rows so far. at: the round, and which block of how many, from 0."""
        round_, number, blocks = at
        steps = self.sampling.steps
        descent = Descent(self.sampling.solver, self.sigmas, lambda step: self.noise(shot, step)[block.rows])
        z = self.noise(shot, 0)[block.rows]
        for i in range(steps):
            sigma = self.sigmas[i]
            v = self.base.velocity(
                z, block.text, sigma[None], self.layout(context, block), "causal", [context]
            )
            if on_step:
                shown = film.clone()
                shown[block.rows] = z - sigma * v
                done = (round_, len(self.plan.rounds), number * steps + i + 1, blocks * steps)
                on_step(Step((shot.shot,), *done, float(sigma), {shot.shot: shown}))
            z = descent.step(z, v)
        return z

    def noise(self, shot: PlannedShot, step: int) -> Tensor:
        return noise_of(shot, self.base.spec.channels, step).to(self.device)

    def layout(self, context: Context, block: Block) -> Layout:
        return Layout.single(*context.groups, block.group, past=len(context.groups), rope="timeline")

    def remembered(self, context: Context, block: Block, z: Tensor) -> Context:
        """The context and a block, read clean while it sees that context."""
        level = torch.zeros(1, device=self.device)
        layout = self.layout(context, block)
        _, (new,) = self.base.remember(z, block.text, level, layout, "causal", [context])
        return context.extended([new.memories[-1].stored(self.sampling.cache_dtype, self.cache_device)])

    def texts(self, shot: PlannedShot) -> tuple[Tensor, Tensor]:
        """What a shot's first block reads, and what its others read, which begin with no cut."""
        spec = self.base.spec
        uncut = shot.prompt.removeprefix(SHOT_CUT).lstrip()
        words = [
            spec.wording(self.plan.global_prompt, p, shot.shot)
            for p in (shot.prompt if shot.shot > 1 else uncut, uncut)
        ]
        for text in words:
            check_length(self.base, shot, text)
        first, rest = self.base.encode_text(words)
        return first, rest

    def rows(self, shot: PlannedShot, number: int) -> slice:
        _, h, w = shot.grid
        size = self.block * h * w
        return slice(number * size, (number + 1) * size)


class _Stream:
    """History of one stream of blocks through all shots."""

    def __init__(self, runner: BlockRunner):
        from longshot.bases.longlive import history

        self.runner, self.history = runner, history
        self.cuts: list[int] = []  # numbers, from 1, of the blocks that begin with a cut
        self.held, self.at, self.made = Context(), 0, 0

    def blocks(self, shot: PlannedShot) -> list[Block]:
        runner, blocks = self.runner, []
        texts = runner.texts(shot)
        for n in range(shot.grid[0] // runner.block):
            number, text = self.made + n + 1, texts[n > 0]
            if n == 0 and number > 1 and shot.prompt.startswith(SHOT_CUT):
                self.cuts.append(number)
            grid = (runner.block, *shot.grid[1:])
            at = (number - 1) * runner.block + runner.habits.jump * len(self.cuts)
            blocks.append(Block(Group(number, len(text), grid, at=at), text, runner.rows(shot, n)))
        return blocks

    def context(self, block: Block) -> Context:
        return self.held.select(self.history(block.group.shot, self.cuts))

    def add(self, block: Block, z: Tensor) -> None:
        self.made = block.group.shot
        new = self.runner.remembered(self.context(block), block, z)
        held = self.held.extended(new.select([self.made]).memories)
        # What later blocks may see: whatever the next one sees, and the latest cuts, which pin their block.
        needed = {1, *self.cuts[-2:], *range(self.made - 3, self.made + 1)}
        self.held = held.select([g.shot for g in held.groups if g.shot in needed])


class _Frames:
    """History of single frames of earlier shots."""

    def __init__(self, runner: BlockRunner):
        from longshot.bases import shotstream

        self.runner, self.rules = runner, shotstream
        self.base: Any = runner.base
        self.pictures: list[UInt8[np.ndarray, "frames height width 3"]] = []  # of the finished shots
        self.words: list[Tensor] = []
        self.seen = Context()

    def blocks(self, shot: PlannedShot) -> list[Block]:
        runner, rules = self.runner, self.rules
        number = shot.shot - 1  # from 0, as it counts phases
        for earlier in runner.plan.shots[len(self.pictures) : number]:
            self.pictures.append(runner.base.decode(runner.latents[earlier.shot], earlier.grid))
        self.words.append(runner.texts(shot)[0])
        self.seen = self._read(shot)
        grid, text = shot.grid[1:], self.words[-1]
        groups = [
            rules.block_group(n, number, len(text), grid, runner.block)
            for n in range(shot.grid[0] // runner.block)
        ]
        return [Block(group, text, runner.rows(shot, n)) for n, group in enumerate(groups)]

    def _read(self, shot: PlannedShot) -> Context:
        """The frames that a shot sees, read clean while they see each other."""
        runner, rules = self.runner, self.rules
        _, h, w = shot.grid
        if self.pictures:
            chosen = rules.seen_frames([len(p) for p in self.pictures])
            stills = [self.base.encode_still(self.pictures[k][frame]) for k, frame in chosen]
        else:
            chosen = [(0, 0)] * rules.SEEN_FRAMES
            stills = [torch.zeros(h * w, runner.base.spec.channels, device=runner.device)] * len(chosen)
        shots = [k for k, _ in chosen]
        groups = rules.remembered_groups(shots, [len(self.words[k]) for k in shots], (h, w))
        z, text = torch.cat(stills), torch.cat([self.words[k] for k in shots])
        level = torch.zeros(len(groups), device=runner.device)
        layout = Layout.single(*groups, rope="timeline")
        _, (context,) = runner.base.remember(z.to(runner.device), text, level, layout, "scene", [Context()])
        return context.stored(runner.sampling.cache_dtype, runner.cache_device)

    def context(self, block: Block) -> Context:
        return self.seen

    def add(self, block: Block, z: Tensor) -> None:
        self.seen = self.runner.remembered(self.seen, block, z)
