"""W&B's own agent, unmodified, against the same simulator: what it can do at all, in bounded time.

Its W&B side is the project's W&B double; it takes its work from a W&B queue there, as it always does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp

from bench.launches import ENTITY, QUEUE, names, run_spec
from bench.measurement import AGENT, Judged, Measurement, mib
from bench.programs import PROGRAM_CORE, SIMULATOR_CORE, Program, Usage, running_program
from bench.scenarios.windows import measurement_of, sagemaker_rate
from bench.stage import Json, Stage, until

_CONFIG = {
    "entity": ENTITY,
    "queues": [QUEUE],
    "max_jobs": -1,
    "environment": {"type": "aws", "region": "us-east-1"},
    "builder": {"type": "noop"},
}
"""launch-config.yaml; JSON is YAML."""
_IDLE = 5.0
"""Seconds in which it is measured without any job."""


async def agent(stage: Stage, *, count: int, seconds: float) -> list[Measurement]:
    """A burst without a quota, the jobs of it running; then a burst under the quota, for as long as its size takes."""
    await stage.fresh(CreateTrainingJob=None)
    async with _agent(stage, "free") as polling:
        program = polling.program
        cpu = program.usage().cpu_seconds
        started = Judged("start", f"{polling.after:.1f} s until it polls, {cpu:.1f} s CPU")
        program.begin_window()
        await asyncio.sleep(_IDLE)
        idle = program.usage()
        free = await _burst(stage, program, polling.url, count, quota=None)
        await asyncio.sleep(10)
        running = await _running(stage, polling, count, seconds, idle)
    await stage.fresh()
    async with _agent(stage, "quota") as polling:
        bounded = await _burst(stage, polling.program, polling.url, count, quota=1.0)
    return [replace(free, judged=(*free.judged, started)), running, bounded]


@dataclass(frozen=True, slots=True)
class _Polling:
    """The agent, once it polls its queue."""

    program: Program
    url: str
    """Of its W&B."""
    after: float
    """Seconds since its start."""


async def _burst(stage: Stage, program: Program, url: str, count: int, *, quota: float | None) -> Measurement:
    await stage.control("window")
    program.begin_window()
    sent_at = float((await stage.control("time"))["now"])
    await _post(
        url, "queue", entity=ENTITY, queue=QUEUE, specs=[run_spec(name) for name in names("agent", count)]
    )
    failed: list[int] = [0]

    async def settled() -> bool:
        failed[0] = (await _states(url)).get("FAILED", 0)
        return len((await stage.report())["created_at"]) + failed[0] >= count

    patience = count * 2.0 + 30
    with contextlib.suppress(TimeoutError):  # then the result says how many there are
        await until(settled, f"{count} items settled", seconds=patience, every=1.0)
    report, usage = await stage.report(), program.usage()
    created = [at - sent_at for at in report["created_at"]]
    rate = len(created) / max(created, default=patience)
    name = f"burst of {count}, quota {quota:g}/s" if quota else f"burst of {count}, no quota"
    words = f"{rate:.2f} submits/s, {failed[0]} of {count} failed"
    return measurement_of(
        name,
        AGENT,
        report,
        usage,
        result=words,
        judged=(Judged("quota" if quota else "submits", words),),
        numbers={"submits_per_second": rate, "failed": failed[0]},
        notes=(f"{count} items: it takes one after the other",),
        samples={"created": tuple(created)},
    )


async def _running(stage: Stage, polling: _Polling, count: int, seconds: float, idle: Usage) -> Measurement:
    program = polling.program
    await stage.control("window")
    program.begin_window()
    await asyncio.sleep(seconds)
    report, usage = await stage.report(), program.usage()
    rate = sagemaker_rate(report)
    failed = (await _states(polling.url)).get("FAILED", 0)
    return measurement_of(
        f"{count} jobs, quiet",
        AGENT,
        report,
        usage,
        result=_quiet_result(usage, rate),
        judged=_far(count, rate, idle, usage),
        numbers={
            "sagemaker_calls_per_second": rate,
            "mib_per_job": mib(round((usage.pss_max - idle.pss_max) / count)),
            "extrapolated": {
                "gib_at_1000": at_jobs(1000, count, idle.pss_max, usage.pss_max) / (1 << 30),
                "sagemaker_calls_at_1000": at_jobs(1000, count, 0.0, rate),
            },
        },
        notes=(
            "for 1,000 jobs multiplied from this many: it cannot hold them on this machine",
            f"calls with its retries; {failed} of {count} items have failed by the end, though their jobs run on",
        ),
    )


def at_jobs(wanted: int, count: int, idle: float, busy: float) -> float:
    """What `wanted` jobs would cost by what none (`idle`) and `count` jobs (`busy`) do: a job's share grows."""
    return idle + (busy - idle) / count * wanted


def _far(count: int, rate: float, idle: Usage, busy: Usage) -> tuple[Judged, ...]:
    """What 1,000 and 5,000 jobs would cost it, multiplied from `count`."""
    from_this = f"from {count} jobs"
    gib = {wanted: at_jobs(wanted, count, idle.pss_max, busy.pss_max) / (1 << 30) for wanted in (1000, 5000)}
    cpu = at_jobs(1000, count, idle.cpu_share, busy.cpu_share)
    return (
        Judged("memory", f"{gib[1000]:.1f} GiB, {from_this}"),
        Judged("memory-5000", f"{gib[5000]:.0f} GiB, {from_this}"),
        Judged("cpu", f"{cpu:.0%}, {from_this} ({busy.cpu_share:.0%})"),
        Judged("calls", f"wants {at_jobs(1000, count, 0.0, rate):.0f}/s, {from_this} ({rate:.1f}/s)"),
    )


def _quiet_result(usage: Usage, rate: float) -> str:
    memory = usage.rss_max / (1 << 20)
    return f"{memory:.0f} MiB, {usage.cpu_share:.0%} of a core, {rate:.2f} SageMaker calls/s"


@contextlib.asynccontextmanager
async def _agent(stage: Stage, name: str) -> AsyncIterator[_Polling]:
    config = stage.folder / "launch-config.yaml"
    await asyncio.to_thread(config.write_text, json.dumps(_CONFIG))
    async with _wandb(stage, name) as url:
        await _post(url, "queue", entity=ENTITY, queue=QUEUE, specs=[])
        folder = stage.folder / f"agent-{name}"
        folder.mkdir()
        environment = {
            **stage.aws_environment,
            "HOME": str(folder),
            "WANDB_BASE_URL": url,
            "WANDB_DIR": str(folder),
        }
        command = (sys.executable, "-m", "wandb", "launch-agent", "-c", str(config))
        async with running_program(
            command, environment=environment, folder=folder, name="agent", core=PROGRAM_CORE
        ) as program:

            async def polling() -> bool:
                if not program.alive:
                    raise RuntimeError(f"the agent ended; see {program.output}")
                return bool((await _get(url, "stats"))["counts"].get("graphql:popFromRunQueue"))

            await until(polling, "the agent polls its queue", seconds=90)
            yield _Polling(program, url, time.monotonic() - program.started_at)


@contextlib.asynccontextmanager
async def _wandb(stage: Stage, name: str) -> AsyncIterator[str]:
    environment = {**stage.aws_environment}
    async with running_program(
        (sys.executable, "-m", "bench.wandb_server", "0.1"),
        environment=environment,
        folder=stage.folder,
        name=f"wandb-{name}",
        core=SIMULATOR_CORE,
    ) as server:

        async def address() -> str:
            text = await asyncio.to_thread(server.output.read_text)
            return text.split()[0] if "\n" in text else ""

        yield await until(address, "the W&B double listens")


async def _states(url: str) -> dict[str, int]:
    """How many queue items are in each state."""
    found: dict[str, int] = {}
    for queue in (await _get(url, "state?console=0"))["queues"].values():
        for item in queue["items"]:
            found[item["state"]] = found.get(item["state"], 0) + 1
    return found


async def _post(url: str, what: str, **body: object) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/_double/{what}", json=body) as answer:
        answer.raise_for_status()


async def _get(url: str, what: str) -> Json:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/_double/{what}") as answer:
        found: Json = await answer.json()
        return found
