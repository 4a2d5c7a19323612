"""The commands `launch-worker dlq …`: refused launches, and sending them back.

Imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.commands.terminal import (
    AsJson,
    ConfigFile,
    EnvFile,
    WrongUse,
    exit_codes,
    read_file,
    read_settings,
)
from worker.errors import WorkerError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.intake.dead_letter_queue import DeadLetter, Letters

dlq = typer.Typer(
    help="Refused launches: list them, show one, send it back after a fix. Nothing is removed by looking.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

LetterId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Launch id or SQS message id, or at least its first 4 characters; or the message's own launchId.",
    ),
]


@dlq.command("list")
def list_letters(
    as_json: AsJson = False, config: ConfigFile = None, env_file: EnvFile = Path(".env")
) -> None:
    """List the refused launches with stage, code and reason, oldest first."""
    with exit_codes():
        found = asyncio.run(_look(read_settings(env_file, config)[0]))
        if as_json:
            typer.echo(
                json.dumps({"letters": [_summary(letter) for letter in found.letters], "more": found.more})
            )
            return
        _print_table(found)


@dlq.command()
def show(
    letter_id: LetterId, as_json: AsJson = False, config: ConfigFile = None, env_file: EnvFile = Path(".env")
) -> None:
    """Show the whole message and reason of one refused launch; its secrets were taken out when it was refused."""
    from worker.operating.dead_letters import matching

    with exit_codes():
        settings = read_settings(env_file, config)[0]
        found = asyncio.run(_look(settings))
        for letter in matching(found.letters, letter_id, deployment=settings.deployment, hidden=found.more):
            if as_json:
                typer.echo(json.dumps({**_summary(letter), "message": letter.body}))
                continue
            for name, value in _summary(letter).items():
                typer.echo(f"{name + ':':<11} {value}")
            typer.echo(_pretty(letter.body))


@dlq.command()
def retry(
    letter_id: LetterId = "",
    *,
    everything: Annotated[bool, typer.Option("--all", help="All of them, each as it is.")] = False,
    message: Annotated[
        str,
        typer.Option(
            "--message", "--edit", metavar="FILE", help="The corrected message; - for standard input."
        ),
    ] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Send a refused launch back to its queue once what was wrong is mended: the same launch, a new attempt.

    Its letter is deleted after that. A message whose secrets were taken out, or that was cut, has to be given whole
    with --message; it keeps its launchId or runQueueItemId, or names neither. A failed queue item stays failed in W&B;
    the run itself shows what becomes of it."""
    with exit_codes():
        if bool(letter_id) == everything:
            raise WrongUse(f"dlq retry: give an ID, or --all{', not both' if everything else ''}")
        if everything and message:
            raise WrongUse("dlq retry: --message is for one launch, not for --all")
        corrected = read_file(message) if message else None
        failed = asyncio.run(
            _retry(read_settings(env_file, config)[0], letter_id, corrected, as_json=as_json)
        )
        raise typer.Exit(1 if failed else 0)


@dlq.command()
def purge(letter_id: LetterId, config: ConfigFile = None, env_file: EnvFile = Path(".env")) -> None:
    """Delete the letter of one refused launch for good."""
    with exit_codes():
        asyncio.run(_purge(read_settings(env_file, config)[0], letter_id))


async def _look(settings: Settings) -> Letters:
    from worker.operating.dead_letters import open_dead_letters

    async with open_dead_letters(settings) as letters, letters.looking() as found:
        return found


async def _retry(settings: Settings, wanted: str, corrected: str | None, *, as_json: bool) -> int:
    """Returns how many could not be sent back; one that was asked for by name raises instead."""
    from worker.operating.dead_letters import by_launch, matching, open_dead_letters

    failed = 0
    async with open_dead_letters(settings) as letters, letters.looking() as found:
        launches = by_launch(found.letters)
        if wanted:
            launches = [matching(found.letters, wanted, deployment=settings.deployment, hidden=found.more)]
        for launch in launches:
            try:
                sent = await letters.send_back(launch, corrected)
            except WorkerError as error:
                if wanted:
                    raise
                failed += 1
                typer.echo(
                    f"not sent back: {launch[-1].launch_id or launch[-1].message_id}: {error}", err=True
                )
                continue
            if as_json:
                values = {"launchId": sent.launch_id, "messageId": sent.message_id, "attempt": sent.attempt}
                typer.echo(json.dumps({**values, "note": sent.note}))
            else:
                what = f"sent back launch {sent.launch_id} as attempt {sent.attempt}"
                what = what if sent.message_id else f"launch {sent.launch_id} was not sent back"
                typer.echo(f"{what}{': ' + sent.note if sent.note else ''}")
    return failed


async def _purge(settings: Settings, wanted: str) -> None:
    from worker.operating.dead_letters import matching, open_dead_letters

    async with open_dead_letters(settings) as letters, letters.looking() as found:
        chosen = matching(found.letters, wanted, deployment=settings.deployment, hidden=found.more)
        await letters.delete(chosen)
        typer.echo(f"deleted {len(chosen)} letter(s) of {chosen[0].launch_id or chosen[0].message_id}")


def _summary(letter: DeadLetter) -> dict[str, str]:
    from worker.operating.dead_letters import run_of

    return {
        "received": datetime.fromtimestamp(letter.sent_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "launchId": letter.launch_id,
        "messageId": letter.message_id,
        "run": run_of(letter),
        "stage": letter.stage,
        "code": letter.code,
        "reason": letter.reason or "moved by SQS itself: received too often (maxReceiveCount)",
    }


def _print_table(found: Letters) -> None:
    """A line a letter, never folded, so that ids can be copied and lines be searched; its reason stands below."""
    rows = [_summary(letter) for letter in found.letters]
    columns = ("received", "launchId", "code", "stage", "run")
    for row in rows:
        row["launchId"] = row["launchId"] or row["messageId"]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in columns}
    for row in [{name: name for name in columns}, *rows] if rows else ():
        typer.echo("  ".join(row[name].ljust(widths[name]) for name in columns).rstrip())
        for line in row.get("reason", "").splitlines():
            typer.echo(f"    {line}")
    if not rows:
        typer.echo("no dead letters")
    if found.more:
        typer.echo(
            f"about {found.more} more may be there, hidden at this moment; look again in two minutes",
            err=True,
        )


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body
