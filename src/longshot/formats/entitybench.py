"""EntityBench: a story in scenes (see `episode`) that also lists its cast under `entity_descriptions`.

Characters get numbers without gaps, in the order of the labels `Character 1`, `Character 6`, ... of the list.
"""

import re
from pathlib import Path
from typing import Any

from longshot.errors import UserError
from longshot.formats.episode import (
    Cast,
    Entity,
    Kind,
    cast_is_unchanged,
    cast_of,
    dump_episode,
    kept_document,
    kind_of,
    parse_episode,
)
from longshot.formats.source import Files, Imported, Node, json_root, json_text, read_file
from longshot.scene import Scene

read = read_file
CAST = "entity_descriptions"
_LABEL = re.compile(r"(Character|Location|Object) (\d{1,6})\Z")
_KINDS: dict[str, Kind] = {"Character": "person", "Location": "place", "Object": "object"}
_LABELS = {kind: label for label, kind in _KINDS.items()}


def parse(files: Files, index: int | None = None) -> Imported:
    """Return the scene of an episode, its scenes one after the other."""
    root = json_root(files)
    return parse_episode(root, "entitybench", _listed(root))


def dump(scene: Scene, path: Path) -> Files:
    """Return the episode as JSON, with the cast listed."""
    kept = kept_document(scene, "entitybench")
    listed = _kept_cast(kept)
    if listed and cast_is_unchanged(scene, "entitybench", listed):
        return {str(path): json_text(dump_episode(scene, "entitybench", listed))}
    objects = {name: entity for name, entity in listed.items() if entity.kind == "object"}
    listed = {**cast_of(scene), **objects}
    content = dump_episode(scene, "entitybench", listed)
    return {str(path): json_text({**content, CAST: _list(listed)})}


def _kept_cast(kept: Node) -> Cast:
    try:
        return _listed(kept)
    except UserError:  # a person changed what was kept
        return {}


def _listed(root: Node) -> Cast:
    """Return the cast that the file lists, the people in the order of their labels."""
    entries = root.get(CAST)
    cast: Cast = {}
    for label in sorted(entries.mapping() if entries else [], key=_order):
        entry = entries.need(label) if entries else root
        name, description = entry.need("name").text(), " ".join(entry.text_or("description").split())
        match = _LABEL.match(label)
        cast.setdefault(
            name, Entity(name, description, _KINDS[match[1]] if match else kind_of(name, description))
        )
    return cast


def _order(label: str) -> tuple[str, int]:
    match = _LABEL.match(label)
    return (match[1], int(match[2])) if match else (label, 0)


def _list(cast: Cast) -> dict[str, Any]:
    listed: dict[str, Any] = {}
    for kind, word in _LABELS.items():
        for number, entity in enumerate((one for one in cast.values() if one.kind == kind), start=1):
            label = f"{word} {number}"
            listed[label] = {"name": entity.name, "label": label, "description": entity.description}
    return listed
