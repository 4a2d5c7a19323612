"""As many lines as there are: one loud job, and a hundred together."""

from __future__ import annotations

import asyncio
import time

from bench.launches import ages, names, seed_ledger
from bench.measurement import WORKER, Measurement, Target
from bench.scenarios.windows import caught_up, measurement_of, window, with_end
from bench.stage import Stage


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
        report, usage = await window(stage, worker.program, min(seconds, most / per_second))
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
    """Lines that wait in CloudWatch already: how fast one worker brings them over."""
    await stage.fresh(FilterLogEvents=25.0)
    await stage.control("jobs", ages=ages(names("flood", jobs)))
    ledger = stage.folder / "flood.db"
    await seed_ledger(ledger, names("flood", jobs))
    settings = {"LAUNCH_RATE_FILTER_LOG_EVENTS": "25"}
    async with stage.worker(ledger, settings) as worker:
        await caught_up(stage)
        await stage.control("print", per_second=lines / 2.0, most=lines)
        await asyncio.sleep(3.5)  # until it all is there
        await stage.control("window")
        worker.program.begin_window()
        began = time.monotonic()
        before = (await stage.report())["wandb"]["lines"]
        lost = await caught_up(stage, every=0.1)
        seconds = time.monotonic() - began
        report, usage = await stage.report(), worker.program.usage()
    done = report["wandb"]["lines"] - before
    rate = done / seconds
    return measurement_of(
        f"{jobs} jobs, {jobs * lines:,} lines waiting",
        WORKER,
        report,
        usage,
        result=f"{rate:,.0f} lines/s, {usage.cpu_share:.0%} of a core",
        target=Target("≥ 20,000/s, 0 lost, 0 doubled", rate >= 20_000 and not lost),
        lost=lost,
        numbers={"lines_per_second": rate},
        notes=("FilterLogEvents 25/s, as in us-east-1: at 5/s the quota would be the limit",),
    )
