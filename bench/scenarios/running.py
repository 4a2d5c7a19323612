"""Many jobs that run: adopted, quiet, printing; and a worker that is started anew beside them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.launches import ages, names, seed_ledger
from bench.measurement import WORKER, Measurement, Target
from bench.programs import Usage
from bench.scenarios.windows import caught_up, measurement_of, sagemaker_rate, window, with_end
from bench.stage import Json, Stage, Worker, until

_SETTLE = 10.0
"""Seconds for what an adoption leaves to do, before anything else is measured."""
_PATIENCE = 120.0
"""Seconds that an adoption may take before it is given up."""
_MEMORY = {1000: 200.0, 5000: 512.0}
"""MiB that so many running jobs may cost."""


async def quiet(stage: Stage, *, count: int, seconds: float) -> list[Measurement]:
    """Jobs that say nothing: adopted from a ledger, then watched."""
    ledger = await _running_jobs(stage, count)
    async with _adopting(stage, ledger, count) as (worker, adoption):
        return [adoption, await _quiet(stage, worker, count, seconds)]


async def printing(
    stage: Stage, *, count: int, seconds: float, rates: tuple[float, ...]
) -> list[Measurement]:
    """One worker beside many jobs: adopted, quiet, then at some lines a second each; at last its successor."""
    ledger = await _running_jobs(stage, count)
    found = []
    async with _adopting(stage, ledger, count) as (worker, adoption):
        found += [adoption, await _quiet(stage, worker, count, seconds)]
        for rate in rates:
            found.append(await _printing(stage, worker, count, rate, seconds))
        await stage.control("print", per_second=1.0)
        await asyncio.sleep(5)
    async with _adopting(stage, ledger, count) as (_, restart):
        found.append(restart)
    return found


async def _running_jobs(stage: Stage, count: int) -> Path:
    await stage.fresh()
    jobs = names(f"run{count}", count)
    await stage.control("jobs", ages=ages(jobs))
    ledger = stage.folder / f"running-{count}.db"
    await seed_ledger(ledger, jobs, await stage.control("streams"))
    return ledger


@contextlib.asynccontextmanager
async def _adopting(stage: Stage, ledger: Path, count: int) -> AsyncIterator[tuple[Worker, Measurement]]:
    """Start a worker, and wait until each job's log moves: measured from outside, by what W&B gets."""
    await stage.control("window")
    before = time.time()
    async with stage.worker(ledger) as worker:
        followed: list[float] = []

        async def all_followed() -> bool:
            runs = await stage.control("runs")
            followed[:] = sorted(posted - before for _, posted, _, _ in runs.values() if posted > before)
            return len(followed) >= count

        with contextlib.suppress(TimeoutError):  # then the result says how many there are
            await until(all_followed, f"{count} jobs followed", seconds=_PATIENCE, every=0.5)
        report, usage = await stage.report(), worker.program.usage()
        yield worker, _adoption(count, report, usage, tuple(followed), worker.ready_after)


def _adoption(
    count: int, report: Json, usage: Usage, followed: tuple[float, ...], ready_after: float
) -> Measurement:
    done = len(followed) == count
    after = followed[-1] if done else _PATIENCE
    which = "all" if done else f"{len(followed)}"
    return measurement_of(
        f"restart with {count} jobs",
        WORKER,
        report,
        usage,
        result=f"ready after {ready_after:.2f} s, {which} followed after {after:.1f} s",
        target=Target("≤ 30 s", done and after <= 30) if count == 1000 else None,
        numbers={"ready_after": ready_after, "all_followed_after": after if done else None},
        samples={"followed": followed},
    )


async def _quiet(stage: Stage, worker: Worker, count: int, seconds: float) -> Measurement:
    await caught_up(stage)
    await asyncio.sleep(_SETTLE)
    report, usage = await window(stage, worker.program, seconds)
    rate = sagemaker_rate(report)
    rss = usage.rss_max / (1 << 20)
    limit = _MEMORY.get(count)
    target = None
    if limit is not None:
        kept = rss <= limit and rate <= 0.5 and (count > 1000 or usage.cpu_share <= 0.05)
        target = Target(f"≤ {limit:.0f} MiB, ≤ 5 % of a core, ≤ 0.5 SageMaker calls/s", kept)
    return measurement_of(
        f"{count} jobs, quiet",
        WORKER,
        report,
        usage,
        result=f"{rss:.0f} MiB, {usage.cpu_share:.1%} of a core, {rate:.2f} SageMaker calls/s",
        target=target,
        numbers={"sagemaker_calls_per_second": rate},
    )


async def _printing(
    stage: Stage, worker: Worker, count: int, per_second: float, seconds: float
) -> Measurement:
    await stage.control("print", per_second=per_second)
    await asyncio.sleep(_SETTLE)
    report, usage = await window(stage, worker.program, seconds)
    await stage.control("print", per_second=0)
    lost = await caught_up(stage)
    report = await with_end(stage, report)
    p95 = report["wandb"]["latency"]["p95"]
    target = None
    if count == 1000 and per_second == 1:
        kept = p95 is not None and p95 <= 5 and usage.cpu_share <= 0.30 and not lost
        target = Target("p95 ≤ 5 s, ≤ 30 % of a core", kept)
    return measurement_of(
        f"{count} jobs at {per_second:g} lines/s",
        WORKER,
        report,
        usage,
        result=f"p95 {p95} s, {usage.cpu_share:.0%} of a core",
        target=target,
        lost=lost,
        numbers={"lines_per_second": report["wandb"]["lines_window"] / report["seconds"]},
    )
