"""CineTrans: YAML with a list of prompts under `prompt`, or one `general_caption` with `shot_info` (frames a shot).

Every shot is a cut. The other names in the file (sizes, checkpoints, seeds of a run) are kept for export.
"""

from pathlib import Path

import yaml

from longshot.document import parse_yaml
from longshot.formats.source import Files, Imported, Node, extra, kept_of, main_file, read_file, unused
from longshot.scene import Scene, Shot

read = read_file


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of a CineTrans configuration."""
    name, text = main_file(files)
    document = parse_yaml(text, name)
    root = Node(document, document.data)
    prompt = root.need("prompt")
    kept = {key: value for key, value in root.mapping().items() if key != "prompt"}
    if isinstance(prompt.value, dict):
        scene, notes = _parse_general(prompt)
    else:
        scene, notes = _parse_list(prompt)
    scene.extra = extra("cinetrans", kept)
    return scene, notes + unused(list(kept))


def dump(scene: Scene, path: Path) -> Files:
    """Return the prompts as YAML, with what an import kept; a scene of bare lengths has one general caption."""
    bare = not any(shot.prompt for shot in scene.shots) and all(shot.frames for shot in scene.shots)
    prompts: object = [shot.prompt for shot in scene.shots]
    if bare:
        prompts = {"general_caption": scene.story, "shot_info": [shot.frames for shot in scene.shots]}
    content = {**kept_of(scene, "cinetrans"), "prompt": prompts}
    return {str(path): yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)}


def _parse_list(prompt: Node) -> Imported:
    texts = [prompt.value] if isinstance(prompt.value, str) else [item.text() for item in prompt.items()]
    if not texts:
        raise prompt.error("holds no prompts")
    return Scene(shots=[Shot(prompt=text) for text in texts]), []


def _parse_general(prompt: Node) -> Imported:
    frames = [item.count(1) for item in prompt.need("shot_info").items()]
    if not frames:
        raise prompt.need("shot_info").error("holds no shots")
    unknown = [key for key in prompt.mapping() if key not in ("general_caption", "shot_info")]
    notes = [f"prompt.{key}" for key in unknown]
    notes.append("a text for each shot (one general caption was given): write the prompts before sampling")
    shots = [Shot(prompt="", frames=count) for count in frames]
    return Scene(story=prompt.text_or("general_caption"), shots=shots), notes
