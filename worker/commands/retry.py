"""The command `launch-worker retry`.

Imports stand inside the command, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.commands.terminal import (
    AsJson,
    ConfigFile,
    EnvFile,
    JobName,
    exit_codes,
    in_json,
    read_file,
    read_settings,
)

if TYPE_CHECKING:
    from worker.operating.sending_again import SentAgain
    from worker.settings import Settings


def retry(
    job: JobName,
    message: Annotated[
        str,
        typer.Option(
            "--message", "-m", metavar="FILE|-", help="The corrected or whole message of a refused launch."
        ),
    ] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Send a launch that failed, was stopped or was refused again: the same launch and run, as another attempt.

    A training job is repeated as it was, under the name JOB-r2; its run is resumed, its lines follow in the same
    console. A refused launch goes back to the queue as its message is in the dead-letter queue, or with --message."""
    with exit_codes():
        corrected = read_file(message) if message else None
        sent = asyncio.run(_retry(read_settings(env_file, config)[0], job, corrected))
        typer.echo(json.dumps(in_json(sent)) if as_json else _for_people(sent))


async def _retry(settings: Settings, job: str, corrected: str | None) -> SentAgain:
    from worker.operating.sending_again import open_sending_again

    async with open_sending_again(settings) as sending:
        return await sending.retry(job, corrected)


def _for_people(sent: SentAgain) -> str:
    as_job = f" as training job {sent.job_name}" if sent.job_name else ""
    through = f" through the queue (SQS message {sent.message_id})" if sent.message_id else ""
    return f"attempt {sent.attempt} of launch {sent.launch_id}{as_job}{through}: {sent.note}"
