"""How long a person waits for `longshot --help`, and how much of it is the bare interpreter.

    python benchmarks/import_time.py [--check]

Goal: under 0.5 s, without torch.
"""

import re
import statistics
import subprocess
import sys
from dataclasses import dataclass

import tyro
from measure import in_turn, machine, ratios, spread, table, verdict

HELP = [sys.executable, "-m", "longshot", "--help"]
BARE = [sys.executable, "-c", "pass"]
NOT_FOR_HELP = ("torch", "torchvision", "tokenizers", "av")


@dataclass(frozen=True)
class Settings:
    runs: int = 7
    goal_s: float = 0.5
    check: bool = False
    """exit with 1 when a goal is missed"""


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def loaded_modules() -> list[tuple[str, float]]:
    """Modules that the help command imports, slowest first, with their own and their imports' seconds."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *HELP[1:]], capture_output=True, text=True, check=True
    )
    rows = re.findall(r"^import time:\s*\d+ \|\s*(\d+) \|\s*(\S+)$", run.stderr, flags=re.MULTILINE)
    return sorted(((name, int(microseconds) / 1e6) for microseconds, name in rows), key=lambda row: -row[1])


def main(settings: Settings) -> int:
    print(machine())
    times = in_turn({"help": lambda: run(HELP), "bare": lambda: run(BARE)}, settings.runs)
    rows = [
        ("longshot --help", spread(times["help"]), spread(ratios(times["help"], times["bare"]))),
        ("bare python", spread(times["bare"]), "1"),
    ]
    print(table((f"{settings.runs} runs", "seconds, median (min to max)", "ratio"), rows))
    modules = loaded_modules()
    print("slowest imports: " + ", ".join(f"{name} {s:.3f} s" for name, s in modules[:6]))
    missed = []
    if unwanted := sorted({name.split(".")[0] for name, _ in modules} & set(NOT_FOR_HELP)):
        missed.append(f"`longshot --help` imports {', '.join(unwanted)}")
    if statistics.median(times["help"]) >= settings.goal_s:
        missed.append(f"{statistics.median(times['help']):.3f} s, the goal is under {settings.goal_s:g} s")
    return verdict(missed, settings.check)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
