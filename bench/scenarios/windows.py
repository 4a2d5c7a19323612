"""Windows over a steady program, and measurements made of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from bench.measurement import Measurement, Target, mib
from bench.programs import Program, Usage
from bench.stage import Json, Stage

_SAGEMAKER = ("CreateTrainingJob", "DescribeTrainingJob", "ListTrainingJobs", "StopTrainingJob")


async def window(stage: Stage, program: Program, seconds: float) -> tuple[Json, Usage]:
    """Let the program run for a while; what the simulator counted and what the program used meanwhile."""
    await stage.control("window")
    program.begin_window()
    await asyncio.sleep(seconds)
    return await stage.report(), program.usage()


def measurement_of(
    scenario: str,
    program: str,
    report: Json,
    usage: Usage,
    *,
    result: str,
    target: Target | None = None,
    lost: int = 0,
    numbers: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    samples: Mapping[str, tuple[float, ...]] | None = None,
) -> Measurement:
    """The usual numbers, and the scenario's own."""
    wandb = report["wandb"]
    return Measurement(
        scenario=scenario,
        program=program,
        result=result,
        target=target,
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
        numbers={
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


def sagemaker_rate(report: Json) -> float:
    """SageMaker calls a second."""
    calls: float = sum(report["calls"].get(api, 0) for api in _SAGEMAKER)
    return calls / float(report["seconds"])


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
