"""What a base can do in the puppet world, scored on scenes it never saw.

Each task draws scenes, turns them into plans (some in several runs: other weights, other memory), samples them, and reads the
pixels back. Held-out scenes come from seeds of their own: training draws from `[seed, step, i]`, these from a spawn key.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from longshot.bases.base import Base
from longshot.errors import UserError
from longshot.eval.marks import (
    ATTRIBUTES,
    LOOK,
    Guesses,
    Track,
    View,
    agreement_marks,
    attribute_marks,
    look_tracks,
    place_tracks,
    seen,
    strangers,
    told,
)
from longshot.eval.metrics import Difference, Mark, Score, difference, rate, score
from longshot.eval.packed import denoise_packed
from longshot.flow import Solver
from longshot.layout import Visibility
from longshot.puppets.render import render_place, render_portrait, render_shot
from longshot.puppets.words import caption, single_caption
from longshot.puppets.world import HEIGHT, WIDTH, PuppetScene, Theme, draw_characters, draw_scene, theme_of
from longshot.sample.denoise import Sampling
from longshot.sample.plan import Memory, Plan, PlannedShot, autoregressive, together
from longshot.scene import PLACE_PROMPT, identity_prompt

Frames = UInt8[np.ndarray, "_ 32 48 3"]  # each shot has its own length
HELD_OUT = 0x4E1D0  # the first word of every spawn key
SEAM_TOLERANCE = 1.0  # levels (0..255)
CONDITIONED = (
    "look",
    *LOOK,
    "environment",
    "time",
)  # what a given picture decides; the rest comes from words
ORDER = ("look", *ATTRIBUTES, "people")
PLACE_STAYS = ("environment", "time")


@dataclass(frozen=True)
class EvalConfig:
    """What is scored, and how it is sampled.

    scenes: a task (of slow runs a quarter, at least 2). frames: of every shot. shots: of the
    scenes of `joint`, `given_first` and `causal`. segments: of a roll-out. steps, guidance, shift, solver and
    context_sigma, of what is given or finished: the base's own where None. samples: scenes a task that are kept to be looked at.
    guesses: shots that chance is estimated from, over a tenth as many scenes.
    """

    scenes: int = 20
    seed: int = 0
    tasks: tuple[str, ...] = ()
    frames: int = 8
    shots: int = 5
    segments: int = 12
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    solver: Solver | None = None
    context_sigma: float | None = None
    samples: int = 3
    guesses: int = 4000

    def __post_init__(self):
        if not self.tasks:
            object.__setattr__(self, "tasks", tuple(TASKS))
        if unknown := [t for t in self.tasks if t not in TASKS]:
            raise UserError(f"no task {unknown[0]!r}; the puppets have {', '.join(TASKS)}")
        if self.scenes < 1:
            raise UserError(
                f"{self.scenes} scenes can't be scored; use 1 or more, 200 for intervals of a few points"
            )
        if self.shots < 2 or self.segments < 2:
            raise UserError(
                "scenes of less than two shots have nothing to keep; use shots and segments of 2 or more"
            )

    def sampling(self, base: Base) -> Sampling:
        spec = base.spec
        return Sampling(
            spec.steps if self.steps is None else self.steps,
            spec.shift if self.shift is None else self.shift,
            spec.guidance if self.guidance is None else self.guidance,
            spec.solver if self.solver is None else self.solver,
        )


@dataclass(frozen=True)
class Progress:
    """Where the evaluation is: `done` of `total` scenes of a run."""

    task: str
    run: str
    done: int
    total: int


@dataclass(frozen=True)
class Case:
    """A held-out scene in words. other: the same shots with other people in another place, to be given as a wrong condition.

    key: names the scene among all that are scored; noise is a function of it.
    """

    key: str
    scene: PuppetScene
    other: PuppetScene
    global_prompt: str
    prompts: tuple[str, ...]
    single_prompt: str


@dataclass(frozen=True)
class Planned:
    """A plan, and which of its shots are scored as which shots of the scene (both numbers from 1)."""

    plan: Plan
    scored: Mapping[int, int]


@dataclass(frozen=True)
class Maker:
    """Makes planned shots of one case. shown: the scene that given pictures come from."""

    base: Base
    case: Case
    shown: PuppetScene
    config: EvalConfig

    def held_at(self, visibility: Visibility = "scene") -> float:
        return self.base.spec.held_at(visibility, self.config.context_sigma)

    def shot(self, number: int, prompt: str, frames: int, given: Frames | None = None) -> PlannedShot:
        spec = self.base.spec
        key = self.case.key if self.shown is self.case.scene else f"{self.case.key} otherwise"
        return PlannedShot(
            shot=number,
            label=f"{self.case.key} shot {number}",
            prompt=prompt,
            grid=spec.grid(frames, WIDTH, HEIGHT),
            noise=(self.config.seed, f"{key} {number}", 0),
            given=None if given is None else self.base.encode(given),
        )

    def shots(self, given: Sequence[int] = ()) -> list[PlannedShot]:
        """All shots of the scene, those whose numbers are listed given as the ground truth shows them."""
        return [
            self.shot(k, prompt, shot.frames, render_shot(self.shown, k - 1) if k in given else None)
            for k, (prompt, shot) in enumerate(
                zip(self.case.prompts, self.case.scene.shots, strict=True), start=1
            )
        ]

    def picture(self, number: int, prompt: str, pixels: UInt8[np.ndarray, "32 48 3"]) -> PlannedShot:
        """A given image, as a one-frame shot."""
        shot = self.shot(number, prompt, self.base.spec.min_frames, pixels[None])
        return replace(shot, pinned=True)


@dataclass(frozen=True)
class Run:
    """One way of doing a task.

    weights: which base; plan: what is sampled; agree: its scored shots are compared with each other, too; wrong_condition: it
    is sampled again with another scene's pictures given; seams: its shots continue each other without a cut; share: only one
    in so many scenes is made (at least 2), for what is slow.
    """

    weights: str
    what: str
    plan: Callable[[Maker], Planned]
    agree: bool = True
    wrong_condition: bool = False
    seams: bool = False
    share: int = 1


@dataclass(frozen=True)
class Task:
    """What is asked of a base. stories: names the seeds its scenes come from; two tasks may share them."""

    what: str
    stories: str
    draw: Callable[[np.random.Generator, EvalConfig], PuppetScene]
    runs: Mapping[str, Run]


# --- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One scene to be looked at. rows: a name ("truth", or the run's) and the shots of the plan; given: which were given."""

    case: Case
    rows: tuple[tuple[str, tuple[Frames, ...], tuple[bool, ...]], ...]


@dataclass(frozen=True)
class Measure:
    """A number that isn't a share. ceiling: the same of the ground truth's pixels."""

    value: float
    ceiling: float | None = None

    def to_json(self) -> dict:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass
class RunScores:
    """All scores of one run: over all scored shots, and by shot number."""

    what: str
    weights: str
    scores: dict[str, Score]
    by_shot: dict[int, dict[str, Score]]
    unreadable_shots: float
    measures: dict[str, Measure]
    seconds: float

    def to_json(self) -> dict:
        return {
            "what": self.what,
            "weights": self.weights,
            "seconds": round(self.seconds, 1),
            "unreadable_shots": round(self.unreadable_shots, 4),
            "scores": {k: s.to_json() for k, s in self.scores.items()},
            "by_shot": {
                str(n): {k: s.to_json() for k, s in table.items()} for n, table in self.by_shot.items()
            },
            "measures": {k: m.to_json() for k, m in self.measures.items()},
        }


@dataclass
class TaskScores:
    what: str
    scenes: int
    runs: dict[str, RunScores]
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def to_json(self) -> dict:
        differences = {k: {n: d.to_json() for n, d in table.items()} for k, table in self.differences.items()}
        runs = {k: r.to_json() for k, r in self.runs.items()}
        return {"what": self.what, "scenes": self.scenes, "runs": runs, "differences": differences}


@dataclass
class Scores:
    """Everything that was measured. facts: what the caller wants to be written down besides (weights files, versions)."""

    config: EvalConfig
    sampling: Sampling
    bases: dict[str, str | None]
    tasks: dict[str, TaskScores]
    seconds: float
    facts: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        return {
            "format": "longshot-puppet-scores-1",
            "config": asdict(self.config) | {"tasks": list(self.config.tasks)},
            "sampling": asdict(self.sampling),
            "bases": self.bases,
            "facts": self.facts,
            "seconds": round(self.seconds, 1),
            "tasks": {k: t.to_json() for k, t in self.tasks.items()},
        }


# --- scenes -----------------------------------------------------------------------------------------------------


def held_out(seed: int, stories: str, index: int) -> np.random.Generator:
    """The random numbers of one held-out scene. A spawn key keeps them apart from every training scene's."""
    key = (HELD_OUT, zlib.crc32(stories.encode()), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_case(task: Task, config: EvalConfig, index: int) -> Case:
    """Scene `index` of a task."""
    rng = held_out(config.seed, task.stories, index)
    scene = task.draw(rng, config)
    global_prompt, prompts = caption(scene, rng)
    alone = single_caption(scene, 0, rng)
    elsewhere = task.draw(rng, config)
    other = replace(
        scene,
        characters=draw_characters(rng, len(scene.characters), theme_of(scene.characters)),
        environment=elsewhere.environment,
        time=elsewhere.time,
    )
    return Case(f"{task.stories} {index}", scene, other, global_prompt, tuple(prompts), alone)


def _story(rng: np.random.Generator, config: EvalConfig, theme: Theme = "puppets") -> PuppetScene:
    return draw_scene(rng, config.shots, (config.frames,), theme=theme)


def _one_shot(rng: np.random.Generator, config: EvalConfig) -> PuppetScene:
    return draw_scene(rng, 1, (config.frames,), p_empty=0.04)


def _one_person(
    num_shots: int, rng: np.random.Generator, config: EvalConfig, theme: Theme = "puppets"
) -> PuppetScene:
    return draw_scene(rng, num_shots, (config.frames,), theme=theme, p_pair=0.0, p_empty=0.0, p_continue=0.0)


def _absence(rng: np.random.Generator, config: EvalConfig) -> PuppetScene:
    """Character 1 in the first and the fourth of four shots; between them nobody, or Character 2."""
    both = draw_characters(rng, 2)
    base = _one_person(2, rng, config)

    def between() -> PuppetScene:
        return draw_scene(rng, 1, (config.frames,), characters=both[1:], p_empty=0.5, p_continue=0.0)

    middle = []
    for _ in range(2):
        shot = between().shots[0]
        middle.append(replace(shot, cast=tuple(replace(a, who=1) for a in shot.cast)))
    return replace(base, characters=both, shots=(base.shots[0], *middle, base.shots[1]))


def _one_take(rng: np.random.Generator, config: EvalConfig) -> PuppetScene:
    return draw_scene(rng, config.segments, (config.frames,), p_pair=0.0, p_empty=0.0, p_continue=1.0)


# --- plans ---------------------------------------------------------------------------------------------------------


def _alone(m: Maker) -> Planned:
    frames = m.case.scene.shots[0].frames
    return Planned(together("", [m.shot(1, m.case.single_prompt, frames)], m.held_at()), {1: 1})


def _all(m: Maker) -> Planned:
    plan = together(m.case.global_prompt, m.shots(), m.held_at())
    return Planned(plan, {s.shot: s.shot for s in plan.shots})


def _returning(m: Maker) -> Planned:
    return Planned(_all(m).plan, {1: 1, 4: 4})


def _after_first(m: Maker) -> Planned:
    plan = together("", m.shots(given=(1,)), m.held_at())
    return Planned(plan, {s.shot: s.shot for s in plan.shots[1:]})


def _after_first_causal(m: Maker) -> Planned:
    plan = autoregressive(
        "", m.shots(given=(1,)), window=m.base.spec.max_shots, context_sigma=m.held_at("causal")
    )
    return Planned(plan, {s.shot: s.shot for s in plan.shots[1:]})


def _back(plan: Callable[[Maker], Planned]) -> Callable[[Maker], Planned]:
    """Only the shot in which the character is back is scored."""
    return lambda m: Planned(plan(m).plan, {4: 4})


def _composed(m: Maker) -> list[PlannedShot]:
    who, place = m.shown.characters[0], (m.shown.environment, m.shown.time)
    return [
        m.picture(1, identity_prompt(1), render_portrait(who)),
        m.picture(2, PLACE_PROMPT, render_place(*place)),
        m.shot(3, m.case.prompts[0], m.case.scene.shots[0].frames),
    ]


def _composition(m: Maker) -> Planned:
    return Planned(together("", _composed(m), m.held_at()), {3: 1})


def _composition_causal(m: Maker) -> Planned:
    return Planned(autoregressive("", _composed(m), context_sigma=m.held_at("causal")), {3: 1})


def _between(m: Maker) -> Planned:
    return Planned(together(m.case.global_prompt, m.shots(given=(1, 3)), m.held_at()), {2: 2})


def _rolled_out(m: Maker, memory: Memory = "cache") -> Planned:
    plan = autoregressive(
        m.case.global_prompt,
        m.shots(),
        memory=memory,
        window=m.base.spec.max_shots,
        context_sigma=m.held_at("causal"),
    )
    return Planned(plan, {s.shot: s.shot for s in plan.shots})


def _recomputed(m: Maker) -> Planned:
    return _rolled_out(m, "recompute")


TASKS: dict[str, Task] = {
    "single": Task(
        "one shot from text",
        "single",
        _one_shot,
        {
            "bidirectional": Run("bidirectional", "one prompt, one shot", _alone, agree=False),
            "causal": Run("causal", "the same by the causal weights", _alone, agree=False),
        },
    ),
    "joint": Task(
        "a scene from text, all shots at once",
        "story",
        _story,
        {"joint": Run("bidirectional", "all shots share one noise level", _all)},
    ),
    "given_first": Task(
        "who and where only from a given first shot, no global prompt",
        "given_first",
        lambda rng, config: _one_person(config.shots, rng, config),
        {
            "bidirectional": Run("bidirectional", "the rest at once", _after_first, wrong_condition=True),
            "causal": Run(
                "causal", "one after the other, from the cache", _after_first_causal, wrong_condition=True
            ),
        },
    ),
    "composition": Task(
        "a portrait and a picture of a place become one shot, no global prompt",
        "composition",
        lambda rng, config: _one_person(1, rng, config),
        {
            "bidirectional": Run(
                "bidirectional", "both given", _composition, agree=False, wrong_condition=True
            ),
            "causal": Run(
                "causal", "both in the cache", _composition_causal, agree=False, wrong_condition=True
            ),
        },
    ),
    "return": Task(
        "a character who is absent for two shots comes back",
        "return",
        _absence,
        {
            "joint": Run(
                "bidirectional", "all shots from text at once; before and after are scored", _returning
            ),
            "given": Run(
                "bidirectional",
                "shot 1 given, no global prompt",
                _back(_after_first),
                agree=False,
                wrong_condition=True,
            ),
            "given_causal": Run(
                "causal",
                "shot 1 in the cache, no global prompt",
                _back(_after_first_causal),
                agree=False,
                wrong_condition=True,
            ),
        },
    ),
    "reshoot": Task(
        "a shot made again between its neighbours",
        "reshoot",
        lambda rng, config: _one_person(3, rng, config),
        {"between": Run("bidirectional", "shots 1 and 3 and all words given", _between, agree=False)},
    ),
    "reef": Task(
        "a scene without people: fish on a reef, from text",
        "reef",
        lambda rng, config: _story(rng, config, "reef"),
        {
            "joint": Run("bidirectional", "all shots share one noise level", _all),
            "cached": Run("causal", "shot after shot, history in a KV cache", _rolled_out),
        },
    ),
    "reef_given_first": Task(
        "which fish only from a given first shot, no global prompt",
        "reef_given_first",
        lambda rng, config: _one_person(config.shots, rng, config, "reef"),
        {
            "bidirectional": Run("bidirectional", "the rest at once", _after_first, wrong_condition=True),
            "causal": Run(
                "causal", "one after the other, from the cache", _after_first_causal, wrong_condition=True
            ),
        },
    ),
    "extension": Task(
        "one take goes on, segment after segment, without a cut",
        "extension",
        _one_take,
        {
            "causal": Run(
                "causal", "each segment from a cache of the last ones", _rolled_out, seams=True, share=4
            )
        },
    ),
    "causal": Task(
        "a scene from text, shot after shot; the scenes of `joint`",
        "story",
        _story,
        {
            "cached": Run("causal", "history in a KV cache", _rolled_out),
            "recomputed": Run("causal", "history computed again in every step", _recomputed, share=4),
        },
    ),
}


# --- the evaluation ----------------------------------------------------------------------------------------------


def evaluate(
    bidirectional: Base | None,
    causal: Base | None,
    config: EvalConfig,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    device: str = "cpu",
    facts: dict | None = None,
) -> Scores:
    """Scores a base's weights for full and for context-causal attention; where one is None its runs are left out.

    The result depends on weights and config only. Raises UserError for a base that doesn't make puppet-sized pictures.
    """
    bases = {"bidirectional": bidirectional, "causal": causal}
    first = bidirectional or causal
    if first is None:
        raise UserError("there are no weights to score; give bidirectional or causal ones, or both")
    for base in bases.values():
        if base is not None and base.spec.size != (WIDTH, HEIGHT):
            width, height = base.spec.size
            raise UserError(
                f"{base.spec.name} makes {width}x{height} pixels, but the puppets are {WIDTH}x{HEIGHT}; they can't score it"
            )
    started = time.monotonic()
    kept: dict[str, list[Mark]] = {}
    tasks = {}
    for name in config.tasks:
        judge = _Judge(name, TASKS[name], config, on_progress or (lambda progress: None), device)
        runs = {run: r for run, r in TASKS[name].runs.items() if bases[r.weights] is not None}
        if runs:
            tasks[name] = judge.all(runs, bases)
            kept |= {f"{name}/{run}": marks for run, marks in judge.marks.items()}
    _compare(tasks, kept)
    names = {k: None if b is None else b.spec.name for k, b in bases.items()}
    seconds = time.monotonic() - started
    return Scores(config, config.sampling(first), names, tasks, seconds, facts or {})


def _compare(tasks: dict[str, TaskScores], marks: Mapping[str, Sequence[Mark]]) -> None:
    """Adds the paired differences between the ways of making the same scenes."""
    if "causal" not in tasks:
        return
    for other in ("causal/recomputed", "joint/joint"):
        if "causal/cached" in marks and other in marks:
            table = {}
            for name in (*ORDER, "same_look"):
                second = _named(marks[other], name)
                scenes = {m.scene for m in second}
                first = [m for m in _named(marks["causal/cached"], name) if m.scene in scenes]
                if first and second:
                    table[name] = difference(first, second)
            tasks["causal"].differences[f"cached minus {other.split('/')[1]}"] = table


def _named(marks: Sequence[Mark], name: str) -> list[Mark]:
    return [m for m in marks if m.name == name]


Pixels = dict[int, Frames]  # of one scene, by shot number


class _Judge:
    """Scores one task: the scenes, what is true of them, and what a guess would score are shared by its runs."""

    def __init__(
        self, name: str, task: Task, config: EvalConfig, on_progress: Callable[[Progress], None], device: str
    ):
        self.name, self.task, self.config, self.on_progress, self.device = (
            name,
            task,
            config,
            on_progress,
            device,
        )
        self.all_cases = [draw_case(task, config, k) for k in range(config.scenes)]
        rng = held_out(config.seed, f"{task.stories} guesses", 0)
        self.guesses = Guesses([task.draw(rng, config) for _ in range(max(2, config.guesses // 10))])
        self.marks: dict[str, list[Mark]] = {}
        self._truth: dict[tuple[int, int], tuple[Frames, View, View]] = {}
        self._chance: dict[tuple[tuple[int, ...], ...], dict[str, float]] = {}

    def truth(self, index: int, number: int) -> tuple[Frames, View, View]:
        """Of shot `number` of a scene: its pixels, what is true of it, and what the scorer sees in those pixels."""
        key = (index, number)
        if key not in self._truth:
            scene = self.all_cases[index].scene
            frames = render_shot(scene, number - 1)
            self._truth[key] = (frames, told(scene, number), seen(frames))
        return self._truth[key]

    def all(self, runs: Mapping[str, Run], bases: Mapping[str, Base | None]) -> TaskScores:
        out = TaskScores(self.task.what, len(self.all_cases), {})
        rows: list[list] = [[] for _ in self.all_cases[: self.config.samples]]
        films: dict[str, list[Pixels]] = {}
        for name, run in runs.items():
            base = bases[run.weights]
            assert base is not None
            out.runs[name], films[name] = self.run(name, run, base, rows)
        if "cached" in films and "recomputed" in films:
            gaps = [
                float(np.abs(a[k].astype(int) - b[k]).mean())
                for a, b in zip(films["cached"], films["recomputed"], strict=False)
                for k in a
            ]
            out.runs["cached"].measures["pixels_from_recomputed"] = Measure(float(np.mean(gaps)))
        out.samples = [Sample(case, tuple(r)) for case, r in zip(self.all_cases, rows, strict=False) if r]
        return out

    def run(self, name: str, run: Run, base: Base, rows: list[list]) -> tuple[RunScores, list[Pixels]]:
        started = time.monotonic()
        cases = self.all_cases[: max(2, self.config.scenes // run.share)]
        planned = [run.plan(Maker(base, case, case.scene, self.config)) for case in cases]
        wrong = [
            run.plan(Maker(base, case, case.other, self.config)) for case in cases if run.wrong_condition
        ]
        latents = self._sample(name, base, [p.plan for p in (*planned, *wrong)])
        films = [_decode(base, p, z) for p, z in zip(planned, latents, strict=False)]
        controls = [_decode(base, p, z) for p, z in zip(wrong, latents[len(planned) :], strict=True)]
        for index, row in enumerate(rows[: len(cases)]):
            self._show(row, name, base, planned[index], latents[index], index)

        scored = [tuple(p.scored.values()) for p in planned]
        truths = [{k: self.truth(i, k)[1] for k in numbers} for i, numbers in enumerate(scored)]
        best = [{k: self.truth(i, k)[2] for k in numbers} for i, numbers in enumerate(scored)]
        views = [{k: seen(f) for k, f in film.items()} for film in films]
        rng = held_out(self.config.seed, f"{self.task.stories} guesses", 1)
        if tuple(scored) not in self._chance:
            self._chance[tuple(scored)] = self.guesses.chance(truths, rng, self.config.guesses)
        chance = dict(self._chance[tuple(scored)])

        marks, ceiling = (_against(truths, v) for v in (views, best))
        if run.wrong_condition:
            swapped = _against(truths, [{k: seen(f) for k, f in film.items()} for film in controls])
            control = [m for m in swapped if m.name in CONDITIONED]
        else:
            rng = held_out(self.config.seed, f"{self.task.stories} control", 0)
            control = _against([self.guesses.another(t, rng) for t in truths], views)
            control = [m for m in control if m.name != "people"]
        if run.agree:
            for names, whole, tracks_of in (
                (cases[0].scene.characters[0].LOOK, "look", look_tracks),
                (PLACE_STAYS, "place", place_tracks),
            ):
                tracks, best_tracks = (
                    [t for i, truth in enumerate(truths) for t in tracks_of(i, truth, v[i])]
                    for v in (views, best)
                )
                _add_agreement(marks, ceiling, control, tracks, best_tracks, names, whole)
                chance |= self.guesses.agreement(names, whole, [len(t.shots) for t in tracks])
        measures: dict[str, Measure] = {}
        if run.seams:
            real = [{k: self.truth(i, k)[0] for k in numbers} for i, numbers in enumerate(scored)]
            marks += seam_marks(films)
            ceiling += seam_marks(real)
            control += seam_marks(films, strange=True)
            measures = _seam_measures(films, real)
        self.marks[name] = marks
        shots = sorted({m.shot for m in marks})
        by_shot = {k: _table([m for m in marks if m.shot == k], ceiling, control, chance, k) for k in shots}
        scores = RunScores(
            what=run.what,
            weights=run.weights,
            scores=_table(marks, ceiling, control, chance),
            by_shot=by_shot if len(shots) > 1 else {},
            unreadable_shots=_unreadable_shots(marks),
            measures=measures,
            seconds=time.monotonic() - started,
        )
        return scores, films

    def _sample(self, name: str, base: Base, plans: Sequence[Plan]) -> list[dict[int, Tensor]]:
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self.on_progress(Progress(self.name, name, done, len(plans)))

        self.on_progress(Progress(self.name, name, 0, len(plans)))
        return denoise_packed(base, plans, self.config.sampling(base), device=self.device, on_plan=tell)

    def _show(
        self, row: list, name: str, base: Base, planned: Planned, latents: Mapping[int, Tensor], index: int
    ) -> None:
        """Keeps one scene as pixels, and once the truth below it."""
        shots = planned.plan.shots
        given = tuple(s.given is not None for s in shots)
        made = tuple(base.decode(latents[s.shot], s.grid) for s in shots)
        truth = tuple(
            self.truth(index, planned.scored.get(s.shot, s.shot))[0] if not was_given else pixels
            for s, was_given, pixels in zip(shots, given, made, strict=True)
        )
        if row and row[-1][0] == "truth":
            row.pop()
        row += [(name, made, given), ("truth", truth, given)]


def _decode(base: Base, planned: Planned, latents: Mapping[int, Tensor]) -> Pixels:
    """The scored shots' pixels, by their numbers in the scene."""
    return {k: base.decode(latents[p], planned.plan[p].grid) for p, k in planned.scored.items()}


def _against(truths: Sequence[Mapping[int, View]], views: Sequence[Mapping[int, View]]) -> list[Mark]:
    pairs = enumerate(zip(truths, views, strict=True))
    return [mark for i, (truth, view) in pairs for mark in attribute_marks(i, truth, view)]


def _add_agreement(
    marks: list[Mark],
    ceiling: list[Mark],
    control: list[Mark],
    tracks: Sequence[Track],
    best: Sequence[Track],
    names: Sequence[str],
    whole: str,
) -> None:
    marks += agreement_marks(tracks, names, whole)
    ceiling += agreement_marks(best, names, whole)
    control += agreement_marks(strangers(tracks), names, whole, all_pairs=False)


def _unreadable_shots(marks: Sequence[Mark]) -> float:
    """The share of shots whose place, or the body of somebody who should be there, can't be read."""
    shots = {(m.scene, m.shot) for m in marks}
    unreadable = {(m.scene, m.shot) for m in marks if m.name in ("environment", "body") and not m.readable}
    return len(unreadable) / len(shots)


def _table(
    marks: Sequence[Mark],
    ceiling: Sequence[Mark],
    control: Sequence[Mark],
    chance: Mapping[str, float],
    shot: int | None = None,
) -> dict[str, Score]:
    """The scores of every name, in a fixed order; of one shot number only, if given."""
    found = {m.name for m in marks}
    agreements = [n for n in dict.fromkeys(m.name for m in marks) if n not in ORDER]
    out = {}
    for name in (*(n for n in ORDER if n in found), *agreements):
        best, wrong = (
            [m for m in some if m.name == name and shot in (None, m.shot)] for some in (ceiling, control)
        )
        out[name] = score(
            _named(marks, name), ceiling=rate(best), control=rate(wrong), chance=chance.get(name)
        )
    return out


# --- seams ---------------------------------------------------------------------------------------------------------


def frame_steps(frames: Frames) -> np.ndarray:
    """The mean absolute difference of each frame from the one before, in levels."""
    return np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))


def seams(films: Sequence[Pixels], strange: bool = False) -> Iterator[tuple[int, int, float, np.ndarray]]:
    """For every seam: scene, the later segment's number, the step across it, the steps inside the two segments.

    strange: the later segment comes from the next scene (the control).
    """
    for index, film in enumerate(films):
        after = films[(index + 1) % len(films)] if strange else film
        numbers = sorted(film)
        for a, b in pairwise(numbers):
            if b in after:
                step = np.abs(after[b][0].astype(np.float32) - film[a][-1]).mean()
                yield index, b, float(step), np.concatenate([frame_steps(film[a]), frame_steps(film[b])])


def seam_marks(films: Sequence[Pixels], strange: bool = False) -> list[Mark]:
    """`seam` is right where the step across is no larger than the largest step inside the two segments, within a level."""
    if strange and len(films) < 2:
        return []
    return [
        Mark("seam", scene, number, bool(step <= inside.max() + SEAM_TOLERANCE), True)
        for scene, number, step, inside in seams(films, strange)
    ]


def _seam_measures(films: Sequence[Pixels], real: Sequence[Pixels]) -> dict[str, Measure]:
    """Steps across seams and inside segments, and contrast and sharpness of the last segments against the first."""

    def of(films: Sequence[Pixels]) -> dict[str, float]:
        rows = list(seams(films))
        ends = [(film[min(film)].astype(np.float32), film[max(film)].astype(np.float32)) for film in films]
        return {
            "step_across_seams": float(np.mean([step for _, _, step, _ in rows])),
            "step_inside": float(np.mean([inside.mean() for *_, inside in rows])),
            "contrast_last_over_first": float(
                np.mean([last.std() for _, last in ends]) / max(1e-6, np.mean([f.std() for f, _ in ends]))
            ),
            "detail_last_over_first": float(
                np.mean([_detail(last) for _, last in ends])
                / max(1e-6, np.mean([_detail(f) for f, _ in ends]))
            ),
        }

    made, ceiling = of(films), of(real)
    return {name: Measure(made[name], ceiling[name]) for name in made}


def _detail(frames: np.ndarray) -> float:
    """The mean difference between neighbouring pixels."""
    return float(np.abs(np.diff(frames, axis=1)).mean() + np.abs(np.diff(frames, axis=2)).mean())
