"""Windows over a steady program, and measurements made of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from bench.lag import LoopLag
from bench.measurement import WORKER, Judged, Measurement, at_most, mib
from bench.programs import Usage
from bench.stage import Json, Stage, Worker

_SAGEMAKER = ("CreateTrainingJob", "DescribeTrainingJob", "ListTrainingJobs", "StopTrainingJob")
_LONGEST_STALL = 0.05
_POSTS_OF_RUN, _POSTS_OF_PROJECT = 2, 500
"""What W&B documents for its dedicated servers, a second."""


class Window:
    """A stretch of a worker's life: what the simulator counted, what the program used, how late its loop was."""

    def __init__(self, stage: Stage, worker: Worker, lag: LoopLag) -> None:
        self._stage = stage
        self._worker = worker
        self._lag = lag

    @classmethod
    async def begin(cls, stage: Stage, worker: Worker) -> Window:
        """Count from now on."""
        lag = await stage.lag(worker)
        await stage.control("window")
        worker.program.begin_window()
        return cls(stage, worker, lag)

    async def end(self) -> tuple[Json, Usage]:
        """What there was; the simulator's report has the event loop's lag beside its own."""
        report, usage = await self._stage.report(), self._worker.program.usage()
        lag = (await self._stage.lag(self._worker)).since(self._lag)
        return {**report, "lag": lag.summary()}, usage


async def window(stage: Stage, worker: Worker, seconds: float) -> tuple[Json, Usage]:
    """Let the worker run for a while."""
    opened = await Window.begin(stage, worker)
    await asyncio.sleep(seconds)
    return await opened.end()


def measurement_of(
    scenario: str,
    program: str,
    report: Json,
    usage: Usage,
    *,
    result: str,
    judged: tuple[Judged, ...] = (),
    steady: bool = True,
    lost: int = 0,
    numbers: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    samples: Mapping[str, tuple[float, ...]] | None = None,
) -> Measurement:
    """The usual numbers, and the scenario's own. `steady`: not a start, so that the event loop's lag is judged."""
    wandb = report["wandb"]
    lag: Mapping[str, float] = report.get("lag") or {}
    if program == WORKER and wandb["requests"]:
        judged = (*judged, *posts_judged(wandb["most_posts_a_second"], scenario))
    if steady and lag and wandb["lines_window"]:
        judged = (*judged, at_most("lag", lag["max"], _LONGEST_STALL, f"{_lag(lag)}, {scenario}"))
    return Measurement(
        scenario=scenario,
        program=program,
        result=result,
        judged=judged,
        seconds=report["seconds"],
        calls=report["calls"],
        throttled=report["throttled"],
        rss_mib=mib(usage.rss_max),
        pss_mib=mib(usage.pss_max),
        cpu=usage.cpu_share,
        simulator_cpu=report["cpu_seconds"] / report["seconds"],
        latency=wandb["latency"],
        lines=wandb["lines_window"],
        lost=lost + wandb["holes"] + wandb["missing"],
        doubled=wandb["doubled"] + wandb["overwritten"],
        lag=lag,
        numbers={
            "waited": usage.waited_share,
            "processes": usage.processes,
            "threads": usage.threads,
            "descriptors": usage.descriptors,
            "wandb_requests": wandb["requests"],
            "most_posts_a_second": wandb["most_posts_a_second"],
            **(numbers or {}),
        },
        notes=notes,
        samples=samples or {},
    )


def posts_judged(most: Mapping[str, int], scenario: str) -> tuple[Judged, Judged]:
    """Kept when neither a run nor the project had more posts in a second than W&B allows."""
    run, project = most["run"], most["project"]
    return (
        at_most("posts-run", run, _POSTS_OF_RUN, f"{run}, {scenario}"),
        at_most("posts-project", project, _POSTS_OF_PROJECT, f"{project}, {scenario}"),
    )


def _lag(lag: Mapping[str, float]) -> str:
    return f"≤ {lag['max'] * 1000:.0f} ms (99 % of looks ≤ {lag['p99'] * 1000:.0f} ms)"


def sagemaker_rate(report: Json) -> float:
    """SageMaker calls a second."""
    calls: float = sum(report["calls"].get(api, 0) for api in _SAGEMAKER)
    return calls / float(report["seconds"])


def all_there(report: Json, lost: int) -> bool:
    """No line was lost, none doubled."""
    wandb = report["wandb"]
    wrong = ("holes", "missing", "doubled", "overwritten")
    return not lost and not any(wandb[name] for name in wrong)


async def caught_up(stage: Stage, *, patience: float = 60.0, every: float = 0.5) -> int:
    """Wait until W&B has every line that was printed; returns how many it still lacks after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        report = await stage.report()
        lacking: int = report["lines_in_cloudwatch"] - report["wandb"]["lines"]
        if lacking <= 0 or time.monotonic() > deadline:
            return max(0, lacking)
        await asyncio.sleep(every)


async def with_end(stage: Stage, report: Json) -> Json:
    """A window's report with what is known of its lines now that all have come."""
    within, now = report["wandb"], (await stage.report())["wandb"]
    kept = ("latency", "lines_window", "requests", "most_posts_a_second")
    return {**report, "wandb": {**now, **{name: within[name] for name in kept}}}
