"""As many lines as there are: one loud job, and a hundred together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from bench.launches import ages, names, seed_ledger
from bench.measurement import WORKER, Judged, Measurement, at_least
from bench.scenarios.windows import Window, all_there, caught_up, measurement_of, window, with_end
from bench.stage import Stage, Worker

_LATEST = 5.0
"""Seconds (p95) that lines may take while they come: else a worker that falls behind for ever would seem to keep up."""
_UNDER_WAY = 3.0
"""Seconds until the first lines have come; a window that began before would seem to fall behind."""
_QUOTA = "FilterLogEvents 25/s, as in us-east-1: at 5/s the quota would be the limit"


async def loud_job(stage: Stage, *, per_second: float, seconds: float) -> Measurement:
    """One job that prints very much."""
    await stage.fresh()
    await stage.control("jobs", ages=ages(names("loud", 1)))
    ledger = stage.folder / "loud.db"
    await seed_ledger(ledger, names("loud", 1))
    async with stage.worker(ledger) as worker:
        await caught_up(stage)
        # W&B keeps 100,000 console lines a run; the bench stays below, so that each line can be counted.
        most = 90_000
        await stage.control("print", per_second=per_second, most=most)
        await asyncio.sleep(_UNDER_WAY)
        report, usage = await window(stage, worker, min(seconds, most / per_second - _UNDER_WAY))
        lost = await caught_up(stage)
        report = await with_end(stage, report)
    rate = report["wandb"]["lines_window"] / report["seconds"]
    p95 = report["wandb"]["latency"]["p95"]
    return measurement_of(
        f"one job at {per_second:g} lines/s",
        WORKER,
        report,
        usage,
        result=f"{rate:,.0f} lines/s, p95 {p95} s, {usage.cpu_share:.0%} of a core",
        lost=lost,
        numbers={"lines_per_second": rate},
    )


async def throughput(stage: Stage, *, jobs: int, lines: int) -> Measurement:
    """Lines that wait in CloudWatch already: how fast one worker brings them over. It is frozen while they come in."""
    async with _many_jobs(stage, jobs) as worker:
        with worker.program.frozen():
            await stage.control("print", per_second=lines / 2.0, most=lines)
            await asyncio.sleep(4.5)  # until it all is there
        opened = await Window.begin(stage, worker)
        began = time.monotonic()
        before = (await stage.report())["wandb"]["lines"]
        lost = await caught_up(stage, every=0.1)
        seconds = time.monotonic() - began
        report, usage = await opened.end()
    done = report["wandb"]["lines"] - before
    rate = done / seconds
    words = f"{rate:,.0f} lines/s, {usage.cpu_share:.0%} of a core"
    return measurement_of(
        f"{jobs} jobs, {jobs * lines:,} lines waiting",
        WORKER,
        report,
        usage,
        result=words,
        judged=(at_least("backlog", rate, 20_000, words, and_also=all_there(report, lost)),),
        lost=lost,
        numbers={"lines_per_second": rate},
        notes=(_QUOTA,),
    )


async def live(stage: Stage, *, jobs: int, per_second: float, seconds: float) -> Measurement:
    """As many lines while they are printed: whether the worker keeps up, and how late they come."""
    async with _many_jobs(stage, jobs) as worker:
        await stage.control("print", per_second=per_second / jobs)
        await asyncio.sleep(5)
        report, usage = await window(stage, worker, seconds)
        await stage.control("print", per_second=0)
        lost = await caught_up(stage)
        report = await with_end(stage, report)
    rate = report["wandb"]["lines_window"] / report["seconds"]
    p95 = report["wandb"]["latency"]["p95"]
    words = f"{rate:,.0f} lines/s, p95 {p95} s, {usage.cpu_share:.0%} of a core"
    return measurement_of(
        f"{jobs} jobs, {per_second:,.0f} lines/s live",
        WORKER,
        report,
        usage,
        result=words,
        judged=(live_judged(rate, p95, words, whole=all_there(report, lost)),),
        lost=lost,
        numbers={"lines_per_second": rate},
        notes=(_QUOTA,),
    )


def live_judged(rate: float, p95: float | None, words: str, *, whole: bool) -> Judged:
    """Kept when the lines come fast enough, soon enough and all."""
    soon = p95 is not None and p95 <= _LATEST
    return at_least("live", rate, 20_000, words, and_also=soon and whole)


@contextlib.asynccontextmanager
async def _many_jobs(stage: Stage, jobs: int) -> AsyncIterator[Worker]:
    await stage.fresh(FilterLogEvents=25.0)
    await stage.control("jobs", ages=ages(names("flood", jobs)))
    ledger = stage.folder / "flood.db"
    ledger.unlink(missing_ok=True)
    await seed_ledger(ledger, names("flood", jobs), await stage.control("streams"))
    async with stage.worker(ledger, {"LAUNCH_RATE_FILTER_LOG_EVENTS": "25"}) as worker:
        await caught_up(stage)
        yield worker
