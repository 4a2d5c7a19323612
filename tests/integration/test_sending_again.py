"""`launch-worker retry` of launches that were training jobs, against SageMaker's API and a ledger that others write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.aws_server import AwsError, AwsServer
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, REQUEST, record
from worker.clients.aws import AwsClients
from worker.errors import Never
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, PastAttempt
from worker.operating.sending_again import CannotRetry, SendingAgain
from worker.settings import load_settings
from worker.training.request import worker_tags
from worker.training.retry import next_attempt

NO_CAPACITY = JobFacts("Failed", "Failed", "CapacityError: no machine")
OVER = record(
    state=LaunchState.FINISHED, owner="", facts=NO_CAPACITY, job_arn="arn:job-1", retries={"capacity": 1}
)
CAPACITY = PastAttempt("job-1", "ml.m5.large", "capacity", "no machine")


class Overtaken(MemoryLedger):
    """Another claim comes between our claim and our save."""

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        claimed = await super().claim(seen, worker)
        if claimed is not None:
            await super().claim(claimed, OTHER)
        return claimed


async def sent_again(ledger: MemoryLedger, aws: AwsClients, given: LaunchRecord = OVER) -> LaunchRecord:
    """What the ledger has then."""
    await ledger.create(given)
    await SendingAgain(ledger, aws, load_settings(None, {})).retry(given.launch_id)
    kept = await ledger.read(given.launch_id)
    assert kept is not None
    return kept


@pytest.fixture
def described(aws_server: AwsServer) -> AwsServer:
    aws_server.answers["DescribeTrainingJob"] = lambda _: {**REQUEST, "TrainingJobName": "job-1"}
    aws_server.answers["ListTags"] = lambda _: {"Tags": [{"Key": "team", "Value": "vision"}]}
    return aws_server


@pytest.mark.usefixtures("described")
async def test_the_request_is_that_of_the_job_before_with_its_tags(aws: AwsClients) -> None:
    kept = await sent_again(MemoryLedger(), aws)
    assert (kept.state, kept.attempt, kept.owner) == (LaunchState.WAITING, 2, "")
    assert kept.request is not None
    assert kept.request["Tags"] == [{"Key": "team", "Value": "vision"}]
    assert next_attempt(_ended(kept)) is not None


async def test_of_a_job_whose_tags_are_refused_the_workers_own_are_kept(
    aws: AwsClients, described: AwsServer
) -> None:
    described.fail_next("ListTags", AwsError("AccessDeniedException", "no"))
    kept = await sent_again(MemoryLedger(), aws)
    assert kept.request is not None
    ours = worker_tags(OVER.run.run_id, OVER.launch_id, "default")
    assert {tag["Key"]: tag["Value"] for tag in kept.request["Tags"]} == ours


async def test_a_job_that_somebody_deleted_cannot_be_repeated(aws: AwsClients, aws_server: AwsServer) -> None:
    gone = AwsError("ValidationException", "Requested resource not found.")
    aws_server.fail_next("DescribeTrainingJob", gone)
    ledger = MemoryLedger()
    with pytest.raises(Never) as refused:
        await sent_again(ledger, aws)
    assert refused.value.code == "LW-JOB-GONE"
    assert await ledger.read(OVER.launch_id) == OVER, "nothing has changed"


@pytest.mark.usefixtures("described")
async def test_a_save_that_another_claim_has_overtaken_changes_nothing(aws: AwsClients) -> None:
    ledger = Overtaken()
    with pytest.raises(CannotRetry, match="somebody else is sending"):
        await sent_again(ledger, aws)
    assert await ledger.read(OVER.launch_id) == replace(OVER, owner=OTHER, epoch=3)


async def test_after_an_attempt_that_was_given_up_each_kind_counts_anew(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    given_up = replace(
        OVER,
        attempt=2,
        job_name="job-1-r2",
        previous_job="job-1",
        attempts=(CAPACITY,),
        request={**REQUEST, "TrainingJobName": "job-1-r2"},
        given_up="it waited for LAUNCH_MAX_WAIT.",
    )
    kept = await sent_again(MemoryLedger(), aws, given_up)
    assert aws_server.requests("DescribeTrainingJob") == [], "its request was never sent"
    assert kept.request is not None
    assert (kept.attempt, kept.request["TrainingJobName"]) == (3, kept.job_name)
    assert [(past.job_name, past.kind) for past in kept.attempts] == [("job-1", "by hand")]
    following = next_attempt(_ended(kept))
    assert following is not None, "LAUNCH_RETRY counts anew"
    assert following.kind == "capacity"


def _ended(kept: LaunchRecord) -> LaunchRecord:
    """Its new job wanted capacity as well."""
    return replace(kept, state=LaunchState.ACCEPTED, facts=NO_CAPACITY, request=None)
