"""The commands for weights that others published."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from longshot.errors import UserError


def convert(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    out: Path | None = None,
    over: str | None = None,
    second: Path | None = None,
) -> int:
    """Turn weights that others published for several shots into a folder for `--base NAME`; `longshot bases` lists them.

    Args:
        name: longlive2, shotstream, echoshot or holocine.
        file: the published file. Of a pickle only tensors are read.
        out: the folder to write, for `--base FOLDER`; where `--base NAME` looks if not given.
        over: the pipeline whose VAE and text encoder they share, if not the usual one: a diffusers folder or owner/repository.
        second: of holocine, the file of the network for little noise.
    """
    from longshot.bases import published

    entry = _entry(name)
    print(f"{name}: licence {entry.licence} ({entry.terms})")
    place = out or published.usual_folder(name)
    published.convert(entry, file, place, over or entry.over, second)
    print(f"{place}: use it as --base {name if out is None else out}")
    return 0


def accept(name: Annotated[Positional[str], arg(metavar="NAME")]) -> int:
    """Say once that you may use weights whose licence asks for more than Apache-2.0 does, and will keep to it."""
    from longshot.bases import published

    entry = _entry(name)
    published.accept(name)
    print(f"{name}: accepted, licence {entry.licence} ({entry.terms})")
    return 0


def _entry(name: str):
    from longshot.bases.published import PUBLISHED

    if name not in PUBLISHED:
        raise UserError(f"no published weights {name!r}: use {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
