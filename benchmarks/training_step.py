"""Seconds a training step of the tiny base: one process with two threads against two processes with one thread each, and fp32
against bf16.

    python benchmarks/training_step.py [--stage lct]

Each run is `longshot train puppets --steps N` in a new folder, with one process a rank that draws scenes, as a person would
start it; OMP_WAIT_POLICY says whether idle threads spin (active) or sleep (passive). The first steps of a run don't count.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tyro
from measure import child, machine, ratios, spread, table

ALONE = (sys.executable, "-m", "longshot")
TWO = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "longshot",
)


@dataclass(frozen=True)
class Settings:
    stage: Literal["single", "lct", "refine", "causal", "lct-again"] = "single"
    steps: int = 12
    unmeasured: int = 3
    runs: int = 3
    init: Path | None = None
    """weights to start from; stages other than single need them"""


def seconds_a_step(
    settings: Settings, command: tuple[str, ...], env: dict[str, str], more: tuple[str, ...]
) -> float:
    """The median step of one short run."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*more, "--stage", settings.stage, "--steps", str(settings.steps), "--out", folder]
        options += ["--init", str(settings.init)] if settings.init else []
        child([*command, "train", "puppets", *options], env)
        log = Path(folder) / settings.stage / "log.jsonl"
        times = [json.loads(line)["seconds"] for line in log.read_text().splitlines()][settings.unmeasured :]
    return statistics.median(b - a for a, b in pairwise(times))


def main(settings: Settings) -> int:
    print(machine())
    two = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    ways = {
        "1 process, 2 threads, passive": (ALONE, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}, ()),
        "1 process, 2 threads, active": (ALONE, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"}, ()),
        "2 processes, 1 thread each": (TWO, two, ()),
        "2 processes, 1 thread each, bf16": (TWO, two, ("--precision", "bf16")),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(settings.runs):
        for name, way in ways.items():
            times[name].append(seconds_a_step(settings, *way))
    first = times[next(iter(ways))]
    rows = [(name, spread(t), spread(ratios(t, first))) for name, t in times.items()]
    print(f"stage {settings.stage}, {settings.runs} runs of {settings.steps} steps, median (min to max)")
    print(table(("", "seconds a step", "to the first row"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
