"""A `Plan` says which shots are given, which are denoised in which round, and who sees whom. Every mode builds one.

| mode | rounds | given | visibility |
|---|---|---|---|
| joint | all shots at once | none | scene |
| auto-regressive | one shot each | a window or chosen subset of finished shots | causal with a cache, or scene |
| conditional, composition, interpolation, re-shoot | the rest, at once | any shots or images, at any place | scene |

(METHOD, sec. 5; LCT sec. 3.4, 4.2, 4.3.)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from longshot.errors import UserError
from longshot.layout import Visibility

Memory = Literal["cache", "recompute"]
History = Literal["recent", "relevant"]
_NAMED = re.compile(r"\bcharacter\s+(\d+)\b", re.IGNORECASE)


@dataclass(frozen=True)
class PlannedShot:
    """One shot of a plan: a video, or an image as a one-frame shot.

    shot: its place in story order, from 1. label: what to call it in messages and files. grid: its video tokens along
    (time, height, width). noise: what its noise is a function of, (seed, key, take). given: its clean latent, or None where it
    is to be made. pinned: history always keeps it (identity and environment images).
    """

    shot: int
    label: str
    prompt: str
    grid: tuple[int, int, int]
    noise: tuple[int, str, int]
    given: Tensor | None = None
    pinned: bool = False


@dataclass(frozen=True)
class Round:
    """The shots denoised together, and the finished ones they see, held at the plan's context_sigma."""

    denoise: tuple[int, ...]
    given: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is to be made, in which order, from what. context_sigma: the noise level t_c of history, 0.1 to 0.5 in the paper."""

    global_prompt: str
    shots: tuple[PlannedShot, ...]
    rounds: tuple[Round, ...]
    visibility: Visibility
    memory: Memory = "recompute"
    context_sigma: float = 0.1

    def __post_init__(self):
        if not 0 <= self.context_sigma <= 1:
            raise UserError(
                f"context sigma {self.context_sigma} isn't a noise level; use 0 (clean) to 1, best 0.1 to 0.5"
            )
        if self.memory == "cache" and self.visibility != "causal":
            raise ValueError(
                "a cache needs causal visibility: under any other, later shots change what is remembered"
            )
        if [s.shot for s in self.shots] != list(range(1, len(self.shots) + 1)):
            raise ValueError("shots are numbered 1, 2, ... in story order")
        done = {s.shot for s in self.shots if s.given is not None}
        for r in self.rounds:
            if not r.denoise or set(r.denoise) & done or not set(r.given) <= done:
                raise ValueError(
                    f"{r} denoises a shot that is done, or sees one that isn't (done: {sorted(done)})"
                )
            if self.memory == "cache" and any(g > min(r.denoise) for g in r.given):
                raise ValueError(f"{r} sees a later shot, which causal visibility can't")
            done |= set(r.denoise)
        if missing := [s.label for s in self.shots if s.shot not in done]:
            raise ValueError(f"no round makes {', '.join(missing)}")

    def __getitem__(self, shot: int) -> PlannedShot:
        return self.shots[shot - 1]


def together(
    global_prompt: str,
    shots: Sequence[PlannedShot],
    context_sigma: float = 0.1,
    window: int | None = None,
    seen: Sequence[int] | None = None,
) -> Plan:
    """All shots that aren't given, in one round under full attention: joint generation when none is given, else visual
    conditioning, composition, interpolation or re-shooting, by what is given where.

    seen: which of the given shots take part (all). window: the most shots that may attend to each other. Raises UserError when
    there are more.
    """
    denoise = tuple(s.shot for s in shots if s.given is None)
    if not denoise:
        raise UserError("every shot is given: nothing is left to make")
    given = tuple(s.shot for s in shots if s.given is not None and (seen is None or s.shot in seen))
    if window is not None and len(denoise) + len(given) > window:
        raise UserError(
            f"{len(denoise) + len(given)} shots and images can't all see each other: this base was trained on {window} at "
            "once; use --mode causal, which rolls on with a window of history"
        )
    return Plan(global_prompt, tuple(shots), (Round(denoise, given),), "scene", "recompute", context_sigma)


def nearest(num_shots: int, shot: int, window: int) -> list[int]:
    """The `window - 1` shots nearest to a shot, on both sides, in story order; of two as near, the earlier."""
    others = [s for s in range(1, num_shots + 1) if s != shot]
    return sorted(sorted(others, key=lambda s: (abs(s - shot), s))[: max(window - 1, 0)])


def autoregressive(
    global_prompt: str,
    shots: Sequence[PlannedShot],
    *,
    visibility: Visibility = "causal",
    memory: Memory | None = None,
    window: int = 6,
    history: History | Mapping[int, Sequence[int]] = "recent",
    context_sigma: float = 0.1,
) -> Plan:
    """One round a shot, in story order, each seeing at most `window - 1` earlier shots.

    memory: if not given, a cache where visibility is causal, which a cache needs, and else recomputed history.
    history: "recent", the last ones; "relevant", first those that name the same characters (LCT's selection by relevance); or
    for any shot a list of the earlier shots it shall see. Pinned shots are always seen.
    """
    if window < 1:
        raise UserError(f"a window of {window} shots can't hold even the shot being made; use 1 or more")
    chosen = history if isinstance(history, Mapping) else {}
    choose = _relevant if history == "relevant" else _recent
    rounds = []
    for s in shots:
        if s.given is not None:
            continue
        past = shots[: s.shot - 1]
        pinned = sum(p.pinned for p in past)
        if pinned >= window and s.shot not in chosen:
            raise UserError(
                f"{s.label}: {pinned} pinned images and the shot itself need a window of {pinned + 1}, not {window}"
            )
        seen = _chosen(s, past, chosen[s.shot]) if s.shot in chosen else choose(s, past, window - 1)
        rounds.append(Round((s.shot,), seen))
    if not rounds:
        raise UserError("every shot is given: nothing is left to make")
    memory = memory or ("cache" if visibility == "causal" else "recompute")
    return Plan(global_prompt, tuple(shots), tuple(rounds), visibility, memory, context_sigma)


def _chosen(shot: PlannedShot, past: Sequence[PlannedShot], chosen: Sequence[int]) -> tuple[int, ...]:
    if bad := sorted(set(chosen) - {p.shot for p in past}):
        raise UserError(f"{shot.label}: shot {bad[0]} isn't an earlier shot, so it can't be history")
    return tuple(sorted(set(chosen) | {p.shot for p in past if p.pinned}))


def _recent(shot: PlannedShot, past: Sequence[PlannedShot], room: int) -> tuple[int, ...]:
    return _best(past, room, key=lambda p: (p.pinned, p.shot))


def _relevant(shot: PlannedShot, past: Sequence[PlannedShot], room: int) -> tuple[int, ...]:
    """Pinned first; then, for each character named, its latest shots; then the latest of the rest."""
    wanted = _characters(shot.prompt)
    return _best(past, room, key=lambda p: (p.pinned, len(wanted & _characters(p.prompt)), p.shot))


def _best(past: Sequence[PlannedShot], room: int, key: Callable[[PlannedShot], tuple]) -> tuple[int, ...]:
    return tuple(sorted(p.shot for p in sorted(past, key=key, reverse=True)[:room]))


def _characters(prompt: str) -> set[str]:
    return set(_NAMED.findall(prompt))


def reshoot(plan_shots: Sequence[PlannedShot], shot: int, prompt: str | None, take: int) -> list[PlannedShot]:
    """The finished shots with one of them to be made again: another take, and maybe other words. For `together`.

    Raises UserError when there is no such shot.
    """
    if not 1 <= shot <= len(plan_shots):
        raise UserError(f"there is no shot {shot} to make again; the film has shots 1 to {len(plan_shots)}")
    old = plan_shots[shot - 1]
    seed, key, _ = old.noise
    new = replace(
        old, prompt=prompt if prompt is not None else old.prompt, noise=(seed, key, take), given=None
    )
    return [new if s.shot == shot else s for s in plan_shots]
