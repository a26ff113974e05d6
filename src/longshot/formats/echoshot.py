"""EchoShot: a list of prompts, as JSON or as `[1] ... [2] ...`. Every shot is a cut.

A JSON file may hold several lists, and may name them `cap_list` beside `inner_t` (latent frames a shot).
"""

import re
from pathlib import Path
from typing import Any

from longshot.errors import UserError
from longshot.formats.source import (
    Files,
    Imported,
    Node,
    choose,
    extra,
    json_root,
    json_text,
    kept_of,
    main_file,
    read_file,
    the_others,
    unused,
)
from longshot.scene import Scene, Shot

read = read_file
_NUMBER = re.compile(r"\[(\d{1,4})\]")


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of one list of prompts; `index` (from 1) chooses among several."""
    name, text = main_file(files)
    if _NUMBER.match(text.lstrip()) and not _is_json(text):
        return _parse_numbered(name, text)
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return _parse_numbered(name, text)
    root = json_root(files)
    if isinstance(root.value, str):
        return _parse_numbered(name, root.value)
    return _parse_json(name, root, index)


def dump(scene: Scene, path: Path) -> Files:
    """Return a JSON list of one list of prompts, or `[1] ... [2] ...` where `path` does not end in `.json`."""
    prompts = [shot.prompt for shot in scene.shots]
    if path.suffix.lower() != ".json":
        numbered = [f"[{k}] {' '.join(prompt.split())}" for k, prompt in enumerate(prompts, start=1)]
        story = [" ".join(scene.story.split())] if scene.story else []
        return {str(path): "\n".join([*story, *numbered]) + "\n"}
    kept = kept_of(scene, "echoshot")
    if kept.pop("named", False):
        times = {"inner_t": [kept.pop("inner_t")]} if "inner_t" in kept else {}
        return {str(path): json_text({**kept, **times, "cap_list": [prompts]})}
    return {str(path): json_text([prompts])}


def _is_json(text: str) -> bool:
    """Tell `[1, 2]` or `["a"]` from `[1] a [2] b`: only the second goes on after its first bracket closes."""
    return not text.lstrip().partition("]")[2].strip() or text.lstrip()[1:].lstrip()[:1] in ("[", '"')


def _parse_numbered(name: str, text: str) -> Imported:
    marks = list(_NUMBER.finditer(text))
    if not marks:
        raise UserError(f"{name}: holds neither a JSON list of prompts nor `[1] ... [2] ...`")
    for expected, mark in enumerate(marks, start=1):
        if int(mark[1]) != expected:
            raise UserError(
                f"{name}: has {mark[0]} where [{expected}] should come; number the shots in order"
            )
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    shots = [Shot(prompt=text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    return Scene(story=text[: marks[0].start()].strip(), shots=shots), []


def _parse_json(name: str, root: Node, index: int | None) -> Imported:
    named = isinstance(root.value, dict)
    lists = root.need("cap_list") if named else root
    if lists.items() and all(isinstance(item.value, str) for item in lists.items()):
        lists = Node(lists.document, [lists.value], lists.where)
    chosen = choose(name, "list", len(lists.items()), index)
    prompts = [prompt.text() for prompt in lists.items()[chosen].items()]
    if not prompts:
        raise lists.items()[chosen].error("holds no prompts")
    kept: dict[str, Any] = {}
    if named:
        kept = {"named": True, **{key: value for key, value in root.mapping().items() if key != "cap_list"}}
        if (times := root.get("inner_t")) is not None:
            kept["inner_t"] = _times(times, chosen, len(prompts))
    notes = the_others("list", len(lists.items()), chosen) + unused([key for key in kept if key != "named"])
    return Scene(shots=[Shot(prompt=prompt) for prompt in prompts], extra=extra("echoshot", kept)), notes


def _times(times: Node, chosen: int, num_shots: int) -> Any:
    lists = times.items()
    if chosen >= len(lists) or len(lists[chosen].items()) != num_shots:
        raise times.error(f"must give one number for each of the {num_shots} prompts of list {chosen + 1}")
    return [number.count(1) for number in lists[chosen].items()]
