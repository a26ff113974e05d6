"""A plain list of lines: one prompt a line.

Every shot is a cut, unless some line begins with `[SHOT CUT]`: then the lines without it continue the shot before.
"""

from pathlib import Path

from longshot.errors import UserError
from longshot.formats.source import Files, Imported, main_file, read_file
from longshot.scene import SHOT_CUT, Scene, Shot

read = read_file


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of a file of lines; blank lines are left out."""
    name, text = main_file(files)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{name}: holds no line of text; write one prompt a line")
    if "\0" in text:
        raise UserError(f"{name}: is not a list of lines; is this the right file?")
    marked = any(line.startswith(SHOT_CUT) for line in lines)
    shots = [
        Shot(prompt=line.removeprefix(SHOT_CUT).strip(), cut=line.startswith(SHOT_CUT) or not marked)
        for line in lines
    ]
    return Scene(shots=shots), []


def dump(scene: Scene, path: Path) -> Files:
    """Return one line a shot, with `[SHOT CUT]` where the scene also has shots that continue."""
    prompts = scene.shot_prompts()
    if all(shot.cut for shot in scene.shots):
        prompts = [prompt.removeprefix(SHOT_CUT).strip() for prompt in prompts]
    return {str(path): "".join(f"{prompt}\n" for prompt in prompts)}
