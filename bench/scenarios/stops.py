"""Stop, pressed in W&B beside many running jobs: how long until SageMaker is asked to stop the job.

It reaches the worker in two ways: the companion's in the answer to a post or heartbeat, the container's run by a query
about a hundred runs at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence

from bench.launches import ENTITY, PROJECT
from bench.measurement import WORKER, Judged, Measurement, at_most
from bench.programs import Usage
from bench.scenarios.running import adopting, running_jobs
from bench.scenarios.windows import Window, caught_up, measurement_of
from bench.stage import Json, Stage, Worker, until

_EVERY = 1.5
"""Seconds between two stops: StopTrainingJob's quota is 1/s, and is not what is measured here."""
_PATIENCE = 60.0
_LIMIT = 35.0
"""Seconds: each companion and run is looked at every 30 s."""


async def stops(stage: Stage, *, count: int, each: int, heartbeat: float = 30.0) -> list[Measurement]:
    """`count` jobs run; Stop is pressed in `each` runs of containers and as many companions of quiet jobs, then in as
    many companions of jobs that print a line a second. `heartbeat`: LAUNCH_COMPANION_HEARTBEAT."""
    ledger, jobs = await running_jobs(stage, count)
    settings = {
        "LAUNCH_COMPANION_HEARTBEAT": str(heartbeat),
        "LAUNCH_STOPPED_RUN_TIMEOUT": "0",  # else a stopped run has a minute to end by itself
    }
    async with adopting(stage, ledger, count, settings) as (worker, _):
        await caught_up(stage)
        # Far from each other in the list, so that no single query or second of heartbeats has them all.
        chosen = jobs[:: max(1, count // (3 * each))][: 3 * each]
        runs, quiet, loud = (chosen[first::3] for first in range(3))
        by_run = {job: _path(job) for job in runs}
        by_companion = {job: _companion(job) for job in quiet}
        window = await _pressed(stage, worker, {**by_run, **by_companion})
        found = [
            _measured("stop-run", count, window, by_run, "the container's run"),
            _measured("stop-companion", count, window, by_companion, "the companion, quiet jobs"),
        ]
        await stage.control("print", per_second=1.0)
        by_companion = {job: _companion(job) for job in loud}
        window = await _pressed(stage, worker, by_companion)
    printing = _measured("stop-companion", count, window, by_companion, "the companion, 1 line/s each")
    return [*found, printing]


async def _pressed(stage: Stage, worker: Worker, paths: Mapping[str, str]) -> tuple[Json, Usage, Json]:
    """Press Stop in these runs, one after the other; the window, and when it was pressed and heard. `paths`: job →
    run."""
    window = await Window.begin(stage, worker)
    for _, path in sorted(paths.items()):  # both kinds in turn
        await stage.control("stop", paths=[path])
        await asyncio.sleep(_EVERY)

    async def all_stopped() -> bool:
        stopped: Mapping[str, float] = (await stage.control("stops"))["stopped"]
        return paths.keys() <= stopped.keys()

    with contextlib.suppress(TimeoutError):  # then the result says how many were
        await until(all_stopped, "all stopped", seconds=_PATIENCE, every=0.5)
    return *(await window.end()), await stage.control("stops")


def _measured(
    goal: str, count: int, window: tuple[Json, Usage, Json], paths: Mapping[str, str], where: str
) -> Measurement:
    report, usage, told = window
    waits = sorted(
        told["stopped"][job] - told["pressed"][path] for job, path in paths.items() if job in told["stopped"]
    )
    p50, p95, longest = (_share(waits, share) for share in (0.5, 0.95, 1.0))
    words = f"{len(waits)} stops: p50 {p50:.1f} s, p95 {p95:.1f} s, longest {longest:.1f} s"
    if len(waits) < len(paths):
        words += f", {len(paths) - len(waits)} of {len(paths)} not stopped"
    judged: tuple[Judged, ...] = ()
    if count == 1000:
        judged = (at_most(goal, p95, _LIMIT, f"{words} ({where})", and_also=len(waits) == len(paths)),)
    return measurement_of(
        f"{count} jobs, Stop in {where}",
        WORKER,
        report,
        usage,
        result=words,
        judged=judged,
        numbers={"stops": len(waits)},
        samples={"stops": tuple(waits)},
    )


def _share(waits: Sequence[float], share: float) -> float:
    """The time within which so many of the stops were served; `waits` are sorted."""
    return waits[max(0, math.ceil(share * len(waits)) - 1)] if waits else 0.0


def _path(job: str) -> str:
    return f"{ENTITY}/{PROJECT}/{job}"


def _companion(job: str) -> str:
    return f"{_path(job)}-sagemaker"
