"""Import from and export to the script formats of other projects.

A format is a module with three functions: `read` takes files from disk, `parse` makes a scene of them, `dump` makes
files of a scene. What an import cannot place is kept in `extra` for the way back.
"""

import os
from pathlib import Path
from types import ModuleType

from longshot.errors import UserError
from longshot.files import write_text
from longshot.formats import (
    cinetrans,
    echoshot,
    entitybench,
    holocine,
    lines,
    longlive,
    shotstream,
    storymem,
)
from longshot.formats.source import not_held
from longshot.scene import Scene

FORMATS: dict[str, ModuleType] = {
    "entitybench": entitybench,
    "storymem": storymem,
    "holocine": holocine,
    "shotstream": shotstream,
    "longlive": longlive,
    "echoshot": echoshot,
    "cinetrans": cinetrans,
    "lines": lines,
}


def import_scene(
    path: str | os.PathLike[str], format: str, *, index: int | None = None
) -> tuple[Scene, list[str]]:
    """Return the scene in `path` and, in words, what the file holds that a scene does not use.

    `index` (from 1) chooses where a file holds several scripts. UserError where the file is not of that format.
    """
    module = _module(format)
    files, left = module.read(Path(path), index)
    scene, notes = module.parse(files, index)
    return scene, left + notes


def export_scene(scene: Scene, path: str | os.PathLike[str], format: str) -> list[str]:
    """Write `scene` to `path` (a folder for longlive) and return, in words, what the format could not hold.

    The list is found by reading the exported files back and comparing, so it is what really would be lost.
    """
    module = _module(format)
    files = module.dump(scene, Path(path))
    try:
        again, _ = module.parse(files)
    except UserError as error:
        raise UserError(
            f"this scene cannot be written as {format}, since it would not be read back: {error}"
        ) from error
    _refuse_leftovers(Path(path), set(files))
    for name, text in files.items():
        write_text(name, text)
    return not_held(scene, again, format)


def _module(format: str) -> ModuleType:
    if format not in FORMATS:
        raise UserError(f"{format!r} is not a format; choose one of {', '.join(FORMATS)}")
    return FORMATS[format]


def _refuse_leftovers(path: Path, names: set[str]) -> None:
    """Refuse a folder with captions of an earlier export, which would be read as shots of this one."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else []:
        if str(file) not in names:
            raise UserError(f"{path}: holds {file.name}, which is not of this scene; name a new folder")
