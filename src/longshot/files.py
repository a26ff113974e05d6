"""Files that are either whole or not there, and paths that stay where they belong."""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from longshot.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    The suffix is kept, since encoders choose a container by it. A reader sees the old file or the new one, never half
    of either, and a full disk leaves the old one whole. Folders that are missing are made. Raises UserError, naming
    `path`, where the system refuses the write (no space, no permission, a folder in the way).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(6)}{target.suffix}")
    with _refusals_name(target):
        if target.is_dir():
            raise UserError(f"{target}: is a folder, so no file can be written there; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        with _refusals_name(target):
            yield temporary
            _settle(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8 with Unix line ends, atomically; UserError where that cannot be done."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def inside(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Return `path`, taken relative to `root` and with links followed; UserError where it lies outside `root`."""
    base = Path(root).resolve()
    try:
        resolved = (base / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL in the name
        raise UserError(f"{os.fspath(path)!r}: not a usable path ({error})") from error
    if not resolved.is_relative_to(base):
        raise UserError(f"{path}: lies outside {base}; move the file into that folder and name it from there")
    return resolved


@contextmanager
def _refusals_name(target: Path) -> Generator[None]:
    """Turn the system's refusals into one line that names the file a person asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{target}: could not be written ({reason})") from error


def _settle(temporary: Path, target: Path) -> None:
    """Push `temporary` to the disk, keep the permissions of the file it replaces, and put it in its place."""
    if target.exists():
        temporary.chmod(target.stat().st_mode & 0o777)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, target)
