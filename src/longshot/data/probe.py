"""Stage `probe`: which of the files are films that can be read, what they hold, and the hash that names their content."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longshot.data.records import FilmRow, Origin, Record, Row
from longshot.data.stage import Made, Settings, Stage, Unit
from longshot.errors import UserError
from longshot.video import survey


class FileRow(Record):
    """A file named by the config, as the disk has it."""

    path: str
    bytes: int
    changed_ns: int
    source: str = ""
    licence: str = ""
    trouble: str = ""
    """why the disk doesn't give it; only where it doesn't"""


class ProbeSettings(Settings):
    broken: bool = True
    """use what can be read of films whose end is missing or damaged; false sets such films aside"""


@dataclass(frozen=True)
class Probe(Stage):
    """One row a film. A file that isn't one is named with its reason; size and time of change tell when to look again."""

    name = "probe"
    after = None
    version = 1
    reads = FileRow
    writes = FilmRow
    settings: ProbeSettings

    def label(self, row: Row) -> str:
        return row["path"]

    def run(self, unit: Unit, key: str) -> Made:
        file = FileRow.of(unit.rows[0])
        if file.trouble:
            raise UserError(f"{file.path}: {file.trouble}")
        path = self.place.film(file.path)
        facts = survey(path)
        if facts.broken and not self.settings.broken:
            raise UserError(facts.broken)
        info = facts.info
        origin = Origin(path=file.path, sha256=sha256_of(path), source=file.source, licence=file.licence)
        row = FilmRow(
            film=origin,
            bytes=file.bytes,
            width=info.width,
            height=info.height,
            fps=str(info.fps),
            frames=info.frames,
            seconds=info.seconds,
            variable_rate=info.variable_rate,
            rotation=facts.rotation,
            bits=facts.bits,
            codec=facts.codec,
            audio=facts.audio,
            broken=facts.broken,
        )
        return Made([row], notes=[facts.broken] if facts.broken else [])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file) -> Iterator[bytes]:
    while piece := file.read(2**20):
        yield piece
