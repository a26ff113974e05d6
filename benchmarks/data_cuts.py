"""How well changes of shot are found in generated films whose changes are known, and how fast.

    python benchmarks/data_cuts.py --films 20                         hard cuts, fades and dissolves by the rules
    python benchmarks/data_cuts.py --films 4 --detector transnetv2    the same by the learned network

The films are those of tests/data/films.py (`montage`): cuts within a place and between places, dark ones, pans, large things
that cross the picture, camera shake, flashes, drawing on twos and threes, fades and dissolves; encoded by x264, lossy.
A hard cut counts as found within 1 frame; a fade or a dissolve when a change is found between its first and last mixed frame.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))

from films import f1, montage, tally

from longshot.data.cuts import Boundary, CutSettings, Finder, finder
from longshot.data.measure import Meter
from longshot.video import scan


def found_in(path: Path, cuts: Finder) -> list[Boundary]:
    """Return the changes that a detector finds in a film, as stage `shots` has it look."""
    meter, found = Meter(10**9), []
    for second, stored, picture in scan(path, 256):
        _, tiny = meter.measure(second, stored, picture)
        found += cuts.push(picture, tiny)
    return found + cuts.finish()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seed", type=int, default=40, help="of the first film")
    parser.add_argument("--detector", choices=("classic", "transnetv2"), default="classic")
    options = parser.parse_args()
    count: Counter[str] = Counter()
    frames, spent = 0, 0.0
    settings = CutSettings(detector=options.detector)
    finder(settings, 24.0)  # what it loads isn't counted
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.films):
            film = montage(seed)
            path = film.write(Path(folder) / "film.mp4")
            begun = time.process_time()
            found = found_in(path, finder(settings, 24.0))
            spent += time.process_time() - begun
            frames += len(film.frames)
            told = tally(film, [(boundary.frame, boundary.kind) for boundary in found])
            count += told
            print(f"seed {seed}: {dict(told)}", flush=True)
    for kind in ("cut", "fade", "dissolve"):
        true, hit, false = (count[f"{kind} {what}"] for what in ("true", "hit", "false"))
        named = count[f"{kind} named"]
        print(
            f"{kind}: {hit} of {true} found ({named} by that name), {false} false, F1 {f1(count, kind):.3f}"
        )
    print(f"{options.detector}: {frames} frames, {frames / spent:.0f} a CPU second")


if __name__ == "__main__":
    main()
