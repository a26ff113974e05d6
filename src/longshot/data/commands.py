"""The commands of `longshot data`: raw films to training scenes, all stages at once or one by one."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.data.pipeline import Config
    from longshot.data.runner import StageReport

ConfigPath = Annotated[Positional[Path], arg(metavar="CONFIG", help="films, out and settings, YAML or JSON")]
EngineName = Literal["local", "ray"]


def run(
    config: ConfigPath,
    only: str = "",
    until: str = "",
    workers: int = 0,
    engine: EngineName = "local",
    address: str = "",
) -> int:
    """Run all stages of a config: probe, shots, scenes, filter, and captions, latents, shards where it has them.

    A stopped run goes on where it was; what didn't change isn't made again. Files that can't be read are named, and the
    rest goes through. The folder `out` then holds the rows of every stage and report.json.

    Args:
        only: these stages alone, with commas between them, on the rows that are there.
        until: the last stage to run.
        workers: processes; one for every two cores if 0 (a film decodes on several cores by itself).
        engine: ray runs the same on many machines.
        address: of a Ray cluster, instead of one started here.
    """
    read = _read(config)
    from longshot.data.pipeline import STAGES

    # Plain text in the signature: other types have tyro load a type checker, which takes longer than all its work here.
    named = [name.strip() for name in only.split(",") if name.strip()]
    for name in (*named, *([until] if until else [])):
        if name not in STAGES:
            raise UserError(f"there is no stage {name!r}; stages are {', '.join(STAGES)}")
    stages = named or read.stages()
    if until:
        stages = [name for name in stages if list(STAGES).index(name) <= list(STAGES).index(until)]
    return _run(read, stages, workers, engine, address)


def _one(stage: str, what: str) -> Callable[..., int]:
    def command(config: ConfigPath, workers: int = 0, engine: EngineName = "local", address: str = "") -> int:
        return _run(_read(config), [stage], workers, engine, address)

    command.__doc__ = what
    return command


def captions(
    config: ConfigPath,
    import_: Annotated[Path | None, arg(name="import")] = None,
    api_key_from: str = "OPENAI_API_KEY",
) -> int:
    """Have scenes described by any OpenAI-compatible endpoint, or take captions made elsewhere.

    Args:
        import_: a file of captions, instead of asking.
        api_key_from: the environment variable that holds the endpoint's key.
    """
    from dataclasses import replace

    from longshot.data.pipeline import settings_class

    read = _read(config)
    if import_ is not None:
        section = read.settings.get("captions") or settings_class("captions")()
        settings = {**read.settings, "captions": section.model_copy(update={"file": str(import_.resolve())})}
        read = replace(read, settings=settings)
    return _run(read, ["captions"], 1, "local", "", api_key_from)


def look(config: ConfigPath, per_page: int = 60) -> int:
    """Write a static page of what the stages made: scenes as strips of shots, scores, reasons, captions, histograms.

    Args:
        per_page: scenes on a page.
    """
    from longshot.data.look import write_pages

    if per_page < 1:
        raise UserError(f"--per-page {per_page}: use 1 or more")
    print(write_pages(_read(config), per_page))
    return 0


def convert(
    source: Annotated[Positional[Path], arg(metavar="FILE", help="rows, .jsonl or .parquet")],
    out: Annotated[Positional[Path], arg(metavar="OUT", help="the same rows, .parquet or .jsonl")],
    stage: str | None = None,
) -> int:
    """Turn a stage's rows.jsonl into Parquet, or Parquet back into rows, without loss.

    Args:
        stage: whose rows they are, where neither the folder's name nor the Parquet file says so.
    """
    from longshot.data.journal import read_rows, write_rows
    from longshot.data.parquet import read_parquet, stage_of, write_parquet
    from longshot.data.pipeline import STAGES, stage_class

    suffixes = source.suffix.lower(), out.suffix.lower()
    if suffixes not in ((".jsonl", ".parquet"), (".parquet", ".jsonl")):
        raise UserError(f"{source} to {out}: give a .jsonl and a .parquet file, in either order")
    from_parquet = suffixes[0] == ".parquet"
    name = stage or (stage_of(source) if from_parquet else source.resolve().parent.name)
    if name not in STAGES:
        raise UserError(f"{source}: --stage: say whose rows they are: {', '.join(STAGES)}")
    kind = stage_class(name).writes
    if from_parquet:
        count = write_rows(out, read_parquet(source, kind))
    else:
        count = write_parquet(out, read_rows(source), kind, name)
    print(f"{out}: {count} rows of {name}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "run": run,
    "probe": _one("probe", "Find out which files are films that can be read, and what they hold."),
    "shots": _one("shots", "Cut films into takes and measure them."),
    "scenes": _one("scenes", "Group shots of one place into scenes, and split long takes at their events."),
    "filter": _one("filter", "Score scenes and mark what a model shouldn't learn from, with reasons."),
    "captions": captions,
    "latents": _one("latents", "Encode captioned scenes for a base."),
    "shards": _one("shards", "Pack encoded scenes into tars that a training job streams."),
    "look": look,
    "convert": convert,
}


def _read(path: Path) -> "Config":
    """Return the config in a file, with what its stages need loaded."""
    # For numpy, which looks as it loads: threads of its own would spin for a while at each product, and none here is large.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What is loaded stays to the end, so it isn't searched for garbage, neither while it grows nor later.
    collects = gc.isenabled()
    gc.disable()
    try:
        from longshot.data.pipeline import read_config

        return read_config(path)
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def _run(
    config: "Config",
    stages: list[str],
    workers: int,
    engine: EngineName,
    address: str,
    key_variable: str = "OPENAI_API_KEY",
) -> int:
    from dataclasses import replace

    from longshot.data.pipeline import run as run_stages

    if not 0 <= workers <= 1000:
        raise UserError(
            f"--workers {workers}: use a whole number from 1 on, or 0 for one for every two cores"
        )
    count = workers or max(1, (os.cpu_count() or 1) // 2)
    if engine == "ray":
        from longshot.data.ray_engine import RayEngine

        runner = RayEngine(max(1, count), address or None)
    else:
        from longshot.data.engine import LocalEngine

        if address:
            raise UserError("--address is of a Ray cluster; give --engine ray too")
        runner = LocalEngine(count)
    if key := os.environ.get(key_variable):
        config = replace(config, secrets={**config.secrets, "captions": {"api_key": key}})
    with _Display() as display:
        reports = run_stages(config, runner, stages, display.tell, display.say)
    for report in reports:
        print(summary(report))
        for failure in report.failures:
            print(f"  set aside by {report.stage}: {failure.error}")
        for note in report.notes:
            print(f"  {report.stage}: {note}")
    print(config.place.out / "report.json")
    return 0


class _Display:
    """One line a stage while it runs, in a terminal; plain lines anywhere else."""

    def __init__(self) -> None:
        self.console, self.progress = None, None
        if not sys.stdout.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)

    def __enter__(self) -> "_Display":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def say(self, line: str) -> None:
        if self.console is None:
            print(line, flush=True)
        else:
            self.console.print(line)

    def tell(self, stage: str) -> "Callable[[StageReport, int], None]":
        if (progress := self.progress) is None:
            return lambda report, done: None
        task = progress.add_task(stage, total=None, told="")

        def on_unit(report: "StageReport", done: int) -> None:
            told = f"{done} done" + (f", {len(report.failures)} set aside" if report.failures else "")
            progress.update(task, completed=done, told=told)

        return on_unit


def summary(report: "StageReport") -> str:
    """Return one line on what a stage did."""
    parts = [f"{report.units} in", f"{report.rows} out"]
    if report.kept != report.rows:
        parts.append(f"{report.kept} kept")
    if report.reused:
        parts.append(f"{report.reused} as they were")
    if report.failures:
        parts.append(f"{len(report.failures)} set aside")
    return f"{report.stage}: {', '.join(parts)}, {report.seconds:.1f} s"
