"""Stop, pressed on the container's own run: many runs in one query, time to end by itself, one stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.unit.records import record
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, wandb_api
from worker.errors import Unreachable
from worker.launch.record import LaunchRecord, RunRef
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_records import DoubleRun, RunKey
from worker.ops.metrics import Metrics
from worker.tracking.run_stops import RunStops, stopped_runs


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    async with running_wandb_double(entity="acme") as running:
        yield running


@pytest.fixture
async def api(double: WandbDouble) -> AsyncIterator[WandbApi]:
    async with wandb_api(double.base_url, ApiKey("k" * 40), Metrics()) as opened:
        yield opened


def make(double: WandbDouble, run: RunRef, *, stopped: bool = False) -> RunRef:
    key = RunKey(run.entity, run.project, run.run_id)
    double.runs[key] = DoubleRun(key, stopped=stopped)
    return run


async def test_a_hundred_runs_are_one_query(double: WandbDouble, api: WandbApi) -> None:
    runs = [make(double, RunRef("acme", "p", f"r{n}"), stopped=n in (3, 77)) for n in range(99)]
    missing = RunRef("acme", "nowhere", "x")
    assert await stopped_runs(api, [*runs, missing]) == {runs[3], runs[77]}
    assert double.counts["graphql:RunStoppedStatuses"] == 1
    (asked,) = double.operations
    assert asked["variables"]["n77"] == "r77"


async def test_one_that_the_server_refuses_fails_no_other(double: WandbDouble, api: WandbApi) -> None:
    runs = [make(double, RunRef("acme", "p", f"r{n}"), stopped=n == 5) for n in range(8)]
    double.refused_runs.add("r2")
    assert await stopped_runs(api, runs) == {runs[5]}


class Bench:
    def __init__(self, api: WandbApi, *records: LaunchRecord, timeout: float = 0.05) -> None:
        self.records = list(records)
        self.current = True
        self.errors: list[Exception] = []
        self.note_errors: list[Exception] = []
        self.stops: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []
        self.stops_of = RunStops(
            api,
            interval=0.03,
            timeout=timeout,
            running=lambda: self.records,
            is_current=lambda: self.current,
        )

    async def stop(self, launch_id: str, reason: str) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        self.stops.append((launch_id, reason))
        self.records = [replace(each, stop_reason=reason) for each in self.records]
        return True

    async def note(self, launch_id: str, reason: str) -> None:
        if self.note_errors:
            raise self.note_errors.pop(0)
        self.noted.append((launch_id, reason))

    async def run(self, seconds: float) -> None:
        task = asyncio.ensure_future(self.stops_of.run(self.stop, self.note))
        await asyncio.sleep(seconds)
        task.cancel()


async def test_a_run_has_its_time_to_end_by_itself(double: WandbDouble, api: WandbApi) -> None:
    launch = record()
    make(double, launch.run, stopped=True)
    bench = Bench(api, launch, timeout=0.4)
    await bench.run(0.3)
    assert bench.stops == []
    reason = "Stop was pressed in W&B, in the run acme/vision/run-launch-1."
    assert bench.noted == [("launch-1", reason)], "should it end by itself, its story knows"
    bench = Bench(api, launch, timeout=0.1)
    await bench.run(0.4)
    assert bench.stops == [("launch-1", "Stop was pressed in W&B, in the run acme/vision/run-launch-1.")]


async def test_trouble_with_wandb_or_sagemaker_is_ridden_out(
    double: WandbDouble, api: WandbApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tracking.run_stops.backoff", lambda *_, **__: 0.01)
    launch = record()
    make(double, launch.run, stopped=True)
    double.fault("RunStopped", status=500, times=2)
    bench = Bench(api, launch)
    bench.errors = [Unreachable("SageMaker is away"), KeyError("an answer nobody foresaw")]
    bench.note_errors = [KeyError("an answer nobody foresaw")]
    await bench.run(0.5)
    assert len(bench.stops) == 1


async def test_nobody_asks_about_runs_that_are_the_workers_own_or_about_jobs_of_others(
    double: WandbDouble, api: WandbApi
) -> None:
    own = record(log_target="run")
    make(double, own.run, stopped=True)
    await Bench(api, own).run(0.15)
    bench = Bench(api, record("launch-2"))
    bench.current = False
    await bench.run(0.15)
    assert double.operations == []


async def test_a_job_that_comes_while_it_waits_is_asked_about_at_once(
    double: WandbDouble, api: WandbApi
) -> None:
    """And not only after another interval."""
    first, second = record("launch-1"), record("launch-2")
    bench = Bench(api, first)
    waiting = asyncio.ensure_future(bench.run(0.3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it has begun to wait
    bench.records.append(second)
    await waiting
    asked = double.operations[0]["variables"]
    assert {asked["n0"], asked["n1"]} == {"run-launch-1", "run-launch-2"}


async def test_each_of_many_runs_has_its_turn(double: WandbDouble, api: WandbApi) -> None:
    bench = Bench(api, *(record(f"launch-{number}") for number in range(250)))
    await bench.run(2.0)
    asked = [operation["variables"] for operation in double.operations[:6]]
    runs = [{one[f"n{number}"] for number in range(100)} for one in asked]
    assert [len(query) for query in runs] == [100] * 6
    assert len(runs[0] | runs[1] | runs[2]) == 250
    assert len(runs[3] | runs[4] | runs[5]) == 250


async def test_those_whose_query_failed_are_asked_about_again_before_a_whole_round(
    double: WandbDouble, api: WandbApi
) -> None:
    double.fault("RunStopped", status=500, times=1)
    bench = Bench(api, *(record(f"launch-{number}") for number in range(950)))
    bench.stops_of._interval = 1.0
    await bench.run(0.85)
    asked = [operation["variables"]["n0"] for operation in double.operations]
    assert asked.count("run-launch-0") == 1, "the first query was not answered, and this is the second"


async def test_the_stop_that_ended_the_attempt_before_is_not_heard_twice(
    double: WandbDouble, api: WandbApi
) -> None:
    launch = record(stopped_before=True)
    run = RunKey(launch.run.entity, launch.run.project, launch.run.run_id)
    make(double, launch.run, stopped=True)
    bench = Bench(api, launch)
    running = asyncio.ensure_future(bench.run(0.8))
    await asyncio.sleep(0.25)
    assert bench.stops == []
    double.runs[run].stopped = False  # its container has resumed it
    await asyncio.sleep(0.15)
    double.runs[run].stopped = True
    await running
    assert len(bench.stops) == 1


async def test_many_runs_are_asked_about_in_few_queries_spread_over_the_interval(
    double: WandbDouble, api: WandbApi
) -> None:
    """A thousand runs are ten queries an interval, whatever happens in them."""
    launches = [record(f"launch-{number}") for number in range(950)]
    for launch in launches:
        make(double, launch.run)
    bench = Bench(api, *launches)
    bench.stops_of._interval = 1.0
    await bench.run(1.15)
    asked = [operation["at"] for operation in double.operations]
    assert 8 <= len(asked) <= 12
    assert asked[7] - asked[0] > 0.5, "not all at once"


async def test_jobs_that_come_at_once_do_not_wait_for_the_round_of_the_few_before_them(
    double: WandbDouble, api: WandbApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at an adoption: ten queries an interval from now on, not from the next interval on."""
    monkeypatch.setattr("worker.tracking.run_stops._STEP", 0.05)
    launches = [record(f"launch-{number}") for number in range(950)]
    for launch in launches:
        make(double, launch.run)
    bench = Bench(api)
    bench.stops_of._interval = 60.0
    running = asyncio.ensure_future(bench.run(0.6))
    await asyncio.sleep(0.1)
    assert double.operations == []
    bench.stops_of._interval = 1.0
    bench.records = launches
    await running
    assert double.operations, "the first of ten an interval"
