"""How long a person waits for `longshot --help`, and how much of it is the bare interpreter.

    python benchmarks/import_time.py

Goal: under 0.5 s, without torch. Both commands are run in turn, so that a busy machine slows both alike; the
median of each is printed, then their ratio. Exits with 1 when the goal is missed or torch was loaded.
"""

import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro

HELP = [sys.executable, "-m", "longshot", "--help"]
BARE = [sys.executable, "-c", "pass"]
NOT_FOR_HELP = ("torch", "torchvision", "tokenizers", "av")


@dataclass(frozen=True)
class Settings:
    runs: int = 5
    goal_s: float = 0.5


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def loaded_modules() -> list[tuple[str, float]]:
    """Modules that the help command imports, slowest first, with their own and their imports' seconds."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *HELP[1:]], capture_output=True, text=True, check=True
    )
    rows = re.findall(r"^import time:\s*\d+ \|\s*(\d+) \|\s*(\S+)$", run.stderr, flags=re.MULTILINE)
    return sorted(((name, int(microseconds) / 1e6) for microseconds, name in rows), key=lambda row: -row[1])


def main(settings: Settings) -> int:
    modules = loaded_modules()  # also warms the file cache
    pairs = [(seconds(HELP), seconds(BARE)) for _ in range(settings.runs)]
    with_help, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"longshot --help  {with_help:.3f} s")
    print(f"bare python      {bare:.3f} s   ratio {with_help / bare:.1f}")
    print("slowest imports  " + ", ".join(f"{name} {s:.3f} s" for name, s in modules[:6]))
    unwanted = sorted({name.split(".")[0] for name, _ in modules} & set(NOT_FOR_HELP))
    if unwanted:
        print(f"MISSED: `longshot --help` imports {', '.join(unwanted)}")
    if with_help >= settings.goal_s:
        print(f"MISSED: {with_help:.3f} s, the goal is under {settings.goal_s} s")
    return 1 if unwanted or with_help >= settings.goal_s else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
