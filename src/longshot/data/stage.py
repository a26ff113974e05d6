"""What a stage is: rows in, rows out, on units that know nothing of each other, so that any engine can run them."""

import errno
import hashlib
import json
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

from pydantic import BaseModel, ConfigDict

from longshot.data.records import Record, Row
from longshot.errors import UserError
from longshot.files import inside


class Settings(BaseModel):
    """What a person can set of a stage: a section of the config, and part of the key of everything it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    def resolved(self, folder: Path) -> "Settings":
        """Return the settings with paths that a config in `folder` gives relative to itself."""
        return self


@dataclass(frozen=True)
class Place:
    """The folders of a run. Stages get no other paths, and rows hold only paths inside these."""

    out: Path
    films_root: Path

    def film(self, path: str) -> Path:
        """Return the film that a row names; UserError when that is outside the folder of films."""
        return inside(self.films_root, path)

    def file(self, path: str) -> Path:
        """Return a file that a stage made, named relative to the folder of the run."""
        return inside(self.out, path)

    def folder(self, stage: str) -> Path:
        """Return the folder of one stage."""
        return self.out / stage


class Lines(Sequence[Row]):
    """Rows as lines of JSON, a tenth of what they take as Python values, since a long film has thousands of shots.

    A row is read anew each time it is asked for.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._lines: list[str] = []
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        self._lines.append(json.dumps(row, separators=(",", ":")))

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [json.loads(line) for line in self._lines[place]]
        return json.loads(self._lines[place])


@dataclass(frozen=True)
class Unit:
    """Rows that a stage takes at once, for example all shots of one film; `name` is what a report calls them."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: rows, or one line that says why there are none. Plain values, for any engine to carry."""

    key: str
    name: str
    rows: Sequence[Row] = ()
    error: str | None = None
    trace: str | None = None
    """only where the error is a bug rather than a person's file"""
    notes: tuple[str, ...] = ()
    """what a person should know although rows came out"""
    seconds: float = 0.0
    stop: str | None = None
    """what a person is to do, where the error is the disk's: every other unit would meet it too"""


@dataclass(frozen=True)
class Made:
    """What `Stage.run` returns: rows, and notes for the report. Records are asked for one by one; `Lines` hold finished rows."""

    rows: Iterable[Record] | Lines
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline. Picklable: engines send it to other processes and machines.

    What `run` needs loaded (a model, a client) comes from a cached function of the settings, so once in each process.
    A stage writes files only under `place.folder(name) / "files" / key`, each atomically, and names them in its rows.
    """

    name: ClassVar[str]
    after: ClassVar[str | None]
    """the stage whose rows this one reads"""
    version: ClassVar[int]
    """raise it when the same input would come out otherwise: older results are then made again"""
    reads: ClassVar[type[Record]]
    writes: ClassVar[type[Record]]
    settings: Any
    place: Place
    threads: ClassVar[int] = 0
    """more than 0: the local engine runs so many units at once in threads of one process, for stages that wait"""

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        """Yield the units of the input rows: here, each row alone."""
        for row in rows:
            yield Unit(self.label(row), (row,))

    def label(self, row: Row) -> str:
        """Return what a person calls a row."""
        return str(row.get("id") or row.get("film", {}).get("path") or "a row")

    def run(self, unit: Unit, key: str) -> Made:
        """Make a unit's rows. UserError for what a person can put right; it is named in the report, the rest goes on."""
        raise NotImplementedError

    def files(self, row: Row) -> Iterable[str]:
        """Return the files a row names, relative to the run's folder: where one is gone, the unit is made again."""
        return ()

    def settle(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Go over all finished rows, in the order of the input, where a stage must see the whole corpus."""
        return rows

    def foresee(self, rows: Iterable[Row]) -> Sequence[str]:
        """Return what a person should know before the stage runs, for example its cost. UserError stops the run."""
        return ()

    def sum_up(self) -> Sequence[str]:
        """Return what a person should know when the stage has run, for example what it cost."""
        return ()


REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "the folder is read-only: make it writable",
}
"""By what the system says when nothing more can be written: what a person is to do."""


def key_of(stage: Stage, unit: Unit) -> str:
    """Return the address of a unit's result: a hash of what goes in, of the settings and of the stage's version.

    Input rows hold the film's sha256 and the settings of the stages before, so anything that changes upstream changes it.
    """
    settings = stage.settings.model_dump(mode="json") if isinstance(stage.settings, BaseModel) else None
    digest = hashlib.sha256()

    def tell(text: str) -> None:
        digest.update(text.encode("utf-8", "surrogatepass"))

    # The JSON of [name, version, settings, rows], a row at a time: the rows of a long film are many megabytes.
    tell(_json([stage.name, stage.version, settings])[:-1] + ",[")
    for n, row in enumerate(unit.rows):
        tell("," * (n > 0) + _json(row))
    tell("]]")
    return digest.hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def run_unit(stage: Stage, unit: Unit, key: str) -> Outcome:
    """Run one unit and catch what goes wrong: the one function that every engine calls, in whatever process."""
    begun = time.perf_counter()
    try:
        made = stage.run(unit, key)
        rows = made.rows if isinstance(made.rows, Lines) else Lines(record.row() for record in made.rows)
    except UserError as error:
        seconds = time.perf_counter() - begun
        return Outcome(key, unit.name, error=str(error), seconds=seconds, stop=_remedy(error))
    except Exception as error:
        reason = f"{unit.name}: {stage.name} failed ({type(error).__name__}: {error})".replace("\n", " ")
        trace, seconds = traceback.format_exc(), time.perf_counter() - begun
        return Outcome(key, unit.name, error=reason, trace=trace, seconds=seconds, stop=_remedy(error))
    return Outcome(key, unit.name, rows, notes=tuple(made.notes), seconds=time.perf_counter() - begun)


def _remedy(error: BaseException | None) -> str | None:
    """Return what to do where an error, or one that it was raised from, is that the disk takes no more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            return REMEDIES[error.errno]
        error = error.__cause__
    return None
