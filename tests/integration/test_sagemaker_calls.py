"""CreateTrainingJob, DescribeTrainingJob and StopTrainingJob on the wire: what is ours, what is not, what is gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.aws_server import AwsError, AwsServer, HangUp, quick_rates
from tests.unit.launches import message, request_of
from worker.aio import observe_effects
from worker.clients.aws import AwsClients, AwsDenied, AwsRefused
from worker.errors import Never, Throttled, Unreachable
from worker.launch.record import JobFacts
from worker.training.sagemaker import Created, QuotaExceeded, QuotaTooSmall, SageMaker, TrainingJob

ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/job"
REQUEST = request_of(message(run_id="job"))


@pytest.fixture
def sagemaker(aws: AwsClients) -> SageMaker:
    return SageMaker(aws.sagemaker, quick_rates())


def existing(launch_id: str | None, status: str = "InProgress") -> dict[str, Any]:
    """DescribeTrainingJob of a job with that name."""
    return {
        "TrainingJobName": "job",
        "TrainingJobArn": ARN,
        "TrainingJobStatus": status,
        "SecondaryStatus": "Training",
        "Environment": {} if launch_id is None else {"LAUNCH_ID": launch_id},
        "CreationTime": 1_700_000_000,
    }


async def test_a_job_is_created_with_the_request_as_it_is(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.answers["CreateTrainingJob"] = lambda _: {"TrainingJobArn": ARN}
    job = await sagemaker.create_or_adopt(REQUEST)
    assert job == TrainingJob(ARN, Created.CREATED, JobFacts("InProgress", "Starting"))
    assert aws_server.requests("CreateTrainingJob") == [REQUEST]
    assert aws_server.requests("DescribeTrainingJob") == []


async def test_a_job_of_that_name_that_is_ours_is_adopted_as_it_stands(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceInUse"))
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing(REQUEST["Environment"]["LAUNCH_ID"])
    job = await sagemaker.create_or_adopt(REQUEST)
    assert (job.arn, job.how, job.facts.secondary_status) == (ARN, Created.ADOPTED, "Training")
    assert job.facts.created_at == 1_700_000_000


@pytest.mark.parametrize("launch_id", ["somebody-elses", None])
async def test_a_strangers_job_is_never_taken_for_ours(
    sagemaker: SageMaker, aws_server: AwsServer, launch_id: str | None
) -> None:
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceInUse"))
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing(launch_id)
    with pytest.raises(Never, match=ARN) as refused:
        await sagemaker.create_or_adopt(REQUEST)
    assert refused.value.code == "LW-JOB-NAME-TAKEN"


async def test_no_room_is_told_from_throttling_and_from_a_wrong_request(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceLimitExceeded", "limit is 0 Instances"))
    with pytest.raises(QuotaExceeded, match="limit is 0 Instances"):
        await sagemaker.create_or_adopt(REQUEST)
    aws_server.fail_next("CreateTrainingJob", AwsError("ThrottlingException"))
    with pytest.raises(Throttled):
        await sagemaker.create_or_adopt(REQUEST)
    aws_server.fail_next("CreateTrainingJob", AwsError("ValidationException", "no such role"))
    with pytest.raises(AwsRefused, match="no such role"):
        await sagemaker.create_or_adopt(REQUEST)


async def test_an_unknown_end_is_again_and_the_next_try_adopts(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.fail_next("CreateTrainingJob", HangUp(), AwsError("ResourceInUse"))
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing(REQUEST["Environment"]["LAUNCH_ID"])
    with pytest.raises(Unreachable):
        await sagemaker.create_or_adopt(REQUEST)
    assert (await sagemaker.create_or_adopt(REQUEST)).how is Created.ADOPTED


async def test_trouble_while_looking_whose_job_it_is_is_again(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceInUse"))
    aws_server.fail_next("DescribeTrainingJob", AwsError("AccessDeniedException", status=403))
    with pytest.raises(AwsDenied):
        await sagemaker.create_or_adopt(REQUEST)


async def test_a_job_is_described(sagemaker: SageMaker, aws_server: AwsServer) -> None:
    aws_server.answers["DescribeTrainingJob"] = lambda _: {
        **existing("x", "Failed"),
        "FailureReason": "out of memory",
        "BillableTimeInSeconds": 7,
    }
    facts = await sagemaker.describe("job")
    assert (facts.status, facts.failure_reason, facts.billable_seconds) == ("Failed", "out of memory", 7)


@pytest.mark.parametrize("code", ["ValidationException", "ResourceNotFound"])
async def test_a_deleted_job_was_stopped_from_outside(
    sagemaker: SageMaker, aws_server: AwsServer, code: str
) -> None:
    aws_server.fail_next("DescribeTrainingJob", AwsError(code, "Requested resource not found."))
    assert await sagemaker.describe("job") == JobFacts("Stopped", "Deleted")


async def test_an_existing_job_is_found_only_if_it_is_ours(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing(REQUEST["Environment"]["LAUNCH_ID"])
    found = await sagemaker.existing(REQUEST)
    assert found is not None
    assert found.how is Created.ADOPTED
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing("somebody-elses")
    assert await sagemaker.existing(REQUEST) is None
    aws_server.fail_next("DescribeTrainingJob", AwsError("ValidationException"))
    assert await sagemaker.existing(REQUEST) is None
    aws_server.fail_next("DescribeTrainingJob", AwsError("ThrottlingException"))
    with pytest.raises(Throttled):
        await sagemaker.existing(REQUEST)


async def test_a_stop_is_asked_for(sagemaker: SageMaker, aws_server: AwsServer) -> None:
    aws_server.answers["StopTrainingJob"] = lambda _: {}
    assert await sagemaker.stop("job")
    assert aws_server.requests("StopTrainingJob") == [{"TrainingJobName": "job"}]


@pytest.mark.parametrize("code", ["ValidationException", "ResourceNotFound"])
async def test_a_stop_that_comes_too_late_is_no_error(
    sagemaker: SageMaker, aws_server: AwsServer, code: str
) -> None:
    aws_server.fail_next("StopTrainingJob", AwsError(code, "the training job is in status Stopped"))
    assert not await sagemaker.stop("job")


async def test_the_effects_of_a_launch_are_named(sagemaker: SageMaker, aws_server: AwsServer) -> None:
    aws_server.answers["CreateTrainingJob"] = lambda _: {"TrainingJobArn": ARN}
    aws_server.answers["StopTrainingJob"] = lambda _: {}
    seen: list[tuple[str, str, int]] = []
    observe_effects(lambda when, name: seen.append((when, name, len(aws_server.calls))))
    try:
        await sagemaker.create_or_adopt(REQUEST)
        await sagemaker.stop("job")
    finally:
        observe_effects(None)
    assert seen == [
        ("before", "create_training_job", 0),
        ("after", "create_training_job", 1),
        ("before", "stop_training_job", 1),
        ("after", "stop_training_job", 2),
    ]


async def test_a_quota_below_the_request_is_told_from_one_that_is_used_up(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    sentence = (
        "The account-level service limit 'ml.g5.xlarge for training job usage' is 1 Instances, with current utilization"
        " of {} Instances and a request delta of {} Instances."
    )
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceLimitExceeded", sentence.format(0, 2)))
    with pytest.raises(QuotaTooSmall, match="Service Quotas") as refused:
        await sagemaker.create_or_adopt(REQUEST)
    assert refused.value.code == "LW-QUOTA-TOO-SMALL"
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceLimitExceeded", sentence.format(1, 1)))
    with pytest.raises(QuotaExceeded) as waits:
        await sagemaker.create_or_adopt(REQUEST)
    assert waits.value.reason == "quota 'ml.g5.xlarge for training job usage' of 1 is used up"


async def test_a_turn_that_is_not_used_is_the_next_ones(aws: AwsClients) -> None:
    rates = quick_rates()
    sagemaker = SageMaker(aws.sagemaker, rates)
    before = rates["CreateTrainingJob"]._tokens
    await sagemaker.turn()
    assert rates["CreateTrainingJob"]._tokens < before
    sagemaker.give_turn_back()
    assert rates["CreateTrainingJob"]._tokens >= before


async def test_all_pages_of_tags_are_read(sagemaker: SageMaker, aws_server: AwsServer) -> None:
    def pages(request: dict[str, Any]) -> dict[str, Any]:
        if "NextToken" in request:
            return {"Tags": [{"Key": "b", "Value": "2"}]}
        return {"Tags": [{"Key": "a", "Value": "1"}], "NextToken": "more"}

    aws_server.answers["ListTags"] = pages
    assert await sagemaker.tags(ARN) == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    assert [request["ResourceArn"] for request in aws_server.requests("ListTags")] == [ARN, ARN]


async def test_the_description_of_a_deleted_job_is_gone_for_good(
    sagemaker: SageMaker, aws_server: AwsServer
) -> None:
    aws_server.answers["DescribeTrainingJob"] = lambda _: existing("x")
    assert (await sagemaker.description("job"))["Environment"] == {"LAUNCH_ID": "x"}
    aws_server.fail_next(
        "DescribeTrainingJob", AwsError("ValidationException", "Requested resource not found.")
    )
    with pytest.raises(Never) as gone:
        await sagemaker.description("job")
    assert gone.value.code == "LW-JOB-GONE"
