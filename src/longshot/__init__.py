"""longshot: multi-shot video generation by long context tuning.

What most programs need, each name imported when it is first used, so that `import longshot` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longshot.errors import UserError
    from longshot.scene import Character, Reference, Scene, Shot, load_scene, save_scene
    from longshot.sheet import contact_sheet, film_strip
    from longshot.video import probe, read_frames, read_image, write_image, write_video

__version__ = "0.1.0"
__all__ = [
    "Character",
    "Reference",
    "Scene",
    "Shot",
    "UserError",
    "contact_sheet",
    "film_strip",
    "load_scene",
    "probe",
    "read_frames",
    "read_image",
    "save_scene",
    "write_image",
    "write_video",
]

_ROOMS = {
    "errors": ("UserError",),
    "scene": ("Character", "Reference", "Scene", "Shot", "load_scene", "save_scene"),
    "sheet": ("contact_sheet", "film_strip"),
    "video": ("probe", "read_frames", "read_image", "write_image", "write_video"),
}


def __getattr__(name: str) -> object:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"longshot.{room}"), name)
    raise AttributeError(f"module 'longshot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
