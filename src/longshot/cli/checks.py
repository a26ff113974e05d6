"""What is checked of a scene file, and of what a person wrote, before anything is made."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import Base, Codec
    from longshot.lint import Finding
    from longshot.scene import Scene, Shot


def limits_of(base: str):
    from longshot.bases import is_native
    from longshot.bases.native import PRESETS, config_of
    from longshot.bases.native import limits_of as of_native

    if base in PRESETS or is_native(base):
        return of_native(config_of(base).spec)
    from longshot.bases.shape import Blueprint, load_shape

    return Blueprint(load_shape(base).spec).limits()  # tokens are estimated: no tokenizer is loaded


def unreadable(path: Path) -> str | None:
    """What is wrong with a reference file, or None."""
    from longshot.sample.story import is_still
    from longshot.video import probe, read_image

    try:
        read_image(path) if is_still(path) else probe(path)
    except UserError as error:
        return str(error)
    return None


def refuse_errors(path: Path, codec: "Codec") -> None:
    """UserError for a scene that can't be made, before weights are loaded. How long its prompts are is left for `check`,
    since only the tokeniser knows."""
    from dataclasses import replace

    from longshot.lint import lint_file

    _, findings = lint_file(path, replace(codec.limits(), max_text_tokens=sys.maxsize), unreadable)
    _raise_errors(path, findings)


def check(path: Path, base: "Base") -> "list[Finding]":
    """Lints before rendering: warnings are shown, errors stop."""
    from longshot.lint import lint_file

    _, findings = lint_file(path, base.limits(), unreadable)
    for finding in findings:
        if finding.level == "warning":
            print(finding.text(path))
    _raise_errors(path, findings)
    return findings


def _raise_errors(path: Path, findings: "Sequence[Finding]") -> None:
    errors = [f for f in findings if f.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; `longshot lint` lists them)" if len(errors) > 1 else ""
        raise UserError(errors[0].text(path) + more)


def check_shots(film: Path, scene: "Scene", base: "Base", numbers: Sequence[int]) -> "list[Finding]":
    """Lints a film's scene of which some shots are new: their warnings are shown, their errors stop."""
    from longshot.lint import lint

    findings = lint(scene, None, base.limits())
    for finding in findings:
        if finding.field.split(",")[0] in [f"shot {n}" for n in numbers]:
            if finding.level == "error":
                raise UserError(finding.text(film))
            print(finding.text(film))
    return findings


def made_shot(label: str, fields: dict) -> "Shot":
    """A shot made of a person's own arguments."""
    from pydantic import ValidationError

    from longshot.scene import Shot

    try:
        return Shot.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{label}: {', '.join(map(str, first['loc']))}: {first['msg']}") from None


def numbered_files(texts: Sequence[Sequence[str]]) -> dict[int, Path]:
    """NUMBER=FILE, each number once."""
    files: dict[int, Path] = {}
    for text in (text for some in texts for text in some):
        number, equals, name = text.partition("=")
        if not (equals and name and number.isdecimal()):
            raise UserError(f"{text!r}: write NUMBER=FILE, for example 1=first.png")
        if int(number) in files:
            raise UserError(f"{text!r}: shot {int(number)} has {files[int(number)]} already")
        files[int(number)] = Path(name)
    return files
