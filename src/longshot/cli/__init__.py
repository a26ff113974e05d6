"""The commands. Heavy imports live inside functions, so that `longshot --help` starts at once."""

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from longshot.cli.costs import bases, plan
from longshot.cli.films import compose, interpolate, sample
from longshot.cli.published import accept, convert
from longshot.cli.remakes import extend, reshoot
from longshot.cli.scripts import export, import_, lint
from longshot.cli.training import eval_, lora, train
from longshot.errors import UserError


def data() -> int:
    """Raw films to training scenes: `longshot data --help` lists the stages, `longshot data run CONFIG` runs them all."""
    raise AssertionError("main hands these commands over")


COMMANDS: dict[str, Callable[..., int]] = {
    "lint": lint,
    "plan": plan,
    "import": import_,
    "export": export,
    "sample": sample,
    "extend": extend,
    "interpolate": interpolate,
    "compose": compose,
    "reshoot": reshoot,
    "data": data,
    "train": train,
    "lora": lora,
    "convert": convert,
    "accept": accept,
    "eval": eval_,
    "bases": bases,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 for bad input (one line says what), 130 when it was stopped."""
    args = sys.argv[1:] if args is None else list(args)
    try:
        name, told, commands = "longshot", __doc__, COMMANDS
        if args[:1] == ["data"]:
            from longshot.data import commands as of_data

            name, told, commands, args = "longshot data", of_data.__doc__, of_data.COMMANDS, args[1:]
        if args and args[0] in commands:  # alone, since of several commands tyro reads all signatures
            code = tyro.cli(commands[args[0]], args=args[1:], prog=f"{name} {args[0]}")
        else:
            code = tyro.extras.subcommand_cli_from_dict(commands, args=args, prog=name, description=told)
        sys.stdout.flush()
    except UserError as error:
        print(f"longshot: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(
            "longshot: stopped; what was finished is on disk, and the same command goes on from there",
            file=sys.stderr,
        )
        code = 130
    except BrokenPipeError:  # a reader such as `head` has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
