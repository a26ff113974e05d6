"""Who runs the units: this process, local processes, threads; `ray_engine.py` runs the same units on many machines."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from longshot.data.stage import Outcome, Stage, Unit, run_unit

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Work = tuple[Unit, str]
"""A unit and its key."""


@runtime_checkable
class Engine(Protocol):
    """Runs units in any order, and yields one outcome for each as it comes. Losing a worker loses no unit."""

    def run(self, stage: Stage, work: Iterable[Work]) -> Iterator[Outcome]: ...


class LocalEngine:
    """Runs units on this machine: in this process for one worker, else in `workers` processes.

    A process that dies (a decoder that crashes, the system that kills it for memory) is named with its unit, and
    another takes its place. At most two units a worker are in flight, so memory doesn't grow with the corpus.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def run(self, stage: Stage, work: Iterable[Work]) -> Iterator[Outcome]:
        if stage.threads > 0:
            return _in_threads(stage, work, stage.threads)
        if self.workers > 1:
            return _in_processes(stage, work, self.workers)
        return (run_unit(stage, unit, key) for unit, key in work)


# What runs units elsewhere is loaded where it is used: one worker, as for one film, needs none of it.


def _in_threads(stage: Stage, work: Iterable[Work], threads: int) -> Iterator[Outcome]:
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    with ThreadPoolExecutor(threads) as pool:
        flying: set[Future[Outcome]] = set()
        try:
            for unit, key in work:
                flying.add(pool.submit(run_unit, stage, unit, key))
                if len(flying) >= 2 * threads:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_processes(stage: Stage, work: Iterable[Work], count: int) -> Iterator[Outcome]:
    from multiprocessing.connection import wait

    todo = iter(work)
    crew: dict["Connection", _Worker] = {}
    try:
        for _ in range(count):
            if (item := next(todo, None)) is None:
                break
            worker = _Worker(stage)
            worker.give(item)
            crew[worker.pipe] = worker
        while crew:
            for pipe in wait(list(crew)):
                worker = crew.pop(pipe)  # ty: ignore
                outcome, alive = worker.take()
                yield outcome
                if (item := next(todo, None)) is None:
                    worker.close()
                    continue
                if not alive:
                    worker = _Worker(stage)
                worker.give(item)
                crew[worker.pipe] = worker
    finally:
        for worker in crew.values():
            worker.close(kill=True)


class _Worker:
    """One process that runs one unit after the other; it ends when this end of its pipe closes, however that comes."""

    def __init__(self, stage: Stage) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.stage = stage
        self.item: Work | None = None
        self.process = context.Process(target=_serve, args=(stage, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, item: Work) -> None:
        self.item = item
        with contextlib.suppress(OSError):  # a dead worker is noticed by `take`
            self.pipe.send(item)

    def take(self) -> tuple[Outcome, bool]:
        """Return the outcome of the unit given last, and whether the process lives."""
        try:
            return self.pipe.recv(), True
        except (EOFError, OSError):
            self.close()
            assert self.item is not None
            unit, key = self.item
            reason = f"{unit.name}: the process that ran {self.stage.name} on it died (exit code {self.process.exitcode})"
            return Outcome(key, unit.name, error=reason), False

    def close(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join()


def _serve(stage: Stage, pipe: "Connection") -> None:
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            unit, key = pipe.recv()
            pipe.send(run_unit(stage, unit, key))
