"""What a person sees while a film is made: which shot, which step, and the time left; on demand a preview picture."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from longshot.bases.base import Base
from longshot.sample.denoise import Step
from longshot.sample.make import Order
from longshot.sheet import film_strip
from longshot.video import write_image


class Progress:
    """A progress bar on a terminal, a line a shot elsewhere. preview_folder: where preview.png goes after every step."""

    def __init__(self, base: Base, order: Order, preview_folder: Path | None):
        self.base, self.order, self.preview_folder = base, order, preview_folder
        self.console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[at]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        total = len(order.plan.rounds) * order.sampling.steps
        self.task = self.bar.add_task("loading", total=total, at="")
        self.started = time.monotonic()
        self.stepping = False

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def step(self, at: Step) -> None:
        """After each solver step."""
        labels = [self.order.plan[s].label for s in at.shots]
        name = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1].removeprefix('shot ')}"
        done = (at.round - 1) * at.steps + at.step
        if not self.stepping:
            self.stepping = True  # loading, and shots found on disk, say nothing about the time left
            self.bar.reset(self.task, total=at.rounds * at.steps, completed=done - 1)
        self.bar.update(self.task, completed=done, description=name, at=f"step {at.step}/{at.steps}")
        if self.preview_folder:
            pictures = [self.base.decode(at.clean[s], self.order.plan[s].grid) for s in at.shots]
            write_image(self.preview_folder / "preview.png", film_strip(pictures))

    def shot(self, label: str, was_there: bool) -> None:
        """After each finished shot."""
        seconds = time.monotonic() - self.started
        what = "was finished before" if was_there else f"finished after {seconds:.1f} s"
        self.console.print(f"{label} {what}", highlight=False)
