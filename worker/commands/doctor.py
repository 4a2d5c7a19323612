"""The command `launch-worker doctor`.

Imports stand inside the command, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from worker.commands.terminal import AsJson, ConfigFile, EnvFile, exit_codes, read_file, read_settings
from worker.errors import BadMessage, SettingsError
from worker.settings import given_variables

if TYPE_CHECKING:
    from worker.doctor.check import Check
    from worker.unknown_variables import UnknownVariable

_MARKS = {"ok": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("-", "dim")}
_NAME_WIDTH = 16


def doctor(
    message: Annotated[
        str,
        typer.Option("--message", "-m", metavar="FILE|-", help="Check this launch as well; starts nothing."),
    ] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Look at all that a worker needs, and say what is wrong and what to do; changes nothing. Exit 1 on a cross.

    Settings, credentials, clock, queue, ledger, registry, docker, each IAM action, roles, W&B; with --message also
    the image, the source, the quota and the output of a launch."""
    from worker.doctor.check import failed, failures
    from worker.doctor.examination import all_well, examine, no_settings
    from worker.unknown_variables import unknown_variables

    console = Console(highlight=False, soft_wrap=True)

    def tell(check: Check) -> None:
        if not as_json:
            console.print(line(check))

    with exit_codes():
        body = _body(message) if message else None
        unknown: tuple[UnknownVariable, ...] = ()
        try:
            unknown = unknown_variables(given_variables(env_file))
            settings, _ = read_settings(env_file, config)
        except SettingsError as error:
            checks = [
                failed("settings", text, "see .env.example for each variable")
                for text in str(error).split("\n")
            ] or failures("settings", error)
            checks += no_settings(unknown)
            for check in checks:
                tell(check)
        else:
            checks = list(asyncio.run(examine(settings, body, tell, unknown)))
        if as_json:
            typer.echo(json.dumps([_as_json(check) for check in checks], indent=2, ensure_ascii=False))
        raise typer.Exit(0 if all_well(checks) else 1)


def line(check: Check) -> Text:
    """One finding for people: mark, name, detail, and below it what to do."""
    mark, style = _MARKS[check.verdict]
    text = Text.assemble(
        (mark, style), f" {check.name:<{_NAME_WIDTH}} ", (check.detail, "" if check.remedy else style)
    )
    if check.verdict == "ok":
        text = Text.assemble((mark, style), f" {check.name:<{_NAME_WIDTH}} {check.detail}")
    if check.remedy:
        text.append(f"\n  {'':<{_NAME_WIDTH}} → {check.remedy}", "yellow")
    return text


def _body(file: str) -> str | BadMessage:
    """The text of a message; of a file that is no text what is wrong, which is one finding among the others."""
    try:
        return read_file(file)
    except BadMessage as error:
        return error


def _as_json(check: Check) -> dict[str, str]:
    values = {"name": check.name, "verdict": str(check.verdict), "detail": check.detail}
    return {**values, "remedy": check.remedy} if check.remedy else values
