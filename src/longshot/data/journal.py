"""Where a stage's results lie: an append-only journal that survives being killed, and rows.jsonl made from it."""

import contextlib
import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from longshot.data.records import Row
from longshot.data.stage import Outcome
from longshot.errors import UserError
from longshot.files import atomic_path

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not kept apart there
    fcntl = None


class Journal:
    """Results of one stage by key, in `journal.jsonl`: a line a unit, written whole and synced, never changed.

    A run that is killed leaves at most one torn line at the end, which is cut off when the journal is opened again.
    A whole line that was damaged since is passed over: its unit is made again, and those after it stay.
    Results of other settings stay in it and are found again when the settings come back.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self._places: dict[str, int] = {}
        with _told(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            # Written without a buffer: what a full disk refused must not come back when the file is closed.
            self._end = self.path.open("ab", buffering=0)
        try:
            with _told(self.path, "read"):
                end = self._index()
            # A line that doesn't end can only be the last one a killed run was writing.
            with _told(self.path):
                self._end.truncate(end)
            # Opened after the cut, so that no buffer holds what was cut off.
            with _told(self.path, "read"):
                self._file = self.path.open("rb")
        except BaseException:
            self._end.close()
            raise

    def _index(self) -> int:
        """Note where each entry begins and return where the last whole line ends."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = _entry(line.decode())
                    deque(entry["rows"], maxlen=0)  # all of them whole?
                    self._places[entry["key"]] = end
                end += len(line)
        return end

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> dict[str, Any]:
        """Return the entry of a key: `notes`, `seconds`, and `rows`, which are read as they are gone over."""
        with _told(self.path, "read"):
            self._file.seek(self._places[key])
            return _entry(self._file.readline().decode())

    def add(self, outcome: Outcome) -> None:
        """Keep a finished unit; it is on the disk when this returns."""
        entry = {
            "key": outcome.key,
            "name": outcome.name,
            "seconds": round(outcome.seconds, 3),
            "notes": outcome.notes,
        }
        place = self._end.seek(0, os.SEEK_END)
        with _told(self.path):
            try:
                # A row at a time, since those of a long film are many megabytes; the entry counts when its line ends.
                self._write(_json(entry)[:-1] + ROWS.encode())
                for n, row in enumerate(outcome.rows):
                    self._write(b"," * (n > 0) + _json(row))
                self._write(b"]}\n")
                os.fsync(self._end.fileno())
            except (OSError, ValueError):
                self._end.truncate(place)
                raise
        self._places[outcome.key] = place

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            left = left[self._end.write(left) :]

    def close(self) -> None:
        self._file.close()
        self._end.close()


ROWS = ',"rows":['
"""Between the fields of an entry and its rows. Quotes in text have a backslash before them, so no text holds this."""


def _entry(line: str) -> dict[str, Any]:
    """Return a line's entry with its rows as an iterator; ValueError, at once or from it, where the line is damaged."""
    end = line.find(ROWS)
    return (
        json.loads(line) if end < 0 else json.loads(line[:end] + "}") | {"rows": _rows(line, end + len(ROWS))}
    )


def _rows(line: str, at: int) -> Iterator[Row]:
    more = not line.startswith("]", at)
    while more:
        row, at = json.JSONDecoder().raw_decode(line, at)
        yield row
        more = line.startswith(",", at)
        at += more
    if line[at:] != "]}\n":
        raise ValueError("an entry that doesn't end where its rows do")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@contextlib.contextmanager
def _told(path: Path, what: str = "written") -> Generator[None]:
    """Turn the system's refusal to write, or to read, into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: could not be {what} ({error.strerror or error})") from error


@contextlib.contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold a run's folder for this process; UserError when another run works in it. A killed run lets go by itself."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{folder}: another run works in this folder; wait for it or stop it"
                ) from None
        yield


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, atomically, and return how many there were."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, or of a .parquet table; UserError names the line that isn't one."""
    if path.suffix.lower() == ".parquet":
        from longshot.data.parquet import read_table

        yield from read_table(path)
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: isn't a row; delete the file and run the stage again")
                yield row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage {path.parent.name} first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read ({error})") from error
