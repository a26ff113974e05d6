"""What a film will cost, before anything is made: tokens, FLOPs, memory, cache and time, shot by shot (`longshot plan`).

A forecast walks through a `Plan` as `denoise` does, and adds up what each pass costs from sizes alone (`model.cost`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch

from longshot.bases import check_transformer, is_native
from longshot.bases.base import Spec
from longshot.bases.economy import Economy, refuse_narrower
from longshot.bases.native import PRESETS, NativeBase, NativeConfig, config_of
from longshot.bases.shape import Blueprint, Shape, load_shape, with_file
from longshot.errors import UserError
from longshot.layout import GLOBAL, Group, Layout, Visibility, global_group
from longshot.model.context import DTYPES, CacheDtype
from longshot.model.cost import (
    Machine,
    Work,
    activation_bytes,
    blueprint,
    count_parameters,
    forward_work,
    kv_bytes,
    measure_machine,
    text_work,
)
from longshot.sample.denoise import Sampling, check_plan, levels_of, nearest_step
from longshot.sample.plan import Plan, PlannedShot, Round, autoregressive, together
from longshot.sample.story import tell
from longshot.scene import Scene

MODES = {
    "joint": "all shots at once",
    "bidirectional": "one by one, history recomputed in every step",
    "causal": "one by one, history in a KV cache",
}


@dataclass(frozen=True)
class Savings:
    """What is done to need less memory. cache_elsewhere: the KV cache isn't kept on the device that computes. share_history: one
    cache serves both branches of guidance."""

    economy: Economy = field(default_factory=Economy)
    cache_dtype: CacheDtype = "own"
    cache_elsewhere: bool = False
    share_history: bool = False


@dataclass(frozen=True)
class RoundForecast:
    """What one round costs: a denoising step, the whole round (history read into the cache included), and its memory."""

    shots: tuple[int, ...]
    step: Work
    total: Work
    activations: int  # bytes at the peak
    cache: int  # bytes of keys, values and last pictures held, all branches
    cache_elsewhere: bool = False  # of which only a layer is on the device at once


@dataclass(frozen=True)
class ModeForecast:
    """What a film costs in one mode. problem: why it can't be made so, or None."""

    mode: str
    rounds: tuple[RoundForecast, ...] = ()
    problem: str | None = None

    @property
    def total(self) -> Work:
        return sum((r.total for r in self.rounds), Work())

    @property
    def largest_step(self) -> Work:
        return max((r.step for r in self.rounds), key=lambda work: work.flops, default=Work())

    @property
    def working_bytes(self) -> int:
        """Activations and cache at their peak, without the weights."""
        return max((r.activations + (0 if r.cache_elsewhere else r.cache) for r in self.rounds), default=0)

    def round_of(self, shot: int) -> RoundForecast | None:
        return next((r for r in self.rounds if shot in r.shots), None)


@dataclass(frozen=True)
class ShotForecast:
    """One shot or image of the plan. kv: bytes of its keys and values in fp32, one branch."""

    shot: int
    label: str
    frames: int
    grid: tuple[int, int, int]
    text: int
    kv: int
    is_given: bool

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return self.text + t * h * w


@dataclass(frozen=True)
class Forecast:
    """All that `longshot plan` prints. weights: bytes of all networks, text encoder and VAE of a pretrained base included."""

    base: str
    parameters: int
    shots: tuple[ShotForecast, ...]
    global_text: int
    modes: tuple[ModeForecast, ...]
    sampling: Sampling
    machine: Machine | None
    weights: int = 0
    itemsize: int = 4  # bytes of a number in the network, its keys and values

    @property
    def tokens(self) -> int:
        """Tokens of the scene, one branch, the global prompt and its dummy video included."""
        return sum(s.tokens for s in self.shots) + (self.global_text + 1 if self.global_text else 0)


# -- what a base costs ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NativeCosts:
    """The costs of a native base, which runs in fp32. refined: see `cost.forward_work`."""

    config: NativeConfig
    refined: float = 1.0

    @property
    def spec(self) -> Spec:
        return self.config.spec

    def forward_work(self, layout: Layout, visibility: Visibility) -> Work:
        return forward_work(self.config.network, layout, visibility, self.refined)

    def text_work(self, lengths: Sequence[int]) -> Work:
        return text_work(self.config.network, lengths)

    def activation_bytes(self, layout: Layout, visibility: Visibility = "causal") -> int:
        return activation_bytes(self.config.network, layout, 4)

    def kv_tokens(self, group: Group) -> int:
        return group.tokens

    def kv_bytes(self, tokens: int) -> int:
        return kv_bytes(self.config.network, tokens, 4)

    def picture_bytes(self, group: Group) -> int:
        """Of a shot's last picture, where it is remembered."""
        network = self.config.network
        remembered = network.goes_on and group.shot != GLOBAL
        return 4 * network.channels * group.frame_tokens if remembered else 0


Costs = NativeCosts | Shape


# -- walking through a plan ---------------------------------------------------------------------------------------------
class _Walk:
    """The passes that `denoise.Runner` makes, as layouts."""

    def __init__(
        self,
        costs: Costs,
        plan: Plan,
        sampling: Sampling,
        count: Callable[[str], int],
        cache_elsewhere: bool = False,
    ):
        self.costs, spec = costs, costs.spec
        self.cache_elsewhere = cache_elsewhere
        self.rope = spec.rope
        self.plan, self.sampling = plan, sampling
        worded = {s.shot: count(spec.wording(plan.global_prompt, s.prompt, s.shot)) for s in plan.shots}
        top = count(plan.global_prompt) if plan.global_prompt and spec.prompts == "group" else None
        self.branches: list[tuple[int | None, dict[int, int]]] = [(top, worded)]
        if sampling.branches == 2:
            self.branches.append((None, dict.fromkeys(worded, count(""))))
        self.past: list[dict[int, Group]] = [{} for _ in range(sampling.histories)]  # what is remembered

    def layout(self, shots: Sequence[int], seen: Sequence[int] | None, branches: int | None = None) -> Layout:
        """The layouts of some shots, of all branches or the first ones; seen: the remembered shots they see, or None without
        a cache."""
        scenes, past = [], []
        for number, (top, texts) in enumerate(self.branches[:branches]):
            held = self.past[min(number, len(self.past) - 1)].items()
            remembered = (
                []
                if seen is None
                else [g for s, g in sorted(held) if (s == GLOBAL and top is not None) or s in seen]
            )
            new = [Group(s, texts[s], self.plan[s].grid) for s in shots]
            if top is not None and all(g.shot != GLOBAL for g in remembered):
                new.insert(0, global_group(top))
            scenes.append((*remembered, *new))
            past.append(len(remembered))
        return Layout(tuple(scenes), tuple(past), self.rope)

    def remember(self, shots: Sequence[int], seen: Sequence[int]) -> Work:
        """One pass that reads shots into the cache."""
        layout = self.layout(shots, seen, len(self.past))
        for held, groups, past in zip(self.past, layout.scenes, layout.past, strict=True):
            held |= {g.shot: g for g in groups[past:]}
        costs = self.costs
        if isinstance(costs, NativeCosts):  # history has little noise on it
            costs = replace(
                costs, refined=float(self.plan.context_sigma <= costs.config.network.refines_below)
            )
        return costs.forward_work(layout, "causal")

    def recall(self, todo: Round) -> Work:
        work = Work()
        if any(
            top is not None and GLOBAL not in held
            for (top, _), held in zip(self.branches[: len(self.past)], self.past, strict=True)
        ):
            work += self.remember((), ())
        for i, shot in enumerate(todo.given):
            if shot not in self.past[0]:
                work += self.remember((shot,), todo.given[:i])
        return work

    def rounds(self) -> Iterator[RoundForecast]:
        evaluations = self.sampling.steps * (2 if self.sampling.solver == "heun" else 1)
        evaluations -= (
            self.sampling.solver == "heun"
        )  # the last step ends at 0, where Heun has nothing to correct
        cached = self.plan.memory == "cache"
        work = self.text()
        for todo in self.plan.rounds:
            if cached:
                work += self.recall(todo)
                layout = self.layout(sorted(todo.denoise), todo.given)
            else:
                layout = self.layout(sorted((*todo.denoise, *todo.given)), None)
            step = self.stepping(todo).forward_work(layout, self.plan.visibility)
            work += step * evaluations
            if cached and self.sampling.reuse_steps:
                for held, groups, past in zip(self.past, layout.scenes, layout.past, strict=False):
                    held |= {g.shot: g for g in groups[past:]}
            elif cached:
                work += self.remember(todo.denoise, todo.given)
            remembered = [g for held in self.past for g in held.values()]
            cache = self.cache_bytes(sum(self.costs.kv_tokens(g) for g in remembered))
            if isinstance(self.costs, NativeCosts):
                cache += sum(self.costs.picture_bytes(g) for g in remembered)
            yield RoundForecast(
                todo.denoise,
                step,
                work,
                self.costs.activation_bytes(layout, self.plan.visibility),
                cache,
                self.cache_elsewhere,
            )
            work = Work()

    def stepping(self, todo: Round) -> Costs:
        """The costs of a round's steps: of a native base that goes on from pixels, every step that has a nearly clean shot before
        it asks the refiner."""
        costs, cached = self.costs, self.plan.memory == "cache"
        if not isinstance(costs, NativeCosts):
            return costs
        network, level = costs.config.network, self.plan.context_sigma
        if cached and self.sampling.reuse_steps:
            levels = levels_of(costs.spec, self.sampling)
            level = float(levels[nearest_step(levels, level)])
        if level > network.refines_below:
            return costs
        asked = tokens = 0.0
        shots = sorted((*todo.denoise, *todo.given))
        for before, shot in zip((None, *shots), shots, strict=False):
            share, size = costs.refined, prod(self.plan[shot].grid)
            if shot in todo.given:
                share, size = 1.0, 0 if cached else size
            elif network.goes_on and before is not None and before in todo.given:
                share = 1.0 if self.plan[before].grid[1:] == self.plan[shot].grid[1:] else share
            asked, tokens = asked + share * size, tokens + size
        return replace(costs, refined=asked / tokens)

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values as they are kept, without the scales of fp8, which are few."""
        own = _itemsize(self.costs)
        kept = DTYPES[self.sampling.cache_dtype].itemsize if self.sampling.cache_dtype != "own" else own
        return self.costs.kv_bytes(tokens) * min(kept, own) // own

    def text(self) -> Work:
        """Every prompt is read once, and once no words at all."""
        top, texts = self.branches[0]
        empty = [next(iter(other.values())) for _, other in self.branches[1:]]
        return self.costs.text_work([top or 0, *texts.values(), *empty])


def forecast_plan(
    costs: Costs,
    plan: Plan,
    sampling: Sampling,
    count: Callable[[str], int],
    cache_elsewhere: bool = False,
) -> tuple[RoundForecast, ...]:
    """What each round of a plan costs. count: tokens of a prompt."""
    if isinstance(costs, NativeCosts):  # only the last steps ask its refiner
        levels = levels_of(costs.spec, sampling)
        asking = levels[:-1] <= costs.config.network.refines_below
        costs = replace(costs, refined=float(asking.float().mean()))
    return tuple(_Walk(costs, plan, sampling, count, cache_elsewhere).rounds())


def forecast_scene(
    scene: Scene,
    base: str = "tiny",
    mode: str = "auto",
    folder: Path = Path(),
    machine: Machine | None = None,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    device: str = "cpu",
    savings: Savings = Savings(),
    transformer: Path | None = None,
) -> Forecast:
    """What a scene costs on a base: a preset's name, a weights file, or a pretrained base, of which only the config is read.

    mode: one of `MODES`, or auto for all. folder: where the scene's references lie. machine: what predicts time; None
    measures this one. size, window: instead of the base's own. device: where a pretrained base runs, in fp32 on a CPU and in
    bf16 elsewhere. savings: what is done to need less memory. transformer: a file in the place of a pretrained base's own.
    Raises UserError for an unknown base or mode.
    """
    if mode not in (*MODES, "auto"):
        raise UserError(f"no mode {mode!r}: use auto, {', '.join(MODES)}")
    outline = outline_of(base, device, size, savings, transformer)
    costs, count, spec = outline.costs, outline.count, outline.codec.spec
    story = tell(scene, outline.codec, folder)
    sampling = Sampling(
        steps=spec.steps,
        shift=spec.shift,
        guidance=spec.guidance,
        cache_dtype=savings.cache_dtype,
        share_history=savings.share_history,
    )
    words = {s.shot: count(spec.wording(story.global_prompt, s.prompt, s.shot)) for s in story.shots}
    shots = tuple(_shot(s, costs, words[s.shot]) for s in story.shots)
    window = window or spec.max_shots
    modes = []
    for name in MODES if mode == "auto" else (mode,):
        try:
            if name == "joint":
                plan = together(story.global_prompt, story.shots, spec.held_at("scene"), window)
            else:
                visibility: Visibility = "causal" if name == "causal" else "scene"
                plan = autoregressive(
                    story.global_prompt,
                    story.shots,
                    visibility=visibility,
                    window=window,
                    context_sigma=spec.held_at(visibility),
                )
            check_plan(spec, plan, sampling)
        except UserError as error:
            modes.append(ModeForecast(name, problem=str(error)))
        else:
            modes.append(
                ModeForecast(name, forecast_plan(costs, plan, sampling, count, savings.cache_elsewhere))
            )
    if machine is None:
        width, heads = _width(costs)
        tokens = min(s.tokens for s in shots) * sampling.branches
        dtype = torch.bfloat16 if _itemsize(costs) == 2 else torch.float32
        machine = measure_machine(width, heads, tokens, device, dtype)
    top = count(story.global_prompt) if story.global_prompt and spec.prompts == "group" else 0
    return Forecast(
        spec.name,
        outline.parameters,
        shots,
        top,
        tuple(modes),
        sampling,
        machine,
        outline.weights,
        _itemsize(costs),
    )


@dataclass(frozen=True)
class Outline:
    """A base before it is loaded: what a scene is told with (clips get latents of no content), and what a plan costs.

    count: tokens of a prompt, by the base's own tokeniser where that is at hand. weights: bytes on the device.
    """

    costs: Costs
    codec: NativeBase | Blueprint
    count: Callable[[str], int]
    parameters: int
    weights: int

    def needs(self, plan: Plan, sampling: Sampling, cache_elsewhere: bool = False) -> int:
        """Bytes at the peak of a plan, weights included."""
        rounds = forecast_plan(self.costs, plan, sampling, self.count, cache_elsewhere)
        return self.weights + ModeForecast("", rounds).working_bytes


def outline_of(
    base: str,
    device: str = "cpu",
    size: tuple[int, int] | None = None,
    savings: Savings = Savings(),
    transformer: Path | None = None,
) -> Outline:
    """What the config of a base tells: a preset's name, a weights file, or a pretrained base. No weights are read.

    device: where a pretrained base runs, in fp32 on a CPU and in bf16 elsewhere. size: of frames, instead of the base's own.
    transformer: a file in the place of a pretrained base's own, of which the header is read. Raises UserError.
    """
    if transformer is not None:
        check_transformer(base, transformer)
    if base in PRESETS or is_native(base):
        config = config_of(base)
        codec = NativeBase(config, blueprint(config.network))
        parameters = count_parameters(config.network)
        made = Outline(NativeCosts(config), codec, codec.table.count, parameters, 4 * parameters)
    else:
        shape = replace(
            load_shape(base),
            itemsize=4 if device.startswith("cpu") else 2,
            is_narrow=savings.economy.weights != "own",
            has_scales=savings.economy.weights == "int8",
            threads=torch.get_num_threads() if device.startswith("cpu") else 0,
        )
        if transformer is not None:
            shape = with_file(shape, transformer)
            if shape.stored:
                refuse_narrower(savings.economy)
        offload = "none" if device.startswith("cpu") else savings.economy.offload
        weights = {
            "none": shape.weight_bytes,
            "group": shape.offloaded_bytes,
            "model": shape.largest_bytes,
        }[offload]
        plain = Blueprint(shape.spec)
        made = Outline(shape, plain, plain.count, shape.networks * shape.parameters, weights)
    if size is not None:
        made.codec.spec = replace(made.codec.spec, size=size)
    return made


def _itemsize(costs: Costs) -> int:
    return costs.itemsize if isinstance(costs, Shape) else 4


def _width(costs: Costs) -> tuple[int, int]:
    if isinstance(costs, Shape):
        return costs.width, costs.heads
    assert isinstance(costs, NativeCosts)
    return costs.config.network.width, costs.config.network.heads


def _shot(shot: PlannedShot, costs: Costs, text: int) -> ShotForecast:
    kv = costs.kv_bytes(costs.kv_tokens(Group(shot.shot, text, shot.grid)))
    frames = costs.spec.frames(shot.grid)
    return ShotForecast(shot.shot, shot.label, frames, shot.grid, text, kv, shot.given is not None)


# -- room -------------------------------------------------------------------------------------------------------------
def free_bytes(device: str) -> int | None:
    """Memory that can be had now; None where the system doesn't say."""
    if not device.startswith("cpu"):
        return torch.cuda.mem_get_info(torch.device(device))[0] if device.startswith("cuda") else None
    try:
        lines_ = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines_ if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024


PlanFor = Callable[[str, int | None], Plan]  # (mode, window) -> plan; UserError where there is none


def check_room(
    outline: Outline,
    plan_for: PlanFor,
    mode: str,
    sampling: Sampling,
    *,
    window: int | None = None,
    others: Sequence[str] = (),
    device: str = "cpu",
    cache_elsewhere: bool = False,
    free: int | None = None,
) -> None:
    """UserError, before anything is loaded, where a base wasn't trained for a plan, or the plan needs more memory than there is;
    then it says what would fit.

    others: the modes that may be advised instead, with windows from the largest down. free: bytes; None asks the system.
    """
    free = free_bytes(device) if free is None else free
    plan = plan_for(mode, window)
    check_plan(outline.codec.spec, plan, sampling)
    need = outline.needs(plan, sampling, cache_elsewhere)
    if free is None or need <= free:
        return

    def fits(other: str, shots: int) -> bool:
        try:
            return outline.needs(plan_for(other, shots), sampling, cache_elsewhere) <= free
        except UserError:  # there is no such plan
            return False

    most = min(window or len(plan.shots), len(plan.shots))
    smaller = ((other, shots) for shots in range(most, 0, -1) for other in others)
    name = outline.codec.spec.name
    advice = next(
        (
            f"use --window {shots}" if other == mode else f"use --mode {other} --window {shots}"
            for other, shots in smaller
            if fits(other, shots)
        ),
        ("not even one shot fits: " if others else "")
        + f"{_size(outline.weights)} of it are weights; fewer and smaller frames or a smaller base need less",
    )
    raise UserError(
        f"{len(plan.shots)} shots and images, mode {mode}, need {_size(need)} on {name}; {_size(free)} are free: {advice}"
    )


# -- printing -----------------------------------------------------------------------------------------------------------
def lines(forecast: Forecast) -> list[str]:
    """A forecast as plain lines."""
    f, machine = forecast, forecast.machine
    both = "FLOPs and cache below are for both" if f.sampling.histories == 2 else "FLOPs below are for both"
    passes = f"two passes in one, with and without words: {both}" if f.sampling.branches == 2 else "one pass"
    out = [
        f"{f.base}: {f.parameters / 1e9:.3g}B parameters, {_weights(f)}",
        f"scene: {len(f.shots)} shots and images, {f.tokens:,} tokens; {f.sampling.steps} steps, guidance "
        f"{f.sampling.guidance:g} ({passes})",
        "",
    ]
    named = [m for m in f.modes if m.problem is None]
    header = ["shot", "frames", "grid", "text", "tokens", "KV fp32", "KV bf16"]
    header += [f"{m.mode}: FLOPs a step" for m in named] + [f"{m.mode}: FLOPs" for m in named]
    rows = [header]
    for s in f.shots:
        row = [s.label, str(s.frames), "x".join(map(str, s.grid)), str(s.text), f"{s.tokens:,}"]
        row += [_size(s.kv * 4 // f.itemsize), _size(s.kv * 2 // f.itemsize)]
        rounds = [None if s.is_given else m.round_of(s.shot) for m in named]
        row += ["given" if r is None else _count(r.step.flops // len(r.shots)) for r in rounds]
        row += ["" if r is None else _count(r.total.flops // len(r.shots)) for r in rounds]
        rows.append(row)
    out += [*_columns(rows), ""]
    rows = [["mode", "largest step", "film", "peak memory", "of it KV cache", "predicted time", ""]]
    for m in f.modes:
        if m.problem is not None:
            rows.append([m.mode, "-", "-", "-", "-", "-", m.problem])
            continue
        cache = max(r.cache for r in m.rounds)
        seconds = _duration(machine.seconds(m.total)) if machine else "-"
        film = [
            _count(m.largest_step.flops),
            _count(m.total.flops),
            _size(f.weights + m.working_bytes),
            _size(cache),
        ]
        rows.append([m.mode, *film, seconds, MODES[m.mode]])
    out += _columns(rows)
    if machine:
        out += ["", f"measured just now on {machine}"]
    return out


def _weights(f: Forecast) -> str:
    if f.weights == 4 * f.parameters:
        return f"{_size(f.weights)} in fp32, {_size(f.weights // 2)} in bf16"
    return f"{_size(f.weights)} with text encoder and VAE, in {'bf16' if f.itemsize == 2 else 'fp32'}"


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows as aligned lines: the first and the last column to the left, numbers to the right where they look like some."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1

    def cell(i: int, text: str) -> str:
        if i == last and not rows[0][i]:
            return text
        return text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])

    return ["  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in rows]


def _count(number: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _size(number: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 2**10:.3g} KiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} s"
