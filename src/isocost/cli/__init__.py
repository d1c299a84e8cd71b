"""The command line: parses words, calls `isocost.api`, prints for people or, with --json, for programs.

Nothing heavy is imported until a command runs, so that `isocost --help` answers at once. Exit codes: 0 done, 1 failed,
2 the request was wrong and nothing was started, 130 interrupted. A family of commands is a module; importing it
registers them.
"""

from __future__ import annotations

import sys

from cyclopts import CycloptsError

from isocost.cli import answers, data, machine, models, papers, recipes, scores, stores, studies, tracking  # noqa: F401  (each registers its commands)
from isocost.cli.parser import app
from isocost.errors import IsocostError

__all__ = ["app", "main"]


def main(tokens: list[str] | None = None) -> None:
    """Entry point. Every error that we raise on purpose is one line on stderr and an exit code."""
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _fail(" ".join(str(error).split()), 2)
    except IsocostError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; what was done is kept: run the same command again to go on.", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)


def _fail(message: str, code: int) -> None:
    print(f"isocost: {message}", file=sys.stderr)
    sys.exit(code)
