"""Command line `gms-fast`: a module with SUMMARY, `add_arguments`, `run` per subcommand."""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from gms_fast import interrupts
from gms_fast.cli import edit, evaluate, generate, info, sample, search, sources, statistics, train, train_heads

COMMANDS: dict[str, ModuleType] = {
    "sample": sample,
    "generate": generate,
    "edit": edit,
    "train": train,
    "train-heads": train_heads,
    "statistics": statistics,
    "search": search,
    "evaluate": evaluate,
    "info": info,
}
BAD_INPUT = 2
REFUSALS = (FileExistsError, BlockingIOError)


class _Parser(argparse.ArgumentParser):
    """Argument parser that leaves error messages to `main`, so that all messages look the same."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    The code is 0 on success. With one line on stderr it is 2 for bad input, a full disk and similar errors, 130 for
    Ctrl-C and 143 for SIGTERM.
    """
    status = _main(argv)
    if interrupts.is_command():
        interrupts.ignore()  # already reported: torchrun sends SIGTERM to ranks that failed because another one ended
    return status


def _main(argv: Sequence[str] | None) -> int:
    """Parse the arguments, run the subcommand, and report errors in one line."""
    parser = _Parser(
        prog="gms-fast",
        description="Few-step samplers for diffusion models. `gms-fast COMMAND --help` lists the options of a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    args = argparse.Namespace(kept="", left="")  # messages: which results are kept, and how to resume
    with interrupts.raised():
        try:
            parser.parse_args(_without_separator(sys.argv[1:] if argv is None else argv), args)
            sources.settle(args)
            return args.run(args)
        except KeyboardInterrupt as signal:
            interrupts.ignore()
            number = interrupts.number(signal)
            if args.kept or interrupts.speaks():
                print(f"gms-fast: {interrupts.WORDS[number]}{args.kept or args.left}", file=sys.stderr)
            return interrupts.status(number)
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
            from_outside = isinstance(error, (OSError, MemoryError)) and not isinstance(error, REFUSALS)
            more = args.kept or (args.left if from_outside else "")
            which = "" if interrupts.speaks() else f"rank {os.environ['RANK']}: "
            print(f"gms-fast: {which}error: {_one_line(error)}{more}", file=sys.stderr)
            return BAD_INPUT


def _without_separator(argv: Sequence[str]) -> Sequence[str]:
    """Drop a leading `--`: it shields arguments from torchrun, and some Python versions keep it."""
    return argv[1:] if argv[:1] == ["--"] else argv


def _one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return "; ".join(lines).replace(":; ", ": ")
