"""Many launches of code at once: builds run side by side, and each image is made once, whoever asks for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.e2e.audit import ended, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.code import CodeBench, code_bench, reached, running_gate
from tests.e2e.launches import LaunchCase, numbered
from worker.launch.record import LaunchState

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(200)]

AT_ONCE = "8"
"""Containers at a time, for the sake of two cores."""


async def test_ten_builds_at_once(bench: Bench) -> None:
    """All of them are in their last step at one time."""
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        cases = []
        for number in range(10):
            lines = numbered(1, f"source {number}")
            files = {**code.script(lines), "Dockerfile": code.dockerfile(gate.step)}
            cases.append(code.launch(await code.upload(files), lines, dockerfile="Dockerfile"))
        gate.wanted = len(cases)
        worker = await bench.start(slots="20", max_builds="10", max_jobs=AT_ONCE)
        await bench.send(*cases)
        await reached(gate.entered, "ten builds in their last step", 60)
        assert worker.events("image_ready") == []
        gate.opened.set()
        await code.audit(*cases, images=10)
        assert code.builds == 10


async def test_hundred_launches_of_five_sources(bench: Bench) -> None:
    async with code_bench(bench) as code:
        cases = [
            code.launch(uri, log_target="off")
            for uri in [await code.upload(silent(number)) for number in range(5)]
            for _ in range(20)
        ]
        # On a busy machine three seconds pass without a renewal, and a build whose lease is lost is made again.
        worker = await bench.start(slots="40", max_jobs=AT_ONCE, lease="60")
        await asyncio.gather(*(bench.send(case) for case in cases))
        await all_completed(code, *cases, images=5)
        assert code.builds == 5
        assert Counter(event["built"] for event in worker.events("image_ready")) == {True: 5, False: 95}


async def test_two_workers_build_once(shared_bench: Bench) -> None:
    """Both hold launches of one source while it is built: the one waits for the other's build."""
    bench = shared_bench
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        files = {**silent(0), "Dockerfile": code.dockerfile(gate.step)}
        uri = await code.upload(files)
        cases = [code.launch(uri, log_target="off", dockerfile="Dockerfile") for _ in range(6)]
        workers = [await bench.started(slots="3", max_jobs="3") for _ in range(2)]
        await bench.send(*cases)
        await reached(gate.entered, "a build in its last step")
        for worker in workers:
            await worker.wait_for("source_fetched")
        waiting = [worker for worker in workers if not worker.events("build_started")]
        assert len(waiting) == 1
        await waiting[0].wait_for("build_awaited")
        gate.opened.set()
        await all_completed(code, *cases, images=1)
        assert code.builds == 1
        assert Counter(event["built"] for event in code.events("image_ready")) == {True: 1, False: 5}


async def test_dead_builder_is_replaced(shared_bench: Bench) -> None:
    """The worker that builds is killed; the one that waits for it builds, and takes over its launch."""
    bench = shared_bench
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        files = {**silent(0), "Dockerfile": code.dockerfile(gate.step)}
        uri = await code.upload(files)
        cases = [code.launch(uri, log_target="off", dockerfile="Dockerfile") for _ in range(2)]
        builder = await bench.started(slots="1")
        await bench.send(cases[0])
        await reached(gate.entered, "the build is in its last step")
        heir = await bench.started(slots="2")
        await bench.send(cases[1])
        await heir.wait_for("build_awaited")
        await builder.kill()
        gate.opened.set()
        await heir.wait_for("build_lock_replaced")
        await bench.start()  # a dead worker's folders are removed by the next one that starts
        await all_completed(code, *cases, images=1)
        assert code.builds == 2


def silent(number: int) -> dict[str, str]:
    """A source whose job does nothing."""
    return {"train.sh": f"true {number}\n"}


async def all_completed(code: CodeBench, *cases: LaunchCase, images: int) -> None:
    """What `CodeBench.audit` holds of launches whose log nobody wants."""
    await ended(code.bench, *cases)
    await queue_empty(code.bench)
    pushed = {f"{code.registry}@{image.digest}" for image in code.pushed()}
    assert len(pushed) == len(code.pushed()) == images
    for case in cases:
        record = await code.bench.record(case)
        assert record is not None
        assert (record.state, record.failure) == (LaunchState.FINISHED, None)
        assert record.image in pushed
        assert code.bench.jobs(case) == [case.job_name]
        described = await code.bench.clients.sagemaker.describe_training_job(TrainingJobName=case.job_name)
        assert described["TrainingJobStatus"] == "Completed", described
        assert described["AlgorithmSpecification"]["TrainingImage"] == record.image
    await code.nothing_left()
