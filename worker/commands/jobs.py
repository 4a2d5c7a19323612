"""The commands about launches and workers: `jobs`, `logs`, `stop`, `workers`; from ledger and AWS, on any machine.

Imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.commands.jobs_table import jobs_table
from worker.commands.states import ENDED, chosen_states
from worker.commands.terminal import (
    AsJson,
    ConfigFile,
    EnvFile,
    JobName,
    WrongUse,
    exit_codes,
    read_settings,
)
from worker.settings import Settings, parse_duration

if TYPE_CHECKING:
    from worker.launch.console import ConsoleLine
    from worker.launch.record import LaunchRecord
    from worker.operating.overview import WorkerLine

_WATCH_EVERY = 2.0
_HOST_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
_UNFOLDED = 10_000
"""Width for output that goes to a program: a line a launch, as grep and awk want it."""


def add_to(app: typer.Typer, panel: str) -> None:
    """Make the commands of `app` that stand here, in a group of its `--help`."""
    for command in (jobs, logs, stop, workers):
        app.command(rich_help_panel=panel)(command)


def jobs(
    *,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Finished and refused ones as well.")
    ] = False,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help="These, with commas: intent, waiting, accepted, finished, refused, or a job's own, as InProgress.",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show what changes.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """List launches: state, instance, age, what each waits for, delivered lines, and which worker has it."""
    with exit_codes():
        if watch and as_json:
            raise WrongUse("jobs: --watch is for people, --json for programs; take one of them")
        wanted = chosen_states(states or ())
        over = everything or bool(ENDED & wanted)
        settings = read_settings(env_file, config)[0]
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_jobs(settings, over=over, states=wanted, watch=watch, as_json=as_json))


def logs(
    job: JobName,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the launch is over.")] = False,
    since: Annotated[
        str, typer.Option(help="Only lines of the last 25s, 10m, 12h or 2d, or since an ISO time.")
    ] = "",
    host: Annotated[str, typer.Option(help="Only this container's lines, as algo-1.")] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Print a launch's log straight from CloudWatch, a colour a host; progress bars show their last state."""
    with exit_codes():
        start = moment(since, time.time()) if since else 0.0
        settings = read_settings(env_file, config)[0]
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_logs(settings, job, follow=follow, since=start, host=host, as_json=as_json))


def stop(
    job: JobName,
    reason: Annotated[str, typer.Option(help="Told at the launch's end, in W&B and here.")] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Stop a launch through the worker that has it, which keeps the reason; without a living one SageMaker is asked."""
    with exit_codes():
        settings = read_settings(env_file, config)[0]
        told = f"{who_calls()} stopped it with launch-worker stop{': ' + reason if reason else ''}."
        asyncio.run(_stop(settings, job, told, as_json=as_json))


def workers(
    now: Annotated[bool, typer.Option("--now", help="Do not wait to see who is alive.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """List workers: host, start, launches; alive is who beats within LAUNCH_HEARTBEAT, which is waited for."""
    with exit_codes():
        asyncio.run(_workers(read_settings(env_file, config)[0], wait=not now, as_json=as_json))


def who_calls() -> str:
    """Who calls; a container's user may have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


async def _jobs(
    settings: Settings, *, over: bool, states: Collection[str], watch: bool, as_json: bool
) -> None:
    from worker.operating.overview import described, open_overview
    from worker.resources import read_prices

    prices = dict(await asyncio.to_thread(read_prices, settings.prices))
    async with open_overview(settings) as (overview, _):

        async def look() -> list[dict[str, Any]]:
            records = await overview.launches(over=over, states=states)
            return [described(record, time.time(), prices) for record in records]

        if as_json:
            typer.echo(json.dumps(await look(), indent=2, ensure_ascii=False))
            return
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = _UNFOLDED
        nothing = (
            "no such launches" if over or states else "no open launches; --all shows those that are over"
        )

        async def table() -> Table:
            return jobs_table(await look(), nothing, width=console.width)

        if not watch:
            console.print(await table())
            return
        with Live(await table(), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                await asyncio.sleep(_WATCH_EVERY)
                live.update(await table(), refresh=True)


async def _logs(
    settings: Settings, job: str, *, follow: bool, since: float, host: str, as_json: bool
) -> None:
    from worker.operating.job_logs import JobLogs, jobs_of
    from worker.operating.overview import end_words, open_overview

    async with open_overview(settings) as (overview, aws):
        record = await overview.find(job)
        show = _JsonLines() if as_json else _ColouredLines()
        reader = JobLogs(aws, host=host, since=since)

        async def refresh() -> LaunchRecord:
            return await overview.find(record.launch_id)

        if follow:
            async for line in reader.follow(refresh):
                show.line(line)
            if not as_json:
                typer.echo(end_words(await refresh()), err=True)
            return
        names = jobs_of(record)
        if not names:
            typer.echo(f"{record.launch_id} has no training job yet ({record.state})", err=True)
        for name in names:
            async for line in reader.lines(name):
                show.line(line)
        if host and reader.hosts and host not in reader.hosts:
            raise WrongUse(f"--host: {host!r} has no log; there are {', '.join(sorted(reader.hosts))}")


async def _stop(settings: Settings, job: str, reason: str, *, as_json: bool) -> None:
    from worker.operating.overview import open_overview

    async with open_overview(settings) as (overview, _):
        record = await overview.find(job)
        stopping = await overview.stop(record, reason, look=2 * settings.heartbeat + 1)
    if as_json:
        told = {"launchId": record.launch_id, "job": record.job_name, "byOwner": stopping.by_owner}
        typer.echo(json.dumps({**told, "note": stopping.note}))
    else:
        typer.echo(f"{record.job_name or record.launch_id}: {stopping.note}")


async def _workers(settings: Settings, *, wait: bool, as_json: bool) -> None:
    from worker.operating.overview import open_overview

    async with open_overview(settings) as (overview, _):
        found = await overview.workers(look=2 * settings.heartbeat if wait else 0.0)
    if as_json:
        typer.echo(json.dumps([_worker_as_json(line) for line in found], indent=2))
    else:
        Console(highlight=False).print(workers_table(found))


def workers_table(found: Sequence[WorkerLine]) -> Table:
    """Workers for people."""
    table = Table(box=None, pad_edge=False, caption=None if found else "no workers", caption_justify="left")
    for column in ("worker", "host", "deployment", "alive", "launches", "started"):
        table.add_column(column, overflow="fold", justify="right" if column == "launches" else "left")
    for line in found:
        words, colour = {True: ("yes", "green"), False: ("no", "red"), None: ("?", "")}[line.alive]
        beat = line.beat
        started = _when(beat.started_at) if beat.started_at else ""
        table.add_row(
            *(Text(each) for each in (beat.worker, beat.host, beat.deployment)),
            Text(words, colour),
            str(line.launches),
            started,
        )
    return table


def moment(text: str, now: float) -> float:
    """`10m` before `now`, or an ISO time (UTC where it names no zone), as epoch seconds. Raises `WrongUse`."""
    with contextlib.suppress(ValueError):
        seconds = parse_duration(text)
        if isinstance(seconds, float):
            return now - seconds
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongUse(f"--since: {text!r} is neither a duration as 10m nor an ISO time") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


class _JsonLines:
    """One JSON object a line."""

    def line(self, line: ConsoleLine) -> None:
        values = {"timestamp": line.timestamp, "host": line.label, "message": line.content}
        typer.echo(json.dumps(values, ensure_ascii=False))


class _ColouredLines:
    """Time, host in its colour, text as it is."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._colours: dict[str, str] = {}

    def line(self, line: ConsoleLine) -> None:
        colour = self._colours.setdefault(line.label, _HOST_COLOURS[len(self._colours) % len(_HOST_COLOURS)])
        time_of_day = _when(line.timestamp / 1000)
        self._console.print(Text.assemble((time_of_day, "dim"), " ", (line.label, colour), " ", line.content))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _worker_as_json(line: WorkerLine) -> dict[str, Any]:
    beat = line.beat
    values: dict[str, Any] = {"worker": beat.worker, "host": beat.host, "deployment": beat.deployment}
    return {**values, "alive": line.alive, "launches": line.launches, "startedAt": beat.started_at}
