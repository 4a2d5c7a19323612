"""What is told of a job beside its log: the request from wherever it is to be had, alerts once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.leg2 import story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import record
from worker.clients.wandb_api import WandbRefused
from worker.errors import Never, Unreachable
from worker.launch.record import JobFacts, LaunchRecord
from worker.ledger.held import HeldLaunch
from worker.training.status import ending


async def saved() -> None:
    """The record is durable."""


class Bench:
    def __init__(self, launch: LaunchRecord | None = None) -> None:
        self.companion, self.sagemaker = FakeCompanion(), FakeSageMaker()
        self.story = story_of(self.companion, self.sagemaker)
        self.held = HeldLaunch(launch or record())

    async def end(self, facts: JobFacts) -> None:
        self.held.update(facts=facts)
        end = ending(facts, stop_reason=self.held.record.stop_reason)
        await self.story.end(self.held, end, saved)


async def test_the_request_of_an_adopted_job_is_what_sagemaker_describes() -> None:
    bench = Bench()
    described = {
        "TrainingJobName": "job-1",
        "CreationTime": datetime.now(UTC),
        "Environment": {"WANDB_API_KEY": "k" * 40, "A": "b"},
    }
    bench.sagemaker.descriptions["job-1"] = described
    await bench.story.open(bench.held)
    (config,) = bench.companion.opened
    assert config["sagemaker/request"] == {"TrainingJobName": "job-1", "Environment": {"A": "b"}}
    await bench.story.open(bench.held)
    assert len(bench.companion.opened) == 1, "the ledger says that it is open"


async def test_a_deleted_job_has_a_companion_too() -> None:
    bench = Bench()
    bench.sagemaker.description_errors = [Never("gone", code="LW-JOB-GONE")]
    await bench.story.open(bench.held)
    (config,) = bench.companion.opened
    assert "sagemaker/request" not in config


async def test_a_failure_is_an_alert_once_also_when_the_end_is_told_again() -> None:
    bench = Bench()
    failed = JobFacts("Failed", "Failed", "AlgorithmError: no, exit code: 2")
    bench.companion.errors = []
    await bench.end(failed)
    bench.held.update(end_told=0)
    await bench.end(failed)
    assert bench.companion.alerts == [
        ("launch-1", "ERROR", "job-1: failed", "LW-JOB-FAILED: AlgorithmError: no, exit code: 2")
    ]
    assert bench.held.record.alerted == ("failure",)


@pytest.mark.parametrize(
    ("facts", "stop_reason"),
    [
        (JobFacts("Completed", "Completed"), ""),
        (JobFacts("Stopped", "Stopped"), "Stop was pressed in W&B, in the companion run."),
        (JobFacts("Stopped", "Stopped"), ""),
        (JobFacts("Completed", "Completed"), "It did not start within 60 s (LAUNCH_START_TIMEOUT): Pending."),
    ],
)
async def test_what_somebody_wanted_is_no_alert(facts: JobFacts, stop_reason: str) -> None:
    bench = Bench(record(stop_reason=stop_reason))
    await bench.end(facts)
    assert bench.companion.alerts == []


async def test_an_alert_that_wandb_refuses_holds_nothing_up_and_one_that_got_lost_is_sent_again() -> None:
    bench = Bench()
    failed = JobFacts("Failed", "Failed", "no")
    bench.companion.errors = [Unreachable("W&B is away")]
    with pytest.raises(Unreachable):
        await bench.end(failed)
    bench.companion.errors = [WandbRefused("no alerts here", status=200)]
    await bench.end(failed)
    assert len(bench.companion.finished) == 1
