"""The command `launch-worker rebuild`.

Imports stand inside the command, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.commands.terminal import AsJson, ConfigFile, EnvFile, exit_codes, in_json, read_settings

if TYPE_CHECKING:
    from worker.operating.rebuilding import FoundJob
    from worker.settings import Settings


def rebuild(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be added.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Fill a lost ledger again: running jobs tagged LaunchWorker=LAUNCH_DEPLOYMENT become launches that workers adopt.

    Their logs are read again from the beginning, to the same places in W&B. Not for a ledger beside another one of the
    same LAUNCH_DEPLOYMENT: its jobs would be followed twice. Exit 1 if a job had to be left out."""
    from worker.operating.rebuilding import Found

    with exit_codes():
        jobs = asyncio.run(_rebuild(read_settings(env_file, config)[0], dry_run=dry_run))
        typer.echo(json.dumps([in_json(job) for job in jobs], indent=2) if as_json else _for_people(jobs))
        raise typer.Exit(int(any(job.found is Found.LEFT_OUT for job in jobs)))


async def _rebuild(settings: Settings, *, dry_run: bool) -> list[FoundJob]:
    from worker.operating.rebuilding import open_rebuilding

    async with open_rebuilding(settings) as rebuilding:
        return await rebuilding.rebuild(dry_run=dry_run)


def _for_people(jobs: Sequence[FoundJob]) -> str:
    lines = [
        f"{job.found:<8}  {job.job_name}"
        + (f"  launch {job.launch_id}  run {job.run}" if job.launch_id else "")
        + (f": {job.why}" if job.why else "")
        for job in jobs
    ]
    counts = Counter(str(job.found) for job in jobs)
    total = (
        ", ".join(f"{count} {found}" for found, count in counts.items()) or "none with the deployment's tag"
    )
    return "\n".join([*lines, f"running jobs: {total}"])
