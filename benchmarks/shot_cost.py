"""What one denoising step of shot n costs, for each way to remember the shots before it.

    python benchmarks/shot_cost.py [--frames 16 --size 128x64]

recompute: the shots before are part of every forward pass (bidirectional). cache: their keys and values are remembered
(context-causal); making them takes one more forward pass a shot. joint: n shots denoised together, so a step of n shots
costs as much as a recomputed shot n, and is shown per shot. Weights are random; the time doesn't depend on them.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from measure import in_turn, machine, ratios, spread, table

from longshot.bases.native import PRESETS, NativeBase
from longshot.layout import Group, Layout, Visibility, global_group
from longshot.model.context import Context
from longshot.model.cost import Work, forward_work, measure_machine

GLOBAL_PROMPT = (
    "[Character] Character 1: a red puppet with a blue top hat. [Environment] a cafe. [Story] Two meet."
)
PROMPT = "[SHOT CUT] Medium shot. Character 1 waves, Character 2 walks right."


@dataclass(frozen=True)
class Settings:
    base: str = "tiny"
    shots: int = 9
    frames: int | None = None
    """frames a shot; the base's default if not given"""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; the base's own if not given"""
    device: str = "cpu"
    runs: int = 5


class Bench:
    """Random latents of a scene, and forward passes over parts of it."""

    def __init__(self, settings: Settings):
        self.base = NativeBase.fresh(PRESETS[settings.base]()).to(settings.device)
        self.base.network.requires_grad_(False).eval()
        spec = self.base.spec
        width, height = map(int, settings.size.split("x")) if settings.size else spec.size
        grid = spec.grid(settings.frames or spec.default_frames, width, height)
        self.device = settings.device
        self.texts = self.base.encode_text([GLOBAL_PROMPT] + [PROMPT] * settings.shots)
        shots = [Group(k, len(text), grid) for k, text in enumerate(self.texts[1:], start=1)]
        self.groups = (global_group(len(self.texts[0])), *shots)
        self.z = [torch.randn(g.video, spec.channels, device=self.device) for g in self.groups]
        self.contexts = [Context()]
        for k in range(len(self.groups)):
            args, past = self._args(k, k + 1, "causal")
            _, (context,) = self.base.remember(*args, [past])
            self.contexts.append(context)

    def _args(self, start: int, stop: int, visibility: Visibility) -> tuple[tuple, Context]:
        """The arguments of a forward pass over groups start..stop while those before are remembered."""
        layout = Layout.single(*self.groups[:stop], past=start, rope=self.base.spec.rope)
        sigma = torch.full((stop - start,), 0.1, device=self.device)
        sigma[-1] = 0.7
        args = torch.cat(self.z[start:stop]), torch.cat(self.texts[start:stop]), sigma, layout, visibility
        return args, self.contexts[start]

    def step(self, start: int, stop: int, visibility: Visibility) -> Callable[[], object]:
        """A forward pass, its layout made beforehand, as it is once a shot and not once a step."""
        args, past = self._args(start, stop, visibility)

        def run() -> None:
            self.base.velocity(*args, [past])
            if self.device != "cpu":
                torch.cuda.synchronize()

        return run

    def work(self, start: int, stop: int, visibility: Visibility) -> Work:
        """What that pass should cost, from sizes alone."""
        layout = self._args(start, stop, visibility)[0][3]
        return forward_work(self.base.config.network, layout, visibility)


@torch.no_grad()
def predictions(bench: Bench, times: dict[str, list[float]]) -> str:
    """What `longshot plan` would say of each pass, beside what it took."""
    network, last = bench.base.config.network, len(bench.groups)
    speed = measure_machine(network.width, network.heads, sum(g.tokens for g in bench.groups), bench.device)
    rows = []
    for n in range(1, last):
        row: list[object] = [n]
        for how, work in (
            ("recompute", bench.work(0, n + 1, "scene")),
            ("cache", bench.work(n, n + 1, "causal")),
        ):
            predicted = speed.seconds(work)
            to_measured = predicted / statistics.median(times[f"{how} {n}"])
            row += [f"{work.flops / 1e9:.3g}", f"{1000 * predicted:.3g}", f"{to_measured:.2f}"]
        rows.append(row)
    heading = ["shot n", "recompute, GFLOP", "predicted, ms", "to measured"]
    return f"{speed}\n" + table([*heading, "cache, GFLOP", "predicted, ms", "to measured"], rows)


@torch.no_grad()
def main(settings: Settings) -> int:
    print(machine())
    bench = Bench(settings)
    numbers = range(1, settings.shots + 1)
    jobs = {f"recompute {n}": bench.step(0, n + 1, "scene") for n in numbers}
    jobs |= {f"cache {n}": bench.step(n, n + 1, "causal") for n in numbers}
    times = in_turn(jobs, settings.runs)
    first = bench.groups[1]
    a_shot = bench.contexts[2].nbytes - bench.contexts[1].nbytes
    print(
        f"{settings.base}, {first.video} video and {first.text} text tokens a shot; a remembered shot takes "
        f"{a_shot / 1e6:.2f} MB; {settings.runs} runs, median (min to max)"
    )
    rows = []
    for n in numbers:
        recompute, cache = times[f"recompute {n}"], times[f"cache {n}"]
        per_shot = [1000 * t / n for t in recompute]
        row = [n, spread([1000 * t for t in recompute]), spread([1000 * t for t in cache]), spread(per_shot)]
        row += [spread(ratios(recompute, times["recompute 1"])), spread(ratios(cache, times["cache 1"]))]
        rows.append([*row, spread(ratios(recompute, cache))])
    heading = ["shot n", "recompute, ms", "cache, ms", "joint of n, ms a shot", "recompute to shot 1"]
    print(table([*heading, "cache to shot 1", "recompute to cache"], rows))
    print(predictions(bench, times))
    whole = {
        how: [sum(t) for t in zip(*(times[f"{how} {n}"] for n in numbers), strict=True)]
        for how in ("recompute", "cache")
    }
    joint = times[f"recompute {settings.shots}"]
    print(
        f"a step of all {settings.shots} shots, s: recompute {spread(whole['recompute'])}, cache {spread(whole['cache'])}, "
        f"joint {spread(joint)}; recompute to cache {spread(ratios(whole['recompute'], whole['cache']))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
