"""One stage run to its end: what is done already is kept, what fails is named, and the rows come out in the input's order."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel

from longshot.data.engine import Engine, Work
from longshot.data.journal import Journal, read_rows, write_rows
from longshot.data.records import Row
from longshot.data.stage import Stage, key_of
from longshot.errors import UserError
from longshot.files import write_text


@dataclass(frozen=True)
class Failure:
    """A unit without rows, and why."""

    name: str
    error: str
    trace: str | None = None


@dataclass
class StageReport:
    """What a stage did: it lies as `stage.json` in the stage's folder."""

    stage: str
    version: int
    settings: dict
    units: int = 0
    reused: int = 0
    """units whose result was there already"""
    rows: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


Tell = Callable[[StageReport, int], None]
"""Called after every unit with the report so far and the number of units done."""


def rows_of(stage_folder: Path) -> Path:
    """Return where a stage's rows lie."""
    return stage_folder / "rows.jsonl"


def run_stage(stage: Stage, rows: Iterable[Row], engine: Engine, tell: Tell | None = None) -> StageReport:
    """Run a stage over the input rows and return what happened; its rows then lie in `rows.jsonl`.

    Results are kept one by one in the stage's journal, so a run killed at any point goes on where it was. Units that
    failed are tried again by the next run. `rows.jsonl`, `failures.jsonl` and `stage.json` are replaced at the end, each
    in one step: until then they are those of the last finished run.
    """
    folder = stage.place.folder(stage.name)
    settings = stage.settings.model_dump(mode="json") if isinstance(stage.settings, BaseModel) else {}
    report = StageReport(stage.name, stage.version, settings)
    begun = time.perf_counter()
    journal = Journal(folder)
    try:
        order: list[str] = []
        made: set[str] = set()
        done = 0

        def fresh() -> Iterator[Work]:
            nonlocal done
            seen: set[str] = set()
            for unit in stage.units(iter(rows)):
                key = key_of(stage, unit)
                if key in seen:  # the same film listed twice
                    continue
                seen.add(key)
                order.append(key)
                report.units += 1
                if key in journal and _whole(stage, journal.read(key)["rows"]):
                    report.reused += 1
                    done += 1
                    made.add(key)
                    continue
                yield unit, key

        for outcome in engine.run(stage, fresh()):
            done += 1
            if outcome.error is None:
                journal.add(outcome)
                made.add(outcome.key)
            elif outcome.stop:
                raise UserError(f"{outcome.error}; {outcome.stop}, and the same command goes on from there")
            else:
                report.failures.append(Failure(outcome.name, outcome.error, outcome.trace))
            if tell:
                tell(report, done)
            del outcome  # of a long film many megabytes, which the journal has now

        def finished() -> Iterator[Row]:
            for key in order:
                if key in made:
                    entry = journal.read(key)
                    report.notes.extend(entry["notes"])
                    yield from entry["rows"]

        report.rows = write_rows(rows_of(folder), _counted(stage.settle(finished()), report))
    finally:
        journal.close()
    report.failures.sort(key=lambda failure: failure.name)
    write_rows(folder / "failures.jsonl", (asdict(failure) for failure in report.failures))
    report.seconds = round(time.perf_counter() - begun, 3)
    write_text(folder / "stage.json", json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    return report


def _whole(stage: Stage, rows: Iterable[Row]) -> bool:
    return all(stage.place.file(name).is_file() for row in rows for name in stage.files(row))


def _counted(rows: Iterator[Row], report: StageReport) -> Iterator[Row]:
    for row in rows:
        report.kept += bool(row.get("kept", True))
        yield row


def finished_rows(stage_folder: Path) -> Iterator[Row]:
    """Yield a finished stage's rows; UserError where it hasn't run."""
    return read_rows(rows_of(stage_folder))
