"""How fast films are cut, beside PySceneDetect's own command line, and how memory grows with the length of a film.

    python benchmarks/data_speed.py FILM --runs 3           decode, detect, measure, group into scenes; both in turn
    python benchmarks/data_speed.py --memory 1 10 120       peak memory on generated films of so many minutes

Each command is a process of its own, start-up and imports included; times are wall and CPU seconds, medians over the runs.
The ratios are medians too, each of two runs that followed each other. One run of each comes before and isn't counted: what
is imported is compiled then, as on a person's first start, wherever this Python may or may not keep bytecode.
Both use every core they like: pin them to two with `taskset -c 0,1` for the figure of two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from longshot.video import survey


def timed(command: list[str], bytecode: str) -> tuple[float, float, float]:
    """Run a command and return its wall seconds, CPU seconds and peak memory in MiB; fails where it fails."""
    keeping = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=keeping)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def longshot(film: Path, folder: Path) -> list[str]:
    config = folder / "config.json"
    config.write_text(json.dumps({"films": [film.name], "films_root": str(film.parent), "out": "out"}))
    return [
        sys.executable,
        "-m",
        "longshot",
        "data",
        "run",
        str(config),
        "--until",
        "scenes",
        "--workers",
        "1",
    ]


def compare(film: Path, runs: int) -> None:
    seconds = survey(film).info.seconds
    theirs = [
        sys.executable,
        "-m",
        "scenedetect",
        "-q",
        "-i",
        str(film),
        "detect-adaptive",
        "list-scenes",
        "-n",
    ]
    figures: dict[str, list[tuple[float, float, float]]] = {"scenedetect": [], "longshot": []}
    with tempfile.TemporaryDirectory() as bytecode:
        for n in range(runs + 1):
            one = timed(theirs, bytecode)
            with tempfile.TemporaryDirectory() as folder:
                other = timed(longshot(film, Path(folder)), bytecode)
            if n:
                figures["scenedetect"].append(one)
                figures["longshot"].append(other)
    for name, rows in figures.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{name}: {wall:.2f} s wall ({seconds / wall:.1f}x real time), {cpu:.2f} s CPU, {memory:.0f} MiB"
        )
    for n, what in enumerate(("wall", "CPU")):
        ratios = sorted(
            ours[n] / other[n]
            for other, ours in zip(figures["scenedetect"], figures["longshot"], strict=True)
        )
        print(
            f"longshot takes {statistics.median(ratios):.2f} of the {what} time ({ratios[0]:.2f} to {ratios[-1]:.2f}), n={runs}"
        )


def long_film(path: Path, minutes: float, fps: int, size: tuple[int, int] = (64, 36)) -> None:
    """Write a film of any length: one minute with a cut every 4 s is encoded, and its packets are repeated."""
    rng = np.random.default_rng(0)
    piece = path.with_name("minute.mp4")
    with av.open(str(piece), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(15):
            view = rng.integers(0, 255, (size[1], size[0] + 96, 3), dtype=np.uint8) // 2 + rng.integers(
                0, 127, 3, dtype=np.uint8
            )
            for n in range(4 * fps):
                frame = np.ascontiguousarray(view[:, n : n + size[0]])
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(path), "w") as out:
        stream, shift = None, 0
        for _ in range(max(1, round(minutes))):
            with av.open(str(piece)) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                length = round(60 / (video.time_base or Fraction(1, fps)))
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)
            shift += length
    piece.unlink()


def memory(lengths: list[float], fps: int) -> None:
    for minutes in lengths:
        with tempfile.TemporaryDirectory() as folder:
            film = Path(folder) / "film.mp4"
            long_film(film, minutes, fps)
            wall, cpu, peak = timed(longshot(film, Path(folder)), f"{folder}/bytecode")
            print(
                f"{minutes:g} min: peak {peak:.0f} MiB, {wall:.1f} s wall, {cpu:.1f} s CPU ({minutes * 60 / cpu:.0f}x real time)",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("film", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", nargs="+", type=float, default=[])
    parser.add_argument("--fps", type=int, default=24, help="of the films of --memory")
    options = parser.parse_args()
    if options.film:
        compare(options.film.resolve(), options.runs)
    if options.memory:
        memory(options.memory, options.fps)
