"""What all commands share: options, exit codes, and reading FILE or standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from worker.errors import BadMessage, Never, Problem, SettingsError, WorkerError

errors = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error."""

MessageFile = Annotated[
    str, typer.Argument(metavar="FILE|-", help="Launch message (JSON); - for standard input.")
]
EnvFile = Annotated[Path | None, typer.Option(help="File with settings; the environment wins over it.")]


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Errors as sentences on standard error: 1 failed, 2 bad settings."""
    try:
        yield
    except SettingsError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from error
    except BadMessage as error:
        for problem in error.problems:
            errors.print(str(problem), markup=False)
        raise typer.Exit(1) from error
    except Never as error:
        errors.print(f"{error.code}: {error}", markup=False)
        raise typer.Exit(1) from error
    except WorkerError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from error


def read_file(file: str) -> str:
    """The text of FILE, or of standard input for `-`, without a byte order mark.

    Raises `SettingsError` for a file that cannot be read, `BadMessage` for one that is not UTF-8: what stands for the
    characters that cannot be read would go to W&B as the launch's own."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start + 1})"
        raise BadMessage((Problem("$", what, "save the file as UTF-8"),)) from error
