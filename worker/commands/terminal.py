"""What all commands share: options, settings, exit codes, and reading FILE or standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from worker.errors import BadMessage, Problem, SettingsError, WorkerError
from worker.launch_config import LaunchConfig, read_launch_config
from worker.settings import Settings, export_aws_variables, load_settings

WRONG_USE = "LW-USAGE"
DEFAULT_ENV_FILE = Path(".env")
_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Base of all that Typer says about wrong use; it has no public name of its own."""
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""Standard error."""

MessageFile = Annotated[
    str, typer.Argument(metavar="FILE|-", help="Launch message (JSON); - for standard input.")
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Launch id (or its beginning), the message's launchId, run id, training job, or the run's name.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="W&B's launch-config.yaml; environment and --env-file win over it. Default: the one in ~/.config/wandb.",
    ),
]
EnvFile = Annotated[Path | None, typer.Option(help="File with settings; the environment wins over it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def note(text: str) -> None:
    """A line for people on standard error that is no error."""
    errors.print(text, markup=False)


def in_json(told: Any) -> dict[str, object]:
    """The fields of a dataclass, by the names that all commands use."""
    names = {"launch_id": "launchId", "job_name": "job", "message_id": "messageId"}
    return {names.get(name, name): value for name, value in asdict(told).items()}


class WrongUse(WorkerError):
    """Arguments that Typer takes and that mean nothing; exit code 2. The message says what to write instead."""

    code = WRONG_USE


class Commands(TyperGroup):
    """Commands whose wrong use is told in two lines: how it is called, and the code with what is wrong."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Exit code 2 for wrong use, as for wrong settings."""
        given = (args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(*given, **extra)
        try:
            code = super().main(*given, **extra)
        except typer.Abort:
            code = 1
        except _UsageError as error:
            _tell_wrong_use(error)
            code = 2
        sys.exit(code if isinstance(code, int) else 0)


def _tell_wrong_use(error: Any) -> None:
    told = error.format_message().strip()
    if not told or "\n" in told:  # no command at all: Typer answers with its help
        error.show()
        return
    path = error.ctx.command_path if error.ctx else "launch-worker"
    if error.ctx:
        errors.print(error.ctx.get_usage(), markup=False)
    errors.print(f"{WRONG_USE}: {told.rstrip('.')}; `{path} --help` lists what there is", markup=False)


def read_settings(env_file: Path | None, config: Path | None) -> tuple[Settings, LaunchConfig]:
    """The settings of a command, and W&B's configuration file beneath them if there is one. AWS's own variables of
    `env_file` are in the environment afterwards. Raises `SettingsError`, also for a file that was named and is not
    there; the default one may be missing."""
    if env_file is not None and env_file != DEFAULT_ENV_FILE:
        _must_be_a_file(env_file)
    read = read_launch_config(config, default=True)
    settings = load_settings(env_file, beneath=read.variables)
    export_aws_variables(env_file)
    return settings, read


def _must_be_a_file(env_file: Path) -> None:
    if not env_file.exists():
        raise SettingsError(f"--env-file: {env_file}: No such file or directory")
    if not env_file.is_file():
        raise SettingsError(f"--env-file: {env_file}: is not a regular file; name one")


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Errors as sentences on standard error, each line with its code but for the problems of a message, which have
    their JSON paths: 1 failed, 2 wrong use or bad settings."""
    try:
        yield
    except BadMessage as error:
        for problem in error.problems:
            errors.print(str(problem), markup=False)
        raise typer.Exit(1) from error
    except (SettingsError, WrongUse) as error:
        for line in str(error).splitlines():
            errors.print(f"{error.code}: {line}", markup=False)
        raise typer.Exit(2) from error
    except WorkerError as error:
        errors.print(f"{error.code}: {error}", markup=False)
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
