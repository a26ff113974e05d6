"""The one loop that runs every plan (DESIGN: "The loop, in full").

Guidance adds a second branch without words. The branches are packed like two scenes, so a step is one forward pass and a cache
is one `Context` a branch.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from longshot.bases.base import Base, Mode, Spec, holds_history_clean
from longshot.errors import UserError
from longshot.flow import Descent, Solver, add_noise, need_solver, shift_sigma, sigma_table
from longshot.layout import GLOBAL, Group, Layout, global_group, timeline
from longshot.model.context import CacheDtype, Context
from longshot.sample.plan import Plan, PlannedShot, Round

Contexts = tuple[Context, ...]


@dataclass(frozen=True)
class Sampling:
    """How to integrate. steps: solver steps a shot (Heun evaluates twice a step); shift: of the noise levels towards noise,
    None for that of the base at the size of the largest shot that is made at once (`Spec.shift_at`);
    guidance: classifier-free scale, 1 for none; reuse_steps: keep the keys and values of the denoising step whose
    noise level is nearest context_sigma as the cache, which saves a forward pass a shot (LCT sec. 3.3); cache_dtype: how the
    cache is kept, which changes later shots a little. share_history: both branches of guidance read the cache of the one with
    words, which halves it and the passes that fill it.
    """

    steps: int = 16
    shift: float | None = 3.0
    guidance: float = 1.5
    solver: Solver = "euler"
    reuse_steps: bool = False
    cache_dtype: CacheDtype = "own"
    share_history: bool = False

    def __post_init__(self):
        if self.cache_dtype not in get_args(CacheDtype):
            raise UserError(f"no cache dtype {self.cache_dtype!r}: use {', '.join(get_args(CacheDtype))}")
        if self.solver not in get_args(Solver):
            raise UserError(f"no solver {self.solver!r}: use {', '.join(get_args(Solver))}")
        need_solver(self.solver)
        if self.steps < 1:
            raise UserError(f"{self.steps} steps make no picture; use 1 or more")
        if self.guidance < 0 or (self.shift is not None and self.shift <= 0):
            raise UserError(f"guidance {self.guidance} and shift {self.shift} must be positive")

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1 else 2

    @property
    def histories(self) -> int:
        """How many contexts are kept."""
        return 1 if self.share_history else self.branches


@dataclass(frozen=True)
class Step:
    """What a callback learns after each step: where the loop is, and the clean picture each shot is heading for."""

    shots: tuple[int, ...]
    round: int
    rounds: int
    step: int
    steps: int
    sigma: float
    clean: Mapping[int, Float[Tensor, "video channels"]]


@dataclass(frozen=True)
class Finished:
    """A finished round: the clean latents of its shots, and the contexts that hold all so far (cache only): one a branch, or
    one for both."""

    latents: dict[int, Float[Tensor, "video channels"]]
    contexts: Contexts


def generator_of(shot: PlannedShot, step: int = 0) -> torch.Generator:
    """Where a shot's noise comes from: a function of (seed, key, take) and of the step, on the CPU.

    step: 0 for the noise the shot starts from; k for what a stochastic solver adds in its k-th step.
    """
    key = (*shot.noise, step) if step else shot.noise
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def noise_of(shot: PlannedShot, channels: int, step: int = 0) -> Float[Tensor, "video channels"]:
    """The shot's noise of a step, drawn on the CPU so that every machine draws the same."""
    t, h, w = shot.grid
    return torch.randn(t * h * w, channels, generator=generator_of(shot, step))


@dataclass(frozen=True)
class Branch:
    """One way of reading the prompts: with the words, or (for guidance) without."""

    global_text: Tensor | None
    texts: dict[int, Tensor]

    @classmethod
    def conditional(cls, base: Base, plan: Plan) -> "Branch":
        spec = base.spec
        top = [plan.global_prompt] if plan.global_prompt and spec.prompts == "group" else []
        prompts = [spec.wording(plan.global_prompt, s.prompt, s.shot) for s in plan.shots]
        if spec.prompts == "joined" and not (spec.multishot and spec.multishot.reads == "scene"):
            for shot, prompt in zip(plan.shots, prompts, strict=True):
                check_length(base, shot, prompt)
        if spec.multishot and spec.multishot.reads == "scene":
            scene = getattr(base, "encode_scene")(plan.global_prompt, [s.prompt for s in plan.shots])  # noqa: B009
            return cls(None, dict(zip((s.shot for s in plan.shots), scene, strict=True)))
        features = base.encode_text([*top, *prompts])
        texts = dict(zip((s.shot for s in plan.shots), features[len(top) :], strict=True))
        return cls(features[0] if top else None, texts)

    @classmethod
    def wordless(cls, base: Base, plan: Plan) -> "Branch":
        empty = base.encode_text([""])[0]
        return cls(None, {s.shot: empty for s in plan.shots})

    def group(self, shot: PlannedShot) -> Group:
        return Group(shot.shot, len(self.texts[shot.shot]), shot.grid)


def check_length(base: Base, shot: PlannedShot, prompt: str) -> None:
    """UserError where a shot's prompt, only together with the global one, is more than the base reads."""
    if (tokens := len(base.tokenise(prompt))) > base.spec.max_text_tokens:
        raise UserError(
            f"{shot.label}: its prompt and the global prompt have {tokens} tokens together; {base.spec.name} reads "
            f"{base.spec.max_text_tokens}: shorten either"
        )


def levels_of(spec: Spec, sampling: Sampling, tokens: int = 0) -> Float[Tensor, " levels"]:
    """The noise levels of a sampling: those the base was distilled for, where it is to take as many steps as they are.

    tokens: of the largest shot that is made, for a base whose shift follows them.
    """
    fixed = spec.multishot.levels if spec.multishot else ()
    shift = spec.shift_at(tokens) if sampling.shift is None else sampling.shift
    if sampling.steps != len(fixed):
        return sigma_table(sampling.steps, shift, spec.last_level)
    return shift_sigma(torch.tensor([*fixed, 0.0], dtype=torch.float64), shift).float()


def nearest_step(levels: Float[Tensor, " levels"], sigma: float) -> int:
    """The step of a sampling whose noise level is nearest sigma (the last level, 0, is never evaluated)."""
    return int((levels[:-1] - sigma).abs().argmin())


class Runner:
    """Runs the rounds of one plan: holds what doesn't change between steps."""

    def __init__(
        self,
        base: Base,
        plan: Plan,
        sampling: Sampling,
        device: torch.device | str,
        cache_device: torch.device | str | None = None,
    ):
        self.base, self.plan, self.sampling, self.device = base, plan, sampling, device
        self.cache_device = cache_device or device
        self.branches = [Branch.conditional(base, plan)]
        if sampling.branches == 2:
            self.branches.append(Branch.wordless(base, plan))
        self.noise = {s.shot: noise_of(s, base.spec.channels).to(device) for s in plan.shots}
        self.latents = {s.shot: s.given.to(device) for s in plan.shots if s.given is not None}
        self.sigmas = self.levels_for(plan.rounds[0].denoise if plan.rounds else ())
        self.descents: dict[int, Descent] = {}  # a shot

    def levels_for(self, shots: Sequence[int]) -> Tensor:
        """The noise levels that shots share which are made at once."""
        tokens = max((prod(self.plan[s].grid) for s in shots), default=0)
        return levels_of(self.base.spec, self.sampling, tokens).to(self.device)

    @property
    def memory_step(self) -> int:
        """The step whose noise level is nearest context_sigma."""
        return nearest_step(self.sigmas, self.plan.context_sigma)

    # -- one forward pass -----------------------------------------------------------------------------------------------
    def layout(self, shots: tuple[int, ...], contexts: Contexts) -> Layout:
        """The packed branches: each one's context, then its global prompt unless remembered, then these shots."""
        scenes, past = [], []
        for branch, context in zip(self.branches[: len(contexts)], contexts, strict=True):
            remembered = context.groups
            new = [branch.group(self.plan[s]) for s in shots]
            if branch.global_text is not None and GLOBAL not in context.shots:
                new.insert(0, global_group(len(branch.global_text)))
            scene = (*remembered, *new)
            if self.base.spec.multishot and self.base.spec.rope == "timeline":
                scene = timeline(scene, [g.shot for g in scene[1:]], self.base.spec.multishot.jump)
            scenes.append(scene)
            past.append(len(remembered))
        return Layout(tuple(scenes), tuple(past), self.base.spec.rope)

    def rows(self, layout: Layout, of_shot: Mapping[int, Tensor]) -> Tensor:
        """Joins per-shot rows in the layout's order, for every branch; the global prompt's dummy video is zero."""
        zero = torch.zeros(1, self.base.spec.channels, device=self.device)
        return torch.cat([zero if g.shot == GLOBAL else of_shot[g.shot] for g in layout.groups])

    def levels(self, layout: Layout, of_shot: Mapping[int, float]) -> Tensor:
        return torch.tensor([of_shot.get(g.shot, 0.0) for g in layout.groups], device=self.device)

    def text(self, layout: Layout) -> Tensor:
        pieces, groups = [], iter(layout.groups)
        branches = self.branches[: len(layout.scenes)]
        for branch, scene, past in zip(branches, layout.scenes, layout.past, strict=True):
            for _ in scene[past:]:
                shot = next(groups).shot
                feature = branch.global_text if shot == GLOBAL else branch.texts[shot]
                assert feature is not None
                pieces.append(feature)
        return torch.cat(pieces)

    def guided(self, v: Tensor, layout: Layout, shots: tuple[int, ...]) -> dict[int, Tensor]:
        """v of each shot: v_wordless + guidance (v_worded - v_wordless)."""
        by_branch: list[dict[int, Tensor]] = [{} for _ in self.branches]
        index = [
            b
            for b, (scene, past) in enumerate(zip(layout.scenes, layout.past, strict=True))
            for _ in scene[past:]
        ]
        for b, g, span in zip(index, layout.groups, layout.video_spans, strict=True):
            by_branch[b][g.shot] = v[span.slice]
        if len(by_branch) == 1:
            return {s: by_branch[0][s] for s in shots}
        worded, wordless = by_branch
        return {s: torch.lerp(wordless[s], worded[s], self.sampling.guidance) for s in shots}

    def advanced(self, shot: int, z: Tensor, v: Tensor) -> Tensor:
        """A shot's z at the next noise level, as one evaluation moves it."""
        if shot not in self.descents:

            def fresh(step: int) -> Tensor:
                return noise_of(self.plan[shot], self.base.spec.channels, step).to(self.device)

            self.descents[shot] = Descent(self.sampling.solver, self.sigmas, fresh)
        return self.descents[shot].step(z, v)

    # -- one round ------------------------------------------------------------------------------------------------------
    def round(self, number: int, contexts: Contexts, on_step: Callable[[Step], None] | None) -> Finished:
        """Denoises one round's shots. With a cache, `contexts` hold its history; else history is recomputed in each step."""
        todo = self.plan.rounds[number]
        self.sigmas = self.levels_for(todo.denoise)
        cached = self.plan.memory == "cache"
        shots = tuple(sorted(todo.denoise if cached else (*todo.denoise, *todo.given)))
        seen = self.views(self.seen(contexts, todo) if cached else contexts)
        layout = self.layout(shots, seen)
        text = self.text(layout)
        held = {} if cached else {s: self.noised(s) for s in todo.given}
        more = seen_last(self.endings(layout, held))
        z = {s: self.noise[s] for s in todo.denoise}
        kept: list[Contexts] = []

        def velocity(z: Mapping[int, Tensor], sigma: float, keep: bool = False) -> dict[int, Tensor]:
            level = dict.fromkeys(todo.denoise, sigma) | dict.fromkeys(held, self.plan.context_sigma)
            args = (
                self.rows(layout, {**z, **held}),
                text,
                self.levels(layout, level),
                layout,
                self.plan.visibility,
                seen,
            )
            if keep:
                v, new = self.base.remember(*args)
                kept.append(tuple(new))
            else:
                v = self.base.velocity(*args, **more)
            return self.guided(v, layout, todo.denoise)

        for i in range(self.sampling.steps):
            sigma, after = float(self.sigmas[i]), float(self.sigmas[i + 1])
            v = velocity(z, sigma, keep=cached and self.sampling.reuse_steps and i == self.memory_step)
            if on_step:
                clean = {s: z[s] - sigma * v[s] for s in todo.denoise}
                at = (number + 1, len(self.plan.rounds), i + 1, self.sampling.steps)
                on_step(Step(todo.denoise, *at, sigma, clean))
            moved = {s: self.advanced(s, z[s], v[s]) for s in todo.denoise}
            if self.sampling.solver == "heun" and after > 0:
                w = velocity(moved, after)
                moved = {s: z[s] + (after - sigma) * (v[s] + w[s]) / 2 for s in todo.denoise}
            z = moved
        self.latents |= z
        if not cached:
            return Finished(z, contexts)
        if kept:
            new = {m.group.shot: m for m in kept[0][0].memories}
            assert set(todo.denoise) <= set(new)
            reused = zip(contexts, kept[0][: len(contexts)], strict=True)
            return Finished(z, tuple(self.joined(c, k.select(todo.denoise)) for c, k in reused))
        return Finished(z, self.remembered(contexts, todo))

    # -- history --------------------------------------------------------------------------------------------------------
    def noised(self, shot: int) -> Tensor:
        """A finished shot at noise level context_sigma."""
        return add_noise(
            self.latents[shot], self.noise[shot], torch.tensor(self.plan.context_sigma, device=self.device)
        )

    def views(self, contexts: Contexts) -> Contexts:
        """What each branch reads: its own history, or that of the branch with words but for the global prompt."""
        if len(contexts) == len(self.branches):
            return contexts
        (worded,) = contexts
        return worded, worded.select([s for s in worded.shots if s != GLOBAL])

    def seen(self, contexts: Contexts, todo: Round) -> Contexts:
        return tuple(c.select([s for s in c.shots if s == GLOBAL or s in todo.given]) for c in contexts)

    def remembered(self, contexts: Contexts, todo: Round) -> Contexts:
        """`contexts` and the shots of a round, read at noise level context_sigma while they see what that round saw."""
        seen = self.seen(contexts, todo)
        layout = self.layout(todo.denoise, seen)
        level = dict.fromkeys(todo.denoise, self.plan.context_sigma)
        z = self.rows(layout, {s: self.noised(s) for s in todo.denoise})
        _, new = self.base.remember(z, self.text(layout), self.levels(layout, level), layout, "causal", seen)
        return tuple(self.joined(c, n) for c, n in zip(contexts, new, strict=True))

    def joined(self, context: Context, new: Context) -> Context:
        """A context with what was remembered now, in the dtype and at the place where it is kept, and with last pictures as the
        film has them: they are known, whatever the noise at which a shot was read."""
        stored = new.stored(self.sampling.cache_dtype, self.cache_device)
        return context.extended(
            m if m.last is None else replace(m, last=self.ending(m.group).to(m.last)) for m in stored.memories
        )

    def ending(self, group: Group) -> Float[Tensor, "rows channels"]:
        """The last token frame of a finished shot."""
        return self.latents[group.shot][-group.frame_tokens :]

    def endings(self, layout: Layout, shots: Collection[int]) -> dict[int, Tensor]:
        """The last pictures of finished shots, by their groups' places in a layout; none for a base whose pixels don't go on
        from them."""
        if not getattr(self.base, "goes_on", False):
            return {}
        return {i: self.ending(g) for i, g in enumerate(layout.groups) if g.shot in shots}

    def recall(self, contexts: Contexts, number: int) -> Contexts:
        """Adds what a round's history lacks: the global prompt, and given shots, each seeing the given ones before it."""
        if any(
            b.global_text is not None and GLOBAL not in c.shots
            for b, c in zip(self.branches[: len(contexts)], contexts, strict=True)
        ):
            contexts = self.remembered(contexts, Round(()))
        given = self.plan.rounds[number].given
        for i, shot in enumerate(given):
            if shot not in contexts[0].shots:
                contexts = self.remembered(contexts, Round((shot,), given[:i]))
        return contexts


def seen_last(endings: Mapping[int, Tensor]) -> dict[str, Any]:
    """What a base is asked with beside the rest (`NativeBase.velocity`), where it goes on from last pictures."""
    return {"endings": endings} if endings else {}


def check_plan(spec: Spec, plan: Plan, sampling: Sampling) -> None:
    """UserError for a plan, or a way to sample it, that these weights weren't trained for. It needs no weights."""
    if not spec.multishot:
        return
    mode: Mode = (
        "causal" if plan.visibility == "causal" else "bidirectional" if len(plan.rounds) > 1 else "joint"
    )
    if mode not in spec.multishot.modes:
        raise UserError(
            f"{spec.name}: was trained for mode {' and '.join(spec.multishot.modes)} only, not for {mode}: give --mode "
            f"{spec.multishot.modes[0]}"
        )
    if not holds_history_clean(spec):
        return
    if sampling.branches > 1:
        raise UserError(f"{spec.name} was distilled to need no guidance: give --guidance 1")
    if sampling.reuse_steps:
        raise UserError(f"{spec.name} reads its history clean: leave --reuse-steps out")
    if sampling.solver == "heun":
        raise UserError(f"{spec.name} has no solver heun: use {spec.solver}, or euler")


@torch.no_grad()
def denoise(
    base: Base,
    plan: Plan,
    sampling: Sampling,
    *,
    device: torch.device | str = "cpu",
    cache_device: torch.device | str | None = None,
    contexts: Contexts | None = None,
    done: Mapping[int, Tensor] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Finished]:
    """Yields each round of the plan as it is finished, so that a caller can put it on disk before the next one starts.

    cache_device: where the KV cache is kept, `device` if not given; a layer at a time travels from there. contexts: what is
    remembered already, as `Finished` has it (a saved context to branch from). done: latents of shots that an
    earlier run of this same plan made; rounds that are all done are not made again, and not yielded. Raises UserError when the
    number of contexts isn't the sampling's number of histories.
    """
    done = done or {}
    check_plan(base.spec, plan, sampling)
    if holds_history_clean(base.spec):
        from longshot.sample.blocks import BlockRunner

        yield from BlockRunner(base, plan, sampling, device, cache_device).film(done, on_step)
        return
    runner = Runner(base, plan, sampling, device, cache_device)
    held = contexts or (Context(),) * sampling.histories
    if len(held) != sampling.histories:
        raise UserError(
            f"the saved context has {len(held)} branches, but guidance {sampling.guidance}"
            f"{' with one cache for both passes' if sampling.share_history else ''} needs {sampling.histories}"
        )
    for number in range(len(plan.rounds)):
        todo = plan.rounds[number]
        if plan.memory == "cache":
            held = runner.recall(held, number)
        if all(s in done for s in todo.denoise):
            runner.latents |= {s: done[s].to(device) for s in todo.denoise}
            if plan.memory == "cache":
                held = runner.remembered(held, todo)
            continue
        finished = runner.round(number, held, on_step)
        held = finished.contexts
        yield finished
