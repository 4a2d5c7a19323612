"""W&B refuses for good: a launch whose job has ended is finished in the ledger, and says what was not told."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.records import record
from tests.unit.test_supervisor import COMPLETED, TRAINING, Bench, unlogged
from tests.unit.waiting import until
from worker.clients.wandb_api import WandbRefused
from worker.launch.record import LaunchRecord, LaunchState
from worker.persistence import Persistence

REFUSED = WandbRefused("file_stream: W&B answered 403: no access", status=403)
PATIENCE = 0.3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("supervisor", "submission", "ledger.adoption", "delivery.read_trouble", "persistence"):
        monkeypatch.setattr(f"worker.{module}.backoff", lambda *_, **__: 0.002)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    patience = Persistence(made.metrics, PATIENCE)
    made.supervisor._persistence = made.supervisor._watch._persistence = patience
    made.supervisor._delivery._posting.persistence = patience
    return made


async def adopted(bench: Bench, launch: LaunchRecord) -> None:
    """A running launch that another worker has released; to be called before this one runs."""
    bench.sagemaker.jobs[launch.job_name] = launch.facts
    await bench.ledger.create(launch)


async def finished(bench: Bench) -> LaunchRecord:
    await until(lambda: "launch-1" not in bench.held)
    stored = await bench.ledger.read("launch-1")
    assert stored is not None
    assert stored.state is LaunchState.FINISHED
    assert stored.facts == COMPLETED
    assert bench.ended("completed") == 1
    return stored


async def test_a_companion_that_cannot_be_opened(bench: Bench) -> None:
    bench.companion.down = REFUSED
    await adopted(bench, record(facts=TRAINING, owner=""))
    async with bench.running():
        await asyncio.sleep(2 * PATIENCE)
        assert "launch-1" in bench.held, "the job runs: it is tried on"
        bench.now("job-1", COMPLETED)
        stored = await finished(bench)
    assert stored.log.undelivered.startswith("open_companion: file_stream: W&B answered 403")


async def test_a_log_that_is_refused_to_the_end(bench: Bench) -> None:
    await adopted(bench, record(facts=TRAINING, owner=""))
    async with bench.running():
        await until(lambda: bench.companion.opened)
        bench.companion.down = REFUSED
        bench.cloud.put("job-1/algo-1-1700000000", "never told")
        bench.now("job-1", COMPLETED)
        stored = await finished(bench)
    assert stored.log.undelivered.startswith("log_delivery:")
    assert stored.log.next_line == 1, "how much there was"


async def test_an_end_that_cannot_be_told(bench: Bench) -> None:
    await adopted(bench, unlogged(facts=TRAINING, owner=""))
    async with bench.running():
        await until(lambda: bench.companion.opened)
        bench.companion.down = REFUSED
        bench.now("job-1", COMPLETED)
        stored = await finished(bench)
    assert stored.log.undelivered.startswith("finish_companion:")
    assert 'launch_given_up_total{step="finish_companion"} 1.0' in bench.metrics.text().decode()


async def test_what_the_ledger_has_to_know_is_never_given_up(bench: Bench) -> None:
    await bench.hold(unlogged(facts=TRAINING))
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await until(lambda: bench.companion.finished)
        bench.ledger.failing = REFUSED
        await asyncio.sleep(2 * PATIENCE)
        bench.ledger.failing = None
        await finished(bench)
