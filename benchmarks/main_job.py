"""How long a person waits for a film, and how much memory it takes: `longshot sample SCENE --out DIR` in a new process.

    python benchmarks/main_job.py [--check]

Goal on 2 cores: the first video within 60 s, under 2 GB.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import Child, child, machine, spread, table, verdict

CAFE = Path(__file__).parent.parent / "examples" / "cafe.yaml"


@dataclass(frozen=True)
class Settings:
    scene: Path = CAFE
    mode: str = "auto"
    base: str = "tiny"
    runs: int = 3
    goal_s: float = 60
    goal_mb: float = 2000
    check: bool = False
    """exit with 1 when a goal is missed"""


def run(settings: Settings) -> tuple[Child, dict]:
    """What one film took, and its manifest."""
    options = ["--mode", settings.mode, "--base", settings.base]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "film"
        command = [sys.executable, "-m", "longshot", "sample", settings.scene, "--out", out, *options]
        return child(command), json.loads((out / "manifest.json").read_text("utf-8"))


def main(settings: Settings) -> int:
    print(machine())
    films, manifests = zip(*(run(settings) for _ in range(settings.runs)), strict=True)
    shots = manifests[0]["shots"]
    frames = sum(shot["frames"] for shot in shots)
    print(f"{settings.scene.name}: {len(shots)} shots, {frames} frames, mode {manifests[0]['mode']}")
    seconds, megabytes = [f.seconds for f in films], [f.megabytes for f in films]
    rows = [
        ("wall time, s", spread(seconds), f"under {settings.goal_s:g}"),
        ("of which making shots, s", spread([m["seconds_of_last_run"] for m in manifests]), ""),
        ("CPU time of all threads, s", spread([f.cpu_seconds for f in films]), ""),
        ("peak memory, MB", spread(megabytes), f"under {settings.goal_mb:g}"),
    ]
    print(table((f"{settings.runs} runs", "median (min to max)", "goal"), rows))
    missed = []
    if statistics.median(seconds) >= settings.goal_s:
        missed.append(f"{statistics.median(seconds):.1f} s, the goal is under {settings.goal_s:g} s")
    if max(megabytes) >= settings.goal_mb:
        missed.append(f"{max(megabytes):.0f} MB, the goal is under {settings.goal_mb:g} MB")
    return verdict(missed, settings.check)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
