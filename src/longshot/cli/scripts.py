"""The commands on scene files and the scripts of other projects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from longshot.cli.checks import limits_of, unreadable
from longshot.cli.options import FormatName, ScenePath
from longshot.errors import UserError


def lint(scene: ScenePath, base: str = "tiny") -> int:
    """Check a scene file: errors that stop a render, and warnings a director wants to know."""
    from longshot.lint import lint_file

    limits = limits_of(base)
    _, findings = lint_file(scene, limits, unreadable)
    for finding in findings:
        print(finding.text(scene))
    errors = sum(f.level == "error" for f in findings)
    print(
        f"{scene}: {errors} errors, {len(findings) - errors} warnings"
        if findings
        else f"{scene}: nothing to say"
    )
    return 1 if errors else 0


def import_(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    format: FormatName,
    out: Path,
    index: int | None = None,
) -> int:
    """Turn a script of another project into a scene file; says what the scene can't hold.

    Args:
        file: the script; for longlive a folder.
        format: what kind of script it is.
        out: the scene file to write (.yaml).
        index: which script, from 1, where a file holds several.
    """
    from longshot.formats import import_scene
    from longshot.scene import save_scene

    if out.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{out}: scene files are written as YAML; the name must end in .yaml")
    scene, left = import_scene(file, format, index=index)
    save_scene(scene, out)
    print(f"{out}: {len(scene.shots)} shots, {len(scene.characters)} characters")
    tell_list("kept aside, since a scene has no place for it:", left)
    return 0


def export(scene: ScenePath, format: FormatName, out: Path) -> int:
    """Write a scene as a script of another project; says what that format can't hold.

    Args:
        format: what kind of script to write.
        out: the file (for longlive the folder) to write.
    """
    from longshot.formats import export_scene
    from longshot.scene import load_scene

    lost = export_scene(load_scene(scene), out, format)
    print(f"{out}: written as {format}")
    tell_list("not held by this format:", lost)
    return 0


def tell_list(heading: str, items: Sequence[str]) -> None:
    if items:
        print(heading)
    for item in items:
        print(f"  {item}")
