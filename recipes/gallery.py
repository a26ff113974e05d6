"""Makes every picture of docs/gallery: each example, by its own command, as a strip of its shots and a small moving picture.

    python recipes/gallery.py [NAME ...]

Films land in out/gallery. The pictures that composition is given are drawn by the puppet world itself: a person before a plain
backdrop and a place without people, as a user would bring them.
"""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from longshot.puppets.render import render_place, render_portrait
from longshot.puppets.world import Puppet
from longshot.sheet import film_strip
from longshot.video import read_frames, write_image

ROOT = Path(__file__).parents[1]
FILMS = ROOT / "out/gallery"
SCALE = 4  # of the moving pictures: 192x128
PICTURES = {
    "lily.png": lambda: render_portrait(Puppet("Lily", "pink", "plain", "cone", "yellow")),
    "tom.png": lambda: render_portrait(Puppet("Tom", "green", "stripes", "top", "red")),
    "desert.png": lambda: render_place("desert", "day"),
}
EXTEND = ("--prompt", "Character 1 walks left.", "--prompt", "Character 1 stands.")
WAYS = {  # the commands that make each film, as (command, more arguments)
    "cafe": [("sample", [])],
    "return": [("sample", [])],
    "words": [("sample", [])],
    "places": [("sample", [])],
    "reef": [("sample", [])],
    "story20": [("sample", ["--mode", "causal", "--history", "relevant"])],
    "extension": [("sample", ["--mode", "causal", "--save-context"]), ("extend", EXTEND)],
    "interpolation": [("interpolate", [])],
    "reshoot": [("sample", []), ("reshoot", ["--shot", "3"])],
    "composition": [
        ("compose", ["--identity", "lily.png", "--environment", "desert.png", "--swap", "3=tom.png"])
    ],
}


def make(name: str) -> Path:
    """Runs the example's commands and returns the folder of its film."""
    folder = FILMS / name
    shutil.rmtree(folder, ignore_errors=True)
    for command, more in WAYS[name]:
        made = [str(folder)] if command in ("extend", "reshoot") else []
        scene = [] if made else [str(ROOT / f"examples/{name}.yaml"), "--out", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "longshot", command, *made, *scene, *more], cwd=FILMS, check=True
        )
    return folder


def show(name: str, folder: Path, gallery: Path) -> None:
    """Writes NAME.png, the middle frame of every shot, and NAME.webp, the film."""
    shots = [read_frames(path, size=(48 * SCALE, 32 * SCALE)) for path in sorted(folder.glob("shot_*.mp4"))]
    rows = [film_strip(shots[i : i + 6], height=32 * SCALE) for i in range(0, len(shots), 6)]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), mode="edge") for row in rows]
    write_image(gallery / f"{name}.png", np.concatenate(rows))
    frames = [Image.fromarray(frame) for shot in shots for frame in shot]
    frames[0].save(
        gallery / f"{name}.webp",
        save_all=True,
        append_images=frames[1:],
        duration=int(1000 / Fraction(8)),
        loop=0,
        quality=70,
    )


def main(names: tyro.conf.Positional[list[str]] = list(WAYS), gallery: Path = ROOT / "docs/gallery") -> None:  # noqa: B006
    """Makes the films of `names`, all by default, and their pictures."""
    FILMS.mkdir(parents=True, exist_ok=True)
    gallery.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        write_image(FILMS / name, draw())
    for name in names:
        show(name, make(name), gallery)


if __name__ == "__main__":
    tyro.cli(main)
