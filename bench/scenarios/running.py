"""Many jobs that run: adopted, quiet, printing; and a worker that is started anew beside them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bench.launches import ages, names, seed_ledger
from bench.measurement import WORKER, Judged, Measurement, at_most
from bench.programs import Usage
from bench.scenarios.windows import (
    all_there,
    caught_up,
    measurement_of,
    sagemaker_rate,
    window,
    with_end,
)
from bench.stage import Json, Stage, Worker, until

SETTLE = 10.0
"""Seconds for what another pace of lines leaves to do before anything is measured."""
SILENCE = 35.0
"""Seconds without a line before quiet jobs are measured: heartbeats of a companion begin when it has been silent for
LAUNCH_COMPANION_HEARTBEAT (30 s), and are most of what a quiet job costs."""
_PRINTING = 20.0
"""Most seconds for which printing jobs are measured; quiet ones are for a whole round of heartbeats."""
_PATIENCE = 120.0
"""Seconds that an adoption may take before it is given up."""
_MEMORY = {1000: ("memory", 200.0), 5000: ("memory-5000", 512.0)}
"""Which goal so many jobs are about, and the MiB that they may cost."""


async def quiet(stage: Stage, *, count: int, seconds: float, silence: float = SILENCE) -> list[Measurement]:
    """Jobs that say nothing: adopted from a ledger, then watched."""
    ledger, _ = await running_jobs(stage, count)
    async with adopting(stage, ledger, count) as (worker, adoption):
        return [adoption, await _quiet(stage, worker, count, seconds, silence)]


async def printing(
    stage: Stage,
    *,
    count: int,
    seconds: float,
    rates: tuple[float, ...],
    settle: float = SETTLE,
    silence: float = SILENCE,
) -> list[Measurement]:
    """One worker beside many jobs: adopted, quiet, then at some lines a second each; at last its successor."""
    ledger, _ = await running_jobs(stage, count)
    found = []
    async with adopting(stage, ledger, count) as (worker, adoption):
        found += [adoption, await _quiet(stage, worker, count, seconds, silence)]
        for rate in rates:
            printed = min(seconds, _PRINTING)
            found.append(await _printing(stage, worker, count, rate, seconds=printed, settle=settle))
        await stage.control("print", per_second=1.0)
        await asyncio.sleep(5)
    async with adopting(stage, ledger, count) as (_, restart):
        found.append(restart)
    return found


async def running_jobs(stage: Stage, count: int) -> tuple[Path, list[str]]:
    """A ledger of jobs that run in the simulator, one that no scenario has used; and their names."""
    await stage.fresh()
    jobs = names(f"run{count}", count)
    await stage.control("jobs", ages=ages(jobs))
    ledger = stage.folder / f"running-{count}-{time.monotonic_ns()}.db"
    await seed_ledger(ledger, jobs, await stage.control("streams"))
    return ledger, jobs


@contextlib.asynccontextmanager
async def adopting(
    stage: Stage, ledger: Path, count: int, settings: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Worker, Measurement]]:
    """Start a worker, and wait until each job's log moves: measured from outside, by what W&B gets."""
    await stage.control("window")
    before = time.time()
    async with stage.worker(ledger, settings) as worker:
        followed: list[float] = []

        async def all_followed() -> bool:
            runs = await stage.control("runs")
            followed[:] = sorted(posted - before for _, posted, _, _ in runs.values() if posted > before)
            return len(followed) >= count

        with contextlib.suppress(TimeoutError):  # then the result says how many there are
            await until(all_followed, f"{count} jobs followed", seconds=_PATIENCE, every=0.5)
        report, usage = await stage.report(), worker.program.usage()
        report["lag"] = (await stage.lag(worker)).summary()
        report["wandb"]["latency"] = {}  # these lines had been waiting for a worker
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
        judged=(at_most("restart", after, 30.0, f"{after:.1f} s", and_also=done),) if count == 1000 else (),
        steady=False,
        numbers={"ready_after": ready_after, "all_followed_after": after if done else None},
        samples={"followed": followed},
    )


def memory_judged(count: int, mebibytes: float) -> list[Judged]:
    """Also of jobs that print: they run as well. Nothing where no goal is about so many."""
    if count not in _MEMORY:
        return []
    goal, limit = _MEMORY[count]
    return [at_most(goal, mebibytes, limit, f"{mebibytes:.0f} MiB")]


async def _quiet(stage: Stage, worker: Worker, count: int, seconds: float, silence: float) -> Measurement:
    await caught_up(stage)
    # Meanwhile the states of all jobs are listed once after an adoption: a page is a hundred of them.
    await asyncio.sleep(silence)
    report, usage = await window(stage, worker, seconds)
    rate = sagemaker_rate(report)
    rss = usage.rss_max / (1 << 20)
    judged = memory_judged(count, rss)
    if count == 1000:
        judged += [
            at_most("cpu", usage.cpu_share, 0.05, f"{usage.cpu_share:.1%}"),
            at_most("calls", rate, 0.5, f"{rate:.2f}/s"),
        ]
    return measurement_of(
        f"{count} jobs, quiet",
        WORKER,
        report,
        usage,
        result=f"{rss:.0f} MiB, {usage.cpu_share:.1%} of a core, {rate:.2f} SageMaker calls/s",
        judged=tuple(judged),
        numbers={"sagemaker_calls_per_second": rate},
    )


async def _printing(
    stage: Stage, worker: Worker, count: int, per_second: float, *, seconds: float, settle: float
) -> Measurement:
    await stage.control("print", per_second=per_second)
    await asyncio.sleep(settle)
    report, usage = await window(stage, worker, seconds)
    await stage.control("print", per_second=0)
    lost = await caught_up(stage)
    report = await with_end(stage, report)
    p95 = report["wandb"]["latency"]["p95"]
    judged = memory_judged(count, usage.rss_max / (1 << 20))
    if count == 1000 and per_second == 1:
        whole = p95 is not None and all_there(report, lost)
        judged += [
            at_most("latency", p95 or 0.0, 5.0, f"{p95} s", and_also=whole),
            at_most("cpu-printing", usage.cpu_share, 0.30, f"{usage.cpu_share:.0%}"),
        ]
    return measurement_of(
        f"{count} jobs at {per_second:g} lines/s",
        WORKER,
        report,
        usage,
        result=f"p95 {p95} s, {usage.cpu_share:.0%} of a core",
        judged=tuple(judged),
        lost=lost,
        numbers={"lines_per_second": report["wandb"]["lines_window"] / report["seconds"]},
    )
