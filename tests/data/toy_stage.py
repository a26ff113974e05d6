"""A stage that is quick to run, slow or deadly on request; a module of its own, since other processes import it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from longshot.data.records import Record
from longshot.data.stage import Made, Place, Settings, Stage, Unit
from longshot.errors import UserError
from longshot.files import write_text


class ToySettings(Settings):
    times: int = 1
    wait: float = 0.0


class Number(Record):
    id: str
    value: int
    file: str = ""


@dataclass(frozen=True)
class Toy(Stage):
    """Multiplies numbers; 13 is bad input, 14 a bug, 15 kills its process, 16 saves a tensor of 4 MB."""

    name = "toy"
    after = None
    version = 1
    reads = Number
    writes = Number
    settings: ToySettings
    place: Place

    def run(self, unit: Unit, key: str) -> Made:
        number = Number.of(unit.rows[0])
        time.sleep(self.settings.wait)
        with (self.place.out / "calls").open("a") as calls:
            calls.write(f"{number.value}\n")
        match number.value:
            case 13:
                raise UserError("thirteen: is unlucky; take another number")
            case 14:
                raise KeyError("a bug")
            case 15:
                os._exit(9)
            case 16:
                import torch

                from longshot.tensors import save_tensors

                save_tensors(self.place.out / "toy" / "16.safetensors", {"z": torch.zeros(2**20)}, {})
        file = f"toy/files/{key}/{number.value}.txt"
        write_text(self.place.out / file, str(number.value))
        value = number.value * self.settings.times
        return Made(
            [Number(id=number.id, value=value, file=file)], notes=["ten"] if number.value == 10 else []
        )

    def files(self, row):
        return [row["file"]]


def numbers(*values: int) -> list[dict]:
    return [Number(id=f"n{value}", value=value).row() for value in values]


def toy(out: Path, **settings) -> Toy:
    return Toy(ToySettings(**settings), Place(out, out))


def calls(out: Path) -> list[int]:
    """The numbers the stage was run on, in all runs."""
    return [int(line) for line in (out / "calls").read_text().split()] if (out / "calls").exists() else []
