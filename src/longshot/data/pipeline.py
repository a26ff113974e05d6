"""The stages in order, the config that sets them, and the run of all of them."""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longshot.data.engine import Engine
from longshot.data.journal import alone
from longshot.data.records import Row
from longshot.data.runner import StageReport, Tell, finished_rows, run_stage
from longshot.data.stage import Place, Settings, Stage
from longshot.document import Document, field_words, read_document
from longshot.errors import UserError
from longshot.files import inside, write_text

STAGES = {
    "probe": "longshot.data.probe:Probe",
    "shots": "longshot.data.shots:Shots",
    "scenes": "longshot.data.scenes:Scenes",
    "filter": "longshot.data.filters:Filter",
    "captions": "longshot.data.captions:Captions",
    "latents": "longshot.data.latents:Latents",
    "shards": "longshot.data.shards:Shards",
}
"""In the order in which they run. Each class has its settings in `Settings`, beside it."""

OPTIONAL = ("captions", "latents", "shards")
"""Stages that run when the config has a section for them: they need an endpoint or a base."""

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .flv .wmv .asf .ogv .ogg .mxf .3gp .gif .y4m .ivf "
    ".h264 .264 .hevc .265 .vob".split()
)
"""Which files of a folder count as films; a file that is named itself is always tried."""


class FilmEntry(Settings):
    """A film or a folder of films, with what is to be known of where it comes from."""

    path: str
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Config:
    """A config file, checked: which films, where to, and how each stage is set."""

    name: str
    films: tuple[FilmEntry, ...]
    place: Place
    settings: dict[str, Settings]
    """by stage; a stage that isn't here doesn't run"""
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    """by stage, such as an API key; never in a file"""

    def stage(self, name: str) -> Stage:
        """Return the stage as set; UserError where the config has no section for one that needs it."""
        if name not in self.settings:
            raise UserError(f"{self.name}: has no section {name!r}; add one to run that stage")
        secrets: dict[str, Any] = dict(self.secrets.get(name, {}))
        return stage_class(name)(settings=self.settings[name], place=self.place, **secrets)

    def stages(self) -> list[str]:
        """Return the names of the stages that run, in order."""
        return [name for name in STAGES if name in self.settings]


def stage_class(name: str) -> type[Stage]:
    """Return the class of a stage, imported now."""
    module, _, attribute = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def settings_class(name: str) -> type[Settings]:
    """Return the class of a stage's settings: `Settings` by annotation of the stage's `settings` field."""
    return stage_class(name).__annotations__["settings"]


def read_config(path: str | os.PathLike[str]) -> Config:
    """Return the config in a YAML or JSON file; UserError names file, line and field.

    Paths in it are relative to its folder. Films must lie in `films_root` (by default the config's folder), so that the
    rows can name them the same way on every machine.
    """
    document = read_document(path)
    data = document.data
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a config; write films: and out: at least")
    if unknown := sorted(set(data) - {"films", "films_root", "out", "source", "licence", *STAGES}):
        raise _wrong(
            document,
            (unknown[0],),
            f"unknown; use films, films_root, out, source, licence, {', '.join(STAGES)}",
        )
    base = Path(path).resolve().parent
    for text in ("films_root", "out", "source", "licence"):
        if not isinstance(data.get(text, ""), str):
            raise _wrong(document, (text,), "must be text")
    if not data.get("out"):
        raise _wrong(document, ("out",), "missing; say into which folder the rows go")
    place = Place((base / data["out"]).resolve(), (base / data.get("films_root", "")).resolve())
    settings: dict[str, Settings] = {}
    for name in STAGES:
        section = data.get(name)
        if name in OPTIONAL and (name not in data or section is False):
            continue
        checked = _checked(
            document, (name,), settings_class(name), {} if section in (None, True) else section
        )
        settings[name] = checked.resolved(base)
    return Config(str(path), _films(document, data), place, settings)


def _films(document: Document, data: dict[str, Any]) -> tuple[FilmEntry, ...]:
    films = data.get("films")
    if isinstance(films, str):
        films = [films]
    if not isinstance(films, list) or not films:
        raise _wrong(document, ("films",), "missing; list the films, or folders of films")
    common = {field: data[field] for field in ("source", "licence") if field in data}
    entries = []
    for index, film in enumerate(films):
        fields = {"path": film} if isinstance(film, str) else film
        if not isinstance(fields, dict):
            raise _wrong(document, ("films", index), "must be a path, or path, source and licence")
        entries.append(_checked(document, ("films", index), FilmEntry, common | fields))
    return tuple(entries)


def _checked(document: Document, where: tuple, kind: type[Settings], value: Any) -> Any:
    if not isinstance(value, dict):
        raise _wrong(document, where, "must be a list of settings, name: value")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown; use {', '.join(kind.model_fields)}"
        raise _wrong(document, (*where, *first["loc"]), message) from error


def _wrong(document: Document, where: tuple, message: str) -> UserError:
    line = document.line(where)
    at = f"{document.name}:{line}" if line else document.name
    return UserError(f"{at}: {field_words(where)}: {message}")


def film_rows(config: Config) -> Iterator[Row]:
    """Yield a row for every film of the config, folders in order of name; UserError where one named isn't there.

    What is in a folder and can't be had (a link to nowhere, a folder that can't be listed, a name that isn't text) has a row
    with its `trouble`, so that the report names it.
    """
    root = config.place.films_root
    seen: set[Path] = set()
    for entry in config.films:
        try:
            named = inside(root, entry.path)
        except UserError:
            raise UserError(
                f"{config.name}: films: {entry.path}: lies outside {root}; set films_root to a folder that holds all films"
            ) from None
        if not named.exists():
            raise UserError(f"{config.name}: films: {entry.path}: no such file or folder in {root}")
        found = _films_in(named, config.place.out) if named.is_dir() else [(named, "")]
        for path, trouble in found:
            if path in seen:
                continue
            seen.add(path)
            yield _film_row(path, path.relative_to(root).as_posix(), entry, trouble)


def _film_row(path: Path, name: str, entry: FilmEntry, trouble: str) -> Row:
    size = changed = 0
    try:
        name.encode()
    except UnicodeEncodeError:
        # Each name another text, since equal rows are one unit: bad bytes as \xe9, a backslash doubled.
        name = os.fsencode(name).replace(b"\\", rb"\\").decode("utf-8", "backslashreplace")
        trouble = "its name isn't UTF-8, so no row can hold it; rename it"
    if not trouble:
        try:
            facts = path.stat()
            size, changed = facts.st_size, facts.st_mtime_ns
        except OSError as error:
            trouble = f"can't be read ({error.strerror or error})"
            if isinstance(error, FileNotFoundError) and path.is_symlink():
                trouble = "a link to a file that isn't there"
    row = {
        "path": name,
        "bytes": size,
        "changed_ns": changed,
        "source": entry.source,
        "licence": entry.licence,
    }
    return row | {"trouble": trouble} if trouble else row


def _films_in(folder: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """Yield the films in a folder, and what can't be looked into with the reason."""
    refused: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=refused.append):
        kept = sorted(name for name in folders if not name.startswith(".") and Path(parent, name) != out)
        links = [name for name in kept if Path(parent, name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        for name in links:
            yield (
                Path(parent, name),
                "a link to a folder, which isn't followed; put the folder itself under films_root",
            )
        for name in sorted(files):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                yield Path(parent, name), ""
    for error in refused:
        yield Path(error.filename), f"can't be listed ({error.strerror})"


def input_rows(config: Config, name: str) -> Iterable[Row]:
    """Return the rows that a stage reads: those of the stage before it, or the films."""
    before = stage_class(name).after
    return film_rows(config) if before is None else finished_rows(config.place.folder(before))


def run(
    config: Config,
    engine: Engine,
    only: Sequence[str] = (),
    tell: Callable[[str], Tell] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[StageReport]:
    """Run the config's stages in order (or `only` some) and return what each did. Goes on where a stopped run was.

    say: gets what a stage foresees (a cost) and sums up, a line each.

    UserError when another run works in the folder, or when no film at all came through a stage.
    """
    reports = []
    with alone(config.place.out):
        for name in only or config.stages():
            stage = config.stage(name)
            for line in stage.foresee(input_rows(config, name)):
                say(line)
            report = run_stage(stage, input_rows(config, name), engine, tell(name) if tell else None)
            for line in stage.sum_up():
                say(line)
            reports.append(report)
            _write_report(config, reports)
            if report.failures and not report.rows:
                more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
                raise UserError(f"{name}: nothing came through: {report.failures[0].error}{more}")
    return reports


def _write_report(config: Config, reports: Sequence[StageReport]) -> None:
    """Write `report.json`: per stage units, rows, and every failure by name; of stages not run now, what they said last."""
    told = {}
    for name in STAGES:
        file = config.place.folder(name) / "stage.json"
        if file.is_file():
            told[name] = json.loads(file.read_text(encoding="utf-8"))
    write_text(config.place.out / "report.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
