"""Which scenarios there are, in full and in short."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.measurement import Measurement
from bench.scenarios.agent import agent
from bench.scenarios.burst import burst
from bench.scenarios.ends import ends
from bench.scenarios.running import printing, quiet
from bench.scenarios.start import start
from bench.scenarios.stops import stops
from bench.scenarios.storm import storm
from bench.scenarios.throughput import live, loud_job, throughput
from bench.stage import Stage

Run = Callable[[Stage], Awaitable[Sequence[Measurement]]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to do."""

    name: str
    what: str
    full: Run
    short: Run


async def _burst(stage: Stage, count: int, quota: float | None) -> list[Measurement]:
    return [await burst(stage, count=count, quota=quota)]


async def _ends(stage: Stage, count: int, seconds: float) -> list[Measurement]:
    return [await ends(stage, count=count, seconds=seconds)]


async def _start(stage: Stage, times: int) -> list[Measurement]:
    return [await start(stage, times=times)]


async def _loud(stage: Stage, seconds: float) -> list[Measurement]:
    return [await loud_job(stage, per_second=5000, seconds=seconds)]


async def _throughput(stage: Stage, lines: int, seconds: float) -> list[Measurement]:
    return [
        await throughput(stage, jobs=100, lines=lines),
        await live(stage, jobs=100, per_second=_LIVE, seconds=seconds),
    ]


_LIVE = 22_000
"""Lines a second: a little more than is promised, so that what is promised can be seen."""

SCENARIOS = (
    Scenario(
        "start",
        "a worker with nothing to do, until it is ready",
        full=lambda stage: _start(stage, 5),
        short=lambda stage: _start(stage, 3),
    ),
    Scenario(
        "burst",
        "300 launches at once, no quota",
        full=lambda stage: _burst(stage, 300, None),
        short=lambda stage: _burst(stage, 100, None),
    ),
    Scenario(
        "quota",
        "300 launches at once, CreateTrainingJob 1/s",
        full=lambda stage: _burst(stage, 300, 1.0),
        short=lambda stage: _burst(stage, 15, 1.0),
    ),
    Scenario(
        "thousand",
        "1,000 jobs: restart, quiet, 1 and 10 lines/s each, restart",
        full=lambda stage: printing(stage, count=1000, seconds=30, rates=(1.0, 10.0)),
        short=lambda stage: printing(stage, count=200, seconds=6, rates=(1.0,), settle=3, silence=3),
    ),
    Scenario(
        "ends",
        "1,000 jobs that print, and end at once",
        full=lambda stage: _ends(stage, 1000, 5),
        short=lambda stage: _ends(stage, 100, 3),
    ),
    Scenario(
        "loud",
        "one job at 5,000 lines/s",
        full=lambda stage: _loud(stage, 15),
        short=lambda stage: _loud(stage, 5),
    ),
    Scenario(
        "throughput",
        "lines through one worker, spread over 100 jobs: waiting, and as they come",
        full=lambda stage: _throughput(stage, 10_000, 20),
        short=lambda stage: _throughput(stage, 1_000, 5),
    ),
    Scenario(
        "crowd",
        "5,000 jobs, quiet",
        full=lambda stage: quiet(stage, count=5000, seconds=30),
        short=lambda stage: quiet(stage, count=500, seconds=6, silence=3),
    ),
    Scenario(
        "stops",
        "1,000 jobs, and Stop pressed in W&B",
        full=lambda stage: stops(stage, count=1000, each=10),
        short=lambda stage: stops(stage, count=100, each=2, heartbeat=10),
    ),
    Scenario(
        "storm",
        "builds of many sources at once, with docker",
        full=lambda stage: storm(stage, count=20),
        short=lambda stage: storm(stage, count=4),
    ),
    Scenario(
        "agent",
        "W&B's agent: a burst, its jobs, a burst under the quota",
        full=lambda stage: agent(stage, count=25, seconds=20),
        short=lambda stage: agent(stage, count=5, seconds=10),
    ),
)
