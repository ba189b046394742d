"""The command line: one module a command, found by its name; nothing but parsing and printing.

A module ``gpuscale/cli/NAME.py`` has ``add_arguments(parser: argparse.ArgumentParser) -> None`` and
``run(options: argparse.Namespace) -> int``, the exit status. Its docstring is its help. A command is listed
once its module exists.

Exit status: 0 fine, 1 a finding or a failure, 2 wrong usage (argparse, ConfigurationError). ``run`` lets
:class:`~gpuscale.errors.GpuscaleError` and OSError through: :func:`main` prints them in one line.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from gpuscale.errors import ConfigurationError, GpuscaleError

COMMANDS: dict[str, str] = {
    "sidecar": "publish this pod's GPUs beside an app that knows nothing of gpuscale",
    "run": "start a command and publish its GPUs and requests beside it",
    "top": "watch one or several endpoints in the terminal",
    "doctor": "find out why an HPA does not scale on GPU metrics",
    "simulate": "see what an HPA would do under a recorded or given load",
    "render": "print the manifests that scale your own Deployment",
}
"""Name → one line for the list of commands; said here, so that the list costs no import of the modules."""

OK, FAILURE, WRONG_USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's); returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # The command's own parser is made only once the command is known: the list of all stays quick.
    command = parser.parse_args(arguments[:1]).command
    if not command:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    try:
        module = importlib.import_module(f"{__name__}.{command}")
        options = _command_parser(command, module).parse_args(arguments[1:])
        return int(module.run(options))
    except ConfigurationError as error:
        return _complain(command, error, WRONG_USAGE)
    except (GpuscaleError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _broken_pipe()
        return _complain(command, error, FAILURE)
    except KeyboardInterrupt:
        return 130


def available() -> dict[str, str]:
    """The commands whose modules are here, with their one line."""
    return {name: line for name, line in COMMANDS.items() if importlib.util.find_spec(f"{__name__}.{name}")}


def _parser() -> argparse.ArgumentParser:
    commands = available()
    width = max(map(len, commands), default=0)
    listing = "\n".join(f"  {name:<{width}}  {line}" for name, line in commands.items())
    parser = argparse.ArgumentParser(
        prog="gpuscale",
        usage="gpuscale [-h] [--version] COMMAND ...",
        description="GPU and request metrics that make inference services scale themselves on Kubernetes.",
        epilog=f"commands:\n{listing}\n\ngpuscale COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("command", nargs="?", choices=[*commands], metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import gpuscale

        print(f"gpuscale {gpuscale.__version__}")
        parser.exit(OK)


def _command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"gpuscale {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _complain(command: str, error: BaseException, status: int) -> int:
    print(f"gpuscale {command}: {error}", file=sys.stderr)
    return status


def _broken_pipe() -> int:
    """The reader of our output went away (``| head``): end without a word, Python's own at exit included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE
