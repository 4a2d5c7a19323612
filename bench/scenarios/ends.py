"""Many jobs end at about once: their logs are read to the end, searched, read again as a whole and kept as files."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measurement import WORKER, Judged, Measurement, at_most
from bench.programs import Usage
from bench.scenarios.running import adopting, running_jobs
from bench.scenarios.windows import Window, all_there, caught_up, measurement_of, with_end
from bench.stage import QUOTAS, Json, Stage, until
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.sqlite import open_sqlite_ledger

_FREE = ("DescribeTrainingJob", "FilterLogEvents", "DescribeLogStreams")
"""APIs without a quota here: a job that ends costs calls of each, and with the usual quotas only those would be
measured, for many minutes. How long they take by themselves is told beside it."""
_SETTINGS = {
    "LAUNCH_RATE_DESCRIBE_TRAINING_JOB": "100",
    "LAUNCH_RATE_FILTER_LOG_EVENTS": "100",
    "LAUNCH_RATE_DESCRIBE_LOG_STREAMS": "100",
}
_WITHIN = 1.0
"""Seconds over which the ends are spread."""
_PATIENCE = 120.0


async def ends(stage: Stage, *, count: int, seconds: float) -> Measurement:
    """`count` jobs print a line a second for so many seconds; then all of them complete."""
    path, _ = await running_jobs(stage, count)
    await stage.control("settings", quotas=dict.fromkeys(_FREE))
    async with adopting(stage, path, count, _SETTINGS) as (worker, _):
        await caught_up(stage)
        await stage.control("print", per_second=1.0)
        await asyncio.sleep(seconds)
        window = await Window.begin(stage, worker)
        ended_at = time.time()
        await stage.control("end", within=_WITHIN)
        records = await _ended(path, count)
        report, usage = await window.end()
        lost = await caught_up(stage, patience=5.0)
        report = await with_end(stage, report)
    waits = sorted((record.finished_at or ended_at) - ended_at for record in records)
    return ends_measured(count, report, usage, waits, lost)


async def _ended(path: Path, count: int) -> Sequence[LaunchRecord]:
    """The finished launches, once all are, or after a long time."""
    async with open_sqlite_ledger(path) as ledger:

        async def all_over() -> bool:
            return not await ledger.records(over=False)

        with contextlib.suppress(TimeoutError):  # then the result says how many were
            await until(all_over, f"{count} launches finished", seconds=_PATIENCE, every=1.0)
        return [record for record in await ledger.records(over=True) if record.state is LaunchState.FINISHED]


def ends_measured(count: int, report: Json, usage: Usage, waits: Sequence[float], lost: int) -> Measurement:
    """`waits`: seconds from the ends until each launch was finished; `lost`: lines that W&B lacks."""
    wandb = report["wandb"]
    lacking = report["lines_in_cloudwatch"] - wandb["lines_in_files"]
    done = len(waits) == wandb["runs_finished"] == count
    which = "all" if done else f"{len(waits)} of {count}"
    words = f"{which} finished after {max(waits, default=_PATIENCE):.1f} s, {usage.cpu_share:.0%} of a core"
    if lacking:
        words += f", the files lack {lacking} lines"
    judged: tuple[Judged, ...] = ()
    if count == 1000:
        whole = done and not lacking and all_there(report, lost)
        judged = (at_most("ends", abs(lacking) + lost, 1.0, words, and_also=whole),)
    return measurement_of(
        f"{count} jobs end at once",
        WORKER,
        report,
        usage,
        result=words,
        judged=judged,
        lost=lost,
        numbers={"finished_after": waits, "lines_in_files": wandb["lines_in_files"]},
        notes=(_calls(count, report["calls"]),),
    )


def _calls(count: int, calls: dict[str, int]) -> str:
    """What an end costs, and how long that takes under an account's usual quotas."""
    each = ", ".join(f"{api} {calls.get(api, 0) / count:.1f}" for api in _FREE)
    seconds, api = max((calls.get(api, 0) / QUOTAS[api], api) for api in _FREE)
    return f"calls a job, here without quotas: {each}; with the usual ones {api} alone takes {seconds:.0f} s"
