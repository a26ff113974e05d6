"""The same stages on many machines: units run as tasks of Ray Data, on a cluster of this machine's own by default.

All machines must see the films, and the folder of the run, under the same paths. A unit whose worker dies is given to another
worker, up to `TRIES` times; then it is named in the report as one that kills its process, and the rest goes through.
"""

import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from longshot.data.engine import LocalEngine, Work
from longshot.data.stage import Outcome, Stage, Unit, run_unit
from longshot.errors import UserError

TRIES = 3
WAVE = 4096
"""Units handed to Ray Data at once: enough to keep a cluster busy, few enough to hold."""


def _task(row: dict[str, Any], stage: Stage, begun: Path) -> dict[str, Any]:
    """What a worker does with a row: `run_unit`."""
    name, rows, key = json.loads(row["work"])
    outcome = _run_counted(stage, Unit(name, tuple(rows)), key, begun)
    return {"outcome": json.dumps(asdict(replace(outcome, rows=tuple(outcome.rows))))}


def _run_counted(stage: Stage, unit: Unit, key: str, begun: Path) -> Outcome:
    """Run a unit, unless it has been begun `TRIES` times without coming to an end: then it kills its process."""
    file = begun / key
    with file.open("ab") as counter:
        counter.write(b".")
    if file.stat().st_size > TRIES:
        return Outcome(
            key, unit.name, error=f"{unit.name}: the process that ran {stage.name} on it died, {TRIES} times"
        )
    outcome = run_unit(stage, unit, key)
    file.unlink()
    return outcome


def _knock(address: str) -> None:
    """UserError when nobody listens at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"--engine ray: no Ray cluster at {address} ({reason})") from None


class RayEngine:
    """Runs units on a Ray cluster: the one at `address`, or one started on this machine with `workers` processes.

    A stage that waits for a server (`threads`) runs in threads here instead: its pace must be one for all.
    """

    def __init__(self, workers: int = 2, address: str | None = None) -> None:
        self.workers, self.address = workers, address

    def run(self, stage: Stage, work: Iterable[Work]) -> Iterator[Outcome]:
        if stage.threads > 0:
            yield from LocalEngine().run(stage, work)
            return
        todo = iter(work)
        while wave := list(islice(todo, WAVE)):
            yield from self._wave(stage, wave)

    def _wave(self, stage: Stage, wave: list[Work]) -> Iterator[Outcome]:
        data = self._connected()
        items = [{"work": json.dumps([unit.name, list(unit.rows), key])} for unit, key in wave]
        device = str(getattr(stage.settings, "device", "cpu"))
        needs: dict[str, Any] = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
        begun = stage.place.folder(stage.name) / f".begun-{secrets.token_hex(6)}"
        begun.mkdir(parents=True)

        try:
            # One row a block: Ray gives a block to another worker when the one that had it dies, without end.
            given = {"stage": stage, "begun": begun}
            blocks = data.from_items(items, override_num_blocks=len(items))
            for row in blocks.map(_task, fn_kwargs=given, **needs).iter_rows():
                told = json.loads(row["outcome"])
                yield Outcome(**told | {"rows": tuple(told["rows"]), "notes": tuple(told["notes"])})
        finally:
            shutil.rmtree(begun, ignore_errors=True)

    def _connected(self) -> Any:
        """Return `ray.data`, with a cluster behind it."""
        # Ray reports usage to its makers unless told not to before it starts.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            import ray.data
        except ModuleNotFoundError:
            raise UserError("--engine ray needs Ray: pip install 'longshot[ray]'") from None
        if not ray.is_initialized():
            self._start(ray)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        return ray.data

    def _start(self, ray: Any) -> None:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        where: dict[str, Any] = {"address": self.address or "local"}
        if self.address:
            _knock(self.address)
        else:
            where |= {"num_cpus": self.workers, "include_dashboard": False}
        for tries_left in (2, 1, 0):
            try:
                ray.init(**where, **quiet)
                return
            except Exception as error:  # Ray raises plain exceptions of many kinds here
                ray.shutdown()
                # Ray gives its processes 30 s to start, which a busy machine exceeds the first time.
                if not tries_left or "timed out during startup" not in str(error):
                    place = f"at {self.address}" if self.address else "on this machine"
                    reason = " ".join(str(error).split())
                    raise UserError(f"--engine ray: no Ray cluster {place} ({reason})") from error
