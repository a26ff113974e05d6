"""What the benchmarks share: the machine in words, children's peak memory, jobs in turn, and plain tables.

Imports no torch: a child process starts with its parent's peak memory counted as its own (Linux keeps the larger of both in
ru_maxrss), so a script that measures children has to stay small.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "av")


def machine() -> str:
    """The machine and the versions, in two lines that name no host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    return (
        f"{cores} cores of {_processor()}, {memory:.0f} GiB, {platform.system()}; load {os.getloadavg()[0]:.1f} at the start; "
        f"threads: {threads}\nPython {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@dataclass(frozen=True)
class Child:
    """What a command took. seconds: wall time; cpu_seconds: of all its threads, which other processes hardly change.

    megabytes: peak resident memory in 10^6 bytes, the largest among its process and those it waited for.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float


def child(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Child:
    """Runs a command and says what it took. SystemExit, with what it printed, when it fails."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{text}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Child(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def in_turn(
    jobs: Mapping[str, Callable[[], object]],
    runs: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every job, run one after the other `runs` times over, so that a busy machine slows all of them alike.

    clock: `time.process_time` counts this process's own work, which other processes hardly change.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for run in range(-warmups, runs):
        for name, job in jobs.items():
            start = clock()
            job()
            if run >= 0:
                times[name].append(clock() - start)
    return times


def ratios(values: Sequence[float], to: Sequence[float]) -> list[float]:
    """The ratio of each run to the run of the other job beside it."""
    return [a / b for a, b in zip(values, to, strict=True)]


def spread(values: Sequence[float]) -> str:
    """The median, and from where to where the values lie."""
    low, middle, high = (f"{v:.3g}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that reads well as text and as Markdown."""
    cells = [list(heading), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heading))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def verdict(missed: Sequence[str], check: bool) -> int:
    """Prints the goals that were missed; the exit code, 1 when they were to be checked."""
    for goal in missed:
        print(f"MISSED: {goal}")
    return 1 if missed and check else 0
