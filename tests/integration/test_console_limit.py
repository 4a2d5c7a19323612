"""A job that prints more lines than W&B keeps, through the whole delivery, to a W&B that refuses one line more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, WORKER, record
from tests.unit.waiting import until
from worker.aio import Breather
from worker.clients import wandb_pace
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, wandb_api
from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.launch.record import JobFacts, LaunchRecord
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_strict import CONSOLE_LINES, Strictness
from worker.ops.metrics import Metrics
from worker.tracking.companion import CompanionRuns
from worker.tracking.facts import RunFacts

TOTAL = CONSOLE_LINES + 400
STREAM = "job-1/algo-1-1700000000"
LAUNCH = record(metrics=(("last", r"last=(\d+)"),), facts=JobFacts("InProgress", "Training"))


@pytest.fixture
async def double(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WandbDouble]:
    monkeypatch.setattr(wandb_pace, "RUN_INTERVAL", 0.005)
    async with running_wandb_double(entity="acme") as running:
        running.strict = Strictness(writers=True, console_lines=CONSOLE_LINES, revives=True)
        yield running


@pytest.fixture
async def api(double: WandbDouble) -> AsyncIterator[WandbApi]:
    async with wandb_api(double.base_url, ApiKey("k" * 40), Metrics()) as opened:
        yield opened


@dataclass
class Worker:
    """One worker's delivery."""

    ledger: MemoryLedger
    cloud: CloudWatch
    runs: CompanionRuns
    name: str

    def __post_init__(self) -> None:
        metrics, feed = Metrics(), FakeLogFeed(self.cloud)
        self.held = HeldLaunches(self.ledger, self.name, metrics)
        parts = Posting(held=self.held, feed=feed, companion=self.runs, metrics=metrics, breather=Breather())
        self.delivery = LogDelivery(
            feed=feed,
            held=self.held,
            posting=parts,
            closing=Closing(feed=feed, posting=parts, companion=self.runs),
            breather=Breather(),
            interval=0.005,
            quiet=0.05,
            drain_limit=60.0,
        )
        self.delivered = asyncio.Event()
        self._task = asyncio.ensure_future(self.delivery.run(lambda _: self.delivered.set()))

    def follow(self, launch: LaunchRecord) -> HeldLaunch:
        held = HeldLaunch(launch)
        self.held.add(held)
        self.delivery.follow(held)
        return held

    def kill(self) -> None:
        self._task.cancel()


async def test_the_console_says_once_where_the_rest_is_and_the_files_have_it_all(
    double: WandbDouble, api: WandbApi
) -> None:
    printed = [*map(str, range(TOTAL - 2)), "last=1", "last=2"]
    ledger, cloud, runs = MemoryLedger(), CloudWatch(), CompanionRuns(api, project="")
    cloud.put(STREAM, *printed[:60_000])
    await runs.open(LAUNCH, RunFacts({}))
    await ledger.create(LAUNCH)
    first = Worker(ledger, cloud, runs, WORKER)
    first.follow(LAUNCH)
    run = double.run("acme", "vision", "run-launch-1-sagemaker")
    assert run is not None
    await until(lambda: len(run.console()) >= 20_000, limit=60)
    first.kill()  # in the middle of a batch, most likely
    seen = await ledger.read(LAUNCH.launch_id)
    assert seen is not None
    claimed = await ledger.claim(seen, OTHER)
    assert claimed is not None
    second = Worker(ledger, cloud, runs, OTHER)
    held = second.follow(claimed)
    cloud.put(STREAM, *printed[60_000:])
    held.update(facts=replace(held.record.facts, status="Completed"))
    second.delivery.job_ended(held)
    async with asyncio.timeout(60):
        await second.delivered.wait()
    second.kill()
    assert (run.refused, run.overwrites, run.holes()) == ([], [], {})
    console = run.console_text()
    assert console[:-1] == printed[: CONSOLE_LINES - 1]
    assert "the whole log is in Files, under logs/" in console[-1]
    assert held.record.log.next_line == TOTAL
    files = b"".join(content for _, content in sorted(run.files.items())).decode()
    assert re.findall(r"^\S+ (.*)$", files, re.MULTILINE) == printed
    assert [row["last"] for row in run.history()] == [1.0, 2.0], "metrics go on behind the limit"
