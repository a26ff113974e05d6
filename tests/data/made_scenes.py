"""A film of plain colours, and the scene rows that the first stages would make of it."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from longshot.data.records import Origin, Row, SceneRow, SceneShot
from longshot.data.stage import Place
from longshot.video import write_video

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 40), "blue": (40, 40, 200), "grey": (90, 90, 90)}
FPS = Fraction(8)


def colour_film(path: Path, shots: list[tuple[str, int]], size: tuple[int, int] = (48, 32)) -> None:
    """Write a film with a shot of so many frames of each colour; every frame is brighter than the one before, and every shot
    than those before it."""
    frames = []
    for shot, (colour, count) in enumerate(shots):
        for k in range(count):
            frames.append(
                np.full((size[1], size[0], 3), COLOURS[colour], np.uint8) + np.uint8(2 * k + 3 * shot)
            )
    write_video(path, np.stack(frames), FPS)


def scene_row(
    scene: str,
    film: str,
    spans: list[tuple[int, int]],
    cuts: list[bool] | None = None,
    size: tuple[int, int] = (48, 32),
    crop: tuple[int, int, int, int] | None = None,
    kept: bool = True,
) -> Row:
    """A scene of shots at half-open spans of frames."""
    origin = Origin(path=film, sha256="0" * 64, source="made here", licence="CC0-1.0")
    shots = [
        SceneShot(
            id=f"{scene}-{k}",
            film=origin,
            fps=str(FPS),
            start_frame=start,
            stop_frame=stop,
            start_s=float(start / FPS),
            stop_s=float(stop / FPS),
            index=k,
            begins="cut",
            width=size[0],
            height=size[1],
            crop=crop,
            cut=cuts[k] if cuts else True,
        )
        for k, (start, stop) in enumerate(spans)
    ]
    return SceneRow(id=scene, film=origin, kind="cuts", shots=tuple(shots), kept=kept).row()


def colour_scenes(folder: Path, count: int = 2) -> tuple[Place, list[Row]]:
    """A film and `count` scenes of two shots in it: red then green, blue then grey, red then green, ..."""
    pairs = [(("red", 12), ("green", 8)), (("blue", 8), ("grey", 12))]
    shots = [shot for k in range(count) for shot in pairs[k % 2]]
    colour_film(folder / "film.mp4", shots)
    rows, at = [], 0
    for k in range(count):
        first, second = (frames for _, frames in shots[2 * k : 2 * k + 2])
        rows.append(
            scene_row(f"scene-{k}", "film.mp4", [(at, at + first), (at + first, at + first + second)])
        )
        at += first + second
    return Place(folder / "out", folder), rows
