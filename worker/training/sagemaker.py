"""SageMaker: create a training job or adopt the one that is already ours; describe it; stop it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from worker.aio import effect
from worker.clients.aws import AwsRefused, call
from worker.errors import Again, Never, Stage
from worker.launch.record import JobFacts
from worker.training.quota import Quota, quota_of, waits_for
from worker.training.status import job_facts

if TYPE_CHECKING:
    from types_aiobotocore_sagemaker import SageMakerClient

    from worker.ops.rates import Rates

LAUNCH_ID_VARIABLE = "LAUNCH_ID"
"""In the job's Environment: DescribeTrainingJob shows it, while tags need a call of their own."""

_GONE_CODES = frozenset({"ValidationException", "ResourceNotFound"})
"""No such job, or none that can still be stopped: the first is what AWS answers, the second what its API documents."""


class QuotaExceeded(Again):
    """ResourceLimitExceeded: the account has no room now; wait in the ledger."""

    def __init__(self, message: str, *, quota: Quota | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or waits_for(quota)
        """What is waited for: the same text each time, whatever else has changed."""


class QuotaTooSmall(Never):
    """ResourceLimitExceeded: the request does not fit into the quota, whatever else ends."""

    def __init__(self, quota: Quota) -> None:
        super().__init__(
            f"SageMaker's quota {quota.name!r} is {quota.limit:g} and the launch asks for {quota.wanted:g}, so that it"
            " can never start; ask for more in Service Quotas, or use fewer instances or another type.",
            code="LW-QUOTA-TOO-SMALL",
            stage=Stage.RUN,
        )


class JobNotShown(Again):
    """SageMaker knows the name of a job, but does not describe it (yet)."""


class Created(StrEnum):
    """How a job came to be ours."""

    CREATED = "created"
    ADOPTED = "adopted"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A job that SageMaker has accepted."""

    arn: str
    how: Created
    facts: JobFacts


class SageMaker:
    """The calls of the worker about a training job, paced."""

    def __init__(self, client: SageMakerClient, rates: Rates) -> None:
        self._client = client
        self._rates = rates

    async def turn(self) -> None:
        """Wait until CreateTrainingJob may be called once: `create_or_adopt` does, or `give_turn_back`."""
        await self._rates["CreateTrainingJob"].acquire()

    def give_turn_back(self) -> None:
        """The call that `turn` allowed is not made after all."""
        self._rates["CreateTrainingJob"].give_back()

    async def create_or_adopt(self, request: Mapping[str, Any]) -> TrainingJob:
        """CreateTrainingJob, once `turn` allowed it; a job of that name with our LAUNCH_ID is the job we wanted.

        Raises `Never` when the name belongs to somebody else, the request is refused or the quota is smaller than it
        (`QuotaTooSmall`), `QuotaExceeded` when the account has no room, and other `Again` when it is worth another try.
        """
        try:
            with effect("create_training_job"):
                answer = await call(
                    "CreateTrainingJob",
                    lambda: self._client.create_training_job(**request),
                    self._rates["CreateTrainingJob"],
                    acquired=True,
                )
        except AwsRefused as error:
            if error.aws_code == "ResourceInUse":
                return await self._adopt(request)
            if error.aws_code == "ResourceLimitExceeded":
                quota = quota_of(error.aws_message)
                if quota and quota.is_too_small:
                    raise QuotaTooSmall(quota) from error
                raise QuotaExceeded(f"SageMaker has no room: {error.aws_message}", quota=quota) from error
            raise
        return TrainingJob(answer["TrainingJobArn"], Created.CREATED, JobFacts("InProgress", "Starting"))

    async def existing(self, request: Mapping[str, Any]) -> TrainingJob | None:
        """The job of this request, if it exists and is ours."""
        try:
            return await self._adopt(request)
        except (Never, JobNotShown):
            return None

    async def _adopt(self, request: Mapping[str, Any]) -> TrainingJob:
        name = request["TrainingJobName"]
        try:
            description = await self._describe(name)
        except AwsRefused as error:
            if error.aws_code not in _GONE_CODES:
                raise
            # Its name is taken, so it exists: not visible yet, or being deleted.
            raise JobNotShown(f"A training job named {name} exists, but is not shown yet.") from error
        ours = request["Environment"][LAUNCH_ID_VARIABLE]
        if (description.get("Environment") or {}).get(LAUNCH_ID_VARIABLE) != ours:
            raise Never(
                f"A training job named {name} exists already and is not this launch's"
                f" ({description['TrainingJobArn']}); set another TrainingJobName or run_id and send the launch again.",
                code="LW-JOB-NAME-TAKEN",
                stage=Stage.RUN,
            )
        return TrainingJob(description["TrainingJobArn"], Created.ADOPTED, job_facts(description))

    async def describe(self, name: str) -> JobFacts:
        """What SageMaker knows of a job now; a job that is gone (DeleteTrainingJob) was stopped from outside."""
        try:
            return job_facts(await self._describe(name))
        except AwsRefused as error:
            if error.aws_code in _GONE_CODES:
                return JobFacts(status="Stopped", secondary_status="Deleted")
            raise

    async def description(self, name: str) -> Mapping[str, Any]:
        """DescribeTrainingJob's whole answer, Environment and all: not to be kept as it is.

        Raises `Never` (`LW-JOB-GONE`) for a job that somebody has deleted."""
        try:
            return await self._describe(name)
        except AwsRefused as error:
            if error.aws_code not in _GONE_CODES:
                raise
            gone = f"the training job {name}, whose request another attempt repeats, was deleted; send the launch again"
            raise Never(gone, code="LW-JOB-GONE", stage=Stage.RUN) from error

    async def tags(self, arn: str) -> list[Mapping[str, str]]:
        """A job's tags, which DescribeTrainingJob does not tell."""
        tags: list[Mapping[str, str]] = []
        request: dict[str, Any] = {"ResourceArn": arn}
        while True:
            answer = await call(
                "ListTags", lambda: self._client.list_tags(**request), self._rates["ListTags"]
            )
            tags += [{"Key": tag["Key"], "Value": tag["Value"]} for tag in answer.get("Tags", ())]
            if not answer.get("NextToken"):
                return tags
            request["NextToken"] = answer["NextToken"]

    async def stop(self, name: str) -> bool:
        """Ask for a stop: SIGTERM, and 120 s to end. False if the job had ended or is stopping already."""
        try:
            with effect("stop_training_job"):
                await call(
                    "StopTrainingJob",
                    lambda: self._client.stop_training_job(TrainingJobName=name),
                    self._rates["StopTrainingJob"],
                )
        except AwsRefused as error:
            if error.aws_code in _GONE_CODES:
                return False
            raise
        return True

    async def _describe(self, name: str) -> Mapping[str, Any]:
        return await call(
            "DescribeTrainingJob",
            lambda: self._client.describe_training_job(TrainingJobName=name),
            self._rates["DescribeTrainingJob"],
        )
